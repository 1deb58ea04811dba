"""Populations of paired differences with a mean that is known, to try the statistics on.

A population is a list of differences with a weight each. Tilting the weights exponentially gives it any mean that lies
between its smallest and largest value, and leaves the values (ties, zeros, jumps of a whole item) as they are.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import optimize, special

from evaluators.statistics.intervals import FloatArray

MAX_ITEMS = 5  # of a context, where contexts have several; 1 to 5 equally often
SHARED_RATIO = 0.5  # chance that an item repeats what its context drew: items on one text are alike
_SYNTHETIC_ITEMS = 4_000
_TILT_RANGE = 2_000.0
_FULL_CACHE = "hf_Meta-Llama-3-8B-instruct_8192_b1"
_REAL = {
    "real qasper, H2O 512": ("qasper", "h2o_Meta-Llama-3-8B-instruct_8192_b1_c512_w32_k7_maxpool"),
    "real trec, H2O 512": ("trec", "h2o_Meta-Llama-3-8B-instruct_8192_b1_c512_w32_k7_maxpool"),
    "real hotpotqa, KIVI 2 bit": (
        "hotpotqa",
        "kivi_Meta-Llama-3-8B-instruct_8192_b1_2bits_group32_residual128",
    ),
}


@dataclass(frozen=True)
class World:
    """Differences of single items, policy - full cache, N of them, and how often each comes."""

    name: str
    differences_N: FloatArray
    weights_N: FloatArray

    @property
    def mean(self) -> float:
        """The true mean difference."""
        return float(self.differences_N @ self.weights_N)

    @property
    def is_binary(self) -> bool:
        """Whether every item is right or wrong."""
        return bool(np.isin(self.differences_N, (-1, 0, 1)).all())

    def tilted(self, mean: float) -> World:
        """The same values with weights proportional to exp(t * value), t such that the mean is `mean`."""
        centred_N = self.differences_N - mean  # shifts all exponents alike, which softmax takes out again

        def weights(tilt: float) -> FloatArray:
            return np.asarray(special.softmax(np.log(self.weights_N) + tilt * centred_N))

        tilt = optimize.brentq(lambda it: float(weights(it) @ centred_N), -_TILT_RANGE, _TILT_RANGE)
        return World(self.name, self.differences_N, weights(tilt))


@dataclass(frozen=True)
class Samples:
    """D data sets of C contexts each: sums and numbers of their items, and the items that differ, up and down."""

    sums_DC: FloatArray
    sizes_DC: FloatArray
    num_higher_D: np.ndarray
    num_lower_D: np.ndarray


def synthetic_worlds(seed: int) -> list[World]:
    """Skewed F1 with many zeros, binary scores with many and with few flips, NLL with a long tail of losses."""
    rng = np.random.default_rng(seed)
    full = _f1_scores(rng)
    is_same = rng.random(_SYNTHETIC_ITEMS) < 0.55
    other = np.where(rng.random(_SYNTHETIC_ITEMS) < 0.3, 0.0, _f1_scores(rng))
    loss = 0.1 * rng.lognormal(sigma=1.2, size=_SYNTHETIC_ITEMS)
    flips = np.array([-1.0, 0.0, 1.0])
    return [
        _uniform("F1 with zeros", np.where(is_same, full, other) - full),
        World("binary, 16 % flips", flips, np.array([0.08, 0.84, 0.08])),
        World("binary, 6 % flips", flips, np.array([0.03, 0.94, 0.03])),
        _uniform("-NLL, long tail", 0.05 * rng.normal(size=_SYNTHETIC_ITEMS) - loss),  # more is better
    ]


def recorded_scores(folder: Path) -> dict[tuple[str, str], FloatArray]:
    """Per-item scores by task and configuration, recorded by others (LLMkvsys/rethink-kv-compression); none without them."""
    file = folder / "llmkvsys_llama3_8b_longbench.jsonl.gz"
    if not file.is_file():
        return {}
    with gzip.open(file, "rt") as lines:
        rows = map(json.loads, lines)
        return {(row["task"], row["config"]): np.array(row["scores"], dtype=float) for row in rows}


def recorded_worlds(folder: Path) -> list[World]:
    """Differences of recorded scores to the full cache's; none when there are none."""
    scores = recorded_scores(folder)
    return [
        _uniform(name, scores[task, config] - scores[task, _FULL_CACHE])
        for name, (task, config) in _REAL.items()
        if scores
    ]


def draw(
    world: World, num_datasets: int, num_clusters: int, max_items: int, rng: np.random.Generator
) -> Samples:
    """Data sets with 1 to `max_items` items a context, sizes equally likely and independent of the values."""
    shape = (num_datasets, num_clusters, max_items)
    cumulative_N = np.cumsum(world.weights_N)
    # Divided by its end, which is 1 only up to rounding: a draw above it would fall off the list.
    picked = np.searchsorted(cumulative_N / cumulative_N[-1], rng.random(shape))
    values_DCI = world.differences_N[picked]  # I: items of a context
    if max_items > 1:
        is_shared = rng.random(shape) < SHARED_RATIO
        values_DCI = np.where(is_shared, values_DCI[:, :, :1], values_DCI)
    sizes_DC = rng.integers(1, max_items + 1, size=shape[:2])
    is_there = np.arange(max_items) < sizes_DC[:, :, None]
    values_DCI = np.where(is_there, values_DCI, 0.0)
    return Samples(
        sums_DC=values_DCI.sum(axis=2),
        sizes_DC=sizes_DC.astype(float),
        num_higher_D=(values_DCI > 0).sum(axis=(1, 2)),
        num_lower_D=(values_DCI < 0).sum(axis=(1, 2)),
    )


def _uniform(name: str, differences_N: FloatArray) -> World:
    return World(name, differences_N, np.full(len(differences_N), 1 / len(differences_N)))


def _f1_scores(rng: np.random.Generator) -> FloatArray:
    kind = rng.random(_SYNTHETIC_ITEMS)
    partial = rng.beta(1.2, 1.6, size=_SYNTHETIC_ITEMS)
    return np.where(kind < 0.35, 0.0, np.where(kind < 0.5, 1.0, partial))
