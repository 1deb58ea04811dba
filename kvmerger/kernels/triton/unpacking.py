"""PTX that turns codes into numbers for tensor cores: two units of 16 bits in, two numbers of one plane and parity out.

An instruction or two a number, where the compiler would convert each by itself. Whole numbers are made by writing a code into
the fraction of a power of two (128 + c of 7 bits, 2^b + c of b bits); floats by moving sign, exponent and fraction to their
places and multiplying by what the exponents' biases differ by. All of it is exact.

A register holds unit u in its low half and unit u + 1 in the high one; a unit's even channel is its low byte.
"""

from __future__ import annotations

import struct

import torch

from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per

EVEN_BYTES, ODD_BYTES = "0x4240", "0x4341"
"""Selects bytes 0 and 2 (1 and 3) into the low halves' low bytes, and the second operand's into the high bytes."""
RAISED = ("0x2404", "0x3414")
"""Selects the same bytes into the high bytes, with the second operand's below."""


def assembly_of(
    layout: CodeLayout, dtype: torch.dtype, terms: tuple[tuple[float, ...], ...]
) -> tuple[tuple[str, ...], float]:
    """Instructions for each term, plane and parity (none if there are none), and what numbers exceed the grid's by.

    ``terms`` are a grid's tables of points.
    """
    planes = 8 // layout.bits if layout.bits != 3 else 4
    each = [(plane, parity) for plane in range(planes) for parity in range(2)]
    match layout.grid, layout.bits, dtype:
        case Grid.E4M3, 8, _ if dtype != torch.float32:
            return tuple(_e4m3(parity, dtype) for _, parity in each), 0.0
        case Grid.E2M1, 4, _ if dtype != torch.float32:
            return tuple(_e2m1(plane, parity, dtype) for plane, parity in each), 0.0
        case Grid.SIGNED, 8, torch.bfloat16:
            return tuple(_eight_bits("", parity) for _, parity in each), 0.0
        case Grid.UNSIGNED, 8, torch.bfloat16 if layout.per is not Per.NOTHING:
            return tuple(_eight_bits("xor.b32 t, t, 0x00800080;", parity) for _, parity in each), -128.0
        case Grid.UNSIGNED, 2 | 4, torch.bfloat16 if layout.per is not Per.NOTHING:
            instructions = tuple(_few_bits(layout.bits, plane, parity) for plane, parity in each)
            return instructions, 2.0**layout.bits
        case Grid.UNSIGNED | Grid.SIGNED, 2 | 4 | 8, torch.float16:
            is_signed = layout.grid is Grid.SIGNED
            return tuple(_fp16(layout.bits, plane, parity, is_signed) for plane, parity in each), 0.0
        case Grid.GAUSSIAN, 4, torch.bfloat16 if all(map(_is_antisymmetric, terms)):
            return tuple(_table(term, plane, parity) for term in terms for plane, parity in each), 0.0
        case _:
            return (), 0.0


def _times(dtype: torch.dtype, factor: float) -> str:
    """$0: the two numbers in ``t`` times a power of two."""
    both = _twice(dtype, factor)
    # A fused multiplication with -0 added: older devices have no bare one in bfloat16.
    if dtype == torch.bfloat16:
        return f"mov.b32 c, {both}; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, t, c, z;"
    return f"mov.b32 c, {both}; mul.f16x2 $0, t, c;"


def _e4m3(parity: int, dtype: torch.dtype) -> str:
    shift, mask, factor = (
        (4, "0x07f007f0", 2.0**120) if dtype == torch.bfloat16 else (1, "0x3f803f80", 2.0**8)
    )
    return _block(
        f"mov.b32 z, 0; prmt.b32 t, $1, z, {RAISED[parity]};"
        f"shr.u32 m, t, {shift}; and.b32 m, m, {mask}; and.b32 t, t, 0x80008000; or.b32 t, t, m;"
        + _times(dtype, factor)
    )


def _e2m1(plane: int, parity: int, dtype: torch.dtype) -> str:
    # The code goes to the top of its byte: there its sign is where that of 16 bits is.
    shift, mask, factor = (
        (6, "0x01c001c0", 2.0**126) if dtype == torch.bfloat16 else (3, "0x0e000e00", 2.0**14)
    )
    raised = "shl.b32 t, $1, 4;" if plane == 0 else "mov.b32 t, $1;"
    return _block(
        f"{raised} mov.b32 z, 0; prmt.b32 t, t, z, {RAISED[parity]};"
        f"shr.u32 m, t, {shift}; and.b32 m, m, {mask}; and.b32 t, t, 0x80008000; or.b32 t, t, m;"
        + _times(dtype, factor)
    )


