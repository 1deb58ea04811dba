"""Ranking and copying slots on CUDA: what the CPU's stable sort keeps, of rows longer than a block and offsets above 2³¹."""

import pytest
import torch

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels import dispatch
from kvmerger.kernels.reference import ranking
from tests.kvmerger.kernels.both.ranking import (  # noqa: F401  (collected here)
    MANY,
    check_ranking,
    test_no_column_is_no_place,
    test_scores_may_lie_in_memory_in_any_way,
    test_slots_are_copied_bit_for_bit,
    test_the_same_are_among_the_highest_as_in_a_stable_sort,
)

triton_ranking = pytest.importorskip("kvmerger.kernels.triton.ranking", exc_type=ImportError)

pytestmark = pytest.mark.gpu


@pytest.fixture
def device() -> str:
    return "cuda"


@pytest.mark.parametrize(("num_columns", "block", "dtype"), MANY, ids=str)
def test_short_rows_keep_what_a_stable_sort_keeps(
    num_columns: int, block: int | None, dtype: torch.dtype, seed: int
) -> None:
    check_ranking(num_columns, block, dtype, seed, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("num_rows", "num_columns"), [(7, 16_384), (5, 16_385), (3, 131_072), (1, 1_300_000)]
)
def test_long_rows_keep_what_the_cpu_keeps(
    num_rows: int, num_columns: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores_HN = torch.randn(num_rows, num_columns, generator=generator, dtype=torch.float64)
    scores_HN[:, ::3] = scores_HN[:, ::3].round(decimals=1)  # many ties
    scores_HN[:, -64:] = float("inf")
    scores_HN = scores_HN.to(dtype)
    count_H = tuple(torch.randint(num_columns + 1, (num_rows,), generator=generator).tolist())
    place_K = dispatch.highest_places(scores_HN.cuda(), count_H)
    assert place_K.is_cuda and torch.equal(place_K.cpu(), ranking.highest_places(scores_HN, count_H))
    is_marked_HN = dispatch.is_among_highest(scores_HN.cuda(), count_H)
    assert torch.equal(is_marked_HN.cpu(), ranking.is_among_highest(scores_HN, count_H))


def test_dispatch_takes_the_triton_path(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    scores_HN = torch.randn(2, 33, generator=torch.Generator().manual_seed(seed))
    expected_K = ranking.highest_places(scores_HN, (5, 8))
    for name in ("is_among_highest", "highest_places"):
        monkeypatch.setattr(ranking, name, _forbidden)
    monkeypatch.setattr(LayerCache, "take", _forbidden)
    assert torch.equal(dispatch.highest_places(scores_HN.cuda(), (5, 8)).cpu(), expected_K)
    assert dispatch.is_among_highest(scores_HN.cuda(), (5, 8)).sum() == 13
    layer = LayerCache.from_dense(*torch.randn(2, 2, 33, 16, device="cuda"))
    assert torch.equal(
        dispatch.take_slots(layer, expected_K.cuda(), (5, 8)).k_SD, layer.k_SD[expected_K.cuda()]
    )


def _forbidden(*_: object, **__: object) -> torch.Tensor:
    raise AssertionError("the reference was called on a GPU")


def test_slots_behind_two_thousand_million_numbers_are_copied() -> None:
    num_slots, head_dim = 2**24 + 1000, 128
    k_SD = torch.empty(num_slots, head_dim, dtype=torch.bfloat16, device="cuda")
    k_SD[:] = torch.arange(num_slots, device="cuda")[:, None] % 251
    assert k_SD.numel() > 2**31
    layer = LayerCache(k_SD, k_SD, torch.arange(num_slots, dtype=torch.int32, device="cuda"), (num_slots,))
    slot_K = torch.tensor([0, 3, 2**24 - 1, num_slots - 1], device="cuda")
    taken = dispatch.take_slots(layer, slot_K, (4,))
    assert taken.position_S.tolist() == slot_K.tolist()
    assert torch.equal(taken.k_SD, k_SD[slot_K]) and torch.equal(taken.v_SD, k_SD[slot_K])
    every = dispatch.take_slots(layer, layer.position_S.long(), (num_slots,))
    assert torch.equal(every.k_SD, k_SD)
