"""What a sweep's items are, one dataset a task, told by its rows and its settings.

The digest is of what is asked and of nothing else: another model, policy or order of rows leaves it as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from evaluators.registry import describe_tasks
from jobs.console.addresses import hidden_in
from jobs.results.grouping import grouped, task_of
from jobs.results.schema import Row
from jobs.tracking.tracker import TrackedDataset

_DIGEST_DIGITS = 16  # 64 bits; MLflow takes 36 characters
_LOCAL, _BENCHMARK = "local", "benchmark"


def tracked_datasets(
    rows: Sequence[Row], settings: Mapping[str, Any], read: Sequence[Mapping[str, Any]] = ()
) -> list[TrackedDataset]:
    """The datasets of rows with their `answers`, in the order of the tasks; `settings` are the sweep's.

    `read` tells what files each task's items were read from, as the run's metadata has it.
    """
    # The folder's file may have been edited.
    tasks = settings.get("tasks")
    asked = [it for it in tasks if isinstance(it, Mapping)] if isinstance(tasks, list | tuple) else []
    return [_dataset(task, of_task, asked, read) for task, of_task in grouped(rows, task_of).items()]


def _dataset(
    task: str, rows: Sequence[Row], asked: Sequence[Mapping[str, Any]], read: Sequence[Mapping[str, Any]]
) -> TrackedDataset:
    # Of an item that has several rows each says the same; the first is as good as any.
    items = {row["item_id"]: row for row in reversed(rows)}
    sources = [entry for entry in asked if _is_of(entry, items)]
    return TrackedDataset(
        name=task,
        digest=_digest(items.values()),
        source_type=_LOCAL if any(entry.get("data") for entry in sources) else _BENCHMARK,
        source=_source(sources, read),
        num_items=len(items),
        num_contexts=len({row["cluster_id"] for row in items.values()}),
    )


def _digest(rows: Iterable[Row]) -> str:
    told = sorted((row["item_id"], row["cluster_id"], row["metric"], row["answers"] or []) for row in rows)
    # Recorded data holds lone surrogates, which JSON escapes.
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:_DIGEST_DIGITS]


def _is_of(entry: Mapping[str, Any], item_ids: Iterable[str]) -> bool:
    """Whether the settings' entry asked for such items, whose ids begin with its name and hold the length, if any."""
    name, length = entry.get("name"), entry.get("length")
    return any(item.startswith(f"{name}/") and (length is None or f"/{length}/" in item) for item in item_ids)


def _source(entries: Sequence[Mapping[str, Any]], read: Sequence[Mapping[str, Any]]) -> str:
    """What was asked for, where the benchmark says that it comes from, and what it was read from."""
    asked = [{key: it for key, it in entry.items() if it is not None} for entry in entries]
    names = {entry.get("name") for entry in entries}
    # Nothing of a benchmark that is not registered here: a folder may be mirrored on another machine.
    places = [info.source for info in describe_tasks() if info.name in names]
    told = {"asked_for": asked, "comes_from": places}
    if of_these := [it for it in read if it.get("task") in names]:
        told["read"] = of_these
    return json.dumps(hidden_in(told), default=str)
