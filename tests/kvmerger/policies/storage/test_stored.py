"""A form's part says what the policy in front says, and keeps what that keeps; how slots are stored is the engine's."""

from dataclasses import dataclass

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio, SlotCount
from kvmerger.building import build
from kvmerger.cache.forms import registry
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_TOKENS, random_prefill
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.storage import forms
from kvmerger.policies.storage.stored import Everything, Stored

NAMES = ["snapkv", "snapkv+adakv", "kvmerger", "kvmerger_paper", "snapkv+keepkv", "zeromerge", "pyramidkv"]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_the_policy_in_front_says(name: str) -> None:
    inner, stored = build(name, {}), build(f"{name}+int4", {})
    for attribute in (
        "keeps_slots_unchanged",
        "budget_is_outcome",
        "adds_log_mass",
        "compresses_stacks",
    ):
        assert getattr(stored, attribute) == getattr(inner, attribute), attribute
    assert stored.needs() == inner.needs() and stored.parts[:-1] == inner.parts
    assert stored.decode_rule(0) is None


@pytest.mark.parametrize("name", ["snapkv", "kvmerger", "snapkv+keepkv"])
def test_it_keeps_what_the_policy_in_front_keeps(name: str, seed: int) -> None:
    inner, stored = build(name, {}), build(f"{name}+kivi4", {})
    prefilled = random_prefill(seed, torch.float32, inner)
    layer, evidence = prefilled.layers[3], prefilled.evidence[3]
    budget = Budget.uniform(NUM_TOKENS // 2, NUM_KV_HEADS, 0.5)
    ours, theirs = (policy.compress(layer, evidence, budget) for policy in (stored, inner))
    assert isinstance(ours, LayerCache) and ours.num_slots_H == theirs.num_slots_H
    assert all(map(torch.equal, ours.tensors(), theirs.tensors()))
    assert stored.stack_key(evidence, budget) == inner.stack_key(evidence, budget)
    even = [budget] * len(prefilled.layers)
    assert stored.allocate(even, prefilled.evidence) == inner.allocate(even, prefilled.evidence)


def test_everything_is_the_layer_itself(seed: int) -> None:
    prefilled = random_prefill(seed, torch.float32, Everything())
    layer, evidence = prefilled.layers[0], prefilled.evidence[0]
    assert build("fp8", {}).compress(layer, evidence, Budget.uniform(1, NUM_KV_HEADS, 1.0)) is layer


def shape(head_dim: int | None) -> CacheShape:
    return CacheShape(num_tokens=500, num_layers=4, num_kv_heads=2, head_dim=head_dim, itemsize=2)


@pytest.mark.parametrize(
    ("name", "head_dim", "message"),
    [
        ("snapkv+nvfp4", 72, "nvfp4: .*multiple of 16 numbers, the model's have 72"),
        ("snapkv+int4_rotated", 80, "int4_rotated: .*power of two numbers, the model's have 80"),
        ("kivi3", 36, "kivi3: .*multiple of 8 numbers, the model's have 36"),
        ("turboquant_3bit_nc", 80, "turboquant_3bit_nc: .*power of two"),
        ("h2o+int4_rotated+h2o_decode", 96, "power of two"),
    ],
)
def test_heads_that_a_form_cannot_store_are_refused_by_check(name: str, head_dim: int, message: str) -> None:
    policy = build(name, {})
    with pytest.raises(PolicyError, match=message):
        policy.check(shape(head_dim), KeptRatio(0.5))
    policy.check(shape(128), KeptRatio(0.5))
    policy.check(shape(None), KeptRatio(0.5))


def test_the_policy_in_front_is_asked_first() -> None:
    with pytest.raises(BudgetError, match="window_size=64"):
        build("snapkv+nvfp4", {}).check(shape(72), SlotCount(3))


@dataclass(frozen=True)
class Second(type(registry.get("int8")())):  # type: ignore[misc]
    """The same with other numbers."""

    version = 2
    bits_k: int = 8
    bits_v: int = 8


def test_a_forms_version_is_that_of_its_part() -> None:
    assert build("snapkv+int8", {}).version == 1
    assert Stored(inner=Everything(), form=Second()).version == 2


def test_a_list_of_forms_has_each_with_its_parameters() -> None:
    described = forms.describe()
    all_names = sorted([*registry.names(), *registry.names_of_tables()])
    assert [it.name for it in described] == all_names and all(it.is_form for it in described)
    for it in described:
        assert it.parameters == tuple(registry.parameters_of(it.name).items())
        assert it.summary[0].isupper() and it.summary.endswith(".")
    shares = {it.name: forms.share_of_bf16(it.name) for it in described}
    assert shares["kvtuner"] is None, "its table decides"
    assert shares["fp8"] == 0.5 and shares["int8"] == 264 / 512 and shares["kivi2"] == 96 / 512
