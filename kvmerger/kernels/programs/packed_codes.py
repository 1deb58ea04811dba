"""How packed codes become numbers inside a program, two bytes at a time. Knows nothing of torch.

A slot's codes are read as units of 16 bits: two neighbouring bytes, each with a code of every *plane*. Plane p of byte i is
channel p·D/planes + i, so parity e of unit u is channel p·D/planes + 2u + e: all codes of one plane and parity make a tile
whose channels are two apart, and nothing is ever moved between lanes. Tensor cores take tiles of 16-bit numbers straight
from where such units lie in shared memory, transposed or not; bytes they would take only after a detour.

Shapes: S slots, U units of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

# What makes up for fp32's larger bias of exponents, for numbers whose exponent and fraction lie where fp32 has its own.
E4M3_TO_FLOAT = tl.constexpr(2.0**120)
E2M1_TO_FLOAT = tl.constexpr(2.0**126)


# Compared as one object: hashing all fields at every launch would take longer than the launch.
@dataclass(frozen=True, eq=False)
class Side:
    """Keys or values of a form as programs are compiled for them, every field a ``tl.constexpr``.

    Attributes:
        grid, per, bits, group, has_offset, is_rotated: as in `kvmerger.cache.forms.layouts.CodeLayout`.
        head_dim: numbers of a slot.
        planes: codes of one byte; of the low two bits where codes have 3.
        slot_bytes: of a slot's codes.
        alignment: bytes that every head's first code is a multiple of.
        num_units: of a slot.
        block_units, num_blocks: units of a tile, a power of two, and tiles that hold a slot's.
        num_scales: of a slot: of every BLOCK of its channels, otherwise 1.
        first_scales, past_scales: the scales of each tile and plane, plane by plane within a tile.
        bias: what numbers are larger than those that the grid says.
        terms: tiles whose sum is the numbers; more than one where the queries' dtype cannot hold them.
        scale_type: of scales and offsets; of e2m1's scales, bytes of e4m3.
        assembly: what unpacks each term, plane and parity; empty where it is spelled out.
    """

    grid: str
    per: str
    bits: int
    group: int
    has_offset: bool
    is_rotated: bool
    head_dim: int
    planes: int
    slot_bytes: int
    alignment: int
    num_units: int
    block_units: int
    num_blocks: int
    num_scales: int
    first_scales: tuple[int, ...]
    past_scales: tuple[int, ...]
    bias: float
    terms: int
    scale_type: tl.dtype
    assembly: tuple[str, ...]


@triton.jit
def channels(block: tl.constexpr, plane: tl.constexpr, parity: tl.constexpr, L: tl.constexpr):
    """The channels of a tile's units, and which of them there are: padding has none."""
    unit_U = block * L.block_units + tl.arange(0, L.block_units)
    return plane * (L.head_dim // L.planes) + 2 * unit_U + parity, unit_U < L.num_units


@triton.jit
def load_units(codes, s, u, L: tl.constexpr):
    """Units ``u`` of slots ``s``, int16 of their common shape, 0 for padding; ``codes`` is an address."""
    # Offsets in a head fit 32 bits, and wider ones would take twice the registers.
    if L.slot_bytes % 2 == 1:
        byte = codes.to(tl.pointer_type(tl.uint8)) + (s * L.slot_bytes + 2 * u)
        low = tl.load(byte, mask=u < L.num_units, other=0).to(tl.int16)
        return low | (tl.load(byte + 1, mask=u < L.num_units, other=0).to(tl.int16) << 8)
    else:
        units = tl.multiple_of(codes.to(tl.pointer_type(tl.int16)), L.alignment)
        if L.num_blocks * L.block_units > L.num_units:
            return tl.load(units + (s * (L.slot_bytes // 2) + u), mask=u < L.num_units, other=0)
        else:
            return tl.load(units + (s * (L.slot_bytes // 2) + u))


@triton.jit
def load_high(codes, s, u, L: tl.constexpr):
    """The units of 3-bit codes' high bits, shifted so that bit 2·plane of a byte is its plane's; 0 of other codes."""
    if L.bits == 3:
        # Two bits a channel come first. Of the D/8 bytes that follow, each has a bit of every eighth of the channels.
        EIGHTH: tl.constexpr = L.head_dim // 8
        if EIGHTH % 2 == 0:
            units = tl.multiple_of(codes.to(tl.pointer_type(tl.int16)), L.alignment)
            place = s * (L.slot_bytes // 2) + EIGHTH + u % (EIGHTH // 2)
            if L.num_blocks * L.block_units > L.num_units:
                high = tl.load(units + place, mask=u < L.num_units, other=0)
            else:
                high = tl.load(units + place)
            # Bits of the other byte come in at the top, where no plane is.
            return (high.to(tl.int32) & 0xFFFF) >> (u // (EIGHTH // 2))
        else:
            bytes_ = codes.to(tl.pointer_type(tl.uint8)) + (s * L.slot_bytes + 2 * EIGHTH)
            even = tl.load(bytes_ + 2 * u % EIGHTH, mask=u < L.num_units, other=0).to(tl.int32)
            odd = tl.load(bytes_ + (2 * u + 1) % EIGHTH, mask=u < L.num_units, other=0).to(tl.int32)
            return (even >> (2 * u // EIGHTH)) | ((odd >> ((2 * u + 1) // EIGHTH)) << 8)
    else:
        return 0


@triton.jit
def fetch_scales(scale, offset, place, L: tl.constexpr):
    """Scales, and offsets if there are any, as they are stored; ``scale`` and ``offset`` are addresses."""
    scale_type: tl.constexpr = L.scale_type
    if L.has_offset:
        return (
            tl.load(scale.to(tl.pointer_type(scale_type)) + place),
            tl.load(offset.to(tl.pointer_type(scale_type)) + place),
        )
    else:
        return (tl.load(scale.to(tl.pointer_type(scale_type)) + place),)


@triton.jit
def opened(fetched, index: tl.constexpr, L: tl.constexpr):
    """The index-th of several `fetch_scales`: scales, and what a sum of unscaled numbers lacks besides, both fp32.

    What it lacks are offsets, less the bias that numbers were given.
    """
    EACH: tl.constexpr = 2 if L.has_offset else 1
    if L.grid == "e2m1":
        bits = fetched[index * EACH].to(tl.int32) << 20
        numbers_ = bits.to(tl.float32, bitcast=True) * E4M3_TO_FLOAT
    else:
        numbers_ = fetched[index * EACH].to(tl.float32)
    if L.has_offset:
        return numbers_, fetched[index * EACH + 1].to(tl.float32) - L.bias * numbers_
    else:
        return numbers_, -L.bias * numbers_


@triton.jit
def fetch_pairs(scale, offset, place, L: tl.constexpr):
    """The `fetch_scales` of two numbers that lie side by side, the first of them at twice ``place``: as words, if they fit.

    Four bytes are the least that a compiler copies ahead of time.
    """
    if L.scale_type == tl.float16:
        scales = tl.load(scale.to(tl.pointer_type(tl.int32)) + place)
        first, second = _low_half(scales), _low_half(scales >> 16)
        if L.has_offset:
            offsets = tl.load(offset.to(tl.pointer_type(tl.int32)) + place)
            return first, _low_half(offsets), second, _low_half(offsets >> 16)
        else:
            return first, second
    else:
        return fetch_scales(scale, offset, 2 * place, L) + fetch_scales(scale, offset, 2 * place + 1, L)


@triton.jit
def _low_half(word):
    return word.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def fetch_block(
    scale, offset, start, end, BLOCK_S: tl.constexpr, WHOLE_GROUPS: tl.constexpr, L: tl.constexpr
):
    """All `fetch_scales` of a block of slots, one behind the other: one by slot, or those of every block of channels.

    By channel, those of every tile of every group, or nothing where blocks do not hold WHOLE_GROUPS.
    """
    fetched = ()
    s_S = tl.minimum(start + tl.arange(0, BLOCK_S), end - 1)
    if L.per == "slot":
        fetched = fetch_scales(scale, offset, s_S, L)
    elif L.per == "block":
        if L.num_scales % 2 == 0:
            for index in tl.static_range(L.num_scales // 2):
                fetched = fetched + fetch_pairs(scale, offset, s_S * (L.num_scales // 2) + index, L)
        else:
            for index in tl.static_range(L.num_scales):
                fetched = fetched + fetch_scales(scale, offset, s_S * L.num_scales + index, L)
    elif L.per == "channel" and WHOLE_GROUPS:
        NUM_GROUPS: tl.constexpr = max(1, BLOCK_S // L.group)
        for index in tl.static_range(NUM_GROUPS):
            group = tl.minimum(start + index * (BLOCK_S // NUM_GROUPS), end - 1) // L.group
            fetched = fetched + fetch_group(scale, offset, group, L)
    return fetched


@triton.jit
def fetch_group(scale, offset, group, L: tl.constexpr):
    """All tiles' `fetch_scales` of one group of slots that have a scale by channel."""
    fetched = ()
    for index in tl.static_range(L.planes * L.num_blocks):
        # A unit is a pair of channels. Padding takes the last one's: what it is multiplied by is 0, or never looked at.
        unit_U = (index // L.planes) * L.block_units + tl.arange(0, L.block_units)
        pair_U = (index % L.planes) * (L.head_dim // L.planes // 2) + tl.minimum(unit_U, L.num_units - 1)
        fetched = fetched + fetch_pairs(scale, offset, group * (L.head_dim // 2) + pair_U, L)
    return fetched


@triton.jit
def numbers(
    unit, high, points, term: tl.constexpr, plane: tl.constexpr, parity: tl.constexpr,
    dtype: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """One plane and parity of units as numbers of the grid (plus ``L.bias``), in ``dtype``."""
    if len(L.assembly) > 0 and L.bits == 3:
        return tl.inline_asm_elementwise(
            L.assembly[(term * L.planes + plane) * 2 + parity], "=r,r,r", [unit, high.to(tl.int16)],
            dtype=dtype.value, is_pure=True, pack=2,
        )  # fmt: skip
    elif len(L.assembly) > 0:
        return tl.inline_asm_elementwise(
            L.assembly[(term * L.planes + plane) * 2 + parity], "=r,r", [unit], dtype=dtype.value, is_pure=True, pack=2
        )  # fmt: skip
    else:
        return _spelled_out(unit, high, points, term, plane, parity, L).to(dtype)


@triton.jit
def _spelled_out(
    unit, high, points, term: tl.constexpr, plane: tl.constexpr, parity: tl.constexpr, L: tl.constexpr
):
    """The same in fp32, in operations that any device and the interpreter have."""
    LOW_BITS: tl.constexpr = 8 // L.planes
    code = (unit.to(tl.int32) >> (8 * parity + LOW_BITS * plane)) & (2**LOW_BITS - 1)
    if L.bits == 3:
        code = code | (((high >> (8 * parity + 2 * plane)) & 1) << 2)
    if L.grid == "signed":
        return ((code ^ 128) - 128).to(tl.float32)
    elif L.grid == "e4m3":
        # Exponent and fraction go where fp32 has its own; the factor makes up for the other bias, denormals included.
        bits = ((code & 0x80) << 24) | ((code & 0x7F) << 20)
        return bits.to(tl.float32, bitcast=True) * E4M3_TO_FLOAT
    elif L.grid == "e2m1":
        bits = ((code & 8) << 28) | ((code & 7) << 22)
        return bits.to(tl.float32, bitcast=True) * E2M1_TO_FLOAT
    elif L.grid == "gaussian":
        return tl.load(points + term * 2**L.bits + code)
    else:
        return code.to(tl.float32)
