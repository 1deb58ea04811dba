"""RULER's two question tasks: the documents of a question among documents of others, from a file the user gives.

Follows qa.py of NVIDIA/RULER@c3f5e3b4 (Apache-2.0), which asks the file's questions in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from evaluators.benchmark import TaskSpec
from evaluators.benchmarks.ruler_draft import RulerText, random_of
from evaluators.benchmarks.ruler_qa_files import Parse, QaFile, Question, read_qa_file
from evaluators.tokenizer import Tokenizer

_INSTRUCTION = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
_BEFORE = f"{_INSTRUCTION}\n\nThe following are given documents.\n\n"
_AFTER = f"\n\n{_INSTRUCTION}\n\nQuestion: {{question}}"
_PREFIX = " Answer:"


@dataclass(frozen=True, slots=True)
class QuestionTask:
    """One question task; `file_name` is the official file's."""

    about: str
    file_name: str
    parse: Parse
    metric: str = "string_match_part"
    max_new_tokens: int = 32
    tokens_per_unit: int = 150
    unused_options: tuple[str, ...] = ("revision", "haystack")

    @property
    def source_note(self) -> str:
        """The file that must be given."""
        return f"`data`, which must be given: the official {self.file_name}"

    def open(self, spec: TaskSpec, tokenizer: Tokenizer) -> QuestionSource:
        """Read the file."""
        return QuestionSource(spec, read_qa_file(spec, self.file_name, self.parse))


@dataclass(frozen=True, slots=True)
class QuestionSource:
    """An item per question of the file."""

    spec: TaskSpec
    file: QaFile

    @property
    def label(self) -> str:
        """The file's name without suffixes."""
        return self.file.label

    @property
    def digest(self) -> str:
        """The file's exact text."""
        return self.file.digest

    @property
    def num_items(self) -> int:
        """One for each question."""
        return len(self.file.questions)

    def draft(self, index: int) -> QuestionDraft:
        """The question's documents, then those of its article, then any, the last two in random order."""
        question, draw = self.file.questions[index], random_of(self.spec, index)
        near = [*question.own, *question.related]
        far = sorted(set(range(len(self.file.documents))) - set(near))
        order = [
            *question.own,
            *draw.sample(question.related, len(question.related)),
            *draw.sample(far, len(far)),
        ]
        return QuestionDraft(self, index, question, tuple(order))


@dataclass(frozen=True, slots=True)
class QuestionDraft:
    """One item: as many documents of `order` as fit, shuffled."""

    source: QuestionSource
    index: int
    question: Question
    order: tuple[int, ...]

    @property
    def least(self) -> int:
        """The question's own documents."""
        return len(self.question.own)

    @property
    def most(self) -> int:
        """All documents there are."""
        return len(self.order)

    def text(self, size: int) -> RulerText:
        """The question over `size` documents."""
        chosen = [self.source.file.documents[number] for number in self.order[:size]]
        random_of(self.source.spec, self.index, "order").shuffle(chosen)
        shown = (f"Document {number}:\n{document}" for number, document in enumerate(chosen, start=1))
        return RulerText(
            before=_BEFORE,
            context="\n\n".join(shown),
            after=_AFTER.format(question=self.question.text),
            answer_prefix=_PREFIX,
            answers=self.question.answers,
            metadata={"num_documents": size},
        )