def _eight_bits(before: str, parity: int) -> str:
    """Two's complement: 128 plus the low seven bits, minus 128 or, for a negative one, 256."""
    return _block(
        f"mov.b32 c, 0x43434343; prmt.b32 t, $1, c, {(EVEN_BYTES, ODD_BYTES)[parity]}; {before}"
        "and.b32 m, t, 0xff7fff7f; and.b32 t, t, 0xff80ff80;"
        "mov.b32 c, 0xbf80bf80; fma.rn.bf16x2 $0, t, c, m;"
    )


def _few_bits(bits: int, plane: int, parity: int) -> str:
    """2^bits plus the code, which goes to the top of the fraction's seven bits."""
    shift = 7 - bits - bits * plane
    moved = f"shl.b32 t, $1, {shift};" if shift >= 0 else f"shr.u32 t, $1, {-shift};"
    fraction = (2**bits - 1) << 7 - bits
    exponent = 127 + bits << 7
    # The exponent's lowest bit is the top of the low byte, and 1 for 2 and 4 bits.
    low, high = exponent & 0xFF, exponent >> 8
    return _block(
        f"{moved} lop3.b32 t, t, {_bytes(fraction)}, {_bytes(low)}, 0xEA;"
        f"mov.b32 c, {_bytes(high)}; prmt.b32 $0, t, c, {(EVEN_BYTES, ODD_BYTES)[parity]};"
    )


def _fp16(bits: int, plane: int, parity: int, is_signed: bool) -> str:
    """The code in the lowest bits of 1024, minus that; of a signed one, 128 more on both sides."""
    flipped = f"xor.b32 t, t, {_bytes(0x80)};" if is_signed else ""
    base = _twice(torch.float16, 1024.0 + (128.0 if is_signed else 0.0))
    return _block(
        f"shr.u32 t, $1, {bits * plane}; and.b32 t, t, {_bytes(2**bits - 1)}; {flipped}"
        f"mov.b32 c, 0x64646464; prmt.b32 t, t, c, {(EVEN_BYTES, ODD_BYTES)[parity]};"
        f"mov.b32 c, {base}; sub.f16x2 $0, t, c;"
    )


def _table(points: tuple[float, ...], plane: int, parity: int) -> str:
    """One of 16 points: one of the upper eight by its two bytes, and a sign for the mirrored half."""
    bits = [_bits(torch.bfloat16, point) for point in points[8:]]
    low = [f"0x{sum((bits[at + i] & 0xFF) << 8 * i for i in range(4)):08x}" for at in (0, 4)]
    high = [f"0x{sum((bits[at + i] >> 8) << 8 * i for i in range(4)):08x}" for at in (0, 4)]
    return _block(
        f"shr.u32 t, $1, {8 * parity + 4 * plane}; and.b32 t, t, 0x000f000f;"
        # m: 8 for the lower half; such a code counts down from 7.
        "not.b32 m, t; and.b32 m, m, 0x00080008; shr.u32 c, m, 3; sub.u32 c, m, c; xor.b32 t, t, c;"
        "and.b32 t, t, 0x00070007; shr.u32 c, t, 12; or.b32 t, t, c;"
        f"mov.b32 c, {low[0]}; mov.b32 z, {low[1]}; prmt.b32 z, c, z, t;"
        f"mov.b32 c, {high[0]}; mov.b32 d, {high[1]}; prmt.b32 c, c, d, t;"
        "prmt.b32 t, z, c, 0x5140; shl.b32 m, m, 12; xor.b32 $0, t, m;"
    )


def _is_antisymmetric(points: tuple[float, ...]) -> bool:
    return all(a == -b for a, b in zip(points, reversed(points), strict=True))


def _block(body: str) -> str:
    return "{ .reg .b32 t, m, c, d, z; " + body + " }"


def _bytes(byte: int) -> str:
    """A word of four such bytes."""
    return f"0x{byte * 0x01010101:08x}"


def _twice(dtype: torch.dtype, number: float) -> str:
    """A word of two such numbers."""
    return f"0x{_bits(dtype, number) * 0x10001:08x}"


def _bits(dtype: torch.dtype, number: float) -> int:
    """Of a number that ``dtype`` holds."""
    if dtype == torch.bfloat16:
        return int(struct.unpack("<I", struct.pack("<f", number))[0]) >> 16
    return int(struct.unpack("<H", struct.pack("<e", number))[0])
