"""Shares come from measured bytes alone, positions apart, and older rows have theirs from what they tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.results.schema import RESULT_SCHEMA
from jobs.results.store import ResultStore
from jobs.results.stored_bytes import held_bytes, held_share, read_share, reads_otherwise, storage_columns
from kvmerger.generation import Generation, Prompt, Question
from tests.fakes.engine import FakeEngine
from tests.fakes.rows import make_row

NEW_COLUMNS = (
    "form",
    "tail_form",
    "bits_k",
    "bits_v",
    "position_bytes",
    "full_position_bytes",
    "read_bytes",
    "full_read_bytes",
)


def generation(**changes: object) -> Generation:
    prompt = Prompt((5, 6, 7, 8), (Question((1,), (2,), 4),))
    (first, *_) = (it for it in FakeEngine().run(prompt, [], execution="fused") if isinstance(it, Generation))
    return replace(first, **changes)  # type: ignore[arg-type]


PACKED = {
    "form": "int4",
    "bits_k": 4.0,
    "bits_v": 4.0,
    "kv_bytes": 40 + 8,
    "full_kv_bytes": 128 + 8,
    "position_bytes": 8,
    "full_position_bytes": 8,
    "read_bytes": 20,
    "full_read_bytes": 128,
}


def test_a_generations_bytes_are_its_rows_with_a_plain_tail() -> None:
    columns = storage_columns(generation(**PACKED, tail_bytes=3))
    assert columns == {**PACKED, "tail_bytes": 3, "tail_form": "plain"}
    assert columns.keys() <= set(RESULT_SCHEMA.names)


def test_reads_that_nobody_counted_are_null_and_not_zero() -> None:
    columns = storage_columns(generation(read_bytes=0, full_read_bytes=0))
    assert (columns["read_bytes"], columns["full_read_bytes"]) == (None, None)
    nothing = storage_columns(generation(kv_bytes=0, read_bytes=0, full_read_bytes=128))
    assert (nothing["read_bytes"], nothing["full_read_bytes"]) == (0, 128)


def test_positions_are_on_neither_side_of_the_share() -> None:
    row = make_row("a", **PACKED)
    assert (held_bytes(row), held_share(row), read_share(row)) == (40, 40 / 128, 20 / 128)
    assert reads_otherwise(row) and not reads_otherwise(row | {"read_bytes": 40})


def test_a_form_that_is_not_smaller_is_not_called_smaller() -> None:
    row = make_row("a", **PACKED | {"kv_bytes": 160 + 8, "form": "mine", "bits_k": 1.0})
    assert held_share(row) == 160 / 128


def test_a_row_of_before_forms_has_the_share_of_all_its_bytes() -> None:
    row = make_row("a", kv_bytes=68, full_kv_bytes=136)
    assert (held_bytes(row), held_share(row), read_share(row)) == (68, 0.5, None)
    assert not reads_otherwise(row)


@pytest.mark.parametrize("missing", [{"kv_bytes": None}, {"full_kv_bytes": None}, {"full_kv_bytes": 0}])
def test_what_a_row_lacks_has_no_share(missing: dict[str, int | None]) -> None:
    assert held_share(make_row("a", **{"kv_bytes": 68, "full_kv_bytes": 136} | missing)) is None


def test_files_of_before_forms_are_read_beside_new_ones(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    old = store.write_unit("u1", [make_row("a", kv_bytes=68, full_kv_bytes=136)])
    pq.write_table(pq.read_table(old, partitioning=None).drop_columns(list(NEW_COLUMNS)), old)
    store.write_unit("u2", [make_row("b", "u2", **PACKED)])
    rows = {row["identity"]: row for row in store.read_table().to_pylist()}
    assert (held_share(rows["a"]), held_share(rows["b"])) == (0.5, 40 / 128)
    assert {rows["a"][name] for name in NEW_COLUMNS} == {None}
    store.check_integrity()
