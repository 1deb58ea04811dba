"""The study's comparisons are between variants that its configuration has, and on the slots it says."""

from pathlib import Path

import pytest

from bench.statistics.merging_study import other_slots, same_slots
from jobs.settings.schema import load_settings

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
