"""DynamicKV: layers compete for slots by how many of the model's best tokens they hold.

Shapes: L layers, H KV heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvmerger.budget import Budget
from kvmerger.kernels.dispatch import is_among_highest
from kvmerger.policies.allocation.layers import LayerAllocator
from kvmerger.policies.allocation.shares import in_proportion
from kvmerger.policies.base import PolicyError
from kvmerger.policies.parameters import is_number
from kvmerger.policies.registry import register_wrapper
from kvmerger.prefill.evidence import Evidence


@register_wrapper("dynamickv")
@dataclass(frozen=True)
class DynamicKV(LayerAllocator):
    """Share slots out among layers by how many of the whole model's highest scores lie in each.

    Based on "DynamicKV: Task-Aware Adaptive KV Cache Compression for Long Context LLMs" (arXiv 2412.14838) and its authors'
    code. Of C slots the ranking protects w; of all other scores of all layers and heads together the (C − w)·H·L highest are
    marked, and a layer's share of the slots beyond w is its share of the marks, at most ``most_times_mean`` times the mean.
    Differs in that this is done once, with all layers at hand: the authors do it after every fourth layer and cut the layers
    seen so far each time. The sum is exact: theirs rounds down twice and gives the last layer seen what is left, which can be
    less than nothing. Scores must be comparable between layers, as attention is.

    Attributes:
        inner: whose scores count.
        most_times_mean: the most a layer gets, in mean shares; from 1 on.
    """

    most_times_mean: float = 10

    def __post_init__(self) -> None:
        """Refuse what is no ranking, and a bound below the mean."""
        super().__post_init__()
        # Written as what must hold: every comparison with NaN is false.
        if not (is_number(self.most_times_mean) and 1 <= self.most_times_mean < float("inf")):
            raise PolicyError(
                f"dynamickv: most_times_mean must be a number from 1 on (at 1 all layers get the same), got "
                f"{self.most_times_mean!r}"
            )

    def slots_of_layers(self, even: Budget, evidence_L: Sequence[Evidence]) -> Sequence[int]:
        """The ranking's protected tokens in every layer, and of the others what its share of the marks gives."""
        beyond = even.num_slots_H[0] - self.least_slots
        score_LHN = torch.stack([self.inner.checked_scores(evidence, even) for evidence in evidence_L])
        num_layers, num_heads, num_tokens = score_LHN.shape
        score_LHN = score_LHN.masked_fill(score_LHN == torch.inf, -torch.inf)
        # Layers last: of equal scores every layer has one marked before any has two, or the first would take them all.
        score_HNL = score_LHN.permute(1, 2, 0).reshape(1, -1)
        is_marked_HNL = is_among_highest(score_HNL, (beyond * num_heads * num_layers,))
        # Ranked lowest, protected tokens are marked only where there is nothing else to mark.
        marks_L = is_marked_HNL.view(-1, num_layers).sum(dim=0).tolist()
        most = min(int(self.most_times_mean * beyond), num_tokens - self.least_slots)
        return [self.least_slots + share for share in in_proportion(marks_L, beyond * num_layers, 0, most)]
