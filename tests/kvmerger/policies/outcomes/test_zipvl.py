"""ZipVL against a reference written apart, and what a share of the attention takes."""

from __future__ import annotations

import pytest
import torch

from kvmerger.building import build_variant
from kvmerger.contract.layers import NUM_TOKENS as CONTRACT_TOKENS
from kvmerger.contract.layers import random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.base import PolicyError
from kvmerger.policies.outcomes.zipvl import ZipVL
from kvmerger.prefill.evidence import ATTENTION_MASS
from kvmerger.variants import VariantSpec
from tests.fakes.random_layers import (
    DTYPES,
    NUM_KV_HEADS,
    NUM_TOKENS,
    attention_matrix,
    compressed,
    evidence_for,
    kept_positions,
    random_states,
)
from tests.slow.outcomes import zipvl as slow


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_count_and_choice_are_those_of_a_loop(dtype: torch.dtype, seed: int) -> None:
    states = random_states(seed, dtype)
    mass_N = slow.masses(attention_matrix(states))
    lengths = []
    for share in (1e-9, 0.3, 0.8, 0.975, 1):
        policy = ZipVL(share)
        expected = slow.kept(mass_N, share)
        assert kept_positions(policy, states) == [expected] * NUM_KV_HEADS
        held = sum(mass_N[token] for token in expected) / sum(mass_N)
        assert compressed(policy, states).counters["kept_attention"] == pytest.approx(held, rel=1e-5)
        lengths.append(len(expected))
    assert lengths == sorted(lengths) and lengths[0] == 1 and lengths[-1] == NUM_TOKENS


def test_where_all_tokens_get_alike_the_share_is_that_of_the_tokens(seed: int) -> None:
    policy = ZipVL(0.75)
    evidence = evidence_for(policy, random_states(seed))
    evidence.put(ATTENTION_MASS, torch.ones(NUM_KV_HEADS, NUM_TOKENS))
    is_kept_HN = policy.select(evidence, None)  # type: ignore[arg-type]
    # Seen by fewest queries, the last get most of each.
    assert is_kept_HN.nonzero()[:, 1].unique().tolist() == list(range(NUM_TOKENS // 4, NUM_TOKENS))


def test_layers_keep_unlike_numbers_of_tokens(seed: int) -> None:
    variant = build_variant(VariantSpec("zipvl", "zipvl", (("mass", 0.9),)))
    prefilled = random_prefill(seed, torch.float32, variant.policy)
    kept = compress_all(prefilled, [variant]).done["zipvl"].prefix
    expected = [
        len(slow.kept(evidence.get(ATTENTION_MASS).double().mean(dim=0).tolist(), 0.9))
        for evidence in prefilled.evidence
    ]
    assert [layer.num_slots_H for layer in kept] == [(count, count) for count in expected]
    assert len(set(expected)) > 1 and max(expected) < CONTRACT_TOKENS


@pytest.mark.parametrize("value", [0, 1.01, True, "most", float("nan")])
def test_what_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(PolicyError, match="zipvl: mass"):
        ZipVL(value)  # type: ignore[arg-type]
