"""A few tokens through a model: whether every layer asks our attention, and what for.

Shapes: B rows, T tokens, E hidden size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kvmerger.models.attention import AttentionHandler
from kvmerger.models.errors import ModelError
from kvmerger.models.source import ModelInfo

_PROBE_ROWS, _PROBE_TOKENS = 2, 6


class Probed(Protocol):
    """What is asked of a loaded model."""

    @property
    def info(self) -> ModelInfo:
        """Its configuration."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def hidden_states(self, ids_BT: Tensor, position_ids_BT: Tensor, handler: AttentionHandler) -> Tensor:
        """Last hidden states (B, T, E); every layer's attention is answered by ``handler``."""


class _ProbeAttention:
    """Answers attention for a few tokens, which attend to themselves, and remembers who asked what."""

    def __init__(self) -> None:
        self.layer_indices: list[int] = []
        self.seen: list[Tensor] = []

    def attend(
        self, layer_index: int, q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float
    ) -> Tensor:
        self.layer_indices.append(layer_index)
        self.seen += [q_BQTD.clone(), k_BHTD.clone(), v_BHTD.clone()]
        is_grouped = q_BQTD.shape[1] != k_BHTD.shape[1]
        out_BQTD = F.scaled_dot_product_attention(
            q_BQTD, k_BHTD, v_BHTD, is_causal=True, scale=scaling, enable_gqa=is_grouped
        )
        return out_BQTD.transpose(1, 2).contiguous()


def probe(model: Probed) -> list[Tensor]:
    """What each layer asked of attention, and last hidden states: tokens spread over the vocabulary, at rising positions."""
    handler = _ProbeAttention()
    index_BT = torch.arange(_PROBE_ROWS * _PROBE_TOKENS, device=model.device).view(_PROBE_ROWS, -1)
    hidden_BTE = model.hidden_states(
        index_BT * model.info.vocab_size // index_BT.numel(), index_BT.clone(), handler
    )
    if handler.layer_indices != list(range(model.info.num_layers)):
        raise ModelError(
            f"model {model.info.name!r} has {model.info.num_layers} layers, but attention was called for "
            f"{handler.layer_indices}: this transformers version does not route it through the attention interface"
        )
    seen = [*handler.seen, hidden_BTE]
    if not all(bool(tensor.isfinite().all()) for tensor in seen):
        raise ModelError(
            f"model {model.info.name!r} gives NaN or infinity for a few tokens in {model.info.dtype}: its weights are "
            f"broken, or the dtype cannot hold its numbers; get the files again, or use `dtype: bfloat16` or `float32`"
        )
    return seen


def largest_difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Of any tensor, as a share of what it should be; NaN where anything is."""
    shares = [
        (ours.float() - theirs.float()).norm() / theirs.float().norm()
        for ours, theirs in zip(found, expected, strict=True)
    ]
    return float(torch.stack(shares).max())
