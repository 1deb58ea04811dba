"""LongBench v1 (Bai et al. 2023, arXiv:2308.14508): the same items and ids from the hub as from a local copy.

Both sources hand the authors' jsonl rows to one reader; the prompts are theirs (longbench_templates.json).
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.longbench_rows import LongBenchRow, read_rows
from evaluators.benchmarks.longbench_source import open_task_file
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class _TaskDefinition:
    """A task as the authors define it; the prompt is `before`, the row's context, `after`."""

    before: str
    after: str
    max_new_tokens: int
    metric: str
    use_chat_template: bool


@register_benchmark("longbench")
class LongBench:
    """Real long documents with questions; middle truncation and metrics as in THUDM/LongBench@2e00731f."""

    def tasks(self) -> tuple[str, ...]:
        """The tasks of the official v1 list that are supported."""
        return tuple(_definitions())

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the official file, from `spec.data` or the hub (`spec.revision`).

        Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
        """
        spec.refuse_options(("length", "haystack"), "LongBench's texts are given, not generated; remove it.")
        definition = _definitions()[spec.task]
        with open_task_file(spec) as (lines, source):
            rows = read_rows(lines, source, spec.limit)
        if definition.metric == "classification" and not all(row.all_classes for row in rows):
            raise BenchmarkError(f"{source}: a row has no all_classes, which scoring {spec.task} needs.")
        return [
            _item(spec, definition, row, row_id) for row, row_id in zip(rows, _row_ids(rows), strict=True)
        ]


def _item(spec: TaskSpec, definition: _TaskDefinition, row: LongBenchRow, row_id: str) -> BenchmarkItem:
    return BenchmarkItem(
        item_id=f"longbench/{spec.task}/{row_id}",
        benchmark="longbench",
        task=spec.task,
        cluster_id=text_digest(row.context),
        before_context=definition.before.format(input=row.input),
        context=row.context,
        after_context=definition.after.format(input=row.input),
        answer_prefix="",
        answers=row.answers,
        max_new_tokens=spec.max_new_tokens or definition.max_new_tokens,
        use_chat_template=definition.use_chat_template,
        metric=definition.metric,
        all_classes=row.all_classes,
        metadata={} if row.length is None else {"official_length_words": row.length},
    )


def _row_ids(rows: list[LongBenchRow]) -> list[str]:
    """The authors' ids, or a digest where a copy has lost them; a repeat gets its number."""
    num_seen: dict[str, int] = {}
    ids = []
    for row in rows:
        row_id = row.official_id or text_digest(json.dumps([row.input, row.context, row.answers]))
        num_seen[row_id] = num_seen.get(row_id, 0) + 1
        ids.append(row_id if num_seen[row_id] == 1 else f"{row_id}-{num_seen[row_id]}")
    return ids


@functools.cache
def _definitions() -> dict[str, _TaskDefinition]:
    file = importlib.resources.files("evaluators.benchmarks") / "longbench_templates.json"
    tasks: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    return {task: _definition(**fields) for task, fields in tasks.items()}


def _definition(*, prompt: str, **fields: Any) -> _TaskDefinition:
    before, after = prompt.split("{context}")
    return _TaskDefinition(before=before, after=after, **fields)
