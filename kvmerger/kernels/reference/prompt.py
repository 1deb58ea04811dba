"""What a prompt's tokens receive of its own causal attention, in plain torch: the definition that faster kernels are tested
against. Blockwise, so that no n × n matrix ever exists; scores, softmax and sums are fp32.

Shapes: N tokens, Q query heads, H KV heads, D head size, B a block of queries, R = B × Q/H rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Bounds the fp32 scores alive at a time (64 MiB).
_MAX_BLOCK_SCORES = 2**24


def attention_mass(q_QND: Tensor, k_HND: Tensor, scaling: float) -> Tensor:
    """Column sums of causal attention, averaged over the query heads of a group: fp32 (H, N)."""
    num_heads, num_tokens = k_HND.shape[:2]
    mass_HN = torch.zeros(num_heads, num_tokens, dtype=torch.float32, device=k_HND.device)
    k_HND = k_HND.float()  # once, not for every block
    block_tokens = max(1, _MAX_BLOCK_SCORES // max(1, q_QND.shape[0] * num_tokens))
    for start in range(0, num_tokens, block_tokens):
        end = min(start + block_tokens, num_tokens)
        probs_QBN = causal_probs(q_QND, k_HND, scaling, start, end)
        mass_HN[:, :end] += probs_QBN.view(num_heads, -1, end - start, end).sum(dim=2).mean(dim=1)
    return mass_HN


def near_mass(q_QND: Tensor, k_HND: Tensor, scaling: float, window_tokens: int) -> Tensor:
    """As `attention_mass`, of queries that have a key among the last ``window_tokens``, their own with them: fp32 (H, N)."""
    num_heads, num_tokens = k_HND.shape[:2]
    near_HN = torch.zeros(num_heads, num_tokens, dtype=torch.float32, device=k_HND.device)
    k_HND = k_HND.float()  # once, not for every block
    block_tokens = max(1, _MAX_BLOCK_SCORES // max(1, q_QND.shape[0] * num_tokens))
    for start in range(0, num_tokens, block_tokens):
        end = min(start + block_tokens, num_tokens)
        probs_QBN = causal_probs(q_QND, k_HND, scaling, start, end)
        column_N = torch.arange(end, device=k_HND.device)
        is_far_BN = column_N[None, :] <= column_N[start:end, None] - window_tokens
        probs_QBN.masked_fill_(is_far_BN, 0)
        near_HN[:, :end] += probs_QBN.view(num_heads, -1, end - start, end).sum(dim=2).mean(dim=1)
    return near_HN


def window_attention(q_QND: Tensor, k_HND: Tensor, scaling: float, window_tokens: int) -> Tensor:
    """Mean attention paid by the last ``window_tokens`` tokens, each causal within the window: fp32 (Q, N)."""
    num_tokens = k_HND.shape[1]
    return causal_probs(q_QND, k_HND, scaling, max(0, num_tokens - window_tokens), num_tokens).mean(dim=1)


def row_entropy(q_QND: Tensor, k_HND: Tensor, scaling: float) -> Tensor:
    """Entropy of each query's causal attention in nats, from 0 to ln N, averaged over the queries: fp32 (Q,)."""
    num_query_heads, num_tokens = q_QND.shape[:2]
    sum_Q = torch.zeros(num_query_heads, dtype=torch.float32, device=k_HND.device)
    k_HND = k_HND.float()  # once, not for every block
    block_tokens = max(1, _MAX_BLOCK_SCORES // max(1, num_query_heads * num_tokens))
    for start in range(0, num_tokens, block_tokens):
        end = min(start + block_tokens, num_tokens)
        probs_QBN = causal_probs(q_QND, k_HND, scaling, start, end)
        sum_Q += torch.special.entr(probs_QBN).sum(dim=(1, 2))
    return sum_Q / num_tokens


def causal_probs(q_QND: Tensor, k_HND: Tensor, scaling: float, start: int, end: int) -> Tensor:
    """Attention probabilities of queries [start, end) over keys [0, end): fp32 (Q, B, end)."""
    num_heads, _, head_dim = k_HND.shape
    # The query heads of a group are stacked as rows, so that keys are never repeated.
    num_rows = q_QND.shape[0] // num_heads * (end - start)
    q_HRD = q_QND[:, start:end].float().reshape(num_heads, num_rows, head_dim) * scaling
    scores_HRN = q_HRD @ k_HND[:, :end].float().transpose(1, 2)
    scores_QBN = scores_HRN.view(q_QND.shape[0], end - start, end)
    column_N = torch.arange(end, device=q_HRD.device)
    is_future_BN = column_N[None, :] > column_N[start:end, None]
    return scores_QBN.masked_fill_(is_future_BN, float("-inf")).softmax(dim=-1)
