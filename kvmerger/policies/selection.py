"""The shared reducer of evicting policies: a score per token in, the highest-scored tokens out, copied unchanged.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.layer_cache import LayerCache
from kvmerger.ranking import is_among_highest


def keep_highest(layer: LayerCache, scores_HN: Tensor, budget: Budget) -> LayerCache:
    """Keep each head's ``budget`` highest-scored tokens; ties go to the earlier token. Heads may have different budgets.

    Args:
        layer: uncompressed, N tokens in every head; not changed.
        scores_HN: any float dtype; ``inf`` protects a token.
        budget: slots per head, each at most N.
    """
    is_kept_HN = is_among_highest(scores_HN, budget.num_slots_H)
    counters = {"num_evicted": float(is_kept_HN.numel() - budget.num_slots)}
    kept = layer.take(is_kept_HN.flatten().nonzero().squeeze(1), budget.num_slots_H)
    return kept.with_counters(counters)
