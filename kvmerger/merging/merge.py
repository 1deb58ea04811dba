"""Write each run of tokens into its pivot's slot. Runs of one token pass through bit for bit.

Shapes: F flat tokens of all heads, R runs, H KV heads, N tokens, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmerger.layer_cache import LayerCache
from kvmerger.merging.gaussian import gaussian_weights
from kvmerger.merging.segments import first_argmax, run_sums
from kvmerger.merging.sets import Runs


def merge_runs(
    layer: LayerCache,
    runs: Runs,
    mass_HN: Tensor,
    *,
    sigma: float | None,
    merge_keys: bool,
    scale_values_by_count: bool,
    log_mass: str,
) -> LayerCache:
    """Merge every run of ``layer`` into its member with the largest attention mass.

    Args:
        layer: uncompressed (uniform heads); not changed.
        runs: partition of its tokens.
        mass_HN: fp32 attention mass per token, positive; chooses pivots.
        sigma: see `gaussian_weights`.
        merge_keys: False keeps the pivot's key and merges values only.
        scale_values_by_count: multiply merged values by the run's size.
        log_mass: ``none``, ``count`` or ``attention``; see `KVMerger`.

    Returns:
        One slot per run, at its pivot's position, with counters. Sums are taken in fp32 and rounded once.
    """
    pivot_R = first_argmax(mass_HN.flatten(), runs)
    # A merged slot stands at its pivot, and pivots of successive runs ascend: positions stay in order.
    pivots = layer.take(pivot_R, runs.num_runs_H)
    k_FD = layer.k_SD.float()
    weight_F1 = gaussian_weights(k_FD, pivot_R, runs, sigma)[:, None]
    is_merged_R1 = (runs.length_R > 1)[:, None]
    v_RD = run_sums(weight_F1 * layer.v_SD.float(), runs)
    if scale_values_by_count:
        v_RD = v_RD * runs.length_R[:, None]
    k_RD = pivots.k_SD
    if merge_keys:
        k_RD = torch.where(is_merged_R1, run_sums(weight_F1 * k_FD, runs).to(k_RD.dtype), k_RD)
    return LayerCache(
        k_RD,
        torch.where(is_merged_R1, v_RD.to(pivots.v_SD.dtype), pivots.v_SD),
        pivots.position_S,
        runs.num_runs_H,
        _log_mass(log_mass, runs, mass_HN.flatten(), pivot_R),
        _counters(runs),
    )


def _log_mass(kind: str, runs: Runs, mass_F: Tensor, pivot_R: Tensor) -> Tensor | None:
    if kind == "none":
        return None
    if kind == "count":
        return runs.length_R.float().log()
    # exp underflow can leave a run without any mass; its slot then counts once.
    ratio_R = run_sums(mass_F, runs) / mass_F[pivot_R].clamp_min(torch.finfo(torch.float32).tiny)
    return ratio_R.clamp_min(1.0).log()


def _counters(runs: Runs) -> dict[str, float]:
    num_tokens, num_runs = runs.run_F.numel(), sum(runs.num_runs_H)
    return {
        "num_merged": float(num_tokens - num_runs),
        "num_merging_sets": float((runs.length_R > 1).sum()),
        "largest_merging_set": float(runs.length_R.max()),
    }
