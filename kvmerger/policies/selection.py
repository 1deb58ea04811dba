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
from kvmerger.kernels import dispatch
from kvmerger.kernels.dispatch import highest_places, take_slots
from kvmerger.kernels.reference.ranking import marked_places
from kvmerger.policies.base import Policy
from kvmerger.policies.registry import path_of
from kvmerger.policies.returned import checked_marks, checked_scores
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

    def selected(self, evidence: Evidence, budget: Budget) -> Tensor:
        """`select`, which wrappers ask through this: bool (H, N), on the evidence's device.

        Raises:
            PolicyError: that is not what came.
        """
        shape = (evidence.num_heads, evidence.num_tokens)
        return checked_marks(self.select(evidence, budget), shape, evidence.device, path_of(self))

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged."""
        return take_selected(layer, self.selected(evidence, budget))


def is_among_highest(scores_HN: Tensor, count_H: tuple[int, ...]) -> Tensor:
    """Mark the ``count_H[h]`` highest scores of each row h: bool (H, N). Ties go to the earlier column, NaN ranks highest.

    Raises:
        PolicyError: the scores are not floats of two dimensions with a row for each count.
    """
    num_columns = scores_HN.shape[-1] if isinstance(scores_HN, Tensor) and scores_HN.dim() else 0
    device = scores_HN.device if isinstance(scores_HN, Tensor) else torch.device("cpu")
    scores_HN = checked_scores(scores_HN, (len(count_H), num_columns), device, "is_among_highest")
    return dispatch.is_among_highest(scores_HN, count_H)


def keep_highest(layer: LayerCache, scores_HN: Tensor, budget: Budget) -> LayerCache:
    """Keep each head's ``budget`` highest-scored tokens; ties go to the earlier token. Heads may have different budgets.

    Args:
        layer: uncompressed, N tokens in every head; not changed.
        scores_HN: any float dtype; ``inf`` protects a token.
        budget: slots per head; of more than N there are N.

    Raises:
        PolicyError: the scores are not floats (H, N) on the layer's device.
    """
    shape = (layer.num_heads, layer.num_slots // layer.num_heads)
    return take_highest(layer, checked_scores(scores_HN, shape, layer.k_SD.device, "keep_highest"), budget)


def take_highest(layer: LayerCache, scores_HN: Tensor, budget: Budget) -> LayerCache:
    """`keep_highest`, of scores that are checked already."""
    num_tokens = scores_HN.shape[1]
    # `highest_places` takes no count above N.
    num_slots_H = tuple(min(num_slots, num_tokens) for num_slots in budget.num_slots_H)
    return _take(layer, highest_places(scores_HN, num_slots_H), num_slots_H)


def take_selected(layer: LayerCache, is_kept_HN: Tensor) -> LayerCache:
    """The marked tokens (bool, (H, N)) of the uncompressed ``layer``, in storages of their own.

    Raises:
        PolicyError: the marks are not bools (H, N) on the layer's device.
    """
    shape = (layer.num_heads, layer.num_slots // layer.num_heads)
    is_kept_HN = checked_marks(is_kept_HN, shape, layer.k_SD.device, "take_selected")
    # Waits for the device; `keep_highest`, whose counts are known before, does not.
    return take_marked(layer, is_kept_HN, tuple(is_kept_HN.sum(dim=1).tolist()))


def take_marked(layer: LayerCache, is_kept_HN: Tensor, num_slots_H: tuple[int, ...]) -> LayerCache:
    """`take_selected`, of marks whose numbers in each head are known: nobody waits for the device."""
    return _take(layer, marked_places(is_kept_HN.flatten(), sum(num_slots_H)), num_slots_H)


def _take(layer: LayerCache, slot_K: Tensor, num_slots_H: tuple[int, ...]) -> LayerCache:
    # On the CPU, where both counts are known: nobody has to fetch these numbers from the device.
    num_evicted_H = torch.tensor(layer.num_slots_H) - torch.tensor(num_slots_H)
    return take_slots(layer, slot_K, num_slots_H).with_counters(
        HeadCounters({"num_evicted": PerHead(num_evicted_H)})
    )
