"""SimLayerKV against a reference written apart and kvpress's press; and what policies without a budget have in common."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvmerger.budget import Budget, KeptRatio
from kvmerger.building import Variant, build, build_variant
from kvmerger.contract.layers import NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.names import VariantError
from kvmerger.policies import registry
from kvmerger.policies.base import PolicyError
from kvmerger.policies.outcomes.simlayerkv import SimLayerKV
from kvmerger.prefill.evidence import window_attention
from kvmerger.variant_names import OUTCOMES
from kvmerger.variants import parse_policies, parse_policy_entry
from tests.fakes.random_layers import (
    DTYPES,
    attention_matrix,
    compressed,
    kept_positions,
    random_states,
)
from tests.kvmerger.policies.test_kvpress import evidence_of, kept_by, presses, random_layer
from tests.slow.outcomes import simlayerkv as slow

__all__ = ["presses"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_layer_is_lazy_where_its_last_query_looks_near(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    last_rows = [of_head[-1] for of_head in attention_matrix(states)]
    nearby = slow.nearby_attention(last_rows, 3, 40)
    lengths = set()
    for threshold in (0.0, nearby - 1e-4, nearby + 1e-4, 1.0):
        policy = SimLayerKV(threshold, n_initial=3, n_recent=40)
        kept = kept_positions(policy, states)
        assert kept == [slow.kept(last_rows, threshold, 3, 40)] * 2
        counters = compressed(policy, states).counters
        assert counters["nearby_attention"] == pytest.approx(nearby, rel=1e-5)
        assert counters["lazy_ratio"] == (nearby > threshold)
        lengths.add(len(kept[0]))
    assert lengths == {43, 120}


def test_a_threshold_of_1_and_a_short_prompt_drop_nothing(seed: int) -> None:
    states = random_states(seed)
    assert [len(kept) for kept in kept_positions(SimLayerKV(1.0, 0, 1), states)] == [120, 120]
    # Both parts together are the prompt, though all attention is near.
    assert [len(kept) for kept in kept_positions(SimLayerKV(0.0, 4, 116), states)] == [120, 120]


@pytest.mark.parametrize("shape", ["gqa", "mha"])
def test_it_and_kvpress_call_the_same_layers_lazy(shape: str, presses: Any, seed: int) -> None:
    """kvpress asks about the tokens before the last one, and keeps one recent token less."""
    layer = random_layer(shape, 150, seed)
    row_N = evidence_of(SimLayerKV(), layer).get(window_attention(1)).mean(dim=0)
    theirs, ours = float(row_N[:4].sum() + row_N[-51:-1].sum()), float(row_N[:4].sum() + row_N[-50:].sum())
    for threshold in (min(theirs, ours) - 1e-3, max(theirs, ours) + 1e-3):
        policy = SimLayerKV(threshold, n_recent=50)
        mine_HN = policy.select(evidence_of(policy, layer), Budget.uniform(150, layer.num_heads, 1.0))
        press_HN = kept_by(presses.SimLayerKVPress(threshold, n_recent=50), layer)
        is_lazy = threshold < ours
        assert mine_HN.sum(dim=1).tolist() == [54 if is_lazy else 150] * layer.num_heads
        assert (mine_HN & ~press_HN).sum(dim=1).tolist() == [int(is_lazy)] * layer.num_heads
        assert not (press_HN & ~mine_HN).any()


@pytest.mark.parametrize(("name", "value"), [("lazy_threshold", 1.1), ("n_initial", -1), ("n_recent", 0)])
def test_bad_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(PolicyError, match=f"simlayerkv: {name}"):
        build("simlayerkv", {name: value})


def test_policies_without_a_budget_are_known_by_name() -> None:
    """An entry is read without torch, so that what classes say of themselves is listed a second time."""
    takes_none = [
        name
        for name in registry.names()
        if not (policy := build(name, {})).spends_bytes and policy.budget_refusal(KeptRatio(0.5)) is not None
    ]
    assert sorted(OUTCOMES) == takes_none


@pytest.mark.parametrize("name", OUTCOMES)
def test_an_entry_needs_no_budget_and_takes_none(name: str) -> None:
    (spec,) = parse_policy_entry(name)
    assert (spec.label, spec.budget) == (name, None)
    assert build_variant(spec).policy.budget_is_outcome
    assert parse_policy_entry(f"{name}+compensated+int4")[0].label == f"{name}+compensated+int4"
    with pytest.raises(VariantError, match=r"takes no budget, got 0\.5; leave the budget out"):
        build_variant(parse_policy_entry(f"{name}@0.5")[0])
    with pytest.raises(VariantError, match=f"add {name} to the policies"):
        parse_policies([f"snapkv@like:{name}"])


def test_others_take_its_slots_layer_by_layer(seed: int) -> None:
    specs = parse_policies([{"name": "simlayerkv", "n_recent": 30}, "knorm@like:simlayerkv"])
    variants = [build_variant(spec) for spec in specs]
    prefilled = random_prefill(seed, torch.float32, variants[0].policy)
    rows = [evidence.get(window_attention(1)).mean(dim=0) for evidence in prefilled.evidence]
    nearby = [float(row_N[:4].sum() + row_N[-30:].sum()) for row_N in rows]
    # Between two layers, so that there are lazy ones and others.
    between = sum(sorted(nearby)[NUM_LAYERS // 2 - 1 :][:2]) / 2
    lazy = Variant("simlayerkv", SimLayerKV(between, n_recent=30), None)
    done = compress_all(prefilled, [lazy, variants[1]]).done
    slots = [layer.num_slots_H for layer in done["simlayerkv"].prefix]
    assert slots == [((34,) * 2 if share > between else (NUM_TOKENS,) * 2) for share in nearby]
    assert [layer.num_slots_H for layer in done["knorm@like:simlayerkv"].prefix] == slots
    assert done["simlayerkv"].asked_slots is None
