"""Evicting policies against what their descriptions say, computed token by token."""

from dataclasses import dataclass

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, LikeVariant, SlotCount
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.ranking.knorm import Knorm
from kvmerger.policies.ranking.random_tokens import Random
from kvmerger.policies.ranking.snapkv import SnapKV
from kvmerger.policies.ranking.streaming_llm import StreamingLLM
from kvmerger.policies.selection import keep_highest
from kvmerger.prefill.evidence import Evidence, LayerStates

NUM_TOKENS = 120
SHAPE = CacheShape(num_tokens=NUM_TOKENS, num_layers=4, num_kv_heads=2)


def kept_positions(
    policy: Policy, seed: int, budget: Budget, layer_index: int = 1, prompt_seed: int = 5
) -> list[list[int]]:
    states = random_states(seed)
    evidence = Evidence(states, layer_index, 4, prompt_seed)
    evidence.capture(policy.needs())
    kept = policy.compress(LayerCache.from_dense(states.k_HND, states.v_HND), evidence, budget)
    return [positions.tolist() for positions in kept.position_S.split(kept.num_slots_H)]


def random_states(seed: int) -> LayerStates:
    generator = torch.Generator().manual_seed(seed)
    q_QND, k_HND, v_HND = (torch.randn(heads, NUM_TOKENS, 8, generator=generator) for heads in (4, 2, 2))
    return LayerStates(q_QND, k_HND, v_HND, 0.5)


def test_knorm_keeps_the_smallest_keys_of_each_head(seed: int) -> None:
    k_HND = random_states(seed).k_HND
    kept = kept_positions(Knorm(), seed, Budget((30, 45), 0.3))
    for head, count in ((0, 30), (1, 45)):
        norms = [sum(float(x) ** 2 for x in k_HND[head, token]) for token in range(NUM_TOKENS)]
        assert kept[head] == sorted(
            sorted(range(NUM_TOKENS), key=lambda token, norms=norms: norms[token])[:count]
        )


def test_a_ranking_may_choose_in_its_own_way(seed: int) -> None:
    @dataclass(frozen=True)
    class EverySecond(Knorm):
        """Selects by itself, and fewer than the budget holds."""

        def select(self, evidence: Evidence, budget: Budget) -> torch.Tensor:
            return (torch.arange(evidence.num_tokens) % 2 == 0).expand(evidence.num_heads, -1)

    kept = kept_positions(EverySecond(), seed, Budget.uniform(100, 2, 0.8))
    assert kept == [[*range(0, NUM_TOKENS, 2)]] * 2


def test_a_budget_above_the_prompt_keeps_all_of_it(seed: int) -> None:
    assert kept_positions(Knorm(), seed, Budget((NUM_TOKENS + 9, 3), 1.0))[0] == [*range(NUM_TOKENS)]


@pytest.mark.parametrize("n_sink", [0, 4])
def test_streaming_keeps_sinks_and_the_most_recent(n_sink: int, seed: int) -> None:
    expected = [*range(n_sink), *range(NUM_TOKENS - 20 + n_sink, NUM_TOKENS)]
    assert kept_positions(StreamingLLM(n_sink), seed, Budget.uniform(20, 2, 0.2)) == [expected] * 2


@pytest.mark.parametrize(("window_size", "kernel_size"), [(8, 5), (16, 1), (1, 3)])
def test_snapkv_keeps_its_window_and_what_the_window_sees(
    window_size: int, kernel_size: int, seed: int
) -> None:
    states = random_states(seed)
    kept = kept_positions(SnapKV(window_size, kernel_size), seed, Budget((40, 55), 0.4))
    num_before = NUM_TOKENS - window_size
    for head, count in ((0, 40), (1, 55)):
        scores = [0.0] * num_before
        for query_head in (2 * head, 2 * head + 1):
            attention = [0.0] * num_before
            for row in range(num_before, NUM_TOKENS):
                logits = states.k_HND[head, : row + 1].double() @ states.q_QND[query_head, row].double() * 0.5
                probs = logits.softmax(dim=0)
                attention = [a + float(probs[column]) for column, a in enumerate(attention)]
            half = kernel_size // 2
            for token in range(num_before):
                scores[token] += sum(attention[max(0, token - half) : token + half + 1])
        best = sorted(range(num_before), key=lambda token, scores=scores: -scores[token])[
            : count - window_size
        ]
        assert kept[head] == sorted([*best, *range(num_before, NUM_TOKENS)])


def test_random_depends_on_seed_prompt_layer_and_head_alone(seed: int) -> None:
    budget = Budget.uniform(40, 2, 0.3)
    first = kept_positions(Random(), seed, budget)
    # Other keys, same prompt seed and layer: the same draw.
    assert kept_positions(Random(), seed + 1, budget) == first
    assert first[0] != first[1]
    assert kept_positions(Random(seed=1), seed, budget) != first
    assert kept_positions(Random(), seed, budget, layer_index=2) != first
    assert kept_positions(Random(), seed, budget, prompt_seed=6) != first


def test_ties_go_to_the_earlier_token() -> None:
    states = random_states(0)
    layer = LayerCache.from_dense(states.k_HND, states.v_HND)
    kept = keep_highest(layer, torch.zeros(2, NUM_TOKENS), Budget((3, 5), 0.1))
    assert kept.position_S.tolist() == [0, 1, 2, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("policy", "budget", "message"),
    [
        (SnapKV(), SlotCount(63), "window_size=64"),
        (SnapKV(window_size=NUM_TOKENS), KeptRatio(0.5), "no more than window_size"),
        (StreamingLLM(), SlotCount(4), "n_sink=4"),
    ],
)
def test_impossible_budgets_are_refused_before_any_work(
    policy: Policy, budget: SlotCount, message: str
) -> None:
    with pytest.raises(BudgetError, match=message):
        policy.check(SHAPE, budget)


def test_possible_budgets_pass() -> None:
    for policy in (SnapKV(), StreamingLLM(), Knorm(), Random()):
        policy.check(SHAPE, SlotCount(64))
        policy.check(SHAPE, LikeVariant("other"))


@pytest.mark.parametrize("make", [lambda: SnapKV(0), lambda: SnapKV(kernel_size=4), lambda: StreamingLLM(-1)])
def test_bad_parameters_are_refused(make) -> None:
    with pytest.raises(PolicyError):
        make()
