"""The simulation knows the truth, its fast methods are the shipped ones, and a small run of it can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.statistics.coverage import (
    NUM_RESAMPLES,
    Strata,
    bca_ends,
    flip_p_values,
    main,
    mcnemar_p_values,
    simulate,
    t_ends,
    t_p_values,
)
from bench.statistics.paired_worlds import MAX_ITEMS, Samples, World, draw, recorded_worlds, synthetic_worlds
from evaluators.statistics.intervals import mean_interval
from evaluators.statistics.macro_average import TaskPairs, macro_difference, macro_test
from evaluators.statistics.paired_tests import mcnemar_p_value


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def task_of(strata: Strata, dataset: int) -> list[TaskPairs]:
    """One simulated data set as items: a cluster's first item has its sum, the others 0."""
    tasks = []
    for it in strata.tasks:
        values: list[float] = []
        clusters: list[int] = []
        for cluster, (total, size) in enumerate(zip(it.sums_DC[dataset], it.sizes_DC[dataset], strict=True)):
            values += [float(total)] + [0.0] * (int(size) - 1)
            clusters += [cluster] * int(size)
        tasks.append(TaskPairs(values, [0.0] * len(values), clusters))
    return tasks


@pytest.mark.parametrize("mean", [0.0, -0.02, -0.05])
def test_tilting_gives_the_mean_and_keeps_the_values(mean: float, seed: int) -> None:
    for world in synthetic_worlds(seed):
        tilted = world.tilted(mean)
        assert tilted.mean == pytest.approx(mean, abs=1e-9)
        assert tilted.weights_N.sum() == pytest.approx(1) and (tilted.weights_N > 0).all()
        assert tilted.differences_N is world.differences_N


def test_drawn_items_have_the_worlds_mean_and_agree_within_a_context(rng: np.random.Generator) -> None:
    world = World("steps", np.array([-1.0, 0.0, 1.0]), np.array([0.3, 0.2, 0.5]))
    drawn = draw(world, 200, 100, MAX_ITEMS, rng)
    means_D = drawn.sums_DC.sum(axis=1) / drawn.sizes_DC.sum(axis=1)
    assert means_D.mean() == pytest.approx(0.2, abs=5 * means_D.std() / np.sqrt(200))
    assert set(np.unique(drawn.sizes_DC)) == {1, 2, 3, 4, 5}
    five = drawn.sums_DC[drawn.sizes_DC == 5]
    assert five.var() > 1.5 * 5 * (world.differences_N**2 @ world.weights_N - 0.04)  # alone, they add up to 5


@pytest.mark.parametrize(("num_tasks", "num_clusters"), [(1, 30), (3, 25)])
def test_fast_t_and_flips_are_the_shipped_ones(
    rng: np.random.Generator, seed: int, num_tasks: int, num_clusters: int
) -> None:
    worlds = synthetic_worlds(seed)[:num_tasks]
    strata = Strata([draw(it, 6, num_clusters, MAX_ITEMS, rng) for it in worlds])
    low_D, high_D = t_ends(strata, 0.95)
    flips_D = flip_p_values(strata)
    for dataset in range(6):
        tasks = task_of(strata, dataset)
        shipped = macro_difference(tasks).interval
        assert (low_D[dataset], high_D[dataset]) == pytest.approx((shipped.low, shipped.high))
        p = macro_test(tasks).p_value
        assert flips_D[dataset] == pytest.approx(p, abs=6 * np.sqrt(p * (1 - p) / NUM_RESAMPLES) + 0.002)


def test_fast_bca_is_the_shipped_one(rng: np.random.Generator, seed: int) -> None:
    strata = Strata([draw(synthetic_worlds(seed)[0], 4, 200, MAX_ITEMS, rng)])
    low_D, high_D = bca_ends(strata, 0.95)
    for dataset in range(4):
        task = task_of(strata, dataset)[0]
        shipped = mean_interval(task.a, task.clusters)
        assert shipped.low is not None and shipped.high is not None
        assert shipped.method == "bca_cluster_bootstrap"
        wanted = pytest.approx((shipped.low, shipped.high), abs=0.08 * (shipped.high - shipped.low))
        assert (low_D[dataset], high_D[dataset]) == wanted  # 1,999 draws against 9,999


def test_fast_t_test_and_mcnemar_are_scipys(rng: np.random.Generator, seed: int) -> None:
    world = synthetic_worlds(seed)[1]
    strata = Strata([draw(world, 20, 40, 1, rng)])
    sample = strata.tasks[0]
    for dataset, (t_p, mcnemar_p) in enumerate(
        zip(t_p_values(strata), mcnemar_p_values(sample), strict=True)
    ):
        values = sample.sums_DC[dataset]
        if values.sum() != 0:
            assert t_p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
        counts = (int(sample.num_higher_D[dataset]), int(sample.num_lower_D[dataset]))
        assert mcnemar_p == pytest.approx(mcnemar_p_value(*counts))


def test_a_coarse_table_is_near_what_the_methods_promise(seed: int) -> None:
    """600 data sets: five standard errors are 4.5 points of 5 %."""
    shares = simulate(synthetic_worlds(seed)[:1], 600, 60, 1, seed)
    assert 0.90 < shares["covers t"] < 1.0
    assert shares["alarm flip"] < 0.095 and shares["wrong"] < 0.095
    assert shares["passes t"] < 0.07
    assert shares["finds 5"] > shares["finds 3"] > 0


def test_the_simulation_sees_an_interval_that_counts_items_as_independent(
    rng: np.random.Generator, seed: int
) -> None:
    world = synthetic_worlds(seed)[0]
    sample = draw(world, 400, 60, MAX_ITEMS, rng)
    repeated = Samples(  # every context four times, as if they were different ones
        np.tile(sample.sums_DC, 4), np.tile(sample.sizes_DC, 4), sample.num_higher_D, sample.num_lower_D
    )
    low_D, high_D = t_ends(Strata([repeated]), 0.95)
    assert ((low_D <= world.mean) & (world.mean <= high_D)).mean() < 0.8


def test_recorded_scores_are_used_when_they_are_there(shared_data: Path, tmp_path: Path) -> None:
    worlds = recorded_worlds(shared_data / "preds" / "kv_policy_item_scores")
    assert len(worlds) == 3 and all(len(it.differences_N) == 200 for it in worlds)
    assert recorded_worlds(tmp_path) == []


def test_table_prints_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main(["--datasets", "4", "--recorded", str(tmp_path / "none")])
    text = capsys.readouterr().out
    assert "F1 with zeros" in text and "mean of 4 tasks" in text and "4 data sets a cell" in text
    assert max(map(len, text.splitlines())) <= 132
    assert list(tmp_path.iterdir()) == []
