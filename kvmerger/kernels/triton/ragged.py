"""Ragged attention on a GPU: `reference.ragged` with the same arguments and the same results, up to rounding.

A whole layer of a batch is one launch, or two where few queries face many slots and the slots are split. As in the
reference, a row's bits depend on its own numbers and on the batch's shape, never on its neighbours.

Shapes: as in `reference.ragged` and `programs.ragged`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.cache.row_table import DeviceRows, PrefixTable, lengths_on_device
from kvmerger.kernels.programs.ragged import attend_kernel, combine_kernel, mass_kernel
from kvmerger.kernels.reference.ragged import RaggedAttention, SlotMass

PARTS_AT_ONCE = 16
FEWEST_DOT_ROWS = 16
# Three stages of keys and values of 128 numbers, with 64 queries 113 KiB, and some room.
AHEAD_SHARED_BYTES = 128 * 1024
MOST_AHEAD_DIM = 128


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a call's work is cut. The last bits of results depend on it, but for Triton's two knobs, so a dtype has one.

    Attributes:
        queries: most queries of a block; a block has at least `FEWEST_DOT_ROWS`.
        slots: slots of a block.
        split_slots: least slots of one part, where a row's slots are split: enough parts to fill a GPU at 1k slots a row.
        most_parts: of a head's prefix. Longer ones have larger parts, or putting them together would cost as much again.
        most_split_queries: with more queries of a KV head their blocks fill the GPU, and partial outputs would grow.
        num_warps, num_stages: Triton's two knobs.
    """

    queries: int
    slots: int
    split_slots: int = 256
    most_parts: int = 16
    most_split_queries: int = 64
    num_warps: int = 4
    num_stages: int = 2


HALF = Tiling(queries=64, slots=64)
# 1.13 times as fast on an H200, for half as much shared memory again.
HALF_AHEAD = replace(HALF, num_stages=3)
# fp32 dots are unrolled, and compile for minutes when large.
FULL = Tiling(queries=16, slots=32)


class _Shape(NamedTuple):
    """What every kernel of a call is told: sizes by the names of the kernels' parameters."""

    sizes: dict[str, int]
    strides: dict[str, int]
    blocks: dict[str, Any]
    tiling: Tiling


def ragged_attention(
    q_RQTD: Tensor,
    layer: RaggedLayer,
    scaling: float,
    mass_rows: Collection[int] = (),
    tiling: Tiling | None = None,
) -> RaggedAttention:
    """Attention of each row's new tokens over its whole prefix and, causally, its tail; see `reference.ragged`.

    Args:
        q_RQTD: of the prefixes' dtype, on their device; a head's size times the dtype's must be a multiple of 16 bytes.
        tiling: for measuring; by dtype when None.
    """
    # Views are taken as they are, but for a head whose numbers do not lie side by side.
    q_RQTD = q_RQTD if q_RQTD.stride(3) == 1 else q_RQTD.contiguous()
    rows = layer.device_rows or _rows_of(layer, q_RQTD.device)
    shape = _shape_of(q_RQTD, layer, tiling or tiling_for(q_RQTD))
    num_queries = shape.sizes["num_tokens"] * shape.sizes["num_groups"]
    is_split = q_RQTD.shape[2] == 1 or num_queries <= shape.tiling.most_split_queries
    attend = _attend_in_parts if is_split else _attend_at_once
    out_RTQD, lse_RHX = attend(q_RQTD, layer, rows, scaling, shape)
    asking = [row for row in sorted(mass_rows) if layer.prefix_R[row] is not None and layer.num_new_R[row]]
    mass_by_row = _slot_mass(q_RQTD, layer, rows, scaling, shape, lse_RHX, asking) if asking else {}
    return RaggedAttention(out_RTQD, mass_by_row)


def _attend_at_once(
    q_RQTD: Tensor, layer: RaggedLayer, rows: DeviceRows, scaling: float, shape: _Shape
) -> tuple[Tensor, Tensor]:
    out_RTQD, lse_RHX = _empty_outputs(q_RQTD, layer)
    _launch_attend(q_RQTD, layer, rows, (out_RTQD, lse_RHX), scaling, shape, num_parts=1, is_split=False)
    return out_RTQD, lse_RHX


