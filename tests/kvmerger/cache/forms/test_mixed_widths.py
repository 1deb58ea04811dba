"""Slots and channels of unlike widths: number by number against loops, to the byte, on ragged heads and odd ranges."""

from __future__ import annotations

import random

import pytest
import torch

from kvmerger.cache.forms.mixed_widths import MixedWidths
from kvmerger.cache.forms.widths import WIDTHS, Widths
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import PackedLayer
from kvmerger.names import FormError
from tests.slow.rdkv import column_bytes, stored, value_bytes

DTYPES = (torch.float32, torch.bfloat16)
SLOTS = [(13, 0, 7, 1), (0, 0), (5,), (64, 3, 33)]


def layer(seed: int, num_slots_H: tuple[int, ...], head_dim: int, dtype: torch.dtype) -> LayerCache:
    """Random slots in random widths; one channel of the keys is far from 0, one is the same everywhere."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(seed)
    num_slots = sum(num_slots_H)
    k_SD, v_SD = (torch.randn(num_slots, head_dim, generator=generator) for _ in range(2))
    k_SD[:, 0] += 50
    k_SD[:, 1] = -3
    v_SD *= torch.rand(num_slots, 1, generator=generator) * 100
    widths = Widths(
        torch.tensor([rng.choice(WIDTHS) for _ in range(num_slots)], dtype=torch.uint8),
        torch.tensor([[rng.choice(WIDTHS) for _ in range(head_dim)] for _ in num_slots_H], dtype=torch.uint8),
    )
    position_S = torch.cat([torch.arange(count, dtype=torch.int32) for count in num_slots_H])
    return LayerCache(k_SD.to(dtype), v_SD.to(dtype), position_S, num_slots_H, widths=widths)


def heads(it: LayerCache) -> list[slice]:
    return [slice(a, a + n) for a, n in zip(it.head_starts, it.num_slots_H, strict=True)]


@pytest.mark.parametrize("num_slots_H", SLOTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_numbers_come_back_as_loops_over_them_say(num_slots_H, dtype, seed: int) -> None:
    it = layer(seed, num_slots_H, 12, dtype)
    assert it.widths is not None
    plain = PackedLayer.of(it, MixedWidths()).plain(torch.float32)
    for slot in range(it.num_slots):
        expected = stored(it.v_SD[slot].tolist(), int(it.widths.v_S[slot]), "bf16")
        assert_as_near(plain.v_SD[slot], expected, it.v_SD[slot])
    for head, part in enumerate(heads(it)):
        for channel in range(12):
            column = it.k_SD[part, channel].tolist()
            expected = stored(column, int(it.widths.k_HD[head, channel]), "fp32") if column else []
            assert_as_near(plain.k_SD[part, channel], expected, it.k_SD[part, channel])


def assert_as_near(ours: torch.Tensor, expected: list[float], stored_for: torch.Tensor) -> None:
    """The same numbers, or, where two codes are equally near, ones that are as far from what they stand for."""
    error, expected_error = (
        (it.double() - stored_for.double()) for it in (ours, torch.tensor(expected).double())
    )
    torch.testing.assert_close(error.abs(), expected_error.abs(), rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("num_slots_H", SLOTS, ids=str)
@pytest.mark.parametrize("head_dim", [4, 80])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_takes_the_bytes_it_says_and_those_of_its_numbers(num_slots_H, head_dim, dtype, seed: int) -> None:
    it = layer(seed, num_slots_H, head_dim, dtype)
    assert it.widths is not None
    packed = PackedLayer.of(it, MixedWidths())
    packed.check_integrity()
    held = sum(part.nbytes for part in packed.parts.values())
    assert held == packed.form.num_bytes_of(packed.parts, num_slots_H, head_dim)
    of_values = sum(value_bytes(width, head_dim, dtype.itemsize) for width in it.widths.v_S.tolist())
    # A value without bits is no slot that a policy keeps, and still says so in a byte.
    of_values += it.widths.v_S.tolist().count(0)
    of_keys = sum(
        column_bytes(width, count, dtype.itemsize) + 1
        for count, widths in zip(num_slots_H, it.widths.k_HD.tolist(), strict=True)
        for width in widths
    )
    assert held == of_values + of_keys


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_plain_numbers_are_the_same_bits_and_none_are_zeros(dtype, seed: int) -> None:
    it = layer(seed, (9, 4), 8, dtype)
    for width in (16, 0):
        widths = Widths(
            torch.full((13,), width, dtype=torch.uint8), torch.full((2, 8), width, dtype=torch.uint8)
        )
        parts = MixedWidths().encode_in(it.k_SD, it.v_SD, it.num_slots_H, widths)
        ours = MixedWidths().decode(parts, it.num_slots_H, 8)
        for x_SD, theirs in zip(ours, (it.k_SD, it.v_SD), strict=True):
            assert torch.equal(x_SD.to(dtype), theirs if width else torch.zeros_like(theirs))


def test_a_channel_far_from_zero_is_as_exact_as_one_around_it(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers of 2⁻¹⁰, so that an offset rounds nothing away before they are stored.
    k_SD = (torch.randn(50, 4, generator=generator) * 2**10).round() / 2**10
    for width in (2, 4, 8):
        widths = Widths(torch.full((50,), 8, dtype=torch.uint8), torch.full((1, 4), width, dtype=torch.uint8))
        errors = []
        for offset in (0.0, 100.0, -1000.0):
            parts = MixedWidths().encode_in(k_SD + offset, k_SD, (50,), widths)
            errors.append(MixedWidths().decode(parts, (50,), 4)[0] - offset - k_SD)
        for error in errors[1:]:
            torch.testing.assert_close(error, errors[0], rtol=0, atol=3e-4)


def test_values_too_large_for_fp16_stay_finite(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    v_SD = torch.randn(6, 8, generator=generator) * 1e7
    for width in (2, 4, 8):
        widths = Widths(torch.full((6,), width, dtype=torch.uint8), torch.zeros(1, 8, dtype=torch.uint8))
        parts = MixedWidths().encode_in(v_SD, v_SD, (6,), widths)
        ours = MixedWidths().decode(parts, (6,), 8)[1]
        step_S1 = (v_SD.amax(dim=1) - v_SD.amin(dim=1))[:, None] / (2**width - 1)
        assert bool(((ours - v_SD).abs() <= step_S1 * 0.52 * 1.02).all())


def test_bits_are_means_over_all_numbers(seed: int) -> None:
    it = layer(seed, (8, 16), 8, torch.bfloat16)
    widths = Widths(
        torch.tensor([4] * 12 + [8] * 12, dtype=torch.uint8), torch.zeros(2, 8, dtype=torch.uint8)
    )
    widths.k_HD[:, :2] = 8
    widths.k_HD[:, 2] = 16
    parts = MixedWidths().encode_in(it.k_SD, it.v_SD, it.num_slots_H, widths)
    assert MixedWidths().bits_of(parts, it.num_slots_H, 8) == ((2 * 8 + 16) / 8, 6.0)


def test_heads_whose_values_are_no_whole_bytes_are_refused() -> None:
    with pytest.raises(FormError, match="a multiple of 4 numbers, the model's have 6"):
        MixedWidths().check(6)


def test_widths_of_another_shape_or_kind_are_named(seed: int) -> None:
    it = layer(seed, (3, 2), 4, torch.float32)
    it.check_shapes()
    for wrong, message in (
        (
            Widths(torch.zeros(4, dtype=torch.uint8), torch.zeros(2, 4, dtype=torch.uint8)),
            "widths.v_S must be",
        ),
        (Widths(torch.zeros(5, dtype=torch.uint8), torch.zeros(2, 4)), "widths.k_HD must be"),
    ):
        bad = LayerCache(it.k_SD, it.v_SD, it.position_S, it.num_slots_H, widths=wrong)
        with pytest.raises(ValueError, match=message):
            bad.check_shapes()
