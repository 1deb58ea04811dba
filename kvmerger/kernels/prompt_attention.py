"""Causal attention of a prompt on itself, by the kernel that torch chooses, and its log-sum-exp where that kernel tells.

The result never depends on who asks for what: the log-sum-exp is taken along whether anybody needs it or not. New tokens
behind a prompt attend to it and to themselves by `attention_after`.

Shapes: B = 1, N = T tokens, Q query heads, H KV heads, D head size; in `attention_after` N tokens come before the T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

# cuDNN is the fastest at long prompts, but plans anew for every length it has not seen (0.8 s for heads of 128 on an H100,
# `python -m bench.kernels`), and no two prompts are equally long: it is given whole multiples of so many tokens, and no
# prompt too short to gain by it.
PLAN_TOKENS = 1024
LEAST_CUDNN_TOKENS = 8 * PLAN_TOKENS
# A mask, and the scores that a backend without a fused kernel makes of it, for so many pairs of a query and a key at a time.
_MOST_MASKED_PAIRS = 2**24
FLASH_HEAD_DIM_STEP = 8  # `scaled_dot_product_attention` pads other head sizes; the operator below does not


class PromptAttention(NamedTuple):
    """Attention output (B, T, Q, D), and the natural log-sum-exp of each query's scaled scores: fp32 (Q, N), or None."""

    out_BTQD: Tensor
    lse_QN: Tensor | None


def causal_attention(q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float) -> PromptAttention:
    """Causal attention, never through an n × n matrix."""
    if q_BQTD.is_cuda and q_BQTD.dtype == torch.float32:
        # On CUDA only kernels without fp32 take grouped heads: the fallback would be n × n.
        num_groups = q_BQTD.shape[1] // k_BHTD.shape[1]
        k_BHTD, v_BHTD = (tensor.repeat_interleave(num_groups, dim=1) for tensor in (k_BHTD, v_BHTD))
    kernel = _kernel_with_lse(q_BQTD, k_BHTD, v_BHTD, scaling)
    if kernel is None:
        is_grouped = q_BQTD.shape[1] > k_BHTD.shape[1]
        out_BQTD = F.scaled_dot_product_attention(
            q_BQTD, k_BHTD, v_BHTD, is_causal=True, scale=scaling, enable_gqa=is_grouped
        )
        return PromptAttention(out_BQTD.transpose(1, 2).contiguous(), None)
    out_BQTD, lse_BQX = kernel(q_BQTD, k_BHTD, v_BHTD, scaling)
    # One kernel rounds the number of queries up.
    lse_QN = lse_BQX[0].reshape(q_BQTD.shape[1], -1)[:, : q_BQTD.shape[2]]
    return PromptAttention(out_BQTD.transpose(1, 2).contiguous(), lse_QN)


