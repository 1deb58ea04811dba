"""All variants of a prompt on one prefill, in one batch (or in groups, each with the full row beside it).

Memory that runs out costs time and no row: the group is halved, and each half compresses from the full row again, which
stays where it is. Only a variant that does not fit beside the full row by itself comes back as failed.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import torch

from kvmerger.building import Variant
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.decode_loop import Answer
from kvmerger.decoding.step_graphs import StepGraphs
from kvmerger.device import free_memory, now_s
from kvmerger.engine.answering import Answered, Answering, References, out_of_memory
from kvmerger.engine.budgets import Kept, needs_at_budget, references_first, shape_for, shape_of
from kvmerger.engine.compress import Compressed, Compression, compress_all, empty_prefix
from kvmerger.engine.context_free import needs_to_keep_all
from kvmerger.engine.conversations import InTurn, answer_in_turns, with_every_turn
from kvmerger.engine.groups import (
    Group,
    by_answers,
    by_bytes,
    expected_bytes,
    labels_that_act,
    labels_without_kernels,
    plannable_bytes,
    tail_bytes,
)
from kvmerger.generation import Generation, Prompt, VariantFailure
from kvmerger.limits import Limits, another_bucket
from kvmerger.models.loading import LoadedModel
from kvmerger.policies.base import CacheShape, declared_needs
from kvmerger.prefill.evidence import Need
from kvmerger.prefill.prefill import Prefilled, prefill, prompt_seed
from kvmerger.prefill.repeat import repeat
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT


def run_fused(
    model: LoadedModel,
    limits: Limits,
    prompt: Prompt,
    variants: Sequence[Variant],
    seed: int,
    graphs: StepGraphs | None = None,
) -> list[Generation | VariantFailure]:
    """Prefill once, compress for every variant, answer together. See `Engine.run`."""
    num_asked, prompt = len(prompt.questions), with_every_turn(prompt)
    run = _with_room(partial(FusedRun.start, model, limits, prompt, variants, seed, graphs), model, graphs)
    labels = [NO_CONTEXT, *(variant.label for variant in run.variants)]
    # One row that is decoded to be read, and no step of its batch could be recorded: it gets a batch of its own.
    apart = labels_without_kernels(run.variants) if graphs else frozenset()
    acting = labels_that_act(run.variants, prompt_seed(prompt.context_ids, seed))
    groups = [
        part for group in by_answers(labels, acting, prompt, limits.max_rows) for part in group.parted(apart)
    ]
    # The A/A row comes last: it is compared with the full row of a batch in another bucket.
    run.answer_all(groups)
    run.answer_references(groups[0].bucket)
    return [outcome for outcome in run.outcomes if outcome.question_index < num_asked]


@dataclass
class FusedRun:
    """One prompt's results so far: every label of every group answered is in them once per question.

    variants: each after the one its budget is like. seconds: what prefill, a repetition and planning took.
    """

    model: LoadedModel
    limits: Limits
    prompt: Prompt
    variants: Sequence[Variant]
    prefilled: Prefilled
    graphs: StepGraphs | None
    seconds: dict[str, float]
    results: list[Generation | VariantFailure] = field(default_factory=list)
    failures: list[VariantFailure] = field(default_factory=list)
    references: References | None = None
    _kept: dict[str, Kept] = field(default_factory=dict)

    @classmethod
    def start(
        cls,
        model: LoadedModel,
        limits: Limits,
        prompt: Prompt,
        variants: Sequence[Variant],
        seed: int,
        graphs: StepGraphs | None,
        *,
        is_last_try: bool,
    ) -> FusedRun:
        """Prefill ``prompt``; see `prefill`."""
        start_s, needs = now_s(model.device), needs_for(variants, model, prompt)
        prefilled = prefill(model, prompt.context_ids, needs, seed, is_last_try=is_last_try)
        seconds = {"prefill_shared_s": now_s(model.device) - start_s, "plan_shared_s": 0.0}
        if repeat(model, prompt.context_ids, prefilled, needs, is_last_try=is_last_try):
            seconds["repeat_shared_s"] = now_s(model.device) - start_s - seconds["prefill_shared_s"]
        return cls(model, limits, prompt, references_first(variants), prefilled, graphs, seconds)

    @property
    def outcomes(self) -> list[Generation | VariantFailure]:
        """All that is known by now."""
        return [*self.results, *self.failures]

    def answer_all(self, groups: Sequence[Group]) -> None:
        """Answer every label of ``groups`` in batches of this prompt alone."""
        for group in groups:
            for part in self.parts(group):
                self._answer_in_parts(part)

    def parts(self, group: Group) -> list[Group]:
        """Parts of ``group`` that are expected to fit into the memory that is free now."""
        start_s = now_s(self.model.device)
        shape, prompt_seed = shape_of(self.prefilled), self.prefilled.evidence[0].prompt_seed
        full_bytes = Compressed(FULL, self.prefilled.layers, None, 0.0).nbytes
        expected = expected_bytes(self.variants, self.prompt, shape, prompt_seed)
        free_bytes = plannable_bytes(self.model.device)
        if free_bytes is not None:
            free_bytes -= tail_bytes(group.bucket, self.prompt, full_bytes)
        parts = list(by_bytes(group, expected, free_bytes))
        self.seconds["plan_shared_s"] += now_s(self.model.device) - start_s
        return parts

    def compress(self, group: Group) -> Compression:
        """Compress for the variants of ``group``."""
        variants = [variant for variant in self.variants if variant.label in group.place_by_label]
        return compress_all(self.prefilled, variants, self._kept, self.prompt)

    def rows(self, group: Group, compression: Compression) -> dict[int, Row]:
        """The rows of ``group``, the full ones first, as far as they could be compressed; the A/A row has none beside it."""
        compressed = with_references(compression, self.prefilled)
        places = (
            group.place_by_label if FULL_AA in group.place_by_label else {FULL: 0, **group.place_by_label}
        )
        rows = {
            place + question: row
            for label, place in places.items()
            if label in compressed
            for question, row in enumerate(rows_of(compressed, [label], self.prompt))
        }
        bound_themselves = all(
            compressed[label].bounds_itself for label in group.place_by_label if label in compressed
        )
        if self.references is None or not self.prompt.has_long_answers or not bound_themselves:
            return rows
        # A full row beside them would have all tails reserve as much as its own. They are forced token by token, it in one
        # matrix, so that another batch's differs no more from theirs.
        return {index: row for index, row in rows.items() if row.label != FULL}

    def finish(
        self, group: Group, batch: Batch, answers: Mapping[int, Answer], compression: Compression
    ) -> Answered:
        """Results of a group's decoded ``batch``, compared with its own full rows; the A/A row with earlier ones."""
        compressed = with_references(compression, self.prefilled)
        answering = Answering(self.model, self.prompt, compressed, compressed[FULL].sizes, self.limits)
        references = None if any(row.label == FULL for row in batch.rows.values()) else self.references
        return answering.finish(batch, answers, references=references, seconds=self.seconds)

    def take(self, answered: Answered, compression: Compression) -> None:
        """Keep what a group has come to; nothing of it is lost from here on."""
        self._kept |= compression.kept
        self.failures += failures_of(compression, self.prompt)
        # Every group has the full row, for KL in its own bucket; its generation is reported once.
        is_first = self.references is None
        self.results += [result for result in answered.results if is_first or result.label != FULL]
        self.references = self.references or answered.references

    def answer_references(self, main_bucket: int) -> None:
        """The full row in another bucket, and in its own if it stood beside nothing that fitted.

        Raises:
            torch.OutOfMemoryError: not even the full row fits.
        """
        if self.references is None:
            alone = Group({}, main_bucket)
            compression = self.compress(alone)
            self.take(self._answer(alone, compression), compression)
        bucket = another_bucket(len(self.prompt.questions), main_bucket)
        self._answer_in_parts(Group({FULL_AA: 0}, bucket))

    def _answer_in_parts(self, group: Group) -> None:
        """Answer all of ``group``, in as many batches as memory makes it."""
        waiting = [group]
        while waiting:
            group = waiting.pop(0)
            lack = self._try(group)
            if lack is None:
                continue
            # `_try` has handed on text only: an exception's frames would still hold the batch that did not fit.
            make_room(self.model, self.graphs)
            if len(group.place_by_label) > 1:
                # In front: budgets like another's need that one's slots before their own turn.
                waiting[:0] = group.halves()
            else:
                (label,) = group.place_by_label
                self.failures += out_of_memory(label, self.prompt, *lack)

    def _try(self, group: Group) -> tuple[str, str, str] | None:
        """Answer a group whole, or take nothing of it: phase, message and traceback where memory ran out."""
        phase = "compress"
        try:
            compression = self.compress(group)
            phase = "decode"
            answered = self._answer(group, compression)
        except torch.OutOfMemoryError as error:
            return phase, str(error), traceback.format_exc()
        self.take(answered, compression)
        return None

    def _answer(self, group: Group, compression: Compression) -> Answered:
        rows = self.rows(group, compression)
        if not rows:  # of a group of rows apart, none of which could be compressed
            return Answered([], self.references or {})

        def answer(of_turn: dict[int, Row]) -> InTurn:
            batch = Batch(self.model, self.prompt, of_turn, group.bucket, self.graphs)
            answers = batch.decode()
            return InTurn(answers, batch.failures, self.finish(group, batch, answers, compression))

        return answer_in_turns(self.prompt, rows, answer)


