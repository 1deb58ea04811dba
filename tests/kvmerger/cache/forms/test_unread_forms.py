"""Rows in a form that no kernel reads decode by themselves, where they would have been beside the others."""

from __future__ import annotations

from kvmerger.building import build_variant
from kvmerger.engine.groups import by_rows, labels_without_kernels
from kvmerger.variants import parse_policies

STRANGER = "tests.contracts.test_stored_forms:Halves"
ENTRIES = [
    "int8",
    {"name": f"keydiff+{STRANGER}", "budget": 0.5, "label": "stranger"},
    {"name": "random", "budget": {"like": "stranger"}, "label": "follower"},
    {"name": "knorm", "budget": {"like": "follower"}, "label": "its own"},
    {"name": "snapkv", "budget": 0.5, "window_size": 8},
]
APART = {"stranger", "follower", "its own"}


def variants():
    return [build_variant(spec) for spec in parse_policies(ENTRIES)]


def test_they_and_what_is_like_them_are_named() -> None:
    assert labels_without_kernels(variants()) == APART


def test_a_parted_group_keeps_places_and_bucket() -> None:
    labels = [it.label for it in variants()]
    (group,) = by_rows(labels, 2, 64)
    parts = group.parted(APART)
    assert [set(part.place_by_label) for part in parts] == [set(labels) - APART, APART]
    assert {part.bucket for part in parts} == {group.bucket}
    assert {**parts[0].place_by_label, **parts[1].place_by_label} == group.place_by_label
    assert group.parted(()) == [group]
    assert group.parted(labels) == [group]
