"""kvpress's sides of the race: as its README has it, and in the best configuration that can be built from its parts.

``kvpress`` calls its pipeline with text, once per press, on transformers' default attention; H2O's counterpart
`ObservedAttentionPress` demands eager attention, which holds the prompt's n × n weights of a layer. ``kvpress-best`` uses
presses as context managers around a prefill of ids and decodes by itself. Which way is fastest per item is tried on one
press: eagerly or by a captured CUDA graph over a static cache, one prompt or four of equal length at a time.

Both run in an environment of kvpress's own: see `kvpress_environment`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.clock import Deadline, timed
from bench.race.static_decoding import StaticDecoder
from bench.random_llama import BUDGETS, EVICTING
from kvmerger.device import free_memory, now_s
from kvmerger.generation import Prompt
from kvmerger.models.loading import LoadedModel

PRESSES = {
    "streaming_llm": "StreamingLLMPress",
    "knorm": "KnormPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "keydiff": "KeyDiffPress",
    "h2o": "ObservedAttentionPress",
}
_NEEDS_EAGER = ("h2o",)
_FULL = ("full", 1.0)
_PROBE = ("knorm", 0.5)
_PRESSED = (_FULL, *((name, budget) for name in EVICTING for budget in BUDGETS))
_MARGIN = 1.2  # times the slowest press so far: the time that must be left for another
Report = Callable[[str, float | str], None]
"""Told each variant's label with its seconds, or with why it failed."""
Keep = Callable[[Mapping[str, Any]], None]
"""Told all that is known so far, after each press and each way that was tried."""


@dataclass(frozen=True, slots=True)
class Way:
    """How kvpress's caches are decoded: ``batch`` equal prompts at once; by a graph over a static cache, or eagerly."""

    batch: int
    is_static: bool

    def __str__(self) -> str:
        return (
            f"{'static cache, CUDA graph' if self.is_static else 'dynamic cache, eager'}, batch {self.batch}"
        )


WAYS = tuple(Way(batch, is_static) for batch in (1, 4) for is_static in (False, True))


def stock(
    model: LoadedModel, prompt: Prompt, deadline: Deadline, report: Report, keep: Keep
) -> dict[str, Any]:
    """kvpress's pipeline for every variant in turn."""
    from kvpress import KVPressTextGenerationPipeline  # registers the pipeline, and patches transformers
    from transformers import pipeline

    pipe = pipeline(
        "kv-press-text-generation", model=model.module, tokenizer=_tokenizer(model), device=model.device
    )
    assert isinstance(pipe, KVPressTextGenerationPipeline)
    question = prompt.questions[0]
    # Without the first id: the pipeline puts the BOS in front by itself.
    context, tail = _text(prompt.context_ids[1:]), _text(question.tail_ids)
    seen = pipe.preprocess(context, [tail], answer_prefix="", max_context_length=2**31)
    assert tuple(seen["context_ids"][0].tolist()) == prompt.context_ids, "both sides must read the same ids"
    assert tuple(seen["questions_ids"][0][0].tolist()) == question.tail_ids

    def answer(name: str, budget: float) -> object:
        return pipe(
            context, question=tail, press=_press(name, budget), max_new_tokens=question.max_new_tokens
        )

    race = PressRace(model, deadline, report, keep)
    race.warm_up(answer)
    return race.run(answer)


def best(
    model: LoadedModel, prompt: Prompt, deadline: Deadline, report: Report, keep: Keep
) -> dict[str, Any]:
    """The same presses around a prefill of ids, decoded in the way that one of them is fastest with."""
    decoders: dict[tuple[Way, int], StaticDecoder] = {}
    race = PressRace(model, deadline, report, keep)
    way = _fastest(model, prompt, decoders, race)
    if way is None:
        return {"error": "no way of decoding worked", **race.found}
    race.found["way"] = str(way)

    def answer(name: str, budget: float) -> object:
        return _answer(model, prompt, _way_for(name, way), name, budget, decoders)

    race.warm_up(answer)
    return race.run(answer, lambda name: _way_for(name, way).batch)


def _fastest(
    model: LoadedModel, prompt: Prompt, decoders: dict[tuple[Way, int], StaticDecoder], race: PressRace
) -> Way | None:
    """The way with the fewest seconds per prompt; what each took, or why it did not work, goes into the race's record."""
    tried: dict[str, float | str] = {}
    seconds_of: dict[Way, float] = {}
    race.found["tried"] = tried
    for way in WAYS:
        if seconds_of and race.is_over:
            tried[str(way)] = "not tried: the time was over"
            continue
        try:
            with race.warming(f"way: {way}"):
                _answer(model, prompt, way, *_PROBE, decoders)
            run = timed(partial(_answer, model, prompt, way, *_PROBE, decoders), model.device)
            tried[str(way)] = seconds_of[way] = run.seconds / way.batch
        except Exception as error:  # noqa: BLE001 - a way that does not fit or does not work is reported, others are tried
            tried[str(way)] = _why(error)
        decoders.clear()  # static caches: they must not lie beside those of the next way
        free_memory(model.device)
        race.report(f"way: {way}", tried[str(way)])
        race.keep_so_far()
    return min(seconds_of, key=seconds_of.__getitem__) if seconds_of else None


