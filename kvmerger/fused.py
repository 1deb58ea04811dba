"""All variants of a prompt on one prefill, in one batch (or in groups, each with the full row beside it)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from kvmerger.answering import Answering, References
from kvmerger.batch import Batch, Row, another_bucket, bucket_for
from kvmerger.compress import Compressed, Compression, compress_all, empty_prefix
from kvmerger.device_time import now_s
from kvmerger.evidence import Need
from kvmerger.generation import Generation, Prompt, VariantFailure
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
    compression = compress_all(prefilled, variants)
    compressed = with_references(compression, prefilled)
    del prefilled  # and with it the evidence: nobody reads it once every variant is compressed
    answering = Answering(model, prompt, compressed, compressed[FULL].nbytes, limits.max_fidelity_tokens)
    results: list[Generation | VariantFailure] = []
    references: References | None = None
    for labels in _groups(list(compressed), len(prompt.questions), limits.max_rows):
        rows = rows_of(compressed, labels, prompt)
        batch = Batch(model, prompt, dict(enumerate(rows)), bucket_for(len(rows)), graphs)
        answered = answering.finish(batch, batch.decode(), references=None, seconds=seconds)
        # Every group has the full row, for KL in its own bucket; its generation is reported once.
        results += [result for result in answered.results if references is None or result.label != FULL]
        references = references or answered.references
    assert references is not None, "there is always a group: it has the full row"
    rows = rows_of(compressed, [FULL_AA], prompt)
    bucket = another_bucket(len(rows), batch.cache.num_rows)
    batch = Batch(model, prompt, dict(enumerate(rows)), bucket, graphs)
    results += answering.finish(batch, batch.decode(), references=references, seconds=seconds).results
    return [*results, *failures_of(compression, prompt)]


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


def _groups(labels: list[str], num_questions: int, max_rows: int) -> Iterator[list[str]]:
    """Labels in groups of at most ``max_rows`` rows (one label at least), the full row in each, the A/A row in none."""
    others = [label for label in labels if label not in (FULL, FULL_AA)]
    group_labels = max(1, max_rows // num_questions - 1)
    for start in range(0, len(others), group_labels):
        yield [FULL, *others[start : start + group_labels]]
