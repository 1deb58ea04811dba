"""The 21 tasks of LongBench v1 as their authors define them, and where their rows lie.

The wording is data (templates.json); the rows come from what the user names or from the hub's pinned archive.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

from evaluators.benchmarks.sources.rows import HubRows

HUB_REPOSITORY = "zai-org/LongBench"  # THUDM/LongBench redirects here
HUB_REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
_HUB_ARCHIVE = "data.zip"


@dataclass(frozen=True, slots=True)
class LongBenchTask:
    """A task's definition; its prompt is `before`, the row's context, `after`.

    `metric` says how a prediction is cut before scoring as well (`…_first_line`), so a stored prediction is scored
    again by it alone. `has_e_version`: LongBench-E has the task with items spread evenly over lengths, `num_e_items`.
    `median_words`: of the contexts, as the authors count.
    """

    about: str
    before: str
    after: str
    max_new_tokens: int
    metric: str
    use_chat_template: bool
    num_items: int
    median_words: int
    stop_at_newline: bool = False
    has_e_version: bool = False
    num_e_items: int = 0


@functools.cache
def longbench_tasks() -> dict[str, LongBenchTask]:
    """Every task by its official name."""
    file = importlib.resources.files(__package__) / "templates.json"
    tasks: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return {task: _definition(**fields) for task, fields in tasks.items()}


def _definition(*, prompt: str, **fields: Any) -> LongBenchTask:
    before, after = prompt.split(
        "{context}"
    )  # fails for a template that names the context twice or not at all
    return LongBenchTask(before=before, after=after, **fields)


def published_rows(stem: str) -> HubRows:
    """Where the authors' rows of a task, or of its -E version (`stem` "qasper_e"), lie."""
    names = (f"{stem}.jsonl", f"{stem}.jsonl.gz")
    return HubRows(
        HUB_REPOSITORY, HUB_REVISION, _HUB_ARCHIVE, zip_member=f"data/{stem}.jsonl", local_names=names
    )
