"""Queries and keys as they are before RoPE, from what went into the attention module: those it used are turned already.

Keys alone are turned on, or back, by the model's frequencies.

Shapes: N tokens, M of them from a first one on, S slots, E hidden size, H KV heads, X heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvmerger.prefill.evidence import LayerStates, Need, register_evidence

ROPE_FREQUENCIES = Need("rope_frequencies")


def queries_before_rope(states: LayerStates, first: int = 0) -> Tensor:
    """Queries of the tokens from ``first`` on, normalised where the model does that (Qwen3): (Q, M, D), the model's dtype."""
    return _heads(states, "q", first)


def keys_before_rope(states: LayerStates, first: int = 0) -> Tensor:
    """Keys of the tokens from ``first`` on, normalised where the model does that: (H, M, D), the model's dtype."""
    return _heads(states, "k", first)


def frequencies(states: LayerStates) -> Tensor:
    """Radians that each pair of channels turns by from one position to the next: fp32 (D / 2,)."""
    assert states.rotary is not None, "a model's layers have it"
    # YaRN's factor on cos and sin is in queries and keys already and stays there: turning further changes no length.
    inverse_F = states.rotary.inv_freq
    assert isinstance(inverse_F, Tensor), "the rotary embedding's own buffer"
    return inverse_F


@register_evidence("rope_frequencies", reads_queries=False)
def _rope_frequencies(states: LayerStates) -> Tensor:
    """Radians that each pair of channels turns by from one position to the next: fp32 (H, D / 2), alike in all heads."""
    return frequencies(states).float().expand(states.k_HND.shape[0], -1)


def turned_keys(k_SD: Tensor, turn_SD: Tensor) -> Tensor:
    """Keys turned by these radians (S, D / 2), in fp32 and rounded to their own dtype; a turn by 0 changes no bit."""
    # The convention of Llama and its kin: halves of a head are paired, not neighbouring channels.
    first, second = k_SD.float().chunk(2, dim=-1)
    cos, sin = turn_SD.cos(), turn_SD.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(k_SD.dtype)


def _heads(states: LayerStates, name: str, first: int) -> Tensor:
    assert states.hidden_NE is not None and states.attention is not None, (
        "registered as reading hidden states"
    )
    projected_MX = getattr(states.attention, f"{name}_proj")(states.hidden_NE[first:])
    x_MXD = projected_MX.unflatten(1, (-1, states.k_HND.shape[2]))
    if hasattr(states.attention, f"{name}_norm"):
        x_MXD = getattr(states.attention, f"{name}_norm")(x_MXD)
    return x_MXD.transpose(0, 1)
