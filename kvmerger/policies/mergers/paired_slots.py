"""The slots that pairs were merged into: mean values, log of how many tokens each counts for, keys by the pairs' weights.

Shapes: H KV heads, N tokens, M members of all groups, F = H·N flat tokens, D head size, S slots.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.merging.merge import groups_of, merge_groups
from kvmerger.merging.pair_weights import PairedTokens
from kvmerger.prefill.before_rope import ROPE_FREQUENCIES, turned_keys
from kvmerger.prefill.evidence import Evidence, Need

Keys = Literal["before_rope", "after_rope"]
KEYS = ("before_rope", "after_rope")


def needs_of_keys(keys: Keys) -> frozenset[Need]:
    """The model's rotation, where keys are averaged as they are before it."""
    return frozenset({ROPE_FREQUENCIES}) if keys == "before_rope" else frozenset()


def paired_slots(
    layer: LayerCache, evidence: Evidence, target_HN: Tensor, paired: PairedTokens, keys: Keys
) -> LayerCache:
    """One slot for each target: int64 (H, N), the token whose position a slot has, one of its own, or `EVICTED`.

    Sums are taken in fp32 and rounded once; a slot of one token comes back bit for bit.
    """
    num_tokens = evidence.num_tokens
    groups = groups_of(target_HN)
    k_FD = layer.k_SD.float()
    if keys == "before_rope":
        # A key turned by as much as its token is away from the slot's: the mean of these is the mean before RoPE, turned.
        turn_HN = target_HN - torch.arange(num_tokens, device=target_HN.device)
        turn_HNF = turn_HN[..., None] * evidence.get(ROPE_FREQUENCIES)[:, None]
        k_FD = turned_keys(k_FD, turn_HNF.flatten(0, 1))
    length_F = paired.length_F[paired.first_F]
    merged = merge_groups(
        replace(layer, k_SD=k_FD, v_SD=layer.v_SD.float()),
        groups,
        key_weight_M=paired.weight_F[groups.member_M].float(),
        value_weight_M=length_F[groups.member_M].reciprocal().float(),
        log_mass_S=length_F[groups.target_S].log().float(),
    )
    merged = replace(merged, k_SD=merged.k_SD.to(layer.dtype), v_SD=merged.v_SD.to(layer.dtype))
    return merged.counting({"num_key_weights_apart": PerHead(paired.num_apart_H)})
