"""Do the intervals cover and the tests keep quiet as often as they say? Simulated, on differences of known mean.

    python -m bench.statistics.coverage [--datasets 2000] [--seed 1] [--recorded FOLDER]

Prints a table and writes nothing. The methods are those of `evaluators`, over many data sets at once (a test holds the
two together) and with fewer resamples; every cell is a share of the data sets, in per cent.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import scipy
from rich import box
from rich.console import Console
from rich.table import Table
from scipy import stats

from bench.statistics.paired_worlds import MAX_ITEMS, Samples, World, draw, recorded_worlds, synthetic_worlds
from evaluators.statistics.intervals import (
    MIN_BOOTSTRAP_CLUSTERS,
    MIN_CLUSTERS,
    MIN_DISCORDANT_PAIRS,
    FloatArray,
    bca_levels,
    drawn_clusters,
)
from evaluators.statistics.noninferiority import ONE_SIDED_ALPHA
from evaluators.statistics.paired_tests import ALPHA

RECORDED = Path(__file__).parents[3] / "shared" / "data" / "preds" / "kv_policy_item_scores"
NUM_CLUSTERS = (20, 50, 100, 200)
NUM_TASKS = 4
MARGIN = 0.02  # two points of a score; of NLL, 0.02 nats
DROPS = (0.03, 0.05)
NUM_RESAMPLES = 1_999
_SIGN_SEED = 20_241
_TIE_TOLERANCE = 1e-9
_COLUMNS = 132
_MAX_CELLS = 20_000_000  # data sets x resamples at a time: 160 MB
_HEADS = (
    "covers t",
    "covers BCa",
    "below t",
    "below BCa",
    "alarm t",
    "alarm flip",
    "alarm McN",
    "passes t",
    "passes BCa",
    "finds 3",
    "finds 5",
    "wrong",
)


@dataclass(frozen=True)
class Strata:
    """One sample per task; a single task is a list of one."""

    tasks: Sequence[Samples]

    @property
    def mean_D(self) -> FloatArray:
        """Mean over tasks of the mean over items."""
        return np.mean([it.sums_DC.sum(axis=1) / it.sizes_DC.sum(axis=1) for it in self.tasks], axis=0)

    @property
    def pulls(self) -> list[FloatArray]:
        """Each cluster's influence on its task's mean, (D, C) a task."""
        return [
            (it.sums_DC - it.sizes_DC * (it.sums_DC.sum(axis=1) / it.sizes_DC.sum(axis=1))[:, None])
            / it.sizes_DC.sum(axis=1)[:, None]
            for it in self.tasks
        ]

    @property
    def has_enough_pairs_D(self) -> np.ndarray:
        """Whether enough items differ for a verdict."""
        num_discordant_D = sum(it.num_higher_D + it.num_lower_D for it in self.tasks)
        return np.asarray(num_discordant_D >= MIN_DISCORDANT_PAIRS)

    @property
    def has_enough_clusters(self) -> bool:
        """Whether there are enough contexts for a verdict."""
        return sum(it.sums_DC.shape[1] for it in self.tasks) >= MIN_CLUSTERS


def t_errors(strata: Strata) -> tuple[FloatArray, FloatArray]:
    """Standard error of the mean and Satterthwaite's degrees of freedom, (D,) each."""
    variances_SD = np.array([it.shape[1] / (it.shape[1] - 1) * (it**2).sum(axis=1) for it in strata.pulls])
    freedoms_S = np.array([it.shape[1] - 1 for it in strata.pulls])
    total_D = variances_SD.sum(axis=0)
    with np.errstate(invalid="ignore"):
        freedom_D = total_D**2 / (variances_SD**2 / freedoms_S[:, None]).sum(axis=0)
    return np.sqrt(total_D) / len(strata.tasks), np.where(total_D > 0, freedom_D, freedoms_S.sum())


def t_ends(strata: Strata, confidence: float) -> tuple[FloatArray, FloatArray]:
    """Student's interval of every data set."""
    error_D, freedom_D = t_errors(strata)
    half_D = stats.t.ppf((1 + confidence) / 2, df=freedom_D) * error_D
    return strata.mean_D - half_D, strata.mean_D + half_D


