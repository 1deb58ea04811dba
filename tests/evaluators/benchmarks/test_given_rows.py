"""InfiniteBench, LongBench v2, BABILong and kvpress's RULER: rows of that shape become items that their answers solve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.babilong.babilong import babilong_tasks
from evaluators.benchmarks.infinitebench.infinitebench import infinitebench_tasks
from evaluators.registry import load_items
from evaluators.scoring import score
from tests.evaluators.conftest import MakeTokenizer

INPUTS = {
    "math_find": "You should answer with only one number, no other words. The largest number of the list is: ",
    "code_run": "Please give me the exact number of the return value of func_1(3).",
}
ANSWERS: dict[str, Any] = {
    "math_find": 58.0, "code_run": 49, "code_debug": ["f", "B"], "longbook_choice_eng": ["Totty", "B"],
    "longdialogue_qa_eng": ["GANG"], "passkey": "71432", "kv_retrieval": "uuid-1", "number_string": "4455488866",
}  # fmt: skip


def write(folder: Path, name: str, *rows: dict[str, Any]) -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("task", infinitebench_tasks())
def test_infinitebench(tmp_path: Path, make_tokenizer: MakeTokenizer, task: str) -> None:
    asked, answer = INPUTS.get(task, "What is it?"), ANSWERS.get(task, "the old house")
    row = {
        "id": 3,
        "context": "Text {with} braces.",
        "input": asked,
        "answer": answer,
        "options": ["f", "g", "h", "i"],
    }
    data = write(tmp_path, f"{task}.jsonl", row, row)
    one, two = load_items(TaskSpec(f"infinitebench/{task}", data=data), make_tokenizer())
    assert one.item_id != two.item_id and one.cluster_id == two.cluster_id
    assert one.context == "Text {with} braces." and not one.use_chat_template
    assert score(one.metric, f"{one.answers[-1]}{'.' * (task == 'code_debug')}", one.answers) == 1
    assert score(one.metric, "nothing of it", one.answers) < 0.5
    if task == "math_find":
        assert one.before_context == "What is the largest number in the following list?\n\n"
        assert one.answers == ("58.0",)
    if task == "code_run":
        assert one.before_context == "There is a function called func_1 in the following Python code.\n\n"
        assert one.after_context.endswith("The value of func_1(3) is")
        assert score(one.metric, "49.", ["49"]) == 1 and score(one.metric, "49.", ["50"]) == 0
    if task == "code_debug":
        assert "\nA. f\nB. g\nC. h\nD. i\n" in one.after_context
        for said in ("B.", "The answer is: B", "Sure. It is: f"):
            assert score(one.metric, said, one.answers) == 1, said
        assert score(one.metric, "I think B", one.answers) == 0


@pytest.mark.parametrize("task", babilong_tasks())
def test_babilong(tmp_path: Path, make_tokenizer: MakeTokenizer, task: str) -> None:
    labels = babilong_tasks()[task].labels
    target, other = labels[0], labels[1]
    row = {"input": " Facts. ", "question": f"Where was it before the {other}? ", "target": target}
    data = write(tmp_path, f"{task}_2k.jsonl", row)
    (item,) = load_items(TaskSpec(f"babilong/{task}", data=data, split="2k"), make_tokenizer())
    assert item.prompt_text.endswith(f"<context>\nFacts.\n</context>\n\nQuestion: {row['question'].strip()}")
    assert item.task == f"2k/{task}" and other not in item.all_classes
    for said, expected in (
        (f"{target.upper()}. Then {labels[2]}.", 1),  # only the first sentence counts
        (f"the {other} and the {target}", 1),  # nor what the question names
        (f"{target} or {labels[2]}", 0),
        ("", 0),
    ):
        assert score(item.metric, said, item.answers, item.all_classes) == expected, said
    with pytest.raises(BenchmarkError, match="there is no length '3k'"):
        load_items(TaskSpec(f"babilong/{task}", data=data, split="3k"), make_tokenizer())


def test_rulers_rows(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    row = {
        "context": "c",
        "question": "q",
        "answer_prefix": " A:",
        "answer": ["x", "y"],
        "max_new_tokens": 30,
    }
    data = write(tmp_path, "8192.jsonl", row | {"task": "vt"}, row | {"task": "qa_1"}, row | {"task": "vt"})
    one, two = load_items(TaskSpec("ruler_rows/vt", data=data, split="8192"), make_tokenizer())
    assert (one.task, one.answer_prefix, one.max_new_tokens, one.after_context) == ("8192/vt", " A:", 30, "q")
    assert one.item_id != two.item_id and score(one.metric, "x", one.answers) == 0.5
    (qa,) = load_items(TaskSpec("ruler_rows/qa_1", data=data, split="8192"), make_tokenizer())
    assert score(qa.metric, "x", qa.answers) == 1
    with pytest.raises(BenchmarkError, match="has no rows of cwe"):
        load_items(TaskSpec("ruler_rows/cwe", data=data, split="8192"), make_tokenizer())


@pytest.mark.parametrize(
    ("said", "parts"),
    [
        ("The correct answer is (B).", (1, 1)),
        ("**The correct answer is B**", (1, 1)),
        ("The correct answer is (A). No: The correct answer is (B)", (0, 1)),
        ("the correct answer is (B)", (0, 0)),
        ("B", (0, 0)),
    ],
)
def test_a_choice_is_stated_in_the_authors_sentence(said: str, parts: tuple[int, int]) -> None:
    from evaluators.scoring import score_item

    found = score_item("stated_choice", said, ["The correct answer is (B)"])
    assert (found.parts["right"], found.parts["answered"]) == parts


@pytest.mark.parametrize(
    ("task", "name", "row", "words"),
    [
        (
            "infinitebench/math_find",
            "math_find.jsonl",
            {"context": "c", "input": "?", "answer": 1},
            "asks for no number",
        ),
        (
            "infinitebench/code_run",
            "code_run.jsonl",
            {"context": "c", "input": "?", "answer": 1},
            "calls no function",
        ),
        ("infinitebench/passkey", "passkey.jsonl", {"context": "c", "input": "?", "answer": []}, "answer is"),
        (
            "babilong/qa1",
            "qa1_4k.jsonl",
            {"input": "c", "question": "?", "target": "attic"},
            "none of bathroom",
        ),
        (
            "longbench_v2/all",
            "longbench_v2.jsonl",
            {"context": "c", "question": "q"},
            "'choice_A' is missing",
        ),
    ],
)
def test_a_row_of_another_shape_is_told_with_its_line(
    tmp_path: Path, make_tokenizer: MakeTokenizer, task: str, name: str, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(BenchmarkError, match=f"line 1.*{words}"):
        load_items(TaskSpec(task, data=write(tmp_path, name, row)), make_tokenizer())


@pytest.mark.parametrize("task", ["longbook_choice_eng", "code_debug"])
@pytest.mark.parametrize("answer", ["Totty", ["Totty"], ["Totty", "B"]])
def test_an_option_is_right_by_its_letter_too(
    tmp_path: Path, make_tokenizer: MakeTokenizer, task: str, answer: Any
) -> None:
    row = {"context": "c", "input": "Who?", "answer": answer, "options": ["Ann", "Totty", "Cy", "Di"]}
    (item,) = load_items(
        TaskSpec(f"infinitebench/{task}", data=write(tmp_path, f"{task}.jsonl", row)), make_tokenizer()
    )
    assert item.answers == ("Totty", "B") and score(item.metric, "B. Totty", item.answers) == 1
