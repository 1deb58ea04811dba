"""Compressing hardly ever waits for the device, however many layers, heads and tokens there are."""

import pytest
import torch

from bench.engine.op_counter import OpCounter
from kvmerger.budget import Budget
from kvmerger.building import Variant, build
from kvmerger.contract.case import Case
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.policies import registry

NAMES = [
    *registry.names(),
    *(f"{'tova' if name == 'tova_decode' else 'snapkv'}+{name}" for name in registry.wrapper_names()),
]
# How many slots heads keep, members groups have, and kept tokens a search goes over; a check of a decoding policy.
MOST_WAITS_PER_CALL = 3
# Besides, of all layers together: whether positions ascend, and of each stack the counters. A policy that keeps first and
# last layers whole has three stacks.
MOST_WAITS_PER_VARIANT = 12


@pytest.mark.parametrize("name", NAMES)
def test_compressing_a_layer_waits_a_few_times(name: str, seed: int) -> None:
    policy = build(name, {})
    prefilled = random_prefill(seed, torch.bfloat16, policy)
    # Some choose for all layers at once, and only then for one.
    budget = Case(name, seed, torch.bfloat16).budgets(prefilled)[3]
    with OpCounter() as counter:
        policy.compress(prefilled.layers[3], prefilled.evidence[3], budget)
    assert counter.num_waits <= MOST_WAITS_PER_CALL, counter.waits


@pytest.mark.parametrize("name", NAMES)
def test_compressing_a_variant_waits_less_often_than_it_has_heads(name: str, seed: int) -> None:
    policy = build(name, {})
    prefilled = random_prefill(seed, torch.bfloat16, policy)
    with OpCounter() as counter:
        compression = compress_all(prefilled, [Variant("it", policy, Case.budget(policy))])
    assert not compression.failed
    assert counter.num_waits <= MOST_WAITS_PER_VARIANT < NUM_LAYERS * NUM_KV_HEADS, counter.waits


@pytest.mark.parametrize("name", ["knorm", "snapkv", "h2o", "streaming_llm", "keydiff", "tova", "lagkv"])
def test_a_ranking_knows_its_counts_and_waits_for_nothing(name: str, seed: int) -> None:
    policy = build(name, {})
    prefilled = random_prefill(seed, torch.bfloat16, policy)
    budget = Budget.uniform(NUM_TOKENS // 2, NUM_KV_HEADS, 0.5)
    with OpCounter() as counter:
        policy.compress(prefilled.layers[3], prefilled.evidence[3], budget)
    assert not counter.num_waits, counter.waits


def test_what_waits_is_counted() -> None:
    x_N, is_marked_N = torch.arange(6.0), torch.arange(6) % 2 == 0
    lengths_R = torch.tensor([2, 4])
    calls = {
        "tolist": lambda: x_N.tolist(),
        "item": lambda: x_N.sum().item(),
        "bool": lambda: bool((x_N > 1).all()),
        "mask": lambda: x_N[is_marked_N],
        "nonzero": lambda: is_marked_N.nonzero(),
        "bincount": lambda: torch.bincount(lengths_R),
        "equal": lambda: torch.equal(x_N, x_N),
        "upload": lambda: torch.tensor([1, 2], device=x_N.device),
        "repeat": lambda: x_N[:2].repeat_interleave(lengths_R),
        "segments": lambda: torch.segment_reduce(x_N, "sum", lengths=lengths_R),
    }
    for name, call in calls.items():
        with OpCounter() as counter:
            call()
        assert counter.num_waits, name
    with OpCounter() as counter:
        torch.segment_reduce(x_N, "sum", lengths=lengths_R, unsafe=True) + x_N[:2].repeat_interleave(
            torch.tensor([1, 1]), output_size=2
        )
    assert not counter.num_waits, counter.waits
    assert counter.launches["segment_reduce"] == 1
