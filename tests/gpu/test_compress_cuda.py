"""On CUDA, too, layers compressed as one keep what each keeps alone, and every call gives the same bits."""

import pytest
import torch

from kvmerger.budget import Budget, BudgetError, KeptRatio
from kvmerger.building import Variant, build
from kvmerger.cache.layer_cache import room_for
from kvmerger.contract.layers import NUM_KV_HEADS, NUM_LAYERS, NUM_TOKENS, random_prefill
from kvmerger.engine.compress import compress_all
from kvmerger.prefill.evidence import Evidence, LayerStates
from kvmerger.prefill.prefill import Prefilled
from tests.kvmerger.engine.test_waits import NAMES

pytestmark = pytest.mark.gpu


def on_cuda(prefilled: Prefilled, needs: frozenset) -> Prefilled:
    """The same keys, values and evidence on the device."""
    layers = room_for(NUM_LAYERS, prefilled.layers[0].k_HND.cuda())
    evidence_L = []
    for index, (layer, host, evidence) in enumerate(
        zip(layers, prefilled.layers, prefilled.evidence, strict=True)
    ):
        layer.k_SD.copy_(host.k_SD)
        layer.v_SD.copy_(host.v_SD)
        moved = Evidence(
            LayerStates(layer.k_HND, layer.k_HND, layer.v_HND, 1.0), index, NUM_LAYERS, evidence.prompt_seed
        )
        moved.capture(frozenset())
        moved._cache = {need: evidence.get(need).cuda() for need in needs}
        evidence_L.append(moved)
    return Prefilled(layers, tuple(evidence_L))


@pytest.mark.parametrize("name", NAMES)
def test_layers_compressed_as_one_are_kept_as_alone_and_again(name: str, seed: int) -> None:
    policy = build(name, {})
    prefilled = on_cuda(random_prefill(seed, torch.float32, policy), policy.needs())
    first, again = (
        compress_all(prefilled, [Variant("it", policy, KeptRatio(0.5))]).done["it"].prefix for _ in range(2)
    )
    even = Budget.uniform(NUM_TOKENS // 2, NUM_KV_HEADS, 0.5)
    budget_L = policy.allocate([even] * NUM_LAYERS, prefilled.evidence)
    for index, (layer, evidence, budget) in enumerate(
        zip(prefilled.layers, prefilled.evidence, budget_L, strict=True)
    ):
        try:
            alone = policy.compress(layer, evidence, budget)
        except BudgetError:
            pytest.skip("the budget is not this policy's")
        assert first[index].num_slots_H == alone.num_slots_H
        for ours, repeated, theirs in zip(
            first[index].tensors(), again[index].tensors(), alone.tensors(), strict=True
        ):
            assert ours.is_cuda and torch.equal(ours, repeated)
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
