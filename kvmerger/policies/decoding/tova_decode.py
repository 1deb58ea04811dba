"""TOVA while answering: the token that the newest one attends to least leaves, in all heads of a layer alike.

Shapes: L layers, H KV heads, X columns, as in `decode_rule`; S kept slots.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from kvmerger.budget import Budget, BudgetError
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import DecodeRule, DecodeStep
from kvmerger.policies.base import PolicyError
from kvmerger.policies.decoding.base import DecodingPolicy
from kvmerger.policies.registry import path_of, register_wrapper
from kvmerger.prefill.evidence import Evidence

_REMEDY = (
    "put a policy in front that does not, such as tova, streaming_llm or snapkv+chunkkv, with a budget that is the same for "
    "all heads, or take another rule, such as h2o_decode"
)


@dataclass(frozen=True)
class LeastAttendedLeaves(DecodeRule):
    """The slot that the token just read attends to least leaves; its own is one of them. Heads hold the same tokens."""

    reads_attention: ClassVar[bool] = True

    def worth(self, step: DecodeStep) -> Tensor:
        """Attention of this step, mean over the layer's heads."""
        assert step.attention_LHX is not None, "the rule reads attention"
        # The same bits in every head: a mean of its own for each could break a tie elsewhere, and heads would drift apart.
        return step.attention_LHX.mean(dim=1, keepdim=True).expand_as(step.attention_LHX)


@register_wrapper("tova_decode")
@dataclass(frozen=True)
class TovaDecode(DecodingPolicy):
    """At each token of the answer the token it attends to least leaves, in all heads of the layer.

    Based on "Transformers are Multi-State RNNs" (arXiv 2401.06104), TOVA with its choice shared by all heads. Nothing is
    protected. Differs from it in that the prompt is compressed once, at its end, by what stands in front, which must keep
    the same tokens in every head: ``tova+tova_decode``.
    """

    def __post_init__(self) -> None:
        """Refuse a policy whose heads choose each for itself."""
        super().__post_init__()
        if not self.inner.heads_agree:
            raise PolicyError(
                f"tova_decode makes one choice for all heads of a layer, and {path_of(self.inner)} keeps other tokens in "
                f"some heads than in others; {_REMEDY}. A policy of your own whose heads all keep the same tokens says "
                f"so with heads_agree = True"
            )

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What the wrapped policy keeps; `BudgetError` where heads of a layer keep different tokens."""
        kept = super().compress(layer, evidence, budget)
        position_LHS = evidence.by_layer(kept.position_HS) if kept.is_uniform else None
        # Waits for the device, once for each stack: a wrong choice here would go on, unseen, through the whole answer.
        if position_LHS is None or bool((position_LHS != position_LHS[:, :1]).any()):
            raise BudgetError(
                f"tova_decode makes one choice for all heads of a layer, and {path_of(self.inner)} at this budget keeps "
                f"other tokens in some heads than in others; {_REMEDY}"
            )
        return kept

    def decode_rule(self, prompt_seed: int) -> DecodeRule:
        """`LeastAttendedLeaves`; no part of it is random."""
        return LeastAttendedLeaves(room=self.room)
