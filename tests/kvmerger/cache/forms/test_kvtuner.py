"""A layer is stored in the bits that its table gives it, and bytes are counted over layers."""

from __future__ import annotations

import pytest
import torch

from kvmerger.cache.forms import registry
from kvmerger.cache.forms.kvtuner import KvTuner
from kvmerger.cache.forms.shipped import TokenWise
from kvmerger.names import FormError
from tests.fakes.settings import table_of_pairs

PAIRS = [(8, 4), (2, 8), (4, 4), (8, 2)]


def test_each_layer_is_stored_as_the_form_of_its_pair() -> None:
    form = KvTuner(table_of_pairs(PAIRS))
    assert [form.of_layer(index, 4) for index in range(4)] == [TokenWise(*pair) for pair in PAIRS]
    assert registry.name_of(form) == f"kvtuner({form.table['hash'][:8]})"
    assert form == KvTuner(table_of_pairs(PAIRS)) and hash(form) == hash(KvTuner(table_of_pairs(PAIRS)))
    assert form != KvTuner(table_of_pairs(PAIRS[::-1]))
    assert form.bits(64) == (22 / 4, 18 / 4)
    assert registry.get("kvtuner")(table=table_of_pairs(PAIRS)) == form


def test_another_number_of_layers_is_refused() -> None:
    with pytest.raises(FormError, match=r"table is of 4 layers, and the model has 5.*jobs/calibrate.py"):
        KvTuner(table_of_pairs(PAIRS)).of_layer(0, 5)


def test_it_codes_nothing_without_knowing_the_layer() -> None:
    form, x_SD = KvTuner(table_of_pairs(PAIRS)), torch.zeros(3, 8)
    with pytest.raises(FormError, match="of_layer"):
        form.encode(x_SD, x_SD, (3,))
    with pytest.raises(FormError, match="of_layer"):
        form.decode({}, (3,), 8)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_bytes_are_the_layers_mean_and_never_less_where_slots_move_between_layers(
    head_dim: int, seed: int
) -> None:
    form = KvTuner(table_of_pairs(PAIRS))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        slots_LH = torch.randint(0, 50, (4, 2), generator=generator).tolist()
        held = sum(form.of_layer(index, 4).num_bytes(slots, head_dim) for index, slots in enumerate(slots_LH))
        mean = -(-sum(map(sum, slots_LH)) // 4)
        assert held <= 4 * form.most_bytes(mean, 2, head_dim)
    even = sum(form.of_layer(index, 4).num_bytes((7, 7), head_dim) for index in range(4))
    assert even <= 4 * form.num_bytes((7, 7), head_dim) < even + 4
