"""SCBench: one item a question, alone or behind gold answers, on a context that all its questions share."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.scbench.generated import GENERATED
from evaluators.benchmarks.scbench.tasks import scbench_tasks
from evaluators.item import BenchmarkItem, FollowUp
from evaluators.prompting import num_prompt_tokens
from evaluators.registry import load_items
from evaluators.scoring import score
from tests.evaluators.conftest import MakeTokenizer

LENGTH = 1500
TURNS: dict[str, list[dict[str, Any]]] = {
    "kv": [{"input": "Key a?", "answer": "v1"}, {"input": "Key b?", "answer": "v2"}],
    "mf": [
        {"input": "The largest number of the list is: ", "answer": 58},
        {"input": "The mean of the list is: ", "answer": 3.0},
    ],
    "choice_eng": [{"input": "Who?", "answer": "Totty", "options": ["Ann", "Totty", "Cy", "Di"]}],
    "vt": [{"input": "Find 7.", "answer": ["AAAAA", "BBBBB"]}, {"input": "Find 8.", "answer": ["CCCCC"]}],
    "summary_with_needles": [
        {"input": "Summarise.", "answer": "A paper.", "task": "scbench_summary"},
        {"input": "The key?", "answer": "71432", "task": "scbench_passkey"},
    ],
    "many_shot_strict": [{"input": "Which?", "answer": "(A)"}],
}


def official(
    folder: Path, task: str, make_tokenizer: MakeTokenizer, mode: str = "scbench"
) -> list[BenchmarkItem]:
    name = task.removesuffix("_strict")
    rows = [{"id": 0, "context": "The text.", "multi_turns": TURNS[task]}]
    (folder / f"scbench_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_items(TaskSpec(f"{mode}/{task}", data=str(folder)), make_tokenizer())


@pytest.mark.parametrize("task", TURNS)
def test_a_question_is_asked_alone_and_its_own_answer_is_right(
    tmp_path: Path, make_tokenizer: MakeTokenizer, task: str
) -> None:
    items = official(tmp_path, task, make_tokenizer)
    assert [item.metadata["turn"] for item in items] == list(range(1, 1 + len(TURNS[task])))
    assert len({(item.before_context, item.context, item.cluster_id) for item in items}) == 1
    for item, turn in zip(items, TURNS[task], strict=True):
        assert item.context == "The text." and turn["input"] in item.after_context
        assert score(item.metric, ", ".join(item.answers), item.answers) == 1
        assert score(item.metric, "9.5 of nothing", item.answers) == 0 or item.metric == "many_shot_official"


def test_prompts_are_the_authors(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    (choice,) = official(tmp_path, "choice_eng", make_tokenizer)
    assert choice.prompt_text == (
        "Read the book and answer the question.\n\nThe text.\n\n"
        "Question: Who?\nA. Ann\nB. Totty\nC. Cy\nD. Di\n\nThe the correct answer is"
    )
    first, second = official(tmp_path, "mf", make_tokenizer)
    asked = TURNS["mf"][0]["input"]
    assert first.prompt_text == f"{asked}\n\nThe text.\n\nWhat is the largest number of the list?\n\n{asked}"
    assert first.answers == ("58",) and second.answers == ("3.0",), (
        "whole numbers and floats are compared otherwise"
    )
    summary, needle = official(tmp_path, "summary_with_needles", make_tokenizer)
    assert (summary.metric, summary.max_new_tokens, needle.metric, needle.max_new_tokens) == (
        "rouge_l_sum", 800, "first_integer", 15,
    )  # fmt: skip
    assert {summary.task, needle.task} == {"summary_with_needles/summary", "summary_with_needles/passkey"}


def test_an_option_is_right_by_its_text_and_by_its_letter(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    (item,) = official(tmp_path, "choice_eng", make_tokenizer)
    assert item.answers == ("Totty", "B"), "rows hold the text alone"
    said = {"B. Totty": 1, "The answer is B": 1, "Totty": 1, "C. Cy": 0, "The answer is Ann": 0}
    assert {text: score(item.metric, text, item.answers) for text in said} == said


def test_a_list_of_numbers_is_a_context_and_an_option_is_told_by_its_text(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    row = {"context": [3, 58, 7.5], "multi_turns": TURNS["mf"]}
    (tmp_path / "scbench_mf.jsonl").write_text(json.dumps(row))
    items = load_items(TaskSpec("scbench/mf", data=str(tmp_path)), make_tokenizer())
    assert {item.context for item in items} == {"[3, 58, 7.5]"}
    row = {"context": "x", "multi_turns": TURNS["choice_eng"] * 2}
    (tmp_path / "scbench_choice_eng.jsonl").write_text(json.dumps(row))
    _, second = load_items(TaskSpec("scbench_turns/choice_eng", data=str(tmp_path)), make_tokenizer())
    assert "answer is Totty\n\nQuestion: Who?" in second.after_context


def test_an_answer_that_is_no_option_is_told(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    turn = TURNS["choice_eng"][0] | {"answer": "Bob"}
    (tmp_path / "scbench_choice_eng.jsonl").write_text(json.dumps({"context": "x", "multi_turns": [turn]}))
    with pytest.raises(BenchmarkError, match=r"turn 1: answer must be one of the options; got 'Bob'"):
        load_items(TaskSpec("scbench/choice_eng", data=str(tmp_path)), make_tokenizer())


def test_turns_are_asked_behind_gold_answers(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    first, second = official(tmp_path, "vt", make_tokenizer, "scbench_turns")
    assert first.after_context == "\n\nFind 7."
    assert second.after_context == "\n\nFind 7. AAAAA, BBBBB\n\nFind 8."
    assert first.context == second.context and first.item_id != second.item_id


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"context": "x", "multi_turns": []}, "line 1: multi_turns must be a list"),
        ({"context": "", "multi_turns": [{"input": "q", "answer": "a"}]}, "line 1: there is no context"),
        ({"context": "x", "multi_turns": [{"input": "q", "answer": []}]}, "line 1, turn 1: answer is"),
        ({"context": "x", "multi_turns": [{"answer": "a"}]}, "line 1, turn 1: the field 'input' is missing"),
    ],
)
def test_a_row_that_lacks_a_part_is_told(
    tmp_path: Path, make_tokenizer: MakeTokenizer, row: dict[str, Any], words: str
) -> None:
    (tmp_path / "scbench_kv.jsonl").write_text(json.dumps(row))
    with pytest.raises(BenchmarkError, match=words):
        load_items(TaskSpec("scbench/kv", data=str(tmp_path)), make_tokenizer())


@pytest.mark.parametrize("task", GENERATED)
def test_drawn_contexts_fill_the_length_and_hold_every_answer_once(
    make_tokenizer: MakeTokenizer, task: str, seed: int
) -> None:
    tokenizer = make_tokenizer()
    spec = TaskSpec(f"scbench/{task}_drawn", length=LENGTH, limit=12, seed=seed)
    items = load_items(spec, tokenizer)
    contexts = [list(of) for _, of in groupby(items, key=lambda item: item.cluster_id)]
    assert list(map(len, contexts)) == [5, 5, 2], "a limit counts questions"
    for item in items:
        longest = num_prompt_tokens(item, tokenizer) + item.max_new_tokens
        assert 0.85 * LENGTH < longest <= LENGTH
        assert score(item.metric, ", ".join(item.answers), item.answers) == 1
        if task != "mf":
            assert all(item.context.count(answer) >= 1 for answer in item.answers)
    assert items == load_items(spec, tokenizer)
    assert items[:3] == load_items(TaskSpec(spec.name, length=LENGTH, limit=3, seed=seed), tokenizer)
    other = load_items(TaskSpec(spec.name, length=LENGTH, limit=1, seed=seed + 1), tokenizer)
    assert other[0].context != items[0].context


def test_what_is_asked_of_drawn_contexts_has_one_answer(make_tokenizer: MakeTokenizer, seed: int) -> None:
    def first(task: str) -> BenchmarkItem:
        spec = TaskSpec(f"scbench/{task}_drawn", length=LENGTH, limit=1, seed=seed)
        return load_items(spec, make_tokenizer())[0]

    pairs = json.loads(first("kv").context.removeprefix("JSON data:\n"))
    key = first("kv").after_context.split('"')[1]
    assert pairs[key] == first("kv").answers[0]
    item = first("prefix_suffix")
    _, begin, _, end, _ = item.after_context.split('"')
    found = [line for line in item.context.splitlines() if line.startswith(begin) and line.endswith(end)]
    assert found == list(item.answers)
    numbers = json.loads(first("mf").context)
    assert first("mf").answers == (str(max(numbers)),) and len(set(numbers)) == len(numbers)
    item = first("vt")
    values: dict[str, str] = {}
    for line in item.context.splitlines():
        if line.startswith("VAR "):
            name, value = line.removeprefix("VAR ").split(" = ")
            values[name] = values[value.removeprefix("VAR ")] if value.startswith("VAR ") else value
    asked = item.after_context.split("the value ")[1].split()[0]
    assert sorted(name for name, value in values.items() if value == asked) == sorted(item.answers)


def test_a_length_without_room_is_told_with_one_that_has(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(BenchmarkError, match="length 300 has no room; give at least"):
        load_items(TaskSpec("scbench/kv_drawn", length=300), make_tokenizer())
    with pytest.raises(BenchmarkError, match=r"length=4096 has no effect here.*add _drawn"):
        load_items(TaskSpec("scbench/kv", length=4096), make_tokenizer())


def test_the_official_scorers_38_values_are_ours(shared_data: Path) -> None:
    metrics = {
        "kv_retrieval": "substring", "longdialogue_qa_eng": "substring_any_case", "passkey": "first_integer",
        "scbench_many_shot": "many_shot_official",
    }  # fmt: skip
    of_task = {name: it.metric for name, it in scbench_tasks().items()}
    metrics |= {"math_find": of_task["mf"], "longbook_choice_eng": of_task["choice_eng"]}
    metrics |= {
        "scbench_vt": of_task["vt"],
        "longbook_qa_chn": of_task["qa_chn"],
        "scbench_summary": of_task["summary"],
    }
    lines = (shared_data / "more" / "scbench" / "scorer_oracle.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        label = row["label"] if isinstance(row["label"], list) else [row["label"]]
        texts = [it if isinstance(it, str) else json.dumps(it) for it in label]
        assert score(metrics[row["scorer"]], row["pred"], texts) == pytest.approx(
            row["official"], abs=1e-9
        ), row
    assert len(lines) == 38


def test_own_turns_are_messages_behind_answers_as_long_as_they_may_be(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    first, second = official(tmp_path, "vt", make_tokenizer, "scbench_own_turns")
    assert (first.after_context, first.follow_ups) == ("\n\nFind 7.", ())
    assert second.after_context == first.after_context and second.context == first.context
    assert second.follow_ups == (FollowUp("Find 8.", first.max_new_tokens),)
    assert second.answers != first.answers and second.metadata["turn"] == 2
