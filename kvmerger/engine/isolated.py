"""Each variant alone, with a prefill, a batch and a memory peak of its own: what one policy costs when nothing is shared.

A row whose budget is like another's is told that one's numbers of slots; it pays for nothing that the other one needs.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kvmerger.building import Variant
from kvmerger.decoding.batch import Batch, Row
from kvmerger.decoding.step_graphs import Refusals, graphs_for
from kvmerger.device import now_s
from kvmerger.engine.answering import Answered, Answering, References, out_of_memory
from kvmerger.engine.budgets import Kept, references_first
from kvmerger.engine.compress import compress_all
from kvmerger.engine.conversations import InTurn, answer_in_turns, with_every_turn
from kvmerger.engine.fused import failures_of, needs_for, rows_of, with_references
from kvmerger.generation import Generation, Prompt, VariantFailure
from kvmerger.limits import Limits, another_bucket, bucket_for
from kvmerger.models.loading import LoadedModel
from kvmerger.prefill.prefill import prefill
from kvmerger.prefill.repeat import repeat
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT


def run_isolated(
    model: LoadedModel,
    limits: Limits,
    prompt: Prompt,
    variants: Sequence[Variant],
    seed: int,
    refusals: Refusals,
) -> list[Generation | VariantFailure]:
    """Run the full row, then every other row, one after the other. See `Engine.run`."""
    num_asked, prompt = len(prompt.questions), with_every_turn(prompt)
    by_label = {variant.label: variant for variant in references_first(variants)}
    runner = _Runner(model, limits, prompt, seed, refusals)
    results: dict[str, Sequence[Generation | VariantFailure]] = {}
    references: References | None = None
    for label in (FULL, NO_CONTEXT, *by_label, FULL_AA):
        variants_of_row = [by_label[label]] if label in by_label else []
        outcome = runner.run_or_fail(label, variants_of_row, references)
        if isinstance(outcome, Answered):
            references = references or outcome.references
            results[label] = outcome.results
        else:
            results[label] = outcome
    in_order = (FULL, NO_CONTEXT, *(variant.label for variant in variants), FULL_AA)
    return [result for label in in_order for result in results[label] if result.question_index < num_asked]


@dataclass(slots=True)
class _Runner:
    """Runs rows one by one. kept: what each one so far ended up with, by label, for budgets that are like theirs."""

    model: LoadedModel
    limits: Limits
    prompt: Prompt
    seed: int
    refusals: Refusals
    kept: dict[str, Kept] = field(default_factory=dict)

    def run_or_fail(
        self, label: str, variants: Sequence[Variant], references: References | None
    ) -> Answered | list[VariantFailure]:
        """`run`, where memory that runs out costs this row alone, unless it is the full row."""
        try:
            return self.run(label, variants, references)
        except torch.OutOfMemoryError as error:
            if references is None:
                raise
            return out_of_memory(label, self.prompt, "isolated", str(error), traceback.format_exc())

    def run(
        self, label: str, variants: Sequence[Variant], references: References | None
    ) -> Answered | list[VariantFailure]:
        """Run one row's questions with nothing else alive; without ``references`` it must be the full row.

        ``variants``: the row's one, none for a reference row.
        """
        model, prompt = self.model, self.prompt
        graphs = graphs_for(model, self.refusals)
        # Before the prefill, which belongs to the peak as compressing does.
        before_bytes = _start_peak(model.device)
        start_s, needs = now_s(model.device), needs_for(variants, model, prompt)
        prefilled = prefill(model, prompt.context_ids, needs, self.seed, is_last_try=False)
        seconds = {"prefill_s": now_s(model.device) - start_s}
        if repeat(model, prompt.context_ids, prefilled, needs, is_last_try=False):
            seconds["repeat_s"] = now_s(model.device) - start_s - seconds["prefill_s"]
        compression = compress_all(prefilled, variants, self.kept, prompt)
        self.kept.update(compression.kept)
        if compression.failed:
            return failures_of(compression, prompt)
        compressed = with_references(compression, prefilled)
        full = compressed[FULL].sizes
        compressed = {label: compressed[label]}
        # Decoding runs beside this variant's own cache alone, as it would in a server.
        del prefilled, compression
        gc.collect()
        rows = rows_of(compressed, [label], prompt)
        bucket = bucket_for(len(rows))
        if label == FULL_AA:
            bucket = another_bucket(len(rows), bucket)
        # Recorded for this run alone: memory that outlived it would not be in the next one's peak.
        answering = Answering(model, prompt, compressed, full, self.limits)

        def answer(of_turn: dict[int, Row]) -> InTurn:
            batch = Batch(model, prompt, of_turn, bucket, graphs)
            answers = batch.decode()
            answered = answering.finish(
                batch,
                answers,
                references=references,
                seconds=seconds,
                peak_bytes=_peak(model.device, before_bytes),
            )
            return InTurn(answers, batch.failures, answered)

        return answer_in_turns(prompt, dict(enumerate(rows)), answer)


def _start_peak(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()  # the last run's graph leaves its memory reserved
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, before_bytes: int) -> int | None:
    """Most bytes allocated at once since `_start_peak`, beyond what was there then (the weights)."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before_bytes
