"""How much each member of a merging set counts: by distance to its target, by attention, by both, or all alike.

Shapes: M members of all groups, S groups (slots), F flat tokens of all heads, D head size.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from kvmerger.kernels.dispatch import pair_distances
from kvmerger.merging.merge import Groups
from kvmerger.merging.runs import run_sums

Weights = Literal["gaussian", "mean", "attention", "gaussian_attention"]
WEIGHTS = ("gaussian", "mean", "attention", "gaussian_attention")


def member_weights(
    kind: Weights, k_FD: Tensor, mass_F: Tensor, groups: Groups, sigma: float | None
) -> Tensor:
    """Weight of every member in its group: fp32 (M,), at least 0, summing to 1 within each group.

    Args:
        kind: ``gaussian`` falls with the distance to the target's key (KVMerger, arXiv 2407.08454, Eqs. 4–6), ``mean``
            counts all alike, ``attention`` goes by mass, ``gaussian_attention`` by the product of the two.
        k_FD: keys of all heads, flat.
        mass_F: fp32 attention mass, positive.
        groups: who belongs together.
        sigma: the kernel's width; see `gaussian_kernel`.

    Raises:
        ValueError: there is not one mass for each key.
    """
    # Members index both: out of range, an index takes the process with it on CUDA.
    if mass_F.shape != k_FD.shape[:1]:
        raise ValueError(
            f"mass_F must be one number for each of {k_FD.shape[0]} keys, got {tuple(mass_F.shape)}"
        )
    weight_M = torch.ones(groups.member_M.numel(), device=k_FD.device)
    if kind in ("gaussian", "gaussian_attention"):
        weight_M = gaussian_kernel(k_FD, groups, sigma)
    if kind in ("attention", "gaussian_attention"):
        weight_M = weight_M * mass_F[groups.member_M]
    return normalised_weights(weight_M, groups)


def counted(weight_M: Tensor, groups: Groups) -> Tensor:
    """``weight_M`` times the size of each member's group: weights that sum to 1 then sum to the number of members."""
    return weight_M * groups.runs.length_R[groups.runs.run_F]


def normalised_weights(weight_M: Tensor, groups: Groups) -> Tensor:
    """``weight_M`` divided by its group's sum, which must be positive: fp32 (M,)."""
    return weight_M / run_sums(weight_M, groups.runs)[groups.runs.run_F]


def gaussian_kernel(k_FD: Tensor, groups: Groups, sigma: float | None) -> Tensor:
    """exp(−d²/2σ²) with d the distance of each member's key to its target's: fp32 (M,), 1 for the target itself.

    ``sigma=None`` takes each group's mean distance to its target over √2.
    """
    distance_M = pair_distances(k_FD, groups.member_M, groups.target_M)
    if sigma is None:
        # The paper prints σ = Σg/(√2|S|), which needs σ to compute g. With distances in place of g it gives widths near the
        # 5 that the paper reports.
        sigma_S = run_sums(distance_M, groups.runs) / groups.runs.length_R / math.sqrt(2)
        # A group of one token, or of equal keys, has distance 0 throughout: any width gives equal weights.
        sigma_M = sigma_S.masked_fill(sigma_S == 0, 1.0)[groups.runs.run_F]
    else:
        sigma_M = torch.full_like(distance_M, sigma)
    return torch.exp(-distance_M.square() / (2 * sigma_M.square()))
