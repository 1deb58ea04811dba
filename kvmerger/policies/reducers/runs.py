"""KVMerger's operator on another policy's slots: dropped tokens merge within their run of similar neighbours.

Shapes: H KV heads, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.merging.merge import LOG_MASSES, LogMass, groups_of, merge_groups, slot_log_mass
from kvmerger.merging.runs import runs_of
from kvmerger.merging.targets import heaviest_kept_of_run
from kvmerger.merging.weights import WEIGHTS, Weights, counted, member_weights
from kvmerger.policies.base import PolicyError
from kvmerger.policies.parameters import (
    require_choices,
    require_cosine,
    require_positive,
    require_switches,
)
from kvmerger.policies.reducers.base import AttentionReducer
from kvmerger.policies.registry import name_of, register_wrapper
from kvmerger.prefill.evidence import NEIGHBOUR_COSINES, Evidence, Need


@register_wrapper("kvmerger")
@dataclass(frozen=True)
class RunReducer(AttentionReducer):
    """Merge dropped tokens into the most attended kept member of their run of similar neighbours; evict the others.

    KVMerger (arXiv 2407.08454) with its slots chosen by another policy, as the matched protocol of
    T0nyN1/kv-cache-merging-limits has it: runs come from neighbours' cosines alone, a run without a kept token is evicted,
    and further kept tokens of a run stay as they are.

    Attributes:
        eps: neighbours are linked above this cosine, in (-1, 1].
        layout: cosines ``per_head``, or ``shared``: their mean over the layer's heads.
        weights, sigma, value_factor, merge_keys, log_mass, max_log_mass: as in `KVMerger`.
    """

    eps: float = 0.75
    layout: Literal["per_head", "shared"] = "per_head"
    weights: Weights = "gaussian"
    sigma: float | None = None
    value_factor: Literal["convex", "count"] = "convex"
    merge_keys: bool = True
    log_mass: LogMass = "none"
    max_log_mass: float | None = None

    def __post_init__(self) -> None:
        """Refuse a policy that does not say which tokens stay, values outside their domain, and members counted twice."""
        super().__post_init__()
        name = name_of(self)
        require_choices(name, vars(self), _CHOICES)
        require_cosine(name, "eps", self.eps)
        require_switches(name, vars(self), ("merge_keys",))
        if self.sigma is not None:
            require_positive(name, "sigma", self.sigma, ", or null for each run's own width")
        if self.max_log_mass is not None:
            require_positive(name, "max_log_mass", self.max_log_mass, ", or null for no limit")
        if self.value_factor == "count" and self.log_mass != "none":
            raise PolicyError(
                f"{name}: value_factor=count and log_mass={self.log_mass} both count a merged slot |S| times; "
                f"use value_factor=convex or log_mass=none"
            )

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads, attention and neighbour cosines."""
        return super().needs() | {NEIGHBOUR_COSINES}

    @property
    def adds_log_mass(self) -> bool:
        """Unless ``log_mass`` is ``none``."""
        return self.log_mass != "none"

    def merge(self, layer: LayerCache, evidence: Evidence, is_kept_HN: Tensor) -> LayerCache:
        """Merge each dropped token into its run's most attended kept token; evict it where the run has none."""
        cosine_HN = evidence.get(NEIGHBOUR_COSINES)
        if self.layout == "shared":
            # Means are of one layer's heads, also where several layers came as one.
            cosine_HN = evidence.for_heads(evidence.by_layer(cosine_HN).mean(dim=1))
        mass_HN = self._mass(evidence)
        found = heaviest_kept_of_run(layer.k_HND, is_kept_HN, runs_of(cosine_HN > self.eps), mass_HN)
        groups, mass_F = groups_of(found.target_HN), mass_HN.flatten()
        weight_M = member_weights(self.weights, layer.k_SD, mass_F, groups, self.sigma)
        return merge_groups(
            layer,
            groups,
            key_weight_M=weight_M if self.merge_keys else None,
            value_weight_M=counted(weight_M, groups) if self.value_factor == "count" else weight_M,
            log_mass_S=slot_log_mass(self.log_mass, groups, mass_F, self.max_log_mass),
        )


_CHOICES = {
    "layout": ("per_head", "shared"),
    "weights": WEIGHTS,
    "value_factor": ("convex", "count"),
    "log_mass": LOG_MASSES,
}
