"""Published figures stand beside ours only where model, mode, task, policy and budget are the same."""

import json
import random
import re
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from jobs.analysis.folder.findings import Findings
from jobs.analysis.published_beside import PublishedBeside, published_beside
from jobs.analysis.summary import ResultSummary, summarize
from jobs.reporting.notation import shown_task
from jobs.reporting.page import render_page
from jobs.reporting.terminal import render
from jobs.results.schema import FAILED, RESULT_SCHEMA, Row
from jobs.settings.schema import DEMO_CONFIG, load_settings
from kvmerger.variants import FULL
from tests.fakes.rows import make_sweep_rows

LLAMA = "meta-llama/Llama-2-7b-chat-hf"
KEPT = {"h2o_decode@0.5": 0.5, "cam@0.35": 0.35, "kvmerger_paper[0.17+0.12]": 0.515}
NUM_ITEMS = 3


def rows_of(name: str = "kvmerger_longbench", **values: Any) -> list[Row]:
    """Made-up rows of a shipped configuration, three items of each task."""
    settings = load_settings(DEMO_CONFIG.parent / f"{name}.yaml")
    specs = {it.label: it for it in settings.variants if it.label in KEPT}
    rows = make_sweep_rows(
        random.Random(7),
        KEPT,
        [it.name for it in settings.tasks],
        NUM_ITEMS,
        query_mode="query_aware",
        model=LLAMA,
    )
    for row in rows:
        spec = specs.get(row["variant"])
        if spec is not None:
            budget = json.dumps(spec.canonical()["budget"])
            row |= {"policy": spec.policy, "policy_params": "{}", "budget_asked": budget}
    return [row | values for row in rows]


def summary_of(rows: list[Row]) -> ResultSummary:
    return summarize(rows)


def beside(rows: list[Row]) -> list[PublishedBeside]:
    summary = summary_of(rows)
    return [it for setting in summary.settings() for it in published_beside(summary, setting)]


def places(rows: list[Row]) -> list[tuple[str, str, float, float | None]]:
    return [
        (it.label, shown_task(it), it.published, it.budget) for found in beside(rows) for it in found.figures
    ]


def test_every_confirmed_figure_of_a_variant_we_have_is_shown_with_ours() -> None:
    rows = rows_of()
    (found,) = beside(rows)
    assert len(found.figures) == 3 + 2 + 10  # full, H2O and KVMerger at 50 %; there is none of CaM
    assert (FULL, "longbench/2wikimqa", 31.45, None) in places(rows)
    assert ("h2o_decode@0.5", "mean of the 9 tasks", 34.0, 0.5) in places(rows)
    for it in found.figures:
        own = [
            row["score"]
            for row in rows
            if row["variant"] == it.label
            and (f"{row['benchmark']}/{row['task']}" == it.task or it.task is None)
        ]
        assert it.ours == pytest.approx(100 * sum(own) / len(own))  # every task has as many items
        assert it.num_items == len(own)
        assert it.kept_ratio == pytest.approx(KEPT.get(it.label, 1.0))


@pytest.mark.parametrize("model", ["NousResearch/llama-2-7B-chat-hf", "/models/Llama-2-7b-chat-hf/"])
def test_a_copy_of_the_model_is_known_by_the_last_part_of_its_name(model: str) -> None:
    assert len(places(rows_of(model=model))) == 15


@pytest.mark.parametrize(
    "values",
    [
        {"model": "meta-llama/Llama-2-13b-chat-hf"},
        {"model": "meta-llama/Llama-2-7b-hf"},
        {"model": "demo"},
        {"query_mode": "query_agnostic"},
        {"benchmark": "longbench-e"},
    ],
)
def test_another_model_mode_or_benchmark_has_none(values: Row) -> None:
    assert beside(rows_of(**values)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"budget_asked": '{"kept_ratio": 0.4}'},
        {"budget_asked": '{"slots": 512}'},
        {"budget_asked": "null"},
        {"policy_params": '{"epsilon": 0.8}'},
        {"policy": "kvmerger"},
    ],
)
def test_another_policy_budget_or_parameter_has_none(changes: Row) -> None:
    label = "kvmerger_paper[0.17+0.12]"
    rows = [row | changes if row["variant"] == label else row for row in rows_of()]
    assert {it[0] for it in places(rows)} == {FULL, "h2o_decode@0.5"}


