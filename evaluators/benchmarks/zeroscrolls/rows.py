"""A ZeroSCROLLS row is a whole prompt with the places of its parts; rows with one id are one item with more references."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.sources.json_rows import (
    JsonRow,
    check_size,
    text_field,
    texts_field,
)
from evaluators.benchmarks.zeroscrolls.tasks import ZeroScrollsTask

_PLACES = ("document_start_index", "query_start_index", "query_end_index")
FIELDS = "id, input, output and the indices of document and query"


@dataclass(frozen=True, slots=True)
class ZeroScrollsRow:
    """An official row, cut at its indices; `references` is () where they are hidden.

    The prompt is `instruction`, `document`, `query`, `header` (as "\\n\\nAnswer:"). `separator` stands for what
    truncation leaves out. `is_rebuilt`: made from the source data set, by someone else than the authors.
    """

    official_id: str
    instruction: str
    document: str
    query: str
    header: str
    separator: str
    references: tuple[str, ...]
    is_rebuilt: bool


def merged_rows(
    found: Iterable[tuple[str, JsonRow]], source: str, task: ZeroScrollsTask
) -> list[ZeroScrollsRow]:
    """All rows, each `found` with where it stands, in the order their ids first come.

    Raises BenchmarkError with the place and what is wrong, or when `source` has no row.
    """
    rows: dict[str, ZeroScrollsRow] = {}
    for where, raw in found:
        row = _row(raw, where)
        for reference in row.references:
            if not task.can_be_gold(reference):
                raise BenchmarkError(
                    f"{where}: the output {reference!r:.60} cannot be scored by {task.metric}."
                )
        seen = rows.setdefault(row.official_id, replace(row, references=()))
        # The authors repeat a row for each of its references (drop_duplicates_in_input of their verify_task.py).
        references = dict.fromkeys(seen.references + row.references)
        rows[row.official_id] = replace(seen, references=tuple(references))
    if not rows:
        raise BenchmarkError(f"{source} has no rows; give a folder with the complete official files.")
    return list(rows.values())


def _row(raw: JsonRow, where: str) -> ZeroScrollsRow:
    official_id = text_field(raw, "id", where, is_required=True)
    text = text_field(raw, "input", where, is_required=True)
    document_start, query_start, query_end = (_place(raw, field, where) for field in _PLACES)
    # The query may be empty, as in summaries without a question; the document may not.
    if not 0 <= document_start < query_start <= query_end <= len(text):
        raise BenchmarkError(
            f"{where}: {', '.join(_PLACES)} are {document_start}, {query_start}, {query_end} in an input of "
            f"{len(text)} characters; they must come in this order."
        )
    return ZeroScrollsRow(
        official_id=official_id,
        instruction=text[:document_start],
        document=text[document_start:query_start],
        query=text[query_start:query_end],
        header=text[query_end:],
        separator=text_field(raw, "truncation_seperator", where),  # the authors' spelling
        references=_references(raw, where),
        is_rebuilt="rebuilt" in official_id or raw.get("_rebuilt") is True,
    )


def _references(raw: JsonRow, where: str) -> tuple[str, ...]:
    """`outputs`, where a copy has them merged already, or `output`; null, as in the official test sets, is none."""
    if raw.get("outputs") is not None:
        found = texts_field(raw, "outputs", where)
    else:
        found = () if raw.get("output") is None else (_output(raw, where),)
    return tuple(reference for reference in found if reference.strip())


def _place(raw: JsonRow, field: str, where: str) -> int:
    value = raw.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BenchmarkError(f"{where}: {field} must be a whole number; got {value!r:.60}.")
    return value


def _output(raw: JsonRow, where: str) -> str:
    text = text_field(raw, "output", where)
    check_size(text, f"{where}: output")
    return text
