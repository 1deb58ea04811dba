"""Ragged attention on a GPU: `reference.ragged` with the same arguments and the same results, up to rounding.

A whole layer of a batch is one launch, or two where few queries face many slots and the slots are split. Packed prefixes take
one more for each way of coding (`triton.packed`), and are always put together with their tails. As in the reference, a row's
bits depend on its own numbers and on the batch's shape, never on its neighbours.

Shapes: as in `reference.ragged` and `programs.ragged`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from kvmerger.cache.ragged_layer import RaggedLayer
from kvmerger.cache.row_table import DeviceRows, PrefixTable, lengths_on_device, rows_on_device
from kvmerger.kernels.programs.ragged import attend_kernel, combine_kernel, mass_kernel
from kvmerger.kernels.reference.ragged import RaggedAttention, SlotMass
from kvmerger.kernels.triton.packed import Packed
from kvmerger.kernels.triton.side_streams import launch_all
from kvmerger.kernels.triton.tiling import WHOLE, PackedTiling, Tiling, packed_tiling_for, tiling_for

PARTS_AT_ONCE = 16
FEWEST_DOT_ROWS = 16


class _Shape(NamedTuple):
    """What every kernel of a call is told: sizes by the names of the kernels' parameters."""

    sizes: dict[str, int]
    strides: dict[str, int]
    blocks: dict[str, Any]
    tiling: Tiling

    @property
    def query_strides(self) -> dict[str, int]:
        """Those of ``strides`` that are the queries'."""
        return {name: stride for name, stride in self.strides.items() if name.startswith("q_")}


def ragged_attention(
    q_RQTD: Tensor,
    layer: RaggedLayer,
    scaling: float,
    mass_rows: Collection[int] = (),
    tiling: Tiling | None = None,
    packed_tiling: PackedTiling | None = None,
) -> RaggedAttention:
    """Attention of each row's new tokens over its whole prefix and, causally, its tail; see `reference.ragged`.

    Args:
        q_RQTD: of the prefixes' dtype, on their device; a head's size times the dtype's must be a multiple of 16 bytes.
        tiling, packed_tiling: for measuring; by dtype and number of queries when None.
    """
    # Views are taken as they are, but for a head whose numbers do not lie side by side.
    q_RQTD = q_RQTD if q_RQTD.stride(3) == 1 else q_RQTD.contiguous()
    rows = layer.device_rows or _rows_of(layer, q_RQTD.device)
    shape = _shape_of(q_RQTD, layer, tiling or tiling_for(q_RQTD))
    num_queries = shape.sizes["num_tokens"] * shape.sizes["num_groups"]
    is_split = q_RQTD.shape[2] == 1 or num_queries <= shape.tiling.most_split_queries
    packed_tiling = packed_tiling or packed_tiling_for(q_RQTD, num_queries)
    if not is_split:
        packed_tiling = replace(packed_tiling, split_slots=WHOLE, most_parts=1)
    call = _Call(
        q_RQTD,
        layer,
        rows,
        scaling,
        shape,
        Packed(q_RQTD, rows, scaling, shape.sizes, shape.query_strides, packed_tiling),
    )
    out_RTQD, lse_RHX = call.in_parts() if is_split else call.at_once()
    asking = [row for row in sorted(mass_rows) if layer.prefix_R[row] is not None and layer.num_new_R[row]]
    return RaggedAttention(out_RTQD, call.slot_mass(lse_RHX, asking) if asking else {})


