"""Merging on a GPU: `reference.merging` with the same arguments and the same results, up to rounding.

No fp32 copy of keys or values is ever in memory, and sums are taken member after member, as the reference takes them.

Shapes: as in `reference.merging`.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.programs.merging import merge_kernel, pairs_kernel, reduce_kernel, unit_sum_kernel

RUNS_OF_A_BLOCK = 128
SLOTS_OF_A_BLOCK = 16
PAIRS_OF_A_BLOCK = 32
TOKENS_OF_A_CHUNK = 512


def segment_sums(values_F: Tensor, length_R: Tensor) -> Tensor:
    """As `reference.merging.segment_sums`, of one number a token."""
    return _reduced(values_F, length_R, "sum", values_F.dtype)


def segment_maxima(values_F: Tensor, length_R: Tensor) -> Tensor:
    """As `reference.merging.segment_maxima`."""
    return _reduced(values_F, length_R, "max", values_F.dtype)


def first_argmax(values_F: Tensor, length_R: Tensor) -> Tensor:
    """As `reference.merging.first_argmax`."""
    return _reduced(values_F, length_R, "argmax", torch.int64)


def row_norms(x_FD: Tensor) -> Tensor:
    """As `reference.merging.row_norms`."""
    return _of_pairs(x_FD, None, None, "norm")


def pair_distances(x_FD: Tensor, first_M: Tensor, second_M: Tensor) -> Tensor:
    """As `reference.merging.pair_distances`."""
    return _of_pairs(x_FD, first_M, second_M, "distance")


def pair_cosines(x_FD: Tensor, first_M: Tensor, second_M: Tensor, other_GD: Tensor | None = None) -> Tensor:
    """As `reference.merging.pair_cosines`."""
    return _of_pairs(x_FD, first_M, second_M, "cosine", other_GD)


def mean_units(x_HND: Tensor) -> Tensor:
    """As `reference.merging.mean_units`."""
    num_heads, num_tokens, head_dim = x_HND.shape
    num_chunks = triton.cdiv(num_tokens, TOKENS_OF_A_CHUNK)
    sum_HCD = torch.empty(num_heads, num_chunks, head_dim, dtype=torch.float32, device=x_HND.device)
    unit_sum_kernel[(num_chunks, num_heads)](
        x_HND.contiguous(),
        sum_HCD,
        num_tokens,
        TOKENS_OF_A_CHUNK,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        BLOCK_P=PAIRS_OF_A_BLOCK,
    )
    # Chunks of a fixed size, summed by torch: no atomics, and a head's bits depend on its own tokens alone.
    return sum_HCD.sum(dim=1) / num_tokens


def merged_slots(
    layer: LayerCache,
    member_M: Tensor,
    length_S: Tensor,
    target_S: Tensor,
    num_slots_H: tuple[int, ...],
    key_weight_M: Tensor | None,
    value_weight_M: Tensor | None,
) -> LayerCache:
    """As `reference.merging.merged_slots`."""
    num_slots, head_dim = sum(num_slots_H), layer.k_SD.shape[1]
    merged = LayerCache.unwritten(layer, num_slots_H)
    # CUDA refuses a grid of none, here and below.
    if num_slots:
        merge_kernel[(triton.cdiv(num_slots, SLOTS_OF_A_BLOCK),)](
            layer.k_SD,
            layer.v_SD,
            layer.position_S,
            member_M,
            # Ends of groups, from which the program subtracts the lengths: starts would be one launch more.
            length_S.cumsum(0),
            length_S,
            target_S,
            None if key_weight_M is None else key_weight_M.contiguous(),
            None if value_weight_M is None else value_weight_M.contiguous(),
            merged.k_SD,
            merged.v_SD,
            merged.position_S,
            num_slots,
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            BLOCK_S=SLOTS_OF_A_BLOCK,
            MERGES_KEYS=key_weight_M is not None,
            MERGES_VALUES=value_weight_M is not None,
        )
    return merged


def _reduced(values_F: Tensor, length_R: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    values_F, num_runs = values_F.contiguous(), length_R.numel()
    out_R = torch.empty(num_runs, dtype=dtype, device=values_F.device)
    if num_runs:
        reduce_kernel[(triton.cdiv(num_runs, RUNS_OF_A_BLOCK),)](
            values_F, length_R.cumsum(0), length_R, out_R, num_runs, KIND=kind, BLOCK_S=RUNS_OF_A_BLOCK
        )
    return out_R


def _of_pairs(
    x_FD: Tensor,
    first_M: Tensor | None,
    second_M: Tensor | None,
    kind: str,
    other_GD: Tensor | None = None,
) -> Tensor:
    x_FD, head_dim = x_FD.contiguous(), x_FD.shape[1]
    num_pairs = x_FD.shape[0] if first_M is None else first_M.numel()
    out_M = torch.empty(num_pairs, dtype=torch.float32, device=x_FD.device)
    if num_pairs:
        pairs_kernel[(triton.cdiv(num_pairs, PAIRS_OF_A_BLOCK),)](
            x_FD,
            x_FD if other_GD is None else other_GD.contiguous(),
            first_M,
            second_M,
            out_M,
            num_pairs,
            KIND=kind,
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            BLOCK_P=PAIRS_OF_A_BLOCK,
        )
    return out_M
