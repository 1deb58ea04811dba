"""Queries and keys as they are before RoPE, from what went into the attention module: those it used are turned already.

Shapes: N tokens, M of them from a first one on, E hidden size, X heads, D head size.
"""

from __future__ import annotations

from torch import Tensor

from kvmerger.prefill.evidence import LayerStates


def queries_before_rope(states: LayerStates, first: int = 0) -> Tensor:
    """Queries of the tokens from ``first`` on, normalised where the model does that (Qwen3): (Q, M, D), the model's dtype."""
    return _heads(states, "q", first)


def keys_before_rope(states: LayerStates, first: int = 0) -> Tensor:
    """Keys of the tokens from ``first`` on, normalised where the model does that: (H, M, D), the model's dtype."""
    return _heads(states, "k", first)


def _heads(states: LayerStates, name: str, first: int) -> Tensor:
    assert states.hidden_NE is not None and states.attention is not None, (
        "registered as reading hidden states"
    )
    projected_MX = getattr(states.attention, f"{name}_proj")(states.hidden_NE[first:])
    x_MXD = projected_MX.unflatten(1, (-1, states.k_HND.shape[2]))
    if hasattr(states.attention, f"{name}_norm"):
        x_MXD = getattr(states.attention, f"{name}_norm")(x_MXD)
    return x_MXD.transpose(0, 1)
