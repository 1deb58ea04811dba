"""D2O's merging step: a dropped token that is similar enough to a kept one is averaged into it, others are evicted.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.merging.merge import groups_of, merge_groups
from kvmerger.merging.targets import most_similar_kept
from kvmerger.policies.parameters import require_switches
from kvmerger.policies.reducers.base import Reducer
from kvmerger.policies.registry import name_of, register_wrapper
from kvmerger.prefill.evidence import Evidence


@register_wrapper("d2o")
@dataclass(frozen=True)
class D2O(Reducer):
    """Average each dropped token, times its cosine, into the most similar kept one, if that cosine is high for its head.

    Based on D2O (arXiv 2406.13035) as its authors' code merges at the first step: high means at least the mean of the
    head's highest cosines, the kept token counts 1, and the sum is divided by the number of tokens in it. Differs in that
    it happens once, after prefill, and that each head has a threshold of its own: theirs is over heads that drop the same
    tokens. ``h2o+d2o`` is the closest to the method, which also gives layers different budgets.

    Attributes:
        merge_keys: False averages values only.
    """

    merge_keys: bool = True

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and a ``merge_keys`` that is no bool."""
        super().__post_init__()
        require_switches(name_of(self), vars(self), ("merge_keys",))

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """Merge tokens at least as similar as the head's dropped ones are on average, evict the rest."""
        found = most_similar_kept(layer.k_HND, is_kept_HN, len(evidence.layers))
        # Kept tokens, each 1 to itself, have no part in the mean; a head that drops nothing has the threshold 0.
        dropped_HN = found.cosine_HN.masked_fill(is_kept_HN, 0.0)
        num_dropped_H = (~is_kept_HN).sum(dim=1).clamp_min(1)
        threshold_H = dropped_HN.sum(dim=1) / num_dropped_H
        groups = groups_of(found.only(found.cosine_HN >= threshold_H[:, None]).target_HN)
        # Not `normalised_weights`: the authors divide by the number of tokens, so a slot's weights may sum to less than 1.
        weight_M = found.cosine_HN.flatten()[groups.member_M] / groups.runs.length_R[groups.runs.run_F]
        key_weight_M = weight_M if self.merge_keys else None
        return merge_groups(layer, groups, key_weight_M=key_weight_M, value_weight_M=weight_M)
