"""PTX that turns codes into numbers for tensor cores: two units of 16 bits in, two numbers of one plane and parity out.

Of 3-bit codes a second register holds the high bits, each 2·plane + 8·parity bits from the bottom of its unit's half.

An instruction or two a number, where the compiler would convert each by itself. Whole numbers are made by writing a code into
the fraction of a power of two (128 + c of 7 bits, 2^b + c of b bits); floats by moving sign, exponent and fraction to their
places and multiplying by what the exponents' biases differ by. All of it is exact.

A register holds unit u in its low half and unit u + 1 in the high one; a unit's even channel is its low byte.
"""

from __future__ import annotations

import struct

import torch

from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per

# Which of the inputs' bits a three-input instruction writes: a and b, or c; not a, but b, or c.
AND_OR, NOT_AND_OR = "0xEA", "0xAE"


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
            return tuple(_eight_bits(AND_OR, parity) for _, parity in each), 0.0
        case Grid.UNSIGNED, 8, torch.bfloat16 if layout.per is not Per.NOTHING:
            return tuple(_eight_bits(NOT_AND_OR, parity) for _, parity in each), -128.0
        case Grid.UNSIGNED, 2 | 3 | 4, torch.bfloat16 if layout.per is not Per.NOTHING:
            instructions = tuple(_few_bits(layout.bits, plane, parity) for plane, parity in each)
            return instructions, 2.0**layout.bits
        case Grid.UNSIGNED | Grid.SIGNED, 2 | 3 | 4 | 8, torch.float16:
            is_signed = layout.grid is Grid.SIGNED
            return tuple(_fp16(layout.bits, plane, parity, is_signed) for plane, parity in each), 0.0
        case Grid.GAUSSIAN, 4, torch.bfloat16 if all(map(_is_antisymmetric, terms)):
            return tuple(_sixteen(term, plane, parity) for term in terms for plane, parity in each), 0.0
        case Grid.GAUSSIAN, 3, torch.bfloat16:
            return tuple(_eight(term, plane, parity) for term in terms for plane, parity in each), 0.0
        case _:
            return (), 0.0


def _times(dtype: torch.dtype, factor: float) -> str:
    """$0: the two numbers in ``t`` times a power of two."""
    both = _twice(dtype, factor)
    # A fused multiplication with -0 added: older devices have no bare one in bfloat16.
    if dtype == torch.bfloat16:
        return f"mov.b32 c, {both}; mov.b32 z, 0x80008000; fma.rn.bf16x2 $0, t, c, z;"
    return f"mov.b32 c, {both}; mul.f16x2 $0, t, c;"


def _shifted(register: str, by: int, of: str = "$1") -> str:
    """``register``: ``of`` with all bits ``by`` places higher, or lower where that is negative."""
    if not by:
        return f"mov.b32 {register}, {of};"
    return f"shl.b32 {register}, {of}, {by};" if by > 0 else f"shr.u32 {register}, {of}, {-by};"


def _code(bits: int, plane: int, parity: int, to: int, beside: str) -> str:
    """``t``: the two codes with their lowest bits at bit ``to``, and the set bits of the register ``beside``."""
    if bits == 3:
        first = 8 * parity + 2 * plane
        return (
            f"{_shifted('t', to - first)} lop3.b32 t, t, {_halves(3 << to)}, {beside}, {AND_OR};"
            f"{_shifted('m', to + 2 - first, '$2')} lop3.b32 t, m, {_halves(4 << to)}, t, {AND_OR};"
        )
    moved = _shifted("t", to - 8 * parity - bits * plane)
    return f"{moved} lop3.b32 t, t, {_halves(2**bits - 1 << to)}, {beside}, {AND_OR};"


def _floats(sign: int, magnitude: int, fraction: int, to: int, dtype: torch.dtype, factor: float) -> str:
    """Floats whose sign is at bit ``sign`` and whose magnitude, of ``fraction`` set bits, goes from its bit to bit ``to``."""
    return _block(
        f"{_shifted('m', to - magnitude)} and.b32 m, m, {_halves(fraction << to)};"
        f"{_shifted('t', 15 - sign)} lop3.b32 t, t, 0x80008000, m, {AND_OR};" + _times(dtype, factor)
    )


def _e4m3(parity: int, dtype: torch.dtype) -> str:
    to, factor = (4, 2.0**120) if dtype == torch.bfloat16 else (7, 2.0**8)
    return _floats(8 * parity + 7, 8 * parity, 0x7F, to, dtype, factor)


