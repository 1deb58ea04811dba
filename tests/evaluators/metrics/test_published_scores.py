"""The metrics reproduce, to two decimals, scores that others published from recorded predictions."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from evaluators.benchmarks.longbench.longbench import length_bucket
from evaluators.registry import describe_tasks
from evaluators.scoring import score
from evaluators.statistics.intervals import published_score
from tests.evaluators.conftest import SHARED_DATA

PREDICTIONS = SHARED_DATA / "preds"
RUNS = ["llama2-7b", "llama2-7b-chat-4k", "llama3-8b-instruct", "qwen3-8b"]
RULER_PUBLISHED = {
    "0.25": {
        "cwe": 96.76,
        "fwe": 96.8,
        "niah_multikey_1": 98.8,
        "niah_multikey_2": 100.0,
        "niah_multikey_3": 93.4,
        "niah_multiquery": 99.15,
        "niah_multivalue": 98.7,
        "niah_single_1": 100.0,
        "niah_single_2": 100.0,
        "niah_single_3": 98.0,
        "qa_1": 86.2,
        "qa_2": 61.8,
        "vt": 99.76,
    },
    "0.75": {
        "cwe": 55.16,
        "fwe": 88.73,
        "niah_multikey_1": 52.6,
        "niah_multikey_2": 53.2,
        "niah_multikey_3": 0.0,
        "niah_multiquery": 62.05,
        "niah_multivalue": 50.8,
        "niah_single_1": 98.6,
        "niah_single_2": 97.8,
        "niah_single_3": 2.6,
        "qa_1": 56.4,
        "qa_2": 39.2,
        "vt": 97.4,
    },
}

pytestmark = pytest.mark.skipif(
    not PREDICTIONS.is_dir(), reason=f"recorded predictions are not at {PREDICTIONS}"
)


def metrics_of(benchmark: str) -> dict[str, str]:
    """The metric the product scores each task of a benchmark with."""
    infos = [info for info in describe_tasks() if info.name.startswith(benchmark + "/")]
    return {info.name.partition("/")[2]: info.metric for info in infos}


@cache
def rows_by_task(path: Path) -> dict[str, list[dict[str, Any]]]:
    rows = defaultdict(list)
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            rows[row["task"]].append(row)
    return dict(rows)


def published_of(folder: str, path: str) -> dict[str, Any]:
    index = json.loads((PREDICTIONS / folder / "index.json").read_text())
    return next(dict(entry["published"]) for entry in index if entry["path"] == path)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("task", metrics_of("longbench"))
def test_longbench_score_is_the_published_one(run: str, task: str) -> None:
    folder = PREDICTIONS / "longbench_v1"
    official = {row["i"]: row for row in rows_by_task(folder / "answers.jsonl.gz")[task]}
    metric, scores = metrics_of("longbench")[task], []
    for row in rows_by_task(folder / f"viridisGreen__pred_{run}.jsonl.gz")[task]:
        # A run that is not aligned with the official rows brings its own answers.
        gold = row if "answers" in row else official[row["i"]]
        scores.append(score(metric, row["pred"], gold["answers"], gold["all_classes"] or ()))
    assert published_score(scores) == published_of("longbench_v1", f"pred/{run}")[task]


LONGBENCH_E = published_of("longbench_e", "pred_e/llama3-8b-inst") if PREDICTIONS.is_dir() else {}


@pytest.mark.parametrize("task", sorted(LONGBENCH_E))
def test_longbench_e_scores_are_the_published_ones(task: str) -> None:
    rows = rows_by_task(PREDICTIONS / "longbench_e" / "kotmul__pred_e_llama3-8b-inst.jsonl.gz")[task]
    metric, scores = metrics_of("longbench-e")[task], defaultdict(list)
    for row in rows:
        one = score(metric, row["pred"], row["answers"], row["all_classes"] or ())
        scores[length_bucket(row["length"])].append(one)
    assert {bucket: published_score(values) for bucket, values in scores.items()} == LONGBENCH_E[task]


@pytest.mark.parametrize("compression", RULER_PUBLISHED)
@pytest.mark.parametrize("task", sorted(metrics_of("ruler")))
def test_ruler_score_is_the_published_one(compression: str, task: str) -> None:
    file = PREDICTIONS / "ruler_4096" / f"llama3.1-8b-instruct__centrality_ppr_knorm__{compression}.jsonl.gz"
    rows = rows_by_task(file)[task]
    scores = [score(metrics_of("ruler")[task], row["pred"], row["outputs"]) for row in rows]
    assert len(scores) == 500
    assert published_score(scores) == RULER_PUBLISHED[compression][task]
