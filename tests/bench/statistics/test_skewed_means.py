"""The skewed worlds are as hard as the real ones, the rivals are what they are called, and the bench tells them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from bench.statistics import skewed_rivals as rivals
from bench.statistics.skewed_means import main, simulate
from bench.statistics.skewed_worlds import (
    Contexts,
    coverage,
    even_means,
    matched_differences,
    matched_means,
    recorded_differences,
    recorded_means,
    single,
)
from evaluators.statistics.intervals import mean_interval
from evaluators.statistics.skewed import skewed_ends, skewed_mean_interval
from jobs.results.store import ResultStore
from tests.fakes.rows import make_row


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_matched_worlds_are_as_hard_as_the_real_ones_on_other_data_sets_too() -> None:
    world = matched_means(rivals.student, 1, seed=5)[0]
    covered, below = coverage(rivals.student(world.drawn(2_000, 20, seed=9)), world.mean)
    assert 0.71 < covered < 0.83 and below < 0.01  # 2.5 points of matching, and three standard errors
    difference = matched_differences(rivals.student, 1, seed=5)[0]
    covered, _ = coverage(rivals.student(difference.drawn(2_000, 50, seed=9)), difference.mean)
    assert 0.86 < covered < 0.96


def test_one_value_a_context_is_drawn_as_it_is_and_several_as_their_linear_value() -> None:
    world = single("steps", np.array([0.0, 1.0, 5.0]))
    assert set(np.unique(world.drawn(20, 10, seed=1))) == {0.0, 1.0, 5.0} and world.mean == 2
    several = Contexts("several", np.array([2.0, 9.0]), np.array([1.0, 3.0]))
    drawn = several.drawn(40, 25, seed=1)
    assert several.mean == 11 / 4 and drawn.mean() == pytest.approx(11 / 4, abs=0.1)
    items = world.several_items(seed=1)
    assert (items.sizes_N >= 1).all() and (items.sizes_N <= 5).all() and items.sums_N[0] >= 0


def test_todays_method_is_the_shipped_mean_interval(rng: np.random.Generator) -> None:
    for num, abs_tolerance in ((30, 1e-9), (200, 0.15)):  # from 200 on: 999 draws against 9,999
        values = rng.lognormal(size=num)
        shipped = mean_interval(values.tolist(), range(num))
        assert shipped.low is not None and shipped.high is not None
        ends = rivals.today(values[None])
        wanted = pytest.approx((shipped.low, shipped.high), abs=abs_tolerance * (shipped.high - shipped.low))
        assert (ends.low[0], ends.high[0]) == wanted


def test_rivals_are_what_they_are_called(rng: np.random.Generator) -> None:
    values = rng.lognormal(sigma=0.5, size=60)
    low, high = (float(end[0]) for end in rivals.empirical_likelihood(values[None]))
    assert values.min() < low < values.mean() < high < values.max()
    for end in (low, high):  # where the ratio is the quantile, by weights found another way
        assert _slow_log_ratio(values, end) == pytest.approx(stats.chi2.ppf(0.95, 1), rel=0.15)
    normal = rng.normal(10, 1, size=(1, 400))
    of_t = rivals.student(normal)
    width = float(of_t.high[0] - of_t.low[0])
    for method in (rivals.johnson, rivals.hall, rivals.bootstrap_t, rivals.bootstrap_t_log, rivals.cox):
        ends = method(normal)
        assert (ends.low[0], ends.high[0]) == pytest.approx((of_t.low[0], of_t.high[0]), abs=0.15 * width)


def _slow_log_ratio(values: np.ndarray, mean: float) -> float:
    """-2 log of the product of n w, with w = 1 / n / (1 + l (x - mean)) for the l on a grid that gives this mean best."""
    centred = values - mean
    grid = np.linspace(-0.999 / centred.max(), -0.999 / centred.min(), 20_001)
    weights = 1 / len(values) / (1 + grid[:, None] * centred[None])
    best = weights[np.argmin(np.abs((weights * centred).sum(axis=1)))]
    return float(-2 * np.log(len(values) * best).sum())


def test_the_judgement_is_of_intervals_that_are_shipped(rng: np.random.Generator) -> None:
    world = single("gamma", rng.gamma(0.12, size=271))
    judged = simulate([world], {"t": rivals.student, "skewed": skewed_ends}, 400, 20, seed=3)
    assert judged["skewed"].covers > judged["t"].covers + 0.05 and judged["t"].width == 1
    values = world.drawn(1, 20, seed=3)[0]
    shipped = skewed_mean_interval(values.tolist(), range(20))
    low, high = skewed_ends(values)
    assert (shipped.low, shipped.high) == pytest.approx((float(low), float(high)))


def test_without_skewness_the_intervals_are_no_wider() -> None:
    judged = simulate(even_means(2, 1), {"skewed": skewed_ends}, 400, 50, seed=3)["skewed"]
    assert judged.width < 1.05 and judged.covers > 0.91


def test_recorded_rows_are_contexts_with_their_items_and_every_pair_of_variants(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    rows = [
        make_row(
            f"{variant}{item}", item_id=str(item), cluster_id=str(item // 2), variant=variant, kl_mean=kl
        )
        for variant, factor in (("full", 0.0), ("a", 1.0), ("b", 3.0))
        for item in range(6)
        for kl in [factor * item if (variant, item) != ("b", 5) else None]
    ]
    store.write_unit("u1", rows)
    a, b = recorded_means(tmp_path, "kl_mean")
    assert (a.name, a.sums_N.tolist(), a.sizes_N.tolist()) == ("a", [1, 5, 9], [2, 2, 2])
    assert (b.sums_N.tolist(), b.sizes_N.tolist()) == ([3, 15, 12], [2, 2, 1])
    (difference,) = recorded_differences(tmp_path, "kl_mean")
    assert difference.name == "a - b" and difference.sums_N.tolist() == [-2, -10, -8]


def test_tables_are_printed_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results, here = tmp_path / "results", tmp_path / "here"
    here.mkdir()
    rows = [
        make_row(
            f"{variant}{item}", item_id=str(item), cluster_id=str(item), variant=variant, kl_mean=0.1 * item
        )
        for variant in ("a", "b")
        for item in range(8)
    ]
    ResultStore(results).write_unit("u1", rows)
    monkeypatch.chdir(here)
    main(["--datasets", "4", "--rows", str(results)])
    text = capsys.readouterr().out
    assert "kl_mean of 8 contexts, differences" in text and "4 data sets a world" in text
    assert max(map(len, text.splitlines())) <= 126 and list(here.iterdir()) == []
