"""How long scoring a full LongBench prediction set takes: seconds per task, and together.

    python -m bench.service.scoring FOLDER [RUN]

The folder holds `answers.jsonl.gz` (all 4,750 official rows) and `*pred_<RUN>.jsonl.gz`. One process scores; the target is
two minutes. Scores are printed too, since a fast wrong one is worth nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from evaluators.benchmarks.longbench.tasks import longbench_tasks
from evaluators.scoring import list_metrics, score, scorer_label
from evaluators.statistics.intervals import published_score

TARGET_S = 120.0


def main() -> None:
    """Score one run and print the times."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", nargs="?", default="llama3-8b-instruct")
    options = parser.parse_args()
    official = {(row["task"], row["i"]): row for row in _rows(options.folder / "answers.jsonl.gz")}
    predictions = defaultdict(list)
    for row in _rows(next(options.folder.glob(f"*pred_{options.run}.jsonl.gz"))):
        predictions[row["task"]].append(row)
    list_metrics()  # so that no task pays for the imports
    total_s, num_items = 0.0, 0
    print(f"{'task':24}{'items':>6}{'seconds':>9}{'score':>8}  scorer")
    for task, rows in predictions.items():
        metric = longbench_tasks()[task].metric
        start_s = time.perf_counter()
        scores = [_score(metric, row, official) for row in rows]
        taken_s = time.perf_counter() - start_s
        total_s, num_items = total_s + taken_s, num_items + len(rows)
        print(f"{task:24}{len(rows):6}{taken_s:9.2f}{published_score(scores):8.2f}  {scorer_label(metric)}")
    verdict = "within" if total_s <= TARGET_S else "OVER"
    print(f"{'all':24}{num_items:6}{total_s:9.2f}          {verdict} the target of {TARGET_S:.0f} s")


def _score(metric: str, row: dict[str, Any], official: dict[Any, dict[str, Any]]) -> float:
    # A run whose rows are in another order than the official ones brings its own answers.
    gold = row if "answers" in row else official[row["task"], row["i"]]
    return score(metric, row["pred"], gold["answers"], gold["all_classes"] or ())


def _rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main()