class _Call(NamedTuple):
    """One call's arguments, and its launches."""

    q_RQTD: Tensor
    layer: RaggedLayer
    rows: DeviceRows
    scaling: float
    shape: _Shape
    packed: Packed

    @property
    def plain_rows(self) -> set[int]:
        """Rows whose prefixes are not packed."""
        packed = {row for group in self.rows.groups for row in group.rows}
        return {row for row, prefix in enumerate(self.layer.prefix_R) if prefix is not None} - packed

    def at_once(self) -> tuple[Tensor, Tensor]:
        """Output (R, T, Q, D) and log-sum-exp (R, H, X), each row's by programs that see all of its slots."""
        outputs = _empty_outputs(self.q_RQTD, self.layer)
        self._attend(outputs, num_parts=1, is_split=False)
        if self.rows.groups:
            # Partial outputs grow with the queries: here a packed row has two, its prefix's and its tail's.
            whole = replace(self.shape.tiling, split_slots=WHOLE, most_parts=1)
            call = self._replace(shape=self.shape._replace(tiling=whole))
            call._put_together(outputs, num_tail_parts=1, num_prefix_parts=1, only_packed=True)
        return outputs

    def in_parts(self) -> tuple[Tensor, Tensor]:
        """The same from parts of each row's prefix and tail."""
        outputs = _empty_outputs(self.q_RQTD, self.layer)
        # Lengths on the host, maybe bounds: as many parts as any row may have. A program beyond its own row's ends at once.
        longest_tail = max(map(sum, zip(self.layer.tail_start_R, self.layer.num_new_R, strict=True)))
        split_slots, most_parts = self.shape.tiling.split_slots, self.shape.tiling.most_parts
        num_prefix_parts = min(triton.cdiv(self.rows.most_slots, split_slots), most_parts)
        num_tail_parts = triton.cdiv(longest_tail, split_slots)
        self._put_together(outputs, num_tail_parts, num_prefix_parts, only_packed=False)
        return outputs

    def _put_together(
        self, outputs: tuple[Tensor, Tensor], num_tail_parts: int, num_prefix_parts: int, *, only_packed: bool
    ) -> None:
        out_RTQD, lse_RHX = outputs
        num_rows, num_heads, num_queries = lse_RHX.shape
        tiling, packed = self.shape.tiling, self.packed
        # Packed rows' tails come first, so that where all are packed there are no programs for anybody's prefix.
        num_plain_parts = num_tail_parts + (num_prefix_parts if self.plain_rows and not only_packed else 0)
        num_parts = max(1, num_plain_parts, num_tail_parts + packed.num_parts if self.rows.groups else 0)
        part_lse_RHPX = lse_RHX.new_empty(num_rows, num_heads, num_parts, num_queries)
        part_out_RHPXD = lse_RHX.new_empty(*part_lse_RHPX.shape, self.q_RQTD.shape[3])
        parts = (part_out_RHPXD, part_lse_RHPX)
        attend = partial(
            self._attend,
            parts,
            num_parts=num_parts,
            is_split=True,
            num_programs=max(1, num_plain_parts),
            only_packed=only_packed,
        )
        launch_all([attend, *packed.launches(parts, tiling.split_slots)], self.q_RQTD.device)
        combine_kernel[(num_queries, num_rows * num_heads)](
            *parts,
            self.rows.columns_RHJ,
            self.rows.tail_start_R,
            self.rows.num_new_R,
            out_RTQD,
            lse_RHX,
            **self.shape.sizes,
            num_parts=num_parts,
            HEAD_DIM=self.shape.blocks["HEAD_DIM"],
            BLOCK_D=self.shape.blocks["BLOCK_D"],
            BLOCK_P=PARTS_AT_ONCE,
            SPLIT_SLOTS=tiling.split_slots,
            MOST_PARTS=tiling.most_parts,
            TAIL_SLOTS=tiling.split_slots,
            PACKED_SLOTS=packed.tiling.split_slots,
            MOST_PACKED_PARTS=packed.tiling.most_parts,
            ONLY_PACKED=only_packed,
            num_warps=2,
        )

    def _attend(
        self,
        outputs: tuple[Tensor, Tensor],
        *,
        num_parts: int,
        is_split: bool,
        num_programs: int = 1,
        only_packed: bool = False,
    ) -> None:
        layer, tiling = self.layer, self.shape.tiling
        num_rows, num_heads, num_queries = (
            len(layer.prefix_R),
            layer.tail_k_RHCD.shape[1],
            outputs[1].shape[-1],
        )
        num_blocks = triton.cdiv(num_queries, self.shape.blocks["BLOCK_X"])
        attend_kernel[(num_programs, num_rows * num_heads, num_blocks)](
            self.q_RQTD,
            self.rows.columns_RHJ,
            layer.tail_k_RHCD,
            layer.tail_v_RHCD,
            self.rows.tail_start_R,
            self.rows.num_new_R,
            *outputs,
            self.scaling,
            **self.shape.sizes,
            num_parts=num_parts,
            **self.shape.strides,
            **self.shape.blocks,
            SPLIT_SLOTS=tiling.split_slots,
            MOST_PARTS=tiling.most_parts,
            IS_SPLIT=is_split,
            ONLY_PACKED=only_packed,
            num_warps=tiling.num_warps,
            num_stages=tiling.num_stages,
        )

    def slot_mass(self, lse_RHX: Tensor, asking: list[int]) -> dict[int, SlotMass]:
        """Masses of the rows ``asking``, ascending."""
        layer, blocks, prefixes = self.layer, self.shape.blocks, self.layer.prefix_R
        num_heads, block_slots = layer.tail_k_RHCD.shape[1], blocks["BLOCK_S"]
        num_slots = {row: prefix.num_slots for row in asking if (prefix := prefixes[row]) is not None}
        num_tail = {row: layer.tail_start_R[row] + layer.num_new_R[row] for row in asking}
        prefix_mass_AW = lse_RHX.new_empty(len(asking), max(num_slots.values()))
        tail_mass_AHY = lse_RHX.new_empty(len(asking), num_heads, max(num_tail.values()))
        num_prefix_blocks = 0
        if self.plain_rows.intersection(asking):
            num_prefix_blocks = triton.cdiv(self.rows.most_slots, block_slots)
        grid = (num_prefix_blocks + triton.cdiv(tail_mass_AHY.shape[2], block_slots), len(asking) * num_heads)
        mass_kernel[grid](
            self.q_RQTD,
            self.rows.columns_RHJ,
            layer.tail_k_RHCD,
            self.rows.tail_start_R,
            self.rows.num_new_R,
            lse_RHX,
            rows_on_device(tuple(asking), self.q_RQTD.device),
            prefix_mass_AW,
            tail_mass_AHY,
            self.scaling,
            **self.shape.sizes,
            prefix_width=prefix_mass_AW.shape[1],
            tail_width=tail_mass_AHY.shape[2],
            num_prefix_blocks=num_prefix_blocks,
            **self.shape.strides,
            **blocks,
            num_warps=self.shape.tiling.num_warps,
            num_stages=self.shape.tiling.num_stages,
        )
        self.packed.mass(lse_RHX, asking, prefix_mass_AW)
        return {
            row: SlotMass(prefix_mass_AW[index, : num_slots[row]], tail_mass_AHY[index, :, : num_tail[row]])
            for index, row in enumerate(asking)
        }


def _rows_of(layer: RaggedLayer, device: torch.device) -> DeviceRows:
    """A layer's rows on the device, for a layer that no `RaggedCache` has made."""
    prefixes = [None if prefix is None else (prefix,) for prefix in layer.prefix_R]
    return PrefixTable(prefixes, device).layer(
        0, lengths_on_device(layer.tail_start_R, layer.num_new_R, device)
    )


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
