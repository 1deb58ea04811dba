"""GSM8K, MATH-500 and AIME: real problems become items without a context, and recorded runs score as they were flagged."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec
from evaluators.benchmarks.reasoning.reasoning import REQUEST, TASKS, worked_examples
from evaluators.registry import load_items
from evaluators.scoring import score, score_item
from tests.evaluators.conftest import MakeTokenizer

ROWS = {
    "gsm8k": {"question": "How many?", "answer": "3 + 4 = <<3+4=7>>7 eggs\n#### 7"},
    "math500": {"problem": "What is $x$?", "answer": "\\frac{1}{2}", "solution": "So \\boxed{\\frac12}.", "level": 2},
    "aime24": {"problem": "Find it.", "answer": "055", "solution": "It is \\boxed{\\textbf{(55) }}"},
    "aime25": {"question": "Find it.", "answer": 70},
}  # fmt: skip


def recorded(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


@pytest.mark.parametrize("task", TASKS)
def test_a_problem_is_an_item_whose_own_solution_is_right(
    tmp_path: Path, make_tokenizer: MakeTokenizer, task: str
) -> None:
    row = ROWS[task.partition("_")[0]]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(row | {"answer": "#### 9"}))
    (item,) = load_items(TaskSpec(f"reasoning/{task}", data=str(path), limit=1), make_tokenizer())
    asked = row.get("problem") or row["question"]
    if task == "gsm8k_cot":
        assert item.context == worked_examples(8) and item.context.count("The answer is") == 8
        assert item.after_context == f"Q: {asked}\nA:" and item.stop_at_newline and not item.use_chat_template
    else:
        assert item.is_context_free and item.prompt_text == f"{asked}\n\n{REQUEST}"
        assert item.use_chat_template and not item.stop_at_newline
    assert "<<" not in item.answers[0]
    said = "So 7. The answer is 7. Q: And 8? A: The answer is 8." if task == "gsm8k_cot" else item.answers[0]
    assert score_item(item.metric, said, item.answers).parts == {"right": 1, "answered": 1}
    assert score_item(item.metric, "I do not know.", item.answers).parts == {"right": 0, "answered": 0}


def test_a_problem_that_states_no_answer_or_has_no_commit_is_told(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "How many?", "answer": "many"}))
    with pytest.raises(
        BenchmarkError, match=r"line 1: the solution 'many' states no answer that final_number"
    ):
        load_items(TaskSpec("reasoning/gsm8k", data=str(tmp_path / "rows.jsonl")), make_tokenizer())
    with pytest.raises(
        BenchmarkError, match=r"no commit of HuggingFaceH4/aime_2024 is known.*give `revision`"
    ):
        load_items(TaskSpec("reasoning/aime24"), make_tokenizer())


def test_every_recorded_flag_of_gsm8k_is_given_again(shared_data: Path) -> None:
    path = shared_data / "more" / "gsm8k" / "example_model_solutions.jsonl.gz"
    right: dict[str, list[bool]] = {}
    for row in recorded(path):
        gold = row["ground_truth"].replace("\nA: ", "\n#### ")  # as in the official file
        for run, told in row.items():
            if isinstance(told, dict):
                is_right = score("final_number", told["solution"], [gold]) == 1
                assert is_right == told["is_correct"], (run, told["solution"])
                right.setdefault(run, []).append(is_right)
    percent = {run: round(100 * sum(flags) / len(flags), 2) for run, flags in right.items()}
    assert percent == {
        "6b_finetuning": 21.68, "6b_verification": 39.04, "175b_finetuning": 34.72, "175b_verification": 56.25,
    }  # fmt: skip
    assert sum(map(len, right.values())) == 5276


def test_every_gold_solution_of_math500_and_aime24_is_right(
    shared_data: Path, make_tokenizer: MakeTokenizer
) -> None:
    folder = shared_data / "more" / "math500_aime24"
    for row in recorded(folder / "math500.jsonl.gz"):
        for metric in ("boxed_math", "boxed_math_value"):
            assert score(metric, row["solution"], [row["answer"]]) == 1, row["unique_id"]
            assert score(metric, row["solution"], [f"{row['answer']}+1"]) == 0
    items = load_items(TaskSpec("reasoning/aime24", data=str(folder)), make_tokenizer())
    assert len(items) == 30
    answers = [row["answer"] for row in recorded(folder / "aime24.jsonl.gz")]
    assert all(
        score("boxed_integer", f"\\boxed{{{int(it)}}}", item.answers)
        for it, item in zip(answers, items, strict=True)
    )
    assert len(load_items(TaskSpec("reasoning/math500", data=str(folder)), make_tokenizer())) == 500
    gsm8k = TaskSpec("reasoning/gsm8k", data=str(shared_data / "more" / "gsm8k"))
    assert len(load_items(gsm8k, make_tokenizer())) == 1319
