"""Gaussian-kernel weights of a merging set around its pivot (KVMerger, arXiv 2407.08454, Eqs. 4–7).

Shapes: F flat tokens of all heads, R runs, D head size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kvmerger.merging.segments import run_sums
from kvmerger.merging.sets import Runs


def gaussian_weights(k_FD: Tensor, pivot_R: Tensor, runs: Runs, sigma: float | None) -> Tensor:
    """Weight of every token in its run: fp32 (F,), at least 0, summing to 1 within each run.

    Args:
        k_FD: fp32 keys of all heads, flat.
        pivot_R: flat index of each run's pivot.
        runs: the partition.
        sigma: kernel width; None takes each run's mean distance to its pivot over √2. The paper prints
            σ = Σg/(√2|S|), which needs σ to compute g; with distances in place of g it gives widths near the 5 the
            paper reports, so that is what we take it to mean.
    """
    distance_F = (k_FD - k_FD[pivot_R[runs.run_F]]).norm(dim=1)
    if sigma is None:
        sigma_R = run_sums(distance_F, runs) / runs.length_R / math.sqrt(2)
        # A run of one token, or of equal keys, has distance 0 throughout: any width gives equal weights.
        sigma_F = sigma_R.masked_fill(sigma_R == 0, 1.0)[runs.run_F]
    else:
        sigma_F = torch.full_like(distance_F, sigma)
    kernel_F = torch.exp(-distance_F.square() / (2 * sigma_F.square()))
    return kernel_F / run_sums(kernel_F, runs)[runs.run_F]
