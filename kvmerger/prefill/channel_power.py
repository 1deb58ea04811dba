"""Channel by channel, how large queries and keys are: what an error in one channel of a key costs.

Shapes: N tokens, W tokens of the window, Q query heads, H KV heads, G = Q/H, D head size.
"""

from __future__ import annotations

from torch import Tensor

from kvmerger.prefill.evidence import LayerStates, Need, register_evidence

KEY_POWER = Need("key_power")
KEY_VARIANCE = Need("key_variance")


def window_query_power(window_tokens: int) -> Need:
    """Mean square of the last ``window_tokens`` queries (after RoPE), over them and the group: fp32 (H, D)."""
    return Need("window_query_power", (window_tokens,))


@register_evidence("window_query_power", reads_queries=True)
def _window_query_power(states: LayerStates, window_tokens: int) -> Tensor:
    """The mean of q² over window and group: fp32 (H, D)."""
    q_HGWD = states.q_QND[:, -window_tokens:].float().unflatten(0, (states.k_HND.shape[0], -1))
    return q_HGWD.square().mean(dim=(1, 2))


@register_evidence("key_power", reads_queries=False)
def _key_power(states: LayerStates) -> Tensor:
    """The mean of k² over all tokens: fp32 (H, D)."""
    return states.k_HND.float().square().mean(dim=1)


@register_evidence("key_variance", reads_queries=False)
def _key_variance(states: LayerStates) -> Tensor:
    """The variance of k over all tokens: fp32 (H, D)."""
    # Around the mean, not as a difference of powers: a biased channel would lose all its digits.
    return states.k_HND.float().var(dim=1, correction=0)
