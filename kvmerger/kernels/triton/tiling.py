"""How the work of ragged attention is cut, by dtype and number of queries. Results depend on it in their last bits.

`python -m bench.kernels --tune` tries other ways.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import triton
from torch import Tensor

from kvmerger.cache.forms.layouts import CodeLayout

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


@dataclass(frozen=True, slots=True)
class PackedTiling:
    """How the work over packed prefixes is cut; as `Tiling`, on which the last bits depend alike.

    Attributes:
        queries: most queries of a block.
        slots: slots of a block.
        split_slots, most_parts: least slots of a part of a head's prefix, and most parts.
        num_warps, num_stages: Triton's two knobs.
        max_registers: of a thread; fewer let more programs run beside each other.
        of_bytes: the two knobs where keys and values are codes of 8 bits; None where they are the same.

    Sixteen slots are for fp32 alone: in half precision, with three stages, triton 3.6 compiled a program of nvfp4 for an H200
    whose numbers were wrong in every batch tried (the interpreter's are right); 32, 64 and 128 slots were right in all.
    """

    queries: int
    slots: int
    split_slots: int = 256
    most_parts: int = 8
    num_warps: int = 1
    num_stages: int = 3
    max_registers: int | None = None
    of_bytes: tuple[int, int] | None = None

    def of(self, layouts: Iterable[CodeLayout]) -> PackedTiling:
        """How the work is cut for such codes."""
        if self.of_bytes is None or any(layout.bits < 8 for layout in layouts):
            return self
        num_warps, num_stages = self.of_bytes
        return replace(self, num_warps=num_warps, num_stages=num_stages, of_bytes=None)


# Few queries: one warp is a whole program, whose dots and softmax no barrier holds up.
FEW_QUERIES = 4
# Bytes are twice as much to wait for as to compute with: two warps share a program, so that more are under way.
PACKED_HALF = PackedTiling(queries=4, slots=64, of_bytes=(2, 2))
# Two warps and not four: with four the dots become Hopper's own, which triton 3.6 does not always compile.
PACKED_HALF_MANY = PackedTiling(queries=16, slots=64, num_warps=2, num_stages=2)
PACKED_FULL = PackedTiling(queries=16, slots=16, num_warps=4, num_stages=2)
# Where plain rows are not split, a packed prefix is one part beside its tail's.
WHOLE = 2**30


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


def packed_tiling_for(q_RQTD: Tensor, num_queries: int) -> PackedTiling:
    """The tiling that is used for so many queries of a KV head like these."""
    if q_RQTD.element_size() == torch.float32.itemsize:
        return PACKED_FULL
    return PACKED_HALF if num_queries <= FEW_QUERIES else PACKED_HALF_MANY
