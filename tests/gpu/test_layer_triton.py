"""A decoder layer's Triton kernels on CUDA: the references' numbers, at sizes beyond 32-bit offsets too."""

import pytest
import torch

from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import layer as layer_reference
from kvmerger.kernels.reference import ragged as reference
from tests.kvmerger.kernels.both.layer import (  # noqa: F401  (collected here)
    assert_near,
    test_gated_is_the_references,
    test_norms_are_the_references,
    test_rotated_heads_are_the_references,
    test_tails_get_each_rows_new_tokens_and_nothing_else,
)

triton_layer = pytest.importorskip("kvmerger.kernels.triton.layer", exc_type=ImportError)

pytestmark = pytest.mark.gpu
TOO_MANY = 2**31
NUM_LAST = 3


@pytest.fixture
def device() -> str:
    return "cuda"


def test_dispatch_takes_the_triton_path_to_tails(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(seed)
    new = torch.randn(2, 3, 2, 4, 16, generator=generator).cuda().unbind()
    lengths_2R = torch.tensor([[0, 5, 2], [4, 1, 0]], dtype=torch.int32, device="cuda")
    row_N, token_N, place_N = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 2, 3, 0], [0, 1, 2, 3, 5]], device="cuda")
    found, expected = (tuple(torch.zeros(3, 2, 7, 16, device="cuda") for _ in "kv") for _ in range(2))
    reference.write_tails(expected, new, row_N, token_N, place_N)
    monkeypatch.setattr(reference, "write_tails", _forbidden)
    dispatch.write_tails(found, new, row_N, token_N, place_N, lengths_2R)
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.any() and torch.equal(ours, theirs)


def _forbidden(*_: object, **__: object) -> None:
    raise AssertionError("the reference was called on a GPU")


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
