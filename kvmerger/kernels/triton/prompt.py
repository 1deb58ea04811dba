"""A prompt's attention mass on a GPU: `reference.prompt` with the same results, up to rounding.

Costs one q·k product of causal attention where the attention itself left its log-sum-exp, two where not.

Shapes: as in `reference.prompt` and `programs.prompt`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from kvmerger.kernels.programs.prompt import column_mass_kernel, log_sum_exp_kernel

FEWEST_DOT_DIMS = 16
# Above this head size blocks must be smaller, to fit the registers and smaller GPUs' shared memory.
MOST_NARROW_DIM = 128


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one program's work is cut: keys (columns) and queries of a block, and Triton's two knobs."""

    columns: int
    queries: int
    num_warps: int
    num_stages: int


# The fastest of those that `bench.kernels --tune` tried on an H200, 1.12 times as fast as with 8 warps and 3 stages: small
# programs share a multiprocessor, and one's exponentials run beside another's products.
HALF = Tiling(128, 64, 4, 2)
FULL = Tiling(32, 32, 4, 2)  # fp32 dots are unrolled, and spill registers when large
HALF_WIDE, FULL_WIDE = Tiling(64, 32, 4, 2), Tiling(32, 16, 4, 2)


def attention_mass(
    q_QND: Tensor,
    k_HND: Tensor,
    scaling: float,
    lse_QN: Tensor | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Column sums of causal attention, averaged over the query heads of a group: fp32 (H, N).

    Args:
        q_QND, k_HND: of one dtype (fp32, bf16, fp16) on one device.
        lse_QN: each query's log-sum-exp as the attention kernel had it; computed here when None.
        tiling: for measuring; by dtype and head size when None.
    """
    mass_QN = _column_sums(q_QND, k_HND, scaling, 0, lse_QN, tiling)
    return mass_QN.unflatten(0, (k_HND.shape[0], q_QND.shape[0] // k_HND.shape[0])).mean(dim=1)


def window_attention(
    q_QND: Tensor, k_HND: Tensor, scaling: float, window_tokens: int, lse_QN: Tensor | None = None
) -> Tensor:
    """Mean attention paid by the last ``window_tokens`` tokens, each causal within the window: fp32 (Q, N)."""
    num_tokens = k_HND.shape[1]
    first_query = max(0, num_tokens - window_tokens)
    return _column_sums(q_QND, k_HND, scaling, first_query, lse_QN).div_(num_tokens - first_query)


def log_sum_exp(
    q_QND: Tensor, k_HND: Tensor, scaling: float, first_query: int = 0, tiling: Tiling | None = None
) -> Tensor:
    """Natural log-sum-exp of the causal scores of the queries from ``first_query`` on: fp32 (Q, F)."""
    num_query_heads, num_tokens = q_QND.shape[:2]
    tiling = tiling or tiling_for(q_QND)
    lse_QF = q_QND.new_empty(num_query_heads, num_tokens - first_query, dtype=torch.float32)
    grid = (triton.cdiv(num_tokens - first_query, tiling.queries), num_query_heads)
    log_sum_exp_kernel[grid](
        q_QND, k_HND, lse_QF, **_arguments(q_QND, k_HND, lse_QF, scaling, first_query, tiling)
    )
    return lse_QF


def tiling_for(q_QND: Tensor) -> Tiling:
    """The tiling that is used for queries like these."""
    is_wide = q_QND.shape[2] > MOST_NARROW_DIM
    if q_QND.element_size() == torch.float32.itemsize:
        return FULL_WIDE if is_wide else FULL
    return HALF_WIDE if is_wide else HALF


def _column_sums(
    q_QND: Tensor,
    k_HND: Tensor,
    scaling: float,
    first_query: int,
    lse_QN: Tensor | None,
    tiling: Tiling | None = None,
) -> Tensor:
    """Attention that the queries from ``first_query`` on pay to each key, summed over them: fp32 (Q, N)."""
    num_query_heads, num_tokens = q_QND.shape[:2]
    mass_QN = q_QND.new_empty(num_query_heads, num_tokens, dtype=torch.float32)
    if not num_tokens:
        return mass_QN
    # Programs are told the strides of heads and tokens; a head's own numbers must lie side by side.
    q_QND, k_HND = (tensor if tensor.stride(2) == 1 else tensor.contiguous() for tensor in (q_QND, k_HND))
    tiling = tiling or tiling_for(q_QND)
    lse_QF = None if lse_QN is None else lse_QN[:, first_query:]
    if lse_QF is None:
        lse_QF = log_sum_exp(q_QND, k_HND, scaling, first_query, tiling)
    # A head's first columns, with most queries to add up, start first.
    grid = (triton.cdiv(num_tokens, tiling.columns), num_query_heads)
    column_mass_kernel[grid](
        q_QND, k_HND, lse_QF, mass_QN, **_arguments(q_QND, k_HND, lse_QF, scaling, first_query, tiling)
    )
    return mass_QN


def _arguments(
    q_QND: Tensor, k_HND: Tensor, lse_QF: Tensor, scaling: float, first_query: int, tiling: Tiling
) -> dict[str, Any]:
    """What both kernels are told, by the names of their parameters."""
    head_dim = q_QND.shape[2]
    return {
        "scaling": scaling,
        "num_tokens": q_QND.shape[1],
        "first_query": first_query,
        "num_groups": q_QND.shape[0] // k_HND.shape[0],
        **dict(zip(("q_stride_Q", "q_stride_N"), q_QND.stride(), strict=False)),
        **dict(zip(("k_stride_H", "k_stride_N"), k_HND.stride(), strict=False)),
        **dict(zip(("lse_stride_Q", "lse_stride_F"), lse_QF.stride(), strict=True)),
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(FEWEST_DOT_DIMS, triton.next_power_of_2(head_dim)),
        "BLOCK_S": tiling.columns,
        "BLOCK_X": tiling.queries,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
    }
