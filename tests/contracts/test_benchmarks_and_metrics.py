"""Every registered benchmark task and metric passes these by being registered; a new one adds a line of cases."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.benchmark import TaskSpec
from evaluators.item import BenchmarkItem
from evaluators.prompting import PromptError, QueryMode, Tokenizer, tokenize_item
from evaluators.registry import describe_tasks, list_tasks, load_items
from evaluators.scoring import MetricError, can_score, list_metrics, score
from tests.evaluators.conftest import CASES, CHAT_TEMPLATE, MakeTokenizer

TASKS: dict[str, dict[str, Any]] = json.loads((CASES / "tasks.json").read_text())
METRIC_CASES = [
    pytest.param(name, case, id=f"{name}: {case['why']}")
    for name in list_metrics()
    for case in json.loads((CASES / "metrics" / f"{name}.json").read_text())
]
ANY_TEXT = (
    st.text() | st.text(alphabet=" .,!?-—\n\t\x00") | st.sampled_from(["", "the", "\ud800", "a\u2028b"])
)

NEVER_RIGHT = [
    ("qa_f1", "A"),
    ("qa_f1", "%"),
    ("qa_f1_first_line", "the"),
    ("qa_f1_zh", "，"),  # noqa: RUF001 - full-width on purpose
    ("string_match_all", " Paris"),  # predictions are stripped
    ("string_match_part", "a\tb"),  # and their control characters replaced
    ("rouge", "..."),
    ("rouge_zh", "."),
    ("rouge_geometric_mean", "?"),
    ("classification", "no such class"),
    ("multiple_choice", "E"),
    ("retrieval", "7"),
    ("retrieval_zh", "Paragraph 7"),
    ("count", "seven"),
    ("exp_similarity", "12"),
    ("concordance_index", "none"),
    ("code_sim", "# a comment"),
]


# Some metrics want all answers, one the letter of an option with a full stop.
OWN: dict[str, Callable[[Sequence[str]], str]] = {
    "string_match_all": " ".join,
    "share_found": " ".join,
    "code_choice": lambda answers: f"{answers[-1]}.",
}
# An answer's place says what it is.
ORDERED = {"masked_name", "code_choice"}


def spec_of(task: str) -> TaskSpec:
    options = dict(TASKS[task])
    if "data" in options:
        options["data"] = str(CASES / options["data"])
    return TaskSpec(task, **options)


# Items are frozen, so all tests of a task share them.
@pytest.fixture(scope="module", params=list_tasks())
def spec(request: pytest.FixtureRequest) -> TaskSpec:
    return spec_of(request.param)


@pytest.fixture(scope="module")
def items(spec: TaskSpec, make_tokenizer: MakeTokenizer) -> list[BenchmarkItem]:
    return load_items(spec, make_tokenizer(chat_template=CHAT_TEMPLATE))


def test_item_says_where_it_comes_from(spec: TaskSpec, items: list[BenchmarkItem]) -> None:
    for item in items:
        # What sets results apart comes before the task: a length in tokens, a bucket of lengths in words.
        *group, task = item.task.removesuffix(f"/{_kind(item)}").split("/")
        assert (item.benchmark, task) == (spec.benchmark, spec.task)
        assert group == [str(spec.length)] if spec.length else len(group) <= 1
        assert item.item_id.startswith(spec.name + "/")


def _kind(item: BenchmarkItem) -> str:
    """Of a task whose questions are of two kinds, a measure each, this one's."""
    return item.task.rpartition("/")[2] if "_with_" in item.task else ""


def test_loading_twice_gives_equal_items(
    spec: TaskSpec, items: list[BenchmarkItem], make_tokenizer: MakeTokenizer
) -> None:
    assert load_items(spec, make_tokenizer(chat_template=CHAT_TEMPLATE)) == items


def test_limit_keeps_the_first_items(
    spec: TaskSpec, items: list[BenchmarkItem], make_tokenizer: MakeTokenizer
) -> None:
    first = load_items(replace(spec, limit=1), make_tokenizer(chat_template=CHAT_TEMPLATE))
    assert first == items[:1]


def test_max_new_tokens_of_the_spec_wins(spec: TaskSpec, make_tokenizer: MakeTokenizer) -> None:
    assert load_items(replace(spec, max_new_tokens=7), make_tokenizer())[0].max_new_tokens == 7


def test_item_can_be_scored_and_its_own_answer_is_right(items: list[BenchmarkItem]) -> None:
    for item in items:
        # ROUGE stays 5e-9 under 1.
        own = OWN.get(item.metric, lambda answers: answers[0])(item.answers)
        assert score(item.metric, own, item.answers, item.all_classes) == pytest.approx(1.0, abs=1e-8)


def test_items_share_a_cluster_exactly_when_they_share_a_context(items: list[BenchmarkItem]) -> None:
    for one in items:
        for other in items:
            if not one.context or one.benchmark == "reasoning":  # it is problems that are drawn
                assert (one.cluster_id == other.cluster_id) == (one.item_id == other.item_id)
                continue
            assert (one.cluster_id == other.cluster_id) == (one.context == other.context)


