"""SQuAD and HotpotQA files as questions over one numbered list of different documents, sorted as RULER sorts them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.hints import nearest_path_hint
from evaluators.item import text_digest


@dataclass(frozen=True, slots=True)
class Question:
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
    questions: tuple[Question, ...]
    documents: tuple[str, ...]


Parse = Callable[[Any], tuple[list[Question], list[str]]]


def read_qa_file(spec: TaskSpec, file_name: str, parse: Parse) -> QaFile:
    """Read `spec.data`, the file itself or a folder with `file_name` in it.

    Raises BenchmarkError when it is not named, is not there, or has another form.
    """
    if spec.data is None:
        raise BenchmarkError(
            f"{spec.name} is unavailable without its file; name {file_name} (the official one) in `data`."
        )
    given = Path(spec.data).expanduser()
    file = given / file_name if given.is_dir() else given
    if not file.is_file():
        raise BenchmarkError(f"{spec.name}: there is no file {file}. {nearest_path_hint(file)}")
    try:
        text = file.read_text(encoding="utf-8")
        questions, documents = parse(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchmarkError(
            f"{spec.name}: {file} does not have the form of the official {file_name} ({error!r})."
        ) from error
    if not questions:
        raise BenchmarkError(f"{spec.name}: {file} has no question; take the official {file_name}.")
    return QaFile(file.name.split(".")[0], text_digest(text), tuple(questions), tuple(documents))


def parse_squad(data: Any) -> tuple[list[Question], list[str]]:
    """Answerable questions of SQuAD's JSON (version 2.0; 1.1 has no others), a document per paragraph."""
    articles = data["data"]
    documents = sorted({part["context"] for article in articles for part in article["paragraphs"]})
    number = {document: index for index, document in enumerate(documents)}
    questions = []
    for article in articles:
        parts = [number[part["context"]] for part in article["paragraphs"]]
        for part in article["paragraphs"]:
            own = number[part["context"]]
            related = tuple(other for other in parts if other != own)
            questions += [
                Question(asked["question"], tuple(gold["text"] for gold in asked["answers"]), (own,), related)
                for asked in part["qas"]
                if not asked.get("is_impossible", False)
            ]
    return questions, documents


def parse_hotpotqa(data: Any) -> tuple[list[Question], list[str]]:
    """Questions of HotpotQA's JSON (distractor setting), a document per title with its sentences."""
    rows = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in data]
    documents = sorted({document for row in rows for document in row})
    number = {document: index for index, document in enumerate(documents)}
    questions = [
        Question(asked["question"], (asked["answer"],), tuple(number[document] for document in row), ())
        for asked, row in zip(data, rows, strict=True)
    ]
    return questions, documents
