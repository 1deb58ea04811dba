"""Fitted reducers head by head in float64, by the textbook's normal equations over slots."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def folds(num_queries: int) -> tuple[list[int], list[int]]:
    """Queries that are fitted to, and those left out: every fifth stretch of sixteen."""
    left_out = [index for index in range(num_queries) if (index // 16) % 5 == 4]
    if not left_out:
        return list(range(num_queries)), list(range(num_queries))
    return [index for index in range(num_queries) if index not in left_out], left_out


def _ridge(a_KS: Tensor, r_KX: Tensor, ridge: float) -> Tensor:
    gram_SS = a_KS.T @ a_KS + ridge * torch.eye(a_KS.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram_SS, a_KS.T @ r_KX)


def _outputs(
    q_KD: Tensor, k_XD: Tensor, v_XD: Tensor, scaling: float, bias_X: Tensor | float = 0.0
) -> Tensor:
    return (scaling * q_KD @ k_XD.T + bias_X).softmax(dim=1) @ v_XD


def slow_attention_matching(
    policy, q_KD: Tensor, k_ND: Tensor, v_ND: Tensor, kept: list[int], scaling: float
) -> tuple[Tensor, Tensor]:
    """One head's values (S, D) and log masses (S,)."""
    q_KD, k_ND, v_ND = q_KD.double()[folds(len(q_KD))[0]], k_ND.double(), v_ND.double()
    score_KN = scaling * q_KD @ k_ND.T
    exp_KN = (score_KN - score_KN.amax(dim=1, keepdim=True)).exp()
    mass_KS, wanted_K = exp_KN[:, kept], exp_KN.sum(dim=1)
    ridge = policy.bias_ridge * float(mass_KS.square().sum()) / len(q_KD)
    factor_S = 1 + _ridge(mass_KS, (wanted_K - mass_KS.sum(dim=1))[:, None], ridge)[:, 0]
    least, most = math.exp(-policy.max_bias), math.exp(policy.max_bias)
    factor_S = factor_S.clamp(least, most)
    bound = float(mass_KS.sum(dim=1).max() * mass_KS.sum(dim=0).max())
    for _ in range(policy.num_steps):
        factor_S = (factor_S - mass_KS.T @ (mass_KS @ factor_S - wanted_K) / bound).clamp(least, most)
    bias_S = factor_S.log()
    if not policy.fit_values:
        return v_ND[kept], bias_S
    share_KS = (score_KN[:, kept] + bias_S).softmax(dim=1)
    ridge = policy.ridge * float(share_KS.square().sum()) / len(q_KD)
    missing_KD = _outputs(q_KD, k_ND, v_ND, scaling) - share_KS @ v_ND[kept]
    return v_ND[kept] + _ridge(share_KS, missing_KD, ridge), bias_S


def slow_grkv(policy, q_KD: Tensor, k_ND: Tensor, v_ND: Tensor, kept: list[int], scaling: float) -> Tensor:
    """One head's values (S, D)."""
    eps = torch.finfo(v_ND.dtype).eps
    q_KD, k_ND, v_ND = q_KD.double()[folds(len(q_KD))[0]], k_ND.double(), v_ND.double()
    share_KS = (scaling * q_KD @ k_ND[kept].T).softmax(dim=1)
    missing_KD = _outputs(q_KD, k_ND, v_ND, scaling) - share_KS @ v_ND[kept]
    mutable = [place for place, token in enumerate(kept) if token < len(k_ND) - policy.num_fixed]
    change_SD = torch.zeros_like(v_ND[kept])
    ridge = policy.ridge * len(q_KD) / policy.weight
    change_SD[mutable] = _ridge(share_KS[:, mutable], missing_KD, ridge)
    most = max(policy.max_change - eps * (1 + policy.max_change), 0) * float(v_ND[kept].norm())
    if float(change_SD.norm()) > most:
        change_SD *= most / float(change_SD.norm())
    if float((missing_KD - share_KS @ change_SD).norm()) >= float(missing_KD.norm()):
        change_SD.zero_()
    return v_ND[kept] + change_SD
