"""Result rows of several tasks and variants whose differences to the full cache are set by the test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jobs.results.schema import Row
from tests.fakes.rows import make_row

LOSSES = {"full": 0.0, "full_aa": 0.0, "no_context": 3.0, "snapkv@0.5": 0.3, "kvmerger@0.5": 0.0}


def paired_rows(
    seed: int,
    num_items: int = 60,
    tasks: tuple[str, ...] = ("a",),
    losses: Mapping[str, float] = LOSSES,
    **values: Any,
) -> list[Row]:
    """Rows of every variant on every item; NLL is the item's plus the variant's loss and a little noise, the score falls."""
    rows = []
    for task in tasks:
        items = np.random.default_rng([seed, len(task), ord(task[0])])
        level, score = items.lognormal(size=num_items), items.uniform(0.4, 0.6, size=num_items)
        for label, loss in losses.items():
            noise = 0 if label in ("full", "full_aa") else items.normal(scale=0.1, size=num_items)
            nll, scores = level + loss + noise, score - (loss + noise) / 10
            rows += [
                _row(task, index, label)
                | {"answer_nll": float(nll[index]), "score": float(scores[index])}
                | values
                for index in range(num_items)
            ]
    return rows


def _row(task: str, index: int, label: str) -> Row:
    return make_row(
        f"{task}/{index}/{label}",
        item_id=f"{task}/{index}",
        cluster_id=f"{task}-{index}",
        task=task,
        variant=label,
        policy=label.partition("@")[0],
        kv_bytes=2**20 if "@" in label else 2**21,
        kept_ratio=0.5,
        metric="qa_f1",
        scorer="qa_f1",
        prompt_digest="digest",
        attention="torch",
        layers="fused",
        answers=["gold"],
        context_tokens=100,
        tail_tokens=10,
        dtype="float32",
        versions=json.dumps({"torch": "2.13"}),
    )