def test_h2o_at_the_end_of_the_prompt_alone_is_not_the_papers() -> None:
    rows = [row | {"policy": "h2o"} if row["policy"] == "h2o+h2o_decode" else row for row in rows_of()]
    assert "h2o_decode@0.5" not in {it[0] for it in places(rows)}


def test_a_mean_needs_every_task_of_the_table() -> None:
    rows = [row for row in rows_of() if row["task"] != "trec"]
    assert not any("mean" in task for _, task, _, _ in places(rows))
    assert len(places(rows)) == 15 - 2 - 1  # both means, and KVMerger on trec


def test_a_mean_is_of_the_tables_tasks_alone() -> None:
    rows = rows_of()
    more = [
        row
        | {
            "task": "hotpotqa",
            "score": 0.0,
            "identity": row["identity"] + "h",
            "item_id": row["item_id"] + "h",
        }
        for row in rows
        if row["task"] == "qasper"
    ]
    means = [
        [it.ours for found in beside(own) for it in found.figures if it.task is None]
        for own in (rows, [*rows, *more])
    ]
    assert means[0] == means[1] and len(means[0]) == 2


def test_a_task_without_a_score_is_left_out_and_failed_items_are_not_counted() -> None:
    failed = {"status": FAILED, "failure_phase": "engine", "failure_type": "E", "score": None}
    rows = [
        row | failed if row["task"] == "2wikimqa" or row["item_id"].endswith("trec/0") else row
        for row in rows_of()
    ]
    (found,) = beside(rows)
    assert "longbench/2wikimqa" not in {it.task for it in found.figures}
    assert {it.num_items for it in found.figures if it.task == "longbench/trec"} == {NUM_ITEMS - 1}


def test_mistral_is_told_to_have_no_version_in_the_paper() -> None:
    (found,) = beside(rows_of(model="mistralai/Mistral-7B-Instruct-v0.2"))
    assert any("no version" in it for it in found.differs) and "v0.2" in found.our_model
    assert ("cam@0.35", "mean of the 9 tasks", 28.27, 0.35) in places(rows_of(model=found.our_model))


def test_zeroscrolls_has_means_alone() -> None:
    rows = rows_of("kvmerger_zeroscrolls")
    assert {task for _, task, _, _ in places(rows)} == {"mean of the 7 tasks"}


def text_of(rows: list[Row], width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(render(summary_of(rows), width))
    return captured.get()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_terminal_shows_both_numbers_the_mark_and_what_differs(width: int) -> None:
    text = text_of(rows_of(), width)
    (line,) = (it for it in text.splitlines() if re.search(r"\b7\.33 \[S\]", it))
    assert "51.5%" in line and line.rstrip().endswith("50%")
    assert "reviews of the paper" in text and "its exact limit" in text
    assert max(map(len, text.splitlines())) <= width


def test_the_other_tables_do_not_know_of_it() -> None:
    """A published figure changes no mean: all but the table itself is what it is for an unknown model."""
    own, other = (text_of(rows_of(model=name), 140) for name in (LLAMA, "x/Llama-9-7b-chat-hf"))
    start = own.index("published beside ours")
    end = own.index("variants by answer NLL")
    assert (own[:start] + own[end:]).replace("meta-llama/Llama-2", "x/Llama-9").split() == other.split()
    assert "published" not in other


def test_the_page_has_it_for_this_model_alone() -> None:
    def page(rows: list[Row]) -> str:
        return render_page(Findings.of(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA))).html

    own = page(
        [row for row in rows_of() if row["task"] == "passage_retrieval_en"]
    )  # one task is drawn, not nine
    assert "Published figures beside ours" in own and "7.33 [S]" in own and "reviews of the paper" in own
    assert "Published figures" not in page(rows_of(model="demo")[:30])
