"""The page in a real browser: sorting, filtering, folding and lighting up do what they say, on a screen and a telephone."""

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from bench.service.browser import Page, chromium, opened
from jobs.analysis.folder.findings import Findings
from jobs.analysis.item_outcomes import LOST, item_list
from jobs.reporting.page import render_page
from jobs.results.schema import RESULT_SCHEMA, Row
from tests.fakes.rows import make_sweep_rows

POLICIES = {f"{name}@{kept}": kept for name in ("snapkv", "knorm", "tova") for kept in (0.75, 0.5, 0.25)}
WIDE, HEIGHT = 1400, 1000
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
def browser() -> Iterator[Page]:
    if chromium() is None:
        pytest.skip("there is no Chromium here: `apt-get install chromium`")
    with opened(WIDE, HEIGHT) as page:
        yield page


def show(browser: Page, file: Path, width: int = WIDE, *, is_dark: bool = False) -> None:
    """Load ``file`` anew in a window of that width."""
    browser.set_size(width, HEIGHT)
    browser.set_scheme(is_dark=is_dark)
    browser.open_file(file)


@pytest.fixture
def page(browser: Page, file: Path) -> Page:
    show(browser, file)
    return browser


def test_a_click_sorts_by_number_and_another_turns_it_round(page: Page) -> None:
    nll = [float(it) for it in page.evaluate(VALUES.format(2))]
    assert nll == sorted(nll)  # as it comes, before any script
    page.evaluate(CLICK.format(1))
    held = [float(it) for it in page.evaluate(VALUES.format(1))]
    assert held == sorted(held) and len(held) == len(POLICIES)
    page.evaluate(CLICK.format(1))
    assert [float(it) for it in page.evaluate(VALUES.format(1))] == sorted(held, reverse=True)
    page.evaluate(CLICK.format(0))
    names = page.evaluate(VALUES.format(0))
    assert names == sorted(names)
    assert page.evaluate("document.querySelectorAll('table.ranked th[aria-sort]').length") == 1
    assert page.evaluate(TEXTS.format("tbody.references th"))[0] == "full cache"


def test_what_is_not_known_stays_last_whichever_way_is_sorted(page: Page) -> None:
    for _ in range(2):
        page.evaluate(CLICK.format(5))
        values = page.evaluate(VALUES.format(5))
        assert values[-1] is None and None not in values[:-1]


def test_the_list_is_folded_and_its_filters_leave_what_was_asked_for(page: Page, rows: list[Row]) -> None:
    counts = item_list(rows, 10_000).num_of
    assert page.evaluate("document.querySelector('details.items').open") is False
    assert page.evaluate("document.querySelector('.filters').hidden") is False
    page.evaluate("document.querySelector('details.items summary').click()")
    assert page.evaluate("document.querySelector('details.items').open") is True
    assert page.evaluate(f"{LISTED}.length") == sum(counts.values())
    choose = "(it => {{ it.value = {!r}; it.dispatchEvent(new Event('input')) }})(document.querySelector('[data-filter={}]'))"
    page.evaluate(choose.format(LOST, "outcome"))
    assert page.evaluate(f"{LISTED}.length") == counts[LOST]
    page.evaluate(choose.format("knorm@0.25", "variant"))
    found = page.evaluate(
        f"{LISTED}.map(it => [it.cells[it.cells.length - 3].textContent, it.dataset.variant])"
    )
    assert all(it == [LOST, "knorm@0.25"] for it in found)
    assert f"{len(found)} of" in page.evaluate("document.querySelector('.filters output').textContent")
    page.evaluate(choose.format("", "outcome"))
    page.evaluate(choose.format("BENCH/TWO/3", "text"))
    assert page.evaluate(f"{LISTED}.map(it => it.cells[0].textContent)") == ["bench/two/3"]
    page.evaluate(choose.format("nothing holds this", "text"))
    assert page.evaluate(f"{LISTED}.length") == 0


def test_a_point_under_the_pointer_lights_its_row_and_tells_its_numbers(page: Page) -> None:
    resting = page.evaluate("document.querySelector('.told').textContent")
    where = page.evaluate(
        "(it => [it.left + it.width / 2, it.top + it.height / 2])"
        "(document.querySelector('.wide-only .point[data-variant=\"snapkv@0.25\"]').getBoundingClientRect())"
    )
    page.move_to(*where)
    lit = page.evaluate(
        "Array.from(new Set(Array.from(document.querySelectorAll('.lit'), it => it.dataset.variant)))"
    )
    assert len(lit) == 1 and page.evaluate("document.querySelectorAll('table.ranked tr.lit').length") == 1
    assert page.evaluate("document.querySelector('.told').textContent").startswith(lit[0])
    page.move_to(2, 2)
    assert page.evaluate("document.querySelectorAll('.lit').length") == 0
    assert page.evaluate("document.querySelector('.told').textContent") == resting


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("is_dark", [False, True])
def test_nothing_is_wider_than_the_window_and_one_figure_is_seen(
    browser: Page, file: Path, width: int, is_dark: bool
) -> None:
    show(browser, file, width, is_dark=is_dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    shown = browser.evaluate(
        "Array.from(document.querySelectorAll('.front-figure')).filter(it => it.checkVisibility()).length"
    )
    assert shown == 1
    paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(20, 24, 29)") is is_dark
    table, figure = browser.evaluate(
        "['.ranked', 'figure.front'].map(it => document.querySelector(it).getBoundingClientRect().top)"
    )
    assert (abs(table - figure) < 100) is (width == 1400)


def test_no_text_of_the_figure_lies_on_another_as_the_browser_draws_it(browser: Page, file: Path) -> None:
    for width in (400, 1400):
        show(browser, file, width)
        met = browser.evaluate(
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
