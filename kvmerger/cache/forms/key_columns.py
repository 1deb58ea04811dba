"""Keys whose channels have widths of their own: how columns of numbers lie one after the other in bytes.

A column is one channel of one head's keys. Its codes lie together, slot after slot, the first in the lowest bits, padded to a
byte; columns of one width lie in the order of heads and channels. The parts are those of `mixed_widths` that begin with
``k_``.

To be coded and decoded, columns stand side by side, as long as the longest: an index of every number would take longer.

Shapes: S slots of a layer, its heads one after the other, H heads, D head size, M = H·D columns, C those of one width, T
slots of the longest head and up to three more, P bytes (or plain numbers) of a column, F those of all columns of one width,
X numbers of a byte, W widths.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kvmerger.cache.forms.widths import CODED_WIDTHS, PLAIN_WIDTH, WIDTHS, codes_above
from kvmerger.device import upload

_MOST_PER_BYTE = 4


class KeyColumns:
    """The columns of a layer with so many slots in its heads, in widths (H, D), uint8."""

    def __init__(self, width_HD: Tensor, num_slots_H: Sequence[int]) -> None:
        self._width_HD, self._num_slots_H = width_HD, tuple(num_slots_H)
        self._head_dim, self._device = width_HD.shape[1], width_HD.device
        self._width_M = width_HD.flatten()
        self._longest = max(num_slots_H, default=0)

    @functools.cached_property
    def head_S(self) -> Tensor:
        """Each slot's head, int64."""
        heads = torch.arange(len(self._num_slots_H), device=self._device)
        return heads.repeat_interleave(self._length_H, output_size=sum(self._num_slots_H))

    @functools.cached_property
    def _index_S(self) -> Tensor:
        """Each slot's place in its head."""
        start_H = self._length_H.cumsum(0) - self._length_H
        return torch.arange(len(self.head_S), device=self._device) - start_H[self.head_S]

    @functools.cached_property
    def _length_H(self) -> Tensor:
        return upload(self._num_slots_H, self._device)

    @property
    def _num_places(self) -> int:
        """T: whole bytes at any width."""
        return -(-self._longest // _MOST_PER_BYTE) * _MOST_PER_BYTE

    def encoded(self, k_SD: Tensor, count_HW: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        """The parts of keys; ``count_HW`` says how many columns a head has of each of `WIDTHS`. Does not wait."""
        k_HTD = k_SD.new_zeros(len(self._num_slots_H), self._num_places, self._head_dim)
        k_HTD[self.head_S, self._index_S] = k_SD
        k_MT = k_HTD.mT.flatten(0, 1)
        is_there_MT = self._is_within(self._length_H, self._num_places)
        low_M, high_M = _ends(k_MT, is_there_MT)
        parts = {}
        count_WH = list(zip(*count_HW, strict=True))
        columns_W = self._width_M.sort(stable=True).indices.split([sum(count_H) for count_H in count_WH])
        for width, count_H, column_C in zip(WIDTHS, count_WH, columns_W, strict=True):
            if not width or not len(column_C):
                continue
            if width == PLAIN_WIDTH:
                parts["k_plain"] = self._one_after_the_other(k_MT[column_C], width, column_C, count_H)
                continue
            low_C, scale_C = low_M[column_C], ((high_M - low_M) / (2**width - 1))[column_C]
            code_CT = codes_above(k_MT[column_C].float(), low_C[:, None], scale_C[:, None], width)
            byte_CP = _bytes_of(code_CT * is_there_MT[column_C], width)
            parts[f"k_codes_{width}"] = self._one_after_the_other(byte_CP, width, column_C, count_H)
            parts[f"k_scale_{width}"], parts[f"k_offset_{width}"] = scale_C, low_C
        return parts

    def decoded(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Keys (S, D), fp32. Does not wait for the device."""
        k_MT = torch.zeros(len(self._width_M), self._num_places, device=self._device)
        for width in CODED_WIDTHS:
            if (scale_C := parts.get(f"k_scale_{width}")) is None or not self._longest:
                continue
            column_C = (self._width_M != width).sort(stable=True).indices[: len(scale_C)]
            byte_CP = self._side_by_side(parts[f"k_codes_{width}"], width, column_C)
            code_CT = _codes_of(byte_CP, width).float()
            k_CT = parts[f"k_offset_{width}"][:, None] + scale_C[:, None] * code_CT
            k_MT[:, : k_CT.shape[1]].index_copy_(0, column_C, k_CT)
        if "k_plain" in parts and self._longest:
            # How many there are nobody has counted: all columns are looked at.
            columns = torch.arange(len(self._width_M), device=self._device)
            plain_MT = self._side_by_side(parts["k_plain"], PLAIN_WIDTH, columns).float()
            is_plain_M1 = (self._width_M == PLAIN_WIDTH)[:, None]
            k_MT[:, : self._longest] = torch.where(is_plain_M1, plain_MT, k_MT[:, : self._longest])
        return k_MT.view(*self._width_HD.shape, -1)[self.head_S, :, self._index_S]

    def steps(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The step of each column's codes: fp32 (H, D), 0 where there are none."""
        step_M = torch.zeros(len(self._width_M), device=self._device)
        for width in CODED_WIDTHS:
            if (scale_C := parts.get(f"k_scale_{width}")) is not None:
                rank_M = ((self._width_M == width).cumsum(dim=0) - 1).clamp(0, len(scale_C) - 1)
                step_M = torch.where(self._width_M == width, scale_C[rank_M], step_M)
        return step_M.view_as(self._width_HD)

    def _is_within(self, length_H: Tensor, num_places: int) -> Tensor:
        """Which places of each column are before its head's ``length_H``: bool (M, places)."""
        is_within_HP = torch.arange(num_places, device=self._device) < length_H[:, None]
        return is_within_HP.repeat_interleave(self._head_dim, dim=0)

    def _one_after_the_other(
        self, number_CP: Tensor, width: int, column_C: Tensor, count_H: Sequence[int]
    ) -> Tensor:
        """What `_side_by_side` puts side by side: the columns' own bytes, or plain numbers, and nothing between them."""
        lengths_H = [_length_of(num_slots, width) for num_slots in self._num_slots_H]
        total = sum(count * length for count, length in zip(count_H, lengths_H, strict=True))
        head_C = torch.div(column_C, self._head_dim, rounding_mode="floor")
        length_C = upload(lengths_H, self._device)[head_C]
        # The total is known: a mask in its place would have to be counted, and waited for.
        row_F = torch.arange(len(column_C), device=self._device).repeat_interleave(
            length_C, output_size=total
        )
        start_C = length_C.cumsum(0) - length_C
        return number_CP[row_F, torch.arange(total, device=self._device) - start_C[row_F]]

    def _side_by_side(self, part: Tensor, width: int, column_C: Tensor) -> Tensor:
        """The bytes (or plain numbers) of ``column_C``, (C, P). Behind a column's end stand another's."""
        length_H = upload([_length_of(num_slots, width) for num_slots in self._num_slots_H], self._device)
        length_M1 = length_H.repeat_interleave(self._head_dim)[:, None]
        length_M1 = torch.where((self._width_M == width)[:, None], length_M1, 0)
        start_C1 = (length_M1.cumsum(0) - length_M1)[column_C]
        place_CP = start_C1 + torch.arange(_length_of(self._longest, width), device=self._device)
        return part[place_CP.clamp_max(len(part) - 1)]


def _length_of(num_slots: int, width: int) -> int:
    """Bytes of a column of so many slots, or its plain numbers."""
    return num_slots if width == PLAIN_WIDTH else -(-num_slots * width // 8)


def _ends(k_MT: Tensor, is_there_MT: Tensor) -> tuple[Tensor, Tensor]:
    """Each column's smallest and largest number, fp32 (M,); 0 where a head is empty."""
    if not k_MT.shape[1]:
        return k_MT.new_zeros(len(k_MT), dtype=torch.float32), k_MT.new_zeros(len(k_MT), dtype=torch.float32)
    low_M = torch.where(is_there_MT, k_MT.float(), math.inf).amin(dim=1)
    high_M = torch.where(is_there_MT, k_MT.float(), -math.inf).amax(dim=1)
    is_empty_M = low_M > high_M
    return low_M.masked_fill(is_empty_M, 0.0), high_M.masked_fill(is_empty_M, 0.0)


def _bytes_of(code_CT: Tensor, width: int) -> Tensor:
    """Codes as bytes, neighbours together: uint8 (C, P)."""
    first, *others = code_CT.unflatten(1, (-1, 8 // width)).unbind(dim=2)
    byte_CP = first.clone()
    for index, more_CP in enumerate(others, start=1):
        byte_CP |= more_CP << (index * width)
    return byte_CP


def _codes_of(byte_CP: Tensor, width: int) -> Tensor:
    """The codes that `_bytes_of` wrote: uint8 (C, P·X)."""
    shift_X = torch.arange(0, 8, width, dtype=torch.uint8, device=byte_CP.device)
    return (byte_CP[..., None] >> shift_X & (2**width - 1)).flatten(1)
