"""A row of a user's file is complete and well typed, or an error that names its place, the fault and the remedy."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from evaluators import registry
from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.json_rows import JsonRow, text_field, texts_field
from evaluators.hints import nearest_name_hint

FIELDS = (
    "context",
    "question",
    "answers",
    "answer_prefix",
    "max_new_tokens",
    "metric",
    "task",
    "id",
    "all_classes",
)
"""The first three are required."""

DEFAULT_METRIC = "qa_f1"
_MISSPELT = 0.85  # "metrics" and "answer_prefx" are; "source" and "title" are columns of the user's own


@dataclass(frozen=True, slots=True)
class OwnRow:
    """A question, its context, at least one answer, and how the row is asked and scored."""

    context: str
    question: str
    answers: tuple[str, ...]
    answer_prefix: str
    max_new_tokens: int | None
    metric: str
    task: str | None
    own_id: str | None
    all_classes: tuple[str, ...]


def parse_own_row(raw: JsonRow, where: str) -> OwnRow:
    """Check one row; columns that resemble none of ours are left alone. Raises BenchmarkError."""
    _refuse_misspelt(raw, where)
    if isinstance(raw.get("answers"), str):
        raw = raw | {"answers": [raw["answers"]]}
    row = OwnRow(
        context=text_field(raw, "context", where, is_required=True),
        question=text_field(raw, "question", where, is_required=True),
        answers=texts_field(raw, "answers", where, is_required=True),
        answer_prefix=_optional_text(raw, "answer_prefix", where) or "",
        max_new_tokens=_count(raw, where),
        metric=_optional_text(raw, "metric", where) or DEFAULT_METRIC,
        task=_task(raw, where),
        own_id=_id(raw, where),
        all_classes=texts_field(raw, "all_classes", where),
    )
    _check_metric(row, where)
    return row


def _refuse_misspelt(raw: JsonRow, where: str) -> None:
    for name in raw.keys() - set(FIELDS):
        near = difflib.get_close_matches(name, set(FIELDS) - raw.keys(), n=1, cutoff=_MISSPELT)
        if near:
            raise BenchmarkError(f"{where}: there is no field {name!r}. Did you mean {near[0]!r}?")


def _check_metric(row: OwnRow, where: str) -> None:
    known = registry.list_metrics()
    if row.metric not in known:
        hint = nearest_name_hint(row.metric, known)
        raise BenchmarkError(f"{where}: there is no metric {row.metric!r}. {hint}")
    if registry.uses_classes(row.metric) and not row.all_classes:
        raise BenchmarkError(
            f"{where}: the metric {row.metric!r} needs all_classes, the names to choose from."
        )


def _optional_text(raw: JsonRow, field: str, where: str) -> str | None:
    return None if raw.get(field) is None else text_field(raw, field, where)


def _task(raw: JsonRow, where: str) -> str | None:
    task = _optional_text(raw, "task", where)
    if task is not None and (not task.strip() or "/" in task):
        raise BenchmarkError(f"{where}: task is {task!r}; give a name without a slash, or leave it out.")
    return task


def _id(raw: JsonRow, where: str) -> str | None:
    """The row's id; a whole number counts as its digits."""
    value = raw.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None if value is None else text_field(raw, "id", where, is_required=True)


def _count(raw: JsonRow, where: str) -> int | None:
    value = raw.get("max_new_tokens")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise BenchmarkError(f"{where}: max_new_tokens must be a whole number from 1; got {value!r:.60}.")
    return value
