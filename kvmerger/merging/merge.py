"""Which tokens are merged into which slot, and the writing of those slots. Groups of one token are copied bit for bit.

A group is a kept token with the dropped tokens that merge into it; a dropped token in no group is evicted. Groups stand in
the order of their kept tokens, so that positions ascend within each head.

Shapes: H KV heads, N tokens, M members of all groups, S groups (slots), F flat tokens of all heads.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kvmerger.cache.head_counters import HeadCounters, PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import merged_slots, pair_cosines
from kvmerger.kernels.reference.nearest import EVICTED
from kvmerger.kernels.reference.ranking import marked_places
from kvmerger.merging.noted import note_members
from kvmerger.merging.runs import Runs, run_sums

LogMass = Literal["none", "count", "attention"]
LOG_MASSES = ("none", "count", "attention")


class Groups(NamedTuple):
    """A partition of the merged and kept tokens into slots.

    member_M: int64 flat index of each member, group by group and ascending within a group. runs: which stretch of the
    members is which group. target_S: int64 flat index of the kept token each group merges into, one of its members.
    """

    member_M: Tensor
    runs: Runs
    target_S: Tensor

    @property
    def target_M(self) -> Tensor:
        """Flat index of each member's target."""
        return self.target_S[self.runs.run_F]

    @property
    def is_target_M(self) -> Tensor:
        """Whether a member is the kept token itself."""
        return self.member_M == self.target_M


def groups_of(target_HN: Tensor) -> Groups:
    """Group tokens by target: int64 (H, N), a kept token of the same head, itself for kept tokens, or `EVICTED`.

    Raises:
        ValueError: a target is none of these.
    """
    if target_HN.dim() != 2 or target_HN.dtype != torch.int64:
        raise ValueError(
            f"targets must be torch.int64 (H, N), got {target_HN.dtype} {tuple(target_HN.shape)}"
        )
    num_heads, num_tokens = target_HN.shape
    column_N = torch.arange(num_tokens, device=target_HN.device)
    is_member_HN, is_kept_HN = target_HN != EVICTED, target_HN == column_N
    # Clamped: an index out of range takes the process with it on CUDA.
    inside_HN = target_HN.clamp(0, num_tokens - 1)
    is_stray_HN = is_member_HN & ~((inside_HN == target_HN) & is_kept_HN.gather(1, inside_HN))
    # The one time that the device is waited for: how many slots and members there are, and targets that are none.
    num_slots_H, num_members_H, num_stray_H = torch.stack(
        [is_marked_HN.sum(dim=1) for is_marked_HN in (is_kept_HN, is_member_HN, is_stray_HN)]
    ).tolist()
    if any(num_stray_H):
        raise ValueError(
            f"{sum(num_stray_H)} targets are neither a kept token of the head, whose target is itself, nor EVICTED"
        )
    num_slots = sum(num_slots_H)
    member_M = marked_places(is_member_HN.flatten(), sum(num_members_H))
    slot_F = is_kept_HN.flatten().cumsum(0) - 1
    head_start_H1 = torch.arange(num_heads, device=target_HN.device)[:, None] * num_tokens
    # An evicted token's −1 would be an index into the head before; `member_M` has left those tokens out.
    slot_M = slot_F[(target_HN + head_start_H1).flatten()[member_M]]
    # Stable: members stay in the prompt's order, so that sums are taken in one order every time.
    run_M, order_M = slot_M.sort(stable=True)
    # Atomics, but on whole numbers: in any order they give one sum.
    length_S = run_M.new_zeros(num_slots).scatter_add_(0, run_M, torch.ones_like(run_M))
    target_S = marked_places(is_kept_HN.flatten(), num_slots)
    return Groups(member_M[order_M], Runs(length_S, run_M, tuple(num_slots_H)), target_S)


def whole_runs(runs: Runs, pivot_R: Tensor) -> Groups:
    """Every run of a partition of all tokens as a group around its pivot."""
    return Groups(torch.arange(runs.run_F.numel(), device=runs.run_F.device), runs, pivot_R)


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

    Raises:
        ValueError: there is not one weight for each member.
    """
    for name, weight_M in (("key_weight_M", key_weight_M), ("value_weight_M", value_weight_M)):
        # A kernel goes by the members: with fewer weights it would read what lies behind them in memory.
        if weight_M is not None and weight_M.shape != groups.member_M.shape:
            raise ValueError(
                f"{name} must be one weight for each of the {groups.member_M.numel()} members, got {tuple(weight_M.shape)}"
            )
    length_S, num_slots_H = groups.runs.length_R, groups.runs.num_runs_H
    merged = merged_slots(
        layer, groups.member_M, length_S, groups.target_S, num_slots_H, key_weight_M, value_weight_M
    )
    # Groups whose keys, values and logits all stay the target's own are an eviction, and are counted as one.
    is_merging = any(given is not None for given in (key_weight_M, value_weight_M, log_mass_S))
    if is_merging:
        note_members(groups.member_M, layer.num_slots)
    return replace(merged, log_mass_S=log_mass_S, counters=_counters(layer, groups, is_merging))


def slot_log_mass(kind: LogMass, groups: Groups, mass_F: Tensor, max_log_mass: float | None) -> Tensor | None:
    """What is added to a slot's logit so that it counts for all its members: fp32 (S,), from 0 to ``max_log_mass`` (if set).

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
