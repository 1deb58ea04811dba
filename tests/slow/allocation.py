"""CriticalKV and ChunkKV token by token, in float64 and Python's own sorts."""

from __future__ import annotations

import math

import torch


def slow_output_norms(v_HND: torch.Tensor, weight_EX: torch.Tensor) -> list[list[float]]:
    """‖W_o v‖₁ of every token, averaged over the query heads of its group."""
    num_heads, num_tokens, head_dim = v_HND.shape
    group = weight_EX.shape[1] // head_dim // num_heads
    norms = []
    for head in range(num_heads):
        slices = [
            weight_EX[:, query_head * head_dim : (query_head + 1) * head_dim].double()
            for query_head in range(head * group, (head + 1) * group)
        ]
        norms.append(
            [
                sum(float((w_ED @ v_HND[head, token].double()).abs().sum()) for w_ED in slices) / group
                for token in range(num_tokens)
            ]
        )
    return norms


def _best(worth: dict[int, float], count: int) -> list[int]:
    """Tokens of the highest worth, the earlier of equals first."""
    return sorted(worth, key=lambda token: (-worth[token], token))[:count]


def slow_critical(
    scores: list[list[float]], norms: list[list[float]], slots: list[int], epsilon: float, ratio: float
) -> list[set[int]]:
    """Which tokens stay in each head: so many by score, the others by the product; what is infinite first of all."""
    kept = []
    for head_scores, head_norms, num_slots in zip(scores, norms, slots, strict=True):
        worth = dict(enumerate(head_scores))
        num_first = max(math.floor(ratio * num_slots), int(ratio > 0))
        chosen = set(_best(worth, num_first)) | {token for token in worth if worth[token] == math.inf}
        others = {
            token: (score + epsilon) * head_norms[token]
            for token, score in worth.items()
            if token not in chosen
        }
        chosen |= set(_best(others, num_slots - len(chosen)))
        kept.append(chosen)
    return kept


def slow_chunks(scores: list[list[float]], num_slots: int, chunk_length: int) -> set[int]:
    """Which tokens stay in all heads: protected ones, then chunk after chunk, of the last one the best tokens."""
    total = [sum(column) for column in zip(*scores, strict=True)]
    chunks = [
        range(start, min(start + chunk_length, len(total))) for start in range(0, len(total), chunk_length)
    ]
    chunks.sort(key=lambda chunk: (-sum(total[token] for token in chunk) / len(chunk), chunk.start))
    kept = [token for token, score in enumerate(total) if score == math.inf]
    for chunk in chunks:
        of_chunk = {token: total[token] for token in chunk if token not in kept}
        kept += _best(of_chunk, num_slots - len(kept))
    return set(kept[:num_slots])
