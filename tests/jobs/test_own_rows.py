"""A user's own rows through the command line: none is believed that can never be right, and none is lost for its text."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.results.store import ResultStore
from jobs.sweep import main
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model

ROW = {
    "context": "The mill burned in March. " * 4,
    "question": "When?",
    "answers": ["March"],
    "max_new_tokens": 8,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def command_of(folder: Path, model: Path, *rows: dict[str, Any]) -> list[str]:
    """A sweep over the rows, in `folder`."""
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(ROW | row) + "\n" for row in rows))
    config = save_settings(folder, model, save_data(folder / "data", 1))
    return [str(config), "--set", f"tasks=[{{name: file/rows, data: {path}}}]"]


@pytest.mark.parametrize("is_dry", [True, False])
@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"answers": ["March", ""]}, "answers, entry 2 is empty"),
        ({"answers": ["A"]}, "set metric to multiple_choice"),
    ],
)
def test_an_answer_that_can_never_be_right_ends_with_its_line_and_a_remedy(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    row: dict[str, Any],
    complaint: str,
    is_dry: bool,
) -> None:
    assert main([*command_of(tmp_path, model, {}, row | {"id": "x"}), *["--dry-run"] * is_dry]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "mine.jsonl, line 2: " in error and complaint in error
    assert not (tmp_path / "results" / "rows").exists()


def test_a_long_gold_answer_costs_its_nll_and_a_spelled_control_token_costs_nothing(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (
        {"id": "long", "answers": ["March and April " * 300]},
        {"id": "marked", "context": "<eos> stands " + ROW["context"]},
    )
    command = command_of(tmp_path, model, *rows)
    for flags in (["--dry-run"], []):
        assert main([*command, *flags]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert "1 of 2 items have no answer NLL: the first gold answer has" in out
        assert "1 of 2 items spell out control tokens" in out
    full = [
        row for row in ResultStore(tmp_path / "results").read_table().to_pylist() if row["variant"] == "full"
    ]
    long, marked = sorted(full, key=lambda row: row["item_id"])
    assert [row["status"] for row in full] == ["ok", "ok"]
    assert long["score"] is not None and long["kl_mean"] is not None
    assert long["answer_nll"] is None and "the prompt leaves it" in long["answer_nll_reason"]
    assert marked["answer_nll"] is not None
