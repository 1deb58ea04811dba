"""What passes between a batch's cache and those who read and write it: layers as kernels see them, arrivals, memory.

Shapes: R rows, L layers, H KV heads, T new tokens, C tail capacity, D head size, J columns of the row table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from kvmerger.cache.packed_layer import HeldLayer
from kvmerger.cache.row_table import NUM_COLUMNS, DeviceRows


@dataclass(frozen=True, slots=True)
class RaggedLayer:
    """One layer of a batch as an attention kernel sees it, the new tokens already in the tails.

    Attributes:
        prefix_R: each row's prefix; None for a row that holds nothing.
        tail_k_RHCD, tail_v_RHCD: every row's tail, with room for C tokens.
        tail_start_R: tail tokens of each row before the new ones.
        num_new_R: new tokens of each row, at most T; a row with 0 attends to nothing.
        device_rows: the same rows as a device kernel reads them; None where none does.
    """

    prefix_R: tuple[HeldLayer | None, ...]
    tail_k_RHCD: Tensor
    tail_v_RHCD: Tensor
    tail_start_R: tuple[int, ...]
    num_new_R: tuple[int, ...]
    device_rows: DeviceRows | None = None


class Arrival(NamedTuple):
    """New tokens that every layer of one extend gets, as uploaded once for all of them.

    Attributes:
        tail_start_R, num_new_R, num_tokens: what this was made from.
        row_N, token_N, place_N: int64, each new token's row, index among the new ones and place in the tail.
        lengths_2R: tail starts and numbers of new tokens, int32.
    """

    tail_start_R: tuple[int, ...]
    num_new_R: tuple[int, ...]
    num_tokens: int
    row_N: Tensor
    token_N: Tensor
    place_N: Tensor
    lengths_2R: Tensor

    @classmethod
    def of(
        cls, tail_start_R: tuple[int, ...], num_new_R: tuple[int, ...], num_tokens: int, device: torch.device
    ) -> Arrival:
        """Each row's first ``num_new_R[r]`` of ``num_tokens`` tokens, behind its tail; does not wait for the device."""
        # Indices are found on the CPU, where `nonzero` waits for nothing.
        lengths_2R = torch.tensor([tail_start_R, num_new_R], dtype=torch.int32)
        row_N, token_N = (torch.arange(num_tokens) < lengths_2R[1][:, None]).nonzero(as_tuple=True)
        index_3N = torch.stack([row_N, token_N, lengths_2R[0][row_N] + token_N])
        row_N, token_N, place_N = index_3N.to(device, non_blocking=True)
        lengths_2R = lengths_2R.to(device, non_blocking=True)
        return cls(tail_start_R, num_new_R, num_tokens, row_N, token_N, place_N, lengths_2R)


class OneEach(NamedTuple):
    """One new token for every row, where only the device knows how long the tails are and which rows really read one.

    Attributes:
        row_R, place_R: int64, the rows, and where in its tail each one's token goes.
        lengths_2R: tail starts and numbers of new tokens (0 or 1), int32.
        most_slots: at least the slots of any row's and head's prefix, the same whenever the step is repeated.
    """

    row_R: Tensor
    place_R: Tensor
    lengths_2R: Tensor
    most_slots: int


class Room(NamedTuple):
    """Memory for a batch's tails (each (R, H, C, D), a pair per layer) and, on CUDA, its prefix table (L, R, H, J)."""

    tail_k_L: list[Tensor]
    tail_v_L: list[Tensor]
    columns_LRHJ: Tensor

    def part(self, rows: slice, tail_capacity: int) -> Room:
        """Some of the rows, with shorter tails; the same memory."""
        # Slices keep the strides of the whole: a kernel must be told those of rows and heads, never work them out.
        tail_k_L, tail_v_L = ([tail[rows, :, :tail_capacity] for tail in it] for it in self[:2])
        return Room(tail_k_L, tail_v_L, self.columns_LRHJ[:, rows])


def new_room(num_rows: int, tail_capacity: int, template: Sequence[HeldLayer]) -> Room:
    """Memory for the tails of prefixes like ``template`` and for their table."""
    return Room(*new_tails(num_rows, tail_capacity, template), new_columns(num_rows, template))


def new_tails(
    num_rows: int, tail_capacity: int, template: Sequence[HeldLayer]
) -> tuple[list[Tensor], list[Tensor]]:
    """Memory for the tails of prefixes like ``template``, keys and values by layer."""
    layer = template[0]
    shape_RHCD = (num_rows, layer.num_heads, tail_capacity, layer.head_dim)
    tail_k_L, tail_v_L = (
        [torch.zeros(shape_RHCD, dtype=layer.dtype, device=layer.device) for _ in template] for _ in range(2)
    )
    return tail_k_L, tail_v_L


def new_columns(num_rows: int, template: Sequence[HeldLayer]) -> Tensor:
    """Where a `PrefixTable` of prefixes like ``template`` describes its rows: int64 (L, R, H, J)."""
    # Zeros are a row without a prefix: no slots, so that no address is ever followed.
    shape_LRHJ = (len(template), num_rows, template[0].num_heads, NUM_COLUMNS)
    return template[0].position_S.new_zeros(shape_LRHJ, dtype=torch.int64)
