"""A batch's rows as a device kernel reads them: addresses and lengths in tensors, where `RaggedLayer` has tuples.

A table describes the prefixes it was last told of. Whoever uses it calls `PrefixTable.follow` with the current ones first.

Shapes: R rows, L layers, H KV heads, J columns (`columns`).
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.cache.columns import NUM_COLUMNS, NUM_SLOTS
from kvmerger.cache.forms.layouts import CodeLayout, Per
from kvmerger.cache.packed_layer import HeldLayer, PackedLayer

FLOAT_BYTES = 4  # of log masses and of heads' own scales
Layouts = tuple[CodeLayout, CodeLayout]
"""Of keys and of values."""


class RowGroup(NamedTuple):
    """The rows of one layer whose prefixes are coded alike: one launch of a kernel that reads codes.

    Attributes:
        form_layouts: of their keys and values.
        row_M: the rows, int32 on the device.
        rows: the same, ascending.
    """

    form_layouts: Layouts
    row_M: Tensor
    rows: tuple[int, ...]


class DeviceRows(NamedTuple):
    """One layer's rows on the device.

    Attributes:
        columns_RHJ: int64, the columns of every head; all 0 for a row without a prefix.
        tail_start_R, num_new_R: int32, as in `RaggedLayer`.
        most_slots: of any row's and head's prefix; a kernel's grid must reach that far.
        groups: the packed rows by how they are coded, in the order of their first rows.
    """

    columns_RHJ: Tensor
    tail_start_R: Tensor
    num_new_R: Tensor
    most_slots: int
    groups: tuple[RowGroup, ...] = ()


class PrefixTable:
    """Addresses and lengths of all rows' prefixes. Changes only by `follow`."""

    def __init__(
        self,
        prefixes: Sequence[Sequence[HeldLayer] | None],
        device: torch.device,
        out_LRHJ: Tensor | None = None,
    ) -> None:
        """Describe ``prefixes`` (at least one not None), one per row, whose tensors must be contiguous.

        ``out_LRHJ``: int64 on ``device``, to be overwritten; by default a tensor of the table's own.
        """
        self._template = next(prefix for prefix in prefixes if prefix is not None)
        # Held for as long as the device may follow their addresses: freed memory would be somebody else's.
        self._prefixes = list(prefixes)
        # Rows share prefixes, and describing one costs a Python loop over layers and heads.
        described = {id(prefix): self._describe(prefix) for prefix in prefixes}
        columns_RLHJ = torch.stack([described[id(prefix)] for prefix in prefixes])
        # On the CPU still, so that this waits for nothing.
        self._most_slots_RL = columns_RLHJ[..., NUM_SLOTS].amax(dim=2).tolist()
        columns_LRHJ = columns_RLHJ.transpose(0, 1).contiguous()
        self._columns_LRHJ = columns_LRHJ.to(device) if out_LRHJ is None else out_LRHJ.copy_(columns_LRHJ)
        self._regroup()

    @classmethod
    def joined(
        cls,
        table_by_start: Mapping[int, PrefixTable],
        prefixes: Sequence[Sequence[HeldLayer] | None],
        columns_LRHJ: Tensor,
    ) -> PrefixTable:
        """One table over ``columns_LRHJ``, where the tables' own columns lie already, each from its start on.

        ``prefixes`` are those of all rows, None outside the tables; their columns are overwritten with zeros.
        """
        # Not through __init__, which would describe every prefix a second time.
        joined = cls.__new__(cls)
        joined._template = next(iter(table_by_start.values()))._template
        joined._prefixes = list(prefixes)
        joined._most_slots_RL = [[0] * len(joined._template) for _ in prefixes]
        is_dummy_R = torch.ones(len(prefixes), dtype=torch.bool)
        for start, table in table_by_start.items():
            rows = slice(start, start + len(table._prefixes))
            joined._most_slots_RL[rows] = table._most_slots_RL
            is_dummy_R[rows] = False
        # Between the tables an earlier batch's columns may stand, whose addresses are no longer anybody's.
        columns_LRHJ.masked_fill_(is_dummy_R.to(columns_LRHJ.device)[:, None, None], 0)
        joined._columns_LRHJ = columns_LRHJ
        joined._regroup()
        return joined

    def follow(self, prefixes: Sequence[Sequence[HeldLayer] | None]) -> None:
        """Describe anew the rows whose prefix is no longer the same object."""
        has_changed = False
        for row, prefix in enumerate(prefixes):
            # By identity: slots that change in place keep their addresses, equal ones elsewhere do not have them.
            if prefix is not self._prefixes[row]:
                has_changed = True
                columns_LHJ = self._describe(prefix)
                self._prefixes[row] = prefix
                self._most_slots_RL[row] = columns_LHJ[..., NUM_SLOTS].amax(dim=1).tolist()
                # Queued behind the kernels that read the old columns: nobody has to wait for those.
                self._columns_LRHJ[:, row] = columns_LHJ.to(self._columns_LRHJ.device, non_blocking=True)
        if has_changed:
            self._regroup()

    @property
    def group_key(self) -> Hashable:
        """What a recorded step depends on besides addresses and sizes: every layer's groups, without their tensors."""
        return tuple(tuple((group.form_layouts, group.rows) for group in groups) for groups in self._groups_L)

    def layer(self, layer_index: int, lengths_2R: Tensor, most_slots: int | None = None) -> DeviceRows:
        """One layer's rows; ``lengths_2R`` holds tail starts and numbers of new tokens, int32.

        ``most_slots``: a bound to use in place of the true number.
        """
        if most_slots is None:
            most_slots = max(most_slots_L[layer_index] for most_slots_L in self._most_slots_RL)
        columns_RHJ, groups = self._columns_LRHJ[layer_index], self._groups_L[layer_index]
        return DeviceRows(columns_RHJ, lengths_2R[0], lengths_2R[1], most_slots, groups)

    def _regroup(self) -> None:
        # Not when a layer is asked for: then a recording may be going on, which cannot upload anything.
        device = self._columns_LRHJ.device
        groups_L = []
        for layer_index in range(len(self._template)):
            rows_by_layouts: dict[Layouts, list[int]] = {}
            for row, prefix in enumerate(self._prefixes):
                layouts = None if prefix is None else layouts_of(prefix[layer_index])
                if layouts is not None:
                    rows_by_layouts.setdefault(layouts, []).append(row)
            groups_L.append(
                tuple(
                    RowGroup(layouts, rows_on_device(tuple(rows), device), tuple(rows))
                    for layouts, rows in rows_by_layouts.items()
                )
            )
        self._groups_L = groups_L

    def _describe(self, prefix: Sequence[HeldLayer] | None) -> Tensor:
        """A prefix's columns, on the CPU: int64 (L, H, J)."""
        if prefix is None:
            return torch.zeros(
                len(self._template), self._template[0].num_heads, NUM_COLUMNS, dtype=torch.int64
            )
        return torch.tensor([_describe_heads(layer) for layer in prefix])


