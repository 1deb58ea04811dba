"""A decoder layer's Triton kernels on CUDA: the references' numbers, at sizes beyond 32-bit offsets too."""

import pytest
import torch

from kvmerger.kernels import layer_reference
from tests.kvmerger.kernels.layer_tests import (  # noqa: F401  (collected here)
    assert_near,
    test_gated_is_the_references,
    test_norms_are_the_references,
    test_rotated_heads_are_the_references,
    test_tails_get_each_rows_new_tokens_and_nothing_else,
)

triton_layer = pytest.importorskip("kvmerger.kernels.triton_layer", exc_type=ImportError)

pytestmark = pytest.mark.gpu
TOO_MANY = 2**31
NUM_LAST = 3


@pytest.fixture
def device() -> str:
    return "cuda"


def large(width: int) -> torch.Tensor:
    """Small numbers, more of them than 32 bits count: bf16 (X, width)."""
    num_tokens = TOO_MANY // width + NUM_LAST
    needed_bytes, free_bytes = 3 * 2 * num_tokens * width, torch.cuda.mem_get_info()[0]
    if free_bytes < needed_bytes:
        pytest.skip(f"{free_bytes} bytes are free, {needed_bytes} needed")
    x = torch.zeros(num_tokens, width, dtype=torch.bfloat16, device="cuda")
    x[-NUM_LAST:].normal_()
    return x


def test_offsets_of_the_last_tokens_need_64_bits() -> None:
    gate_up_XJ = large(28672)
    expected = layer_reference.gated(gate_up_XJ[-NUM_LAST:])
    assert_near(triton_layer.gated(gate_up_XJ)[-NUM_LAST:], expected)
    del gate_up_XJ
    x_XE, weight_E = large(4096), torch.randn(4096, device="cuda").to(torch.bfloat16)
    last_XE = x_XE[-NUM_LAST:].clone()
    expected = layer_reference.rms_norm(last_XE, weight_E, 1e-5, last_XE.clone())
    assert_near(triton_layer.rms_norm(x_XE, weight_E, 1e-5, x_XE.clone())[-NUM_LAST:], expected)
    del x_XE
    qkv_XF, num_heads = large(48 * 128), (32, 8)
    turn = [torch.randn(qkv_XF.shape[0], 128, device="cuda").to(torch.bfloat16) for _ in range(2)]
    expected = qkv_XF[-NUM_LAST:].clone()
    layer_reference.rotate(expected, *(part[-NUM_LAST:] for part in turn), *num_heads, None)
    triton_layer.rotate(qkv_XF, *turn, *num_heads, None)
    assert torch.equal(qkv_XF[-NUM_LAST:], expected)
