"""Choosing the highest of each row, in plain torch, with ties decided: the same scores always give the same choice.

Zeros of either sign are equal, and NaN is higher than everything.

Shapes: H rows (KV heads), N columns (tokens), F = H·N flat places, K places marked.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmerger.device import upload


def is_among_highest(scores_HN: Tensor, count_H: tuple[int, ...]) -> Tensor:
    """Mark the ``count_H[h]`` highest scores of each row h: bool (H, N). Ties go to the earlier column.

    Raises:
        ValueError: ``count_H`` has not one whole number from 0 on for each row.
    """
    require_counts(scores_HN, count_H)
    # topk leaves the order of ties open; a stable sort does not.
    order_HN = scores_HN.sort(dim=1, descending=True, stable=True).indices
    is_marked_HN = torch.zeros_like(order_HN, dtype=torch.bool)
    if len(set(count_H)) == 1:
        return is_marked_HN.scatter_(1, order_HN[:, : count_H[0]], True)
    column_N = torch.arange(scores_HN.shape[1], device=scores_HN.device)
    is_in_HN = column_N[None, :] < upload(count_H, scores_HN.device)[:, None]
    return is_marked_HN.scatter_(1, order_HN, is_in_HN)


def highest_places(scores_HN: Tensor, count_H: tuple[int, ...]) -> Tensor:
    """Flat places of the scores that `is_among_highest` marks, ascending: int64 (K,).

    Raises:
        ValueError: as `is_among_highest`, or a count is above N.
    """
    require_counts(scores_HN, count_H, most=scores_HN.shape[-1])
    return marked_places(is_among_highest(scores_HN, count_H).flatten(), sum(count_H))


def require_counts(scores_HN: Tensor, count_H: tuple[int, ...], most: int | None = None) -> None:
    """Raise ValueError unless there is one whole number from 0 to ``most`` (None: any) for each row of (H, N)."""
    # Every place of the result is then written: one that is not would be memory's earlier contents, used as an index.
    is_sound = all(
        isinstance(count, int) and count >= 0 and (most is None or count <= most) for count in count_H
    )
    if scores_HN.dim() != 2 or len(count_H) != scores_HN.shape[0] or not is_sound:
        limit = "" if most is None else f" to {most}"
        raise ValueError(
            f"a ranking takes scores (H, N) and for each row a whole number from 0{limit}, got {tuple(scores_HN.shape)} and "
            f"{count_H}"
        )


def marked_places(is_marked_F: Tensor, num_marked: int) -> Tensor:
    """Indices of the marked places, ascending: int64 (K,). ``num_marked`` must be their number."""
    # Not `torch.nonzero`, which waits for the device to learn that number.
    # Every marked place has a number of its own, from 1 on; all others go to 0, which nobody reads.
    number_F = is_marked_F.cumsum(0) * is_marked_F
    place_F = torch.arange(is_marked_F.numel(), device=is_marked_F.device)
    # Zeros, not empty: with a wrong number the places that nobody writes are sound indices all the same.
    return place_F.new_zeros(num_marked + 1).scatter_(0, number_F, place_F)[1:]
