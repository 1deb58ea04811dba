"""Compactor token by token in double precision: what its scores are held to, written apart from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RIDGE = 0.01


def standardised(numbers_HM: list[list[float]]) -> list[list[float]]:
    """Less the mean, by the sample's deviation, of all heads together."""
    numbers = [number for row in numbers_HM for number in row]
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((number - mean) ** 2 for number in numbers) / (len(numbers) - 1))
    return [[(number - mean) / deviation for number in row] for row in numbers_HM]


def leverages(x_MK: Tensor) -> list[float]:
    """xᵀ(XᵀX + λ1)⁻¹x of every row x, by the inverse itself, of rows less their mean."""
    x_MK = x_MK - sum(x_MK) / len(x_MK)
    inverse_KK = torch.linalg.inv(x_MK.T @ x_MK + RIDGE * torch.eye(x_MK.shape[1], dtype=torch.float64))
    return [float(x_K @ inverse_KK @ x_K) for x_K in x_MK]


def chunk_attention(q_QMD: Tensor, k_HMD: Tensor, v_HMD: Tensor, size: int) -> list[list[float]]:
    """What every key gets of the queries of its own chunk, mean over the group, times its value's norm; pooled by threes."""
    group, num_tokens = len(q_QMD) // len(k_HMD), k_HMD.shape[1]
    found = []
    for head, k_MD in enumerate(k_HMD.double()):
        paid = [0.0] * num_tokens
        for query_head in range(head * group, (head + 1) * group):
            for query in range(num_tokens):
                first = query // size * size
                chunk = range(first, min(first + size, num_tokens))
                logits = [float(q_QMD[query_head, query].double() @ k_MD[key]) for key in chunk]
                top = max(logits)
                exps = [math.exp(logit - top) for logit in logits]
                for key, exp in zip(chunk, exps, strict=True):
                    paid[key] += exp / sum(exps) / group
        weighted = [mass * float(v_D.double().norm()) for mass, v_D in zip(paid, v_HMD[head], strict=True)]
        found.append([sum(weighted[max(0, at - 1) : at + 2]) / 3 for at in range(num_tokens)])
    return found


def scores(
    states: tuple[Tensor, Tensor, Tensor], x_HMK: Tensor, ends: tuple[int, int], size: int, blending: float
) -> list[list[float]]:
    """One layer's scores.

    Args:
        states: queries and keys after RoPE, and values, of all tokens.
        x_HMK: the keys before RoPE of the tokens between both ends, sketched.
        ends: how many tokens at the beginning and at the end are always kept.
    """
    first, last = ends
    inner = slice(first, states[1].shape[1] - last)
    lever_HM = standardised([leverages(x_MK.double()) for x_MK in x_HMK])
    paid_HM = standardised(chunk_attention(*(x[:, inner] for x in states), size))
    return [
        [math.inf] * first
        + [blending * a + b for a, b in zip(lever_M, paid_M, strict=True)]
        + [math.inf] * last
        for lever_M, paid_M in zip(lever_HM, paid_HM, strict=True)
    ]
