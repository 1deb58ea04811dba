"""A row of SCBench is a context with the questions asked of it; one that lacks a part is an error with its place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evaluators.benchmark import BenchmarkError
from evaluators.benchmarks.sources.json_rows import JsonRow, check_size, text_field

MIXED = ("summary_with_needles",)
"""Tasks whose turns are of two kinds, told by the turn's `task`."""
LETTERS = "ABCD"
"""Of a multiple-choice question's options."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question with its gold answers (of an option its text and its letter); `subtask` where a task mixes two."""

    input: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    subtask: str | None = None

    @property
    def gold(self) -> str:
        """What is told as the answer in turns after this one."""
        return self.answers[0] if self.options or self.subtask is not None else ", ".join(self.answers)


@dataclass(frozen=True, slots=True)
class ScbenchRow:
    """A context and its turns, at least one; `metadata` goes into every item."""

    context: str
    turns: tuple[Turn, ...]
    metadata: Mapping[str, str | int] = field(default_factory=dict)


def parse_row(task: str, row: JsonRow, where: str) -> ScbenchRow:
    """An official row. Raises BenchmarkError."""
    turns = row.get("multi_turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BenchmarkError(
            f"{where}: multi_turns must be a list of objects with input and answer; got {turns!r:.60}."
        )
    context = row.get("context") or row.get("input")
    if task == "mf" and isinstance(context, list) and all(isinstance(it, int | float) for it in context):
        # The numbers themselves, which the authors' prompt shows as Python writes a list.
        context = str(context)
    if not isinstance(context, str) or not context.strip():
        raise BenchmarkError(f"{where}: there is no context; take the official file.")
    parsed = tuple(_turn(task, turn, f"{where}, turn {number}") for number, turn in enumerate(turns, start=1))
    return ScbenchRow(context, parsed)


def _turn(task: str, turn: Mapping[str, Any], where: str) -> Turn:
    asked = text_field(dict(turn), "input", where, is_required=True)
    check_size(asked, f"{where}: input")
    answers, options = _answers(turn.get("answer"), where), tuple(map(str, turn.get("options") or ()))
    if task == "choice_eng":
        if len(options) != len(LETTERS):
            raise BenchmarkError(f"{where}: options must be {len(LETTERS)} texts; got {options!r:.60}.")
        if answers[0] not in options:
            raise BenchmarkError(f"{where}: answer must be one of the options; got {answers[0]!r:.60}.")
        # Rows have the text alone; the authors' scorer is given the letter too.
        answers = (answers[0], LETTERS[options.index(answers[0])])
    subtask = None
    if task in MIXED:
        subtask = text_field(dict(turn), "task", where).removeprefix("scbench_")
    return Turn(asked, answers, options, subtask)


def _answers(answer: Any, where: str) -> tuple[str, ...]:
    """Texts of a label; a number as JSON has it, since 58 and 58.0 are compared in different ways."""
    labels = answer if isinstance(answer, list) else [answer]
    texts = tuple(it if isinstance(it, str) else json.dumps(it) for it in labels if it is not None)
    if not texts or not all(text.strip() for text in texts):
        raise BenchmarkError(
            f"{where}: answer is {answer!r:.60}; a turn needs a text, a number, or a list of them."
        )
    return texts
