"""All variants of a prompt on one prefill, in one batch (or in groups, each with the full row beside it).

Memory that runs out costs time and no row: the group is halved, and each half compresses from the full row again, which
stays where it is. Only a variant that does not fit beside the full row by itself comes back as failed.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from kvmerger.answering import Answered, Answering, References
from kvmerger.batch import Batch, Row, another_bucket
from kvmerger.compress import (
    Compressed,
    Compression,
    SlotsLH,
    compress_all,
    empty_prefix,
    references_first,
)
from kvmerger.device_time import now_s
from kvmerger.evidence import Need
from kvmerger.generation import Generation, Prompt, VariantFailure
from kvmerger.groups import Group, by_bytes, by_rows, expected_bytes, plannable_bytes, tail_bytes
from kvmerger.limits import Limits
from kvmerger.models import LoadedModel
from kvmerger.prefill import Prefilled, prefill
from kvmerger.step_graphs import StepGraphs
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT, Variant


def run_fused(
    model: LoadedModel,
    limits: Limits,
    prompt: Prompt,
    variants: Sequence[Variant],
    seed: int,
    graphs: StepGraphs | None = None,
) -> list[Generation | VariantFailure]:
    """Prefill once, compress for every variant, answer together. See `Engine.run`."""
    start_s = now_s(model.device)
    prefilled = prefill(model, prompt.context_ids, needs_of(variants), seed)
    seconds = {"prefill_shared_s": now_s(model.device) - start_s}
    run = _FusedRun(model, limits, prompt, prefilled, graphs, seconds)
    ordered = references_first(variants)
    labels = [NO_CONTEXT, *(variant.label for variant in ordered)]
    groups = by_rows(labels, len(prompt.questions), limits.max_rows)
    full_bytes = Compressed(FULL, prefilled.layers, None, 0.0).nbytes
    expected = expected_bytes(ordered, prompt, full_bytes, prefilled.evidence[0].prompt_seed)
    for group in groups:
        plan_start_s = now_s(model.device)
        free_bytes = plannable_bytes(model.device)
        if free_bytes is not None:
            free_bytes -= tail_bytes(group.bucket, prompt, full_bytes)
        parts = list(by_bytes(group, expected, free_bytes))
        seconds["plan_shared_s"] = seconds.get("plan_shared_s", 0.0) + now_s(model.device) - plan_start_s
        for part in parts:
            run.answer(part, ordered)
    run.answer_references(groups[0].bucket)
    return [*run.results, *run.failures]


@dataclass
class _FusedRun:
    """One prompt's results so far: every label of every group answered is in them once per question."""

    model: LoadedModel
    limits: Limits
    prompt: Prompt
    prefilled: Prefilled
    graphs: StepGraphs | None
    seconds: dict[str, float]
    results: list[Generation | VariantFailure] = field(default_factory=list)
    failures: list[VariantFailure] = field(default_factory=list)
    _references: References | None = None
    _slots_LH: dict[str, SlotsLH] = field(default_factory=dict)

    def answer(self, group: Group, variants: Sequence[Variant]) -> None:
        """Answer all of ``group``, in as many batches as memory makes it."""
        waiting = [group]
        while waiting:
            group = waiting.pop(0)
            lack = self._try(
                group, [variant for variant in variants if variant.label in group.place_by_label]
            )
            if lack is None:
                continue
            self._make_room()
            if len(group.place_by_label) > 1:
                waiting[:0] = group.halves()
            else:
                (label,) = group.place_by_label
                self.failures += out_of_memory(label, self.prompt, *lack)

    def answer_references(self, main_bucket: int) -> None:
        """The full row in another bucket, and in its own if it stood beside nothing that fitted.

        Raises:
            torch.OutOfMemoryError: not even the full row fits.
        """
        if self._references is None:
            self._take(self._answer(Group({}, main_bucket), compress_all(self.prefilled, [])))
        bucket = another_bucket(len(self.prompt.questions), main_bucket)
        try:
            compression = compress_all(self.prefilled, [])
            rows = dict(
                enumerate(rows_of(with_references(compression, self.prefilled), [FULL_AA], self.prompt))
            )
            answered = self._finish(rows, bucket, compression, self._references)
        except torch.OutOfMemoryError as error:
            self.failures += out_of_memory(FULL_AA, self.prompt, "decode", str(error), traceback.format_exc())
        else:
            self._take(answered)

    def _try(self, group: Group, variants: Sequence[Variant]) -> tuple[str, str, str] | None:
        """Answer a group whole, or take nothing of it: phase, message and traceback where memory ran out."""
        phase = "compress"
        try:
            compression = compress_all(self.prefilled, variants, self._slots_LH)
            phase = "decode"
            answered = self._answer(group, compression)
        except torch.OutOfMemoryError as error:
            return phase, str(error), traceback.format_exc()
        self._slots_LH = compression.slots_LH
        self.failures += failures_of(compression, self.prompt)
        self._take(answered)
        return None

    def _answer(self, group: Group, compression: Compression) -> Answered:
        compressed = with_references(compression, self.prefilled)
        rows = dict(enumerate(rows_of(compressed, [FULL], self.prompt)))
        for label, place in group.place_by_label.items():
            if label in compressed:
                rows |= dict(enumerate(rows_of(compressed, [label], self.prompt), start=place))
        return self._finish(rows, group.bucket, compression)

    def _finish(
        self,
        rows: dict[int, Row],
        bucket: int,
        compression: Compression,
        references: References | None = None,
    ) -> Answered:
        compressed = with_references(compression, self.prefilled)
        answering = Answering(
            self.model, self.prompt, compressed, compressed[FULL].nbytes, self.limits.max_fidelity_tokens
        )
        batch = Batch(self.model, self.prompt, rows, bucket, self.graphs)
        return answering.finish(batch, batch.decode(), references=references, seconds=self.seconds)

    def _take(self, answered: Answered) -> None:
        # Every group has the full row, for KL in its own bucket; its generation is reported once.
        is_first = self._references is None
        self.results += [result for result in answered.results if is_first or result.label != FULL]
        self._references = self._references or answered.references

    def _make_room(self) -> None:
        """Give back what a group that did not fit has left behind."""
        if self.graphs is not None:
            self.graphs.forget()
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()


