"""SCBench's tasks as their authors define them, and where their rows lie; the wording is data (templates.json)."""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from dataclasses import dataclass, replace
from typing import Any

from evaluators.benchmarks.scbench.rows import LETTERS, ScbenchRow, Turn
from evaluators.benchmarks.sources.rows import HubRows

REPOSITORY = "microsoft/SCBench"
REVISION = "283310bb8c5ba6909dd9a6b1be087d2937f76f6d"
_TARGET = re.compile(r"The .+ is")
_PASSKEY_TOKENS = 15


@dataclass(frozen=True, slots=True)
class ScbenchTask:
    """A task: the prompt around its context, that of a question, its measure, and the length of an answer in tokens.

    `num_questions`: of the official rows.
    """

    about: str
    context_prompt: str
    question_prompt: str
    metric: str
    max_new_tokens: int
    num_questions: int

    def context_parts(self, row: ScbenchRow) -> tuple[str, str]:
        """The text before the context, and the context."""
        before, _ = self.context_prompt.split("{context}")
        return before.replace("{prefix}", row.turns[0].input), row.context

    def question(self, turn: Turn) -> str:
        """The text of a question."""
        options = dict(zip(LETTERS, turn.options, strict=False))
        # The authors cut a number's description out of "The … is", in small letters.
        found = _TARGET.search(turn.input)
        target = "" if found is None else found[0].lower()[:-3]
        return self.question_prompt.format(input=turn.input, question=turn.input, target=target, **options)

    def metric_of(self, turn: Turn) -> str:
        """Its measure; of a pass key between summaries its own."""
        return "first_integer" if turn.subtask == "passkey" else self.metric

    def longest_answer(self, turn: Turn) -> int:
        """Tokens of an answer at most."""
        return _PASSKEY_TOKENS if turn.subtask == "passkey" else self.max_new_tokens


@functools.cache
def scbench_tasks() -> dict[str, ScbenchTask]:
    """Every task by its name; many_shot_strict is many_shot under another measure."""
    file = importlib.resources.files(__package__) / "templates.json"
    found: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["tasks"]
    tasks = {
        name: ScbenchTask(
            it["about"],
            it["context"],
            it["question"],
            it["metric"],
            it["max_new_tokens"],
            it["num_questions"],
        )
        for name, it in found.items()
    }
    shots = tasks["many_shot"]
    strict = replace(shots, about="choices after hundreds of examples", metric="many_shot_strict")
    return tasks | {"many_shot_strict": strict}


def published_rows(task: str) -> HubRows:
    """Where the authors' rows of a task lie."""
    name = f"scbench_{task.removesuffix('_strict')}"
    local = (f"{name}.jsonl", f"{name}.jsonl.gz", f"{name}.parquet")
    return HubRows(
        REPOSITORY, REVISION, f"{name}/test-00000-of-00001.parquet", config=name, local_names=local
    )
