"""The contract names what a policy returns in a form that nothing can be done with."""

import re
from dataclasses import dataclass, replace

import pytest
import torch

from kvmerger import KEY_NORMS, Policy, ScoringPolicy, check_policy, keep_highest


@dataclass(frozen=True)
class KeepsFirst(Policy):
    """Keeps the first tokens."""

    def compress(self, layer, evidence, budget):
        return keep_highest(layer, torch.zeros(layer.num_heads, evidence.num_tokens), budget)


@dataclass(frozen=True)
class ActsOnText(KeepsFirst):
    """Names a rule where there should be one."""

    def decode_rule(self, prompt_seed):
        return "oldest"


@dataclass(frozen=True)
class NeedsText(KeepsFirst):
    """Names its evidence by text."""

    def needs(self):
        return frozenset({"attention_mass"})


@dataclass(frozen=True)
class CountsNothing(KeepsFirst):
    """Has no number for what it counts."""

    def compress(self, layer, evidence, budget):
        return super().compress(layer, evidence, budget).with_counters({"num_seen": None})


@dataclass(frozen=True)
class CountsInTensors(KeepsFirst):
    """Counts on the device."""

    def compress(self, layer, evidence, budget):
        num_seen = layer.position_S.count_nonzero()
        return super().compress(layer, evidence, budget).with_counters({"num_seen": num_seen})


@dataclass(frozen=True)
class ScoresInHalves(KeepsFirst):
    """Notes what slots received in another dtype than rules add to."""

    def compress(self, layer, evidence, budget):
        kept = super().compress(layer, evidence, budget)
        return replace(kept, score_S=torch.zeros(kept.num_slots, dtype=torch.float16))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("CountsNothing", "'num_seen': None"),
        ("ScoresInHalves", "score_S must be torch.float32"),
        ("NeedsText", "NeedsText.needs() must give a set of Need"),
        ("ActsOnText", "decode_rule() must give an instance of a DecodeRule, or None, got 'oldest'"),
    ],
)
def test_a_mistake_of_form_is_named_by_the_checks_of_what_is_kept(
    policy: str, message: str, seed: int
) -> None:
    results = {result.name: result for result in check_policy(f"{__name__}:{policy}", seed=seed)}
    assert message in results["keeps no more than its budget (float32)"].message


@dataclass(frozen=True)
class FavoursTheFirstHead(Policy):
    """Takes from all other heads what it gives the first."""

    def compress(self, layer, evidence, budget):
        first, *others = budget.num_slots_H
        shares = (min(first + len(others), evidence.num_tokens), *(count - 1 for count in others))
        scores = torch.zeros(layer.num_heads, evidence.num_tokens)
        return keep_highest(layer, scores, replace(budget, num_slots_H=shares))


@dataclass(frozen=True)
class SaysThatHeadsDiffer(FavoursTheFirstHead):
    """And says so."""

    heads_differ = True


def test_unlike_shares_are_found_unless_they_are_told_of(seed: int) -> None:
    results = {it.name: it for it in check_policy(f"{__name__}:FavoursTheFirstHead", seed=seed)}
    found = results["gives heads and layers unlike shares only if it says so (float32)"]
    assert re.search(r"layer 0 keeps \(\d+, \d+\) slots .* heads_differ = True", found.message)
    assert all(
        it.is_ok for it in check_policy(f"{__name__}:SaysThatHeadsDiffer", seed=seed) if "share" in it.name
    )


def test_a_policy_may_count_on_the_device(seed: int) -> None:
    results = check_policy(f"{__name__}:CountsInTensors", seed=seed)
    assert [result.message for result in results if not result.is_ok] == []


@dataclass(frozen=True)
class DividesByZero(ScoringPolicy):
    """Has no score for any token."""

    def scores(self, evidence):
        return evidence.get(KEY_NORMS) * 0 / 0


def test_scores_that_are_no_numbers_are_named(seed: int) -> None:
    wrong = {r.name: r.message for r in check_policy(f"{__name__}:DividesByZero", seed=seed) if not r.is_ok}
    # The first says it, and all that compress say the same: in a sweep it is a failed row.
    assert list(wrong)[:2] == [
        f"scores every token with a number ({dtype})" for dtype in ("float32", "bfloat16")
    ]
    assert all("scores are NaN, which rank above all others" in message for message in wrong.values())
