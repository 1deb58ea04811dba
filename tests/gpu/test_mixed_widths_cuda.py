"""Slots and channels of unlike widths are stored and read on CUDA as on the CPU."""

import pytest
import torch

from kvmerger.cache.forms.mixed_widths import MixedWidths
from tests.kvmerger.cache.forms.test_mixed_widths import DTYPES, SLOTS, layer

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("num_slots_H", SLOTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parts_and_numbers_are_those_of_the_cpu(num_slots_H, dtype, seed: int) -> None:
    form, it = MixedWidths(), layer(seed, num_slots_H, 64, dtype)
    assert it.widths is not None
    on_cuda = it.widths._replace(v_S=it.widths.v_S.cuda(), k_HD=it.widths.k_HD.cuda())
    ours = form.encode_in(it.k_SD.cuda(), it.v_SD.cuda(), num_slots_H, on_cuda)
    theirs = form.encode_in(it.k_SD, it.v_SD, num_slots_H, it.widths)
    assert {name: (part.shape, part.dtype) for name, part in ours.items()} == {
        name: (part.shape, part.dtype) for name, part in theirs.items()
    }
    again = form.encode_in(it.k_SD.cuda(), it.v_SD.cuda(), num_slots_H, on_cuda)
    assert all(torch.equal(part, again[name]) for name, part in ours.items())
    bounds = form.largest_errors(it.k_SD, it.v_SD, theirs, num_slots_H)
    for numbers, x_SD, bound_S in zip(
        form.decode(ours, num_slots_H, 64), (it.k_SD, it.v_SD), bounds, strict=True
    ):
        assert bool(((numbers.cpu() - x_SD.float()).norm(dim=1) <= bound_S * 1.0001 + 1e-5).all())
