"""An isolated row pays for itself alone, also where its budget is like another row's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from kvmerger.building import Variant, build_variant
from kvmerger.engine import Engine, isolated
from kvmerger.generation import Generation, VariantFailure
from kvmerger.prefill.evidence import Need
from kvmerger.prefill.prefill import Prefilled
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT, parse_policies
from tests.fakes.tiny_models import tiny_model
from tests.kvmerger.engine.test_engine import make_prompt

# Those that are like others come first, one of them like a third; `ragged` keeps other numbers in every head.
POLICIES = [
    {"name": "knorm", "budget": {"like": "like_ragged"}, "label": "like_like"},
    {"name": "random", "budget": {"like": "ragged"}, "label": "like_ragged"},
    {"name": "random", "budget": {"like": "h2o@0.4"}, "label": "like_h2o"},
    {"name": "h2o", "budget": 0.4},
    {"name": "snapkv+adakv", "budget": 0.4, "window_size": 16, "label": "ragged"},
    {"name": "snapkv", "budget": 10, "label": "impossible"},
    {"name": "random", "budget": {"like": "impossible"}, "label": "orphan"},
]
LABELS = [FULL, NO_CONTEXT, *(str(entry.get("label", "h2o@0.4")) for entry in POLICIES), FULL_AA]


def variants() -> list[Variant]:
    return [build_variant(spec) for spec in parse_policies(POLICIES)]


def run(seed: int, execution: Any) -> list[Generation | VariantFailure]:
    prompt = make_prompt(seed, 120, "query_aware", num_questions=1)
    prompt = replace(prompt, questions=(replace(prompt.questions[0], max_new_tokens=4),))
    return Engine(tiny_model(seed, num_layers=3).ours).run(prompt, variants(), execution=execution)


def test_rows_come_in_the_order_they_were_asked_for_with_the_slots_of_fused_ones(seed: int) -> None:
    rows = run(seed, "isolated")
    assert [row.label for row in rows] == LABELS
    fused = {row.label: row for row in run(seed, "fused")}
    for row in rows:
        theirs = fused[row.label]
        if isinstance(row, VariantFailure):
            assert (row.error_type, row.message) == (theirs.error_type, theirs.message)
            continue
        assert (row.slots_LH, row.asked_slots) == (theirs.slots_LH, theirs.asked_slots)
    by_label = {row.label: row for row in rows}
    assert len({slots for layer in by_label["ragged"].slots_LH for slots in layer}) > 1
    assert by_label["like_like"].slots_LH == by_label["ragged"].slots_LH
    assert by_label["like_h2o"].slots_LH == by_label["h2o@0.4"].slots_LH
    assert isinstance(by_label["orphan"], VariantFailure)
    assert "has no cache here" in by_label["orphan"].message


def test_a_rows_prefill_has_its_own_evidence_and_nobody_elses(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: list[frozenset[Need]] = []
    whole = isolated.prefill

    def noted(model: Any, context_ids: Any, needed: frozenset[Need], *others: Any, **named: Any) -> Prefilled:
        needs.append(needed)
        return whole(model, context_ids, needed, *others, **named)

    monkeypatch.setattr(isolated, "prefill", noted)
    run(seed, "isolated")
    expected = [frozenset[Need]()] * 3 + [variant.policy.needs() for variant in variants()]
    assert sorted(needs, key=str) == sorted(expected, key=str), "one prefill a row"


def test_slots_of_a_row_that_could_not_answer_are_known_all_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {row.label: row for row in run(seed, "isolated")}

    class Cramped(isolated.Batch):
        def __init__(self, model: Any, prompt: Any, rows: Any, *others: Any) -> None:
            if rows[0].label == "ragged":
                raise torch.OutOfMemoryError("no room for its tails")
            super().__init__(model, prompt, rows, *others)

    monkeypatch.setattr(isolated, "Batch", Cramped)
    rows = {row.label: row for row in run(seed, "isolated")}
    assert [label for label, row in rows.items() if isinstance(row, VariantFailure)] == [
        "ragged",
        "impossible",
        "orphan",
    ]
    for label in ("like_like", "like_ragged"):
        assert rows[label].slots_LH == expected[label].slots_LH
        assert rows[label].token_ids == expected[label].token_ids
