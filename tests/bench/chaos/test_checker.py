"""The checker turns red for every mutation: a row dropped, doubled or added, one bit of any value changed, a point twice."""

import copy
import random
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest

from bench.chaos.checker import compared, rows_in, tracked_differences, tracked_in
from jobs.results.schema import FAILED, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row


@pytest.fixture
def rows() -> dict[str, list[Row]]:
    return {
        unit: [
            make_row(f"{unit}{number}", unit, score=0.1 * number, answer_nll=0.7, kv_bytes=3)
            for number in range(3)
        ]
        for unit in ("u1", "u2")
    }


def stored(folder: Path, rows: dict[str, list[Row]]) -> Path:
    store = ResultStore(folder)
    for unit, its_rows in rows.items():
        store.write_unit(unit, its_rows)
    return store.rows_folder


def test_the_same_rows_are_sound_whenever_and_in_whatever_unit_they_were_made(
    tmp_path: Path, rows: dict[str, list[Row]]
) -> None:
    expected, num_doubled = rows_in(stored(tmp_path / "a", rows))
    other = {"u3": [row | {"unit_id": "u3", "created_at_s": 7.0} for unit in rows.values() for row in unit]}
    failed = make_row("u10", "u4", status=FAILED, failure_phase="load", failure_type="OSError", score=None)
    verdict = compared(stored(tmp_path / "b", other | {"u4": [failed]}), expected)
    assert num_doubled == 0 and verdict.is_sound and verdict.num_rows == 6


def test_a_row_that_is_dropped_or_doubled_is_counted(
    tmp_path: Path, rows: dict[str, list[Row]], seed: int
) -> None:
    expected, _ = rows_in(stored(tmp_path / "a", rows))
    draw, fewer, more = random.Random(seed), copy.deepcopy(rows), copy.deepcopy(rows)
    fewer[draw.choice(["u1", "u2"])].pop(draw.randrange(3))
    dropped = compared(stored(tmp_path / "b", fewer), expected)
    assert (dropped.lost, dropped.doubled, dropped.changed) == (1, 0, 0) and not dropped.is_sound
    more["u3"] = [draw.choice(rows["u1"]) | {"unit_id": "u3"}]
    doubled = compared(stored(tmp_path / "c", more), expected)
    assert (doubled.lost, doubled.doubled, doubled.changed) == (0, 1, 0) and not doubled.is_sound


def test_a_row_that_nobody_owes_is_counted_unless_it_is_one_of_an_earlier_version(
    tmp_path: Path, rows: dict[str, list[Row]]
) -> None:
    expected, _ = rows_in(stored(tmp_path / "a", rows))
    added = stored(tmp_path / "b", rows | {"u3": [make_row("earlier", "u3", score=0.5)]})
    earlier, _ = rows_in(added)
    assert compared(added, expected).changed == 1
    assert compared(added, expected, earlier).is_sound
    changed = stored(tmp_path / "c", rows | {"u3": [make_row("earlier", "u3", score=0.25)]})
    assert compared(changed, expected, earlier).changed == 1


@pytest.mark.parametrize("column", ["score", "answer_nll", "kv_bytes", "prediction", "item_id"])
def test_one_bit_of_a_value_is_seen(
    tmp_path: Path, rows: dict[str, list[Row]], column: str, seed: int
) -> None:
    expected, _ = rows_in(stored(tmp_path / "a", rows))
    draw = random.Random(seed)
    row = rows[draw.choice(["u1", "u2"])][draw.randrange(3)]
    match row[column]:
        case float(value):
            (bits,) = struct.unpack("<q", struct.pack("<d", value))
            (row[column],) = struct.unpack("<d", struct.pack("<q", bits ^ 1))
        case int(value):
            row[column] = value ^ 1
        case text:
            row[column] = f"{text or ''}."
    verdict = compared(stored(tmp_path / "b", rows), expected)
    assert verdict.changed == 1 and not verdict.is_sound


def make_database(path: Path, mutate: str = "select 1") -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """
            create table runs (run_uuid text, status text, lifecycle_stage text);
            create table tags (key text, value text, run_uuid text);
            create table metrics (run_uuid text, key text, value real, step int);
            create table latest_metrics (run_uuid text, key text, value real);
            insert into runs values ('r1', 'FINISHED', 'active'), ('r2', 'FINISHED', 'active');
            insert into tags values ('kvmerger.role', 'sweep', 'r1'), ('kvmerger.variant', 'full', 'r2');
            insert into metrics values ('r2', 'score', 0.5, 1), ('r2', 'score', 0.25, 2);
            insert into latest_metrics values ('r2', 'score', 0.25), ('r2', 'time/prefill', 3);
            """
        )
        connection.executescript(mutate)
        connection.commit()
    return path


@pytest.mark.parametrize(
    ("mutation", "told"),
    [
        ("insert into metrics values ('r2', 'score', 0.25, 2)", "1 points doubled"),
        ("update latest_metrics set value = 0.26 where key = 'score'", "full: other values of score"),
        ("delete from latest_metrics where key = 'score'", "full: keys score"),
        ("insert into latest_metrics values ('r2', 'trace/2', 1)", "full: keys trace/2"),
        ("update runs set status = 'RUNNING' where run_uuid = 'r1'", "(sweep) is RUNNING"),
        (
            "insert into runs values ('r3', 'FINISHED', 'active'); insert into tags values ('kvmerger.role', 'sweep', 'r3')",
            "2 runs of (sweep)",
        ),
    ],
)
def test_what_mlflow_shows_otherwise_is_named(tmp_path: Path, mutation: str, told: str) -> None:
    expected = tracked_in(make_database(tmp_path / "a.db"))
    assert tracked_differences(tracked_in(make_database(tmp_path / "b.db")), expected) == ()
    found = tracked_differences(tracked_in(make_database(tmp_path / "c.db", mutation)), expected)
    assert told in found, found
    times = "update latest_metrics set value = 9 where key = 'time/prefill'"
    assert tracked_differences(tracked_in(make_database(tmp_path / "d.db", times)), expected) == ()
