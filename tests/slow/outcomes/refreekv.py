"""ReFreeKV's count candidate by candidate: written apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence


def kept(
    last_rows: Sequence[Sequence[float]], orders: Sequence[Sequence[int]], threshold: float
) -> list[list[int]]:
    """The tokens that each KV head keeps.

    Args:
        last_rows: the last query's attention in every query head.
        orders: of every KV head the tokens that may go, first those that stay longest.
    """
    num_tokens, group = len(last_rows[0]), len(last_rows) // len(orders)

    def norm(count: int) -> float:
        norms = [
            math.sqrt(math.fsum(row[token] ** 2 for token in orders[query_head // group][:count]))
            for query_head, row in enumerate(last_rows)
        ]
        return sum(norms) / len(norms)

    most = len(orders[0])
    count = next(it for it in range(1, most + 1) if norm(it) >= (1 - threshold) * norm(most))
    return [sorted(set(range(num_tokens)) - set(order[count:])) for order in orders]
