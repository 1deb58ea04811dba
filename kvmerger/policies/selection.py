"""Policies that choose which tokens stay, and the copying of those tokens, unchanged, into a cache of their own.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.cache.head_counters import HeadCounters, PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import highest_places, take_slots
from kvmerger.kernels.reference.ranking import marked_places
from kvmerger.policies.base import Policy
from kvmerger.prefill.evidence import Evidence


@dataclass(frozen=True)
class SelectingPolicy(Policy):
    """Base of policies that say which tokens stay; a reducer can then merge the others into them."""

    @abc.abstractmethod
    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), at most ``budget.num_slots_H[h]`` of them in head h.

        Raises:
            BudgetError: the budget cannot be met on this prompt.
        """

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged."""
        return take_selected(layer, self.select(evidence, budget))


def keep_highest(layer: LayerCache, scores_HN: Tensor, budget: Budget) -> LayerCache:
    """Keep each head's ``budget`` highest-scored tokens; ties go to the earlier token. Heads may have different budgets.

    Args:
        layer: uncompressed, N tokens in every head; not changed.
        scores_HN: any float dtype; ``inf`` protects a token.
        budget: slots per head, each at most N.
    """
    num_tokens = scores_HN.shape[1]
    # `highest_places` takes no count above N.
    num_slots_H = tuple(min(num_slots, num_tokens) for num_slots in budget.num_slots_H)
    return _take(layer, highest_places(scores_HN, num_slots_H), num_slots_H)


def take_selected(layer: LayerCache, is_kept_HN: Tensor) -> LayerCache:
    """The marked tokens (bool, (H, N)) of the uncompressed ``layer``, in storages of their own."""
    # Waits for the device; `keep_highest`, whose counts are known before, does not.
    num_slots_H = tuple(is_kept_HN.sum(dim=1).tolist())
    return _take(layer, marked_places(is_kept_HN.flatten(), sum(num_slots_H)), num_slots_H)


def _take(layer: LayerCache, slot_K: Tensor, num_slots_H: tuple[int, ...]) -> LayerCache:
    # On the CPU, where both counts are known: nobody has to fetch these numbers from the device.
    num_evicted_H = torch.tensor(layer.num_slots_H) - torch.tensor(num_slots_H)
    return take_slots(layer, slot_K, num_slots_H).with_counters(
        HeadCounters({"num_evicted": PerHead(num_evicted_H)})
    )
