"""The page says what `choose` says, and nothing where that has no answer."""

import random

import pyarrow as pa

from jobs.analysis.choosing.certificates import Certificates, Contract, certify
from jobs.analysis.folder.findings import Findings
from jobs.reporting.choice_words import certificate_answer
from jobs.reporting.page.choice import GIB, choices
from jobs.results.grouping import setting_of
from jobs.results.schema import RESULT_SCHEMA, Row
from tests.fakes.rows import make_sweep_rows

POLICIES = {"a@0.75": 0.75, "a@0.25": 0.25, "b@0.5": 0.5}


def sweep(seed: int, items: int) -> list[Row]:
    rows = make_sweep_rows(random.Random(seed), POLICIES, ["b/t"], items)
    budgets = {
        "a@0.75": '{"kept_ratio": 0.75}',
        "a@0.25": '{"kept_ratio": 0.25}',
        "b@0.5": '{"kept_ratio": 0.5}',
    }
    for row in rows:
        # The milder budget loses nothing, the others on most contexts.
        row |= {
            "score": float(row["variant"] in ("full", "full_aa", "a@0.75")),
            "budget_asked": budgets.get(row["variant"]),
        }
    return rows


def certificates_of(rows: list[Row]) -> Certificates | None:
    return Findings.of(pa.Table.from_pylist(rows, schema=RESULT_SCHEMA)).certificates


def test_it_is_the_answer_of_the_command(seed: int) -> None:
    rows = sweep(seed, 120)
    found = certify(rows, Contract())
    (choice,) = choices(found).values()
    assert choice.answer.lower() == certificate_answer(found, found.groups[0]).lower()
    assert [(it.label, it.verdict) for it in choice.lines] == [("a@0.75", "yes"), ("b@0.5", "no")]
    assert choice.lines[0].stopped == "a@0.25: 120" and choice.lines[0].num_contexts == 120
    held = choice.lines[0].bytes_per_token
    assert held is not None and choice.lines[0].tokens_per_gib == int(GIB / held)


def test_too_few_contexts_leave_it_open(seed: int) -> None:
    rows = sweep(seed, 12)
    choice = choices(certificates_of(rows))[setting_of(rows[0])]
    assert "too few" in choice.answer and {it.verdict for it in choice.lines} == {"open"}


def test_rows_that_cannot_tell_have_no_answer(seed: int) -> None:
    rows = sweep(seed, 4)
    without_full = [row for row in rows if row["variant"] != "full"]
    for cannot_tell in (without_full, [], [row | {"score": None} for row in rows]):
        assert choices(certificates_of(cannot_tell)) == {}
