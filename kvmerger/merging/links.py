"""In what order neighbours are joined when a budget says how many must be.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Links = Literal["cosine", "random", "low_mass", "cosine_low_mass"]
LINKS = ("cosine", "random", "low_mass", "cosine_low_mass")


def link_scores(
    kind: Links, cosine_HN: Tensor, mass_HN: Tensor, random_HN: Tensor, is_eligible_HN: Tensor
) -> Tensor:
    """How early each link is accepted: fp32 (H, N-1), highest first.

    Args:
        kind: ``cosine`` of the two keys; ``random``; ``low_mass``: least attention to the two tokens together;
            ``cosine_low_mass``: least sum of a link's ranks by the two, both among the head's eligible links.
        cosine_HN: fp32 (H, N-1), of each key with the next.
        mass_HN: fp32 (H, N) attention mass.
        random_HN: fp32 (H, N); the last column is not used.
        is_eligible_HN: bool (H, N-1).
    """
    if kind == "cosine":
        return cosine_HN
    if kind == "random":
        return random_HN[:, :-1]
    minus_mass_HN = -(mass_HN[:, :-1] + mass_HN[:, 1:])
    if kind == "low_mass":
        return minus_mass_HN
    ranks = [_rank(scores_HN, is_eligible_HN) for scores_HN in (cosine_HN, minus_mass_HN)]
    return -(ranks[0] + ranks[1]).float()


def _rank(scores_HN: Tensor, is_eligible_HN: Tensor) -> Tensor:
    """0 for the highest eligible score of a row; ties go to the earlier column: int64 (H, N-1)."""
    order_HN = (
        scores_HN.masked_fill(~is_eligible_HN, float("-inf"))
        .sort(dim=1, descending=True, stable=True)
        .indices
    )
    place_HN = torch.arange(scores_HN.shape[1], device=scores_HN.device).expand_as(order_HN)
    return torch.empty_like(order_HN).scatter_(1, order_HN, place_HN)
