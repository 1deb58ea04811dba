"""Choosing the highest of each row, with ties decided: the same scores always give the same choice.

Shapes: H rows (KV heads), N columns (tokens).
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_among_highest(scores_HN: Tensor, count_H: tuple[int, ...]) -> Tensor:
    """Mark the ``count_H[h]`` highest scores of each row h: bool (H, N). Ties go to the earlier column."""
    # topk leaves the order of ties open; a stable sort does not.
    order_HN = scores_HN.sort(dim=1, descending=True, stable=True).indices
    column_N = torch.arange(scores_HN.shape[1], device=scores_HN.device)
    is_in_HN = column_N[None, :] < torch.tensor(count_H, device=scores_HN.device)[:, None]
    return torch.zeros_like(is_in_HN).scatter_(1, order_HN, is_in_HN)
