"""DefensiveKV token by token in Python floats: what its scores and its choice are held to, written apart from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

Scores = list[list[float]]
"""By head and token."""


def attention_rows(q_QND: Tensor, k_HND: Tensor, scaling: float, window: int) -> list[list[list[float]]]:
    """What each query of the window pays to each token before it, softmax over all it can see: (Q, W, M)."""
    num_tokens, group = k_HND.shape[1], len(q_QND) // len(k_HND)
    rows = []
    for query_head, q_ND in enumerate(q_QND.double()):
        k_ND = k_HND[query_head // group].double()
        of_head = []
        for token in range(num_tokens - window, num_tokens):
            logits = [float(q_ND[token] @ k_ND[key]) * scaling for key in range(token + 1)]
            top = max(logits)
            exps = [math.exp(logit - top) for logit in logits]
            of_head.append([exp / sum(exps) for exp in exps[: num_tokens - window]])
        rows.append(of_head)
    return rows


def smoothed(row: Sequence[float], kernel: int) -> list[float]:
    """A mean over neighbours, zeros beyond both ends, scaled so that the sum is what it was."""
    half = kernel // 2
    pooled = [sum(row[max(0, at - half) : at + half + 1]) / kernel for at in range(len(row))]
    return [value * sum(row) / sum(pooled) for value in pooled]


def output_norm(value: Tensor, weight_EX: Tensor, query_head: int) -> float:
    """The L1 norm of what a query head's slice of the output projection makes of a value."""
    head_dim = len(value)
    slice_ED = weight_EX[:, query_head * head_dim : (query_head + 1) * head_dim].double()
    return sum(abs(float(row @ value.double())) for row in slice_ED)


def scores(
    states: tuple[Tensor, Tensor, Tensor, float],
    weight_EX: Tensor,
    window: int,
    kernel: int,
    mass: float,
    most_sure: int,
    floor_at_mean: bool = True,
) -> Scores:
    """One layer's scores; ``states`` are queries, keys, values and the scaling."""
    q_QND, k_HND, v_HND, scaling = states
    num_heads, num_tokens = k_HND.shape[:2]
    group, before = len(q_QND) // num_heads, num_tokens - window
    rows = attention_rows(q_QND, k_HND, scaling, window)
    risks: Scores = []
    means: Scores = []
    norms: Scores = []
    for head in range(num_heads):
        query_heads = range(head * group, (head + 1) * group)
        all_rows = [row for query_head in query_heads for row in rows[query_head]]
        smooth = [smoothed(row, kernel) for row in all_rows]
        peaks = [max(row[token] for row in smooth) for token in range(before)]
        least = sum(peaks) / before if floor_at_mean else 0.0
        risks.append([max(peak, least) for peak in peaks])
        means.append([sum(row[token] for row in all_rows) / len(all_rows) for token in range(before)])
        norms.append(
            [
                sum(output_norm(v_HND[head, token], weight_EX, it) for it in query_heads) / group
                for token in range(before)
            ]
        )
    for token in range(before):
        total = sum(norms[head][token] for head in range(num_heads))
        for head in range(num_heads):
            risks[head][token] *= norms[head][token] / total
    highest = max(map(max, risks))
    wanted = mass - sum(sum(of_head[-window:]) for of_head in means) / num_heads
    for head in range(num_heads):
        held = 0.0
        order = sorted(range(before), key=lambda token, head=head: (-means[head][token], token))
        for token in order[: max(0, most_sure)]:
            held += means[head][token] / sum(means[head])
            if held >= wanted:
                break
            # Above all others, in the order of their own risks.
            risks[head][token] = highest + risks[head][token] / 2**20
    return [of_head + [math.inf] * window for of_head in risks]


def kept(scores_LHN: Sequence[Scores], num_slots: int) -> list[list[list[int]]]:
    """The best tokens of all heads of all these layers; of equal ones the earlier layer's, head's and token."""
    places = [
        (-score, layer, head, token)
        for layer, of_layer in enumerate(scores_LHN)
        for head, of_head in enumerate(of_layer)
        for token, score in enumerate(of_head)
    ]
    best = sorted(places)[:num_slots]
    return [
        [
            sorted(token for _, its_layer, its_head, token in best if (its_layer, its_head) == (layer, head))
            for head in range(len(of_layer))
        ]
        for layer, of_layer in enumerate(scores_LHN)
    ]
