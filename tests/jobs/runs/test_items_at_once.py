"""Sweeps whose items decode several at once: the same rows, whole files, and nothing twice, on a tiny real model."""

import json
from pathlib import Path

import pytest

from jobs.reporting.facts import num_prefills
from jobs.results.schema import Row
from jobs.results.store import ResultStore
from jobs.sweep import main
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model

NUM_ITEMS, NUM_VARIANTS = 5, 4
WHAT_MAY_DIFFER = {"unit_id", "counters", "seconds", "created_at_s"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    model = save_tiny_model(tmp_path / "model")
    return save_settings(tmp_path, model, save_data(tmp_path / "data", NUM_ITEMS))


def rows_of(folder: Path) -> dict[str, Row]:
    rows = ResultStore(folder).read_table().to_pylist()
    assert len(rows) == NUM_ITEMS * NUM_VARIANTS
    return {row["identity"]: row for row in rows}


def sweep(config: Path, folder: Path, *, at_once: int) -> dict[str, Row]:
    assert main([str(config), "--set", f"items_at_once={at_once}", "--output_dir", str(folder)]) == 0
    return rows_of(folder)


def prompts_together(row: Row) -> float:
    return json.loads(row["counters"]).get("num_prompts_together", 1.0)


def test_items_at_once_change_neither_keys_nor_numbers_nor_counts(config: Path, tmp_path: Path) -> None:
    alone = sweep(config, tmp_path / "alone", at_once=1)
    together = sweep(config, tmp_path / "together", at_once=2)
    assert together.keys() == alone.keys()
    assert sorted(map(prompts_together, together.values())) == [1.0] * NUM_VARIANTS + [2.0] * 4 * NUM_VARIANTS
    for identity, row in together.items():
        assert row["answer_nll"] == alone[identity]["answer_nll"], "forced in the shapes of the prompt alone"
        if row["prediction"] == alone[identity]["prediction"]:
            differ = {column for column in row if row[column] != alone[identity][column]}
            assert differ <= WHAT_MAY_DIFFER | {"kl_mean", "top1_agreement"}
    assert num_prefills(list(together.values())) == num_prefills(list(alone.values())) == NUM_ITEMS


def test_a_lost_unit_is_computed_again_with_the_same_items(config: Path, tmp_path: Path) -> None:
    before = sweep(config, tmp_path, at_once=2)
    lost = max((tmp_path / "rows").glob("*.parquet"), key=lambda path: path.stat().st_size)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("*.parquet") if path != lost}
    lost.unlink()
    after = sweep(config, tmp_path, at_once=2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and lost.exists()
    for identity, row in after.items():
        assert {column for column in row if row[column] != before[identity][column]} <= {
            "seconds",
            "created_at_s",
        }
