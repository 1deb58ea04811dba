"""How much attention each token receives, per KV head: what finds heavy tokens, pivots and weights.

Shapes: Q query heads, H KV heads, N tokens.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from kvmerger.evidence import ATTENTION_MASS, Evidence, Need, window_attention

AttentionSource = Literal["prefill", "window"]
ATTENTION_SOURCES = ("prefill", "window")

# Softmax underflows to 0 where nobody looks. A set of such tokens still needs weights, and ratios that fp32 can hold.
_LEAST_MASS = 1e-20


def mass_need(source: AttentionSource, window_size: int) -> Need:
    """The attention of all of ``prefill``, or of its last ``window_size`` tokens."""
    return ATTENTION_MASS if source == "prefill" else window_attention(window_size)


def attention_mass(evidence: Evidence, need: Need) -> Tensor:
    """The evidence ``need`` averaged over the query heads of each group: fp32 (H, N), positive."""
    mass_XN = evidence.get(need)
    mass_HN = mass_XN.view(evidence.num_heads, -1, mass_XN.shape[-1]).mean(dim=1)
    return mass_HN.clamp_min(_LEAST_MASS)
