"""Every registered policy keeps the contract, and the contract notices policies that do not."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from kvmerger import (
    ATTENTION_MASS,
    KEY_NORMS,
    DecodeRule,
    Heirs,
    Need,
    Policy,
    ScoringPolicy,
    VariantError,
    check_policy,
    keep_highest,
    register_evidence,
)
from kvmerger.policies import registry

# Every wrapper behind a ranking that differs between heads, unless it wants one that does not.
FRONT = {"tova_decode": "tova"}


@pytest.mark.parametrize(
    "name",
    [
        *registry.names(),
        *(f"{FRONT.get(wrapper, 'snapkv')}+{wrapper}" for wrapper in registry.wrapper_names()),
        "snapkv+adakv+h2o_decode",
        "h2o+cam",
        "kvmerger+h2o_decode",
        "pyramidkv+adakv",
        "h2o+adakv",
        "expected_attention+adakv",
        "kvzip+compensated",
        "snapkv+adakv+criticalkv",
        "snapkv+chunkkv+keepkv",
        "kvzip+attention_matching+h2o_decode",
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
class WeighsInSecret(Policy):
    """Adds log masses that no budget of bytes knows of."""

    def compress(self, layer, evidence, budget):
        kept = keep_highest(layer, torch.zeros(layer.num_heads, evidence.num_tokens), budget)
        return replace(kept, log_mass_S=torch.zeros(kept.num_slots))


@dataclass(frozen=True)
class WeighsOpenly(WeighsInSecret):
    """The same, told."""

    adds_log_mass = True


@dataclass(frozen=True)
class DoesNotDeclare(Policy):
    """Reads evidence it never asked for."""

    def compress(self, layer, evidence, budget):
        return keep_highest(layer, evidence.get(ATTENTION_MASS), budget)


@dataclass(frozen=True)
class MixesHeads(ScoringPolicy):
    """Ranks by what is left over the mean of all heads it is given, and says it takes layers together."""

    compresses_stacks = True

    def needs(self):
        return frozenset({KEY_NORMS})

    def scores(self, evidence):
        norms_HN = evidence.get(KEY_NORMS)
        return norms_HN - norms_HN.mean(dim=0)


@dataclass(frozen=True)
class MixesHeadsOfALayer(MixesHeads):
    """The same, layer by layer."""

    def scores(self, evidence):
        norms_HN = evidence.get(KEY_NORMS)
        return norms_HN - evidence.for_heads(evidence.by_layer(norms_HN).mean(dim=1))


@dataclass(frozen=True)
class CountsByLayer(MixesHeadsOfALayer):
    """Takes layers together and counts them as one."""

    def compress(self, layer, evidence, budget):
        return super().compress(layer, evidence, budget).with_counters({"num_evicted": 1.0})


@dataclass(frozen=True)
class BreaksKeys(Policy):
    """Claims to evict and changes what it keeps, badly."""

    def compress(self, layer, evidence, budget):
        kept = keep_highest(layer, torch.zeros(layer.num_heads, evidence.num_tokens), budget)
        return replace(kept, k_SD=kept.k_SD.float() / 0.0, position_S=kept.position_S.flip(0))


@dataclass(frozen=True)
class ByDice(DecodeRule):
    """Draws from a generator that nobody seeds."""

    def worth(self, step):
        return torch.rand(step.position_LHX.shape)


@dataclass(frozen=True)
class Undecided(DecodeRule):
    """Has no opinion that can be compared."""

    reads_attention = True

    def worth(self, step):
        return step.attention_LHX * float("nan")


@dataclass(frozen=True)
class ByItself(DecodeRule):
    """Leaves its value to itself."""

    def worth(self, step):
        return step.position_LHX.float()

    def heirs(self, step, leaving_LH):
        return Heirs(leaving_LH[:, :, None], torch.ones(*leaving_LH.shape, 1))


@dataclass(frozen=True)
class Explodes(DecodeRule):
    """Hands on far too much."""

    def worth(self, step):
        return step.position_LHX.float()

    def heirs(self, step, leaving_LH):
        newest_LH1 = torch.full((*leaving_LH.shape, 1), step.position_LHX.shape[2] - 1)
        return Heirs(newest_LH1, torch.full(newest_LH1.shape, float("inf")))


RULES = {rule.__name__: rule for rule in (ByDice, Undecided, ByItself, Explodes)}


@dataclass(frozen=True)
class ActsBadly(Policy):
    """Keeps the first half, then acts on one of `RULES`."""

    rule: ClassVar[str]

    def compress(self, layer, evidence, budget):
        return keep_highest(layer, torch.zeros(layer.num_heads, evidence.num_tokens), budget)

    def decode_rule(self, prompt_seed):
        return RULES[self.rule]()


@dataclass(frozen=True)
class ActsByDice(ActsBadly):
    rule = "ByDice"


@dataclass(frozen=True)
class ActsUndecided(ActsBadly):
    rule = "Undecided"


@dataclass(frozen=True)
class ActsByItself(ActsBadly):
    rule = "ByItself"


@dataclass(frozen=True)
class ActsExplosively(ActsBadly):
    rule = "Explodes"


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
        ("WeighsInSecret", {"has log masses only if it says so"}),
        ("ActsByDice", {"its decode rule gives the same bits again"}),
        ("ActsUndecided", {"its decode rule holds as many slots"}),
        ("ActsByItself", {"its decode rule holds as many slots"}),
        ("ActsExplosively", {"its decode rule holds as many slots"}),
        ("MixesHeads", {"keeps of layers together what it keeps of each alone"}),
        ("CountsByLayer", {"keeps no more than its budget", "keeps of layers together"}),
        ("BreaksKeys", {"keeps finite numbers", "positions are the prompts", "kept slots are prefills own"}),
    ],
)
def test_a_broken_policy_is_found_out(policy: str, findings: set[str], seed: int) -> None:
    broken = [result.name for result in check_policy(f"{__name__}:{policy}", seed=seed) if not result.is_ok]
    for finding in findings:
        assert any(name.startswith(finding) for name in broken), (finding, broken)


@pytest.mark.parametrize("policy", ["ReadsHiddenStates", "MixesHeadsOfALayer", "WeighsOpenly"])
def test_a_users_policy_may_read_hidden_states_take_layers_together_and_add_log_masses(
    policy: str, seed: int
) -> None:
    results = check_policy(f"{__name__}:{policy}", seed=seed)
    assert [result.message for result in results if not result.is_ok] == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("snapvk", "did you mean 'snapkv'"),
        ("no_such_module:Policy", "cannot be imported"),
        (f"{__name__}:Missing", "cannot be imported"),
        (f"{__name__}:RemembersThings", "not a subclass of kvmerger.Policy"),
    ],
)
def test_an_unknown_policy_is_named_with_the_remedy(name: str, message: str) -> None:
    with pytest.raises(VariantError, match=message):
        check_policy(name)
