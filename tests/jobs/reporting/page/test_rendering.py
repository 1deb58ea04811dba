"""The page: whole without anything beside it, nothing in it but our own markup, sensible whatever the rows are."""

import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import summarize
from jobs.planning.work import RowKey
from jobs.reporting.page import TEMPLATES, render_page, rendering, setting, write_page
from jobs.results.schema import FAILED, RESULT_SCHEMA, Row
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row, make_sweep_rows

POLICIES = {"snapkv@0.5": 0.5, "snapkv@0.25": 0.25, "knorm@0.5": 0.5}
HOSTILE = "<script>alert(1)</script>\"><img src=x onerror='y'> & $a_$ {{ 7 * 7 }} \u202e"
VOID = {"meta", "wbr", "br", "img", "link", "input"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; raises where tags do not close each other."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] not in (["style"], ["script"]):
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for attribute, value in self.attributes if attribute == name]


def html_of(rows: Sequence[Row], planned: Sequence[RowKey] | None = None, **meta: Any) -> str:
    table = pa.Table.from_pylist(list(rows), schema=RESULT_SCHEMA)
    settings = meta.pop("settings", "")
    return render_page(Findings.of(table, planned, meta, settings)).html


def sweep(seed: int, num_tasks: int = 2, num_items: int = 4, **values: Any) -> list[Row]:
    tasks = [f"bench/4096/task_{index}" for index in range(num_tasks)]
    return make_sweep_rows(random.Random(seed), POLICIES, tasks, num_items, **values)


def test_the_page_needs_nothing_else_and_runs_our_one_script(seed: int) -> None:
    html = html_of(sweep(seed))
    page = Page(html)
    assert page.tags["link"] == page.tags["img"] == page.tags["iframe"] == 0
    script = (TEMPLATES / "report.js").read_text()
    assert page.tags["script"] == 1 and script.strip() in html and "</script" not in script
    assert len(script.splitlines()) <= 100 and not re.search(r"fetch|import|eval|innerHTML|https?:", script)
    assert page.values("src") == [] and all(link.startswith("#") for link in page.values("href"))
    assert re.findall(r"@import|url\((?!#)|https?://", html) == []


def test_every_id_is_there_once_and_every_link_finds_its_own(seed: int) -> None:
    html = html_of(sweep(seed))
    page = Page(html)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    links = {link.removeprefix("#") for link in page.values("href") + page.values("xlink:href")}
    assert links | set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_every_figure_says_what_it_shows(seed: int) -> None:
    page = Page(html_of(sweep(seed)))
    pictures = page.values("role").count("img")
    points = page.values("class").count("point")  # each says what it is
    assert pictures > 0 and points > 0 and page.tags["title"] == pictures + points + 1
    assert page.tags["style"] == 1
    assert page.tags["svg"] == pictures + page.values("aria-hidden").count("true")


def test_every_mean_of_the_table_is_on_the_page(seed: int) -> None:
    rows = sweep(seed)
    text = Page(html_of(rows)).text
    summary = summarize(rows)
    for variant in (it for task in summary.tasks for it in task.variants):
        assert variant.answer_nll is not None and variant.kl is not None
        assert f"{variant.answer_nll.mean:.3f}" in text and f"{variant.kl.mean:.3f}" in text
        assert f"{variant.num_right} of {variant.num_rows}" in text


@pytest.mark.parametrize(
    "column",
    ["prediction", "prompt_tail", "task", "item_id", "policy", "sweep", "model", "degenerate_reason"],
)
def test_text_of_rows_is_only_ever_text(column: str, seed: int) -> None:
    rows = [row | {column: HOSTILE, "is_degenerate": True} for row in sweep(seed, num_tasks=1)]
    for row in rows:
        row["degenerate_reason"] = row["degenerate_reason"] or "none"
    page = Page(html_of(rows))
    assert page.tags["script"] == 1 and page.tags["img"] == 0 and "49" not in page.values("onerror")
    assert "<script>alert(1)</script>" in page.text and "{{ 7 * 7 }}" in page.text


def test_answers_failures_labels_and_settings_are_only_ever_text(seed: int) -> None:
    rows = [row | {"answers": [HOSTILE]} for row in sweep(seed, num_tasks=1)]
    rows.append(_failed("f", variant=f"x@{HOSTILE}", failure_message=HOSTILE, failure_type=HOSTILE))
    page = Page(html_of(rows, settings=f"name: {HOSTILE}", args=[HOSTILE], versions={HOSTILE: HOSTILE}))
    assert page.tags["script"] == 1 and page.tags["img"] == 0
    assert page.text.count("<script>alert(1)</script>") >= 6


def test_names_of_variants_are_only_ever_text(seed: int) -> None:
    # Names go into attributes, into figures and into the choices of filters, not only into tables.
    label = f"x'{HOSTILE}@0.5"
    rows = make_sweep_rows(random.Random(seed), {label: 0.5, "b@0.25": 0.25}, ["b/t", f"b/{HOSTILE}"], 4)
    page = Page(html_of(rows))
    assert page.tags["script"] == 1 and page.tags["img"] == 0 and "onerror" not in dict(page.attributes)
    assert page.values("data-variant").count(label) >= 4 and label in page.values("value")


