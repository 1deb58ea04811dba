"""What the gate calls a regression, a pass or open, and that it never says more than the rows do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jobs.analysis.comparability import ComparisonError
from jobs.analysis.differences import NO_SCALE
from jobs.gate.check import Check
from jobs.gate.judge import NightVerdict, check_baseline, gated_labels, judge_night
from jobs.gate.log import MAX_LINES, NightNames, log_lines
from jobs.gate.paired import INSIDE_NOISE
from jobs.planning.work import RowKey
from jobs.results.schema import FAILED, Row
from jobs.settings.errors import SettingsError
from jobs.settings.gate import GateSettings, MarginSettings
from tests.fakes.engine import make_settings
from tests.fakes.pairs import paired_rows

LABEL, OTHER = "snapkv@0.5", "kvmerger@0.5"
LABELS = ("full", LABEL, OTHER)
GATE = GateSettings(margins=MarginSettings(score_points=6, nll_nats=0.05))
NAMES = NightNames("tonight", "last week", "folder x", "gate.md")


def night(seed: int, **values: Any) -> list[Row]:
    return paired_rows(seed, 80, ("a", "b"), prediction="said", execution="fused", **values)


def changed(rows: list[Row], change: Callable[[Row, np.random.Generator], Row], seed: int = 0) -> list[Row]:
    """`change` on every row of one variant."""
    rng = np.random.default_rng(seed)
    return [row | change(row, rng) if row["variant"] == LABEL else row for row in rows]


def judged(baseline: list[Row], tonight: list[Row], gate: GateSettings = GATE) -> NightVerdict:
    planned = [RowKey(row["identity"], row["item_id"], row["variant"]) for row in tonight]
    return judge_night(baseline, tonight, planned, LABELS, gate)


def one(verdict: NightVerdict, label: str, metric: str, task: str | None) -> Check:
    (found,) = [it for it in verdict.checks if (it.label, it.metric, it.task) == (label, metric, task)]
    return found


def test_the_same_rows_pass_and_say_why(seed: int) -> None:
    rows = night(seed)
    verdict = judged(rows, rows)
    assert verdict.outcome == "pass" and not verdict.having("fail") + verdict.having("inconclusive")
    assert "bit for bit" in one(verdict, LABEL, "NLL", "benchmark/a").reason


def test_few_contexts_are_open_even_if_nothing_changed(seed: int) -> None:
    rows = paired_rows(seed, 20, ("a",), prediction="said", execution="fused")
    verdict = judged(rows, rows)
    assert verdict.outcome == "inconclusive"
    assert {it.reason for it in verdict.having("inconclusive")} == {"too few: 20 contexts of 50"}


def test_a_loss_beyond_the_margin_fails_with_its_size_and_worst_items(seed: int) -> None:
    rows = night(seed)
    worse = changed(rows, lambda row, rng: {"answer_nll": row["answer_nll"] + rng.normal(0.3, 0.1)}, seed)
    verdict = judged(rows, worse)
    assert verdict.outcome == "fail"
    failed = verdict.having("fail")
    assert {(it.label, it.metric) for it in failed} == {(LABEL, "NLL")} and len(failed) == 3
    mean = one(verdict, LABEL, "NLL", None)
    assert mean.loss == pytest.approx(0.3, abs=0.05) and mean.least_loss is not None
    assert 0.2 < mean.least_loss < mean.loss and mean.adjusted_p is not None and mean.adjusted_p < 0.001
    by_item = {row["item_id"]: row["answer_nll"] for row in rows if row["variant"] == LABEL}
    losses = {
        row["item_id"]: row["answer_nll"] - by_item[row["item_id"]]
        for row in worse
        if row["variant"] == LABEL
    }
    assert mean.worst_items[0].item_id == max(losses, key=lambda it: losses[it])
    assert mean.worst_items[0].loss == pytest.approx(max(losses.values()))


def test_no_bound_of_a_score_lies_where_no_score_can() -> None:
    """Eleven of twelve answers lost: Student's t alone would say that up to 110 points of 100 are gone."""
    rows = paired_rows(1, 12, ("a",))
    rows = [row | {"score": 1.0} for row in rows]
    worse = [
        row | {"score": 0.0} if row["variant"] == LABEL and not row["item_id"].endswith("/0") else row
        for row in rows
    ]
    check = one(judged(rows, worse), LABEL, "score", "benchmark/a")
    assert check.loss == pytest.approx(100 * 11 / 12) and check.most_loss == 100.0
    better = one(judged(worse, rows), LABEL, "score", "benchmark/a")
    assert better.least_loss == -100.0


