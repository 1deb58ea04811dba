"""SCBench (Li et al. 2024, arXiv:2412.10319): one context, many questions; the authors' prompts, rows and measures.

`scbench/*` asks every question alone after its context (multi-request), `scbench_turns/*` asks one after the other, with the
gold answers to those before (the authors' default), `scbench_own_turns/*` with the model's own. Both repoqa tasks are left
out: they need a parser of five languages.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from evaluators.benchmark import BenchmarkError, TaskInfo, TaskSpec
from evaluators.benchmarks.scbench.generated import (
    DEFAULT_LENGTH_TOKENS,
    GENERATED,
    NUM_CONTEXTS,
    NUM_TURNS,
    generated_rows,
)
from evaluators.benchmarks.scbench.rows import ScbenchRow, Turn, parse_row
from evaluators.benchmarks.scbench.tasks import (
    REPOSITORY,
    REVISION,
    ScbenchTask,
    published_rows,
    scbench_tasks,
)
from evaluators.benchmarks.sources.rows import read_rows
from evaluators.item import BenchmarkItem, FollowUp, text_digest
from evaluators.registry import register_benchmark
from evaluators.tokenizer import Tokenizer


class _Scbench:
    """What all modes share. An item is a question, named by its context's digest and its turn."""

    name: str
    about_mode: str

    def tasks(self) -> tuple[str, ...]:
        """The ten without repoqa, many_shot under a strict measure too, and four drawn at any length."""
        return (*scbench_tasks(), *(f"{task}_drawn" for task in GENERATED))

    def describe(self, task: str) -> TaskInfo:
        """What the task asks, its metric, and where its rows lie."""
        definition, is_drawn = scbench_tasks()[task.removesuffix("_drawn")], task.endswith("_drawn")
        return TaskInfo(
            name=f"{self.name}/{task}",
            about=f"{definition.about}; {self.about_mode}",
            metric=definition.metric,
            source=f"{REPOSITORY}@{REVISION[:8]} on the hub, or `data`: a folder with scbench_<task>.jsonl; _drawn: by us",
            num_items=f"{NUM_CONTEXTS * NUM_TURNS}, drawn" if is_drawn else f"{definition.num_questions}",
            context=f"any `length` ({DEFAULT_LENGTH_TOKENS:,})" if is_drawn else "up to 227k tokens",
            answer_tokens=definition.max_new_tokens,
            licence="MIT",
            separates="contexts that are asked again: rankings that look at the question from those that do not",
        )

    def load_items(self, spec: TaskSpec, tokenizer: Tokenizer) -> list[BenchmarkItem]:
        """The first `spec.limit` questions, context after context.

        Raises BenchmarkError for a source that cannot be read and, with file and line, for an unusable row.
        """
        definition = scbench_tasks()[spec.task.removesuffix("_drawn")]
        items = itertools.islice(
            self._items(spec, definition, _rows(spec, definition, tokenizer)), spec.limit
        )
        found = list(items)
        if not found:
            raise BenchmarkError(f"{spec.name}: {spec.data or 'the data set'} has no rows.")
        return found

    def _items(
        self, spec: TaskSpec, task: ScbenchTask, rows: Iterable[ScbenchRow]
    ) -> Iterable[BenchmarkItem]:
        seen: dict[str, int] = {}
        for row in rows:
            before, context = task.context_parts(row)
            digest = text_digest(context)
            # The same context with other questions is another row of the authors'.
            seen[digest] = seen.get(digest, 0) + 1
            name = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
            for number, turn in enumerate(row.turns, start=1):
                yield BenchmarkItem(
                    item_id=f"{spec.name}/{_place(spec, row)}{name}/turn{number}",
                    benchmark=spec.benchmark,
                    task=_task_name(spec, turn),
                    cluster_id=digest,
                    before_context=before,
                    context=context,
                    after_context=self.after_context(task, row, number - 1),
                    follow_ups=self.follow_ups(spec, task, row, number - 1),
                    answer_prefix="",
                    answers=turn.answers,
                    max_new_tokens=_longest_answer(spec, task, turn),
                    use_chat_template=True,
                    metric=task.metric_of(turn),
                    is_generated=spec.task.endswith("_drawn"),
                    metadata={"turn": number, **row.metadata},
                )

    def after_context(self, task: ScbenchTask, row: ScbenchRow, index: int) -> str:
        """What the model is told behind the context for turn `index`, from 0."""
        raise NotImplementedError

    def follow_ups(
        self, spec: TaskSpec, task: ScbenchTask, row: ScbenchRow, index: int
    ) -> tuple[FollowUp, ...]:
        """What it is asked once it has answered that."""
        return ()