def _e2m1(plane: int, parity: int, dtype: torch.dtype) -> str:
    to, factor = (6, 2.0**126) if dtype == torch.bfloat16 else (9, 2.0**14)
    first = 8 * parity + 4 * plane
    return _floats(first + 3, first, 7, to, dtype, factor)


def _eight_bits(sign_as: str, parity: int) -> str:
    """Two's complement: 128 plus the low seven bits, minus 128 or, for a negative one, 256."""
    return _block(
        f"{_shifted('t', -8 * parity)} mov.b32 c, 0x43004300;"
        f"lop3.b32 m, t, 0x007f007f, c, {AND_OR}; lop3.b32 t, t, 0x00800080, c, {sign_as};"
        f"mov.b32 d, {_twice(torch.bfloat16, -1.0)}; fma.rn.bf16x2 $0, t, d, m;"
    )


def _few_bits(bits: int, plane: int, parity: int) -> str:
    """2^bits plus the code, which goes to the top of the fraction's seven bits."""
    # No permutation of bytes: its two constants do not fit one instruction, and loading them takes another each time.
    code = _code(bits, plane, parity, 7 - bits, "c")
    return _block(f"mov.b32 c, {_halves(127 + bits << 7)}; {code} mov.b32 $0, t;")


def _fp16(bits: int, plane: int, parity: int, is_signed: bool) -> str:
    """The code in the lowest bits of 1024, minus that; of a signed one with its sign flipped, 128 more on both sides."""
    base = _twice(torch.float16, 1024.0 + (128.0 if is_signed else 0.0))
    flipped = "xor.b32 t, t, 0x00800080;" if is_signed else ""
    return _block(
        f"mov.b32 c, 0x64006400; {_code(bits, plane, parity, 0, 'c')} {flipped}"
        f"mov.b32 c, {base}; sub.f16x2 $0, t, c;"
    )


def _sixteen(points: tuple[float, ...], plane: int, parity: int) -> str:
    """One of 16 points: one of the upper eight, with its sign turned for the mirrored half."""
    return _block(
        f"mov.b32 c, 0; {_code(4, plane, parity, 0, 'c')}"
        # m: 8 for the lower half; such a code counts down from 7.
        "not.b32 m, t; and.b32 m, m, 0x00080008; shr.u32 c, m, 3; sub.u32 c, m, c; xor.b32 t, t, c;"
        f"and.b32 t, t, 0x00070007; {_looked_up(points[8:])} shl.b32 m, m, 12; xor.b32 $0, t, m;"
    )


def _eight(points: tuple[float, ...], plane: int, parity: int) -> str:
    """One of eight points."""
    return _block(f"mov.b32 c, 0; {_code(3, plane, parity, 0, 'c')} {_looked_up(points)} mov.b32 $0, t;")


def _looked_up(points: tuple[float, ...]) -> str:
    """``t``: of eight bfloat16 points those that ``t`` numbers, their low and high bytes looked up by themselves."""
    bits = [_bits(torch.bfloat16, point) for point in points]
    low, high = (
        [
            f"0x{sum((it >> of & 0xFF) << 8 * at for at, it in enumerate(half)):08x}"
            for half in (bits[:4], bits[4:])
        ]
        for of in (0, 8)
    )
    return (
        "shr.u32 c, t, 12; or.b32 t, t, c;"
        f"mov.b32 c, {low[0]}; mov.b32 z, {low[1]}; prmt.b32 z, c, z, t;"
        f"mov.b32 c, {high[0]}; mov.b32 d, {high[1]}; prmt.b32 c, c, d, t;"
        "prmt.b32 t, z, c, 0x5140;"
    )


def _is_antisymmetric(points: tuple[float, ...]) -> bool:
    return all(a == -b for a, b in zip(points, reversed(points), strict=True))


def _block(body: str) -> str:
    return "{ .reg .b32 t, m, c, d, z; " + body + " }"


def _halves(half: int) -> str:
    """A word of two such halves."""
    return f"0x{half * 0x10001:08x}"


def _twice(dtype: torch.dtype, number: float) -> str:
    """A word of two such numbers."""
    return _halves(_bits(dtype, number))


def _bits(dtype: torch.dtype, number: float) -> int:
    """Of a number that ``dtype`` holds."""
    if dtype == torch.bfloat16:
        return int(struct.unpack("<I", struct.pack("<f", number))[0]) >> 16
    return int(struct.unpack("<H", struct.pack("<e", number))[0])