def needs_of(variants: Sequence[Variant]) -> frozenset[Need]:
    """The evidence that any of ``variants`` declared; one whose ``needs`` raises declares nothing."""
    needs: set[Need] = set()
    for variant in variants:
        # A policy may be a stranger's: compressing asks it again, and there the error costs its own rows only.
        with suppress(Exception):
            needs |= variant.policy.needs()
    return frozenset(needs)


def with_references(compression: Compression, prefilled: Prefilled) -> dict[str, Compressed]:
    """Every prefix by label, reference rows first: the full cache, the tail alone, the full cache again."""
    return {
        FULL: compression.done[FULL],
        NO_CONTEXT: Compressed(NO_CONTEXT, empty_prefix(prefilled), None, 0.0),
        **{label: done for label, done in compression.done.items() if label != FULL},
        FULL_AA: compression.done[FULL],
    }


def rows_of(compressed: dict[str, Compressed], labels: Sequence[str], prompt: Prompt) -> list[Row]:
    """One row per label and question, label by label."""
    return [
        Row(label, question, compressed[label].prefix, compressed[label].rule)
        for label in labels
        for question in range(len(prompt.questions))
    ]


def failures_of(compression: Compression, prompt: Prompt) -> list[VariantFailure]:
    """A failure per question of every variant that could not be compressed."""
    return [
        VariantFailure(
            label, question, "compress", type(failed.error).__name__, str(failed.error), failed.traceback
        )
        for label, failed in compression.failed.items()
        for question in range(len(prompt.questions))
    ]


def out_of_memory(
    label: str, prompt: Prompt, phase: str, message: str, traceback_text: str
) -> list[VariantFailure]:
    """A failure per question of a variant that does not fit even by itself."""
    remedy = (
        f"{label!r} does not fit into the device's memory, with no other variant beside it "
        f"({len(prompt.context_ids)} tokens compressed, {len(prompt.questions)} questions): give it a smaller budget, "
        f"set model.max_prompt_tokens, or run on a device with more memory. {message}"
    )
    return [
        VariantFailure(label, question, phase, torch.OutOfMemoryError.__name__, remedy, traceback_text)
        for question in range(len(prompt.questions))
    ]
