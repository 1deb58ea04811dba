"""Every registered policy keeps the contract, and the contract notices policies that do not."""

from dataclasses import dataclass, replace

import pytest
import torch

from kvmerger.contract import check_policy
from kvmerger.evidence import ATTENTION_MASS, Need, register_evidence
from kvmerger.policies import registry
from kvmerger.policies.base import Policy
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.selection import keep_highest
from kvmerger.variants import VariantError


@pytest.mark.parametrize(
    "name",
    [
        *registry.names(),
        *(f"snapkv+{wrapper}" for wrapper in registry.wrapper_names()),
        "pyramidkv+adakv",
        "h2o+adakv",
        "expected_attention+adakv",
    ],
)
def test_registered_policy_keeps_the_contract(name: str, seed: int) -> None:
    broken = [result for result in check_policy(name, seed=seed) if not result.is_ok]
    assert not broken, "\n".join(f"{result.name}: {result.message}" for result in broken)


@dataclass(frozen=True)
class KeepsEverything(Policy):
    """Ignores its budget."""

    def compress(self, layer, evidence, budget):
        return layer


@dataclass(frozen=True)
class WritesInPlace(Policy):
    """Scales the full row's values before it evicts."""

    def compress(self, layer, evidence, budget):
        layer.v_SD.mul_(2)
        return keep_highest(layer, torch.rand(layer.num_heads, evidence.num_tokens), budget)


@dataclass(frozen=True)
class DoesNotDeclare(Policy):
    """Reads evidence it never asked for."""

    def compress(self, layer, evidence, budget):
        return keep_highest(layer, evidence.get(ATTENTION_MASS), budget)


@dataclass(frozen=True)
class BreaksKeys(Policy):
    """Claims to evict and changes what it keeps, badly."""

    def compress(self, layer, evidence, budget):
        kept = keep_highest(layer, torch.zeros(layer.num_heads, evidence.num_tokens), budget)
        return replace(kept, k_SD=kept.k_SD.float() / 0.0, position_S=kept.position_S.flip(0))


@dataclass(frozen=True)
class ReadsHiddenStates(ScoringPolicy):
    """Ranks tokens by what a query before RoPE is at their place."""

    def needs(self):
        return frozenset({Need("test_query_norms")})

    def scores(self, evidence):
        return evidence.get(Need("test_query_norms"))


@register_evidence("test_query_norms", reads_queries=False, reads_hidden_states=True)
def query_norms(states):
    cos_1ND, _ = states.rotary(states.hidden_NE, torch.arange(states.hidden_NE.shape[0])[None])
    norms_N = (states.attention.q_proj(states.hidden_NE)[:, :16] * cos_1ND[0]).float().norm(dim=1)
    return norms_N.expand(states.k_HND.shape[0], -1)


@dataclass
class RemembersThings:
    """Not even a policy."""


@pytest.mark.parametrize(
    ("policy", "findings"),
    [
        ("KeepsEverything", {"keeps no more than its budget", "meets budgets that differ"}),
        (
            "WritesInPlace",
            {"changes none of its inputs", "gives the same bits again", "kept slots are prefills own"},
        ),
        ("DoesNotDeclare", {"keeps no more than its budget"}),
        ("BreaksKeys", {"keeps finite numbers", "positions are the prompts", "kept slots are prefills own"}),
    ],
)
def test_a_broken_policy_is_found_out(policy: str, findings: set[str], seed: int) -> None:
    broken = [result.name for result in check_policy(f"{__name__}:{policy}", seed=seed) if not result.is_ok]
    for finding in findings:
        assert any(name.startswith(finding) for name in broken), (finding, broken)


def test_a_users_policy_may_read_hidden_states(seed: int) -> None:
    results = check_policy(f"{__name__}:ReadsHiddenStates", seed=seed)
    assert [result.message for result in results if not result.is_ok] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("snapvk", "did you mean 'snapkv'"),
        ("no_such_module:Policy", "cannot be imported"),
        (f"{__name__}:Missing", "cannot be imported"),
        (f"{__name__}:RemembersThings", "not a subclass"),
    ],
)
def test_an_unknown_policy_is_named_with_the_remedy(name: str, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        check_policy(name)
