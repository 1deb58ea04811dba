"""Rows in a form that no kernel reads decode by themselves, and cost the others neither their recorded steps nor a bit."""

from __future__ import annotations

import pytest

from kvmerger.building import build_variant
from kvmerger.decoding.step_graphs import StepGraphs
from kvmerger.engine import Engine
from kvmerger.engine.groups import by_rows, labels_without_kernels
from kvmerger.generation import Generation
from kvmerger.variants import parse_policies
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.decoding.test_step_graphs import Calls
from tests.kvmerger.engine.test_engine import make_prompt

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


def outcomes_of(generations: list) -> dict[tuple[str, int], object]:
    assert all(isinstance(it, Generation) for it in generations)
    return {
        (it.label, it.question_index): (it.token_ids, it.answer_nll, it.kl_mean, it.kv_bytes)
        for it in generations
    }


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


@pytest.mark.parametrize("num_prompts", [1, 2])
def test_others_are_recorded_and_no_number_changes(num_prompts: int, seed: int) -> None:
    model = tiny_model(seed, num_layers=2)
    prompts = [make_prompt(seed + index, 60 + 7 * index, "query_agnostic") for index in range(num_prompts)]
    plain = [Engine(model.ours).run(prompt, variants()) for prompt in prompts]
    recording = Engine(model.ours)
    recording._graphs = graphs = StepGraphs(model.ours, Calls())
    recorded = recording.run_many(prompts, variants())
    assert [outcomes_of(its) for its in recorded] == [outcomes_of(its) for its in plain]
    assert graphs.num_recorded
