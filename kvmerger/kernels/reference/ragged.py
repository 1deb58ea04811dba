"""Ragged attention, and how new tokens get into tails, in plain torch: the definition that faster kernels are tested against.

A row's result depends on that row's own queries, prefix and tail only: rows are computed one by one, in shapes that no
neighbour influences. Scores, softmax and sums are fp32. A prefix that is stored in a form is decoded to fp32 and read.

Shapes: R rows, T new tokens, Q query heads, H KV heads, G = Q/H, D head size, S slots, C tail tokens visible,
A attended heads (all of a row at once when their prefixes are equally long, otherwise one), X = G·T queries of a head.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.ragged_layer import RaggedLayer


class SlotMass(NamedTuple):
    """Attention that a row's new queries paid, summed over them and averaged over a group's query heads; fp32.

    prefix_S: per prefix slot, in the prefix's flat order. tail_HC: per tail token, the new ones included.
    """

    prefix_S: Tensor
    tail_HC: Tensor


class RaggedAttention(NamedTuple):
    """Attention output (R, T, Q, D), zero where a row has no new token; masses of the rows that asked."""

    out_RTQD: Tensor
    mass_by_row: dict[int, SlotMass]


def ragged_attention(
    q_RQTD: Tensor, layer: RaggedLayer, scaling: float, mass_rows: Collection[int] = ()
) -> RaggedAttention:
    """Attention of each row's new tokens over its whole prefix and, causally, its tail.

    Args:
        q_RQTD: queries after RoPE; row r's first ``layer.num_new_R[r]`` tokens count.
        layer: the rows' prefixes and tails; not changed.
        scaling: multiplies q·k. A slot's ``log_mass_S`` is then added.
        mass_rows: rows to return `SlotMass` for.
    """
    num_rows, num_query_heads, num_tokens, head_dim = q_RQTD.shape
    out_RTQD = q_RQTD.new_zeros(num_rows, num_tokens, num_query_heads, head_dim)
    mass_by_row: dict[int, SlotMass] = {}
    for row, (prefix, num_new) in enumerate(zip(layer.prefix_R, layer.num_new_R, strict=True)):
        if prefix is None or not num_new:
            continue
        readable = prefix.plain(torch.float32)
        out_QTD, probs = _attend_row(q_RQTD[row, :, :num_new], readable, layer, row, scaling)
        out_RTQD[row, :num_new] = out_QTD.transpose(0, 1)
        # An idle row has no entry at all: whoever asked must allow for that.
        if row in mass_rows:
            mass_by_row[row] = _slot_mass(probs, num_query_heads // prefix.num_heads)
    return RaggedAttention(out_RTQD, mass_by_row)


class _Probs(NamedTuple):
    """Attention probabilities of some heads, over prefix slots (A, X, S) and over the tail (A, X, C)."""

    prefix_AXS: Tensor
    tail_AXC: Tensor


def _attend_row(
    q_QTD: Tensor, prefix: LayerCache, layer: RaggedLayer, row: int, scaling: float
) -> tuple[Tensor, list[_Probs]]:
    # This row's own lengths, never the batch's: matrices of another shape would round differently.
    num_new, num_tail = q_QTD.shape[1], layer.tail_start_R[row] + q_QTD.shape[1]
    tail_k_HCD = layer.tail_k_RHCD[row, :, :num_tail].float()
    tail_v_HCD = layer.tail_v_RHCD[row, :, :num_tail].float()
    q_HXD = q_QTD.float().reshape(prefix.num_heads, -1, q_QTD.shape[2]) * scaling
    is_future_XC = _is_future(q_HXD.shape[1] // num_new, num_new, layer.tail_start_R[row], q_QTD.device)
    outs, all_probs = [], []
    for heads, slots, num_slots in _head_groups(prefix):
        dense = (heads.stop - heads.start, num_slots, q_QTD.shape[2])
        k_ASD, v_ASD = prefix.k_SD[slots].float().view(dense), prefix.v_SD[slots].float().view(dense)
        scores_AXS = q_HXD[heads] @ k_ASD.transpose(1, 2)
        if prefix.log_mass_S is not None:
            scores_AXS = scores_AXS + prefix.log_mass_S[slots].view(dense[0], 1, num_slots)
        scores_AXC = (q_HXD[heads] @ tail_k_HCD[heads].transpose(1, 2)).masked_fill_(
            is_future_XC, float("-inf")
        )
        # One softmax over both, as if they were one cache.
        softmax = torch.cat([scores_AXS, scores_AXC], dim=2).softmax(dim=2)
        probs = _Probs(*softmax.split([num_slots, num_tail], dim=2))
        outs.append(probs.prefix_AXS @ v_ASD + probs.tail_AXC @ tail_v_HCD[heads])
        all_probs.append(probs)
    return torch.cat(outs).view(-1, num_new, q_QTD.shape[2]).to(q_QTD.dtype), all_probs


def _slot_mass(all_probs: list[_Probs], num_groups: int) -> SlotMass:
    prefix_S = torch.cat([probs.prefix_AXS.sum(dim=1).flatten() for probs in all_probs])
    tail_HC = torch.cat([probs.tail_AXC.sum(dim=1) for probs in all_probs])
    return SlotMass(prefix_S / num_groups, tail_HC / num_groups)


def _head_groups(prefix: LayerCache) -> list[tuple[slice, slice, int]]:
    """(heads, their flat slots, slots of each): one group when all heads are equally long, else one per head."""
    if prefix.is_uniform:
        return [(slice(0, prefix.num_heads), slice(0, prefix.num_slots), prefix.num_slots_H[0])]
    starts = prefix.head_starts
    return [
        (slice(head, head + 1), slice(starts[head], starts[head] + length), length)
        for head, length in enumerate(prefix.num_slots_H)
    ]


def _is_future(num_groups: int, num_new: int, tail_start: int, device: torch.device) -> Tensor:
    """Which tail tokens each query must not see: bool (X, C)."""
    query_X = torch.arange(num_new, device=device).repeat(num_groups) + tail_start
    return torch.arange(tail_start + num_new, device=device)[None, :] > query_X[:, None]


def write_tails(
    tails: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    row_N: Tensor,
    token_N: Tensor | int,
    place_N: Tensor,
) -> None:
    """Write new keys and values (R, H, T, D) into tails (R, H, C, D): of row ``row_N`` token ``token_N`` at ``place_N``."""
    for tail_RHCD, new_RHTD in zip(tails, new, strict=True):
        tail_RHCD.transpose(1, 2)[row_N, place_N] = new_RHTD.transpose(1, 2)[row_N, token_N]
