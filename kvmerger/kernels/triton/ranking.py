"""A ranking on a GPU, and copying what it chose: `reference.ranking` and `LayerCache.take`, bit for bit.

A ranking is one launch for all heads of all layers, and so is a copy. Neither waits for the device.

Shapes: as in `reference.ranking` and `programs.ranking`.
"""

from __future__ import annotations

from itertools import accumulate

import torch
import triton
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.device import upload
from kvmerger.kernels.programs.ranking import highest_kernel, take_kernel
from kvmerger.kernels.reference.ranking import require_counts

# Longer rows are read again for every two bits. A thread has 16 columns of a full block in its registers.
MOST_BLOCK_COLUMNS = 16384
COLUMNS_OF_A_WARP = 512
SLOTS_OF_A_BLOCK = 32


def is_among_highest(scores_HN: Tensor, count_H: tuple[int, ...], block: int | None = None) -> Tensor:
    """As `reference.ranking.is_among_highest`; ``block``: columns of a block, a power of two; by the row's length if None."""
    require_counts(scores_HN, count_H)
    is_marked_HN = torch.empty(scores_HN.shape, dtype=torch.bool, device=scores_HN.device)
    _launch(scores_HN, count_H, None, is_marked_HN, block)
    return is_marked_HN


def highest_places(scores_HN: Tensor, count_H: tuple[int, ...], block: int | None = None) -> Tensor:
    """As `reference.ranking.highest_places`; ``block`` as above."""
    require_counts(scores_HN, count_H, most=scores_HN.shape[-1])
    place_K = torch.empty(sum(count_H), dtype=torch.int64, device=scores_HN.device)
    _launch(scores_HN, count_H, place_K, None, block)
    return place_K


def take_slots(layer: LayerCache, slot_K: Tensor, num_slots_H: tuple[int, ...]) -> LayerCache:
    """As `LayerCache.take`, of a layer without log masses and scores."""
    num_chosen, head_dim = slot_K.numel(), layer.k_SD.shape[1]
    taken = LayerCache.unwritten(layer, num_slots_H)
    if num_chosen:
        take_kernel[(triton.cdiv(num_chosen, SLOTS_OF_A_BLOCK),)](
            layer.k_SD,
            layer.v_SD,
            layer.position_S,
            slot_K,
            taken.k_SD,
            taken.v_SD,
            taken.position_S,
            num_chosen,
            HEAD_DIM=head_dim,
            BLOCK_D=triton.next_power_of_2(head_dim),
            BLOCK_S=SLOTS_OF_A_BLOCK,
        )
    return taken


def _launch(
    scores_HN: Tensor,
    count_H: tuple[int, ...],
    place_K: Tensor | None,
    is_marked_HN: Tensor | None,
    block: int | None,
) -> None:
    num_rows, num_columns = scores_HN.shape
    if not scores_HN.numel():
        return
    # For speed alone: numbers are whole, so what is chosen does not depend on the width.
    block = block or min(MOST_BLOCK_COLUMNS, triton.next_power_of_2(num_columns))
    numbers_2H = upload([*count_H, 0, *accumulate(count_H[:-1])], scores_HN.device).view(2, num_rows)
    highest_kernel[(num_rows,)](
        scores_HN,
        *numbers_2H,
        place_K,
        is_marked_HN,
        num_columns,
        *scores_HN.stride(),
        BLOCK_B=block,
        KEY_BITS=64 if scores_HN.dtype == torch.float64 else 32,
        GIVES_PLACES=place_K is not None,
        num_warps=min(32, max(1, block // COLUMNS_OF_A_WARP)),
    )
