"""Tests of a decoder layer's Triton kernels that hold on any device; whoever imports them has a fixture `device`.

tests/gpu/test_layer_triton.py runs them on CUDA, interpreted_triton_layer.py under Triton's CPU interpreter.
"""

import random

import pytest
import torch
from torch import Tensor

from kvmerger.kernels.reference import layer as layer_reference
from kvmerger.kernels.reference.layer import HeadNorms
from tests.kvmerger.kernels.both.poison import poisoned_memory

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A sum in another order, or another exponential, may turn over the last bit of what is rounded first, and then of the rest.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-6, torch.float16: 2**-9}
EPS = 1e-5
NAN = float("nan")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def drawn(seed: int, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    """Normal numbers of every size: each token (first dimension) has a scale of its own."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(shape[0], *[1] * (len(shape) - 1), generator=generator) * 4 + 0.1
    return (torch.randn(shape, generator=generator) * scale).to(device, dtype)


def assert_near(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10)


@dtypes
@pytest.mark.parametrize("has_added", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (7, 100), (5, 576), (3, 4096)], ids=str)
def test_norms_are_the_references(
    shape: tuple[int, int], has_added: bool, dtype: torch.dtype, seed: int, device: str
) -> None:
    from kvmerger.kernels.triton import layer as triton_layer

    x_XE, added_XE = (drawn(seed + index, shape, dtype, device) for index in range(2))
    weight_E = drawn(seed + 2, shape[1:], dtype, device)
    found_XE, expected_XE, out_XE = x_XE.clone(), x_XE.clone(), torch.full_like(x_XE, NAN)
    added = added_XE if has_added else None
    expected_normed_XE = layer_reference.rms_norm(expected_XE, weight_E, EPS, added)
    with poisoned_memory():
        normed_XE = triton_layer.rms_norm(found_XE, weight_E, EPS, added)
    assert_near(normed_XE, expected_normed_XE)
    assert torch.equal(found_XE, expected_XE), "the sum, or what was there"
    assert triton_layer.rms_norm(x_XE.clone(), weight_E, EPS, added, out_XE) is out_XE
    assert torch.equal(out_XE, normed_XE)
    alone = [None if added is None else added[-1:].clone()]
    assert torch.equal(triton_layer.rms_norm(x_XE[-1:].clone(), weight_E, EPS, *alone), normed_XE[-1:])


@dtypes
@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize(
    ("heads", "head_dim"), [((4, 2), 16), ((9, 3), 64), ((3, 1), 80), ((32, 8), 128)], ids=str
)
def test_rotated_heads_are_the_references(
    heads: tuple[int, int], head_dim: int, has_norms: bool, dtype: torch.dtype, seed: int, device: str
) -> None:
    from kvmerger.kernels.triton import layer as triton_layer

    num_tokens, num_products = 5, (heads[0] + 2 * heads[1]) * head_dim
    qkv_XF = drawn(seed, (num_tokens, num_products), dtype, device)
    # Halves that differ: nothing may be read from one for the other.
    cos_XD, sin_XD = (drawn(seed + index, (num_tokens, head_dim), dtype, device) for index in (1, 2))
    weights = [drawn(seed + index, (head_dim,), dtype, device) for index in (3, 4)]
    norms = HeadNorms(weights[0], weights[1], EPS) if has_norms else None
    found_XF, expected_XF = qkv_XF.clone(), qkv_XF.clone()
    triton_layer.rotate(found_XF, cos_XD, sin_XD, *heads, norms)
    layer_reference.rotate(expected_XF, cos_XD, sin_XD, *heads, norms)
    if has_norms:
        # One bit of a norm, times cos or sin, is more than one bit of a sum that cancels: of this token's largest.
        largest_X1 = expected_XF[:, : -heads[1] * head_dim].abs().amax(dim=1, keepdim=True).float()
        assert bool(((found_XF - expected_XF).float().abs() <= 2 * TOLERANCE[dtype] * largest_X1).all())
    else:
        assert torch.equal(found_XF, expected_XF)
    num_values = heads[1] * head_dim
    assert torch.equal(found_XF[:, -num_values:], qkv_XF[:, -num_values:])


@dtypes
@pytest.mark.parametrize("shape", [(1, 96), (3, 1024), (2, 3001)], ids=str)
def test_gated_is_the_references(shape: tuple[int, int], dtype: torch.dtype, seed: int, device: str) -> None:
    from kvmerger.kernels.triton import layer as triton_layer

    gate_up_XJ = drawn(seed, (shape[0], 2 * shape[1]), dtype, device)
    gate_up_XJ[0, :3] = torch.tensor([100.0, -100.0, 0.0])  # where exponentials end
    with poisoned_memory():
        found_XI = triton_layer.gated(gate_up_XJ)
    assert_near(found_XI, layer_reference.gated(gate_up_XJ))


@dtypes
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 16), (3, 64), (8, 128), (1, 80)])
@pytest.mark.parametrize("num_tokens", [1, 6])
def test_tails_get_each_rows_new_tokens_and_nothing_else(
    num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype, seed: int, device: str
) -> None:
    from kvmerger.kernels.triton import layer as triton_layer

    rng, capacity, num_rows = random.Random(seed), 11, 5
    num_new_R = [num_tokens, 0, *(rng.randint(0, num_tokens) for _ in range(3))]
    start_R = [rng.randint(0, capacity - num_new) for num_new in num_new_R]
    # As the fast decoder has them: heads of one product for queries, keys and values.
    product = drawn(seed, (num_rows, num_tokens, 3 * num_heads + 1, head_dim), dtype, device)
    k_RHTD, v_RHTD = product.transpose(1, 2)[:, num_heads + 1 :].split(num_heads, dim=1)
    tails = [
        torch.full((num_rows, num_heads, capacity, head_dim), NAN, dtype=dtype, device=device) for _ in "kv"
    ]
    expected = [tail.clone() for tail in tails]
    for tail_RHCD, new_RHTD in zip(expected, (k_RHTD, v_RHTD), strict=True):
        for row, (start, num_new) in enumerate(zip(start_R, num_new_R, strict=True)):
            for token in range(num_new):
                tail_RHCD[row, :, start + token] = new_RHTD[row, :, token]
    lengths_2R = torch.tensor([start_R, num_new_R], dtype=torch.int32, device=device)
    triton_layer.write_tails(*tails, k_RHTD, v_RHTD, *lengths_2R)
    for found_RHCD, expected_RHCD in zip(tails, expected, strict=True):
        torch.testing.assert_close(found_RHCD, expected_RHCD, rtol=0, atol=0, equal_nan=True)
