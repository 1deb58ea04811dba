"""KVSlimmer: the adjacent pair of lowest weight becomes one slot, again and again, and counts for all its tokens.

Shapes: H KV heads, N tokens, R rows (one for a layer whose heads share slots, else H), X heads of a row, M tokens between
sinks and window, F = H·N flat tokens, D head size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.reference.nearest import EVICTED
from kvmerger.merging.pair_weights import PAIR_WEIGHTS, PairWeights, mean_values, pair_weights
from kvmerger.merging.pairs import RELEASED_LENGTH, Round, lowest_pairs, released_pairs
from kvmerger.policies.base import CacheShape, Policy
from kvmerger.policies.mergers.paired_slots import KEYS, Keys, needs_of_keys, paired_slots
from kvmerger.policies.parameters import (
    require_choices,
    require_count,
    require_positive,
    require_switches,
)
from kvmerger.policies.registry import name_of, register
from kvmerger.prefill.evidence import Evidence, Need, attention_mass, window_attention

# The released caches have 2,048 slots and a block of 512 at most, and γ = 4,096 ÷ ln 512: what its last pair counts less by,
# as a number of e-folds.
_RELEASED_FOLDS = 2560 * math.log(512) / 4096


@register("kvslimmer")
@dataclass(frozen=True)
class KVSlimmer(Policy):
    """Merge the lightest adjacent pair of slots until the budget is met; a slot of l tokens has their mean value and log l.

    Based on KVSlimmer (arXiv 2603.00907), which keeps AsymKV's (arXiv 2506.05410) frame and finds keys without gradients; see
    `pairs` for what a pair weighs, `pair_weights` for its key. The released code keeps sums of values and divides by
    Σ l·exp(q·k): with the mean value and log l on the logit the output is the same. Differs in that all is done once, after
    an exact prefill, with the attention of the prompt's last tokens, where the authors compress block by block, each time by
    the next block's attention; pairs never overlap, so that no token is lost; l is not clipped; and a slot keeps the position
    of its last token in the prompt.

    Attributes:
        weights: how a pair's keys count: ``hessian`` is KVSlimmer's; see `pair_weights`.
        keys: averaged ``before_rope``, as the authors do, or ``after_rope``, as they are held.
        layout: ``shared`` by all heads of a layer, or ``per_head``.
        n_sink: first tokens that are never merged.
        window_size: last tokens that are never merged, and whose attention counts.
        gamma: tokens after which a pair counts e times less; None spreads over the prompt what the released constant comes
            to over the released cache, 3.9 e-folds.
        as_released: pairs that overlap and l clipped at 5, as the released code has them. Tokens are lost.
    """

    weights: PairWeights = "hessian"
    keys: Keys = "before_rope"
    layout: Literal["shared", "per_head"] = "shared"
    n_sink: int = 32
    window_size: int = 64
    gamma: float | None = None
    as_released: bool = False

    keeps_slots_unchanged = False
    compresses_stacks = True

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        name = name_of(self)
        require_choices(name, vars(self), _CHOICES)
        require_count(name, "n_sink", self.n_sink, at_least=0)
        require_count(name, "window_size", self.window_size)
        require_switches(name, vars(self), ("as_released",))
        if self.gamma is not None:
            require_positive(name, "gamma", self.gamma, ", or null for one that follows the prompt's length")

    @property
    def heads_agree(self) -> bool:  # type: ignore[override]
        """Where they share slots."""
        return self.layout == "shared"

    @property
    def adds_log_mass(self) -> bool:
        """Every slot has that of its tokens."""
        return True

    def needs(self) -> frozenset[Need]:
        """Attention of the last tokens, and the model's rotation where keys are averaged before it."""
        return frozenset({window_attention(self.window_size)}) | needs_of_keys(self.keys)

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The budget must hold the sinks, the window and a slot between them."""
        if not isinstance(budget, LikeVariant):
            self._require_room(num_slots_for(budget, shape.num_tokens), shape.num_tokens)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Find the pairs of the layer, or of each head, and merge them."""
        self._require_room(min(budget.num_slots_H), evidence.num_tokens)
        if min(budget.num_slots_H) == evidence.num_tokens:
            return layer
        middle = slice(self.n_sink, evidence.num_tokens - self.window_size)
        alpha_HN = attention_mass(evidence, window_attention(self.window_size)).double()
        rounds, is_lost_F = self._pairs(alpha_HN[:, middle], evidence, budget)
        # Of what can be merged: sinks take most of the attention, and would make all the rest look alike.
        alpha_HN[:, middle], output_HD = mean_values(
            alpha_HN[:, middle], layer.v_HND[:, middle], len(evidence.layers)
        )
        max_length = RELEASED_LENGTH if self.as_released else math.inf
        paired = pair_weights(self.weights, rounds, alpha_HN, layer.v_HND, output_HD, max_length)
        # A slot stands at its last token: the released positions are running sums of l, each slot's own among them.
        own_F = torch.arange(paired.first_F.numel(), device=evidence.device)
        last_F = own_F.scatter_reduce(0, paired.first_F, own_F, "amax")[paired.first_F]
        target_F = (last_F % evidence.num_tokens).masked_fill(is_lost_F[paired.first_F], EVICTED)
        return paired_slots(layer, evidence, target_F.view_as(alpha_HN), paired, self.keys)

    def _pairs(self, mass_HM: Tensor, evidence: Evidence, budget: Budget) -> tuple[list[Round], Tensor]:
        """Rounds of merges in all heads, and which slots were lost, at their first tokens: bool (F,)."""
        num_heads, num_middle = mass_HM.shape
        num_tokens, is_shared = evidence.num_tokens, self.layout == "shared"
        num_merges_H = tuple(num_tokens - num_slots for num_slots in budget.num_slots_H)
        if len(set(num_merges_H)) > 1 and (is_shared or self.as_released):
            raise BudgetError(
                f"{name_of(self)}: layout={self.layout} and as_released={self.as_released} need one budget for all heads, "
                f"got {budget.num_slots_H}; use layout=per_head and as_released=false"
            )
        mass_RM = evidence.by_layer(mass_HM).sum(dim=1) if is_shared else mass_HM
        gamma = num_middle / _RELEASED_FOLDS if self.gamma is None else self.gamma
        is_lost_RM = torch.zeros_like(mass_RM, dtype=torch.bool)
        if self.as_released:
            rounds, is_lost_F = released_pairs(mass_RM, num_merges_H[0], gamma)
            is_lost_RM = is_lost_F.view_as(mass_RM)
        else:
            rounds = lowest_pairs(mass_RM, num_merges_H[: mass_RM.shape[0]], gamma)
        num_sharing = num_heads // mass_RM.shape[0]
        start_X1 = torch.arange(num_sharing, device=mass_HM.device)[:, None] * num_tokens

        def in_heads(place_P: Tensor) -> Tensor:
            row_P, column_P = place_P // num_middle, place_P % num_middle + self.n_sink
            return (start_X1 + row_P * num_sharing * num_tokens + column_P).flatten()

        is_lost_HN = is_lost_RM.new_zeros(num_heads, num_tokens)
        is_lost_HN[:, self.n_sink : self.n_sink + num_middle] = is_lost_RM.repeat_interleave(num_sharing, 0)
        return [Round(*map(in_heads, found)) for found in rounds], is_lost_HN.flatten()

    def _require_room(self, num_slots: int, num_tokens: int) -> None:
        if num_slots < num_tokens and num_slots <= self.n_sink + self.window_size:
            raise BudgetError(
                f"{name_of(self)}: n_sink={self.n_sink} and window_size={self.window_size} leave none of {num_slots} slots "
                f"per head of {num_tokens} tokens to merge into; raise the budget or lower these"
            )


_CHOICES = {
    "weights": PAIR_WEIGHTS,
    "keys": KEYS,
    "layout": ("shared", "per_head"),
}
