"""Columns of memory are there where they tell something, under one name in terminal, page and MLflow."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from rich.console import Console

from jobs.analysis.differences import differences_to_full
from jobs.analysis.folder.findings import Findings
from jobs.analysis.summary import summarize
from jobs.reporting.cells import BITS, POSITIONS, READ, memory_words, silent_columns, stored_otherwise
from jobs.reporting.page import render_page
from jobs.reporting.terminal import render
from jobs.results.schema import RESULT_SCHEMA, Row
from jobs.tracking.description import MAX_CHARS, sweep_description, variant_description
from tests.fakes.rows import INT4, K8V4, PLAIN, make_sweep_rows, with_forms

POLICIES = {"snapkv@0.5": 0.5, "int4": 1.0, "keydiff+keepkv@bytes:0.14+int4": 0.5, "k8v4": 1.0}
FORMS = {"int4": INT4, "keydiff+keepkv@bytes:0.14+int4": INT4, "k8v4": K8V4}
PLAIN_POLICIES = {"snapkv@0.5": 0.5}
TAIL_NOTE = (
    "stored as int4, k8v4: the compressed part; the question's tail and the answer behind it stay plain"
)


def rows_of(seed: int, policies: dict[str, float] = POLICIES, num_tasks: int = 1) -> list[Row]:
    tasks = [f"b/t{index}" for index in range(num_tasks)]
    return make_sweep_rows(random.Random(seed), policies, tasks, 4)


def text_of(rows: list[Row], width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(render(summarize(rows), width))
    return captured.get()


def heads(text: str) -> list[str]:
    return text.splitlines()[1].split()


def test_plain_rows_have_bytes_and_slots_and_no_word_on_forms(seed: int) -> None:
    for rows in (rows_of(seed, PLAIN_POLICIES), with_forms(rows_of(seed, PLAIN_POLICIES))):
        text = text_of(rows, 120)
        assert heads(text)[-2:] == ["bytes", "slots"] and "stored as" not in text and "bits:" not in text
        variants = summarize(rows).tasks[0].variants
        assert {BITS, READ} <= silent_columns(variants) and not stored_otherwise(variants)
    old = summarize(rows_of(seed, PLAIN_POLICIES)).tasks[0].variants
    assert POSITIONS in silent_columns(old)


def test_one_packed_variant_brings_bits_for_all_and_a_word_on_tails(seed: int) -> None:
    rows = with_forms(rows_of(seed), FORMS)
    text = text_of(rows, 120)
    assert heads(text)[-3:] == ["bytes", "slots", "bits"]
    shown = {
        line.split()[0]: line.split()[-3:]
        for line in text.splitlines()
        if line.startswith(("snapkv", "int4", "k8v4"))
    }
    assert shown == {
        "snapkv@0.5": ["50.0%", "50.0%", "16"],
        "int4": ["28.1%", "100.0%", "4"],
        "k8v4": ["40.6%", "100.0%", "8/4"],
    }
    assert " ".join(text.split()).count(TAIL_NOTE) == 1


@pytest.mark.parametrize("width", [80, 100])
def test_a_narrow_table_puts_bits_under_slots_and_cuts_no_number(seed: int, width: int) -> None:
    text = text_of(with_forms(rows_of(seed), FORMS), width)
    assert heads(text)[-1] == "slots" and max(map(len, text.splitlines())) <= width
    for part in ("28.1%", "1.1 MiB", "8/4 bit", "4 bit", "keydiff+keepkv ", "@bytes:0.14+int4 ", "576 KiB"):
        assert part in text


def test_a_variant_without_a_result_has_no_bits_and_no_unit_of_them(seed: int) -> None:
    failed = {
        "status": "failed",
        "form": None,
        "bits_k": None,
        "bits_v": None,
        "kv_bytes": None,
        "kept_ratio": None,
    }
    rows = [
        {**row, **failed} if row["variant"] == "int4" else row for row in with_forms(rows_of(seed), FORMS)
    ]
    text = text_of(rows, 80)
    assert "8/4 bit" in text and "- bit" not in text


def test_bytes_read_are_told_only_where_they_are_others(seed: int) -> None:
    forms = FORMS | {"snapkv@0.5": PLAIN._replace(read_ratio=0.25)}
    rows = with_forms(rows_of(seed), forms)
    assert heads(text_of(rows, 120))[-1] == "read" and " 12.5%" in text_of(rows, 120)
    narrow = " ".join(text_of(rows, 80).split())
    assert "read at each step, where that is another share than bytes held: snapkv@0.5 12.5%" in narrow
    assert "read" not in heads(text_of(with_forms(rows_of(seed), FORMS), 120))


def test_over_tasks_the_same_columns_stand(seed: int) -> None:
    text = text_of(with_forms(rows_of(seed, num_tasks=2), FORMS), 120)
    overall = text[text.index("all 2 tasks") :]
    assert heads(overall)[-3:] == ["bytes", "slots", "bits"]
    assert "keydiff+keepkv@bytes:0.14+int4" in overall


def test_the_page_has_them_with_positions_in_a_column_of_their_own(seed: int) -> None:
    rows = with_forms(rows_of(seed), FORMS)
    html = render_page(Findings.of(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA))).html
    head = '<th scope="col">bytes</th><th scope="col">slots</th><th scope="col">bits</th><th scope="col">positions</th></tr>'
    assert html.count(head) == 1 and "<td>64.0 KiB</td>" in html
    assert html.count("Stored as int4, k8v4: the compressed part; ") == 1
    assert "% of the bytes, 100.0 % of the slots" in html and "bytes of K/V held, measured" in html
    old = render_page(Findings.of(pa.Table.from_pylist(rows_of(seed), schema=RESULT_SCHEMA))).html
    assert '<th scope="col">slots</th></tr>' in old and "Stored as" not in old


def test_mlflow_has_them_and_fits(seed: int) -> None:
    rows = with_forms(rows_of(seed, num_tasks=2), FORMS)
    summary, differences = summarize(rows), differences_to_full(rows)
    for text in (
        sweep_description("n", "f", summary, differences, [], []),
        variant_description("int4", summary, differences),
    ):
        # Without the gap that MLflow needs behind every cell.
        lines = [
            line.replace("\u00a0\u00a0\u2060|", "|") for line in text.splitlines() if line.startswith("|")
        ]
        assert (
            "bytes|" in lines[0] and "slots|" in lines[0] and "bits|" in lines[0] and "read|" not in lines[0]
        )
        assert (
            "28.1% [1.1\u00a0MiB]" in text and "*bits*: of a stored number" in text and "stay plain" in text
        )
        assert len({line.count("|") for line in lines}) <= 2 and len(text) <= MAX_CHARS


def test_every_shown_column_of_memory_is_explained(seed: int) -> None:
    forms = FORMS | {"snapkv@0.5": PLAIN._replace(read_ratio=0.25)}
    variants = summarize(with_forms(rows_of(seed), forms)).tasks[0].variants
    assert list(memory_words(variants)) == ["bytes", "slots", "bits", "read"]
    text = " ".join(text_of(with_forms(rows_of(seed), forms), 120).split())
    assert all(f"{column}: {words}" in text for column, words in memory_words(variants).items())
