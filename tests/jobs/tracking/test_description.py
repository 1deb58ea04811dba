"""A run's page opens with the answer, whole lines of it, and never with more than a tag may hold."""

from __future__ import annotations

import random
import re

import pytest

from jobs.analysis.differences import Difference, differences_to_full
from jobs.analysis.summary import ResultSummary, summarize
from jobs.reporting.headline import headline
from jobs.tracking.description import MAX_CHARS, summary_text, sweep_description, variant_description
from jobs.tracking.mlflow_runs import view_key
from jobs.tracking.tracker import EXPERIMENT_ID, RUN_ID, VIEW, WORKSPACE
from tests.fakes.rows import make_sweep_rows

Summed = tuple[ResultSummary, tuple[Difference, ...]]


def summed(seed: int, policies: dict[str, float], tasks: list[str], num_items: int) -> Summed:
    rows = make_sweep_rows(random.Random(seed), policies, tasks, num_items)
    return summarize(rows), differences_to_full(rows)


def names_in(text: str) -> list[str]:
    """The first cells of the first table, without the gap behind them."""
    table = text.split("\n\n")[1]
    return [line.split("|")[1].rstrip("\u00a0\u2060") for line in lines_of(table)[2:]]


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def test_it_opens_with_the_links_and_the_table_and_then_the_reports_verdict(seed: int) -> None:
    summary, differences = summed(seed, {"snapkv@0.2": 0.2}, ["longbench/qasper"], 60)
    text = sweep_description(
        "night", "facts", summary, differences, ["a b.svg"], headline(summary, differences)
    )
    links, table, verdict, facts, *_ = text.split("\n\n")
    assert f"#/experiments/{EXPERIMENT_ID}/runs?viewStateShareKey={VIEW}&{WORKSPACE})" in links
    assert "artifacts/report.html?" in links and "**longbench/qasper**" in links
    assert table.startswith("|variant") and verdict == f"**{headline(summary, differences)[0]}**"
    assert facts.startswith("**night**: facts. Planned ")
    assert "get-artifact?path=figures%2Fa%20b.svg&run_uuid={run_id}" in text
    assert names_in(text) == ["full cache", "snapkv@0.2", "full again (A/A noise)", "no context (tail alone)"]
    assert "NLL\u00a0▼" in lines_of(text)[3]  # 60 contexts and a large loss


def test_the_policies_stand_in_the_order_of_their_nll(seed: int) -> None:
    policies = {"worst@0.1": 0.1, "best@0.9": 0.9, "middle@0.5": 0.5}
    for tasks in (["longbench/qasper"], ["longbench/qasper", "ruler/vt"]):
        summary, differences = summed(seed, policies, tasks, 60)
        text = sweep_description("n", "f", summary, differences, [], headline(summary, differences))
        assert names_in(text)[:4] == ["full cache", "best@0.9", "middle@0.5", "worst@0.1"]


def test_every_line_of_a_table_has_as_many_cells_as_its_head(seed: int) -> None:
    for num_items in (3, 60):
        summary, differences = summed(seed, {"a_b@0.5": 0.5, "x|y@0.2": 0.2}, ["longbench/qasper"], num_items)
        text = sweep_description("n", "f", summary, differences, [], headline(summary, differences))
        assert len({line.count("|") for line in lines_of(text)}) == 1
        assert "a\\_b@0.5" in text and "x&#124;y" in text


def test_several_tasks_open_with_their_mean(seed: int) -> None:
    summary, differences = summed(seed, {"snapkv@0.5": 0.5}, ["longbench/qasper", "ruler/vt"], 5)
    text = sweep_description("n", "f", summary, differences, [], headline(summary, differences))
    assert text.index("mean of 2 tasks") < text.index("**longbench/qasper**") < text.index("**ruler/vt**")


@pytest.mark.parametrize(("num_policies", "num_tasks"), [(1, 40), (60, 1), (60, 12)])
def test_a_large_sweep_fits_and_says_where_the_rest_is(seed: int, num_policies: int, num_tasks: int) -> None:
    policies = {f"a_rather_long_policy_{index}@0.5": 0.5 for index in range(num_policies)}
    summary, differences = summed(seed, policies, [f"longbench/task{it}" for it in range(num_tasks)], 2)
    text = sweep_description(
        "n" * 50, "f" * 200, summary, differences, ["a.svg", "b.svg"], headline(summary, differences)
    )
    for place, num_chars in ((RUN_ID, 32), (EXPERIMENT_ID, 18), (VIEW, len(view_key("any")))):
        text = text.replace(place, "0" * num_chars)
    assert len(text) <= MAX_CHARS
    assert re.search(r"… and \d+ more (rows|tables) in `summary.md`", text) and "report.html" in text
    assert all(len(variant_description(label, summary, differences)) <= MAX_CHARS for label in policies)


def test_a_variants_page_has_its_line_of_every_task(seed: int) -> None:
    summary, differences = summed(seed, {"snapkv@0.5": 0.5}, ["longbench/qasper", "ruler/vt"], 5)
    lines = lines_of(variant_description("snapkv@0.5", summary, differences))
    assert [line.split("|")[1].rstrip("\u00a0\u2060") for line in lines[2:]] == [
        "longbench/qasper",
        "ruler/vt",
    ]


def test_a_sweep_without_rows_says_so() -> None:
    summary = summarize([])
    text = sweep_description("n", "no row has been stored", summary, (), [], headline(summary, ()))
    assert "Nothing can be said yet" in text and not lines_of(text)


def test_summary_md_holds_the_whole_table(seed: int) -> None:
    summary, differences = summed(seed, {"snapkv@0.5": 0.5}, ["longbench/qasper"], 5)
    text = summary_text("night", "facts", headline(summary, differences), "the table\n")
    assert text.startswith("# night\n\nfacts\n\n") and text.endswith("```\nthe table\n```\n")
