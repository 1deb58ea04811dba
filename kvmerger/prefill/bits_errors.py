"""What storing keys and values in fewer bits costs each layer's attention: from one prefill, with that layer alone changed.

Shapes: B = 1, N = T tokens, W the last of them, Q query heads, H KV heads, G = Q/H, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kvmerger.bits_table import WIDTHS
from kvmerger.cache.forms.bits_search import PAIRS, Pair
from kvmerger.cache.forms.shipped import TokenWise
from kvmerger.kernels.prompt_attention import causal_attention
from kvmerger.models.loading import LoadedModel

QUERY_TOKENS = 64  # the last ones stand for the questions to come


class _Errors:
    """Causal attention of one prompt on itself, which notes each layer's errors and changes nothing of it."""

    def __init__(self) -> None:
        self.layers: list[dict[Pair, float]] = []

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        """Attention output (B, T, Q, D)."""
        self.layers.append(layer_errors(q_BQTD[0, :, -QUERY_TOKENS:], k_BHTD[0], v_BHTD[0], scaling))
        return causal_attention(q_BQTD, k_BHTD, v_BHTD, scaling).out_BTQD


@torch.inference_mode()
def bits_errors(model: LoadedModel, context_ids: Sequence[int]) -> list[dict[Pair, float]]:
    """`layer_errors` of every layer on one context (at least one token), its last `QUERY_TOKENS` queries asking.

    Raises:
        torch.OutOfMemoryError: the prompt does not fit.
    """
    errors = _Errors()
    with model.on_its_device():
        ids_1N = torch.tensor([context_ids], device=model.device)
        position_1N = torch.arange(len(context_ids), device=model.device)[None]
        model.hidden_states(ids_1N, position_1N, errors)
    return errors.layers


def layer_errors(q_QWD: Tensor, k_HND: Tensor, v_HND: Tensor, scaling: float) -> dict[Pair, float]:
    """‖o' − o‖ / ‖o‖ for every pair of bits: o is the output of the last W queries (causal), before the output projection, o'
    the same with all N keys and values as `TokenWise` stores them. Norms are over queries, heads and channels."""
    num_heads, num_tokens, head_dim = k_HND.shape
    num_slots_H = (num_tokens,) * num_heads
    k_SD, v_SD = k_HND.reshape(-1, head_dim), v_HND.reshape(-1, head_dim)
    q_HGWD = q_QWD.float().unflatten(0, (num_heads, -1))
    plain_HGWD = _weights(q_HGWD, k_HND.float(), scaling) @ v_HND.float()[:, None]
    decoded = {}
    for bits in WIDTHS:
        form = TokenWise(bits, bits)
        sides = form.decode(form.encode(k_SD, v_SD, num_slots_H), num_slots_H, head_dim)
        decoded[bits] = tuple(x_SD.view_as(k_HND) for x_SD in sides)
    weights = {bits: _weights(q_HGWD, k_hat_HND, scaling) for bits, (k_hat_HND, _) in decoded.items()}
    found = {
        (bits_k, bits_v): (weights[bits_k] @ decoded[bits_v][1][:, None] - plain_HGWD).norm()
        for bits_k, bits_v in PAIRS
    }
    # One transfer for all of a layer. An output of zeros has no relative error; nothing then can be wrong with it either.
    error_P = (torch.stack(list(found.values())) / plain_HGWD.norm().clamp_min(1e-20)).tolist()
    return dict(zip(found, error_P, strict=True))


def _weights(q_HGWD: Tensor, k_HND: Tensor, scaling: float) -> Tensor:
    """Causal softmax (H, G, W, N) of the last W queries, fp32."""
    num_queries, num_tokens = q_HGWD.shape[2], k_HND.shape[1]
    logit_HGWN = q_HGWD @ k_HND[:, None].transpose(2, 3) * scaling
    is_later_WN = torch.ones(num_queries, num_tokens, dtype=torch.bool, device=k_HND.device).triu(
        num_tokens - num_queries + 1
    )
    return logit_HGWN.masked_fill_(is_later_WN, float("-inf")).softmax(dim=3)
