"""The page in a real browser: sorting, filtering, folding and lighting up do what they say, on a screen and a telephone."""

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.analysis.folder.findings import Findings
from jobs.analysis.item_outcomes import LOST, item_list
from jobs.reporting.page import render_page
from jobs.results.schema import RESULT_SCHEMA, Row
from tests.fakes.rows import make_sweep_rows
from tests.jobs.reporting.page.chromium import BrowserPage, browser_page, chromium

POLICIES = {f"{name}@{kept}": kept for name in ("snapkv", "knorm", "tova") for kept in (0.75, 0.5, 0.25)}
TEXTS = "Array.from(document.querySelectorAll({!r}), it => it.textContent.trim())"
CLICK = "document.querySelectorAll('table.ranked th button')[{}].click()"
VALUES = "Array.from(document.querySelectorAll('table.ranked tbody.sorted tr'), it => it.cells[{}].dataset.value ?? null)"
LISTED = "Array.from(document.querySelectorAll('.items tbody tr')).filter(it => !it.hidden)"


@pytest.fixture(scope="module")
def rows(seed: int) -> list[Row]:
    rows = make_sweep_rows(random.Random(seed), POLICIES, ["bench/one", "bench/two"], 6)
    for row in rows:
        if row["variant"] == "tova@0.25":
            row["kl_mean"] = None
    return rows


@pytest.fixture(scope="module")
def file(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    table = pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)
    path.write_text(render_page(Findings.of(table)).html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserPage]:
    program = chromium()
    if program is None:
        pytest.skip("there is no Chromium here: `apt-get install chromium`")
    with browser_page(program, tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: BrowserPage, file: Path) -> BrowserPage:
    browser.open(file)
    return browser


def test_a_click_sorts_by_number_and_another_turns_it_round(page: BrowserPage) -> None:
    nll = [float(it) for it in page.run(VALUES.format(2))]
    assert nll == sorted(nll)  # as it comes, before any script
    page.run(CLICK.format(1))
    held = [float(it) for it in page.run(VALUES.format(1))]
    assert held == sorted(held) and len(held) == len(POLICIES)
    page.run(CLICK.format(1))
    assert [float(it) for it in page.run(VALUES.format(1))] == sorted(held, reverse=True)
    page.run(CLICK.format(0))
    names = page.run(VALUES.format(0))
    assert names == sorted(names)
    assert page.run("document.querySelectorAll('table.ranked th[aria-sort]').length") == 1
    assert page.run(TEXTS.format("tbody.references th"))[0] == "full cache"


def test_what_is_not_known_stays_last_whichever_way_is_sorted(page: BrowserPage) -> None:
    for _ in range(2):
        page.run(CLICK.format(5))
        values = page.run(VALUES.format(5))
        assert values[-1] is None and None not in values[:-1]


def test_the_list_is_folded_and_its_filters_leave_what_was_asked_for(
    page: BrowserPage, rows: list[Row]
) -> None:
    counts = item_list(rows, 10_000).num_of
    assert page.run("document.querySelector('details.items').open") is False
    assert page.run("document.querySelector('.filters').hidden") is False
    page.run("document.querySelector('details.items summary').click()")
    assert page.run("document.querySelector('details.items').open") is True
    assert page.run(f"{LISTED}.length") == sum(counts.values())
    choose = "(it => {{ it.value = {!r}; it.dispatchEvent(new Event('input')) }})(document.querySelector('[data-filter={}]'))"
    page.run(choose.format(LOST, "outcome"))
    assert page.run(f"{LISTED}.length") == counts[LOST]
    page.run(choose.format("knorm@0.25", "variant"))
    found = page.run(f"{LISTED}.map(it => [it.cells[it.cells.length - 3].textContent, it.dataset.variant])")
    assert all(it == [LOST, "knorm@0.25"] for it in found)
    assert f"{len(found)} of" in page.run("document.querySelector('.filters output').textContent")
    page.run(choose.format("", "outcome"))
    page.run(choose.format("BENCH/TWO/3", "text"))
    assert page.run(f"{LISTED}.map(it => it.cells[0].textContent)") == ["bench/two/3"]
    page.run(choose.format("nothing holds this", "text"))
    assert page.run(f"{LISTED}.length") == 0


def test_a_point_under_the_pointer_lights_its_row_and_tells_its_numbers(page: BrowserPage) -> None:
    resting = page.run("document.querySelector('.told').textContent")
    where = page.run(
        "(it => [it.left + it.width / 2, it.top + it.height / 2])"
        "(document.querySelector('.wide-only .point[data-variant=\"snapkv@0.25\"]').getBoundingClientRect())"
    )
    page.move_to(*where)
    lit = page.run(
        "Array.from(new Set(Array.from(document.querySelectorAll('.lit'), it => it.dataset.variant)))"
    )
    assert len(lit) == 1 and page.run("document.querySelectorAll('table.ranked tr.lit').length") == 1
    assert page.run("document.querySelector('.told').textContent").startswith(lit[0])
    page.move_to(2, 2)
    assert page.run("document.querySelectorAll('.lit').length") == 0
    assert page.run("document.querySelector('.told').textContent") == resting


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("is_dark", [False, True])
def test_nothing_is_wider_than_the_window_and_one_figure_is_seen(
    browser: BrowserPage, file: Path, width: int, is_dark: bool
) -> None:
    browser.open(file, width, is_dark=is_dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    shown = browser.run(
        "Array.from(document.querySelectorAll('.front-figure')).filter(it => it.checkVisibility()).length"
    )
    assert shown == 1
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 24, 29)") is is_dark
    table, figure = browser.run(
        "['.ranked', 'figure.front'].map(it => document.querySelector(it).getBoundingClientRect().top)"
    )
    assert (abs(table - figure) < 100) is (width == 1400)


def test_no_text_of_the_figure_lies_on_another_as_the_browser_draws_it(
    browser: BrowserPage, file: Path
) -> None:
    for width in (400, 1400):
        browser.open(file, width)
        met = browser.run(
            """(() => {
              const figure = Array.from(document.querySelectorAll('.front-figure')).find(it => it.checkVisibility());
              const boxes = Array.from(figure.querySelectorAll('text'), it => [it.textContent, it.getBoundingClientRect()]);
              const meets = (a, b) =>
                a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3;
              return boxes.flatMap(([a, one], i) =>
                boxes.slice(0, i).filter(([, it]) => meets(one, it)).map(([b]) => [a, b]));
            })()"""
        )
        assert met == []
