"""The PTX that unpacks codes, carried out instruction by instruction: it gives the grid's numbers, bit for bit."""

import itertools
import random
from collections.abc import Callable

import pytest
import torch

from kvmerger.cache.forms.bits import packed
from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.cache.forms.quantise import decode, gaussian_points
from kvmerger.kernels.triton.unpacking import assembly_of

WORD = 0xFFFFFFFF
HEAD_DIM = 16  # 8 bits: 8 units. 3 bits: 2 of the low bits, and 1 of the high ones, which serves both
POINTS_TOLERANCE = 2e-5  # of the sum of two bfloat16


def as_number(half: int, dtype: torch.dtype) -> float:
    return float(torch.tensor([half - (half >> 15 << 16)], dtype=torch.int16).view(dtype))


def as_bits(number: float, dtype: torch.dtype) -> int:
    return int(torch.tensor([number], dtype=torch.float64).to(dtype).view(torch.int16)) & 0xFFFF


def on_halves(operate: Callable[..., float], words: list[int], dtype: torch.dtype) -> int:
    low, high = (
        as_bits(operate(*(as_number(word >> at & 0xFFFF, dtype) for word in words)), dtype) for at in (0, 16)
    )
    return low | high << 16


def permuted(a: int, b: int, selector: int) -> int:
    bytes_ = [word >> at & 0xFF for word in (a, b) for at in range(0, 32, 8)]
    return sum(bytes_[selector >> 4 * at & 7] << 8 * at for at in range(4))


LOGIC: dict[str, Callable[..., int]] = {
    "mov": lambda a: a,
    "shl": lambda a, by: a << by,
    "shr": lambda a, by: a >> by,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "sub": lambda a, b: a - b,
    "prmt": permuted,
    "lop3": lambda a, b, c, table: {0xEA: a & b | c, 0xAE: ~a & b | c}[table],
}
ARITHMETIC: dict[str, Callable[..., float]] = {
    "fma": lambda a, b, c: a * b + c,
    "mul": lambda a, b: a * b,
    "sub": lambda a, b: a - b,
}


def carried_out(assembly: str, inputs: tuple[int, int], dtype: torch.dtype) -> list[float]:
    """The two numbers that one block of instructions leaves."""
    registers = {"$1": inputs[0], "$2": inputs[1]}
    for instruction in assembly.strip("{} ").split(";"):
        name, _, operands = instruction.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *sources = (operand.strip() for operand in operands.split(","))
        words = [registers[it] if it in registers else int(it, 0) for it in sources]
        operation = name.partition(".")[0]
        result = on_halves(ARITHMETIC[operation], words, dtype) if "x2" in name else LOGIC[operation](*words)
        registers[target] = result & WORD
    return [as_number(registers["$0"] >> at & 0xFFFF, dtype) for at in (0, 16)]


def tables(layout: CodeLayout, dtype: torch.dtype) -> tuple[tuple[float, ...], ...]:
    """A grid's points as two tables of ``dtype``; one empty table of another grid."""
    if layout.grid is not Grid.GAUSSIAN:
        return ((),)
    points = torch.tensor(gaussian_points(layout.bits))
    first = points.to(dtype).float()
    # The mirrored half is the same, whatever the last bit of a point: one half is looked up.
    rest = (points - first).to(dtype).float()
    rest = (rest - rest.flip(0)) / 2
    return tuple(first.tolist()), tuple(rest.to(dtype).float().tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("grid", "bits"),
    [(Grid.UNSIGNED, bits) for bits in (2, 3, 4, 8)]
    + [(Grid.SIGNED, 8), (Grid.E4M3, 8), (Grid.E2M1, 4), (Grid.GAUSSIAN, 3), (Grid.GAUSSIAN, 4)],
    ids=str,
)
def test_assembly_is_the_grids_numbers(grid: Grid, bits: int, dtype: torch.dtype, seed: int) -> None:
    layout = CodeLayout(grid, bits, Per.SLOT)
    terms = tables(layout, dtype)
    assembly, bias = assembly_of(layout, dtype, terms)
    if not assembly:
        assert grid is Grid.GAUSSIAN and dtype == torch.float16, "these alone are spelled out"
        return
    rng, planes = random.Random(seed), 4 if bits == 3 else 8 // bits
    for _ in range(40):
        # The largest codes of e4m3 are no numbers, and nothing is stored so.
        codes = [
            rng.choice([it for it in range(2**bits) if bits < 8 or it & 0x7F != 0x7F])
            for _ in range(HEAD_DIM)
        ]
        byte_1B = packed(torch.tensor([codes], dtype=torch.uint8), bits)
        scale = {"scale": torch.ones(1, 16 if grid is Grid.E2M1 else 1)[:, 0]}
        expected = decode({"codes": byte_1B, **scale}, layout, (1,), HEAD_DIM)[0] + bias
        units = byte_1B.numpy().view("<u2")[0].tolist()
        for plane, parity in itertools.product(range(planes), range(2)):
            channels = [plane * HEAD_DIM // planes + 2 * unit + parity for unit in (0, 1)]
            # Of 3 bits the one unit of high bits serves units 0 and 1, the second by its odd bits.
            inputs = (units[0] | units[1] << 16, units[2] | units[2] >> 1 << 16 if bits == 3 else 0)
            numbers = [
                carried_out(assembly[(term * planes + plane) * 2 + parity], inputs, dtype)
                for term in range(len(terms))
            ]
            got = torch.tensor(numbers).sum(dim=0)
            tolerance = POINTS_TOLERANCE if grid is Grid.GAUSSIAN else 0.0
            torch.testing.assert_close(got, expected[channels], atol=tolerance, rtol=0.0)
