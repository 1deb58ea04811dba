"""The 21 tasks of LongBench v1 as their authors define them; the wording is data (longbench_templates.json)."""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LongBenchTask:
    """A task's definition; its prompt is `before`, the row's context, `after`.

    `metric` says how a prediction is cut before scoring as well (`…_first_line`), so a stored prediction is scored
    again by it alone. `has_e_version`: LongBench-E has the task with items spread evenly over lengths.
    """

    about: str
    before: str
    after: str
    max_new_tokens: int
    metric: str
    use_chat_template: bool
    stop_at_newline: bool = False
    has_e_version: bool = False


@functools.cache
def longbench_tasks() -> dict[str, LongBenchTask]:
    """Every task by its official name."""
    file = importlib.resources.files("evaluators.benchmarks") / "longbench_templates.json"
    tasks: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return {task: _definition(**fields) for task, fields in tasks.items()}


def _definition(*, prompt: str, **fields: Any) -> LongBenchTask:
    before, after = prompt.split("{context}")
    return LongBenchTask(before=before, after=after, **fields)