def attention_after(
    before_k_BHND: Tensor,
    before_v_BHND: Tensor,
    q_BQTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    scaling: float,
) -> Tensor:
    """Attention (B, T, Q, D) of new tokens: each sees all N tokens before them, and those of its own up to itself."""
    k_BHXD, v_BHXD = torch.cat([before_k_BHND, k_BHTD], dim=2), torch.cat([before_v_BHND, v_BHTD], dim=2)
    (num_queries, num_new), num_keys = q_BQTD.shape[1:3], k_BHXD.shape[2]
    is_grouped = num_queries > k_BHXD.shape[1]
    if q_BQTD.is_cuda and q_BQTD.dtype != torch.float32:
        # Flash attention aligns its causal mask with the last key, which is what is wanted, and makes no mask.
        out_BQTD = F.scaled_dot_product_attention(
            q_BQTD,
            k_BHXD,
            v_BHXD,
            causal_lower_right(num_new, num_keys),
            scale=scaling,
            enable_gqa=is_grouped,
        )
        return out_BQTD.transpose(1, 2).contiguous()
    if q_BQTD.is_cuda:
        # As in `causal_attention`.
        groups = num_queries // k_BHXD.shape[1]
        k_BHXD, v_BHXD = (tensor.repeat_interleave(groups, dim=1) for tensor in (k_BHXD, v_BHXD))
        is_grouped = False
    place_X = torch.arange(num_keys, device=q_BQTD.device)
    parts = []
    most_rows = max(1, _MOST_MASKED_PAIRS // (num_queries * num_keys))
    for start in range(0, num_new, most_rows):
        rows = slice(start, min(start + most_rows, num_new))
        # Keys behind a block's last token are seen by none of its tokens.
        num_seen = num_keys - num_new + rows.stop
        is_seen_TX = place_X[None, :num_seen] <= place_X[num_keys - num_new :][rows, None]
        parts.append(
            F.scaled_dot_product_attention(
                q_BQTD[:, :, rows],
                k_BHXD[:, :, :num_seen],
                v_BHXD[:, :, :num_seen],
                is_seen_TX,
                scale=scaling,
                enable_gqa=is_grouped,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


_Kernel = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _kernel_with_lse(q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float) -> _Kernel | None:
    """The kernel that `scaled_dot_product_attention` would choose, if it is one that tells its log-sum-exp."""
    if not q_BQTD.is_cuda or q_BQTD.shape[3] % FLASH_HEAD_DIM_STEP:
        return None
    choice = _choice(q_BQTD, k_BHTD, v_BHTD, scaling)
    if choice == SDPBackend.CUDNN_ATTENTION and q_BQTD.shape[2] < LEAST_CUDNN_TOKENS:
        with sdpa_kernel(_WITHOUT_PLANS):
            choice = _choice(q_BQTD, k_BHTD, v_BHTD, scaling)
    return _KERNELS.get(choice)


def _choice(q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float) -> SDPBackend:
    is_grouped = q_BQTD.shape[1] > k_BHTD.shape[1]
    # Private to torch, and what `scaled_dot_product_attention` itself goes by.
    number = torch._fused_sdp_choice(
        q_BQTD, k_BHTD, v_BHTD, is_causal=True, scale=scaling, enable_gqa=is_grouped
    )
    return SDPBackend(number)


def _flash(q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    # Dropout, causal, debug mask.
    out_BQTD, lse_BQT, *_ = attend(q_BQTD, k_BHTD, v_BHTD, 0.0, True, False, scale=scaling)
    return out_BQTD, lse_BQT


def _cudnn(q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_cudnn_attention
    num_tokens = q_BQTD.shape[2]
    if num_padding := -num_tokens % PLAN_TOKENS:
        # No token sees what comes after it, so padding at the end changes nothing before it. A prompt that needs none is not
        # copied: cuDNN sees it in the layout it comes in, and has a plan of its own for that.
        q_BQTD, k_BHTD, v_BHTD = (
            F.pad(tensor, (0, 0, 0, num_padding)) for tensor in (q_BQTD, k_BHTD, v_BHTD)
        )
    # Bias, log-sum-exp, dropout, causal, debug mask.
    out_BQTD, lse_BQT1, *_ = attend(q_BQTD, k_BHTD, v_BHTD, None, True, 0.0, True, False, scale=scaling)
    return out_BQTD[:, :, :num_tokens], lse_BQT1.flatten(2)[:, :, :num_tokens]


def _efficient(q_BQTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    attend = torch.ops.aten._scaled_dot_product_efficient_attention
    # Bias, log-sum-exp, dropout, causal.
    out_BQTD, lse_BQX, *_ = attend(q_BQTD, k_BHTD, v_BHTD, None, True, 0.0, True, scale=scaling)
    return out_BQTD, lse_BQX


_KERNELS: dict[SDPBackend, _Kernel] = {
    SDPBackend.FLASH_ATTENTION: _flash,
    SDPBackend.CUDNN_ATTENTION: _cudnn,
    SDPBackend.EFFICIENT_ATTENTION: _efficient,
}
_WITHOUT_PLANS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