@register_benchmark("scbench")
class Scbench(_Scbench):
    """Every question alone after its context: what a cache must be good for that is kept and asked again."""

    name = "scbench"
    about_mode = "each question alone"

    def after_context(self, task: ScbenchTask, row: ScbenchRow, index: int) -> str:
        """The question, behind a blank line."""
        return f"\n\n{task.question(row.turns[index])}"


@register_benchmark("scbench_turns")
class ScbenchTurns(_Scbench):
    """Questions one after the other, each with the gold answers to those before it, which are not compressed."""

    name = "scbench_turns"
    about_mode = "after the gold answers to the questions before"

    def after_context(self, task: ScbenchTask, row: ScbenchRow, index: int) -> str:
        """The questions up to this one, each but the last with its gold answer."""
        asked = [f"\n\n{task.question(turn)}" for turn in row.turns[: index + 1]]
        golds = [*(f" {turn.gold}" for turn in row.turns[:index]), ""]
        return "".join(part for pair in zip(asked, golds, strict=True) for part in pair)


@register_benchmark("scbench_own_turns")
class ScbenchOwnTurns(_Scbench):
    """Questions one after the other, each a message of its own behind the model's own answers to those before it."""

    name = "scbench_own_turns"
    about_mode = "after the model's own answers to the questions before"

    def after_context(self, task: ScbenchTask, row: ScbenchRow, index: int) -> str:
        """The first question, whichever is asked."""
        return f"\n\n{task.question(row.turns[0])}"

    def follow_ups(
        self, spec: TaskSpec, task: ScbenchTask, row: ScbenchRow, index: int
    ) -> tuple[FollowUp, ...]:
        """The questions behind the first, up to this one."""
        asked = row.turns[: index + 1]
        return tuple(
            FollowUp(task.question(turn), _longest_answer(spec, task, before))
            for before, turn in itertools.pairwise(asked)
        )


def _longest_answer(spec: TaskSpec, task: ScbenchTask, turn: Turn) -> int:
    return spec.max_new_tokens or task.longest_answer(turn)


def _rows(spec: TaskSpec, task: ScbenchTask, tokenizer: Tokenizer) -> Iterable[ScbenchRow]:
    if spec.task.endswith("_drawn"):
        spec.refuse_options(("data", "revision", "haystack", "split"), "the rows are drawn; remove it.")
        return generated_rows(spec, task, tokenizer)
    spec.refuse_options(
        ("length", "haystack", "split"), "the rows are given; remove it, or add _drawn to the name."
    )
    found = read_rows(spec, published_rows(spec.task), "context and multi_turns")
    return (parse_row(spec.task, row, where) for where, row in found)


def _place(spec: TaskSpec, row: ScbenchRow) -> str:
    """Of a drawn row what it was drawn with, as RULER's items have it."""
    return f"{row.metadata['length_tokens']}/seed{spec.seed}/" if "length_tokens" in row.metadata else ""


def _task_name(spec: TaskSpec, turn: Turn) -> str:
    name = spec.task if turn.subtask is None else f"{spec.task}/{turn.subtask}"
    return f"{spec.length or DEFAULT_LENGTH_TOKENS}/{name}" if spec.task.endswith("_drawn") else name
