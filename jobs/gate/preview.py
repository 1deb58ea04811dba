"""What a night will ask, in the form of result rows, before any is computed, so that a refusal costs no night."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluators import scoring
from jobs.planning.identity import prompt_digest
from jobs.planning.preparation import Prepared
from jobs.planning.rows import PlannedRow
from jobs.reporting.notation import shown_device
from jobs.results.schema import DONE_STATUSES, OK, RESULT_SCHEMA, Row
from jobs.settings.schema import Settings
from kvmerger.variants import FULL


def planned_facts(prepared: Prepared, settings: Settings) -> list[Row]:
    """A row per item, as far as it is known: all that comparability depends on, no number."""
    model = prepared.model
    # Every column, since the checks look them up by name; a null stands in no comparison's way.
    shared = {
        **dict.fromkeys(RESULT_SCHEMA.names),
        "status": OK,
        "model": model.name,
        "model_revision": model.revision,
        "dtype": model.dtype,
        "query_mode": settings.query_mode.value,
        # Under Ray the actors' machine chooses the backend, and it may be another than this one.
        "attention": model.attention if settings.executor == "inline" else None,
    }
    return [
        {**shared, **_asked(planned)}
        for planned in prepared.plan.rows
        if planned.key.label == FULL and planned.planned is not None
    ]


def other_device(baseline: Sequence[Row], device: str, name: str | None) -> str:
    """That the baseline comes from another device than tonight's; empty where it does not, or tonight's has no name yet."""
    before = {(row["device"], row["device_name"]) for row in baseline if row["status"] in DONE_STATUSES}
    if name is None or before == {(device, name)}:
        return ""
    shown = ", ".join(sorted(shown_device(*it) for it in before))
    return (
        f"another device: {shown} in the baseline, {shown_device(device, name)} tonight; seconds and peak bytes are not "
        "compared, and last bits may differ"
    )


def contexts_by_task(prepared: Prepared) -> Mapping[str, int]:
    """Number of different contexts of each task."""
    found: dict[str, set[str]] = {}
    for planned in prepared.plan.rows:
        item = planned.item
        found.setdefault(f"{item.benchmark}/{item.task}", set()).add(item.cluster_id)
    return {task: len(contexts) for task, contexts in found.items()}


def _asked(planned: PlannedRow) -> Row:
    assert planned.planned is not None
    item, tokens = planned.item, planned.planned.tokens
    return {
        "item_id": item.item_id,
        "variant": planned.key.label,
        "cluster_id": item.cluster_id,
        "metric": item.metric,
        "scorer": scoring.scorer_label(item.metric) if item.answers else None,
        "answers": list(item.answers),
        "context_tokens": len(tokens.context_ids),
        "tail_tokens": len(tokens.tail_ids),
        "prompt_digest": prompt_digest(tokens, item.max_new_tokens),
    }
