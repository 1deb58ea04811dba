"""A panel holds each variant at the memory it measured, and only what is known."""

import random
import re

import pytest

from jobs.analysis.summary import series_names, summarize
from jobs.reporting.figures.quality import dodged, draw
from jobs.reporting.figures.quality_panel import (
    NLL,
    RECOVERED,
    SCORE,
    QualityPanel,
    beyond,
    macro_panel,
    shown_range,
    task_panel,
)
from jobs.reporting.figures.style import series_styles
from jobs.reporting.notation import shown_label
from jobs.results.schema import Row
from tests.fakes.rows import INT4, FakeForm, make_sweep_rows, with_forms

POLICIES = {"a@0.75": 0.75, "a@0.25": 0.25, "b@0.5": 0.5}


@pytest.fixture
def rows(seed: int) -> list[Row]:
    return make_sweep_rows(random.Random(seed), POLICIES, ["b/t", "b/u"], 5)


def test_a_policy_is_one_line_over_its_budgets_in_ascending_memory(rows: list[Row]) -> None:
    panel = task_panel(summarize(rows).tasks[0], NLL, shown_label)
    assert panel is not None
    assert {name: [point.held_percent for point in line] for name, line in panel.lines.items()} == {
        "a": [25.0, 75.0],
        "b": [50.0],
    }
    assert list(panel.references) == ["full", "full_aa", "no_context"]


def test_points_are_the_tables_means_and_ends(rows: list[Row]) -> None:
    task = summarize(rows).tasks[0]
    panel = task_panel(task, NLL, shown_label)
    assert panel is not None
    (point,) = panel.lines["b"]
    interval = next(it.answer_nll for it in task.variants if it.label == "b@0.5")
    assert interval is not None and interval.low is not None
    assert (point.mean, point.low, point.high) == (interval.mean, max(interval.low, 0.0), interval.high)


def test_scores_stay_between_0_and_100(rows: list[Row]) -> None:
    panel = task_panel(summarize(rows).tasks[0], SCORE, shown_label)
    assert panel is not None
    points = [point for line in panel.lines.values() for point in line]
    assert all(0 <= (point.low or 0) <= point.mean <= (point.high or 100) <= 100 for point in points)


def test_a_task_without_the_number_has_no_panel(rows: list[Row]) -> None:
    task = summarize([row | {"answer_nll": None} for row in rows]).tasks[0]
    assert task_panel(task, NLL, shown_label) is None


def test_one_task_has_no_mean_over_tasks(rows: list[Row]) -> None:
    summary = summarize(rows)
    means = summary.macro_means(summary.settings()[0])
    assert macro_panel(summary.tasks, means, RECOVERED, {}, shown_label) is not None
    assert macro_panel(summary.tasks[:1], means, RECOVERED, {}, shown_label) is None


def test_the_drawing_keeps_text_as_text_and_takes_its_colors_from_the_page(rows: list[Row]) -> None:
    summary = summarize(rows)
    panel = task_panel(summary.tasks[0], NLL, shown_label)
    assert panel is not None
    svg = str(draw(panel, series_styles(series_names(summary.tasks)), "x"))
    assert ">full cache</text>" in svg and "var(--series-0)" in svg and "var(--ink)" in svg
    assert re.findall(r"(?:fill|stroke): #", svg) == []
    assert "a@0.25" in svg[: svg.index("</desc>")]


