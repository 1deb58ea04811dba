"""The figure holds every policy once, its front is the Pareto front, and no text lies on another."""

import random
import re
from xml.etree import ElementTree

import pytest

from jobs.analysis.summary import summarize
from jobs.reporting.figures.front import NARROW, WIDE, Frame, draw_front, front_labels
from jobs.reporting.figures.labels import Box, width_of
from jobs.reporting.figures.quality_panel import (
    NLL,
    SCORE,
    QualityPanel,
    beyond,
    shown_range,
    task_panel,
)
from jobs.reporting.figures.style import series_styles
from tests.fakes.rows import INT4, make_sweep_rows, with_forms

POLICIES = {f"{name}@{kept}": kept for name in ("snapkv", "knorm", "tova") for kept in (0.75, 0.5, 0.25)}


def panel_of(seed: int, measure: str = NLL, **values: float) -> QualityPanel:
    """A task under a dozen variants; `values` are answer NLL of references."""
    rows = make_sweep_rows(random.Random(seed), {**POLICIES, "int4": 1.0}, ["b/t"], 8)
    for row in rows:
        row["answer_nll"] += values.get(row["variant"], 0.0)
    panel = task_panel(summarize(with_forms(rows, {"int4": INT4})).tasks[0], measure, lambda it: it.label)
    assert panel is not None
    return panel


def drawn(panel: QualityPanel, frame: Frame = WIDE) -> ElementTree.Element:
    names = {label: f"{label} named" for label in (*POLICIES, "int4")}
    told = {label: f"{label}: <told> & more" for label in names}
    return ElementTree.fromstring(draw_front(panel, series_styles(panel.lines), told, names, frame))


def texts_of(svg: ElementTree.Element) -> list[tuple[str, Box]]:
    """Every text with the box it takes."""
    found = []
    for it in svg.iter("text"):
        text, x, y = it.text or "", float(it.attrib["x"]), float(it.attrib["y"])
        width = width_of(text, 13)
        left = {"start": x, "middle": x - width / 2, "end": x - width}[it.attrib["text-anchor"]]
        found.append((text, Box(left, y - 10, left + width, y + 3)))
    return found


@pytest.mark.parametrize("frame", [WIDE, NARROW])
@pytest.mark.parametrize("measure", [NLL, SCORE])
def test_no_text_lies_on_another(measure: str, frame: Frame, seed: int) -> None:
    texts = texts_of(drawn(panel_of(seed, measure), frame))
    met = [(a[0], b[0]) for index, a in enumerate(texts) for b in texts[:index] if a[1].meets(b[1])]
    assert met == []


def test_references_that_are_close_keep_names_apart(seed: int) -> None:
    panel = panel_of(seed, no_context=-2.39)  # as in a model that the context does not help
    texts = texts_of(drawn(panel))
    named = [(text, box) for text, box in texts if text.startswith(("full cache", "no context"))]
    assert len(named) == 2 and not named[0][1].meets(named[1][1])


def test_every_policy_is_a_point_with_its_words(seed: int) -> None:
    points = [it for it in drawn(panel_of(seed)).iter("g") if it.attrib.get("class") == "point"]
    assert {it.attrib["data-variant"] for it in points} == {*POLICIES, "int4"} and len(points) == len(
        POLICIES
    ) + 1
    assert all(it.find("title").text == f"{it.attrib['data-variant']}: <told> & more" for it in points)  # type: ignore[union-attr]


@pytest.mark.parametrize("measure", [NLL, SCORE])
def test_the_front_is_of_bytes_and_the_measure(measure: str, seed: int) -> None:
    panel = panel_of(seed, measure)
    points = {it.label: it for line in panel.lines.values() for it in line}
    full = panel.references["full"]
    sign = 1 if measure == NLL else -1

    def is_beaten(label: str) -> bool:
        one = points[label]
        return any(
            other.held_bytes <= one.held_bytes
            and sign * other.mean <= sign * one.mean
            and (other.held_bytes, other.mean) != (one.held_bytes, one.mean)
            for other in (*points.values(), full)
        )

    assert front_labels(panel) == {label for label in points if not is_beaten(label)}


def test_nll_starts_where_the_data_do(seed: int) -> None:
    lifted = panel_of(seed, **dict.fromkeys((*POLICIES, "int4", "full", "full_aa", "no_context"), 6.0))
    low, high = shown_range(lifted)
    assert 4.5 < low < 6.1 and high < 10
    assert 0 not in [float(text) for text, _ in texts_of(drawn(lifted)) if re.fullmatch(r"[\d.]+", text)]


def test_no_context_far_away_does_not_squeeze_the_policies(seed: int) -> None:
    panel = panel_of(seed, no_context=50.0)
    low, high = shown_range(panel)
    means = [it.mean for line in panel.lines.values() for it in line] + [panel.references["full"].mean]
    assert low <= min(means) and max(means) <= high < 10
    assert any(text.startswith("no context: 52") and "above" in text for text, _ in texts_of(drawn(panel)))


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_a_policy_far_worse_than_no_context_does_not_squeeze_the_others(frame: Frame, seed: int) -> None:
    panel = panel_of(seed, **{"tova@0.5": 40.0, "int4": 30.0})
    assert {it.label for it in beyond(panel)} == {"tova@0.5", "int4"}
    assert shown_range(panel) == shown_range(panel_of(seed, **{"tova@0.5": 80.0, "int4": 90.0}))
    low, high = shown_range(panel)
    assert low < panel.references["full"].mean < panel.references["no_context"].mean < high < 10
    svg = drawn(panel, frame)
    places = {
        it.attrib["data-variant"]: float(it.attrib["transform"].split()[1][:-1])
        for it in svg.iter("g")
        if it.attrib.get("class") == "point"
    }
    # Both stand at the end of the axis, with an arrow each; one number at least has room there.
    assert min(places.values()) == places["tova@0.5"] == places["int4"] < frame.inside.top + 30
    assert sum(it.attrib.get("class") == "beyond" for it in svg.iter("path")) == 2
    told = [text for text, _ in texts_of(svg)]
    assert any(re.fullmatch(r"((tova@0.5|int4) named: )?[34]\d(\.\d)?", text) for text in told)


def test_where_most_are_worse_than_no_context_the_axis_is_theirs(seed: int) -> None:
    panel = panel_of(seed, **dict.fromkeys((*POLICIES, "int4"), 40.0))
    assert beyond(panel) == [] and shown_range(panel)[1] > 40


def test_scores_keep_their_scale(seed: int) -> None:
    assert shown_range(panel_of(seed, SCORE)) == (-5.0, 105.0)


def test_equal_values_still_have_an_axis(seed: int) -> None:
    rows = [
        row | {"answer_nll": 0.0} for row in make_sweep_rows(random.Random(seed), {"a@0.5": 0.5}, ["b/t"], 4)
    ]
    panel = task_panel(summarize(rows).tasks[0], NLL, lambda it: it.label)
    assert panel is not None
    low, high = shown_range(panel)
    assert low == 0.0 < high
    drawn(panel)