def lengths_on_device(tail_start_R: Sequence[int], num_new_R: Sequence[int], device: torch.device) -> Tensor:
    """Tail starts and numbers of new tokens as int32 (2, R); does not wait for the device."""
    return torch.tensor([tail_start_R, num_new_R], dtype=torch.int32).to(device, non_blocking=True)


@functools.cache
def rows_on_device(rows: tuple[int, ...], device: torch.device) -> Tensor:
    """Row numbers, int32; the same tensor whenever the same rows are asked for."""
    # Never let go: a recorded step may hold the address. Whoever asks first, the tensor is one that everybody may use.
    with torch.inference_mode(False):
        return torch.tensor(rows, dtype=torch.int32).to(device)


def layouts_of(layer: HeldLayer) -> Layouts | None:
    """How a layer's keys and values are coded; None where they are plain, or decoded to be read."""
    return layer.form.layouts() if isinstance(layer, PackedLayer) else None


def _describe_heads(layer: HeldLayer) -> list[tuple[int, ...]]:
    log_mass_S = layer.log_mass_S
    assert log_mass_S is None or (log_mass_S.dtype == torch.float32 and log_mass_S.is_contiguous())
    if isinstance(layer, PackedLayer):
        sides = _describe_packed(layer)
    else:
        assert layer.k_SD.is_contiguous() and layer.v_SD.is_contiguous(), "slots lie one after the other"
        starts = layer.head_starts
        sides = [
            ((_address(layer.k_SD, first), 0, 0, 0), (_address(layer.v_SD, first), 0, 0, 0))
            for first in starts
        ]
    return [
        (
            k_codes,
            v_codes,
            0 if log_mass_S is None else log_mass_S.data_ptr() + first * FLOAT_BYTES,
            first,
            num_slots,
            int(isinstance(layer, PackedLayer)),
            *(k_scale, k_offset, v_scale, v_offset),
            *(k_global, v_global),
        )
        for first, num_slots, (
            (k_codes, k_scale, k_offset, k_global),
            (v_codes, v_scale, v_offset, v_global),
        ) in zip(layer.head_starts, layer.num_slots_H, sides, strict=True)
    ]


def _describe_packed(layer: PackedLayer) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Addresses of each head's codes, scales, offsets and own scale: of its keys and of its values."""
    layouts = layouts_of(layer)
    assert layouts is not None, "a form without layouts is decoded before a kernel sees it"
    sides = []
    for side, layout in zip(("k_", "v_"), layouts, strict=True):
        codes = layer.parts[side + "codes"]
        scale, offset, of_head = (layer.parts.get(side + name) for name in ("scale", "offset", "global"))
        assert all(part is None or part.is_contiguous() for part in (codes, scale, offset, of_head))
        # Per channel a head's scales begin with its first group's, otherwise with its first slot's.
        first_scales = layer.head_starts
        if layout.per is Per.CHANNEL:
            groups_H = [-(-num_slots // layout.group) for num_slots in layer.num_slots_H]
            first_scales = (0, *accumulate(groups_H[:-1]))
        sides.append(
            [
                (
                    _address(codes, first),
                    _address(scale, scales),
                    _address(offset, scales),
                    _address(of_head, head),
                )
                for head, (first, scales) in enumerate(zip(layer.head_starts, first_scales, strict=True))
            ]
        )
    return list(zip(*sides, strict=True))


def _address(tensor: Tensor | None, index: int) -> int:
    """Of ``tensor[index]``, which may be one behind the last; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr() + index * tensor.stride(0) * tensor.element_size()
