"""The table of rows that device kernels read: where each head's slots are, and that it keeps up with its rows."""

import torch

from kvmerger.cache import columns
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.row_table import PrefixTable, lengths_on_device

CPU = torch.device("cpu")


def random_layer(generator: torch.Generator, lengths: tuple[int, ...], *, has_mass: bool) -> LayerCache:
    num_slots = sum(lengths)
    k_SD, v_SD = torch.randn(2, num_slots, 8, generator=generator)
    position_S = torch.cat([torch.arange(length) for length in lengths]).int()
    return LayerCache(k_SD, v_SD, position_S, lengths, torch.rand(num_slots) if has_mass else None)


def test_every_head_is_where_the_table_says(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    prefix = tuple(
        random_layer(generator, lengths, has_mass=has_mass)
        for lengths, has_mass in (((3, 0, 5), True), ((4, 4, 4), False))
    )
    table = PrefixTable([None, prefix, prefix], CPU)
    for layer_index, layer in enumerate(prefix):
        rows = table.layer(layer_index, lengths_on_device((0, 2, 3), (0, 1, 1), CPU))
        assert rows.most_slots == max(layer.num_slots_H)
        assert not rows.columns_RHJ[0].any()
        assert torch.equal(rows.columns_RHJ[1], rows.columns_RHJ[2])
        assert (rows.tail_start_R.tolist(), rows.num_new_R.tolist()) == ([0, 2, 3], [0, 1, 1])
        assert not rows.columns_RHJ[1, :, columns.IS_PACKED :].any()
        for head, (k, v, log_mass, first, num_slots, *_) in enumerate(rows.columns_RHJ[1].tolist()):
            assert (first, num_slots) == (layer.head_starts[head], layer.num_slots_H[head])
            assert (k, v) == (layer.k_SD[first:].data_ptr(), layer.v_SD[first:].data_ptr()) or not num_slots
            assert log_mass == (0 if layer.log_mass_S is None else layer.log_mass_S[first:].data_ptr())


def test_following_is_as_good_as_describing_anew(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before, after = ((random_layer(generator, lengths, has_mass=False),) for lengths in ((2, 3), (40, 1)))
    table = PrefixTable([before, before, None], CPU)
    now = [before, after, None]
    table.follow(now)
    followed, anew = (
        each.layer(0, lengths_on_device((0,) * 3, (1,) * 3, CPU)) for each in (table, PrefixTable(now, CPU))
    )
    assert torch.equal(followed.columns_RHJ, anew.columns_RHJ) and followed.most_slots == 40
    table.follow([before, before, None])
    assert table.layer(0, lengths_on_device((0,) * 3, (1,) * 3, CPU)).most_slots == 3