def _with_room(start: Callable[..., FusedRun], model: LoadedModel, graphs: StepGraphs | None) -> FusedRun:
    """``start``; if memory runs out, once more without what the batches before have left behind."""
    with suppress(torch.OutOfMemoryError):
        return start(is_last_try=False)
    # Not while the error is handled: its frames hold what did not fit.
    make_room(model, graphs)
    return start(is_last_try=True)


def make_room(model: LoadedModel, graphs: StepGraphs | None) -> None:
    """Give back what a batch that did not fit has left behind."""
    if graphs is not None:
        graphs.forget()
    free_memory(model.device)


def needs_for(variants: Sequence[Variant], model: LoadedModel, prompt: Prompt) -> frozenset[Need]:
    """The evidence that any of ``variants`` reads on ``prompt``."""
    if prompt.is_context_free:
        return needs_to_keep_all(variants)
    return needs_of(variants, shape_for(model.info, prompt))


def needs_of(variants: Sequence[Variant], shape: CacheShape | None = None) -> frozenset[Need]:
    """The evidence that any of ``variants`` declared; one that cannot say so declares nothing.

    Without a ``shape``, what a policy reads at its budget, beside its `needs`, is not among it.
    """
    needs: set[Need] = set()
    for variant in variants:
        needs |= variant.needs_to_count
        # A policy may be a user's: compressing asks it again, and there the error costs its own rows only.
        with suppress(Exception):
            needs |= declared_needs(variant.policy)
        if shape is not None:
            with suppress(Exception):
                needs |= needs_at_budget(variant, shape)
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
        Row(label, question, compressed[label].prefix, compressed[label].rule_of(question))
        for label in labels
        for question in range(len(prompt.questions))
    ]


def failures_of(compression: Compression, prompt: Prompt) -> list[VariantFailure]:
    """A failure per question of every variant that could not be compressed."""
    return [
        VariantFailure(
            label, question, "compress", failed.error_type.__name__, failed.message, failed.traceback
        )
        for label, failed in compression.failed.items()
        for question in range(len(prompt.questions))
    ]
