"""KVMerger: runs of adjacent similar keys become their pivotal token, with Gaussian-kernel weights.

Shapes: L layers, H KV heads, N tokens, X heads of either kind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kvmerger.budget import (
    Budget,
    BudgetError,
    BudgetSpec,
    KeptRatio,
    LikeVariant,
    effective_ratio,
    num_slots_for,
)
from kvmerger.evidence import ATTENTION_MASS, NEIGHBOUR_COSINES, Evidence, Need, window_attention
from kvmerger.layer_cache import LayerCache
from kvmerger.merging.merge import merge_runs
from kvmerger.merging.protected import ProtectedRatios, protected_ratios
from kvmerger.merging.sets import eligible_links, most_similar_links, protect, runs_of
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.registry import register


@register("kvmerger")
@dataclass(frozen=True)
class KVMerger(Policy):
    """Merge each run of similar neighbouring keys, and its values, into the member with most attention.

    Based on "Model Tells You Where to Merge" (arXiv 2407.08454), Algorithms 1 and 2; ``kvmerger_paper`` has its
    settings. This preset differs where the paper leaves the budget to chance: in ``exact`` mode each head of a layer
    accepts its N − B most similar eligible links, so the budget is met, and value weights are convex.

    Attributes:
        mode: ``exact`` meets the budget over the whole model; ``threshold`` links wherever the cosine exceeds ``eps``,
            and the budget only chooses the protected fractions.
        eps: cosine threshold, in (-1, 1].
        recent_ratio, heavy_ratio: fractions of the prompt never merged (most recent, most attended); None follows the
            layer's budget as `protected_ratios` says (in threshold mode the budget asked for).
        sigma: kernel width, or None for each run's mean distance to its pivot over √2.
        value_factor: ``convex`` weights values like keys; ``count`` multiplies them by the run's size (the paper).
        merge_keys: False leaves the pivot's key as it is.
        layout: ``per_head``; ``shared`` by the heads' mean cosine and mass; ``all_agree`` by their lowest cosine.
        skip_layers: layers kept whole, negative from the end. They count: the others keep less.
        attention_source: whose attention finds heavy tokens and pivots: all of ``prefill``, or the last ``window``.
        window_size: tokens of that window.
        log_mass: added to a merged slot's logit: ``none``, ``count`` log|S|, or ``attention`` log(Σ mass / pivot's mass).
    """

    mode: Literal["exact", "threshold"] = "exact"
    eps: float = 0.75
    recent_ratio: float | None = None
    heavy_ratio: float | None = None
    sigma: float | None = None
    value_factor: Literal["convex", "count"] = "convex"
    merge_keys: bool = True
    layout: Literal["per_head", "shared", "all_agree"] = "per_head"
    skip_layers: tuple[int, ...] = (0, 1, -1)
    attention_source: Literal["prefill", "window"] = "prefill"
    window_size: int = 64
    log_mass: Literal["none", "count", "attention"] = "none"

    keeps_slots_unchanged = False

    def __post_init__(self) -> None:
        """Refuse values outside their domain and the one combination that counts merged tokens twice."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise PolicyError(f"kvmerger: {name} must be one of {allowed}, got {getattr(self, name)!r}")
        if not (_is_number(self.eps) and -1 < self.eps <= 1):
            raise PolicyError(f"kvmerger: eps is a cosine in (-1, 1], got {self.eps!r}")
        if self.sigma is not None and not (_is_number(self.sigma) and self.sigma > 0):
            raise PolicyError(
                f"kvmerger: sigma must be positive, or null for each run's own width, got {self.sigma!r}"
            )
        if not (isinstance(self.window_size, int) and self.window_size >= 1):
            raise PolicyError(
                f"kvmerger: window_size is a number of tokens from 1 on, got {self.window_size!r}"
            )
        if not (
            isinstance(self.skip_layers, tuple) and all(isinstance(index, int) for index in self.skip_layers)
        ):
            raise PolicyError(f"kvmerger: skip_layers is a list such as [0, 1, -1], got {self.skip_layers!r}")
        if self.value_factor == "count" and self.log_mass != "none":
            raise PolicyError(
                f"kvmerger: value_factor=count and log_mass={self.log_mass} both count a merged slot |S| times; "
                f"use value_factor=convex or log_mass=none"
            )
        for name in ("recent_ratio", "heavy_ratio"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < 1):
                raise PolicyError(f"kvmerger: {name} is a fraction of the prompt in [0, 1), got {value!r}")

    @property
    def budget_is_outcome(self) -> bool:
        """In threshold mode the prompt decides."""
        return self.mode == "threshold"

    def needs(self) -> frozenset[Need]:
        """Neighbour cosines, and attention to rank tokens by."""
        return frozenset({NEIGHBOUR_COSINES, self._mass_need})

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The skipped layers must exist, and with the protected tokens leave room within the budget."""
        absent = [index for index in self.skip_layers if not -shape.num_layers <= index < shape.num_layers]
        if absent:
            raise BudgetError(
                f"kvmerger: skip_layers names {absent}, and the model has {shape.num_layers} layers"
            )
        if self.attention_source == "window" and shape.num_tokens <= self.window_size:
            raise BudgetError(
                f"kvmerger: the compressed part has {shape.num_tokens} tokens, no more than window_size={self.window_size}"
            )
        if self.mode == "threshold" and not isinstance(budget, KeptRatio):
            raise BudgetError(
                f"kvmerger: in threshold mode the budget only chooses the protected fractions, so it must be a kept "
                f"fraction such as 0.5, got {budget}; use mode=exact to meet a budget"
            )
        if isinstance(budget, LikeVariant):
            return
        num_slots = num_slots_for(budget, shape.num_tokens)
        kept_ratio = effective_ratio(budget, shape.num_tokens)
        if self.mode == "exact":
            num_slots = self._slots_of_merged_layers(num_slots, shape.num_tokens, shape.num_layers)
            kept_ratio = max(0.0, num_slots / shape.num_tokens)
        self._require_room(num_slots, shape.num_tokens, kept_ratio)

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Skipped layers keep everything; the others pay for it, so that the whole model meets the budget."""
        num_layers, num_tokens = len(budget_L), evidence_L[0].num_tokens
        skipped = self._skipped(num_layers)
        num_heads, asked_ratio = len(budget_L[0].num_slots_H), budget_L[0].asked_ratio
        whole = Budget.uniform(num_tokens, num_heads, asked_ratio)
        if self.mode == "threshold":
            return budget_L
        num_slots = self._slots_of_merged_layers(budget_L[0].num_slots_H[0], num_tokens, num_layers)
        # What is protected follows what these layers may keep: by the whole model's ratio, a model of few layers would
        # have more protected tokens than its merged layers have slots.
        merged = Budget.uniform(num_slots, num_heads, num_slots / num_tokens)
        return tuple(whole if index in skipped else merged for index in range(num_layers))

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Find the merging sets of all heads at once and merge them."""
        num_tokens = evidence.num_tokens
        if self.mode == "threshold" and evidence.layer_index in self._skipped(evidence.num_layers):
            return layer
        if self.mode == "exact" and min(budget.num_slots_H) == num_tokens:
            return layer
        mass_HN, cosine_HN = self._ranking(evidence, layer.num_heads)
        protected = self._protected(budget.asked_ratio)
        is_protected_HN = protect(
            mass_HN,
            math.floor(protected.recent_ratio * num_tokens),
            math.floor(protected.heavy_ratio * num_tokens),
        )
        is_eligible_HN = eligible_links(is_protected_HN)
        is_link_HN = self._links(cosine_HN, is_eligible_HN, budget)
        merged = merge_runs(
            layer,
            runs_of(is_link_HN),
            mass_HN,
            sigma=self.sigma,
            merge_keys=self.merge_keys,
            scale_values_by_count=self.value_factor == "count",
            log_mass=self.log_mass,
        )
        num_links = int(is_link_HN.sum())
        counters = {**merged.counters, "protected_ratio": float(is_protected_HN.float().mean())}
        if num_links:
            counters["mean_link_cosine"] = float(cosine_HN[is_link_HN].mean())
        return merged.with_counters(counters)

    def _links(self, cosine_HN: Tensor, is_eligible_HN: Tensor, budget: Budget) -> Tensor:
        if self.mode == "threshold":
            return is_eligible_HN & (cosine_HN > self.eps)
        num_tokens = cosine_HN.shape[1] + 1
        num_links_H = tuple(num_tokens - num_slots for num_slots in budget.num_slots_H)
        if self.layout != "per_head" and len(set(num_links_H)) > 1:
            raise BudgetError(
                f"kvmerger: layout={self.layout} needs one budget for all heads, got {budget.num_slots_H}"
            )
        num_eligible_H = is_eligible_HN.sum(dim=1).tolist()
        for num_links, num_eligible in zip(num_links_H, num_eligible_H, strict=True):
            if num_links > num_eligible:
                raise BudgetError(
                    f"kvmerger: meeting the budget takes {num_links} merges per head of {num_tokens} tokens, and the "
                    f"protected tokens leave only {num_eligible} pairs of neighbours; lower recent_ratio or heavy_ratio"
                )
        return most_similar_links(cosine_HN, is_eligible_HN, num_links_H)

    def _ranking(self, evidence: Evidence, num_heads: int) -> tuple[Tensor, Tensor]:
        """Attention mass (H, N) and neighbour cosines (H, N-1), the same in every head unless layout is per_head."""
        mass_XN = evidence.get(self._mass_need)
        mass_HN = mass_XN.view(num_heads, -1, mass_XN.shape[-1]).mean(dim=1)
        cosine_HN = evidence.get(NEIGHBOUR_COSINES)
        if self.layout == "per_head":
            return mass_HN, cosine_HN
        cosine_N = cosine_HN.mean(dim=0) if self.layout == "shared" else cosine_HN.amin(dim=0)
        return mass_HN.mean(dim=0).expand_as(mass_HN).contiguous(), cosine_N.expand_as(cosine_HN)

    @property
    def _mass_need(self) -> Need:
        return ATTENTION_MASS if self.attention_source == "prefill" else window_attention(self.window_size)

    def _protected(self, kept_ratio: float) -> ProtectedRatios:
        by_budget = protected_ratios(kept_ratio)
        return ProtectedRatios(
            by_budget.recent_ratio if self.recent_ratio is None else self.recent_ratio,
            by_budget.heavy_ratio if self.heavy_ratio is None else self.heavy_ratio,
        )

    def _skipped(self, num_layers: int) -> set[int]:
        return {index % num_layers for index in self.skip_layers}

    def _slots_of_merged_layers(self, num_slots: int, num_tokens: int, num_layers: int) -> int:
        """Slots per head left for each merged layer, so that all layers average ``num_slots``; may be negative."""
        num_skipped = len(self._skipped(num_layers))
        if num_skipped == num_layers:
            raise BudgetError(
                f"kvmerger: skip_layers={self.skip_layers} leaves none of {num_layers} layers to merge"
            )
        return (num_slots * num_layers - num_tokens * num_skipped) // (num_layers - num_skipped)

    def _require_room(self, num_slots: int, num_tokens: int, kept_ratio: float) -> None:
        protected = self._protected(kept_ratio)
        num_protected = math.floor(protected.recent_ratio * num_tokens) + math.floor(
            protected.heavy_ratio * num_tokens
        )
        if num_slots <= num_protected:
            raise BudgetError(
                f"kvmerger: after skip_layers={self.skip_layers} the budget leaves {max(num_slots, 0)} slots per head of "
                f"{num_tokens} tokens, and {num_protected} are protected (recent {protected.recent_ratio:g}, heavy "
                f"{protected.heavy_ratio:g}); raise the budget, skip fewer layers or protect less"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_CHOICES: dict[str, tuple[str, ...]] = {
    "mode": ("exact", "threshold"),
    "value_factor": ("convex", "count"),
    "layout": ("per_head", "shared", "all_agree"),
    "attention_source": ("prefill", "window"),
    "log_mass": ("none", "count", "attention"),
}
