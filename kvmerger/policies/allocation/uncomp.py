"""UNComp's head groups: heads whose queries go in more directions get more slots.

Shapes: L layers, Q query heads, H KV heads, N tokens, D head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.policies.allocation.shares import in_proportion
from kvmerger.policies.base import CacheShape, PolicyError
from kvmerger.policies.parameters import require_count, require_positive
from kvmerger.policies.registry import name_of, path_of, register_wrapper
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.policies.wrapper import RankingWrapper
from kvmerger.prefill.evidence import Evidence, LayerStates, Need, register_evidence

_RIDGE = 1e-10  # the authors', on every eigenvalue
_LEAST_NORM = 1e-20


def query_entropy(num_eigenvalues: int) -> Need:
    """Entropy of each head's queries, from the ``num_eigenvalues`` largest eigenvalues: fp32 (Q,)."""
    return Need("query_entropy", (num_eigenvalues,))


@register_evidence("query_entropy", reads_queries=True)
def _query_entropy(states: LayerStates, num_eigenvalues: int) -> Tensor:
    """Truncated entropy of the queries' directions, from 0 to 1 (of D equal eigenvalues): fp32 (Q,)."""
    # Head by head: a second copy of all queries in fp32 would be larger than the cache.
    gram_QDD = torch.stack([_gram(q_ND) for q_ND in states.q_QND])
    eigenvalue_QD = torch.linalg.eigvalsh(gram_QDD).clamp_min(0) + _RIDGE
    # Ascending: the largest stand last.
    entropy_Q = torch.special.entr(eigenvalue_QD[:, -num_eigenvalues:]).sum(dim=1)
    return (entropy_Q / math.log(max(2, gram_QDD.shape[1]))).float()


def _gram(q_ND: Tensor) -> Tensor:
    """Second moments of the directions from the mean query; trace 1, or 0 where all are the same: fp64 (D, D)."""
    q_ND = q_ND.float()
    centred_ND = q_ND - q_ND.mean(dim=0)
    unit_ND = centred_ND / centred_ND.norm(dim=1, keepdim=True).clamp_min(_LEAST_NORM)
    gram_DD = (unit_ND.T @ unit_ND).double()
    return gram_DD / gram_DD.trace().clamp_min(_LEAST_NORM)


@register_wrapper("uncomp")
@dataclass(frozen=True)
class UNComp(RankingWrapper):
    """Give the half of a layer's heads whose queries have more entropy ``ratio`` times the slots of the other half.

    Based on the head groups of "UNComp" (arXiv 2410.03090) and its authors' code. Entropy is that of a head's queries, less
    their mean and each of length 1: of the eigenvalues of their second moments, scaled to a sum of 1, the sum of −λ ln λ over
    the ``num_eigenvalues`` largest, over ln D. With two groups of one size and C slots on average the lower gets
    2C/(1 + ratio) and the higher 2C·ratio/(1 + ratio) per head; the ranking in front chooses within a head. Differs in that a
    layer holds exactly what its budget says, where the authors' 512 are 384 and 768, a mean of 576; in that entropy is the
    prompt's own and a KV head's the mean of its query heads', where they count how often each query head was among the upper
    half on other texts; and in that queries are taken as attention reads them, after the rotary embedding. Their stages of
    layers, which drop hidden states while the prompt is read, are left out.

    Attributes:
        inner: chooses within a head; one that keeps each head's highest scores and gives all heads the same.
        ratio: slots of a head of higher entropy, for one of a head of lower. Below 1 it is the authors' reversed ablation.
        num_eigenvalues: how many of the largest count.
    """

    ratio: float = 2
    num_eigenvalues: int = 32

    heads_differ = True

    def __post_init__(self) -> None:
        """Refuse what does not choose by scores, heads that compete already, and values outside their domain."""
        if not isinstance(self.inner, ScoringPolicy) or type(self.inner).select is not ScoringPolicy.select:
            raise PolicyError(
                f"uncomp shares slots out among heads, each of which keeps its highest scores, and {path_of(self.inner)} "
                f"does not choose so; put a ranking in front, as in snapkv+uncomp"
            )
        for part in self.inner.parts:
            if part.heads_differ:
                raise PolicyError(
                    f"uncomp shares slots out among heads, and the heads of {name_of(part)} compete already; leave one of "
                    f"them out"
                )
        require_positive("uncomp", "ratio", self.ratio)
        require_count("uncomp", "num_eigenvalues", self.num_eigenvalues)

    def needs(self) -> frozenset[Need]:
        """What the ranking reads, and the entropy."""
        return super().needs() | {query_entropy(self.num_eigenvalues)}

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` unless there are slots beyond each head's least, and two heads to share them out among."""
        if isinstance(budget, LikeVariant):
            raise BudgetError(
                f"uncomp shares slots out among heads, and the budget {budget} fixes every head's; use {path_of(self.inner)} "
                f"alone, or a budget such as 0.5"
            )
        super().check(shape, budget)
        num_slots = num_slots_for(budget, shape.num_tokens)
        if num_slots <= self._least or shape.num_kv_heads == 1:
            raise BudgetError(
                f"uncomp: {num_slots} slots, of which every head has {self._least} anyway, on {shape.num_kv_heads} KV "
                f"head(s) leave nothing to share out; raise the budget, let the ranking protect less or use "
                f"{path_of(self.inner)} alone"
            )

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Move slots between a layer's heads; their sum stays what the ranking gives the layer."""
        allotted_L = super().allocate(budget_L, evidence_L)
        entropies = [evidence.get(query_entropy(self.num_eigenvalues)) for evidence in evidence_L]
        # One wait for the device, not one a layer.
        entropy_LH = torch.stack(entropies).unflatten(1, (evidence_L[0].num_heads, -1)).mean(dim=2)
        order_LH: list[list[int]] = entropy_LH.sort(dim=1, descending=True, stable=True).indices.tolist()
        return [
            Budget(self._slots(allotted, order_H, evidence.num_tokens), allotted.asked_ratio)
            for allotted, order_H, evidence in zip(allotted_L, order_LH, evidence_L, strict=True)
        ]

    def _slots(self, allotted: Budget, order_H: Sequence[int], num_tokens: int) -> tuple[int, ...]:
        """Slots of each head, whose numbers ``order_H`` gives by falling entropy."""
        if min(allotted.num_slots_H) >= num_tokens:
            return allotted.num_slots_H
        # Of an odd number of heads the lower group has one more.
        higher = set(order_H[: len(order_H) // 2])
        weight_H = [float(self.ratio) if head in higher else 1.0 for head in range(len(order_H))]
        return tuple(in_proportion(weight_H, allotted.num_slots, self._least, num_tokens))

    @property
    def _least(self) -> int:
        """Slots that every head gets."""
        return max(1, self.num_protected)

    def scores(self, evidence: Evidence) -> Tensor:
        """The ranking's: (H, N)."""
        return self.inner.scores(evidence)

    def scores_at(self, evidence: Evidence, budget: Budget) -> Tensor:
        """The ranking's at ``budget``: (H, N)."""
        return self.inner.scores_at(evidence, budget)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """As the ranking does, with what it counts."""
        return self.inner.compress(layer, evidence, budget)
