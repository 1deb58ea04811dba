"""KVMerger: runs of adjacent similar keys become their pivotal token, with Gaussian-kernel weights.

Shapes: L layers, H KV heads, N tokens, R runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from kvmerger.budget import (
    Budget,
    BudgetError,
    BudgetSpec,
    KeptRatio,
    effective_ratio,
    num_slots_for,
)
from kvmerger.cache.head_counters import PerHead
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.merging.merge import LOG_MASSES, Groups, LogMass, merge_groups, slot_log_mass, whole_runs
from kvmerger.merging.runs import (
    LINKS,
    Links,
    Runs,
    eligible_links,
    first_argmax,
    highest_links,
    link_scores,
    runs_of,
)
from kvmerger.merging.weights import WEIGHTS, Weights, counted, member_weights
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.mergers.protection import ProtectingPolicy
from kvmerger.policies.parameters import (
    require_choices,
    require_cosine,
    require_positive,
    require_switches,
)
from kvmerger.policies.ranking.random_tokens import random_numbers
from kvmerger.policies.registry import register
from kvmerger.prefill.evidence import NEIGHBOUR_COSINES, Evidence, Need, attention_mass

# Draws for links and for pivots are independent: far from each other and from another layer's.
_LINK_SEED_OFFSET = 499_979


@register("kvmerger")
@dataclass(frozen=True)
class KVMerger(ProtectingPolicy):
    """Merge each run of similar neighbouring keys, and its values, into the member with most attention.

    Based on "Model Tells You Where to Merge" (arXiv 2407.08454), Algorithms 1 and 2; ``kvmerger_paper`` has its
    settings. This preset differs in that each head of a layer accepts its N − B best eligible links (``exact`` mode), which
    meets a budget of B slots, and in that value weights are convex. Each parameter exchanges one part for a control.

    Attributes:
        mode: ``exact`` meets the budget over the whole model; ``threshold`` links wherever the cosine exceeds ``eps``,
            and the budget only chooses the protected fractions.
        eps: cosine threshold, in (-1, 1].
        links: in ``exact`` mode, which links are best; see `link_scores`.
        pivot: a run's member with most ``attention``, or one at ``random``.
        weights: how members of a run count; see `member_weights`.
        sigma: kernel width, or None for each run's mean distance to its pivot over √2.
        value_factor: ``convex`` weights values like keys; ``count`` multiplies them by the run's size (the paper).
        merge_keys, merge_values: False leaves the pivot's key or value as it is.
        log_mass: added to a merged slot's logit: ``none``, ``count`` log|S|, or ``attention`` log(Σ mass / pivot's mass).
        max_log_mass: largest such number, in nats; None sets no limit.
        layout: ``per_head``; ``shared`` by the heads' mean cosine and mass; ``all_agree`` by their lowest cosine.
        seed: of random pivots and links; other values are independent repeats.
        attention_source: whose attention finds heavy tokens, pivots and weights.
    """

    mode: Literal["exact", "threshold"] = "exact"
    eps: float = 0.75
    links: Links = "cosine"
    pivot: Literal["attention", "random"] = "attention"
    weights: Weights = "gaussian"
    sigma: float | None = None
    value_factor: Literal["convex", "count"] = "convex"
    merge_keys: bool = True
    merge_values: bool = True
    log_mass: LogMass = "none"
    max_log_mass: float | None = None
    layout: Literal["per_head", "shared", "all_agree"] = "per_head"
    seed: int = 0

    keeps_slots_unchanged = False
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain, and combinations in which a parameter has no effect or counts twice."""
        super().__post_init__()
        values = {name: getattr(self, name) for name in (*_CHOICES, "merge_keys", "merge_values")}
        require_choices(self._name, values, _CHOICES)
        require_switches(self._name, values, ("merge_keys", "merge_values"))
        require_cosine(self._name, "eps", self.eps)
        if self.sigma is not None:
            require_positive(self._name, "sigma", self.sigma, ", or null for each run's own width")
        if self.max_log_mass is not None:
            require_positive(self._name, "max_log_mass", self.max_log_mass, ", or null for no limit")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise PolicyError(f"{self._name}: seed must be a whole number, got {self.seed!r}")
        if self.value_factor == "count" and self.log_mass != "none":
            raise PolicyError(
                f"{self._name}: value_factor=count and log_mass={self.log_mass} both count a merged slot |S| times; "
                f"use value_factor=convex or log_mass=none"
            )
        if self.mode == "threshold" and self.links != "cosine":
            raise PolicyError(
                f"{self._name}: links={self.links} ranks links for a budget, and mode=threshold takes every link whose "
                f"cosine exceeds eps; use mode=exact or links=cosine"
            )

    @property
    def heads_differ(self) -> bool:  # type: ignore[override]
        """In threshold mode, where each head has runs of its own."""
        return self.mode == "threshold"

    @property
    def layers_differ(self) -> bool:  # type: ignore[override]
        """Where some are kept whole, and in threshold mode."""
        return bool(self.skip_layers) or self.mode == "threshold"

    @property
    def budget_is_outcome(self) -> bool:
        """In threshold mode the prompt decides."""
        return self.mode == "threshold"

    @property
    def adds_log_mass(self) -> bool:
        """Unless ``log_mass`` is ``none``."""
        return self.log_mass != "none"

    def needs(self) -> frozenset[Need]:
        """Neighbour cosines, and attention to rank tokens by."""
        return frozenset({NEIGHBOUR_COSINES, self._mass_need})

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The skipped layers must exist, and with the protected tokens leave room within the budget."""
        if self.mode == "exact":
            super().check(shape, budget)
            return
        self._check_shape(shape)
        if not isinstance(budget, KeptRatio):
            raise BudgetError(
                f"{self._name}: in threshold mode the budget only chooses the protected fractions, so it must be a kept "
                f"fraction such as 0.5, got {budget}; use mode=exact to meet a budget"
            )
        num_slots = num_slots_for(budget, shape.num_tokens)
        self._require_room(num_slots, shape.num_tokens, effective_ratio(budget, shape.num_tokens))

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Skipped layers keep everything, and in exact mode the others pay for it."""
        return budget_L if self.mode == "threshold" else super().allocate(budget_L, evidence_L)

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """The budget, and whether the layer is among the skipped ones."""
        # `compress` asks for the layer's index, and a stack has its first layer's.
        return budget, evidence.layer_index in self._skipped(evidence.num_layers)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Find the merging sets of all heads at once and merge them."""
        if self.mode == "threshold" and evidence.layer_index in self._skipped(evidence.num_layers):
            return layer
        if self.mode == "exact" and min(budget.num_slots_H) == evidence.num_tokens:
            return layer
        mass_HN, cosine_HN = self._ranking(evidence)
        is_protected_HN = self._protect(mass_HN, budget.asked_ratio)
        is_link_HN = self._links(evidence, mass_HN, cosine_HN, eligible_links(is_protected_HN), budget)
        groups = self._groups(evidence, mass_HN, runs_of(is_link_HN))
        weight_M = member_weights(self.weights, layer.k_SD, mass_HN.flatten(), groups, self.sigma)
        value_weight_M = counted(weight_M, groups) if self.value_factor == "count" else weight_M
        merged = merge_groups(
            layer,
            groups,
            key_weight_M=weight_M if self.merge_keys else None,
            value_weight_M=value_weight_M if self.merge_values else None,
            log_mass_S=slot_log_mass(self.log_mass, groups, mass_HN.flatten(), self.max_log_mass),
        )
        # Left on the device: all layers' counters are fetched together.
        num_links_H = is_link_HN.sum(dim=1)
        linked_H = cosine_HN.double().masked_fill(~is_link_HN, 0.0).sum(dim=1)
        return merged.counting(
            {
                "protected_ratio": PerHead(is_protected_HN.double().mean(dim=1)),
                "mean_link_cosine": PerHead(linked_H / num_links_H.clamp_min(1), num_links_H),
            }
        )

    def _links(
        self, evidence: Evidence, mass_HN: Tensor, cosine_HN: Tensor, is_eligible_HN: Tensor, budget: Budget
    ) -> Tensor:
        if self.mode == "threshold":
            return is_eligible_HN & (cosine_HN > self.eps)
        num_links_H = self._num_links(is_eligible_HN, budget)
        # Where links are not random, any (H, N) tensor will do: it is not read, and drawing costs.
        random_HN = (
            self._random(evidence, self.seed + _LINK_SEED_OFFSET) if self.links == "random" else mass_HN
        )
        scores_HN = link_scores(self.links, cosine_HN, mass_HN, random_HN, is_eligible_HN)
        return highest_links(scores_HN, is_eligible_HN, num_links_H)

    def _num_links(self, is_eligible_HN: Tensor, budget: Budget) -> tuple[int, ...]:
        """How many links of each head meet the budget."""
        num_tokens = is_eligible_HN.shape[1] + 1
        # Every accepted link joins two runs of its head, and so removes exactly one slot.
        num_links_H = tuple(num_tokens - num_slots for num_slots in budget.num_slots_H)
        if self.layout != "per_head" and len(set(num_links_H)) > 1:
            raise BudgetError(
                f"{self._name}: layout={self.layout} needs one budget for all heads, got {budget.num_slots_H}"
            )
        # Counting eligible links would wait for the device, once a layer: seldom needed, as the least there can be suffices.
        if max(num_links_H) <= self._least_eligible(num_tokens, budget.asked_ratio):
            return num_links_H
        num_eligible_H = is_eligible_HN.sum(dim=1).tolist()
        for num_links, num_eligible in zip(num_links_H, num_eligible_H, strict=True):
            if num_links > num_eligible:
                raise BudgetError(
                    f"{self._name}: meeting the budget takes {num_links} merges per head of {num_tokens} tokens, and the "
                    f"protected tokens leave only {num_eligible} pairs of neighbours; lower recent_ratio or heavy_ratio"
                )
        return num_links_H

    def _least_eligible(self, num_tokens: int, kept_ratio: float) -> int:
        """The least number of neighbour pairs without a protected end, wherever the heavy tokens stand."""
        # A heavy token spoils the pairs on both its sides; recent tokens stand together and spoil one pair each.
        num_recent, num_heavy = self._num_protected(kept_ratio, num_tokens)
        return num_tokens - 1 - num_recent - 2 * num_heavy

    def _groups(self, evidence: Evidence, mass_HN: Tensor, runs: Runs) -> Groups:
        # A merged slot stands at its pivot, and pivots of successive runs ascend: positions stay in order.
        by_HN = mass_HN if self.pivot == "attention" else self._random(evidence, self.seed)
        return whole_runs(runs, first_argmax(by_HN.flatten(), runs))

    def _random(self, evidence: Evidence, seed: int) -> Tensor:
        """Uniform numbers (H, N), the same in every head unless layout is per_head."""
        random_HN = random_numbers(evidence, seed)
        if self.layout == "per_head":
            return random_HN
        return evidence.for_heads(evidence.by_layer(random_HN)[:, 0])

    def _ranking(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """Attention mass (H, N) and neighbour cosines (H, N-1), the same in every head unless layout is per_head."""
        mass_HN, cosine_HN = attention_mass(evidence, self._mass_need), evidence.get(NEIGHBOUR_COSINES)
        if self.layout == "per_head":
            return mass_HN, cosine_HN
        mass_LHN, cosine_LHN = evidence.by_layer(mass_HN), evidence.by_layer(cosine_HN)
        cosine_LN = cosine_LHN.mean(dim=1) if self.layout == "shared" else cosine_LHN.amin(dim=1)
        return evidence.for_heads(mass_LHN.mean(dim=1)), evidence.for_heads(cosine_LN)


_CHOICES = {
    "mode": ("exact", "threshold"),
    "links": LINKS,
    "pivot": ("attention", "random"),
    "weights": WEIGHTS,
    "value_factor": ("convex", "count"),
    "log_mass": LOG_MASSES,
    "layout": ("per_head", "shared", "all_agree"),
}
