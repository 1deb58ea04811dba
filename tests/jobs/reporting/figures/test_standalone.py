"""A figure alone is a whole SVG: it parses, names its series, and needs no style sheet."""

import random
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

from jobs.analysis.summary import summarize
from jobs.reporting.figures.front import draw_front
from jobs.reporting.figures.quality_panel import NLL, task_panel
from jobs.reporting.figures.standalone import page_colors, standalone
from jobs.reporting.figures.style import INK, legend, look, new_panel, series_styles, to_svg
from jobs.reporting.page import TEMPLATES
from tests.fakes.rows import make_sweep_rows


@pytest.fixture(scope="module")
def colors() -> dict[str, str]:
    return page_colors((TEMPLATES / "report.css").read_text())


def panel() -> Markup:
    with look():
        figure, axes = new_panel()
        axes.plot([0, 1], [0, 1], color=INK)
        axes.plot([0, 1], [1, 0], color=series_styles(["a"])["a"].color)
        return to_svg(figure, "p", "title")


@pytest.mark.parametrize("num_series", [0, 1, 8])
def test_it_parses_holds_title_and_legend_and_no_variable(num_series: int, colors: dict[str, str]) -> None:
    names = [f"<policy> & {index}" for index in range(num_series)]
    svg = standalone(panel(), "memory <over> time", legend(series_styles(names)), colors)
    texts = [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"memory <over> time", *names} <= set(texts)
    assert "var(" not in svg and colors["ink"] in svg and colors["series-0"] in svg


def test_nothing_lies_outside_the_picture(colors: dict[str, str]) -> None:
    for num_series in (0, 3, 4, 30):
        svg = standalone(panel(), "t", legend(series_styles(map(str, range(num_series)))), colors)
        root = ElementTree.fromstring(svg)
        height = float(root.attrib["height"])
        ends = [float(it.attrib["y"]) + float(it.attrib["height"]) for it in root if it.tag.endswith("}svg")]
        assert max(ends) <= height


def test_the_front_stands_alone_as_well(colors: dict[str, str], seed: int) -> None:
    rows = make_sweep_rows(random.Random(seed), {"a@0.5": 0.5, "b<@0.25": 0.25}, ["b/t"], 5)
    panel = task_panel(summarize(rows).tasks[0], NLL, lambda it: it.label)
    assert panel is not None
    styles = series_styles(panel.lines)
    front = draw_front(panel, styles, {"b<@0.25": "b<: & more"}, {})
    svg = standalone(front, "Pareto front", legend(styles), colors)
    assert "var(" not in svg and colors["front"] in svg
    points = [it for it in ElementTree.fromstring(svg).iter() if it.attrib.get("class") == "point"]
    assert {it.attrib["data-variant"] for it in points} == {"a@0.5", "b<@0.25"}


def test_a_color_the_page_lacks_is_an_error() -> None:
    with pytest.raises(KeyError):
        standalone(panel(), "t", [], {"paper": "#fff"})
