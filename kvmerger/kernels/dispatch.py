"""Which kernel computes attention over ragged caches, and a prompt's attention mass: Triton's on a GPU where it can, the
references everywhere else."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Collection

import torch
from torch import Tensor

from kvmerger.kernels import prompt_reference, reference
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


def is_for_triton(queries: Tensor) -> bool:
    """Whether queries (…, D) are on a GPU, Triton is there, and its kernels take heads of this size and dtype."""
    return queries.is_cuda and has_triton() and is_supported(queries)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; torch's CUDA builds bring it. Does not import it."""
    return importlib.util.find_spec("triton") is not None


def is_supported(queries: Tensor) -> bool:
    """Whether the Triton kernels take heads of this size and dtype."""
    head_dim = queries.shape[-1]
    is_aligned = head_dim * queries.element_size() % SLOT_ALIGNMENT_BYTES == 0
    return is_aligned and head_dim <= MOST_HEAD_DIM and queries.dtype in DTYPES
