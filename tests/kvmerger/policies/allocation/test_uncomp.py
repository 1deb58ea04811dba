"""UNComp's entropies and lengths against references written apart, and the ends of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.building import Variant, build
from kvmerger.contract.layers import NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies.allocation.uncomp import UNComp, query_entropy
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.ranking.h2o import H2O
from kvmerger.policies.ranking.keydiff import KeyDiff
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.prefill.evidence import Evidence, LayerStates
from kvmerger.variants import parse_policy_entry
from tests.fakes.random_layers import DTYPES, HEAD_DIM, evidence_for, random_states
from tests.slow.sharing import uncomp as slow


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_eigenvalues", [3, HEAD_DIM, 32])
def test_entropy_is_that_of_the_queries_directions(
    num_eigenvalues: int, dtype: torch.dtype, seed: int
) -> None:
    states = random_states(seed, dtype)
    policy = UNComp(H2O(), num_eigenvalues=num_eigenvalues)
    found = evidence_for(policy, states).get(query_entropy(num_eigenvalues))
    assert found.dtype == torch.float32
    expected = [slow.entropy(q_ND, num_eigenvalues) for q_ND in states.q_QND]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def entropies(q_ND: Tensor, seed: int) -> list[float]:
    states = random_states(seed)
    states = LayerStates(q_ND.expand(4, -1, -1), states.k_HND, states.v_HND, 0.5)
    return evidence_for(UNComp(H2O()), states).get(query_entropy(32)).tolist()


def test_one_direction_has_no_entropy_and_all_alike_have_the_most(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    line = torch.randn(120, 1, generator=generator) * torch.randn(HEAD_DIM, generator=generator)
    assert entropies(line, seed) == pytest.approx([0] * 4, abs=1e-4)
    cross = torch.cat([torch.eye(HEAD_DIM), -torch.eye(HEAD_DIM)]).repeat(7, 1) + 3.0
    assert entropies(cross, seed) == pytest.approx([1] * 4, rel=1e-6)
    assert entropies(torch.ones(120, HEAD_DIM), seed) == pytest.approx([0] * 4, abs=1e-4)


def with_entropies(entropy_Q: Sequence[float], policy: UNComp, seed: int) -> Evidence:
    """A layer with a KV head for every two of these."""
    states = random_states(seed)
    heads = len(entropy_Q) // 2
    states = replace(
        states, k_HND=states.k_HND[:1].repeat(heads, 1, 1), v_HND=states.v_HND[:1].repeat(heads, 1, 1)
    )
    states = replace(states, q_QND=states.q_QND[:1].repeat(2 * heads, 1, 1))
    evidence = evidence_for(policy, states)
    evidence.put(query_entropy(policy.num_eigenvalues), torch.tensor(entropy_Q))
    return evidence


@pytest.mark.parametrize("ratio", [2, 0.5, 3.7])
@pytest.mark.parametrize("num_heads", [2, 3, 6])
def test_heads_get_two_lengths_that_sum_to_the_budget(num_heads: int, ratio: float, seed: int) -> None:
    entropy_Q = torch.rand(2 * num_heads, generator=torch.Generator().manual_seed(seed)).tolist()
    policy = UNComp(KeyDiff(), ratio)
    evidence = with_entropies(entropy_Q, policy, seed)
    for num_slots in (7, 30, 41):
        (found,) = policy.allocate([Budget.uniform(num_slots, num_heads, 0.3)], [evidence])
        assert sum(found.num_slots_H) == num_slots * num_heads and found.asked_ratio == 0.3
        exact = slow.slots(entropy_Q, num_slots, ratio)
        assert all(abs(a - b) < 1 for a, b in zip(found.num_slots_H, exact, strict=True))


def test_a_mean_of_576_is_what_the_authors_call_512(seed: int) -> None:
    states = random_states(seed, num_tokens=2000)
    policy = UNComp(KeyDiff())
    evidence = evidence_for(policy, states)
    evidence.put(query_entropy(32), torch.tensor([0.1, 0.9, 0.6, 0.5]))
    (found,) = policy.allocate([Budget.uniform(576, 2, 576 / 2000)], [evidence])
    assert found.num_slots_H == (384, 768)
    # Of the same entropy the earlier head is in the upper half; a head takes no more than there is.
    evidence.put(query_entropy(32), torch.tensor([0.5] * 4))
    assert policy.allocate([Budget.uniform(1800, 2, 0.9)], [evidence])[0].num_slots_H == (2000, 1600)
    whole = Budget.uniform(2000, 2, 1.0)
    assert policy.allocate([whole], [evidence])[0] == whole


@pytest.mark.parametrize("name", ["snapkv+uncomp", "snapkv+dynamickv+uncomp", "h2o+uncomp"])
def test_the_ranking_chooses_within_heads_and_layers_may_differ(name: str, seed: int) -> None:
    params = {"window_size": 16} if "snapkv" in name else {}
    policy, front = build(name, params), build(name.removesuffix("+uncomp"), params)
    prefilled = random_prefill(seed, torch.float32, policy)
    done = compress_all(
        prefilled, [Variant("both", policy, KeptRatio(0.4)), Variant("one", front, KeptRatio(0.4))]
    ).done
    assert [it.num_slots for it in done["both"].prefix] == [it.num_slots for it in done["one"].prefix]
    for index, kept in enumerate(done["both"].prefix):
        alone = build(name.partition("+")[0], params).compress(
            prefilled.layers[index], prefilled.evidence[index], Budget(kept.num_slots_H, 0.4)
        )
        assert torch.equal(kept.position_S, alone.position_S)
        lower, higher = sorted(kept.num_slots_H)
        # Whole layers, which `dynamickv` may give, leave nothing to share out.
        assert higher == NUM_TOKENS or abs(higher - 2 * lower) <= 2
    assert len(done["both"].prefix) == NUM_LAYERS


def test_its_bare_name_is_the_published_method() -> None:
    bare, spelt = (
        parse_policy_entry({"name": name, "budget": 0.5, "window_size": 8})[0].canonical()
        for name in ("uncomp", "snapkv+uncomp")
    )
    assert bare == spelt


@pytest.mark.parametrize(
    ("shape", "budget", "message"),
    [
        (CacheShape(120, 4, 2), SlotCount(64), "leave nothing to share out"),
        (CacheShape(120, 4, 1), SlotCount(80), "on 1 KV head"),
        (CacheShape(120, 4, 2), LikeVariant("other"), "use snapkv alone"),
    ],
)
def test_where_there_is_nothing_to_share_out_it_is_refused(shape: CacheShape, budget, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        UNComp(SnapKV()).check(shape, budget)
    UNComp(SnapKV()).check(CacheShape(120, 4, 2), SlotCount(65))


@pytest.mark.parametrize("name", ["kvmerger+uncomp", "snapkv+adakv+uncomp", "duo_attention+uncomp"])
def test_what_shares_out_among_heads_or_does_not_rank_is_refused(name: str) -> None:
    with pytest.raises(PolicyError, match="uncomp shares slots out among heads"):
        build(name, {})


@pytest.mark.parametrize(("name", "value"), [("ratio", 0), ("ratio", True), ("num_eigenvalues", 0)])
def test_bad_parameters_are_refused(name: str, value: object) -> None:
    with pytest.raises(PolicyError, match=f"uncomp: {name}"):
        build("snapkv+uncomp", {name: value})
