"""Tests of ranking and copying slots by Triton that hold on any device; whoever imports them has a fixture `device`.

tests/gpu/test_ranking_triton.py runs them on CUDA, interpreted_triton_ranking.py under Triton's CPU interpreter.
"""

import itertools
import math
import random

import pytest
import torch
from torch import Tensor

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.reference import ranking
from tests.kvmerger.kernels.both.poison import poisoned_memory

SPECIAL = (math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0)
KINDS = ("distinct", "few", "special", "equal")
F32, BF16, F16, F64 = torch.float32, torch.bfloat16, torch.float16, torch.float64
# Columns, columns of a block (by the width where None), dtype.
FEW = [(1, None, F32), (2, None, F64), (33, None, BF16), (64, None, F16), (65, 16, F32), (40, 32, F64)]
MANY = [
    *itertools.product((1, 2, 31, 64, 700), (None,), (F32, BF16, F16, F64)),
    *itertools.product((65, 700), (16, 128), (F32, BF16, F64)),
]


def random_scores(rng: random.Random, num_rows: int, num_columns: int, kind: str) -> Tensor:
    """Scores in float64: all different, few different ones, with special ones among them, or all equal."""
    equal = rng.choice((*SPECIAL, 3.5))

    def draw() -> float:
        if kind == "equal":
            return equal
        if kind == "special" and rng.random() < 0.5:
            return rng.choice(SPECIAL)
        return rng.gauss(0, 1) * 10.0 ** rng.randint(-6, 6) if kind == "distinct" else rng.randint(-2, 2) / 2

    return torch.tensor([[draw() for _ in range(num_columns)] for _ in range(num_rows)], dtype=torch.float64)


def slow_marks(scores_HN: Tensor, count_H: tuple[int, ...]) -> Tensor:
    """Python's own stable sort, NaN in front."""
    marks = []
    for row, count in zip(scores_HN.double().cpu().tolist(), count_H, strict=True):
        order = sorted(range(len(row)), key=lambda column: (not math.isnan(row[column]), -row[column]))
        marks.append([column in set(order[:count]) for column in range(len(row))])
    return torch.tensor(marks)


@pytest.mark.parametrize(("num_columns", "block", "dtype"), FEW, ids=str)
def test_the_same_are_among_the_highest_as_in_a_stable_sort(
    num_columns: int, block: int | None, dtype: torch.dtype, seed: int, device: str
) -> None:
    check_ranking(num_columns, block, dtype, seed, device)


def check_ranking(num_columns: int, block: int | None, dtype: torch.dtype, seed: int, device: str) -> None:
    """Marks and places are those of Python's sort, and of the reference, for rows of every kind and none to all columns."""
    from kvmerger.kernels.triton import ranking as triton_ranking

    rng = random.Random(f"{seed} {num_columns} {dtype}")
    kinds = [*KINDS, rng.choice(KINDS), rng.choice(KINDS)]
    scores_HN = torch.cat([random_scores(rng, 1, num_columns, kind) for kind in kinds]).to(dtype).to(device)
    count_H = (*(rng.randint(0, num_columns) for _ in KINDS), 0, num_columns)
    expected_HN = slow_marks(scores_HN, count_H)
    assert torch.equal(ranking.is_among_highest(scores_HN.cpu(), count_H), expected_HN)
    with poisoned_memory():
        is_marked_HN = triton_ranking.is_among_highest(scores_HN, count_H, block)
        place_K = triton_ranking.highest_places(scores_HN, count_H, block)
    assert torch.equal(is_marked_HN.cpu(), expected_HN)
    assert torch.equal(place_K.cpu(), ranking.highest_places(scores_HN.cpu(), count_H))
    assert place_K.tolist() == expected_HN.flatten().nonzero().squeeze(1).tolist()


def test_scores_may_lie_in_memory_in_any_way(seed: int, device: str) -> None:
    from kvmerger.kernels.triton import ranking as triton_ranking

    scores_NH = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed)).to(device)
    for scores_HN in (scores_NH.T, scores_NH.T[:, 3:31], scores_NH[:, 0].expand(3, -1), scores_NH.T[:, ::2]):
        is_marked_HN = triton_ranking.is_among_highest(scores_HN, (9, 0, 99))
        assert torch.equal(is_marked_HN.cpu(), slow_marks(scores_HN, (9, 0, 99)))


def test_no_column_is_no_place(device: str) -> None:
    from kvmerger.kernels.triton import ranking as triton_ranking

    nothing_HN = torch.empty(3, 0, device=device)
    assert triton_ranking.is_among_highest(nothing_HN, (0, 0, 0)).shape == (3, 0)
    assert triton_ranking.highest_places(nothing_HN, (0, 0, 0)).numel() == 0


def test_what_would_leave_places_unwritten_is_refused(device: str) -> None:
    from kvmerger.kernels.triton import ranking as triton_ranking

    for scores_HN, count_H in (
        (torch.zeros(1, 9), (2, 2)),
        (torch.zeros(4, 9), (2, 2)),
        (torch.zeros(2, 9), (2, 10)),
    ):
        with pytest.raises(ValueError, match="a ranking takes scores"):
            triton_ranking.highest_places(scores_HN.to(device), count_H)


@pytest.mark.parametrize("num_chosen", [0, 1, 31, 77])
@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(8, torch.bfloat16), (80, torch.float16), (64, torch.float32)], ids=str
)
def test_slots_are_copied_bit_for_bit(
    head_dim: int, dtype: torch.dtype, num_chosen: int, seed: int, device: str
) -> None:
    from kvmerger.kernels.triton import ranking as triton_ranking

    generator = torch.Generator().manual_seed(seed)
    k_HND, v_HND = torch.randn(2, 3, 50, head_dim, generator=generator).to(dtype).to(device)
    layer = LayerCache.from_dense(k_HND, v_HND)
    slot_K = torch.randperm(150, generator=generator)[:num_chosen].sort().values.to(device)
    num_slots_H = tuple(torch.bincount(slot_K.cpu() // 50, minlength=3).tolist())
    with poisoned_memory():
        taken = triton_ranking.take_slots(layer, slot_K, num_slots_H)
    taken.check_integrity()
    expected = layer.take(slot_K, num_slots_H)
    assert taken.num_slots_H == expected.num_slots_H
    for ours, theirs in zip(taken.tensors(), expected.tensors(), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
