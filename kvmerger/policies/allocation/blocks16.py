"""Whole blocks of tokens, the same ones in all heads: what a paged cache can drop without moving anything.

Shapes: L layers of a stack, H KV heads of all of them, N tokens, C blocks, B tokens of a block.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_choice, require_count
from kvmerger.policies.registry import name_of, path_of, register_wrapper
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.selection import SelectingPolicy, take_highest
from kvmerger.policies.wrapper import Wrapper
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence

SHARED_BY = ("model", "layer")


@register_evidence("block_scores", reads_queries=False)
def _block_scores(states: LayerStates, *params: object) -> Tensor:
    """What `Blocks16.allocate` puts here, of all layers together: fp32 (1, C)."""
    raise BudgetError(
        f"blocks16 chooses blocks for all layers in allocate(), which was not called for {params}"
    )


@register_wrapper("blocks16")
@dataclass(frozen=True)
class Blocks16(Wrapper, SelectingPolicy):
    """Keep whole blocks of tokens, the same in all heads, by the scores of the ranking in front.

    This project's own, after paged caches: vLLM, SGLang and TensorRT-LLM have one table of blocks for all heads of a layer,
    and by default for all layers, so that these blocks could be dropped there as they lie. A block's score is the sum over
    its tokens and heads; of several layers, each layer's scores are divided by their mean size first. The last block, which
    an engine goes on writing into, stays if it is not full. As many other blocks stay as the budget holds whole: up to
    ``block_size`` − 1 slots per head less than it. Blocks of tokens that the ranking protects come first, and the budget must
    hold all of them.

    Attributes:
        inner: whose scores count. How it shares slots out among layers counts too where each layer chooses by itself.
        block_size: tokens of a block, counted from the first.
        shared_by: all layers of the ``model`` keep the same blocks, or only the heads of a ``layer`` do.
    """

    inner: ScoringPolicy
    block_size: int = 16
    shared_by: Literal["model", "layer"] = "model"

    heads_agree = True
    keeps_whole_blocks = True

    def __post_init__(self) -> None:
        """Refuse what has no scores or gives heads unlike numbers of slots, and values outside their domain."""
        if not isinstance(self.inner, ScoringPolicy):
            raise PolicyError(
                f"blocks16 needs a policy that ranks tokens by scores, and {path_of(self.inner)} does not"
            )
        require_count("blocks16", "block_size", self.block_size)
        require_choice("blocks16", "shared_by", self.shared_by, SHARED_BY)
        for part in self.inner.parts:
            if part.heads_differ:
                raise PolicyError(
                    f"blocks16 keeps the same tokens in all heads, and {name_of(part)} gives them unlike numbers of slots; "
                    f"leave it out, or set its `compete: head` where it has that"
                )
            if part.layers_differ and self.shared_by == "model":
                raise PolicyError(
                    f"blocks16 keeps the same tokens in all layers, and {name_of(part)} gives them unlike numbers of slots; "
                    f"leave it out, or set `shared_by: layer`"
                )

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The budget must hold the blocks of what is protected, and must not fix every layer's slots."""
        if isinstance(budget, LikeVariant):
            raise BudgetError(
                f"blocks16 keeps whole blocks in all heads, and the budget {budget} fixes every head's slots; use a budget "
                f"such as 0.5"
            )
        super().check(shape, budget)
        self._require_room(num_slots_for(budget, shape.num_tokens), shape.num_tokens)

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """As the ranking allocates slots to layers; scores all layers together where they keep the same blocks."""
        if self.shared_by == "layer":
            return super().allocate(budget_L, evidence_L)
        per_layer = [
            _in_proportion(self._scores_of_blocks(evidence, budget))
            for evidence, budget in zip(evidence_L, budget_L, strict=True)
        ]
        score_1C = torch.stack(per_layer).sum(dim=0)
        for evidence, budget in zip(evidence_L, budget_L, strict=True):
            evidence.put(self._need(budget), score_1C)
        return budget_L

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """The budget, since all heads keep the same, and the ranking's key."""
        return budget, super().stack_key(evidence, budget)

    def select(self, evidence: Evidence, budget: Budget) -> Tensor:
        """Which tokens stay: bool (H, N), the same in all heads of a layer."""
        return is_among_highest(*self._ranked(evidence, budget))

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Keep the selected tokens, copied unchanged."""
        # How many are kept is known, and the device not waited for.
        score_HN, num_slots_H = self._ranked(evidence, budget)
        return take_highest(layer, score_HN, Budget(num_slots_H, budget.asked_ratio))

    def _ranked(self, evidence: Evidence, budget: Budget) -> tuple[Tensor, tuple[int, ...]]:
        """Scores that are equal in a block and unlike between blocks (H, N), and the slots of whole blocks in each head."""
        if len(set(budget.num_slots_H)) > 1:
            raise BudgetError(f"blocks16 keeps the same tokens in all heads, got {budget.num_slots_H}")
        num_slots, num_tokens = min(budget.num_slots_H[0], evidence.num_tokens), evidence.num_tokens
        self._require_room(num_slots, num_tokens)
        is_of_model = self.shared_by == "model"
        score_LC = (
            evidence.layers[0].get(self._need(budget))
            if is_of_model
            else self._scores_of_blocks(evidence, budget)
        )
        # Places in place of scores: blocks that tie would be cut where the budget ends.
        order_LC = score_LC.sort(dim=1, descending=True, stable=True).indices
        place_LC = torch.empty_like(order_LC).scatter_(
            1, order_LC, torch.arange(order_LC.shape[1], device=order_LC.device).expand_as(order_LC)
        )
        num_partial = num_tokens % self.block_size
        if num_partial:
            place_LC[:, -1] = -1
        # Exact in fp32 up to 2^24 blocks.
        score_LN = -place_LC.float().repeat_interleave(self.block_size, dim=1)[:, :num_tokens]
        score_LN = score_LN.expand(len(evidence.layers), -1)
        num_kept = num_slots - (num_slots - num_partial) % self.block_size
        return evidence.for_heads(score_LN), (num_kept,) * evidence.num_heads

    def _scores_of_blocks(self, evidence: Evidence, budget: Budget) -> Tensor:
        """The ranking's scores, summed over a block and the heads of a layer: (L, C)."""
        score_LN = evidence.by_layer(self.inner.checked_scores(evidence, budget)).sum(dim=1)
        padding = -score_LN.shape[1] % self.block_size
        return F.pad(score_LN, (0, padding)).unflatten(1, (-1, self.block_size)).sum(dim=2)

    def _need(self, budget: Budget) -> Need:
        # The repr: of another ranking, or other parameters, the scores are others.
        return Need("block_scores", (path_of(self), repr(self), budget.num_slots_H[0], budget.asked_ratio))

    def _require_room(self, num_slots: int, num_tokens: int) -> None:
        # Protected tokens lie at the beginning and at the end, and reach into one more block on either side at most.
        inner = self.inner.num_protected
        least = inner + 2 * (self.block_size - 1) if inner else self.block_size
        if num_slots < min(least, num_tokens):
            raise BudgetError(
                f"blocks16 keeps whole blocks of {self.block_size} tokens, of which what is always kept may take {least} "
                f"slots, and the budget is {num_slots} slots of {num_tokens} tokens; raise the budget or lower block_size"
            )


def _in_proportion(score_1C: Tensor) -> Tensor:
    """Scores divided by their mean size; infinite ones stay, and count as nothing in the mean."""
    is_finite_1C = score_1C.isfinite()
    total = score_1C.abs().masked_fill(~is_finite_1C, 0).sum()
    mean = total / is_finite_1C.sum().clamp_min(1)
    # All 0 where nothing tells blocks apart; no `if`, which would wait for the device.
    return score_1C / torch.where(mean > 0, mean, 1.0)
