"""RULER's two question tasks: the documents of a question among documents of others, from a file the user gives.

Follows qa.py of NVIDIA/RULER@c3f5e3b4 (Apache-2.0), which asks the file's questions in order.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler.draft import RulerText, random_of
from evaluators.benchmarks.sources.addresses import HUB, check_store, hub_address, is_address
from evaluators.benchmarks.sources.files import read_whole, readable
from evaluators.benchmarks.sources.hub import hub_file
from evaluators.benchmarks.sources.noting import noting_path
from evaluators.benchmarks.sources.object_store import read_object
from evaluators.hints import nearest_path_hint
from evaluators.item import text_digest
from evaluators.tokenizer import Tokenizer

_INSTRUCTION = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
_BEFORE = f"{_INSTRUCTION}\n\nThe following are given documents.\n\n"
_AFTER = f"\n\n{_INSTRUCTION}\n\nQuestion: {{question}}"
_PREFIX = " Answer:"


@dataclass(frozen=True, slots=True)
class SourceQuestion:
    """A question; `own` documents hold the answer, `related` ones (of the same article) are added first."""

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    related: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QaFile:
    """A file's questions in order, and its documents, which they name by number."""

    label: str
    digest: str
    questions: tuple[SourceQuestion, ...]
    documents: tuple[str, ...]


Parse = Callable[[Any], tuple[list[SourceQuestion], list[str]]]


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
    question: SourceQuestion
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
        # Shuffled, or the question's own documents would always come first.
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


def read_qa_file(spec: TaskSpec, file_name: str, parse: Parse) -> QaFile:
    """Read `spec.data`: the file itself, or a folder, data set or store's prefix with `file_name` in it.

    Raises BenchmarkError when it is not named, is not there, or has another form.
    """
    if spec.data is None:
        raise BenchmarkError(
            f"{spec.name} is unavailable without its file; name {file_name} (the official one) in `data`."
        )
    file, content = _content(spec, spec.data, file_name)
    try:
        text = content.decode("utf-8")
        questions, documents = parse(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{spec.name}: {file} does not have the form of the official {file_name} ({error!r})."
        ) from error
    if not questions:
        raise BenchmarkError(f"{spec.name}: {file} has no question; take the official {file_name}.")
    if isinstance(file, Path):
        questions = list(noting_path(questions, file))
    label = str(file).rpartition("/")[2].split(".")[0]
    return QaFile(label, text_digest(text), tuple(questions), tuple(documents))


def _content(spec: TaskSpec, data: str, file_name: str) -> tuple[Path | str, bytes]:
    """The file, where it lies here, or an object's address, and the bytes."""
    if data.startswith(HUB):
        address = hub_address(data, spec.name)
        name = address.inside or file_name
        file = hub_file(spec, address.repository, (name,), address.revision, file_name)
    elif is_address(data):
        check_store(data, spec.name)
        return read_object(spec, (file_name,))
    else:
        given = Path(data).expanduser()
        file = given / file_name if given.is_dir() else given
        if not file.is_file():
            raise BenchmarkError(f"{spec.name}: there is no file {file}. {nearest_path_hint(file)}")
    with readable(str(file)):
        return file, read_whole(file)


def parse_squad(data: Any) -> tuple[list[SourceQuestion], list[str]]:
    """Answerable questions of SQuAD's JSON (version 2.0; 1.1 has no others), a document per paragraph."""
    articles = data["data"]
    # Sorted: draws pick documents by number, and a set has another order in every process.
    documents = sorted({part["context"] for article in articles for part in article["paragraphs"]})
    number = {document: index for index, document in enumerate(documents)}
    questions = []
    for article in articles:
        parts = [number[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = number[part["context"]]
            related = tuple(other for other in parts if other != own)
            questions += [
                SourceQuestion(
                    asked["question"], tuple(gold["text"] for gold in asked["answers"]), (own,), related
                )
                for asked in part["qas"]
                if not asked.get("is_impossible", False)
            ]
    return questions, documents


def parse_hotpotqa(data: Any) -> tuple[list[SourceQuestion], list[str]]:
    """Questions of HotpotQA's JSON (distractor setting), a document per title with its sentences."""
    rows = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in data]
    # Sorted as in `parse_squad`, for the same reason.
    documents = sorted({document for row in rows for document in row})
    number = {document: index for index, document in enumerate(documents)}
    questions = [
        SourceQuestion(asked["question"], (asked["answer"],), tuple(number[document] for document in row), ())
        for asked, row in zip(data, rows, strict=True)
    ]
    return questions, documents
