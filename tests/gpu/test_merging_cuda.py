"""Every policy compresses on CUDA as it does on the CPU, and gives the same bits each time."""

from copy import deepcopy

import pytest
import torch

from kvmerger.budget import Budget, BudgetError
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies import registry
from kvmerger.policies.base import Policy
from kvmerger.policies.reducers.base import Reducer
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.planted_layers import NUM_HEADS, planted_states

pytestmark = pytest.mark.gpu

MERGING = [
    *(name for name in registry.names() if not registry.get(name).keeps_slots_unchanged),
    "pivots_only",
    "protected_mass",
    *(
        f"random+{name}"
        for name in registry.wrapper_names()
        if issubclass(registry.get_wrapper(name), Reducer)
    ),
]

SETTINGS = {
    "random+keepkv": {"score_window": 16},
    "kvslimmer": {"n_sink": 4, "window_size": 12},
    "asymkv_diagonal": {"n_sink": 4, "window_size": 12, "layout": "per_head"},
}


def compressed(policy: Policy, states: LayerStates, device: str, budget: Budget) -> LayerCache:
    states = LayerStates(
        *(tensor.to(device) for tensor in (states.q_QND, states.k_HND, states.v_HND)),
        states.scaling,
        rotary=None if states.rotary is None else deepcopy(states.rotary).to(device),
    )
    evidence = Evidence(states, layer_index=3, num_layers=8, prompt_seed=7)
    evidence.capture(policy.needs())
    try:
        return policy.compress(LayerCache.from_dense(states.k_HND, states.v_HND), evidence, budget)
    except BudgetError:
        pytest.skip("the budget is not this policy's")


@pytest.mark.parametrize("budget", [Budget((40, 55), 0.5), Budget.uniform(44, NUM_HEADS, 0.5)], ids=str)
@pytest.mark.parametrize("name", MERGING)
def test_cuda_gives_the_cpus_slots_and_repeats_its_own_bits(name: str, budget: Budget, seed: int) -> None:
    # planted_layers has 96 tokens, and by default too few for keepkv's scores and for pairs.
    policy = build(name, SETTINGS.get(name, {}))
    states = planted_states(seed, torch.float32)
    on_cpu, first, second = (compressed(policy, states, device, budget) for device in ("cpu", "cuda", "cuda"))
    assert first.num_slots_H == on_cpu.num_slots_H
    for ours, again, theirs in zip(first.tensors(), second.tensors(), on_cpu.tensors(), strict=True):
        assert ours.device.type == "cuda"
        assert torch.equal(ours, again)
        torch.testing.assert_close(ours.cpu(), theirs, atol=1e-4, rtol=1e-4)
