"""Forms against their definitions, number by number, and what each kind of scale is good for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvmerger.cache.forms import registry
from kvmerger.cache.forms.bits import packed, unpacked
from kvmerger.cache.forms.layouts import CodeLayout, Grid, Per
from kvmerger.cache.forms.quantise import decode, encode, gaussian_points, largest_error, rotated
from kvmerger.names import FormError
from tests.slow import forms as slow

LAYOUTS = sorted(
    {layout for name in registry.names() for layout in registry.get(name)().layouts()},
    key=lambda layout: str(layout),
)
NUM_SLOTS_H = (37, 0, 1, 20)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("head_dim", [16, 80, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_come_back_as_the_definition_says(
    layout: CodeLayout, head_dim: int, dtype: torch.dtype, seed: int
) -> None:
    if layout.is_rotated and head_dim == 80:
        with pytest.raises(FormError, match="power of two numbers, the model's have 80"):
            layout.check(head_dim)
        return
    generator = torch.Generator().manual_seed(seed)
    x_SD = (torch.randn(sum(NUM_SLOTS_H), head_dim, generator=generator) * 5).to(dtype)
    x_SD[3], x_SD[5] = 0.0, 2.5  # a slot of zeros, and one without width
    parts = encode(x_SD, layout, NUM_SLOTS_H)
    assert sum(part.untyped_storage().nbytes() for part in parts.values()) == layout.num_bytes(
        NUM_SLOTS_H, head_dim
    )
    ours = decode(parts, layout, NUM_SLOTS_H, head_dim)
    expected = slow.decoded(x_SD, layout, NUM_SLOTS_H)
    # The table of points has four digits.
    tolerance = 2e-3 if layout.grid is Grid.GAUSSIAN else 1e-4
    is_close = torch.isclose(ours.double(), expected, atol=tolerance, rtol=tolerance)
    if layout.is_rotated:
        # A number on the edge moves its whole slot a little.
        is_close |= (ours - expected).norm(dim=1, keepdim=True) < 0.05 * expected.norm(dim=1, keepdim=True)
    if layout.grid is Grid.UNSIGNED:
        # Where a scale or minimum lies between two numbers of fp16 but for the last bit, a whole group moves by that step.
        assert is_close.float().mean() > 0.9
        is_close |= (ours.double() - expected).abs() <= 2**-9 * x_SD.double().abs().amax()
    # A number that lies between two codes but for the last bit may fall to either. Of e2m1 a whole block's scale may, and of
    # Gaussian points one number's moves its slot: those are few, and no further away than the grid is wide.
    is_few = layout.grid in (Grid.GAUSSIAN, Grid.E2M1)
    assert is_close.float().mean() > (0.9 if is_few else 0.99)
    bound_SD = largest_error(parts, layout, NUM_SLOTS_H, x_SD).masked_fill_(x_SD.abs() > 448, math.inf)
    error_S, bound_S = (ours - expected).norm(dim=1), 2.2 * bound_SD.norm(dim=1) + 1e-4
    assert bool((error_S <= bound_S).all())


@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    num_slots=st.integers(0, 5),
    eighths=st.integers(1, 16),
    seed=st.integers(0, 2**32),
)
def test_codes_are_packed_and_unpacked(bits: int, num_slots: int, eighths: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    code_SD = torch.randint(0, 2**bits, (num_slots, 8 * eighths), generator=generator, dtype=torch.uint8)
    byte_SB = packed(code_SD, bits)
    assert byte_SB.shape == (num_slots, eighths * bits)
    assert torch.equal(unpacked(byte_SB, bits), code_SD)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bytes_are_cut_as_kernels_read_them(bits: int, seed: int) -> None:
    code_D = torch.randint(0, 2**bits, (1, 32), generator=torch.Generator().manual_seed(seed))
    byte_B = packed(code_D.to(torch.uint8), bits)[0].tolist()
    low_bits = min(bits, 2) if bits == 3 else bits
    per_byte = 8 // low_bits
    for channel, code in enumerate(code_D[0].tolist()):
        part, place = divmod(channel, 32 // per_byte)
        read = byte_B[place] >> part * low_bits & (1 << low_bits) - 1
        if bits == 3:
            part, place = divmod(channel, 4)
            read |= (byte_B[8 + place] >> part & 1) << 2
        assert read == code


@pytest.mark.parametrize("bits", [3, 4])
def test_gaussian_points_are_the_best_of_a_normal_number(bits: int) -> None:
    above = gaussian_points(bits)[2 ** (bits - 1) :]
    assert above == pytest.approx(slow.LLOYD_MAX[bits], rel=5e-4)
    assert gaussian_points(bits)[: len(above)] == pytest.approx([-point for point in reversed(above)])
    # The errors that Max's table gives for them.
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(bits), dtype=torch.float64)
    points = torch.tensor(gaussian_points(bits), dtype=torch.float64)
    nearest = points[torch.bucketize(x, (points[1:] + points[:-1]) / 2)]
    assert float((x - nearest).square().mean()) == pytest.approx({3: 0.03454, 4: 0.009497}[bits], rel=0.02)


def test_a_rotation_keeps_lengths_and_angles_and_undoes_itself(seed: int) -> None:
    x_SD = torch.randn(9, 64, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(rotated(x_SD).double(), slow.turned(x_SD.double()), atol=1e-5, rtol=0)
    assert torch.equal(torch.cat([rotated(row_1D) for row_1D in x_SD.split(1)]), rotated(x_SD))
    torch.testing.assert_close(rotated(rotated(x_SD)), x_SD, atol=1e-5, rtol=0)
    torch.testing.assert_close(rotated(x_SD) @ rotated(x_SD).T, x_SD @ x_SD.T, atol=1e-3, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 50.0, -300.0])
def test_a_biased_channel_costs_channel_groups_nothing_and_slots_much(offset: float, seed: int) -> None:
    x_SD = torch.randn(64, 64, generator=torch.Generator().manual_seed(seed))
    x_SD[:, 7] += offset

    def error(layout: CodeLayout) -> float:
        ours = decode(encode(x_SD, layout, (64,)), layout, (64,), 64)
        return float((ours - x_SD).square().mean())

    by_channel = CodeLayout(Grid.UNSIGNED, 4, Per.CHANNEL, 32)
    by_slot = CodeLayout(Grid.UNSIGNED, 4, Per.SLOT)
    assert error(by_channel) < 0.02
    if offset:
        assert error(by_slot) > 10 * error(by_channel)


def test_what_is_too_large_for_fp8_is_cut_and_counted(seed: int) -> None:
    k_SD = torch.randn(12, 64, generator=torch.Generator().manual_seed(seed)) * 100
    v_SD = torch.ones_like(k_SD)
    v_SD[2, :3] = torch.tensor([449.0, -1000.0, 448.0])
    form = registry.get("fp8")()
    k_hat, v_hat = form.decode(form.encode(k_SD, v_SD, (12,)), (12,), 64)
    assert v_hat[2, :3].tolist() == [448.0, -448.0, 448.0]
    assert float(k_hat.abs().max()) <= 448
    counted = form.counters(k_SD, v_SD)["num_saturated"]
    assert int(counted) == 2 + int((k_SD.abs() > 448).sum())
    assert not registry.get("fp8_scaled")().counters(k_SD, v_SD)