@pytest.mark.parametrize("chat_template", [None, CHAT_TEMPLATE], ids=["plain", "chat"])
@pytest.mark.parametrize("adds_bos", [False, True], ids=["no_bos", "bos"])
def test_item_becomes_a_sound_prompt_with_gold(
    items: list[BenchmarkItem], make_tokenizer: MakeTokenizer, adds_bos: bool, chat_template: str | None
) -> None:
    tokenizer = make_tokenizer(adds_bos=adds_bos, chat_template=chat_template)
    for item in items:
        if item.follow_ups:
            _check_conversation(item, tokenizer)
            continue
        aware, agnostic = (tokenize_item(item, tokenizer, mode, 10_000) for mode in QueryMode)
        assert aware.context_ids + aware.tail_ids == agnostic.context_ids + agnostic.tail_ids
        ids = agnostic.context_ids + agnostic.tail_ids
        question_ids = ids if item.is_context_free else agnostic.tail_ids
        assert item.after_context in tokenizer.decode(question_ids)
        assert item.answers[0].strip() == tokenizer.decode(aware.gold_ids).strip()


def _check_conversation(item: BenchmarkItem, tokenizer: Tokenizer) -> None:
    """No policy can have seen its later questions, the last of which is the one with the gold answer."""
    with pytest.raises(PromptError, match="query_agnostic"):
        tokenize_item(item, tokenizer, QueryMode.AWARE, 10_000)
    talk = tokenize_item(item, tokenizer, QueryMode.AGNOSTIC, 10_000)
    tails = [*(turn.tail_ids for turn in talk.earlier), talk.tail_ids]
    asked = [item.after_context, *(follow_up.text for follow_up in item.follow_ups)]
    for question, tail_ids in zip(asked, tails, strict=True):
        assert question.strip() in tokenizer.decode(tail_ids)
    assert item.answers[0].strip() == tokenizer.decode(talk.gold_ids).strip()


def test_task_is_described_as_its_items_are_scored(spec: TaskSpec, items: list[BenchmarkItem]) -> None:
    (info,) = [info for info in describe_tasks() if info.name == spec.name]
    assert {item.metric for item in items if _kind(item) != "passkey"} == {info.metric}
    assert info.about and info.source


@pytest.mark.parametrize(("metric", "case"), METRIC_CASES)
def test_metric_gives_the_score_of_the_case(metric: str, case: dict[str, Any]) -> None:
    got = score(metric, case["prediction"], case["answers"], case.get("all_classes", ()))
    assert got == pytest.approx(case["score"], abs=1e-12)


@pytest.mark.parametrize("metric", list_metrics())
@given(prediction=ANY_TEXT, answers=st.lists(ANY_TEXT, min_size=1), classes=st.lists(ANY_TEXT))
def test_metric_stays_between_0_and_1(
    metric: str, prediction: str, answers: list[str], classes: list[str]
) -> None:
    got = score(metric, prediction, answers, classes)
    assert isinstance(got, float)
    assert 0.0 <= got <= 1.0


@pytest.mark.parametrize("metric", list_metrics())
@given(prediction=ANY_TEXT, answers=st.lists(ANY_TEXT, min_size=1), classes=st.lists(ANY_TEXT))
def test_metric_ignores_the_order_of_answers(
    metric: str, prediction: str, answers: list[str], classes: list[str]
) -> None:
    if metric not in ORDERED:
        assert score(metric, prediction, answers, classes) == score(
            metric, prediction, answers[::-1], classes
        )


@pytest.mark.parametrize("metric", list_metrics())
@pytest.mark.parametrize("prediction", ["", " ", "\n\n", "…!?.,;"])
def test_metric_gives_nothing_for_an_answer_without_words(metric: str, prediction: str) -> None:
    assert score(metric, prediction, ["1234567"], ["1234567", "date"]) == 0.0


@pytest.mark.parametrize("metric", list_metrics())
def test_metric_says_of_an_answer_that_it_can_be_right(metric: str) -> None:
    cases = json.loads((CASES / "metrics" / f"{metric}.json").read_text())
    right = [case for case in cases if case["score"] > 0]
    assert right
    for case in right:
        classes = case.get("all_classes", ())
        assert metric == "code_choice" or any(
            can_score(metric, answer, classes) for answer in case["answers"]
        )


@pytest.mark.parametrize(("metric", "answer"), NEVER_RIGHT)
def test_metric_says_of_an_answer_that_it_can_never_be_right(metric: str, answer: str) -> None:
    assert not can_score(metric, answer, ["another class"])


@pytest.mark.parametrize("metric", list_metrics())
def test_metric_refuses_to_score_against_no_answer(metric: str) -> None:
    with pytest.raises(MetricError, match="no answer"):
        score(metric, "anything", [])
