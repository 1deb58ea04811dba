"""Tests of merging by Triton that hold on any device; whoever imports them has a fixture `device`.

tests/gpu/test_merging_triton.py runs them on CUDA, interpreted_triton_merging.py under Triton's CPU interpreter.
"""

import itertools
import random

import pytest
import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.reference import merging as merging_reference
from tests.kvmerger.kernels.both.poison import poisoned_memory

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# fp32 sums are taken in the loop's order, but products may be fused with them; outputs are rounded once to their dtype.
TOLERANCE = {F32: 2e-5, BF16: 1e-2, F16: 2e-3}
FEW = [(40, 64, BF16), (23, 80, F16), (40, 8, F32)]
FIELDS = ("num_tokens", "head_dim", "dtype")


def random_groups(rng: random.Random, num_tokens: int) -> tuple[list[list[int]], list[int]]:
    """Groups of an own head's tokens in any order, most of one or two and one long; and each one's target among them."""
    tokens = rng.sample(range(num_tokens), num_tokens - 3)
    groups = [tokens[:7]]
    rest = tokens[7:]
    while rest:
        size = rng.choice((1, 1, 2, 3))
        groups.append(rest[:size])
        rest = rest[size:]
    rng.shuffle(groups)
    return groups, [rng.choice(group) for group in groups]


@pytest.mark.parametrize(FIELDS, FEW, ids=str)
def test_groups_become_the_loops_slots(
    num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int, device: str
) -> None:
    from kvmerger.kernels.triton import merging as triton_merging

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    k_FD, v_FD = torch.randn(2, num_tokens, head_dim, generator=generator).to(dtype).to(device)
    layer = LayerCache.from_dense(k_FD[None], v_FD[None])
    groups, targets = random_groups(rng, num_tokens)
    member_M, length_S, target_S = (
        torch.tensor(numbers, device=device)
        for numbers in (list(itertools.chain(*groups)), [len(group) for group in groups], targets)
    )
    weights = torch.randn(2, member_M.numel(), generator=generator).to(device)
    for key_weight_M, value_weight_M in itertools.product((weights[0], None), (weights[1], None)):
        arguments = (layer, member_M, length_S, target_S, (len(groups),), key_weight_M, value_weight_M)
        with poisoned_memory():
            merged, again = (triton_merging.merged_slots(*arguments) for _ in range(2))
        reference = merging_reference.merged_slots(*arguments)
        for ours, repeated, theirs in zip(
            merged.tensors(), again.tensors(), reference.tensors(), strict=True
        ):
            assert torch.equal(ours, repeated)
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert merged.position_S.tolist() == targets
        for x_FD, x_SD, weight_M in (
            (k_FD, merged.k_SD, key_weight_M),
            (v_FD, merged.v_SD, value_weight_M),
        ):
            check_slots(x_FD.cpu(), x_SD.cpu(), groups, targets, weight_M)


def check_slots(
    x_FD: Tensor, x_SD: Tensor, groups: list[list[int]], targets: list[int], weight_M: Tensor | None
) -> None:
    """Every slot is its group's sum in float64, or its target's own bits."""
    tolerance, place = TOLERANCE[x_FD.dtype], 0
    for slot_D, group, target in zip(x_SD, groups, targets, strict=True):
        if weight_M is None or len(group) == 1:
            assert torch.equal(slot_D, x_FD[target])
        else:
            sum_D = sum(
                float(weight_M[place + index]) * x_FD[token].double() for index, token in enumerate(group)
            )
            torch.testing.assert_close(slot_D.double(), sum_D, atol=tolerance, rtol=tolerance)
        place += len(group)


def test_runs_give_the_loops_numbers(seed: int, device: str) -> None:
    from kvmerger.kernels.triton import merging as triton_merging

    rng = random.Random(seed)
    lengths = [rng.choice((1, 1, 2, 5, 30)) for _ in range(140)]
    # Few distinct values, so that ties happen, and runs of nothing but -inf.
    runs = [[rng.choice((0.5, -0.25, 1.0, 3.0)) for _ in range(length)] for length in lengths]
    values_F = torch.tensor(list(itertools.chain(*runs)), device=device)
    length_R = torch.tensor(lengths, device=device)
    starts = [0, *itertools.accumulate(lengths)][:-1]
    with poisoned_memory():
        assert triton_merging.segment_sums(values_F, length_R).tolist() == [sum(run) for run in runs]
        assert triton_merging.segment_maxima(values_F, length_R).tolist() == [max(run) for run in runs]
        first_R = triton_merging.first_argmax(values_F, length_R)
    expected = [start + run.index(max(run)) for start, run in zip(starts, runs, strict=True)]
    assert first_R.dtype == torch.int64 and first_R.tolist() == expected
    nowhere_R = triton_merging.first_argmax(torch.full_like(values_F, float("-inf")), length_R)
    assert nowhere_R.tolist() == starts


@pytest.mark.parametrize(FIELDS, FEW, ids=str)
def test_rows_and_pairs_have_float64s_numbers(
    num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int, device: str
) -> None:
    from kvmerger.kernels.triton import merging as triton_merging

    generator = torch.Generator().manual_seed(seed)
    x_FD = torch.randn(num_tokens, head_dim, generator=generator).to(dtype).to(device)
    x_FD[5] = 0.0
    first_M, second_M = torch.randint(num_tokens, (2, 71), generator=generator).to(device)
    second_M[:9], first_M[9] = first_M[:9], 5
    pairs = (x_FD, first_M, second_M)
    with poisoned_memory():
        norm_F = triton_merging.row_norms(x_FD)
        distance_M, cosine_M = triton_merging.pair_distances(*pairs), triton_merging.pair_cosines(*pairs)
    first_MD, second_MD = x_FD.double()[first_M], x_FD.double()[second_M]
    for ours, expected in (
        (norm_F, x_FD.double().norm(dim=1)),
        (distance_M, (first_MD - second_MD).norm(dim=1)),
        (cosine_M, torch.cosine_similarity(first_MD, second_MD)),
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, atol=2e-6, rtol=2e-6)
    assert not distance_M[:9].any()
    torch.testing.assert_close(cosine_M, merging_reference.pair_cosines(*pairs), atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(distance_M, merging_reference.pair_distances(*pairs), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(("num_tokens", "head_dim", "dtype"), [*FEW, (1100, 16, BF16)], ids=str)
def test_mean_units_and_cosines_with_them_are_float64s(
    num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int, device: str
) -> None:
    from kvmerger.kernels.triton import merging as triton_merging

    generator = torch.Generator().manual_seed(seed)
    x_HND = (torch.randn(3, num_tokens, head_dim, generator=generator) + 0.5).to(dtype).to(device)
    x_HND[1, 2] = 0.0
    with poisoned_memory():
        mean_HD = triton_merging.mean_units(x_HND)
    expected_HD = torch.nn.functional.normalize(x_HND.double(), dim=2).mean(dim=1)
    torch.testing.assert_close(mean_HD.double(), expected_HD, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(mean_HD, merging_reference.mean_units(x_HND), atol=1e-6, rtol=1e-6)
    pairs = (x_HND.flatten(0, 1), torch.arange(7, device=device), torch.arange(7, device=device) % 3, mean_HD)
    expected_M = torch.cosine_similarity(pairs[0][:7].double(), mean_HD.double()[pairs[2]])
    for cosine_M in (triton_merging.pair_cosines(*pairs), merging_reference.pair_cosines(*pairs)):
        torch.testing.assert_close(cosine_M.double(), expected_M, atol=2e-6, rtol=2e-6)
