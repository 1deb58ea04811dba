"""How widely each head of a prompt attends: the entropy of its attention, one number per query head.

Shapes: Q query heads.
"""

from __future__ import annotations

from torch import Tensor

from kvmerger.kernels.reference import prompt
from kvmerger.prefill.evidence import LayerStates, Need, register_evidence

ROW_ENTROPY = Need("row_entropy")


@register_evidence("row_entropy", reads_queries=True)
def _row_entropy(states: LayerStates) -> Tensor:
    """Entropy of causal attention in nats, averaged over all queries: fp32 (Q,), from 0 to ln N."""
    return prompt.row_entropy(states.q_QND, states.k_HND, states.scaling)
