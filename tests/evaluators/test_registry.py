"""Names lead to what is registered, and a wrong name to the nearest right one."""

from __future__ import annotations

import pytest

from evaluators.benchmark import BenchmarkError, TaskSpec, UnknownNameError
from evaluators.registry import describe_tasks, list_tasks, load_items
from evaluators.scoring import score, scorer_details
from tests.evaluators.conftest import MakeTokenizer


def test_the_promised_tasks_are_there() -> None:
    promised = {"longbench/qasper", "longbench/hotpotqa", "longbench/trec", "ruler/niah_single_2"}
    assert promised <= set(list_tasks())


def test_every_task_is_described_in_order() -> None:
    assert [info.name for info in describe_tasks()] == list_tasks()


def test_a_metric_names_the_backend_its_scores_depend_on() -> None:
    assert scorer_details("code_sim") == "difflib"
    assert scorer_details("qa_f1") == ""


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("longbench/qaspr", "longbench/qasper"), ("rulr/niah_single_2", "ruler/niah_single_2")],
)
def test_unknown_task_names_the_nearest(make_tokenizer: MakeTokenizer, wrong: str, right: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"{wrong}.*Did you mean '{right}'"):
        load_items(TaskSpec(wrong), make_tokenizer())


def test_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"qaf1.*Did you mean 'qa_f1'"):
        score("qaf1", "a", ["a"])


@pytest.mark.parametrize("name", ["qasper", "", "longbench/", "/qasper", "longbench/qasper/extra"])
def test_a_name_that_is_not_benchmark_slash_task_is_refused(name: str) -> None:
    with pytest.raises(BenchmarkError, match="longbench/qasper"):
        TaskSpec(name)


@pytest.mark.parametrize("option", ["limit", "length", "max_new_tokens"])
def test_counts_below_one_are_refused(option: str) -> None:
    with pytest.raises(BenchmarkError, match=f"{option} is 0"):
        TaskSpec("longbench/qasper", **{option: 0})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("longbench/qasper", {"length": 1024}),
        ("longbench/qasper", {"haystack": "essays.txt"}),
        ("longbench/qasper", {"data": ".", "revision": "main"}),
        ("ruler/niah_single_2", {"data": "."}),
        ("ruler/niah_single_2", {"revision": "main"}),
        ("ruler/niah_single_1", {"haystack": "essays.txt"}),
        ("ruler/cwe", {"haystack": "essays.txt"}),
        ("ruler/vt", {"data": "."}),
        ("ruler/qa_1", {"haystack": "essays.txt"}),
    ],
)
def test_an_option_without_effect_is_refused(
    make_tokenizer: MakeTokenizer, name: str, options: dict[str, str | int]
) -> None:
    with pytest.raises(BenchmarkError, match="has no effect here"):
        load_items(TaskSpec(name, **options), make_tokenizer())  # type: ignore[arg-type]
