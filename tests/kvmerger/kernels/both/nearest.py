"""Tests of the search for the most similar kept token by Triton, on any device; whoever imports them has a fixture `device`.

tests/gpu/test_nearest_triton.py runs them on CUDA, interpreted_triton_nearest.py under Triton's CPU interpreter.
"""

import pytest
import torch
from torch import Tensor

from kvmerger.kernels.reference import nearest as nearest_reference
from kvmerger.kernels.reference.nearest import EVICTED, NO_COSINE
from tests.kvmerger.kernels.both.poison import poisoned_memory

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# Between two cosines closer than this, rounding decides. Products are exact; tensor cores cut their fp32 sums off.
TOLERANCE = 4e-6
# Tokens, head size, dtype.
FIELDS = ("num_tokens", "head_dim", "dtype")
FEW = [(1, 16, F32), (70, 64, BF16), (150, 80, F16), (45, 12, F32)]
MANY = [
    (1000, 128, BF16),
    (777, 256, BF16),
    (700, 256, F32),
    (513, 64, F32),
    (300, 16, F16),
    (3000, 96, BF16),
]


def random_keys(seed: int, num_tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Keys (H, N, D) of which some are equal and one is zero; kept marks (H, N): all, none, one, a few, most."""
    generator = torch.Generator().manual_seed(seed)
    num_heads = 5
    k_HND = torch.randn(num_heads, num_tokens, head_dim, generator=generator)
    k_HND *= torch.rand(num_heads, num_tokens, 1, generator=generator) * 3 + 0.1
    k_HND[:, num_tokens // 2 :: 3] = k_HND[:, num_tokens // 2, None].clone()
    k_HND[:, -1] = 0.0
    share_H1 = torch.tensor([1.1, -0.1, -0.1, 0.2, 0.8])[:, None]
    is_kept_HN = torch.rand(num_heads, num_tokens, generator=generator) < share_H1
    is_kept_HN[2, num_tokens // 3] = True
    return k_HND.to(dtype), is_kept_HN


@pytest.mark.parametrize(FIELDS, FEW, ids=str)
def test_the_most_similar_kept_token_is_float64s(
    num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int, device: str
) -> None:
    check_nearest(num_tokens, head_dim, dtype, seed, device)


def check_nearest(num_tokens: int, head_dim: int, dtype: torch.dtype, seed: int, device: str) -> None:
    """No kept token is more similar in float64 than the one found, but for rounding, nor equal and earlier."""
    from kvmerger.kernels.triton import nearest as triton_nearest

    k_HND, is_kept_HN = (it.to(device) for it in random_keys(seed, num_tokens, head_dim, dtype))
    with poisoned_memory():
        (target_HN, cosine_HN), again = (
            triton_nearest.most_similar_kept(k_HND, is_kept_HN) for _ in range(2)
        )
    assert torch.equal(target_HN, again[0]) and torch.equal(cosine_HN, again[1])
    assert target_HN.dtype == torch.int64 and cosine_HN.dtype == torch.float32
    reference_HN, reference_cosine_HN = nearest_reference.most_similar_kept(k_HND, is_kept_HN)
    for head in range(len(k_HND)):
        dropped_B = (~is_kept_HN[head]).nonzero().squeeze(1)
        if not is_kept_HN[head].any():
            assert (target_HN[head] == EVICTED).all() and (cosine_HN[head] == NO_COSINE).all()
            continue
        unit_ND = torch.nn.functional.normalize(k_HND[head].double(), dim=1)
        cosine_BN = (unit_ND[dropped_B] @ unit_ND.T).masked_fill(~is_kept_HN[head], float("-inf"))
        target_B, found_B = target_HN[head][dropped_B], cosine_HN[head][dropped_B]
        assert is_kept_HN[head][target_B].all()
        chosen_B = cosine_BN.gather(1, target_B[:, None]).squeeze(1)
        torch.testing.assert_close(found_B.double(), chosen_B, atol=TOLERANCE, rtol=0)
        assert (chosen_B >= cosine_BN.amax(dim=1) - TOLERANCE).all()
        # Of equal keys the first that is kept; where nothing is near the best, the reference's.
        is_equal_BN = (k_HND[head][target_B][:, None] == k_HND[head][None]).all(dim=2) & is_kept_HN[head]
        assert torch.equal(is_equal_BN.int().argmax(dim=1), target_B)
        num_near_B = (cosine_BN >= cosine_BN.amax(dim=1, keepdim=True) - TOLERANCE).sum(dim=1)
        is_clear_B = num_near_B == 1
        assert torch.equal(target_B[is_clear_B], reference_HN[head][dropped_B][is_clear_B])
        torch.testing.assert_close(found_B, reference_cosine_HN[head][dropped_B], atol=TOLERANCE, rtol=0)


def test_a_heads_bits_are_its_own(seed: int, device: str) -> None:
    from kvmerger.kernels.triton import nearest as triton_nearest

    k_HND, is_kept_HN = (it.to(device) for it in random_keys(seed, 70, 32, BF16))
    together = triton_nearest.most_similar_kept(k_HND, is_kept_HN)
    for head in range(len(k_HND)):
        alone = triton_nearest.most_similar_kept(k_HND[head : head + 1], is_kept_HN[head : head + 1])
        for many, one in zip(together, alone, strict=True):
            assert torch.equal(many[head], one[0])
