"""The gate's table in a cron mail, a file or a narrow terminal: every number whole, with its unit, and every verdict."""

from __future__ import annotations

from collections import Counter

import pytest
from rich.console import Console

from jobs.gate.judge import NightVerdict
from jobs.gate.log import NightNames, log_lines
from jobs.gate.table import verdict_table
from tests.fakes.pairs import paired_rows
from tests.jobs.gate.test_judge import LABEL, changed, judged, night


@pytest.fixture
def verdict(seed: int) -> NightVerdict:
    """A night with a real change: long numbers in every column."""
    rows = [
        row | {"benchmark": "longbench-e", "task": f"multifieldqa_en_{row['task']}"} for row in night(seed)
    ]
    worse = changed(
        rows,
        lambda row, rng: {
            "answer_nll": row["answer_nll"] + rng.normal(0.0123, 0.05),
            "score": row["score"] - rng.normal(0.2, 0.1),
            "kv_bytes": round(1.4 * row["kv_bytes"]),
        },
    )
    return judged(rows, worse)


def text_of(verdict: NightVerdict, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(verdict_table(verdict, width))
    return captured.get()


@pytest.mark.parametrize("width", [60, 80, 100, 119, 120, 140])
def test_nothing_is_cut_at_any_width(verdict: NightVerdict, width: int) -> None:
    text, whole = text_of(verdict, width), text_of(verdict, 400)
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    shown, all_there = (Counter("".join(it.replace("─", "").split())) for it in (text, whole))
    assert shown == all_there


@pytest.mark.parametrize("width", [80, 100, 120])
def test_numbers_keep_their_units_and_verdicts_their_ends(verdict: NightVerdict, width: int) -> None:
    text = text_of(verdict, width)
    assert {check.verdict for check in verdict.checks if check.loss is not None} >= {"pass", "fail"}
    for part in ("6 points", "0.05 nats", "+40.0 %", "fail", "pass", "kvmerger@0.5", LABEL):
        assert part in text
    assert " points" in text and text.count(" nats") >= 9


def test_a_line_that_is_too_long_ends_between_words(verdict: NightVerdict) -> None:
    names = NightNames("tonight", "last week", "folder " + "x" * 90 + " +40.1 %" * 20, "gate.md")
    (against,) = [line for line in log_lines(verdict, names) if line.startswith("against")]
    assert len(against) <= 200 and against.endswith((" % …", " +40.1 …"))
    names = NightNames("tonight", "last week", "folder " + "x" * 300, "gate.md")
    (against,) = [line for line in log_lines(verdict, names) if line.startswith("against")]
    assert len(against) == 200 and against.endswith("x…")


def test_changes_that_are_all_equal_have_no_bounds(seed: int) -> None:
    rows = [row | {"score": 1.0} for row in paired_rows(seed, 4, prediction="said", execution="fused")]
    lost = changed(rows, lambda row, rng: {"score": 0.0})
    verdict = judged(rows, lost)
    assert not verdict.having("fail")
    (score,) = [it for it in verdict.checks if (it.label, it.metric) == (LABEL, "score")]
    assert (score.loss, score.least_loss, score.most_loss, score.has_no_spread) == (100, None, None, True)
    text = text_of(verdict, 120)
    assert "no spread" in text.partition("change:")[0] and "-100.0 to -100.0" not in text


def test_the_exact_bound_of_a_loss_that_nobody_had_stays(seed: int) -> None:
    rows = night(seed)
    other = changed(rows, lambda row, rng: {"answer_nll": row["answer_nll"] + rng.normal(0, 0.01)})
    scores = [it for it in judged(rows, other).checks if (it.label, it.metric) == (LABEL, "score")]
    on_tasks = [it for it in scores if it.task is not None]
    assert on_tasks and all(it.verdict == "pass" and it.most_loss for it in on_tasks)
