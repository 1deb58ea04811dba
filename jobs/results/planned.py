"""Of a results folder, which keeps the rows of all its runs, those that the latest run's plan owes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from jobs.planning.work import RowKey
from jobs.results.schema import Row

# A list of numbers per layer and head, a point per step: as Python objects they would fill the memory of a report.
_HEAVY_COLUMNS = {
    "slots",
    "trace",
    "seconds",
    "counters",
    "versions",
    "failure_traceback",
    "prediction",
    "answers",
    "all_classes",
    "prompt_tail",
    "item_metadata",
}


def planned_rows(
    table: pa.Table, planned: Sequence[RowKey] | None = None, heavy: Collection[str] = ()
) -> list[Row]:
    """The rows of `planned` that exist, with its labels and in its order; all if None. Of the heavy columns only `heavy`."""
    left_out = _HEAVY_COLUMNS.difference(heavy)
    rows: list[Row] = table.select([it for it in table.column_names if it not in left_out]).to_pylist()
    if planned is None:
        return rows
    # By identity: the same computation may have had another label when it was stored.
    by_identity = {row["identity"]: row for row in rows}
    return [
        {**by_identity[key.identity], "variant": key.label} for key in planned if key.identity in by_identity
    ]


def planned_table(table: pa.Table, planned: Sequence[RowKey] | None = None) -> pa.Table:
    """The same rows as `planned_rows`, with every column, as a table."""
    if planned is None:
        return table
    place = {identity: index for index, identity in enumerate(table["identity"].to_pylist())}
    found = [key for key in planned if key.identity in place]
    taken = table.take(pa.array([place[key.identity] for key in found], type=pa.int64()))
    column = table.schema.get_field_index("variant")
    labels = pa.array([key.label for key in found], type=pa.string())
    return taken.set_column(column, table.schema.field(column), labels)