class PressRace:
    """One side's record while it grows: every press, one after the other, as long as there is time."""

    def __init__(self, model: LoadedModel, deadline: Deadline, report: Report, keep: Keep) -> None:
        self.report = report
        self.found: dict[str, Any] = {
            "seconds_each": {}, "peak_bytes_each": {}, "failures": {}, "warm_up_s_each": {},
            "num_planned": len(_PRESSED),
        }  # fmt: skip
        self._model, self._deadline, self._keep = model, deadline, keep

    @property
    def is_over(self) -> bool:
        """Whether no time is left."""
        return self._deadline.left_s() <= 0

    def keep_so_far(self) -> None:
        """Hand over what is known, marked as not all of it."""
        self._keep({**self._record(), "is_partial": True})

    @contextlib.contextmanager
    def warming(self, what: str) -> Iterator[None]:
        """Note how long what is inside takes."""
        start_s = now_s(self._model.device)
        yield
        self.found["warm_up_s_each"][what] = now_s(self._model.device) - start_s

    def warm_up(self, answer: Callable[[str, float], object]) -> None:
        """Run the full cache and a press at each budget, so that no timed run is the first of its shapes.

        All new tokens, too: cuDNN plans attention anew for every length of a cache, and each step's is another.
        """
        for name, budget in (_FULL, _PROBE, (_PROBE[0], BUDGETS[1])):
            with (
                contextlib.suppress(torch.OutOfMemoryError),
                self.warming(f"{name}@{budget}"),
                _attention_for(self._model, name),
            ):
                answer(name, budget)

    def run(
        self, answer: Callable[[str, float], object], batch_of: Callable[[str], int] = lambda _: 1
    ) -> dict[str, Any]:
        """Time every press; ends, marked as partial, where the slowest so far would no longer fit into the time."""
        each, failures, slowest_s = self.found["seconds_each"], self.found["failures"], 0.0
        for name, budget in _PRESSED:
            if self._deadline.left_s() < slowest_s * _MARGIN:
                return {**self._record(), "is_partial": True}
            label = name if name == "full" else f"{name}@{budget}"
            start_s = time.monotonic()
            try:
                with _attention_for(self._model, name):
                    run = timed(partial(answer, name, budget), self._model.device)
                each[label] = run.seconds / batch_of(name)
                self.found["peak_bytes_each"][label] = run.peak_bytes or 0
            except Exception as error:  # noqa: BLE001 - one press that fails must not cost the others' numbers
                failures[label] = _why(error)
            free_memory(self._model.device)
            slowest_s = max(slowest_s, time.monotonic() - start_s)
            self.report(label, each.get(label, failures.get(label, "")))
            self.keep_so_far()
        return self._record()

    def _record(self) -> dict[str, Any]:
        each, peaks = self.found["seconds_each"], self.found["peak_bytes_each"]
        return {
            **self.found,
            "seconds": sum(each.values()),
            "num_variants": len(each),
            "peak_bytes": max(peaks.values(), default=0) or None,
        }


@torch.inference_mode()
def _answer(
    model: LoadedModel,
    prompt: Prompt,
    way: Way,
    name: str,
    budget: float,
    decoders: dict[tuple[Way, int], StaticDecoder],
) -> Tensor:
    """Tokens (B, T) of ``way.batch`` equal prompts under one press."""
    from transformers import DynamicCache

    module: Any = model.module
    question = prompt.questions[0]
    num_new = question.max_new_tokens
    context_BN = torch.tensor([prompt.context_ids] * way.batch, device=model.device)
    tail_BT = torch.tensor([question.tail_ids] * way.batch, device=model.device)
    cache, press = DynamicCache(), _press(name, budget)
    with _attention_for(model, name), press(module) if press else contextlib.nullcontext():
        module.model(input_ids=context_BN, past_key_values=cache)
    module.set_attn_implementation("sdpa")
    first = context_BN.shape[1]
    # Positions go on after the whole prompt, however many of its slots are left.
    position_1T = torch.arange(first, first + tail_BT.shape[1], device=model.device)[None]
    output = module(
        input_ids=tail_BT,
        past_key_values=cache,
        position_ids=position_1T.expand(way.batch, -1),
        logits_to_keep=1,
    )
    token_B1 = output.logits[:, -1].argmax(dim=-1, keepdim=True)
    next_position = first + tail_BT.shape[1]
    if way.is_static:
        num_slots = cache.layers[0].keys.shape[2]
        decoder = decoders.get((way, num_slots)) or StaticDecoder(module, way.batch, num_slots, num_new)
        decoders[way, num_slots] = decoder
        return decoder.decode(cache, token_B1, next_position)
    tokens = [token_B1]
    for step in range(num_new - 1):
        position_B1 = torch.full_like(token_B1, next_position + step)
        output = module(input_ids=tokens[-1], past_key_values=cache, position_ids=position_B1)
        tokens.append(output.logits[:, -1].argmax(dim=-1, keepdim=True))
    return torch.cat(tokens, dim=1)


def _way_for(name: str, way: Way) -> Way:
    """One prompt at a time where n × n weights are held: four would not fit."""
    return Way(1, way.is_static) if name in _NEEDS_EAGER else way


def _press(name: str, budget: float) -> Any:
    import kvpress

    if name == "full":
        return None
    # Rounded: kvpress cuts n * (1 - ratio) to whole slots, and an error in the last bit would cost one.
    return getattr(kvpress, PRESSES[name])(compression_ratio=round(1 - budget, 6))


@contextlib.contextmanager
def _attention_for(model: LoadedModel, name: str) -> Iterator[None]:
    """transformers' default attention, or the eager one for a press that wants attention weights."""
    module: Any = model.module
    module.set_attn_implementation("eager" if name in _NEEDS_EAGER else "sdpa")
    try:
        yield
    finally:
        module.set_attn_implementation("sdpa")


def _tokenizer(model: LoadedModel) -> Any:
    """One word per id: the pipeline wants text, and this is how it gets the ids the other side reads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<bos>": 0, **{f"t{index}": index for index in range(1, model.info.vocab_size)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<bos>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>")


def _text(ids: tuple[int, ...]) -> str:
    return " ".join(f"t{token}" for token in ids)


def _why(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
