"""Places and targets are indices of tokens that are there, whatever the scores are and whatever memory held before."""

from __future__ import annotations

import math
import random

import pytest
import torch

from kvmerger.cache.layer_cache import LayerCache
from kvmerger.kernels.reference.merging import first_argmax
from kvmerger.kernels.reference.nearest import EVICTED, NO_COSINE, most_similar_kept
from kvmerger.kernels.reference.ranking import highest_places, is_among_highest, marked_places
from kvmerger.merging.merge import groups_of, merge_groups, whole_runs
from kvmerger.merging.runs import run_maxima, run_sums, runs_of
from kvmerger.merging.targets import heaviest_kept_of_run, more_similar_neighbour
from kvmerger.merging.weights import member_weights
from tests.kvmerger.kernels.both.poison import poisoned_memory

SPECIAL = (math.nan, math.inf, -math.inf, 0.0, 1.0)
H, N, D = 3, 11, 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_places_are_whole_and_in_range_whatever_is_nan(dtype: torch.dtype, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        scores_HN = torch.tensor([[rng.choice(SPECIAL) for _ in range(N)] for _ in range(H)], dtype=dtype)
        count_H = tuple(rng.randint(0, N) for _ in range(H))
        with poisoned_memory():
            place_K = highest_places(scores_HN, count_H)
        assert place_K.tolist() == sorted(set(place_K.tolist()))
        assert torch.bincount(place_K // N, minlength=H).tolist() == [*count_H]
        assert torch.equal(is_among_highest(scores_HN, count_H).flatten().nonzero()[:, 0], place_K)


@pytest.mark.parametrize("shape", [(1, N), (2 * H, N), (N,), (H, N, 1)])
def test_scores_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    for rank in (highest_places, is_among_highest):
        with pytest.raises(
            ValueError, match=r"a ranking takes scores \(H, N\) and for each row a whole number"
        ):
            rank(torch.zeros(shape), (2,) * H)


@pytest.mark.parametrize("count", [-1, 2.0, N + 1, torch.tensor(2)])
def test_counts_that_are_none_are_refused(count: object) -> None:
    with pytest.raises(ValueError, match=f"from 0 to {N}"):
        highest_places(torch.zeros(1, N), (count,))  # type: ignore[arg-type]


def test_places_that_nobody_marked_are_indices_all_the_same() -> None:
    with poisoned_memory():
        place_K = marked_places(torch.tensor([False, True, False]), 3)
    assert 0 <= int(place_K.min()) <= int(place_K.max()) < 3


def test_a_run_with_nan_has_a_place_of_its_own(seed: int) -> None:
    rng = random.Random(seed)
    length_R = torch.tensor([3, 1, 4])
    run_F = torch.repeat_interleave(torch.arange(3), length_R)
    for _ in range(20):
        values_F = torch.tensor([rng.choice(SPECIAL) for _ in range(8)])
        assert torch.equal(run_F[first_argmax(values_F, length_R, run_F)], torch.arange(3))


def test_targets_of_keys_with_nan_are_kept_tokens(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    k_HND = torch.randn(H, N, D, generator=generator)
    k_HND[torch.rand(H, N, generator=generator) < 0.3] = math.nan
    is_kept_HN = torch.rand(H, N, generator=generator) < 0.4
    is_kept_HN[0, 0], is_kept_HN[1] = True, False
    with poisoned_memory():
        target_HN, _ = most_similar_kept(k_HND, is_kept_HN)
        others = (
            more_similar_neighbour(k_HND, is_kept_HN).target_HN,
            heaviest_kept_of_run(k_HND, is_kept_HN, runs_of(is_kept_HN[:, 1:]), k_HND[:, :, 0]).target_HN,
        )
    for targets_HN in (target_HN.where(~is_kept_HN, torch.arange(N)), *others):
        assert (targets_HN[1] == EVICTED).all()
        groups_of(targets_HN)  # raises for a target that is no kept token
    nothing_HN = torch.zeros(H, N, dtype=torch.bool)
    target_HN, cosine_HN = most_similar_kept(k_HND, nothing_HN)
    assert (target_HN == EVICTED).all() and (cosine_HN == NO_COSINE).all()


@pytest.mark.parametrize("target", [-2, N, 10**9, 1])
def test_a_target_that_is_no_kept_token_is_refused(target: int) -> None:
    target_HN = torch.full((H, N), EVICTED)
    target_HN[:, 0], target_HN[2, 5] = 0, target
    with pytest.raises(ValueError, match="1 targets are neither a kept token of the head"):
        groups_of(target_HN)


def test_values_that_do_not_fit_their_groups_are_refused(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = LayerCache.from_dense(*torch.randn(2, H, N, D, generator=generator))
    runs = runs_of(torch.rand(H, N - 1, generator=generator) < 0.5)
    groups = whole_runs(runs, first_argmax(torch.zeros(H * N), runs.length_R, runs.run_F))
    short = torch.ones(H * N - 1)
    for reduce in (run_sums, run_maxima):
        with pytest.raises(ValueError, match=f"{H * N} members, and there are {H * N - 1} values"):
            reduce(short, runs)
    with pytest.raises(ValueError, match=f"one weight for each of the {H * N} members"):
        merge_groups(layer, groups, key_weight_M=short, value_weight_M=None)
    with pytest.raises(ValueError, match=f"one number for each of {H * N} keys"):
        member_weights("attention", layer.k_SD, short, groups, None)
    with pytest.raises(ValueError, match=r"links must be bools"):
        runs_of(torch.ones(H, N - 1))
    with pytest.raises(ValueError, match=r"targets must be torch\.int64"):
        groups_of(torch.zeros(H, N))
    for marks_HN in (torch.ones(H, N), torch.ones(H, N - 1, dtype=torch.bool)):
        with pytest.raises(ValueError, match="marks of kept tokens must be bools"):
            more_similar_neighbour(layer.k_HND, marks_HN)
