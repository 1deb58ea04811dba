"""MEDA's entropies and layers against references written apart, and the ends of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.kernels.reference import prompt
from kvmerger.policies.allocation.meda import Meda
from kvmerger.policies.base import PolicyError
from kvmerger.policies.ranking.h2o import H2O
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence
from kvmerger.prefill.row_entropy import ROW_ENTROPY
from kvmerger.variants import parse_policy_entry
from tests.fakes.random_layers import (
    DTYPES,
    NUM_KV_HEADS,
    NUM_QUERY_HEADS,
    NUM_TOKENS,
    attention_matrix,
    evidence_for,
    random_states,
)
from tests.slow.sharing import meda as slow


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_entropy_is_that_of_every_row(dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        prompt, "_MAX_BLOCK_SCORES", 7 * NUM_QUERY_HEADS * NUM_TOKENS
    )  # no divisor of the tokens
    states = random_states(seed, dtype)
    found = evidence_for(Meda(H2O()), states).get(ROW_ENTROPY)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(slow.entropy(attention_matrix(states)), rel=1e-5)
    assert all(0 < entropy < math.log(NUM_TOKENS) for entropy in found.tolist())


def test_attention_to_all_alike_has_the_most_and_to_one_none(seed: int) -> None:
    states = random_states(seed)
    flat = replace(states, q_QND=torch.zeros_like(states.q_QND))
    most = sum(math.log(token + 1) for token in range(NUM_TOKENS)) / NUM_TOKENS
    assert evidence_for(Meda(H2O()), flat).get(ROW_ENTROPY).tolist() == pytest.approx([most] * 4, rel=1e-5)
    sharp = replace(states, q_QND=torch.ones_like(states.q_QND), k_HND=torch.zeros_like(states.k_HND))
    sharp.k_HND[:, 0] = 100.0
    assert evidence_for(Meda(H2O()), sharp).get(ROW_ENTROPY).tolist() == pytest.approx([0] * 4, abs=1e-6)


def layers(factors: Sequence[float], seed: int, inner: ScoringPolicy) -> list[Evidence]:
    """Layers whose queries are so many times as long: the longer, the less entropy."""
    states = random_states(seed)
    return [evidence_for(Meda(inner), replace(states, q_QND=states.q_QND * factor)) for factor in factors]


@pytest.mark.parametrize("inner", [H2O(), SnapKV(8)], ids=str)
@pytest.mark.parametrize(
    ("num_slots", "least_share"), [(9, 0.05), (30, 0.01), (60, 0), (100, 0.01), (119, 0.3)]
)
def test_layers_get_their_share_of_the_softmax(
    num_slots: int, least_share: float, inner: ScoringPolicy, seed: int
) -> None:
    evidence_L = layers([0.1, 1, 3, 0.5, 6], seed, inner)
    even = Budget.uniform(num_slots, NUM_KV_HEADS, num_slots / NUM_TOKENS)
    found = Meda(inner, least_share).allocate([even] * 5, evidence_L)
    slots = [budget.num_slots_H[0] for budget in found]
    entropy_LQ = [evidence.get(ROW_ENTROPY).tolist() for evidence in evidence_L]
    assert slots == slow.slots(entropy_LQ, num_slots, NUM_TOKENS, inner.num_protected, least_share)
    assert sum(slots) == 5 * num_slots and max(slots) <= NUM_TOKENS
    assert slots[0] >= slots[3] >= slots[1] >= slots[2] >= slots[4]


def test_layers_of_one_entropy_get_the_same(seed: int) -> None:
    even = Budget.uniform(31, NUM_KV_HEADS, 31 / NUM_TOKENS)
    found = Meda(H2O()).allocate([even] * 3, layers([1, 1, 1], seed, H2O()))
    assert [budget.num_slots_H for budget in found] == [(31, 31)] * 3


def test_its_bare_name_is_h2o_in_layers_that_differ() -> None:
    bare, spelt = (
        parse_policy_entry({"name": name, "budget": 0.5})[0].canonical() for name in ("meda", "h2o+meda")
    )
    assert bare == spelt


@pytest.mark.parametrize("value", [-0.1, 1, True, "some", float("nan")])
def test_what_is_no_share_is_refused(value: object) -> None:
    with pytest.raises(PolicyError, match="meda: least_share"):
        Meda(H2O(), value)  # type: ignore[arg-type]
