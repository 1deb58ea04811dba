"""A rows file without a digest may have been edited: what no reader could use is told with file, row, column and remedy."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.report import main
from jobs.results.rows_file import rows_in
from jobs.results.schema import RESULT_SCHEMA, ResultError, Row
from jobs.results.seal import sealed_parquet
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row

NO_OBJECT = ["nonsense", "", "5", "[1]", "null", "true", '"x"', "[" * 100_000, "9" * 5000]
NO_NUMBERS = [*NO_OBJECT, '{"a": "b"}', '{"a": null}', '{"a": NaN}', '{"a": 1e999}', f'{{"a": 1{"0" * 400}}}']
NO_TRACE = ["nonsense", "{}", "5", "[1]", "[[1, 2, 3]]", '[[0, "prefill", 1, null]]', "[[0, 1, 1, 1]]"]
NO_TRACE += ['[[0.5, "decode", 1, 1]]', f'[[{2**63}, "decode", 1, 1]]', '[[NaN, "decode", 1, 1]]']
WRONG: dict[str, list[Any]] = {
    "policy_params": NO_OBJECT,
    "budget_asked": ["nonsense", "5", "[1]", '{"kept_ratio": NaN}', '{"slots": null}', '{"like": [1]}'],
    "item_metadata": NO_OBJECT,
    "counters": NO_OBJECT,
    "versions": NO_OBJECT,
    "seconds": NO_NUMBERS,
    "score_parts": [*NO_NUMBERS, "{}", '{"rouge1": 1, "rouge2": 1, "rougeL": -1}'],
    "trace": NO_TRACE,
    "status": ["done", ""],
    "created_at_s": [float("nan"), float("inf"), -5.0, 1e308],
    "score": [1e308, float("nan")],
    "bits_k": [float("inf"), float("-inf"), float("nan")],
    "kept_ratio": [-1e308],
}
SOUND = {
    "metric": "rouge_geometric_mean",
    "score": 0.5,
    "score_parts": json.dumps({"rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5}),
    "policy_params": "{}",
    "budget_asked": json.dumps(
        {"bytes": {"like": {"policy": "snapkv", "params": {}, "budget": {"slots": 5}}}}
    ),
    "item_metadata": json.dumps({"depth_percent": 5, "of a user's own": [None, float("nan")]}),
    "counters": json.dumps({"merged": 3}),
    "seconds": json.dumps({"prefill_s": 0.5}),
    "trace": json.dumps([[0, "prefill", 100, 200], [1, "decode", 101, 200]]),
    "versions": json.dumps({"torch": "2.11"}),
}


def unprotected(rows: list[Row]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA), sink)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("column", sorted(WRONG))
def test_nonsense_in_an_unprotected_file_is_told_with_its_row_and_column(column: str, seed: int) -> None:
    draw = random.Random(seed)
    for wrong in WRONG[column]:
        rows = [make_row(f"row{index}", **SOUND) for index in range(4)]
        at = draw.randrange(len(rows))
        rows[at] |= {column: wrong}
        with pytest.raises(ResultError) as told:
            rows_in(Path("rows/u1.parquet"), unprotected(rows), is_protected=False)
        shown = str(told.value)
        for part in (
            "rows/u1.parquet",
            f"row {at} ('row{at}')",
            f"column '{column}'",
            "delete it and run the same",
        ):
            assert part in shown, shown
        assert len(shown) < 500


def test_sound_values_and_nulls_are_read_with_and_without_a_digest() -> None:
    rows = [
        make_row("a", **SOUND),
        make_row("b", answer_nll=1e10),
        make_row("c", metric="gone", score_parts='{"x": 1}'),
    ]
    table = pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)
    for content, is_protected in ((unprotected(rows), False), (sealed_parquet(table), True)):
        found = rows_in(Path("u1.parquet"), content, is_protected=is_protected)
        assert [row["identity"] for row in found.to_pylist()] == ["a", "b", "c"]


def test_a_report_of_an_edited_file_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ResultStore(tmp_path)
    path = store.write_unit("u1", [make_row("a")])
    path.write_bytes(unprotected([make_row("a", seconds="nonsense")]))
    assert main([str(tmp_path)]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "column 'seconds': 'nonsense' is no JSON" in told and "Traceback" not in told
    path.write_bytes(unprotected([make_row("a")]))
    assert main([str(tmp_path)]) == 0
