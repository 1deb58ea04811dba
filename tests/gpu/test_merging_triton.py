"""Merging on CUDA: the loops' numbers, groups as long as a prompt, and whole policies against the references."""

import pytest
import torch

from kvmerger.budget import Budget
from kvmerger.building import build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import merging as merging_reference
from kvmerger.prefill.evidence import Evidence, LayerStates
from tests.fakes.planted_layers import NUM_HEADS, planted_states
from tests.kvmerger.kernels.both.merging import (  # noqa: F401  (collected here)
    test_groups_become_the_loops_slots,
    test_mean_units_and_cosines_with_them_are_float64s,
    test_rows_and_pairs_have_float64s_numbers,
    test_runs_give_the_loops_numbers,
)

pytest.importorskip("triton")

pytestmark = pytest.mark.gpu
POLICIES = (
    "kvmerger",
    "kvmerger_paper",
    "kvmerger_plus",
    "snapkv+compensated",
    "knorm+kvmerger",
    "zeromerge",
)


@pytest.fixture
def device() -> str:
    return "cuda"


def test_one_group_may_have_all_tokens_of_a_long_prompt(seed: int) -> None:
    num_tokens = 40_000
    generator = torch.Generator().manual_seed(seed)
    k_HND = torch.randn(2, num_tokens, 64, generator=generator).bfloat16().cuda()
    layer = LayerCache.from_dense(k_HND, -k_HND)
    member_M = torch.arange(2 * num_tokens, device="cuda")
    length_S = torch.tensor([num_tokens, 1, num_tokens - 1], device="cuda")
    target_S = torch.tensor([17, num_tokens, num_tokens + 9], device="cuda")
    weight_M = torch.rand(2 * num_tokens, generator=generator).cuda()
    arguments = (layer, member_M, length_S, target_S, (1, 2), weight_M, weight_M)
    ours, theirs = dispatch.merged_slots(*arguments), merging_reference.merged_slots(*arguments)
    for mine, reference in zip(ours.tensors(), theirs.tensors(), strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-1, rtol=1e-2)
    sums_R = dispatch.segment_sums(weight_M, length_S)
    torch.testing.assert_close(sums_R, merging_reference.segment_sums(weight_M, length_S), rtol=1e-4, atol=0)


def test_dispatch_takes_the_triton_path(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_HND = torch.randn(2, 33, 16, generator=generator).cuda()
    x_FD, layer = x_HND.flatten(0, 1), LayerCache.from_dense(x_HND, -x_HND)
    member_F = torch.randperm(66, generator=generator).cuda()
    value_F = torch.randn(66, generator=generator).cuda()
    length_R = torch.tensor([1, 40, 25], device="cuda")
    run_F = torch.arange(3, device="cuda").repeat_interleave(length_R)
    calls = {
        "segment_sums": (value_F, length_R),
        "segment_maxima": (value_F, length_R),
        "first_argmax": (value_F, length_R, run_F),
        "row_norms": (x_FD,),
        "pair_distances": (x_FD, member_F[:7], member_F[7:14]),
        "pair_cosines": (x_FD, member_F[:7], member_F[7:14]),
        "mean_units": (x_HND,),
        "merged_slots": (layer, member_F, length_R, member_F[[0, 20, 65]], (2, 1), value_F, value_F),
    }
    expected = {name: _tensors(getattr(merging_reference, name)(*given)) for name, given in calls.items()}
    for name in calls:
        monkeypatch.setattr(merging_reference, name, _forbidden)
    for name, given in calls.items():
        found = _tensors(getattr(dispatch, name)(*given))
        torch.testing.assert_close(found, expected[name], atol=1e-4, rtol=1e-4)


def _tensors(result: torch.Tensor | LayerCache) -> list[torch.Tensor]:
    return list(result.tensors()) if isinstance(result, LayerCache) else [result]


def _forbidden(*_: object, **__: object) -> torch.Tensor:
    raise AssertionError("the reference was called on a GPU")


@pytest.mark.parametrize("name", POLICIES)
def test_policies_merge_as_by_the_references(name: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = build(name, {})
    states = planted_states(seed, torch.float32)
    moved = LayerStates(*(it.cuda() for it in (states.q_QND, states.k_HND, states.v_HND)), states.scaling)
    kept = []
    for has_triton in (True, False):
        with monkeypatch.context() as patch:
            if not has_triton:
                patch.setattr(dispatch, "has_triton", lambda: False)
            evidence = Evidence(moved, layer_index=3, num_layers=8, prompt_seed=7)
            evidence.capture(policy.needs())
            layer = LayerCache.from_dense(moved.k_HND, moved.v_HND)
            kept.append(policy.compress(layer, evidence, Budget.uniform(66, NUM_HEADS, 0.7)))
    assert kept[0].num_slots_H == kept[1].num_slots_H
    for ours, theirs in zip(kept[0].tensors(), kept[1].tensors(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert dict(kept[0].counters) == pytest.approx(dict(kept[1].counters), abs=1e-4)
