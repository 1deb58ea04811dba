"""kvpress's sides of the race: as its README has it, and in the best configuration that can be built from its parts.

``kvpress`` calls its pipeline with text, once per press, on transformers' default attention; H2O's counterpart
`ObservedAttentionPress` demands eager attention, which holds the prompt's n × n weights of a layer. ``kvpress-best`` uses
presses as context managers around a prefill of ids and decodes by itself. Which way is fastest per item is tried on one
press: eagerly or by a captured CUDA graph over a static cache, one prompt or four of equal length at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.race_clock import free_memory, timed
from bench.random_llama import BUDGETS, EVICTING
from bench.static_decoding import StaticDecoder
from kvmerger.generation import Prompt
from kvmerger.models import LoadedModel

PRESSES = {
    "streaming_llm": "StreamingLLMPress",
    "knorm": "KnormPress",
    "snapkv": "SnapKVPress",
    "tova": "TOVAPress",
    "keydiff": "KeyDiffPress",
    "h2o": "ObservedAttentionPress",
}
_NEEDS_EAGER = ("h2o",)
_PROBE = ("knorm", 0.5)
Report = Callable[[str, float | str], None]
"""Told each variant's label with its seconds, or with why it failed."""


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


def stock(model: LoadedModel, prompt: Prompt, report: Report) -> dict[str, Any]:
    """kvpress's pipeline for every variant in turn."""
    from kvpress import KVPressTextGenerationPipeline  # registers the pipeline, and patches transformers
    from transformers import pipeline

    pipe = pipeline(
        "kv-press-text-generation", model=model.module, tokenizer=_tokenizer(model), device=model.device
    )
    assert isinstance(pipe, KVPressTextGenerationPipeline)
    question = prompt.questions[0]
    context, tail = _text(prompt.context_ids[1:]), _text(question.tail_ids)
    seen = pipe.preprocess(context, [tail], answer_prefix="", max_context_length=2**31)
    assert tuple(seen["context_ids"][0].tolist()) == prompt.context_ids, "both sides must read the same ids"
    assert tuple(seen["questions_ids"][0][0].tolist()) == question.tail_ids

    def answer(name: str, budget: float) -> object:
        return pipe(
            context, question=tail, press=_press(name, budget), max_new_tokens=question.max_new_tokens
        )

    for name, budget in (("full", 1.0), _PROBE, (_PROBE[0], BUDGETS[1])):
        with _attention_for(model, name):
            answer(name, budget)
    return _race(model, answer, report)


def best(model: LoadedModel, prompt: Prompt, report: Report) -> dict[str, Any]:
    """The fastest way on one press, then all variants that way; seconds are per item."""
    decoders: dict[tuple[Way, int], StaticDecoder] = {}
    tried: dict[str, float | str] = {}
    fastest: tuple[float, Way] | None = None
    for way in WAYS:
        try:
            _answer(model, prompt, way, *_PROBE, decoders)  # warms up, and captures
            seconds = timed(partial(_answer, model, prompt, way, *_PROBE, decoders), model.device).seconds
            tried[str(way)] = seconds / way.batch
            fastest = min(
                fastest or (float("inf"), way), (seconds / way.batch, way), key=lambda pair: pair[0]
            )
        except Exception as error:  # noqa: BLE001 - a way that does not fit or does not work is reported, others are tried
            tried[str(way)] = _why(error)
        decoders.clear()
        free_memory(model.device)
        report(f"way: {way}", tried[str(way)])
    if fastest is None:
        return {"error": "no way of decoding worked", "tried": tried}
    way = fastest[1]
    for name, budget in (("full", 1.0), _PROBE, (_PROBE[0], BUDGETS[1])):
        with contextlib.suppress(torch.OutOfMemoryError):
            _answer(model, prompt, _way_for(name, way), name, budget, decoders)

    def answer(name: str, budget: float) -> object:
        return _answer(model, prompt, _way_for(name, way), name, budget, decoders)

    raced = _race(model, answer, report, lambda name: _way_for(name, way).batch)
    return {**raced, "way": str(way), "tried": tried}


def _race(
    model: LoadedModel,
    answer: Callable[[str, float], object],
    report: Report,
    batch_of: Callable[[str], int] = lambda _: 1,
) -> dict[str, Any]:
    each: dict[str, float] = {}
    failures: dict[str, str] = {}
    peaks: dict[str, int] = {}
    for name, budget in (("full", 1.0), *((name, budget) for name in EVICTING for budget in BUDGETS)):
        label = name if name == "full" else f"{name}@{budget}"
        try:
            with _attention_for(model, name):
                run = timed(partial(answer, name, budget), model.device)
            each[label] = run.seconds / batch_of(name)
            peaks[label] = run.peak_bytes or 0
            report(label, each[label])
        except Exception as error:  # noqa: BLE001 - one press that fails must not cost the others' numbers
            failures[label] = _why(error)
            report(label, failures[label])
        free_memory(model.device)
    return {
        "seconds": sum(each.values()),
        "seconds_each": each,
        "num_variants": len(each),
        "peak_bytes": max(peaks.values(), default=0) or None,
        "peak_bytes_each": peaks,
        "failures": failures,
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
    context_BN = torch.tensor([prompt.context_ids] * way.batch, device=model.device)
    tail_BT = torch.tensor([question.tail_ids] * way.batch, device=model.device)
    cache, press = DynamicCache(), _press(name, budget)
    with _attention_for(model, name), press(module) if press else contextlib.nullcontext():
        module.model(input_ids=context_BN, past_key_values=cache)
    module.set_attn_implementation("sdpa")
    first = context_BN.shape[1]
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
        decoder = decoders.get((way, num_slots)) or StaticDecoder(
            module, way.batch, num_slots, question.max_new_tokens
        )
        decoders[way, num_slots] = decoder
        return decoder.decode(cache, token_B1, next_position)
    tokens = [token_B1]
    for step in range(question.max_new_tokens - 1):
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
