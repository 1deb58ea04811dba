"""Rows that say nothing about their policy, and why."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvmerger.building import Variant, form_of
from kvmerger.cache.head_counters import combined
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import HeldLayer
from kvmerger.decoding.ragged_cache import Prefix

DID_NOTHING = "kept every slot: the policy did nothing"
"""Why a row says nothing about its policy, unless that acts during decoding."""
NOTHING_TO_COMPRESS = "there is no context to compress, and nothing left while answering"
FORM_HOLDS_ALL = "kept every slot: its form holds all of them within the budget"


def _is_alike(kept: LayerCache, full: HeldLayer) -> bool:
    whole = full.plain()
    return torch.equal(kept.k_SD, whole.k_SD) and torch.equal(kept.v_SD, whole.v_SD)


def why_degenerate(variant: Variant, kept_L: Sequence[LayerCache], full: Prefix) -> str | None:
    """Why ``kept_L`` says nothing about its policy; None where it does."""
    policy, is_stored = variant.policy, form_of(variant.policy) is not None
    if all(kept.num_slots == whole.num_slots for kept, whole in zip(kept_L, full, strict=True)):
        if is_stored:
            has_widths = any(kept.widths is not None for kept in kept_L)
            return None if variant.budget is None or has_widths else FORM_HOLDS_ALL
        # Waits for the device, where everything is kept and something may have been done to it.
        is_untouched = policy.keeps_slots_unchanged or all(map(_is_alike, kept_L, full))
        return DID_NOTHING if is_untouched else None
    # The least of all layers and heads (`LayerCache.counters`): 1 only where not one of them merged anything.
    if not policy.keeps_slots_unchanged and merged_counters(tuple(kept_L)).get("is_pure_eviction") == 1.0:
        return "merged nothing: what was left out is evicted"
    return None


def merged_counters(prefix: Prefix) -> dict[str, float]:
    """Put the layers' counters together, by the rule in `LayerCache.counters`."""
    names = dict.fromkeys(name for layer in prefix for name in layer.counters)
    return {
        name: combined(name, [layer.counters[name] for layer in prefix if name in layer.counters])
        for name in names
    }
