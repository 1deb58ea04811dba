"""The official files of RULER's question tasks may lie here, on the hub or in a store: the items are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.ruler import questions
from evaluators.benchmarks.ruler.questions import QaFile, parse_squad, read_qa_file
from evaluators.benchmarks.sources import object_store
from evaluators.benchmarks.sources.noting import noted_sources
from tests.evaluators.conftest import CASES

SQUAD = CASES / "ruler" / "squad.json"
COMMIT = "0123456789" * 4


def read(data: str | Path) -> QaFile:
    return read_qa_file(TaskSpec("ruler/qa_1", data=str(data)), "squad.json", parse_squad)


def test_a_file_of_the_hub_is_the_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def have(spec: TaskSpec, repository: str, names: tuple[str, ...], revision: str, folder: str) -> Path:
        asked.append((repository, *names, revision))
        return SQUAD

    monkeypatch.setattr(questions, "hub_file", have)
    for inside, name in (("", "squad.json"), ("/data/dev.json", "data/dev.json")):
        with noted_sources() as found:
            assert read(f"hf://datasets/me/squad@{COMMIT}{inside}") == read(SQUAD)
        assert asked.pop() == ("me/squad", name, COMMIT)
        assert {it.num_rows for it in found} == {len(read(SQUAD).questions)}


def test_a_file_of_a_store_is_the_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    store = fs.SubTreeFileSystem(str(SQUAD.parent), fs.LocalFileSystem())
    monkeypatch.setattr(object_store, "store_and_path", lambda it: (store, it.removeprefix("s3://")))
    assert read("s3://squad.json") == read(SQUAD)
    with pytest.raises(BenchmarkError, match=r"no object s3://none nor squad.json under it"):
        read("s3://none")
    with pytest.raises(BenchmarkError, match=r"hotpotqa.json does not have the form"):
        read("s3://hotpotqa.json")


@pytest.mark.parametrize(
    "data", ["hf://datasets/me/squad@main", "gs://bucket/squad.json", "s3://a:b@c/squad.json"]
)
def test_an_address_that_is_none_is_told(data: str) -> None:
    with pytest.raises(BenchmarkError, match=r"ruler/qa_1: .*(no commit|read from nowhere|password)"):
        read(data)
