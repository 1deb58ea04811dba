"""The study's comparisons are between variants that its configuration has, and on the slots it says."""

from pathlib import Path

import numpy as np
import pytest

from bench.statistics.merging_study import HALVES, KL, METRICS, other_slots, same_slots, study
from jobs.analysis.pairing import ANSWER_NLL
from jobs.settings.schema import load_settings
from tests.fakes.rows import make_row

CONFIG = Path(__file__).parents[3] / "jobs" / "configs" / "merging_study.yaml"
LABELS = [spec.label for spec in load_settings(CONFIG).variants]


@pytest.mark.parametrize("label", LABELS)
def test_every_reference_is_in_the_study(label: str) -> None:
    assert {*other_slots(label)} <= {*LABELS}
    assert same_slots(label) in {None, *LABELS} - {label}


def test_what_merges_is_compared_with_the_same_slots_unmerged() -> None:
    assert same_slots("snapkv+comp@0.5") == "snapkv@0.5"
    assert same_slots("kvmerger-attn@0.2") == same_slots("kvmerger@0.2") == "pivots@0.2"
    assert same_slots("kvmerger.both-attn@0.35") == "pivots.both@0.35"
    assert [label for label in LABELS if same_slots(label) is None and other_slots(label) == []] == [
        "full",
        *(f"snapkv@{budget}" for budget in (0.5, 0.35, 0.2)),
    ]


def test_kl_has_the_interval_of_skewed_differences_and_nll_has_t(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = [
        make_row(
            f"{label} {index}", item_id=f"i{index}", cluster_id=f"c{index}", variant=label,
            kl_mean=float(rng.lognormal(sigma=1.5)), answer_nll=float(rng.normal()),
        )
        for label in ("snapkv@0.5", "snapkv+comp@0.5")
        for index in range(120)
    ]  # fmt: skip
    (found,) = study(rows, lambda label: [same_slots(label) or ""])
    methods = {
        (half, metric.name): found.interval_by[half, metric.name].method
        for half in HALVES
        for metric in METRICS
    }
    assert methods == {
        (half, it.name): name
        for half in HALVES
        for it, name in ((KL, "widened_skewed_t"), (ANSWER_NLL, "student_t"))
    }
