"""What a decoder layer does token by token, in plain torch: the definition that faster kernels are tested against.

Every rounding is where transformers has it, so that the numbers differ by the order of sums alone.

Shapes: X tokens of all rows, E hidden size, F = (Q + 2H)·D, the products of one token: queries, keys, values; Q query heads,
H KV heads, D head size, I size inside the MLP, J = 2I, gates before ups.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class HeadNorms(NamedTuple):
    """RMS norms of every query's and every key's head (Qwen3): weights (D,), and what is added to a mean square."""

    q_weight_D: Tensor
    k_weight_D: Tensor
    eps: float


class LayerKernels(Protocol):
    """What `FastDecoder` wants of a module of kernels; this module is one, `kernels.triton.layer` another."""

    def rms_norm(
        self,
        x_XE: Tensor,
        weight_E: Tensor,
        eps: float,
        added_XE: Tensor | None = None,
        out_XE: Tensor | None = None,
    ) -> Tensor:
        """The norm of every token, in ``out_XE`` if given; with ``added_XE`` that is added to ``x_XE``, in place, first."""

    def rotate(
        self,
        qkv_XF: Tensor,
        cos_XD: Tensor,
        sin_XD: Tensor,
        num_query_heads: int,
        num_heads: int,
        head_norms: HeadNorms | None,
    ) -> None:
        """RoPE (by halves) of queries and keys, in place, after their norms if there are any; values stay."""

    def gated(self, gate_up_XJ: Tensor) -> Tensor:
        """SiLU of each token's gates times its ups (X, I)."""


def rms_norm(
    x_XE: Tensor,
    weight_E: Tensor,
    eps: float,
    added_XE: Tensor | None = None,
    out_XE: Tensor | None = None,
) -> Tensor:
    """See `LayerKernels`."""
    if added_XE is not None:
        # In place: this is the residual stream, which the caller goes on with.
        x_XE += added_XE
    normed_XE = _normed(x_XE, weight_E, eps)
    return normed_XE if out_XE is None else out_XE.copy_(normed_XE)


def rotate(
    qkv_XF: Tensor,
    cos_XD: Tensor,
    sin_XD: Tensor,
    num_query_heads: int,
    num_heads: int,
    head_norms: HeadNorms | None,
) -> None:
    """See `LayerKernels`."""
    heads_XHD = qkv_XF.unflatten(1, (-1, cos_XD.shape[1]))
    q_XQD, k_XHD = heads_XHD[:, : num_query_heads + num_heads].split([num_query_heads, num_heads], dim=1)
    for x_XHD, is_query in ((q_XQD, True), (k_XHD, False)):
        turned_XHD = x_XHD
        if head_norms is not None:
            weight_D = head_norms.q_weight_D if is_query else head_norms.k_weight_D
            turned_XHD = _normed(x_XHD, weight_D, head_norms.eps)
        first, second = turned_XHD.chunk(2, dim=2)
        quarter_turn_XHD = torch.cat([-second, first], dim=2)
        # Each product is rounded to the dtype before they are added.
        x_XHD.copy_(turned_XHD * cos_XD[:, None] + quarter_turn_XHD * sin_XD[:, None])


def gated(gate_up_XJ: Tensor) -> Tensor:
    """See `LayerKernels`."""
    gate_XI, up_XI = gate_up_XJ.chunk(2, dim=1)
    # SiLU is rounded before it is multiplied.
    return F.silu(gate_XI) * up_XI


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + eps)
    # The norm is rounded before its weight is multiplied in.
    return weight * normed.to(x.dtype)