def test_policies_of_one_budget_stand_by_name_with_the_best_on_top(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.5": 0.5, "c@0.5": 0.5}, ["b/t"], 5)
    summary = summarize(rows)
    panel = task_panel(summary.tasks[0], NLL, shown_label)
    assert panel is not None
    svg = str(draw(panel, series_styles(series_names(summary.tasks)), "x"))
    shown = re.findall(r">([abc]) \(50\.0 %\)</text>", svg)  # from the bottom to the top
    means = {name: line[0].mean for name, line in panel.lines.items()}
    assert shown == sorted(means, key=lambda name: -means[name])


def panel_of(seed: int, policies: dict[str, float], forms: dict[str, FakeForm]) -> QualityPanel:
    rows = with_forms(make_sweep_rows(random.Random(seed), policies, ["b/t"], 5), forms)
    panel = task_panel(summarize(rows).tasks[0], NLL, shown_label)
    assert panel is not None
    return panel


def svg_of(panel: QualityPanel) -> str:
    return str(draw(panel, series_styles(panel.lines), "x"))


def test_the_axis_is_bytes_and_slots_stand_in_the_words(seed: int) -> None:
    panel = panel_of(seed, {"a@0.5": 0.5, "a@0.5+int4": 0.5, "int4": 1.0}, {"a@0.5+int4": INT4, "int4": INT4})
    held = {name: round(line[0].held_percent, 1) for name, line in panel.lines.items()}
    assert held == {"a": 50.0, "a+int4": 14.1, "int4": 28.1}
    assert "at 14.1 % of the bytes, 50.0 % of the slots" in panel.description
    assert "at 50.0 % of the bytes;" in panel.description
    svg = svg_of(panel)
    assert "bytes of K/V held, measured" in svg and not re.search(r">int4 \(", svg)


def test_policies_of_about_the_same_bytes_stand_by_name_whatever_their_slots(seed: int) -> None:
    policies = {"a@0.28": 0.28, "int4": 1.0}
    assert ">int4 (28.1 %)</text>" in svg_of(panel_of(seed, policies, {"int4": INT4}))


def test_only_points_that_would_hide_each_other_leave_their_place(seed: int) -> None:
    policies = {"a@0.5": 0.5, "b@0.5": 0.5, "c@0.3": 0.3, "d@0.75": 0.75, "d@0.5": 0.5}
    shifts = dodged(panel_of(seed, policies, {}))
    assert shifts["c@0.3"] == shifts["d@0.75"] == 0
    crowd = [shifts[label] for label in ("a@0.5", "b@0.5", "d@0.5")]
    assert crowd == sorted(crowd) and sum(crowd) == pytest.approx(0) and crowd[0] < 0 < crowd[-1]


def test_a_form_larger_than_what_it_stands_for_is_drawn_where_it_is(seed: int) -> None:
    large = FakeForm("mine", 16.0, 16.0, 1.5)
    panel = panel_of(seed, {"mine": 1.0, "a@0.5": 0.5}, {"mine": large})
    assert panel.lines["mine"][0].held_percent == pytest.approx(150)
    assert ">150</text>" in svg_of(panel) or ">140</text>" in svg_of(panel)


@pytest.mark.parametrize("measure", [NLL, RECOVERED])
def test_what_lies_beyond_the_axis_stands_at_its_edge_with_its_number(measure: str, seed: int) -> None:
    far = {**POLICIES, "c@0.6": 0.6}
    rows = make_sweep_rows(random.Random(seed), far, ["b/t", "b/u"], 5)
    rows = [row | {"answer_nll": row["answer_nll"] + 40 * (row["variant"] == "c@0.6")} for row in rows]
    summary = summarize(rows)
    means = summary.macro_means(summary.settings()[0])
    panel = macro_panel(summary.tasks, means, measure, {}, shown_label)
    assert panel is not None
    (point,) = beyond(panel)
    low, high = shown_range(panel)
    assert point.label == "c@0.6" and high - low < 10
    svg = draw(panel, series_styles(series_names(summary.tasks)), "a")
    assert f"{'↑' if measure == NLL else '↓'} {point.mean:.3g}<" in svg


def test_a_policy_of_one_budget_beyond_the_axis_has_its_number_in_its_row(seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b@0.5": 0.5, "c@0.5": 0.5}, ["b/t"], 5)
    rows = [row | {"answer_nll": row["answer_nll"] + 40 * (row["variant"] == "c@0.5")} for row in rows]
    panel = task_panel(summarize(rows).tasks[0], NLL, shown_label)
    assert panel is not None
    (point,) = beyond(panel)
    assert f"{point.mean:.3g} →" in draw(panel, series_styles(panel.lines), "a")
