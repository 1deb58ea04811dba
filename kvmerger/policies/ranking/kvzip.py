"""KVzip: keep what the model looks up when it repeats the context, whatever will be asked.

Shapes: L layers, H KV heads, N tokens, F tokens of all heads and layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.policies.parameters import require_choices, require_count
from kvmerger.policies.registry import name_of, register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, Need
from kvmerger.prefill.repeat_evidence import repeat_attention

Compete = Literal["model", "head"]
COMPETE = ("model", "head")


@register("kvzip")
@dataclass(frozen=True)
class KVzip(ScoringPolicy):
    """Keep the tokens that get most attention from any token of a repetition of the context.

    Based on "KVzip: Query-Agnostic KV Cache Compression with Context Reconstruction" (arXiv 2505.23416). The model is asked
    to repeat the context in parts of 2,048 tokens; a token's score is the most that any query of its part's repetition, in
    any head of the group, attends to it, by a softmax over the sinks, the part and the repetition. The pass takes about as
    long as the prefill, or longer, and serves all budgets (``repeat_shared_s`` of a row). The number of slots is exact. The
    chat template's opening is scored as the context is; the authors keep all of it and do not count it.

    Attributes:
        n_sink: first tokens that always stay.
        compete: whose tokens compete for slots: those of all heads of the ``model``, as published, or each ``head``'s own,
            so that all heads keep equally many; for heads of a layer, put ``+adakv`` behind ``head``.
    """

    n_sink: int = 4
    compete: Compete = "model"

    compresses_stacks = True
    is_weighted: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_count(name_of(self), "n_sink", self.n_sink, at_least=0)
        require_choices(name_of(self), vars(self), {"compete": COMPETE})

    @property
    def heads_differ(self) -> bool:  # type: ignore[override]
        """Where all heads of the model compete."""
        return self.compete == "model"

    @property
    def layers_differ(self) -> bool:  # type: ignore[override]
        """Where all heads of the model compete."""
        return self.compete == "model"

    @property
    def num_protected(self) -> int:
        """The sinks."""
        return self.n_sink

    def needs(self) -> frozenset[Need]:
        """The most attention in a repetition."""
        return frozenset({self._need})

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Every head's slots: how many of its tokens are among the highest of all heads of the model."""
        if self.compete == "head":
            return budget_L
        scores_LHN = torch.stack([self.checked_scores(it, budget_L[0]) for it in evidence_L])
        num_slots = sum(budget.num_slots for budget in budget_L)
        # One stable sort: ties go to the earlier layer, head and token, so that each head's own ranking chooses the same.
        order_F = scores_LHN.flatten().sort(descending=True, stable=True).indices[:num_slots]
        num_tokens = scores_LHN.shape[2]
        head_F = torch.div(order_F, num_tokens, rounding_mode="floor")
        slots_LH = torch.bincount(head_F, minlength=scores_LHN.shape[0] * scores_LHN.shape[1])
        return [
            Budget(tuple(slots_H), budget.asked_ratio)
            for slots_H, budget in zip(slots_LH.view(scores_LHN.shape[:2]).tolist(), budget_L, strict=True)
        ]

    def scores(self, evidence: Evidence) -> Tensor:
        """The most attention; ``inf`` for sinks: fp32 (H, N)."""
        scores_HN = evidence.get(self._need).clone()
        scores_HN[:, : self.n_sink] = torch.inf
        return scores_HN

    @property
    def _need(self) -> Need:
        return repeat_attention(self.n_sink, self.is_weighted)
