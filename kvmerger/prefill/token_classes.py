"""Which tokens of a prompt are special and which punctuation, as evidence: prefill puts it, since policies have no tokenizer.

Shapes: N tokens.
"""

from __future__ import annotations

from torch import Tensor

from kvmerger.prefill.evidence import EvidenceError, LayerStates, Need, register_evidence

TOKEN_CLASSES = Need("token_classes")
"""`OTHER`, `SPECIAL` or `PUNCTUATION` of `kvmerger.models.token_classes`: uint8 (N,), the same in all layers."""


@register_evidence(TOKEN_CLASSES.name, reads_queries=False)
def _token_classes(states: LayerStates) -> Tensor:
    """Not from a layer's states: `prefill` asks the tokenizer, for whoever declares the need."""
    raise EvidenceError(
        f"{TOKEN_CLASSES} is asked of the tokenizer in prefill, so the policy must declare it in needs()"
    )
