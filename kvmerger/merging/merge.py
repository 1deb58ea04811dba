"""Write each group of tokens into its target's slot. Groups of one token pass through bit for bit.

Shapes: M members of all groups, S groups (slots), F flat tokens of all heads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kvmerger.cache.head_counters import HeadCounters, PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import merged_slots, pair_cosines
from kvmerger.merging.groups import Groups
from kvmerger.merging.segments import run_sums

LogMass = Literal["none", "count", "attention"]
LOG_MASSES = ("none", "count", "attention")


def merge_groups(
    layer: LayerCache,
    groups: Groups,
    *,
    key_weight_M: Tensor | None,
    value_weight_M: Tensor | None,
    log_mass_S: Tensor | None = None,
) -> LayerCache:
    """Replace every group of ``layer`` by one slot: the weighted sums of its keys and values.

    Args:
        layer: uncompressed (uniform heads); not changed.
        groups: who merges into whom.
        key_weight_M, value_weight_M: fp32 weight of every member; None keeps the targets' own. Weights that sum to 1
            keep a slot at its tokens' scale.
        log_mass_S: fp32, added to each slot's logit.

    Returns:
        One slot per group, at its target's position, with counters. Sums are taken in fp32 and rounded once.
    """
    length_S, num_slots_H = groups.runs.length_R, groups.runs.num_runs_H
    merged = merged_slots(
        layer, groups.member_M, length_S, groups.target_S, num_slots_H, key_weight_M, value_weight_M
    )
    is_merging = any(given is not None for given in (key_weight_M, value_weight_M, log_mass_S))
    return replace(merged, log_mass_S=log_mass_S, counters=_counters(layer, groups, is_merging))


def slot_log_mass(kind: LogMass, groups: Groups, mass_F: Tensor, max_log_mass: float | None) -> Tensor | None:
    """What makes a slot count for all its members: fp32 (S,), at least 0, at most ``max_log_mass`` where that is set.

    Args:
        kind: ``none`` gives None; ``count`` log|S|; ``attention`` log(Σ mass ÷ the target's mass).
        groups: who merges into whom.
        mass_F: fp32 attention mass, positive.
        max_log_mass: largest value, in nats.
    """
    if kind == "none":
        return None
    if kind == "count":
        log_mass_S = groups.runs.length_R.float().log()
    else:
        log_mass_S = (run_sums(mass_F[groups.member_M], groups.runs) / mass_F[groups.target_S]).log()
    return log_mass_S.clamp(0.0, math.inf if max_log_mass is None else max_log_mass)


def _counters(layer: LayerCache, groups: Groups, is_merging: bool) -> HeadCounters:
    # Every slot's and member's number at its place among all tokens, 0 elsewhere: sums over a row are a head's.
    nothing_F = torch.zeros(layer.num_slots, dtype=torch.float64, device=layer.k_SD.device)
    length_HN = nothing_F.scatter(0, groups.target_S, groups.runs.length_R.double()).view(layer.num_heads, -1)
    num_slots_H, num_members_H = (length_HN > 0).sum(dim=1), length_HN.sum(dim=1)
    num_merged_H = num_members_H - num_slots_H if is_merging else torch.zeros_like(num_members_H)
    counters = {
        "num_merged": PerHead(num_merged_H),
        "num_evicted": PerHead(length_HN.shape[1] - num_slots_H - num_merged_H),
        "num_merging_sets": PerHead((length_HN > 1).sum(dim=1)),
        "largest_merging_set": PerHead(length_HN.amax(dim=1)),
        "is_pure_eviction": PerHead(num_merged_H == 0),
    }
    if is_merging:
        cosine_M = pair_cosines(layer.k_SD, groups.member_M, groups.target_M)
        cosine_M = cosine_M.masked_fill(groups.is_target_M, 0.0)
        sum_H = nothing_F.scatter(0, groups.member_M, cosine_M.double()).view(layer.num_heads, -1).sum(dim=1)
        counters["mean_merge_cosine"] = PerHead(sum_H / num_merged_H.clamp_min(1), num_merged_H)
    return HeadCounters(counters)
