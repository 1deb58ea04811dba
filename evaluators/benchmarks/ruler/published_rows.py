"""RULER from kvpress's rows, of which its leaderboard was made: they fit Llama-3.1's tokenizer, and both qa tasks are there.

Drawn items (`ruler/*`) fit the model's own tokenizer, and qa_1 and qa_2 of those need their files.
"""

from __future__ import annotations

from dataclasses import replace

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.sources.addresses import check_commit
from evaluators.benchmarks.sources.json_rows import JsonRow, check_size, text_field, texts_field
from evaluators.benchmarks.sources.rows import HubRows, read_rows
from evaluators.hints import nearest_name_hint
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

REPOSITORY = "simonjegou/ruler"
REVISION = "24adceac8a0e6532936e8d721cd9e9084d2e4686"
LENGTHS = ("4096", "8192", "16384")
_QUESTIONS = ("qa_1", "qa_2")
TASKS = (
    *(f"niah_single_{number}" for number in (1, 2, 3)),
    *(f"niah_multikey_{number}" for number in (1, 2, 3)),
    *("niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe"),
    *_QUESTIONS,
)


@register_benchmark("ruler_rows")
class RulerRows:
    """The 13 tasks of RULER, 500 rows each at 4,096, 8,192 and 16,384 tokens, as kvpress asks them."""

    def tasks(self) -> tuple[str, ...]:
        """The official 13."""
        return TASKS

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and where its rows lie."""
        source = (
            f"{REPOSITORY}@{REVISION[:8]} on the hub, or `data`: a folder with 4096.parquet or 4096.jsonl; "
            f"`split`: a length, {', '.join(LENGTHS)} ({LENGTHS[0]})"
        )
        return TaskInfo(
            name=f"ruler_rows/{task}",
            about=f"RULER's {task} as kvpress has it",
            metric=_metric(task),
            source=source,
            num_items="500 a length",
            context="4k, 8k, 16k tokens",
            answer_tokens=128,
            licence="Apache-2.0; qa: CC BY-SA 4.0",
            separates="as ruler, beside kvpress's leaderboard",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` rows of the task at the length `spec.split`; their task is "<length>/<task>".

        Raises BenchmarkError for a length there is not, a source that cannot be read and an unusable row.
        """
        spec.refuse_options(
            ("length", "haystack"), "the lengths are given: name one in `split`, as split: 8192."
        )
        length = spec.split or LENGTHS[0]
        if length not in LENGTHS:
            raise BenchmarkError(
                f"{spec.name}: there is no length {length!r}. {nearest_name_hint(length, LENGTHS)}"
            )
        names = tuple(f"{length}{suffix}" for suffix in (".parquet", ".jsonl", ".jsonl.gz"))
        if spec.data is None:
            revision = spec.revision or REVISION
            check_commit(revision, spec.name)
            spec = replace(spec, data=f"hf://datasets/{REPOSITORY}@{revision}/{length}", revision=None)
        items: list[BenchmarkItem] = []
        published = HubRows(REPOSITORY, REVISION, "", config=length, local_names=names)
        for where, row in read_rows(spec, published, "context, question, answer and task"):
            if spec.limit is not None and len(items) == spec.limit:
                break
            if row.get("task") == spec.task:
                items.append(_item(spec, row, where, length, len(items)))
        if not items:
            raise BenchmarkError(f"{spec.name}: {spec.data} has no rows of {spec.task}.")
        return items


def _item(spec: TaskSpec, row: JsonRow, where: str, length: str, index: int) -> BenchmarkItem:
    context = text_field(row, "context", where, is_required=True)
    question = text_field(row, "question", where, is_required=True)
    check_size(question, f"{where}: question")
    most = row.get("max_new_tokens")
    return BenchmarkItem(
        item_id=f"{spec.name}/{length}/{index}",
        benchmark=spec.benchmark,
        task=f"{length}/{spec.task}",
        cluster_id=text_digest(context),
        before_context="",
        context=context,
        after_context=question,
        answer_prefix=text_field(row, "answer_prefix", where),
        answers=texts_field(row, "answer", where, is_required=True),
        max_new_tokens=spec.max_new_tokens or (most if isinstance(most, int) and most > 0 else 128),
        use_chat_template=True,
        metric=_metric(spec.task),
        is_generated=True,
    )


def _metric(task: str) -> str:
    return "string_match_part" if task in _QUESTIONS else "string_match_all"
