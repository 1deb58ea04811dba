"""Attention-compensated merging: a dropped token joins a kept neighbour, whose slot gets the attention of both.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.merging.merge import LOG_MASSES, LogMass, groups_of, merge_groups, slot_log_mass
from kvmerger.merging.targets import more_similar_neighbour
from kvmerger.merging.weights import WEIGHTS, Weights, member_weights
from kvmerger.policies.parameters import require_choices, require_positive, require_switches
from kvmerger.policies.reducers.base import AttentionReducer
from kvmerger.policies.registry import name_of, register_wrapper
from kvmerger.prefill.evidence import Evidence


@register_wrapper("compensated")
@dataclass(frozen=True)
class Compensated(AttentionReducer):
    """Average a dropped token's value into the more similar kept neighbour and give that slot the attention of both.

    This project's own, from parts that are known: merging neighbours with a Gaussian kernel (KVMerger, arXiv 2407.08454)
    and a slot's logit that stands for several tokens (as in KeepKV, arXiv 2504.09936). Each dropped token goes to the last
    kept token before it or the first one after it in its head, whichever key is more similar. Keys stay where they are:
    independent ports lose most by moving them.

    Attributes:
        weights: how a slot's tokens count in its value; see `member_weights`.
        sigma: the kernel's width, or None for each slot's mean distance over √2.
        merge_keys: average keys as values are.
        merge_values: False keeps values too: only the slot's logit tells of what was dropped.
        log_mass: added to the slot's logit: log(Σ mass ÷ the kept token's), log of the ``count``, or ``none``.
        max_log_mass: largest such number, in nats; None sets no limit.
    """

    weights: Weights = "gaussian_attention"
    sigma: float | None = 5.0
    merge_keys: bool = False
    merge_values: bool = True
    log_mass: LogMass = "attention"
    max_log_mass: float | None = 3.0

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, and values outside their domain."""
        super().__post_init__()
        name = name_of(self)
        require_choices(name, vars(self), {"weights": WEIGHTS, "log_mass": LOG_MASSES})
        require_switches(name, vars(self), ("merge_keys", "merge_values"))
        if self.sigma is not None:
            require_positive(name, "sigma", self.sigma, ", or null for each slot's own width")
        if self.max_log_mass is not None:
            require_positive(name, "max_log_mass", self.max_log_mass, ", or null for no limit")

    @property
    def adds_log_mass(self) -> bool:
        """Unless ``log_mass`` is ``none``."""
        return self.log_mass != "none"

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """Merge every dropped token into one of its kept neighbours."""
        # Nothing is evicted: a head that keeps any token has a kept one before or after each dropped one.
        groups = groups_of(more_similar_neighbour(layer.k_HND, is_kept_HN).target_HN)
        mass_F = self._mass(evidence).flatten()
        weight_M = member_weights(self.weights, layer.k_SD, mass_F, groups, self.sigma)
        return merge_groups(
            layer,
            groups,
            key_weight_M=weight_M if self.merge_keys else None,
            value_weight_M=weight_M if self.merge_values else None,
            log_mass_S=slot_log_mass(self.log_mass, groups, mass_F, self.max_log_mass),
        )
