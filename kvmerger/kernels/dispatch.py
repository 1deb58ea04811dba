"""Which kernel computes attention over ragged caches, and a prompt's attention mass, and writes new tokens: Triton's on a
GPU where it can, the references everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Collection

import torch
from torch import Tensor

from kvmerger.kernels import prompt_reference, reference
from kvmerger.kernels.layer_reference import LayerKernels
from kvmerger.kernels.reference import Attended
from kvmerger.ragged_layer import RaggedLayer

MOST_HEAD_DIM = 256
SLOT_ALIGNMENT_BYTES = 16  # one vector load
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def ragged_attention(
    q_RQTD: Tensor, layer: RaggedLayer, scaling: float, mass_rows: Collection[int] = ()
) -> Attended:
    """`reference.ragged_attention`, computed by the fastest kernel for these tensors."""
    if not is_for_triton(q_RQTD):
        return reference.ragged_attention(q_RQTD, layer, scaling, mass_rows)
    from kvmerger.kernels import triton_ragged

    return triton_ragged.ragged_attention(q_RQTD, layer, scaling, mass_rows)


def attention_mass(q_QND: Tensor, k_HND: Tensor, scaling: float, lse_QN: Tensor | None = None) -> Tensor:
    """`prompt_reference.attention_mass` likewise; ``lse_QN``, where the attention kernel left it, saves a pass."""
    # Exact fp32 products use no tensor cores in either; the matrix library's are twice as fast (`bench/kernels.py`).
    if not is_for_triton(q_QND) or q_QND.dtype == torch.float32:
        return prompt_reference.attention_mass(q_QND, k_HND, scaling)
    from kvmerger.kernels import triton_prompt

    return triton_prompt.attention_mass(q_QND, k_HND, scaling, lse_QN)


def window_attention(
    q_QND: Tensor, k_HND: Tensor, scaling: float, window_tokens: int, lse_QN: Tensor | None = None
) -> Tensor:
    """`prompt_reference.window_attention` likewise."""
    if not is_for_triton(q_QND):
        return prompt_reference.window_attention(q_QND, k_HND, scaling, window_tokens)
    from kvmerger.kernels import triton_prompt

    return triton_prompt.window_attention(q_QND, k_HND, scaling, window_tokens, lse_QN)


def write_tails(
    tails: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    row_N: Tensor,
    token_N: Tensor | int,
    place_N: Tensor,
    lengths_2R: Tensor,
) -> None:
    """`reference.write_tails` for each row's first ``lengths_2R[1, r]`` tokens, from place ``lengths_2R[0, r]`` on (int32).

    Of a row that has fewer new tokens than the indices say, the reference writes more.
    """
    if not is_for_triton(new[0]):
        reference.write_tails(tails, new, row_N, token_N, place_N)
        return
    from kvmerger.kernels import triton_tails

    triton_tails.write_tails(*tails, *new, *lengths_2R)


def layer_kernels(device: str, head_dim: int, dtype: torch.dtype) -> LayerKernels | None:
    """What a fused decoder computes with on ``device``; None where transformers' own layers are as good."""
    if backend_name(device, head_dim, dtype) != "triton":
        return None
    from kvmerger.kernels import triton_layer

    return triton_layer


def is_for_triton(queries: Tensor) -> bool:
    """Whether queries (…, D) are on a GPU, Triton is there, and its kernels take heads of this size and dtype."""
    return queries.is_cuda and has_triton() and is_supported(queries)


def backend_name(device: str, head_dim: int, dtype: torch.dtype) -> str:
    """Who computes attention over caches on ``device`` for heads of this size and dtype: triton or torch."""
    is_triton = device.startswith("cuda") and has_triton() and _takes(head_dim, dtype)
    return "triton" if is_triton else "torch"


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's CUDA builds bring it. Does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_supported(queries: Tensor) -> bool:
    """Whether the Triton kernels take heads of this size and dtype."""
    return _takes(queries.shape[-1], queries.dtype)


def _takes(head_dim: int, dtype: torch.dtype) -> bool:
    is_aligned = head_dim * dtype.itemsize % SLOT_ALIGNMENT_BYTES == 0
    return is_aligned and head_dim <= MOST_HEAD_DIM and dtype in DTYPES
