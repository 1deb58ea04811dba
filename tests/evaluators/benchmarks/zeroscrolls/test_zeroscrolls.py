"""ZeroSCROLLS items are the authors' prompts from any source, cut their way; what is hidden or rebuilt says so."""

from __future__ import annotations

import gzip
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.zeroscrolls.tasks import ZEROSCROLLS_TASKS
from evaluators.item import BenchmarkItem
from evaluators.prompting import PromptError, QueryMode, tokenize_item
from evaluators.registry import load_items
from tests.evaluators.conftest import CASES, CHAT_TEMPLATE, LoadTask, MakeTokenizer

FOLDER = CASES / "zeroscrolls"
REQUEST = "Do not provide any explanation."


@pytest.fixture
def load(make_tokenizer: MakeTokenizer) -> LoadTask:
    def load_task(task: str, *, is_chat: bool = False, **options: Any) -> list[BenchmarkItem]:
        tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE if is_chat else None)
        return load_items(TaskSpec(f"zeroscrolls/{task}", **options), tokenizer)

    return load_task


def rows_of(task: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{task}.jsonl").read_text().splitlines()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("task", ["qasper", "gov_report"])
def test_every_source_gives_the_same_items(
    load: LoadTask, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = FOLDER / f"{task}.jsonl"
    (tmp_path / "gz").mkdir()
    (tmp_path / "gz" / f"{task}.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    # As huggingface_hub lays out its cache: a ref names the commit that a branch was at.
    repository, commit = tmp_path / "datasets--tau--zero_scrolls", "0" * 40
    for folder in (repository / "snapshots" / commit, repository / "refs", tmp_path / "zip"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for folder in (repository / "snapshots" / commit, tmp_path / "zip"):
        with zipfile.ZipFile(folder / f"{task}.zip", "w") as archive:
            archive.write(plain, f"{task}/validation.jsonl")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    items = load(task, data=str(FOLDER))
    assert load(task, data=str(tmp_path / "gz")) == items
    assert load(task, data=str(tmp_path / "zip")) == items
    assert load(task) == load(task, revision=commit) == items


def test_hub_out_of_reach_says_how_to_go_on(
    load: LoadTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BenchmarkError, match=r"set `data` to a folder that holds qasper\.jsonl"):
        load("qasper")


@pytest.mark.parametrize("task", ZEROSCROLLS_TASKS)
def test_a_plain_model_is_given_the_authors_input(load: LoadTask, task: str) -> None:
    inputs = {row["id"]: row["input"] for row in rows_of(task)}
    items = load(task, data=str(FOLDER))
    assert [item.prompt_text for item in items] == list(inputs.values())
    assert items[0].after_context == inputs[f"{task}_0"][rows_of(task)[0]["query_start_index"] :]


@pytest.mark.parametrize("task", ZEROSCROLLS_TASKS)
def test_a_chat_model_gets_no_header_and_is_asked_not_to_explain_unless_it_is_to_summarize(
    load: LoadTask, task: str
) -> None:
    plain, chat = (load(task, is_chat=is_chat, data=str(FOLDER))[0] for is_chat in (False, True))
    header = rows_of(task)[0]["input"][rows_of(task)[0]["query_end_index"] :]
    assert header.endswith(":") and plain.after_context == chat.after_context + header
    is_summary = task in ("gov_report", "summ_screen_fd", "qmsum", "squality")
    paragraph, _, rest = plain.before_context.partition("\n\n")
    expected = plain.before_context if is_summary else f"{paragraph} {REQUEST}\n\n{rest}"
    assert chat.before_context == expected
    assert (plain.metadata["wording"], chat.metadata["wording"]) == ("plain", "chat")
    assert (plain.item_id, plain.context, plain.answers) == (chat.item_id, chat.context, chat.answers)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("trims_offsets", [False, True])
def test_a_cut_prompt_is_a_beginning_the_separator_and_the_whole_question(
    load: LoadTask, make_tokenizer: MakeTokenizer, adds_bos: bool, trims_offsets: bool, seed: int
) -> None:
    item = load("book_sum_sort", data=str(FOLDER))[1]
    tokenizer = make_tokenizer(adds_bos=adds_bos, trims_offsets=trims_offsets)
    end = str(item.truncation_separator) + item.after_context
    end_tokens = len(tokenizer(end, add_special_tokens=False)["input_ids"])
    whole = len(tokenize_item(item, tokenizer, QueryMode.AWARE, 10_000).context_ids) + 1
    for limit in [
        end_tokens + 1,
        whole - 1,
        *random.Random(seed).choices(range(end_tokens + 2, whole), k=20),
    ]:
        cut = tokenize_item(item, tokenizer, QueryMode.AGNOSTIC, limit)
        ids = cut.context_ids + cut.tail_ids
        text = tokenizer.decode(ids[adds_bos:], clean_up_tokenization_spaces=False)
        assert cut.is_truncated and cut.num_original_tokens == whole
        assert text.endswith(end) and item.prompt_text.startswith(text.removesuffix(end))
        assert item.after_context in tokenizer.decode(cut.tail_ids)
        # Cutting between two tokens can move the last merge, so a token more or less.
        assert limit - 2 <= len(ids) <= limit + 1


def test_a_limit_without_room_for_the_question_is_refused(
    load: LoadTask, make_tokenizer: MakeTokenizer
) -> None:
    with pytest.raises(PromptError, match="raise it"):
        tokenize_item(load("quality", data=str(FOLDER))[0], make_tokenizer(), QueryMode.AWARE, 20)


def test_rows_with_one_id_are_one_item_with_more_references(load: LoadTask) -> None:
    assert [item.answers for item in load("qasper", data=str(FOLDER))] == [("Jan Hlava", "Hlava"), ("yes",)]


def test_hidden_answers_are_told_and_kept_apart(load: LoadTask, tmp_path: Path) -> None:
    write(tmp_path / "qasper" / "test.jsonl", [row | {"output": None} for row in rows_of("qasper")])
    items = load("qasper", data=str(tmp_path), split="test")
    assert {(item.task, item.answers) for item in items} == {("test/qasper", ())}
    assert "--submission" in items[0].unscored_reason
    ids = {item.item_id for item in load("qasper", data=str(FOLDER))}
    assert not ids & {item.item_id for item in items}


@pytest.mark.parametrize("task", ["qmsum", "squality"])
def test_rebuilt_items_say_so(load: LoadTask, task: str, shared_data: Path) -> None:
    items = load(task, data=str(shared_data / "zeroscrolls_rebuilt"))
    assert len(items) == {"qmsum": 281, "squality": 260}[task]
    assert all(item.task == f"rebuilt/{task}" and "rebuilt" in str(item.metadata["data"]) for item in items)
    assert {len(item.answers) for item in items} == {{"qmsum": 1, "squality": 4}[task]}


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("qasper", {"query_start_index": "7"}, "query_start_index must be a whole number; got '7'"),
        ("qasper", {"query_end_index": 10**6}, "must come in this order"),
        ("qasper", {"id": 5}, "id must be a string; got 5"),
        ("qasper", {"output": ["a"]}, "output must be a string"),
        ("quality", {"output": "the owner"}, "cannot be scored by multiple_choice"),
        ("space_digest", {"output": "62"}, "cannot be scored by exp_similarity"),
        ("book_sum_sort", {"output": "none"}, "cannot be scored by concordance_index"),
    ],
)
def test_a_broken_row_is_named_with_file_line_and_fault(
    load: LoadTask, tmp_path: Path, task: str, change: dict[str, Any], message: str
) -> None:
    rows = rows_of(task)
    write(tmp_path / f"{task}.jsonl", [rows[0], rows[-1] | change])
    with pytest.raises(BenchmarkError) as caught:
        load(task, data=str(tmp_path))
    assert f"{tmp_path / task}.jsonl, line 2: " in str(caught.value) and message in str(caught.value)


def test_an_unknown_split_names_the_nearest_and_a_missing_one_its_file(load: LoadTask) -> None:
    with pytest.raises(BenchmarkError, match="Did you mean 'validation'"):
        load("qasper", data=str(FOLDER), split="valid")
    with pytest.raises(BenchmarkError, match=r"neither qasper/test\.jsonl"):
        load("qasper", data=str(FOLDER), split="test")


@pytest.mark.parametrize("task", ["longbench/qasper", "ruler/vt", "file/rows"])
def test_a_split_is_refused_where_there_are_none(task: str, make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(BenchmarkError, match="split='test' has no effect"):
        load_items(TaskSpec(task, split="test"), make_tokenizer())
