"""DuoAttention's heads by whole rotation matrices and its slots one by one: written apart from the policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def rotation(inv_freq: Sequence[float], attention_scaling: float, position: int) -> Tensor:
    """RoPE at one position as a matrix (D, D), double precision; halves of a head are paired."""
    half = len(inv_freq)
    turn_DD = torch.zeros(2 * half, 2 * half, dtype=torch.float64)
    for pair, frequency in enumerate(inv_freq):
        cosine, sine = math.cos(position * frequency), math.sin(position * frequency)
        turn_DD[pair, pair] = turn_DD[pair + half, pair + half] = attention_scaling * cosine
        turn_DD[pair, pair + half], turn_DD[pair + half, pair] = (
            -attention_scaling * sine,
            attention_scaling * sine,
        )
    return turn_DD


def retrieval_scores(q_QND: Tensor, k_HND: Tensor, turns: Sequence[Tensor], scaling: float) -> list[float]:
    """Each KV head's, of queries and keys before RoPE; ``turns`` are the rotations of all positions, in order."""
    group = len(q_QND) // len(k_HND)
    found = []
    for head, k_ND in enumerate(k_HND.double()):
        k_D = sum(k_ND) / len(k_ND)
        total = 0.0
        for q_ND in q_QND[head * group : (head + 1) * group].double():
            q_D = turns[-1] @ (sum(q_ND) / len(q_ND))
            logits = [scaling * float(q_D @ (turn_DD @ k_D)) for turn_DD in turns]
            top = max(logits)
            exps = [math.exp(logit - top) for logit in logits]
            area = held = 0.0
            for exp in exps:
                held += exp / sum(exps)
                area += held / len(exps)
            total += area / group
        found.append(total)
    return found


def slots(
    scores_LH: Sequence[Sequence[float]], num_slots: int, num_tokens: int, least: int
) -> list[list[int]]:
    """Every head's slots, handed out one at a time: first what streaming takes, then head by head all that is missing."""
    heads = [(layer, head) for layer, scores_H in enumerate(scores_LH) for head in range(len(scores_H))]
    given = dict.fromkeys(heads, 0)
    for _ in range(min(least, num_tokens)):
        if sum(given.values()) + len(heads) > num_slots:
            break
        given = {head: count + 1 for head, count in given.items()}
    for layer, head in sorted(heads, key=lambda it: (-scores_LH[it[0]][it[1]], it)):
        while given[layer, head] < num_tokens and sum(given.values()) < num_slots:
            given[layer, head] += 1
    return [[given[layer, head] for head in range(len(scores_H))] for layer, scores_H in enumerate(scores_LH)]