def _attend_in_parts(
    q_RQTD: Tensor, layer: RaggedLayer, rows: DeviceRows, scaling: float, shape: _Shape
) -> tuple[Tensor, Tensor]:
    out_RTQD, lse_RHX = _empty_outputs(q_RQTD, layer)
    num_rows, num_heads, num_queries = lse_RHX.shape
    # Lengths on the host, maybe bounds: as many parts as any row may have. A program beyond its own row's ends at once.
    longest_tail = max(map(sum, zip(layer.tail_start_R, layer.num_new_R, strict=True)))
    split_slots, most_parts = shape.tiling.split_slots, shape.tiling.most_parts
    most_prefix_parts = min(triton.cdiv(rows.most_slots, split_slots), most_parts)
    num_parts = max(1, most_prefix_parts + triton.cdiv(longest_tail, split_slots))
    part_lse_RHPX = lse_RHX.new_empty(num_rows, num_heads, num_parts, num_queries)
    part_out_RHPXD = lse_RHX.new_empty(*part_lse_RHPX.shape, q_RQTD.shape[3])
    parts = (part_out_RHPXD, part_lse_RHPX)
    _launch_attend(q_RQTD, layer, rows, parts, scaling, shape, num_parts=num_parts, is_split=True)
    combine_kernel[(num_queries, num_rows * num_heads)](
        *parts,
        rows.prefix_RH5,
        rows.tail_start_R,
        rows.num_new_R,
        out_RTQD,
        lse_RHX,
        **shape.sizes,
        num_parts=num_parts,
        HEAD_DIM=shape.blocks["HEAD_DIM"],
        BLOCK_D=shape.blocks["BLOCK_D"],
        BLOCK_P=PARTS_AT_ONCE,
        SPLIT_SLOTS=split_slots,
        MOST_PARTS=most_parts,
        num_warps=2,
    )
    return out_RTQD, lse_RHX


def _launch_attend(
    q_RQTD: Tensor,
    layer: RaggedLayer,
    rows: DeviceRows,
    outputs: tuple[Tensor, Tensor],
    scaling: float,
    shape: _Shape,
    *,
    num_parts: int,
    is_split: bool,
) -> None:
    num_rows, num_heads, num_queries = len(layer.prefix_R), layer.tail_k_RHCD.shape[1], outputs[1].shape[-1]
    grid = (num_parts, num_rows * num_heads, triton.cdiv(num_queries, shape.blocks["BLOCK_X"]))
    attend_kernel[grid](
        q_RQTD,
        rows.prefix_RH5,
        layer.tail_k_RHCD,
        layer.tail_v_RHCD,
        rows.tail_start_R,
        rows.num_new_R,
        *outputs,
        scaling,
        **shape.sizes,
        num_parts=num_parts,
        **shape.strides,
        **shape.blocks,
        SPLIT_SLOTS=shape.tiling.split_slots,
        MOST_PARTS=shape.tiling.most_parts,
        IS_SPLIT=is_split,
        num_warps=shape.tiling.num_warps,
        num_stages=shape.tiling.num_stages,
    )


def _slot_mass(
    q_RQTD: Tensor,
    layer: RaggedLayer,
    rows: DeviceRows,
    scaling: float,
    shape: _Shape,
    lse_RHX: Tensor,
    asking: list[int],
) -> dict[int, SlotMass]:
    num_heads, block_slots = layer.tail_k_RHCD.shape[1], shape.blocks["BLOCK_S"]
    num_slots = {row: prefix.num_slots for row in asking if (prefix := layer.prefix_R[row]) is not None}
    num_tail = {row: layer.tail_start_R[row] + layer.num_new_R[row] for row in asking}
    prefix_mass_MW = lse_RHX.new_empty(len(asking), max(num_slots.values()))
    tail_mass_MHY = lse_RHX.new_empty(len(asking), num_heads, max(num_tail.values()))
    num_prefix_blocks = triton.cdiv(rows.most_slots, block_slots)
    grid = (num_prefix_blocks + triton.cdiv(tail_mass_MHY.shape[2], block_slots), len(asking) * num_heads)
    mass_kernel[grid](
        q_RQTD,
        rows.prefix_RH5,
        layer.tail_k_RHCD,
        rows.tail_start_R,
        rows.num_new_R,
        lse_RHX,
        _on_device(tuple(asking), q_RQTD.device),
        prefix_mass_MW,
        tail_mass_MHY,
        scaling,
        **shape.sizes,
        prefix_width=prefix_mass_MW.shape[1],
        tail_width=tail_mass_MHY.shape[2],
        num_prefix_blocks=num_prefix_blocks,
        **shape.strides,
        **shape.blocks,
        num_warps=shape.tiling.num_warps,
        num_stages=shape.tiling.num_stages,
    )
    return {
        row: SlotMass(prefix_mass_MW[index, : num_slots[row]], tail_mass_MHY[index, :, : num_tail[row]])
        for index, row in enumerate(asking)
    }


