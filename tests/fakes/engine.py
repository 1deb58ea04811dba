"""Small honest stand-ins for the heavy parts: they answer in the real types, the same way every time.

The fake engine keeps what each budget allows and repeats the gold answer; it does on request what a real one does by
accident: raise, die, or leave a row out. Units made here need no tokenizer and no model.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluators.item import BenchmarkItem
from evaluators.prompting import TokenizedPrompt
from jobs.execution.unit_runner import LoadedEngine
from jobs.planning.work import PlannedItem, RowKey, WorkUnit
from jobs.results.rows import RunContext
from jobs.settings.schema import ModelSettings, Settings
from kvmerger.budget import KeptRatio, SlotCount, num_slots_for
from kvmerger.generation import Generation, MemoryPoint, Prompt, Question, VariantFailure
from kvmerger.names import VariantError
from kvmerger.variants import FULL, NO_CONTEXT, REFERENCE_LABELS, VariantSpec

NUM_LAYERS, NUM_KV_HEADS, BYTES_PER_SLOT = 2, 3, 8
EOS_ID = 0
RAISE_ID, DIE_ID, DIE_ONCE_ID, SKIP_ID = 1001, 1002, 1003, 1004
"""First tokens of a context that make the fake engine raise, die, die the first time, or forget a variant."""

KNORM = VariantSpec("knorm@0.5", "knorm", (), KeptRatio(0.5))
UNBUILDABLE = VariantSpec("unbuildable@0.5", "unbuildable", (), KeptRatio(0.5))


@dataclass(frozen=True)
class FakeInfo:
    """The facts of a model that a row states."""

    revision: str = "fake-1"
    dtype: str = "float32"
    device: str = "cpu"
    attention: str = "torch"


class FakeTokenizer:
    """Id 7 is the word `w7`."""

    bos_token_id: int | None = None
    eos_token_id: int | None = EOS_ID
    chat_template: Any = None

    def decode(self, token_ids: Sequence[int], **options: Any) -> str:
        return " ".join(f"w{token}" for token in token_ids)

    def __call__(self, text: str, **options: Any) -> dict[str, Any]:
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> str:
        return conversation[0]["content"]


@dataclass(frozen=True)
class FakeEngine:
    """Answers every variant and reference row with the gold answer, `no_context` with nothing."""

    marker_dir: Path | None = None

    def run(
        self, prompt: Prompt, variants: Sequence[VariantSpec], *, execution: str, seed: int = 0
    ) -> list[Generation | VariantFailure]:
        self._misbehave(prompt.context_ids[0])
        specs = [*(VariantSpec(label, label) for label in REFERENCE_LABELS), *variants]
        if prompt.context_ids[0] == SKIP_ID:
            specs.pop()
        return [
            _generation(spec, index, question, len(prompt.context_ids))
            for spec in specs
            for index, question in enumerate(prompt.questions)
        ]

    def run_many(
        self, prompts: Sequence[Prompt], variants: Sequence[VariantSpec], *, seed: int = 0
    ) -> list[list[Generation | VariantFailure]]:
        return [self.run(prompt, variants, execution="fused", seed=seed) for prompt in prompts]

    def _misbehave(self, token: int) -> None:
        if token == RAISE_ID:
            raise RuntimeError("the fake engine was asked to raise")
        if token == DIE_ID:
            os.kill(os.getpid(), signal.SIGKILL)
        if token == DIE_ONCE_ID and self.marker_dir is not None and not (self.marker_dir / "died").exists():
            (self.marker_dir / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class FakeLoad:
    """Loads the fake engine, here or in an actor; each load leaves a file in `marker_dir`."""

    marker_dir: Path | None = None
    error: Exception | None = None
    revision: str = FakeInfo.revision

    def __call__(self, settings: ModelSettings) -> LoadedEngine:
        if self.error is not None:
            raise self.error
        if self.marker_dir is not None:
            (self.marker_dir / f"loaded-{os.getpid()}").touch()
        info = FakeInfo(revision=self.revision)
        return LoadedEngine(
            FakeEngine(self.marker_dir), FakeTokenizer(), info, build_fake_variant, "fused", "a fake"
        )


def build_fake_variant(spec: VariantSpec) -> VariantSpec:
    """The fake engine runs specs; one policy cannot be made."""
    if spec.policy == UNBUILDABLE.policy:
        raise VariantError(f"unknown policy {spec.policy!r}")
    return spec


def _generation(spec: VariantSpec, index: int, question: Question, num_tokens: int) -> Generation:
    num_slots = 0 if spec.label == NO_CONTEXT else num_tokens
    if isinstance(spec.budget, KeptRatio | SlotCount):
        num_slots = num_slots_for(spec.budget, num_tokens)
    is_blank = spec.label == NO_CONTEXT
    layer_bytes = NUM_KV_HEADS * BYTES_PER_SLOT
    return Generation(
        label=spec.label,
        question_index=index,
        token_ids=(EOS_ID,) if is_blank else (*question.gold_ids, EOS_ID),
        stop_reason="eos",
        kl_mean=0.0 if spec.label == FULL else 0.25,
        top1_agreement=1.0,
        num_fidelity_tokens=len(question.gold_ids) + 1,
        answer_nll=1.5 if question.gold_ids else None,
        slots_LH=((num_slots,) * NUM_KV_HEADS,) * NUM_LAYERS,
        asked_slots=None if spec.budget is None else num_slots * NUM_LAYERS * NUM_KV_HEADS,
        kv_bytes=num_slots * NUM_LAYERS * layer_bytes,
        full_kv_bytes=num_tokens * NUM_LAYERS * layer_bytes,
        tail_bytes=(len(question.tail_ids) + len(question.gold_ids)) * NUM_LAYERS * layer_bytes,
        peak_bytes=None,
        degenerate_reason=None,
        counters={"num_evicted": float(num_tokens - num_slots)},
        seconds={"decode_s": 0.5},
        trace=(MemoryPoint(0, "prefill", 100, 200),),
    )


def make_planned(item_id: str, first_token: int = 5, **changes: Any) -> PlannedItem:
    """An item whose gold answer is `w8 w9`, on a context of ten tokens; `changes` go to the prompt."""
    item = BenchmarkItem(
        item_id=item_id,
        benchmark="longbench",
        task="qasper",
        cluster_id="cluster",
        before_context="",
        context="text",
        after_context="question",
        answer_prefix="",
        answers=("w8 w9",),
        max_new_tokens=4,
        use_chat_template=False,
        metric="qa_f1",
    )
    tokens: dict[str, Any] = {
        "context_ids": (first_token, *range(10, 19)),
        "tail_ids": (3, 4),
        "gold_ids": (8, 9),
        "is_truncated": False,
        "num_original_tokens": 12,
    }
    return PlannedItem(item, TokenizedPrompt(**(tokens | changes)))


def make_unit(
    unit_id: str,
    *planned: PlannedItem,
    variants: tuple[VariantSpec, ...] = (KNORM,),
    cost_tokens: float = 10.0,
) -> WorkUnit:
    """A unit that owes every item under `full` and every variant."""
    items = planned or (make_planned(f"{unit_id}/item"),)
    keys = tuple(
        RowKey(f"{unit_id}|{it.item.item_id}|{label}", it.item.item_id, label)
        for it in items
        for label in (FULL, *(spec.label for spec in variants))
    )
    by_context: dict[tuple[int, ...], list[int]] = {}
    for index, it in enumerate(items):
        by_context.setdefault(it.tokens.context_ids, []).append(index)
    contexts = tuple(map(tuple, by_context.values()))
    return WorkUnit(unit_id, items, contexts, variants, keys, "fused", cost_tokens)


def make_settings(**changes: Any) -> Settings:
    """Valid settings that no test runs a real model with."""
    values: dict[str, Any] = {"name": "fake", "tasks": ["longbench/qasper"], "policies": ["full"]}
    return Settings.model_validate(values | changes)


def make_context(**changes: Any) -> RunContext:
    """What all rows of the fake sweep share."""
    values: dict[str, Any] = {
        "sweep": "fake",
        "model": "fake-model",
        # A branch, which names no content: the fake model may be any that it leads to.
        "model_revision": "main",
        "query_mode": "query_aware",
        "seed": 0,
        "versions": {"torch": "0"},
        "policy_versions": {KNORM.label: "3"},
    }
    return RunContext(**(values | changes))


@dataclass
class Recorder:
    """Takes rows and events of a run, in order."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)

    def on_rows(self, unit: WorkUnit, rows: list[dict[str, Any]]) -> None:
        self.units.append(unit.unit_id)
        self.rows.extend(rows)

    def on_event(self, event: Any) -> None:
        self.events.append(event)

    def identities(self) -> list[str]:
        """Of every row taken, sorted; twice where a row came twice."""
        return sorted(row["identity"] for row in self.rows)
