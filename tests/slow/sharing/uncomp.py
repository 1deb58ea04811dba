"""UNComp's entropy by singular values of the queries themselves, and its two lengths: written apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def entropy(q_ND: Tensor, num_values: int) -> float:
    """Of one head's queries."""
    centred = q_ND.double() - q_ND.double().mean(dim=0)
    directions = torch.stack([row / row.norm() for row in centred])
    values = sorted((torch.linalg.svdvals(directions) ** 2).tolist(), reverse=True)
    shares = [value / sum(values) + 1e-10 for value in values][:num_values]
    return -math.fsum(share * math.log(share) for share in shares) / math.log(q_ND.shape[1])


def slots(entropies: Sequence[float], num_slots: int, ratio: float) -> list[float]:
    """Slots of each KV head before they are made whole, where no bound cuts them.

    Args:
        entropies: of the query heads, two for each KV head.
    """
    of_heads = [(one + other) / 2 for one, other in zip(entropies[::2], entropies[1::2], strict=True)]
    upper = sorted(of_heads, reverse=True)[: len(of_heads) // 2]
    weights = [ratio if it in upper else 1 for it in of_heads]
    return [weight * num_slots * len(of_heads) / sum(weights) for weight in weights]
