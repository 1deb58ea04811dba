"""What became of a prompt's massive tokens when a policy compressed it: held as they were, merged, or dropped.

Shapes: H KV heads of all layers of a stack, N tokens, F = H·N, S kept slots, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kvmerger.cache.head_counters import HeadCounters, PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.prefill.evidence import Evidence, EvidenceError
from kvmerger.prefill.massive import MASSIVE, TIMES_MEDIAN

COUNTERS = frozenset({"num_massive", "num_massive_dropped", "num_massive_merged", "largest_times_median"})


def counting_massive(
    kept: LayerCache, layer: LayerCache, evidence: Evidence, merged_F: Sequence[Tensor], *, is_eviction: bool
) -> LayerCache:
    """``kept`` with counters: ``num_massive``, ``num_massive_dropped``, ``num_massive_merged``, ``largest_times_median``.

    A massive token counts once per KV head and layer, as slots do. It is merged where it went into another's slot, or where
    its own slot no longer holds its key and value alone; dropped where it is in no slot; of a merging of its own, not by
    `merge_groups`, nobody knows who went where, and tokens without a slot count as dropped. ``kept`` itself comes back
    where keys have new positions, or where there is no evidence.

    Args:
        kept: what is left of ``layer``, checked; positions may still be out of range.
        merged_F: bool (F,) each, what `noting_members` gathered.
        is_eviction: kept slots are known to be unchanged, and are not compared.
    """
    try:
        times_LN = evidence.by_layer(evidence.get(MASSIVE))
    except EvidenceError:  # it did not fit: the policy's own numbers are as good without
        return kept
    if kept.next_position is not None:
        return kept
    is_massive_F = evidence.for_heads(times_LN > TIMES_MEDIAN).flatten()
    slot_F = kept.head_S * evidence.num_tokens + kept.position_S.long().clamp(0, evidence.num_tokens - 1)
    is_held_F = torch.zeros_like(is_massive_F).index_fill(0, slot_F, True)
    is_merged_F = torch.zeros_like(is_massive_F)
    if not is_eviction:
        for members_F in merged_F:
            if members_F.shape == is_merged_F.shape:
                is_merged_F |= members_F & ~is_held_F
        is_merged_F |= is_merged_F.scatter(0, slot_F, _is_changed(kept, layer, slot_F))
    return _with_counters(
        kept,
        {
            "num_massive": PerHead(_per_head(is_massive_F, evidence)),
            "num_massive_dropped": PerHead(_per_head(is_massive_F & ~is_held_F & ~is_merged_F, evidence)),
            "num_massive_merged": PerHead(_per_head(is_massive_F & is_merged_F, evidence)),
            "largest_times_median": PerHead(evidence.for_heads(times_LN.amax(dim=1))),
        },
    )


def _is_changed(kept: LayerCache, layer: LayerCache, slot_F: Tensor) -> Tensor:
    """Whether each kept slot is another than its token's was: bool (S,)."""
    is_other_S = (kept.k_SD != layer.k_SD[slot_F]).any(dim=1) | (kept.v_SD != layer.v_SD[slot_F]).any(dim=1)
    return is_other_S if kept.log_mass_S is None else is_other_S | (kept.log_mass_S != 0)


def _per_head(is_marked_F: Tensor, evidence: Evidence) -> Tensor:
    return is_marked_F.view(evidence.num_heads, -1).sum(dim=1)


def _with_counters(kept: LayerCache, counters: dict[str, PerHead]) -> LayerCache:
    if not kept.counters or isinstance(kept.counters, HeadCounters):
        return kept.counting(counters)
    # A policy's own, of a whole layer: numbers, among which tensors of no dimension may stand.
    of_layer: dict[str, Any] = {
        name: it.value_H.amax() if name.startswith("largest_") else it.value_H.sum()
        for name, it in counters.items()
    }
    return kept.with_counters({**kept.counters, **of_layer})
