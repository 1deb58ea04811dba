"""Attention matching and GRKV against normal equations in float64, and what each promises of its fit."""

from typing import NamedTuple

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.layers import HEAD_DIM, NUM_KV_HEADS, NUM_TOKENS, random_prefill
from kvmerger.names import VariantError
from kvmerger.policies import registry
from kvmerger.policies.base import PolicyError
from kvmerger.policies.reducers import fitted
from kvmerger.policies.reducers.fitted import FittedReducer, attended
from kvmerger.prefill.evidence import Evidence
from kvmerger.prefill.repeat_evidence import repeat_queries
from kvmerger.variants import parse_policies
from tests.slow.fitted import folds, slow_attention_matching, slow_grkv

SCALING = HEAD_DIM**-0.5
CASES = [
    ("attention_matching", {}),
    ("attention_matching", {"ridge": 0.01, "bias_ridge": 0.01, "num_steps": 30, "max_bias": 0.5}),
    ("attention_matching", {"fit_values": False, "num_steps": 0}),
    ("attention_matching", {"num_queries": 40}),
    ("grkv", {}),
    ("grkv", {"num_queries": 32, "ridge": 0.5, "max_change": 0.9, "num_fixed": 0}),
    ("grkv", {"weight": 100, "num_fixed": 100}),
]
BUDGETS = [Budget((100, 140), 0.4), Budget((NUM_TOKENS, 20), 0.5), Budget((3, 1), 0.01)]


class Case(NamedTuple):
    policy: FittedReducer
    layer: LayerCache
    evidence: Evidence

    @property
    def q_HKD(self) -> torch.Tensor:
        return self.evidence.get(repeat_queries(self.policy.num_queries))

    def kept(self, budget: Budget) -> list[list[int]]:
        is_kept_HN = self.policy.inner.select(self.evidence, budget)
        return [row.nonzero().flatten().tolist() for row in is_kept_HN]

    def compressed(self, budget: Budget) -> LayerCache:
        return self.policy.compress(self.layer, self.evidence, budget)

    def heads(self, layer: LayerCache) -> list[torch.Tensor]:
        return list(layer.v_SD.split(layer.num_slots_H))


def case_of(seed: int, name: str, params: dict, dtype: torch.dtype = torch.float32) -> Case:
    policy = build(f"random+{name}", params)
    assert isinstance(policy, FittedReducer)
    prefilled = random_prefill(seed, dtype, policy)
    return Case(policy, prefilled.layers[3], prefilled.evidence[3])


@pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: str(budget.num_slots_H))
@pytest.mark.parametrize(("name", "params"), CASES, ids=str)
def test_equals_normal_equations(name: str, params: dict, budget: Budget, seed: int) -> None:
    case = case_of(seed, name, params)
    found = case.compressed(budget)
    found.check_integrity()
    evicted = case.policy.inner.compress(case.layer, case.evidence, budget)
    assert torch.equal(found.k_SD, evicted.k_SD) and torch.equal(found.position_S, evicted.position_S)
    starts = found.head_starts
    for head, (kept, ours_SD) in enumerate(zip(case.kept(budget), case.heads(found), strict=True)):
        given = (case.policy, case.q_HKD[head], case.layer.k_HND[head], case.layer.v_HND[head], kept, SCALING)
        if name == "grkv":
            expected_SD = slow_grkv(*given)
            assert found.log_mass_S is None
        else:
            expected_SD, bias_S = slow_attention_matching(*given)
            assert found.log_mass_S is not None
            ours_S = found.log_mass_S[starts[head] : starts[head] + len(kept)]
            torch.testing.assert_close(ours_S.double(), bias_S, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(ours_SD.double(), expected_SD, atol=2e-3, rtol=1e-3)


def test_every_fitted_reducer_has_a_reference() -> None:
    fitted_names = {
        name for name in registry.wrapper_names() if issubclass(registry.get_wrapper(name), FittedReducer)
    }
    assert fitted_names == {name for name, _ in CASES}


@pytest.mark.parametrize(
    ("name", "params"),
    [("attention_matching", {"ridge": 1e30, "bias_ridge": 1e30, "num_steps": 0}), ("grkv", {"ridge": 1e30})],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_ridge_without_end_is_eviction_bit_for_bit(
    name: str, params: dict, dtype: torch.dtype, seed: int
) -> None:
    case = case_of(seed, name, params, dtype)
    found = case.compressed(BUDGETS[0])
    evicted = case.policy.inner.compress(case.layer, case.evidence, BUDGETS[0])
    assert torch.equal(found.v_SD, evicted.v_SD)
    assert found.log_mass_S is None or not found.log_mass_S.any()
    assert found.counters["mean_fitted_error"] == pytest.approx(
        found.counters["mean_evicted_error"], rel=1e-5
    )


def outputs(case: Case, head: int, found: LayerCache, budget: Budget) -> tuple[torch.Tensor, torch.Tensor]:
    """What the queries that were fitted to get of a head's slots, and of all tokens, in float64."""
    q_KD = case.q_HKD[head].double()[folds(case.q_HKD.shape[1])[0]]
    part = slice(found.head_starts[head], found.head_starts[head] + found.num_slots_H[head])
    score_KS = SCALING * q_KD @ found.k_SD[part].double().T
    if found.log_mass_S is not None:
        score_KS = score_KS + found.log_mass_S[part]
    full_KD = (SCALING * q_KD @ case.layer.k_HND[head].double().T).softmax(dim=1) @ case.layer.v_HND[
        head
    ].double()
    return score_KS.softmax(dim=1) @ found.v_SD[part].double(), full_KD


def test_as_many_slots_as_queries_and_hardly_a_ridge_reproduce_the_outputs(seed: int) -> None:
    case = case_of(seed, "attention_matching", {"num_queries": 40, "ridge": 1e-6})
    found = case.compressed(BUDGETS[0])
    for head in range(NUM_KV_HEADS):
        ours_KD, full_KD = outputs(case, head, found, BUDGETS[0])
        torch.testing.assert_close(ours_KD, full_KD, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_grkv_is_never_worse_where_it_was_fitted_keeps_its_cap_and_leaves_the_last_values(
    dtype: torch.dtype, seed: int
) -> None:
    case = case_of(seed, "grkv", {"ridge": 1e-4}, dtype)
    found = case.compressed(BUDGETS[0])
    evicted = case.policy.inner.compress(case.layer, case.evidence, BUDGETS[0])
    for head in range(NUM_KV_HEADS):
        (ours_KD, full_KD), (evicted_KD, _) = (outputs(case, head, it, BUDGETS[0]) for it in (found, evicted))
        assert (ours_KD - full_KD).norm() <= (evicted_KD - full_KD).norm() * 1.001
        ours_SD, before_SD = case.heads(found)[head].double(), case.heads(evicted)[head].double()
        assert 0 < (ours_SD - before_SD).norm() <= 0.1 * before_SD.norm()
    is_last_S = found.position_S >= NUM_TOKENS - 32
    assert is_last_S.any() and torch.equal(found.v_SD[is_last_S], evicted.v_SD[is_last_S])


def test_a_head_without_slots_is_left_out(seed: int) -> None:
    for name in ("attention_matching", "grkv"):
        found = case_of(seed, name, {}).compressed(Budget((0, 60), 0.1))
        found.check_integrity()
        assert found.num_slots_H == (0, 60) and found.v_SD.isfinite().all()


def test_what_all_tokens_give_does_not_depend_on_blocks(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(seed, "grkv", {})
    given = (case.layer.k_HND, case.layer.v_HND, case.q_HKD, SCALING)
    whole = attended(*given)
    monkeypatch.setattr(fitted, "_MOST_SCORES", NUM_KV_HEADS * NUM_TOKENS * 7)
    for ours, theirs in zip(attended(*given), whole, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bare_names_stand_for_the_methods_as_published() -> None:
    specs = parse_policies([{"name": name, "budget": 0.5} for name in ("attention_matching", "grkv")])
    assert [spec.policy for spec in specs] == [
        "highest_attention+attention_matching",
        "snapkv+adakv+criticalkv+grkv",
    ]
    assert [spec.label for spec in specs] == ["attention_matching@0.5", "grkv@0.5"]


@pytest.mark.parametrize(
    ("name", "params", "error"),
    [
        ("attention_matching", {"ridge": 0}, PolicyError),
        ("attention_matching", {"num_queries": 0}, PolicyError),
        ("attention_matching", {"num_steps": -1}, PolicyError),
        ("grkv", {"max_change": "much"}, PolicyError),
        ("grkv", {"num_fixed": -1}, PolicyError),
        ("grkv", {"max_bias": 1.0}, VariantError),
    ],
)
def test_values_outside_their_domain_are_refused(name: str, params: dict, error: type) -> None:
    with pytest.raises(error):
        build(f"random+{name}", params)
