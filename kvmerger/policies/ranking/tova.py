"""TOVA: keep what the last token attends to.

Shapes: Q query heads, H KV heads, N tokens.
"""

from dataclasses import dataclass

from torch import Tensor

from kvmerger.policies.registry import register
from kvmerger.policies.scoring import ScoringPolicy
from kvmerger.prefill.evidence import Evidence, Need, window_attention

_LAST_QUERY = window_attention(1)


@register("tova")
@dataclass(frozen=True)
class TOVA(ScoringPolicy):
    """Keep the tokens the last query attends to most, the same ones in every head of a layer.

    Based on "Transformers are Multi-State RNNs" (arXiv 2401.06104), whose policy drops one token per step; here it is
    applied once, with the last token of the *compressed part*. The mean is over all query heads of the layer. Nothing
    is protected: kvpress's ``tova`` always keeps the last token, the paper does not.
    """

    compresses_stacks = True
    heads_agree = True

    def needs(self) -> frozenset[Need]:
        """The last token's attention."""
        return frozenset({_LAST_QUERY})

    def scores(self, evidence: Evidence) -> Tensor:
        """The last query's attention, mean over query heads: fp32 (H, N), all rows alike."""
        # Layer by layer: a mean over all heads of a stack would mix layers.
        return evidence.for_heads(evidence.by_layer(evidence.get(_LAST_QUERY)).mean(dim=1))
