"""The metrics reproduce, to two decimals, scores that others published from recorded predictions."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evaluators.registry import score
from evaluators.statistics import published_score

from ..conftest import SHARED_DATA

PREDICTIONS = SHARED_DATA / "preds"
METRICS = {"qasper": "qa_f1", "hotpotqa": "qa_f1", "trec": "classification"}
RUNS = ["llama2-7b", "llama2-7b-chat-4k", "llama3-8b-instruct", "qwen3-8b"]
RULER_PUBLISHED = {"0.25": 100.0, "0.75": 97.8}

pytestmark = pytest.mark.skipif(
    not PREDICTIONS.is_dir(), reason=f"recorded predictions are not at {PREDICTIONS}"
)


@cache
def rows_of(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize("task", METRICS)
@pytest.mark.parametrize("run", RUNS)
def test_longbench_score_is_the_published_one(run: str, task: str) -> None:
    folder = PREDICTIONS / "longbench_v1"
    index = json.loads((folder / "index.json").read_text())
    published = next(entry["published"][task] for entry in index if entry["path"] == f"pred/{run}")
    official = {(row["task"], row["i"]): row for row in rows_of(folder / "answers.jsonl.gz")}
    predictions = [
        row for row in rows_of(folder / f"viridisGreen__pred_{run}.jsonl.gz") if row["task"] == task
    ]
    scores = []
    for row in predictions:
        gold = official[task, row["i"]]
        scores.append(score(METRICS[task], row["pred"], gold["answers"], gold["all_classes"] or ()))
    assert len(scores) == 200
    assert published_score(scores) == published


@pytest.mark.parametrize("compression", RULER_PUBLISHED)
def test_ruler_score_is_the_published_one(compression: str) -> None:
    file = PREDICTIONS / "ruler_4096" / f"llama3.1-8b-instruct__centrality_ppr_knorm__{compression}.jsonl.gz"
    rows = [row for row in rows_of(file) if row["task"] == "niah_single_2"]
    scores = [score("string_match_all", row["pred"], row["outputs"]) for row in rows]
    assert len(scores) == 500
    assert published_score(scores) == RULER_PUBLISHED[compression]
