"""Launches over rows whose prefixes are packed, one per way of coding; `triton.ragged` does what is left of them.

Shapes: as in `programs.packed`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.cache.forms.quantise import gaussian_points
from kvmerger.cache.row_table import DeviceRows, RowGroup, rows_on_device
from kvmerger.kernels.programs.packed import packed_attend_kernel
from kvmerger.kernels.programs.packed_codes import Side
from kvmerger.kernels.programs.packed_mass import packed_mass_kernel
from kvmerger.kernels.triton.tiling import FEW_QUERIES, PackedTiling
from kvmerger.kernels.triton.unpacking import assembly_of

FEWEST_DOT_UNITS = 16
FEWEST_DOT_COLUMNS = 8
FEWEST_HALF_SLOTS = 32
# Compute capability 8.0 is the first whose tensor cores take bfloat16, and whose arithmetic the assembly is written in.
FIRST_CAPABILITY = (8, 0)


_SCALE_TYPES = {torch.float16: tl.float16, torch.float32: tl.float32, torch.float8_e4m3fn: tl.uint8}


@dataclass(frozen=True, slots=True)
class Packed:
    """What every launch of one call needs.

    Attributes:
        sizes, strides: by the names of the kernels' parameters.
        tiling: of all groups; `PackedTiling.of` has what differs between them.
    """

    q_RQTD: Tensor
    rows: DeviceRows
    scaling: float
    sizes: dict[str, int]
    strides: dict[str, int]
    tiling: PackedTiling

    @property
    def num_parts(self) -> int:
        """Parts of the longest prefix."""
        return min(triton.cdiv(self.rows.most_slots, self.tiling.split_slots), self.tiling.most_parts)

    def launches(self, parts: tuple[Tensor, Tensor], tail_slots: int) -> list[Callable[[], None]]:
        """What writes the prefix's parts of all packed rows behind the parts of their tails, of ``tail_slots`` each.

        One for each way of coding; none needs another, and none allocates.
        """
        groups = self.rows.groups if self.num_parts else ()
        # Uploaded here, on the caller's stream, at the first call with a layout.
        points = [[_points_of(layout, self.q_RQTD) for layout in group.form_layouts] for group in groups]
        return [
            functools.partial(self._attend, group, k_points, v_points, parts, tail_slots)
            for group, (k_points, v_points) in zip(groups, points, strict=True)
        ]

    def _attend(
        self,
        group: RowGroup,
        k_points: Tensor,
        v_points: Tensor,
        parts: tuple[Tensor, Tensor],
        tail_slots: int,
    ) -> None:
        shape = self._shape_of(group)
        num_queries = self.sizes["num_tokens"] * self.sizes["num_groups"]
        num_blocks = triton.cdiv(num_queries, shape["BLOCK_X"])
        sides = _sides_of(group, self.q_RQTD)
        packed_attend_kernel[(self.num_parts, len(group.rows) * self.sizes["num_heads"], num_blocks)](
            self.q_RQTD,
            self.rows.columns_RHJ,
            group.row_M,
            self.rows.tail_start_R,
            self.rows.num_new_R,
            k_points,
            v_points,
            *parts,
            self.scaling,
            **self.sizes,
            num_parts=parts[1].shape[2],
            **self.strides,
            **shape,
            SPLIT_SLOTS=self.tiling.split_slots,
            MOST_PARTS=self.tiling.most_parts,
            TAIL_SLOTS=tail_slots,
            K=sides[0],
            V=sides[1],
        )

    def mass(self, lse_RHX: Tensor, asking: list[int], prefix_mass_AW: Tensor) -> None:
        """Write the masses of packed rows' slots, each row's at its index in ``asking``."""
        for group in self.rows.groups:
            rows = tuple(row for row in group.rows if row in asking)
            if not rows or not self.rows.most_slots:
                continue
            shape = self._shape_of(group)
            num_blocks = triton.cdiv(self.rows.most_slots, shape["BLOCK_S"])
            packed_mass_kernel[(num_blocks, len(rows) * self.sizes["num_heads"])](
                self.q_RQTD,
                self.rows.columns_RHJ,
                rows_on_device(rows, self.q_RQTD.device),
                rows_on_device(tuple(asking.index(row) for row in rows), self.q_RQTD.device),
                self.rows.num_new_R,
                lse_RHX,
                _points_of(group.form_layouts[0], self.q_RQTD),
                prefix_mass_AW,
                self.scaling,
                **self.sizes,
                prefix_width=prefix_mass_AW.shape[1],
                **self.strides,
                **shape,
                K=_sides_of(group, self.q_RQTD)[0],
            )

    def _shape_of(self, group: RowGroup) -> dict[str, Any]:
        """A launch's blocks and knobs; by shapes and layouts alone, or bits would depend on other rows."""
        tiling, keys = self.tiling.of(group.form_layouts), group.form_layouts[0]
        is_half = self.q_RQTD.element_size() < torch.float32.itemsize
        assert not is_half or tiling.slots >= FEWEST_HALF_SLOTS, "see `PackedTiling`"
        num_queries = triton.next_power_of_2(self.sizes["num_tokens"] * self.sizes["num_groups"])
        block_queries = min(max(num_queries, FEW_QUERIES if is_half else FEWEST_DOT_COLUMNS), tiling.queries)
        is_inexact = keys.is_rotated or keys.per is Per.CHANNEL
        # Groups of slots must neither begin nor end inside a block, nor more than four of them be in one.
        is_aligned = keys.per is not Per.CHANNEL or (
            keys.group in (tiling.slots // 4, tiling.slots // 2) or keys.group % tiling.slots == 0
        )
        starts_aligned = (
            keys.per is not Per.CHANNEL or tiling.split_slots % min(keys.group, tiling.slots) == 0
        )
        return {
            "BLOCK_X": block_queries,
            "BLOCK_S": tiling.slots,
            "IS_TWIN": is_half and (is_inexact or block_queries < FEWEST_DOT_COLUMNS),
            "WHOLE_GROUPS": is_aligned and starts_aligned,
            "num_warps": tiling.num_warps,
            "num_stages": tiling.num_stages,
            "maxnreg": tiling.max_registers,
        }


def _sides_of(group: RowGroup, q_RQTD: Tensor) -> tuple[Side, Side]:
    keys, values = (_side_of(it, q_RQTD.shape[3], q_RQTD.dtype, q_RQTD.device) for it in group.form_layouts)
    return keys, values


@functools.cache
def _side_of(layout: CodeLayout, head_dim: int, dtype: torch.dtype, device: torch.device) -> Side:
    """A layout as programs are compiled for it."""
    planes = 4 if layout.bits == 3 else 8 // layout.bits
    assert head_dim % (2 * planes) == 0, f"{layout.bits}-bit codes of {head_dim} numbers are no whole units"
    num_units = head_dim // (2 * planes)
    block_units = max(FEWEST_DOT_UNITS, triton.next_power_of_2(num_units))
    num_scales = 1
    if layout.per is Per.BLOCK:
        num_scales = triton.cdiv(head_dim, layout.group)
        # A tile of one scale where that is possible: of two it takes two dots.
        block_units = min(block_units, max(FEWEST_DOT_UNITS, triton.next_power_of_2(layout.group // 2)))
    num_blocks = triton.cdiv(num_units, block_units)
    terms = len(_terms(layout, dtype))
    code_bytes = layout.code_bytes(head_dim)
    instructions, bias = (
        assembly_of(layout, dtype, _terms(layout, dtype)) if _has_assembly(device) else ((), 0.0)
    )
    spans = [
        _span(layout, head_dim, planes, block, plane, block_units)
        for block in range(num_blocks)
        for plane in range(planes)
    ]
    side = Side(
        grid=str(layout.grid),
        per=str(layout.per),
        bits=layout.bits,
        group=layout.group,
        has_offset=layout.has_offset and layout.per is not Per.NOTHING,
        is_rotated=layout.is_rotated,
        head_dim=head_dim,
        planes=planes,
        slot_bytes=code_bytes,
        alignment=code_bytes & -code_bytes if code_bytes % 16 else 16,
        num_units=num_units,
        block_units=block_units,
        num_blocks=num_blocks,
        num_scales=num_scales,
        first_scales=tuple(first for first, _ in spans),
        past_scales=tuple(last + 1 for _, last in spans),
        bias=bias,
        terms=terms,
        scale_type=_SCALE_TYPES[layout.scale_dtype],
        assembly=instructions,
    )
    if is_interpreted():
        return side
    # Inside a compiled program only a constant can be a bound or an index, and a constant's fields are none by themselves.
    return Side(*(_constant(getattr(side, field.name)) for field in dataclasses.fields(side)))


def _constant(value: Any) -> tl.constexpr:
    return tl.constexpr(tuple(map(tl.constexpr, value)) if isinstance(value, tuple) else value)


def _span(
    layout: CodeLayout, head_dim: int, planes: int, block: int, plane: int, block_units: int
) -> tuple[int, int]:
    """The first and last scale of the channels in one tile."""
    if layout.per is not Per.BLOCK:
        return 0, 0
    first = plane * head_dim // planes + 2 * block * block_units
    last = min(first + 2 * block_units, (plane + 1) * head_dim // planes) - 1
    return first // layout.group, last // layout.group


def _terms(layout: CodeLayout, dtype: torch.dtype) -> tuple[tuple[float, ...], ...]:
    """Tables of a grid's points whose sums are the points: as many as it takes where ``dtype`` cannot hold them."""
    if layout.grid is not Grid.GAUSSIAN:
        return ((),)
    points = torch.tensor(gaussian_points(layout.bits))
    rounded = points.to(dtype).float()
    rest = (points - rounded).to(dtype).float()
    tables = (rounded, rest) if rest.any() else (rounded,)
    return tuple(tuple(table.tolist()) for table in tables)


def _points_of(layout: CodeLayout, q_RQTD: Tensor) -> Tensor:
    """`_terms` on the device; of a grid that is no table, anything."""
    return _uploaded(_terms(layout, q_RQTD.dtype), q_RQTD.device)


@functools.cache
def _uploaded(tables: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    # Kept, since a recorded step holds the address.
    with torch.inference_mode(False):
        return torch.tensor([point for table in tables for point in table] or [0.0]).to(device)


@functools.cache
def _has_assembly(device: torch.device) -> bool:
    """Whether ``device`` runs what `assembly_of` writes."""
    if is_interpreted() or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= FIRST_CAPABILITY


def is_interpreted() -> bool:
    """Whether programs run in Triton's interpreter, on the CPU."""
    return isinstance(packed_attend_kernel, InterpretedFunction)