def test_a_gain_passes_whatever_its_size(seed: int) -> None:
    rows = night(seed)
    better = changed(rows, lambda row, rng: {"answer_nll": row["answer_nll"] - rng.normal(0.5, 0.1)}, seed)
    assert judged(rows, better).outcome == "pass"


def test_a_loss_between_nothing_and_the_margin_passes_and_one_around_it_is_open(seed: int) -> None:
    rows = night(seed)
    for mean, outcome in ((0.01, "pass"), (0.05, "inconclusive")):
        shift = np.random.default_rng(seed).normal(0, 0.05, size=160)
        shift += mean - shift.reshape(2, 80).mean(axis=1).repeat(80)  # each task loses just this much
        ids = [row["item_id"] for row in rows if row["variant"] == LABEL]
        losses = dict(zip(ids, shift, strict=True))
        other = [
            row | {"answer_nll": row["answer_nll"] + losses[row["item_id"]]}
            if row["variant"] == LABEL
            else row
            for row in rows
        ]
        assert judged(rows, other).outcome == outcome


def test_a_loss_inside_the_noise_of_the_full_cache_is_no_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    quiet = night(seed)
    rows = [
        row | {"answer_nll": row["answer_nll"] + rng.normal(0.5, 0.5)} if row["variant"] == "full_aa" else row
        for row in quiet
    ]
    worse = changed(rows, lambda row, rng: {"answer_nll": row["answer_nll"] + rng.normal(0.3, 0.1)}, seed)
    verdict = judged(rows, worse)
    assert verdict.outcome == "inconclusive"
    assert {it.reason for it in verdict.having("inconclusive")} == {INSIDE_NOISE}
    assert judged(quiet, worse).outcome == "fail"
    noisy = {row["identity"]: row["answer_nll"] for row in rows if row["variant"] == "full_aa"}
    raised = [row | {"answer_nll": noisy.get(row["identity"], row["answer_nll"])} for row in worse]
    assert judged(quiet, raised).outcome == "fail"  # a night does not raise the floor it is held to


def test_a_task_without_a_scale_in_the_baseline_is_not_gated_for_quality(seed: int) -> None:
    flat = paired_rows(seed, 80, ("a",), {"full": 0.0, "full_aa": 0.0, "no_context": -0.2, LABEL: 0.3})
    verdict = judged(flat, flat)
    assert {it.reason for it in verdict.checks if it.kind == "quality"} == {NO_SCALE}
    assert {it.verdict for it in verdict.checks if it.metric == "KV bytes"} == {"pass"}
    assert verdict.outcome == "inconclusive"  # bytes alone are no pass
    lines = log_lines(verdict, NightNames("tonight", "before", "here", "gate.md"))
    assert any("no check of quality could be measured" in line for line in lines)


def test_a_night_that_breaks_the_full_cache_too_still_fails(seed: int) -> None:
    rows = night(seed)
    rng = np.random.default_rng(seed)
    broken = [
        row
        if row["variant"] == "no_context"
        else row | {"answer_nll": row["answer_nll"] + rng.normal(4, 0.5)}
        for row in rows
    ]
    assert "full" in {it.label for it in judged(rows, broken).having("fail")}


def test_too_many_failed_items_are_no_verdict(seed: int) -> None:
    rows = night(seed)
    labelled = [row for row in rows if row["variant"] == LABEL]
    for num_failed, is_too_many in ((9, False), (10, True)):  # 2 % of 480 are 9.6
        lost = {row["identity"] for row in labelled[:num_failed]}
        tonight = [row | {"status": FAILED} if row["identity"] in lost else row for row in rows]
        verdict = judged(rows, tonight)
        assert (verdict.outcome == "too many failed") == is_too_many
        assert len(verdict.failed.missing) == num_failed


def test_a_number_that_is_gone_counts_as_failed(seed: int) -> None:
    rows = night(seed)
    gone = changed(rows, lambda row, rng: {"answer_nll": None, "answer_nll_reason": "not finite: nan"})
    verdict = judged(rows, gone)
    assert verdict.outcome == "too many failed" and len(verdict.failed.missing) == 160


