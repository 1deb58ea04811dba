"""LongBench v1 and LongBench-E (Bai et al. 2023, arXiv:2308.14508): the same items and ids from hub and local copy.

Both sources hand the authors' jsonl rows to one reader; the prompts are theirs (templates.json).
"""

from __future__ import annotations

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.longbench.items import load_rows, make_items
from evaluators.benchmarks.longbench.tasks import HUB_REPOSITORY, longbench_tasks
from evaluators.item import BenchmarkItem
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

_LICENCE = "MIT; texts are third parties'"
_SEPARATES = "real questions: mild losses at half of the bytes, retrieval before summaries"
_SHORT_WORDS, _LONG_WORDS = 4000, 8000  # LongBench-E's buckets end here; of the authors' `length`, in words


@register_benchmark("longbench")
class LongBench:
    """Real long documents with questions; middle truncation and metrics as in THUDM/LongBench@2e00731f."""

    def tasks(self) -> tuple[str, ...]:
        """The 21 tasks of the official v1 list."""
        return tuple(longbench_tasks())

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and that it needs the hub or a folder."""
        definition = longbench_tasks()[task]
        source = f"{HUB_REPOSITORY} on the hub, or `data`: a folder with <task>.jsonl or .jsonl.gz"
        return TaskInfo(
            name=f"longbench/{task}",
            about=definition.about,
            metric=definition.metric,
            source=source,
            num_items=f"{definition.num_items}",
            context=f"{definition.median_words:,} words",
            answer_tokens=definition.max_new_tokens,
            licence=_LICENCE,
            separates=_SEPARATES,
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the official file, from `spec.data` or the hub (`spec.revision`).

        Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
        """
        definition = longbench_tasks()[spec.task]
        rows = load_rows(spec, definition, spec.task)
        return make_items(spec, definition, rows, [spec.task] * len(rows))


@register_benchmark("longbench-e")
class LongBenchE:
    """The 13 tasks whose items are spread evenly over lengths, grouped as scorer_e of THUDM/LongBench@2e00731f."""

    def tasks(self) -> tuple[str, ...]:
        """The tasks of the official -E list."""
        return tuple(task for task, definition in longbench_tasks().items() if definition.has_e_version)

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and that it needs the hub or a folder."""
        definition = longbench_tasks()[task]
        source = f"{HUB_REPOSITORY} on the hub, or `data`: a folder with <task>_e.jsonl or .jsonl.gz"
        about = definition.about
        return TaskInfo(
            name=f"longbench-e/{task}",
            about=about,
            metric=definition.metric,
            source=source,
            num_items=f"{definition.num_e_items}",
            context="0-4k, 4-8k, 8k+ words",
            answer_tokens=definition.max_new_tokens,
            licence=_LICENCE,
            separates=f"{_SEPARATES}, by length",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the official file; their task is "<bucket>/<task>", as in "0-4k/qasper".

        Raises BenchmarkError as LongBench does, and for a row without the length that names its bucket.
        """
        definition = longbench_tasks()[spec.task]
        rows = load_rows(spec, definition, f"{spec.task}_e")
        names = [f"{_bucket(row.length, spec)}/{spec.task}" for row in rows]
        return make_items(spec, definition, rows, names)


def length_bucket(length_words: int) -> str:
    """The authors' name for a length: "0-4k" below 4,000 words, "4-8k" below 8,000, otherwise "8k+"."""
    if length_words < _SHORT_WORDS:
        return "0-4k"
    return "4-8k" if length_words < _LONG_WORDS else "8k+"


def _bucket(length_words: int | None, spec: TaskSpec) -> str:
    if length_words is None:
        raise BenchmarkError(
            f"{spec.name}: a row has no whole number in `length`, which says how long it is; take the official file."
        )
    return length_bucket(length_words)
