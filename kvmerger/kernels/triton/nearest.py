"""The most similar kept token on a GPU: `reference.nearest` with the same results, up to rounding.

All heads of all layers are one launch; each head is searched by itself, so that its bits are its own.

Shapes: as in `reference.nearest` and `programs.nearest`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
from torch import Tensor

from kvmerger.device import upload
from kvmerger.kernels.programs.merging import LEAST_UNIT_NORM
from kvmerger.kernels.programs.nearest import nearest_kernel
from kvmerger.kernels.reference.nearest import EVICTED, NO_COSINE
from kvmerger.kernels.reference.ranking import marked_places
from kvmerger.kernels.triton.merging import row_norms

FEWEST_DOT_DIMS = 16
# Above this head size blocks must be smaller, to fit smaller GPUs' shared memory.
MOST_NARROW_DIM = 128


@dataclass(frozen=True, slots=True)
class Tiling:
    """How one program's work is cut: dropped and kept tokens of a block, and Triton's two knobs."""

    dropped: int
    kept: int
    num_warps: int
    num_stages: int


HALF = Tiling(128, 32, 8, 3)  # the fastest of four on an H200 (`bench.kernels --only compress`)
FULL = Tiling(32, 32, 4, 2)  # fp32 dots are unrolled, and spill registers when large
HALF_WIDE, FULL_WIDE = Tiling(64, 32, 4, 2), Tiling(16, 32, 4, 2)


def most_similar_kept(
    k_HND: Tensor, is_kept_HN: Tensor, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor]:
    """As `reference.nearest.most_similar_kept`; a kept token's own numbers are `EVICTED` and `NO_COSINE`.

    ``tiling`` is for measuring; by dtype and head size when None.
    """
    num_heads, num_tokens, head_dim = k_HND.shape
    k_FD, is_kept_F = k_HND.flatten(0, 1).contiguous(), is_kept_HN.flatten()
    target_HN = torch.full((num_heads, num_tokens), EVICTED, device=k_FD.device)
    cosine_HN = torch.full((num_heads, num_tokens), NO_COSINE, device=k_FD.device)
    # The one wait in here: a grid is a number of the host's.
    num_kept_H = is_kept_HN.sum(dim=1).tolist()
    num_dropped_H = [num_tokens - num_kept for num_kept in num_kept_H]
    if not any(num_dropped_H):
        return target_HN, cosine_HN
    kept_K = marked_places(is_kept_F, sum(num_kept_H))
    dropped_M = marked_places(~is_kept_F, sum(num_dropped_H))
    # Gathered once, so that every block of dropped tokens reads its kept ones in one stretch.
    kept_KD = k_FD[kept_K]
    inverse_norm_K = row_norms(kept_KD).clamp_min_(LEAST_UNIT_NORM.value).reciprocal_()
    tiling = tiling or _tiling_for(k_FD)
    kept_start_H, kept_H, dropped_start_H, dropped_H = upload(
        [*_starts(num_kept_H), *num_kept_H, *_starts(num_dropped_H), *num_dropped_H], k_FD.device
    ).view(4, num_heads)
    nearest_kernel[(triton.cdiv(max(num_dropped_H), tiling.dropped), num_heads)](
        k_FD,
        kept_KD,
        inverse_norm_K,
        kept_K,
        kept_start_H,
        kept_H,
        dropped_M,
        dropped_start_H,
        dropped_H,
        target_HN,
        cosine_HN,
        num_tokens,
        HEAD_DIM=head_dim,
        BLOCK_D=max(FEWEST_DOT_DIMS, triton.next_power_of_2(head_dim)),
        BLOCK_X=tiling.dropped,
        BLOCK_S=tiling.kept,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return target_HN, cosine_HN


def _starts(lengths: list[int]) -> list[int]:
    return [0, *accumulate(lengths[:-1])]


def _tiling_for(k_FD: Tensor) -> Tiling:
    is_wide = k_FD.shape[1] > MOST_NARROW_DIM
    if k_FD.element_size() == torch.float32.itemsize:
        return FULL_WIDE if is_wide else FULL
    return HALF_WIDE if is_wide else HALF
