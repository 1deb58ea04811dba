"""MEDA's entropy query by query and its shares by trying factors: written apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.slow.sharing.dynamickv import shares


def entropy(matrix_QNN: Sequence[Sequence[Sequence[float]]]) -> list[float]:
    """Of each query head's attention: mean over queries, in nats."""
    return [
        sum(-prob * math.log(prob) for row in of_head for prob in row if prob > 0) / len(of_head)
        for of_head in matrix_QNN
    ]


def slots(
    entropy_LQ: Sequence[Sequence[float]], num_slots: int, num_tokens: int, protected: int, least_share: float
) -> list[int]:
    """Slots per head of every layer."""
    means = [sum(of_layer) / len(of_layer) for of_layer in entropy_LQ]
    exps = [math.exp(mean - max(means)) for mean in means]
    least = max(protected, 1, min(num_slots, math.floor(least_share * num_tokens + 1e-9)))
    return shares([exp / sum(exps) for exp in exps], num_slots * len(means), least, num_tokens)
