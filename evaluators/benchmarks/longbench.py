"""LongBench v1 (Bai et al. 2023, arXiv:2308.14508): the same items and ids from the hub as from a local copy.

Both sources hand the authors' jsonl rows to one reader; the prompts are theirs (longbench_templates.json).
"""

from __future__ import annotations

from evaluators.benchmark import TaskInfo, TaskSpec
from evaluators.benchmarks.longbench_items import load_rows, make_items
from evaluators.benchmarks.longbench_source import HUB_REPOSITORY
from evaluators.benchmarks.longbench_tasks import longbench_tasks
from evaluators.item import BenchmarkItem
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer


@register_benchmark("longbench")
class LongBench:
    """Real long documents with questions; middle truncation and metrics as in THUDM/LongBench@2e00731f."""

    def tasks(self) -> tuple[str, ...]:
        """The 21 tasks of the official v1 list."""
        return tuple(longbench_tasks())

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and that it needs the hub or a folder."""
        definition = longbench_tasks()[task]
        source = f"{HUB_REPOSITORY} on the hub, or `data`: a folder with {task}.jsonl or .jsonl.gz"
        return TaskInfo(f"longbench/{task}", definition.about, definition.metric, source)

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the official file, from `spec.data` or the hub (`spec.revision`).

        Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
        """
        definition = longbench_tasks()[spec.task]
        rows = load_rows(spec, definition, spec.task)
        return make_items(spec, definition, rows, [spec.task] * len(rows))
