"""A Llama-like decoder in a dozen kernels a layer, where transformers takes about forty: the same numbers in less time.

It rounds where transformers rounds (`kernels.reference.layer`), so that results differ by the order of sums alone. Attention
is answered by a handler, as in `models.attention`. A token's numbers depend on the number of tokens and rows of its own
call, never on who watches, nor on whether the last layer's output is wanted.

Shapes: B rows, T tokens, X = B·T, E hidden size, F the products of one token (queries, keys, values), P = Q·D, Q query heads,
H KV heads, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvmerger.kernels.reference.layer import HeadNorms, LayerKernels
from kvmerger.models.attention import AttentionHandler, InputWatch

# What stands between one layer's attention and the next one's products is computed for so many tokens at a time: of 131,072
# tokens of an 8B model the MLP alone would hold 11 GB.
MOST_TOKENS_AT_ONCE = 2**15


class Norm(NamedTuple):
    """An RMS norm: its weight (E,), and what is added to the mean square."""

    weight_E: Tensor
    eps: float


class Product(NamedTuple):
    """A linear layer, or several of the same input as one."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply, and add the bias if there is one."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class FastLayer:
    """One layer's weights, those of the same input joined. attention: the module they come from, for those who watch."""

    attention: nn.Module
    scaling: float
    input_norm: Norm
    qkv: Product
    head_norms: HeadNorms | None
    attention_out: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product


@dataclass(frozen=True, slots=True, eq=False)
class FastDecoder:
    """All layers between the embedding and the last norm. Read-only: forward passes never change it."""

    embed_tokens: nn.Module
    rotary: nn.Module
    layers: tuple[FastLayer, ...]
    last_norm: Norm
    num_query_heads: int
    num_heads: int
    kernels: LayerKernels

    def hidden_states(self, ids_BT: Tensor, position_ids_BT: Tensor, handler: AttentionHandler) -> Tensor:
        """Last hidden states (B, T, E); every layer's attention is answered by ``handler``."""
        residual_XE, attended_XP = self._up_to_last_attention(ids_BT, position_ids_BT, handler, None)
        hidden_XE = self._behind_attention(self.layers[-1], self.last_norm, residual_XE, attended_XP)
        return hidden_XE.view(*ids_BT.shape, -1)

    def visit_layers(
        self, ids_BT: Tensor, position_ids_BT: Tensor, handler: AttentionHandler, watch: InputWatch | None
    ) -> None:
        """Compute what ``handler`` and ``watch`` get to see, and nothing behind the last layer's attention."""
        self._up_to_last_attention(ids_BT, position_ids_BT, handler, watch)

    def _up_to_last_attention(
        self, ids_BT: Tensor, position_ids_BT: Tensor, handler: AttentionHandler, watch: InputWatch | None
    ) -> tuple[Tensor, Tensor]:
        """What the last layer adds to (X, E), and its heads' outputs (X, P)."""
        residual_XE = self.embed_tokens(ids_BT).flatten(0, 1)
        # Positions may come as one row for all; the kernels want cos and sin of every token.
        cos_BTD, sin_BTD = self.rotary(residual_XE, position_ids_BT.expand_as(ids_BT))
        turn = (cos_BTD.flatten(0, 1), sin_BTD.flatten(0, 1))
        input_XE = self.kernels.rms_norm(residual_XE, *self.layers[0].input_norm)
        for index, layer in enumerate(self.layers):
            if watch is not None:
                input_BTE, residual_BTE = (it.view(*ids_BT.shape, -1) for it in (input_XE, residual_XE))
                watch(input_BTE, layer.attention, residual_BTE)
            attended_XP = self._attend(index, input_XE, turn, ids_BT.shape, handler)
            # The last layer's MLP is the caller's to ask for: a prefill wants keys and values only.
            if index + 1 < len(self.layers):
                next_norm = self.layers[index + 1].input_norm
                input_XE = self._behind_attention(layer, next_norm, residual_XE, attended_XP)
        return residual_XE, attended_XP

    def _attend(
        self,
        index: int,
        input_XE: Tensor,
        turn: tuple[Tensor, Tensor],
        shape_BT: torch.Size,
        handler: AttentionHandler,
    ) -> Tensor:
        layer, num_heads = self.layers[index], (self.num_query_heads, self.num_heads)
        qkv_XF = layer.qkv(input_XE)
        self.kernels.rotate(qkv_XF, *turn, *num_heads, layer.head_norms)
        heads_BTHD = qkv_XF.view(*shape_BT, -1, turn[0].shape[1])
        # Views: kernels read heads of any strides, and who keeps keys and values copies them anyway.
        q_BQTD, k_BHTD, v_BHTD = heads_BTHD.transpose(1, 2).split((*num_heads, self.num_heads), dim=1)
        return handler.attend(index, q_BQTD, k_BHTD, v_BHTD, layer.scaling).reshape(input_XE.shape[0], -1)

    def _behind_attention(
        self, layer: FastLayer, next_norm: Norm, residual_XE: Tensor, attended_XP: Tensor
    ) -> Tensor:
        """Add a layer's attention and MLP to ``residual_XE``, in place; its ``next_norm`` is returned: (X, E)."""
        next_XE = torch.empty_like(residual_XE)
        for first in range(0, residual_XE.shape[0], MOST_TOKENS_AT_ONCE):
            # Slices of rows are views: the residual stream and the next norm's output are written in place.
            some = slice(first, first + MOST_TOKENS_AT_ONCE)
            some_XE = residual_XE[some]
            normed_XE = self.kernels.rms_norm(
                some_XE, *layer.mlp_norm, added_XE=layer.attention_out(attended_XP[some])
            )
            added_XE = layer.down(self.kernels.gated(layer.gate_up(normed_XE)))
            self.kernels.rms_norm(some_XE, *next_norm, added_XE=added_XE, out_XE=next_XE[some])
        return next_XE