def test_the_correction_can_take_a_verdict_away_and_its_family_is_stated(seed: int) -> None:
    rows = night(seed)
    found = set()
    shift = np.random.default_rng(seed).normal(0, 0.3, size=160)
    for mean in (0.05, 0.1, 0.12, 0.14, 0.16, 0.3):
        losses = dict(
            zip([f"{task}/{index}" for task in "ab" for index in range(80)], shift + mean, strict=True)
        )
        worse = [
            row | {"answer_nll": row["answer_nll"] + losses[row["item_id"]]}
            if row["variant"] == LABEL
            else row
            for row in rows
        ]
        found.add(
            tuple(
                frozenset((it.task, it.metric) for it in judged(rows, worse, gate).having("fail"))
                for gate in (GATE.model_copy(update={"correction": "none"}), GATE)
            )
        )
    assert all(corrected <= uncorrected for uncorrected, corrected in found)
    assert any(corrected < uncorrected for uncorrected, corrected in found)
    families = {it.family_size for it in judged(rows, rows).checks if it.adjusted_p is not None}
    assert families == {18}  # 3 variants x 2 metrics x (2 tasks and their mean)
    by_metric = judged(rows, rows, GATE.model_copy(update={"family": "metric"}))
    assert {it.family_size for it in by_metric.checks if it.adjusted_p is not None} == {9}


def test_the_log_has_ten_lines_at_most_and_the_verdict_first(seed: int) -> None:
    rows = night(seed)
    rng = np.random.default_rng(seed)
    worse = [
        row
        | {"answer_nll": row["answer_nll"] + rng.normal(0.4, 0.1), "kv_bytes": round(1.02 * row["kv_bytes"])}
        if row["variant"] in LABELS
        else row
        for row in rows
    ]
    worse[5] |= {"status": FAILED}
    lines = log_lines(judged(rows, worse), NAMES)
    assert len(lines) <= MAX_LINES and lines[0].startswith("REGRESSION  tonight against last week")
    text = "\n".join(lines)
    assert "at least" in text and "items are worse, most: " in text and "gate.md" in lines[-1]
    assert "seconds: rows are fused" in text and "failed   1 of 480" in text


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("model", "other", "model"),
        ("model_revision", "other", "model revision"),
        ("dtype", "bfloat16", "dtype"),
        ("attention", "triton", "attention backend"),
        ("metric", "rouge", "scorer"),
        ("scorer", "qa_f1 (2)", "scorer's version"),
        ("answers", ["x"], "gold answers"),
        ("cluster_id", "x", "context"),
        ("prompt_digest", "x", "prompt or answer length"),
    ],
)
def test_a_baseline_that_asked_or_computed_otherwise_is_refused(
    seed: int, column: str, value: Any, name: str
) -> None:
    rows = night(seed)
    with pytest.raises(ComparisonError, match=rf"this night cannot be paired, they differ in\n  {name}"):
        check_baseline(rows, [row | {column: value} for row in rows], LABELS)


def test_a_baseline_without_the_gated_policies_is_refused(seed: int) -> None:
    rows = night(seed)
    with pytest.raises(ComparisonError, match=r"none of tova@0\.5; it has full"):
        check_baseline(rows, rows, ("tova@0.5",))


def test_a_new_policy_is_told_and_not_judged(seed: int) -> None:
    rows = night(seed)
    old = [row for row in rows if row["variant"] != OTHER]
    verdict = judged(old, rows)
    assert verdict.skipped == (f"{OTHER} is not in the baseline",) and verdict.outcome == "pass"
    assert OTHER in "\n".join(log_lines(verdict, NAMES))


def test_gated_labels_are_the_sweeps_and_an_unknown_one_is_named() -> None:
    settings = make_settings(policies=["full", {"name": "knorm", "budget": 0.5}])
    assert gated_labels(settings, GateSettings()) == ("full", "knorm@0.5")
    for name in ("knorm@0.5", "knorm", "KnormPress"):
        assert gated_labels(settings, GateSettings(policies=(name,))) == ("knorm@0.5",)
    with pytest.raises(SettingsError, match=r"did you mean 'knorm@0\.5'"):
        gated_labels(settings, GateSettings(policies=("knorm@0.6",)))
