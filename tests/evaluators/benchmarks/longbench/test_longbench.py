"""LongBench items are the official rows in the official words, from either source, and bad data are named."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.longbench.tasks import HUB_REVISION
from evaluators.item import BenchmarkItem
from evaluators.registry import list_tasks, load_items
from tests.evaluators.conftest import CASES, SHARED_DATA, LoadTask, MakeTokenizer

TASKS = sorted(name.partition("/")[2] for name in list_tasks() if name.startswith("longbench/"))
GOOD_ROW = {"input": "q", "context": "c", "answers": ["a"], "all_classes": ["a"]}


@pytest.fixture
def load(make_tokenizer: MakeTokenizer) -> LoadTask:
    def load_task(task: str, **options: object) -> list[BenchmarkItem]:
        return load_items(TaskSpec(f"longbench/{task}", **options), make_tokenizer())  # type: ignore[arg-type]

    return load_task


@pytest.mark.parametrize("task", TASKS)
def test_gzip_and_hub_give_the_same_items_as_the_plain_file(
    load: LoadTask, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CASES / "longbench" / f"{task}.jsonl"
    (tmp_path / f"{task}.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    snapshot = tmp_path / "datasets--zai-org--LongBench" / "snapshots" / HUB_REVISION
    snapshot.mkdir(parents=True)
    with zipfile.ZipFile(snapshot / "data.zip", "w") as archive:
        archive.write(plain, f"data/{task}.jsonl")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    items = load(task, data=str(plain.parent))
    assert load(task, data=str(tmp_path)) == items
    assert load(task) == items


def test_hub_out_of_reach_says_how_to_go_on(
    load: LoadTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BenchmarkError, match=r"set `data` to a folder that holds qasper\.jsonl"):
        load("qasper")


def test_an_empty_folder_is_told_with_the_names_that_are_looked_for(load: LoadTask, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError) as caught:
        load("qasper", data=str(tmp_path))
    told = f"longbench/qasper: {tmp_path} has neither qasper.jsonl nor qasper.jsonl.gz. {tmp_path} is empty."
    assert str(caught.value) == told


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"official data are not at {SHARED_DATA}")
@pytest.mark.parametrize("task", TASKS)
def test_prompt_is_the_official_template_filled_in(load: LoadTask, task: str) -> None:
    folder = SHARED_DATA / "longbench"
    template = json.loads((folder / "dataset2prompt.json").read_text())[task]
    max_new_tokens = json.loads((folder / "dataset2maxlen.json").read_text())[task]
    with gzip.open(folder / f"{task}.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    items = load(task, data=str(folder))
    assert [item.prompt_text for item in items] == [template.format(**row) for row in rows]
    assert {item.max_new_tokens for item in items} == {max_new_tokens}


def test_official_tasks_are_all_there() -> None:
    assert len(TASKS) == 21
    assert sum(name.startswith("longbench-e/") for name in list_tasks()) == 13


def test_template_is_withheld_for_completions_and_examples(load: LoadTask) -> None:
    folder = str(CASES / "longbench")
    withheld = {task for task in TASKS if not load(task, data=folder)[0].use_chat_template}
    assert withheld == {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}


def test_samsum_alone_stops_at_a_newline(load: LoadTask) -> None:
    folder = str(CASES / "longbench")
    assert [task for task in TASKS if load(task, data=folder)[0].stop_at_newline] == ["samsum"]


def test_items_of_longbench_e_name_their_length(make_tokenizer: MakeTokenizer) -> None:
    spec = TaskSpec("longbench-e/qasper", data=str(CASES / "longbench"))
    items = load_items(spec, make_tokenizer())
    assert [item.task for item in items] == ["0-4k/qasper", "4-8k/qasper", "8k+/qasper"]
    assert [item.item_id for item in items] == [f"longbench-e/qasper/e{index}" for index in range(3)]


def test_a_row_of_longbench_e_without_length_is_refused(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "qasper_e.jsonl").write_text(json.dumps(GOOD_ROW))
    with pytest.raises(BenchmarkError, match="no whole number in `length`"):
        load_items(TaskSpec("longbench-e/qasper", data=str(tmp_path)), make_tokenizer())


@pytest.mark.parametrize("task", ["passage_retrieval_en", "passage_retrieval_zh"])
def test_an_answer_that_names_no_paragraph_is_refused(load: LoadTask, tmp_path: Path, task: str) -> None:
    (tmp_path / f"{task}.jsonl").write_text(json.dumps(GOOD_ROW))
    with pytest.raises(BenchmarkError, match="'a' names no paragraph"):
        load(task, data=str(tmp_path))


def test_question_and_instruction_follow_the_context(load: LoadTask) -> None:
    item = load("qasper", data=str(CASES / "longbench"))[2]
    assert item.after_context.endswith("\n\nQuestion: Which oven was used?\n\nAnswer:")
    assert "{text}" in item.context


def test_id_is_the_official_one_or_a_digest_of_the_content(load: LoadTask, tmp_path: Path) -> None:
    assert load("qasper", data=str(CASES / "longbench"))[0].item_id == "longbench/qasper/aa01"
    rows = [json.loads(line) for line in (CASES / "longbench" / "qasper.jsonl").read_text().splitlines()]
    for row in rows:
        del row["_id"]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "qasper.jsonl").write_text("\n".join(lines))
    ids = [item.item_id for item in load("qasper", data=str(tmp_path))]
    (tmp_path / "qasper.jsonl").write_text("\n".join(reversed(lines)))
    assert [item.item_id for item in load("qasper", data=str(tmp_path))] == ids[::-1]
    assert len(set(ids)) == 3


def test_a_repeated_row_keeps_an_id_of_its_own(load: LoadTask, tmp_path: Path) -> None:
    shutil.copy(CASES / "longbench" / "qasper.jsonl", tmp_path)
    with (tmp_path / "qasper.jsonl").open("a") as file:
        file.write(json.dumps(GOOD_ROW | {"_id": "aa01"}) + "\n")
    assert load("qasper", data=str(tmp_path))[-1].item_id == "longbench/qasper/aa01-2"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"input": "q", ', "not valid JSON at column"),
        (b'{"input": "q", "context": "\\ud800"}', "half a surrogate pair"),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b'["q", "c"]', "expected an object"),
        (b'{"context": "c", "answers": ["a"]}', "'input' is missing; the row has answers, context"),
        (b'{"input": "q", "context": 3, "answers": ["a"]}', "context must be a string; got 3"),
        (b'{"input": "q", "context": " ", "answers": ["a"]}', "context is empty"),
        (b'{"input": "q", "context": "c", "answers": "a"}', "answers must be a list of strings; got 'a'"),
        (b'{"input": "q", "context": "c", "answers": []}', "answers is an empty list"),
        (b'{"input": "q", "context": "c", "answers": ["a"], "_id": 5}', "_id must be a string; got 5"),
    ],
)
def test_a_broken_line_is_named_with_file_number_and_fault(
    load: LoadTask, tmp_path: Path, line: bytes, message: str
) -> None:
    file = tmp_path / "qasper.jsonl"
    file.write_bytes(json.dumps(GOOD_ROW).encode() + b"\n\n" + line + b"\n")
    with pytest.raises(BenchmarkError) as caught:
        load("qasper", data=str(tmp_path))
    assert f"{file}, line 3: " in str(caught.value)
    assert message in str(caught.value)


def test_trec_without_classes_is_refused(load: LoadTask, tmp_path: Path) -> None:
    (tmp_path / "trec.jsonl").write_text(json.dumps(GOOD_ROW | {"all_classes": None}))
    with pytest.raises(BenchmarkError, match="all_classes"):
        load("trec", data=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("qasper.jsonl", b"\n\n", "has no rows"),
        ("qasper.jsonl.gz", b"not gzip", "cannot be read"),
        ("qasper.jsonl.gz", gzip.compress(b"x" * 1000)[:-12], "cannot be read"),
    ],
    ids=["empty", "not gzip", "cut off"],
)
def test_a_file_that_gives_no_rows_is_refused(
    load: LoadTask, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BenchmarkError, match=message):
        load("qasper", data=str(tmp_path))


def test_missing_folder_and_file_name_the_nearest(load: LoadTask, tmp_path: Path) -> None:
    (tmp_path / "longbench").mkdir()
    (tmp_path / "longbench" / "qaspar.jsonl").touch()
    with pytest.raises(BenchmarkError, match="Did you mean 'longbench'"):
        load("qasper", data=str(tmp_path / "longbnech"))
    with pytest.raises(BenchmarkError, match=r"Did you mean 'qaspar\.jsonl'"):
        load("qasper", data=str(tmp_path / "longbench"))