def t_p_values(strata: Strata) -> FloatArray:
    """Two-sided p of Student's test; 1 where nothing differs."""
    error_D, freedom_D = t_errors(strata)
    with np.errstate(invalid="ignore", divide="ignore"):
        p_D = 2 * stats.t.sf(np.abs(strata.mean_D) / error_D, df=freedom_D)
    return np.where(strata.mean_D == 0, 1.0, p_D)


def bca_ends(strata: Strata, confidence: float) -> tuple[FloatArray, FloatArray]:
    """BCa interval of every data set."""
    step = max(1, _MAX_CELLS // NUM_RESAMPLES)
    parts = [_bca_part(strata, slice(at, at + step), confidence) for at in range(0, len(strata.mean_D), step)]
    low_D, high_D = np.concatenate(parts).T
    return low_D, high_D


def shipped_ends(strata: Strata) -> tuple[FloatArray, FloatArray]:
    """The 95 % interval that users see for this number of contexts."""
    is_small = min(it.sums_DC.shape[1] for it in strata.tasks) < MIN_BOOTSTRAP_CLUSTERS
    return (t_ends if is_small else bca_ends)(strata, 0.95)


def flip_p_values(strata: Strata) -> FloatArray:
    """Two-sided p of whole clusters' signs, flipped at random."""
    shares_DC = np.concatenate([it.sums_DC / it.sizes_DC.sum(axis=1)[:, None] for it in strata.tasks], axis=1)
    signs_RC = _signs(shares_DC.shape[1])
    sizes_DC = np.abs(shares_DC)
    # Not scipy's permutation_test along an axis: over 2,000 data sets a matrix product takes a tenth of its time.
    observed_D = np.abs(shares_DC.sum(axis=1)) - _TIE_TOLERANCE * sizes_DC.sum(axis=1)
    num_as_far_D = (np.abs(sizes_DC @ signs_RC.T) >= observed_D[:, None]).sum(axis=1)
    return (num_as_far_D + 1) / (NUM_RESAMPLES + 1)


def mcnemar_p_values(samples: Samples) -> FloatArray:
    """Exact McNemar of every data set: twice the smaller tail of a fair coin."""
    num_D = samples.num_higher_D + samples.num_lower_D
    fewer_D = np.minimum(samples.num_higher_D, samples.num_lower_D)
    return np.minimum(1.0, 2 * stats.binom.cdf(fewer_D, num_D, 0.5))


def _bca_part(strata: Strata, part: slice, confidence: float) -> FloatArray:
    """Both ends, (D, 2)."""
    mean_D = strata.mean_D[part]
    means_DR = np.zeros((len(mean_D), NUM_RESAMPLES))
    for stream, it in enumerate(strata.tasks):
        counts_RC = _counts(it.sums_DC.shape[1], stream)
        means_DR += (it.sums_DC[part] @ counts_RC.T) / (it.sizes_DC[part] @ counts_RC.T)
    means_DR /= len(strata.tasks)
    pull_DC = np.concatenate([it[part] for it in strata.pulls], axis=1)
    levels_D2 = bca_levels(means_DR, mean_D, pull_DC, confidence)
    # Row by row: numpy takes the same levels for every row.
    return np.stack([np.quantile(*both) for both in zip(means_DR, levels_D2, strict=True)])


@cache  # the same resamples for all data sets, as a seeded method has them
def _counts(num_clusters: int, stream: int) -> FloatArray:
    # How often each cluster is drawn: sums over resamples are then one matrix product.
    drawn_RC = np.concatenate(list(drawn_clusters(num_clusters, stream, NUM_RESAMPLES)))
    return np.stack([np.bincount(it, minlength=num_clusters) for it in drawn_RC]).astype(float)


@cache
def _signs(num_clusters: int) -> FloatArray:
    bits_RC = np.random.default_rng(_SIGN_SEED).integers(
        0, 2, size=(NUM_RESAMPLES, num_clusters), dtype=np.int8
    )
    return bits_RC * 2.0 - 1


def simulate(
    worlds: Sequence[World], num_datasets: int, num_clusters: int, max_items: int, seed: int
) -> dict[str, float]:
    """One line of the table: shares of the data sets, 0 to 1; several worlds are the tasks of one mean."""
    rng = np.random.default_rng([seed, num_clusters, max_items, len(worlds)])

    def drawn(mean: float | None) -> Strata:
        tilted = [it if mean is None else it.tilted(mean) for it in worlds]
        return Strata([draw(it, num_datasets, num_clusters, max_items, rng) for it in tilted])

    truth = float(np.mean([it.mean for it in worlds]))
    # One stream of random numbers: in another order these would be other data sets, and another table.
    untilted, null, at_margin = drawn(None), drawn(0.0), drawn(-MARGIN)
    flip_null_D = flip_p_values(null)
    enough_D = at_margin.has_enough_pairs_D
    one_sided = 1 - 2 * ONE_SIDED_ALPHA
    t_D, bca_D = t_ends(untilted, 0.95), bca_ends(untilted, 0.95)
    shares = {
        "covers t": _covered(*t_D, truth),
        "covers BCa": _covered(*bca_D, truth),
        "below t": float((truth < t_D[0]).mean()),
        "below BCa": float((truth < bca_D[0]).mean()),
        "alarm t": float((t_p_values(null) < ALPHA).mean()),
        "alarm flip": float((flip_null_D < ALPHA).mean()),
        "passes t": float((enough_D & (t_ends(at_margin, one_sided)[0] > -MARGIN)).mean()),
        "passes BCa": float((enough_D & (bca_ends(at_margin, one_sided)[0] > -MARGIN)).mean()),
    }
    if len(worlds) == 1 and worlds[0].is_binary and max_items == 1:
        shares["alarm McN"] = float((mcnemar_p_values(null.tasks[0]) < ALPHA).mean())
    for drop in DROPS:
        shares[f"finds {100 * drop:.0f}"] = float((flip_p_values(drawn(-drop)) < ALPHA).mean())
    is_wrong_D = null.has_enough_pairs_D & (flip_null_D < ALPHA) & _is_off_zero(null)
    shares["wrong"] = float(null.has_enough_clusters * is_wrong_D.mean())
    return shares


def _is_off_zero(strata: Strata) -> np.ndarray:
    low_D, high_D = shipped_ends(strata)
    return (low_D > 0) | (high_D < 0)


def _covered(low_D: FloatArray, high_D: FloatArray, truth: float) -> float:
    return float(((low_D <= truth) & (truth <= high_D)).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", type=int, default=2_000, help="simulated data sets of each cell")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="folder of recorded scores, if any")
    options = parser.parse_args(arguments)
    start_s = time.perf_counter()
    synthetic, recorded = synthetic_worlds(options.seed), recorded_worlds(options.recorded)
    groups = [[it] for it in (*synthetic, *recorded)]
    groups.append((synthetic[:3] * NUM_TASKS)[:NUM_TASKS])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("differences", no_wrap=True)
    for head in ("items", "n", *_HEADS):
        table.add_column(head, justify="right")
    for worlds in groups:
        name = worlds[0].name if len(worlds) == 1 else f"mean of {len(worlds)} tasks"
        for max_items in (1, MAX_ITEMS):
            for num_clusters in NUM_CLUSTERS:
                shares = simulate(worlds, options.datasets, num_clusters, max_items, options.seed)
                cells = [f"{100 * shares[head]:.1f}" if head in shares else "" for head in _HEADS]
                items = "1" if max_items == 1 else f"1-{max_items}"
                table.add_row(
                    name, items, str(num_clusters), *cells, end_section=num_clusters == NUM_CLUSTERS[-1]
                )
    console = Console(width=_COLUMNS)
    console.print(table)
    console.print(
        f"{options.datasets} data sets a cell, {NUM_RESAMPLES} resamples, seed {options.seed}; Python "
        f"{platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}; "
        f"{time.perf_counter() - start_s:.0f} s",
        highlight=False,
    )


if __name__ == "__main__":
    main()