@functools.lru_cache(maxsize=64)
def _on_device(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Row numbers, int32."""
    # Cached, and so uploaded before: a CUDA graph that is being captured may upload nothing.
    with torch.inference_mode(False):  # whoever asks first, the tensor is one that everybody may use
        return torch.tensor(rows, dtype=torch.int32, device=device)


def _rows_of(layer: RaggedLayer, device: torch.device) -> DeviceRows:
    """A layer's rows on the device, for a layer that no `RaggedCache` has made."""
    prefixes = [None if prefix is None else (prefix,) for prefix in layer.prefix_R]
    return PrefixTable(prefixes, device).layer(
        0, lengths_on_device(layer.tail_start_R, layer.num_new_R, device)
    )


def tiling_for(q_RQTD: Tensor) -> Tiling:
    """The tiling that is used for queries like these."""
    if q_RQTD.element_size() == torch.float32.itemsize:
        return FULL
    is_ahead = q_RQTD.shape[3] <= MOST_AHEAD_DIM and _shared_bytes(q_RQTD.device) >= AHEAD_SHARED_BYTES
    return HALF_AHEAD if is_ahead else HALF


@functools.cache
def _shared_bytes(device: torch.device) -> int:
    """Shared memory that a program may ask of ``device``; 0 where there is none, as under Triton's interpreter."""
    if device.type != "cuda":
        return 0
    return int(triton.runtime.driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def _shape_of(q_RQTD: Tensor, layer: RaggedLayer, tiling: Tiling) -> _Shape:
    num_heads, head_dim = layer.tail_k_RHCD.shape[1], q_RQTD.shape[3]
    assert layer.tail_k_RHCD.stride() == layer.tail_v_RHCD.stride()
    assert layer.tail_k_RHCD.stride()[2:] == (head_dim, 1), "a tail's tokens lie one after the other"
    num_groups, num_tokens = q_RQTD.shape[1] // num_heads, q_RQTD.shape[2]
    # By shapes alone: the last bits depend on the blocks, and must not on what other rows hold.
    num_queries = triton.next_power_of_2(num_groups * num_tokens)
    blocks = {
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(FEWEST_DOT_ROWS, triton.next_power_of_2(head_dim)),
        "BLOCK_X": min(max(num_queries, FEWEST_DOT_ROWS), tiling.queries),
        "BLOCK_S": tiling.slots,
    }
    strides = dict(zip(("q_stride_R", "q_stride_Q", "q_stride_T"), q_RQTD.stride(), strict=False))
    strides |= dict(zip(("tail_stride_R", "tail_stride_H"), layer.tail_k_RHCD.stride(), strict=False))
    sizes = {"num_heads": num_heads, "num_groups": num_groups, "num_tokens": num_tokens}
    return _Shape(sizes, strides, blocks, tiling)


def _empty_outputs(q_RQTD: Tensor, layer: RaggedLayer) -> tuple[Tensor, Tensor]:
    """Unwritten output (R, T, Q, D) and log-sum-exp (R, H, X), fp32."""
    num_rows, num_query_heads, num_tokens, head_dim = q_RQTD.shape
    num_heads = layer.tail_k_RHCD.shape[1]
    num_queries = num_tokens * num_query_heads // num_heads
    return (
        q_RQTD.new_empty(num_rows, num_tokens, num_query_heads, head_dim),
        q_RQTD.new_empty(num_rows, num_heads, num_queries, dtype=torch.float32),
    )
