"""How much a value moves the residual stream: the norm of what the output projection makes of it.

Shapes: N tokens, Q query heads, H KV heads, G = Q/H, D head size, E hidden size, B a block of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kvmerger.prefill.evidence import LayerStates, Need, register_evidence

# Numbers of projected values at a time: 64 MiB in fp32.
_MOST_PROJECTED = 2**24


def value_output_norms(order: int) -> Need:
    """Norms of W_o·v of ``order`` 1 or 2, averaged over the query heads of a group: fp32 (H, N)."""
    return Need("value_output_norms", (order,))


@register_evidence("value_output_norms", reads_queries=False, reads_hidden_states=True)
def _value_output_norms(states: LayerStates, order: int) -> Tensor:
    """The mean over a group of `output_norms`: fp32 (H, N)."""
    assert states.attention is not None, "registered as reading hidden states"
    norms_QN = output_norms(states.v_HND, states.attention, order)
    return norms_QN.unflatten(0, (states.v_HND.shape[0], -1)).mean(dim=1)


def output_norms(v_HND: Tensor, attention: nn.Module, order: int) -> Tensor:
    """‖W_o v‖ of each value under each query head's slice of the output projection: fp32 (Q, N).

    Args:
        attention: the module whose ``o_proj`` it is.
        order: 1 or 2.
    """
    weight_QED = _weights(attention, v_HND.shape[2])
    num_groups = weight_QED.shape[0] // v_HND.shape[0]
    if order == 2:
        # ‖Wv‖² = vᵀ(WᵀW)v: D × D products in place of E × D ones.
        gram_HGDD = (weight_QED.float().mT @ weight_QED.float()).unflatten(0, (-1, num_groups))
        v_H1ND = v_HND.float()[:, None]
        return ((v_H1ND @ gram_HGDD) * v_H1ND).sum(dim=3).clamp_min(0).sqrt().flatten(0, 1)
    assert order == 1, f"norms of order {order}"
    weight_HGDE = weight_QED.mT.unflatten(0, (-1, num_groups))
    block = max(1, _MOST_PROJECTED // (weight_QED.shape[0] * weight_QED.shape[1]))
    parts = [
        torch.linalg.vector_norm(v_HBD[:, None] @ weight_HGDE, ord=1, dim=3, dtype=torch.float32)
        for v_HBD in v_HND.split(block, dim=1)
    ]
    return torch.cat(parts, dim=2).flatten(0, 1)


def _weights(attention: nn.Module, head_dim: int) -> Tensor:
    """The output projection's slice of each query head: (Q, E, D)."""
    weight_EX: Tensor = attention.o_proj.weight  # type: ignore[union-attr, assignment]
    return weight_EX.detach().unflatten(1, (-1, head_dim)).transpose(0, 1)
