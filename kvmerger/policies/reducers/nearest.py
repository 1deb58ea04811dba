"""A dropped token's value is merged into the kept token of the head whose key is most similar to its own.

Shapes: H KV heads, N tokens, M members of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import row_norms
from kvmerger.merging.merge import Groups, groups_of, merge_groups
from kvmerger.merging.targets import most_similar_kept
from kvmerger.merging.weights import normalised_weights
from kvmerger.policies.parameters import require_choices, require_cosine, require_switches
from kvmerger.policies.reducers.base import AttentionReducer
from kvmerger.policies.registry import name_of, register_wrapper
from kvmerger.prefill.evidence import Evidence, Need

_WEIGHTS = ("similarity", "mean", "attention")


@register_wrapper("nearest")
@dataclass(frozen=True)
class Nearest(AttentionReducer):
    """Fold each dropped token's value into the kept token of highest key cosine; keys stay.

    Like kvpress's ``MergingPress`` (pull request 219), whose weights and threshold are the defaults: the kept token
    counts 1, a dropped one its cosine × ‖v‖ ÷ (‖v‖ + ‖v of the kept token‖), and what is below ``min_cosine`` is evicted.

    Attributes:
        weights: ``similarity`` as above, ``mean`` of all alike, or by ``attention`` mass.
        min_cosine: dropped tokens less similar than this are evicted, in (-1, 1].
        merge_keys: average keys as values are.
    """

    weights: str = "similarity"
    min_cosine: float = 0.0
    merge_keys: bool = False

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and values outside their domain."""
        super().__post_init__()
        require_choices(name_of(self), vars(self), {"weights": _WEIGHTS})
        require_cosine(name_of(self), "min_cosine", self.min_cosine)
        require_switches(name_of(self), vars(self), ("merge_keys",))

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, and attention where weights go by it."""
        # Attention that nobody reads would still be computed, in every layer's prefill.
        return super().needs() if self.weights == "attention" else self.inner.needs()

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """Merge tokens at least as similar as ``min_cosine``, evict the rest."""
        found = most_similar_kept(layer.k_HND, is_kept_HN, len(evidence.layers))
        groups = groups_of(found.only(found.cosine_HN >= self.min_cosine).target_HN)
        weight_M = normalised_weights(
            self._weights(layer, evidence, groups, found.cosine_HN.flatten()[groups.member_M]),
            groups,
        )
        key_weight_M = weight_M if self.merge_keys else None
        return merge_groups(layer, groups, key_weight_M=key_weight_M, value_weight_M=weight_M)

    def _weights(self, layer: LayerCache, evidence: Evidence, groups: Groups, cosine_M: Tensor) -> Tensor:
        if self.weights == "mean":
            return cosine_M.new_ones(cosine_M.shape)
        if self.weights == "attention":
            return self._mass(evidence).flatten()[groups.member_M]
        norm_F = row_norms(layer.v_SD)
        norm_M, target_norm_M = norm_F[groups.member_M], norm_F[groups.target_M]
        # Two zero vectors: their average is the same whatever the weight.
        share_M = (norm_M / (norm_M + target_norm_M)).nan_to_num(0.0)
        # A negative ``min_cosine`` accepts negative cosines, and weights must not be negative.
        return (cosine_M.clamp_min(0.0) * share_M).masked_fill(groups.is_target_M, 1.0)