def test_what_ran_stands_last_and_the_ranked_table_first(seed: int) -> None:
    text = Page(html_of(sweep(seed))).text
    heads = (
        "Ranked by answer NLL",
        "What is certified, and what fits",
        "Variants by task",
        "Difference to the full cache",
        "Where each policy loses most",
        "All items",
        "Every task's table",
    )
    places = [text.index(head) for head in heads]
    assert places == sorted(places) and text.rindex("What ran") > max(places)


def test_a_list_that_is_too_long_says_what_is_not_there(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "are not on this page" not in Page(html_of(sweep(seed))).text
    monkeypatch.setattr(rendering, "_MOST_ITEMS", 10)
    text = Page(html_of(sweep(seed))).text
    assert "10 of 24 rows" in text and "14 rows are not on this page" in text


def test_many_tasks_have_the_figures_of_their_mean_and_say_how_to_see_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Page(html_of(sweep(seed)))
    monkeypatch.setattr(setting, "_MOST_DRAWN", 10)
    many = Page(html_of(sweep(seed)))
    assert "--task" not in few.text and "sweep.py report RESULTS --task" in many.text
    # Of two tasks: no figure of answer NLL, of the score and of the memory of one of them; all numbers stay.
    assert few.tags["figure"] - many.tags["figure"] == 5
    assert few.tags["td"] == many.tags["td"]


def test_a_model_from_a_folder_is_told_with_its_path(seed: int) -> None:
    page = Page(html_of([row | {"model": "/data/runs/7/model"} for row in sweep(seed, num_tasks=1)]))
    ran = page.text[page.text.rindex("What ran") :]
    assert "model" in ran and "the folder /data/runs/7/model (" in ran


def test_passwords_in_addresses_stay_out(seed: int) -> None:
    text = html_of(
        sweep(seed),
        settings="uri: https://me:secret@host/x",
        args=["--set", "tracking.uri=http://u:secret@h"],
    )
    assert "secret" not in text and "host/x" in text


def test_an_empty_folder_with_a_plan_has_a_page() -> None:
    page = Page(html_of([], [RowKey("a", "item", "full")]))
    assert "none of 1 planned rows has run" in page.text and "1 missing" in page.text


def test_a_sweep_in_which_all_failed_has_a_page_with_the_reasons() -> None:
    page = Page(html_of([_failed("a"), _failed("b", variant="full")]))
    assert "all 2 rows that ran have failed" in page.text
    for part in ("decode", "MyError", "no memory"):
        assert part in page.text


def test_rows_of_before_the_new_columns_have_a_page(seed: int) -> None:
    page = Page(html_of(sweep(seed, prompt_tail=None, item_metadata=None, trace=None)))
    assert "did not keep" in page.text and "Memory over time" not in page.text


def test_a_partial_sweep_without_references_has_a_page(seed: int) -> None:
    rows = [row for row in sweep(seed, num_tasks=1) if row["variant"] == "snapkv@0.5"][:1]
    page = Page(
        html_of(
            rows, [RowKey(rows[0]["identity"], rows[0]["item_id"], "snapkv@0.5"), RowKey("x", "y", "full")]
        )
    )
    assert "1 missing" in page.text and "Where each policy loses most" not in page.text


def test_settings_never_share_a_figure(seed: int) -> None:
    rows = sweep(seed, num_tasks=1)
    rows += [row | {"identity": f"q{row['identity']}", "query_mode": "query_aware"} for row in rows]
    page = Page(html_of(rows))
    assert page.text.count("Quality against memory") == 2
    assert len(page.values("id")) == len(set(page.values("id")))


def test_the_same_rows_make_the_same_page(seed: int) -> None:
    rows = sweep(seed)
    assert html_of(rows) == html_of(rows)


def test_a_large_sweep_makes_a_page_that_can_be_mailed(tmp_path: Path, seed: int) -> None:
    policies = {f"{name}@{kept}": kept for name in ("a", "b", "c", "d") for kept in (0.75, 0.5, 0.25)}
    tasks = [f"bench/task_{index}" for index in range(10)]
    rows = make_sweep_rows(random.Random(seed), {**policies, "e@0.5": 0.5}, tasks, 50, unit_id="u")
    assert len(rows) == 8000
    store = ResultStore(tmp_path)
    store.write_unit("u", rows)
    start_s = time.process_time()  # a busy machine is not our slowness
    path = write_page(render_page(Findings.read(store)).html, tmp_path / "report.html")
    assert time.process_time() - start_s < 20 and path.stat().st_size < 5e6


def _failed(identity: str, **values: Any) -> Row:
    failure = {"failure_phase": "decode", "failure_type": "MyError", "failure_message": "no memory"}
    return make_row(
        identity, status=FAILED, **({"variant": "snapkv@0.5", "policy": "snapkv"} | failure | values)
    )
