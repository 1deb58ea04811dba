"""ZeroSCROLLS (Shaham et al. 2023, arXiv:2305.14196): the authors' prompts, cut and scored their way.

Rows with references are scored here; those of the official test set, whose answers are hidden, are answered, never
scored, and can be written as a submission to the leaderboard.
"""

from __future__ import annotations

from evaluators.benchmark import TaskInfo, TaskSpec
from evaluators.benchmarks.sources.rows import read_rows
from evaluators.benchmarks.zeroscrolls.rows import FIELDS, ZeroScrollsRow, merged_rows
from evaluators.benchmarks.zeroscrolls.tasks import (
    HUB_REPOSITORY,
    ZEROSCROLLS_TASKS,
    ZeroScrollsTask,
    published_rows,
)
from evaluators.item import BenchmarkItem, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer

CHAT_REQUEST = "Do not provide any explanation."
HIDDEN_REASON = (
    "the official answers are hidden; for the leaderboard: jobs/report.py RESULTS --submission FOLDER"
)


@register_benchmark("zeroscrolls")
class ZeroScrolls:
    """Summaries, questions and aggregation over long documents, without training examples."""

    def tasks(self) -> tuple[str, ...]:
        """The official ten."""
        return tuple(ZEROSCROLLS_TASKS)

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and that it needs the hub or a folder."""
        definition = ZEROSCROLLS_TASKS[task]
        source = (
            f"{HUB_REPOSITORY} on the hub, or `data`: a folder with <task>.jsonl, .jsonl.gz or the authors' <task>.zip; "
            "`split`: validation (about 20 items, scored here) or test (answers hidden)"
        )
        return TaskInfo(
            name=f"zeroscrolls/{task}",
            about=definition.about,
            metric=definition.metric,
            source=source,
            num_items="about 20",
            context="thousands of words",
            answer_tokens=definition.max_new_tokens,
            licence="MIT; texts are third parties'",
            separates="summaries and aggregation: policies that drop evenly lose least",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` ids of `spec.split`, from `spec.data` or the hub (`spec.revision`).

        A model with a chat template gets the authors' wording for chat models. An item without references is called
        "test/<task>", a rebuilt one "rebuilt/<task>", so that neither shares a table with official scores.
        Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
        """
        spec.refuse_options(("length", "haystack"), "ZeroSCROLLS' texts are given, not generated; remove it.")
        task = ZEROSCROLLS_TASKS[spec.task]
        found = read_rows(spec, published_rows(spec), FIELDS)
        rows = merged_rows(found, spec.data or HUB_REPOSITORY, task)[: spec.limit]
        is_chat = bool(tokenizer.chat_template)
        return [_item(spec, task, row, is_chat) for row in rows]


def _item(spec: TaskSpec, task: ZeroScrollsTask, row: ZeroScrollsRow, is_chat: bool) -> BenchmarkItem:
    is_told = is_chat and not task.is_summary
    rebuilt = {"data": "rebuilt from the source data set, not the official input"} if row.is_rebuilt else {}
    return BenchmarkItem(
        item_id=f"{spec.name}/{_group(row)}{row.official_id}",
        benchmark=spec.benchmark,
        task=f"{_group(row)}{spec.task}",
        cluster_id=text_digest(row.document),
        before_context=_with_chat_request(row.instruction) if is_told else row.instruction,
        context=row.document,
        # The header ("\n\nAnswer:") is for a model that continues a text; a chat model answers in a turn of its own.
        after_context=row.query if is_chat else row.query + row.header,
        answer_prefix="",
        answers=row.references,
        max_new_tokens=spec.max_new_tokens or task.max_new_tokens,
        use_chat_template=True,
        metric=task.metric,
        truncation_separator=row.separator,
        unscored_reason=HIDDEN_REASON,
        metadata={"official_id": row.official_id, "wording": "chat" if is_chat else "plain", **rebuilt},
    )


def _group(row: ZeroScrollsRow) -> str:
    if not row.references:
        return "test/"
    return "rebuilt/" if row.is_rebuilt else ""


def _with_chat_request(instruction: str) -> str:
    """The request at the end of the instruction's first paragraph (insert_format_request of the authors' api.py)."""
    paragraph, blank_line, rest = instruction.partition("\n\n")
    return f"{paragraph.strip()} {CHAT_REQUEST}{blank_line}{rest}"
