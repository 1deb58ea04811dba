"""Many nights at once, drawn from recorded scores, and the gate's verdicts on them; a test holds them to the shipped ones.

A night's tasks are recorded LongBench tasks (per-item scores of Llama-3-8B, LLMkvsys/rethink-kv-compression), its items
drawn with replacement. Shapes: D nights, I items, K checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from bench.statistics.coverage import Strata, shipped_ends, t_errors
from bench.statistics.paired_worlds import Samples, World, recorded_scores
from evaluators.statistics.intervals import MIN_CLUSTERS, FloatArray
from evaluators.statistics.noninferiority import ONE_SIDED_ALPHA

TASKS = ("hotpotqa", "lcc", "multifieldqa_en", "qasper")
_CONFIGS = (
    "hf_Meta-Llama-3-8B-instruct_8192_b1",
    "kivi_Meta-Llama-3-8B-instruct_8192_b1_4bits_group32_residual128",
    "kivi_Meta-Llama-3-8B-instruct_8192_b1_2bits_group32_residual128",
)
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class Recorded:
    """Scores of one task, N items: of the full cache, of keys and values in 4 bits, and in 2 bits."""

    task: str
    full_N: FloatArray
    alike_N: FloatArray
    worse_N: FloatArray

    @property
    def flip_ratio(self) -> float:
        """Share of items that 4 bits change at all."""
        return float((self.full_N != self.alike_N).mean())

    @property
    def flip_size(self) -> float:
        """How far they are apart on those, on average."""
        differences_N = np.abs(self.full_N - self.alike_N)
        return float(differences_N[differences_N > 0].mean())


class Scores(NamedTuple):
    """One policy on one task, on D nights and in their baselines."""

    tonight_DI: FloatArray
    baseline_DI: FloatArray


class Verdicts(NamedTuple):
    """Of K checks on D nights; a check that neither passes nor fails is inconclusive."""

    passes_DK: BoolArray
    fails_DK: BoolArray


Draw = Callable[[Recorded, tuple[int, int], np.random.Generator], Scores]


def recorded_tasks(folder: Path) -> list[Recorded]:
    """The tasks of a night; none when nothing is recorded there."""
    scores = recorded_scores(folder)
    return [Recorded(task, *(scores[task, config] for config in _CONFIGS)) for task in TASKS if scores]


def null_night(recorded: Recorded, shape_DI: tuple[int, int], rng: np.random.Generator) -> Scores:
    """Full cache and 4 bits on the same items, a coin each says which is tonight's: measured flips, no true loss."""
    picked_DI = rng.integers(len(recorded.full_N), size=shape_DI)
    is_full_DI = rng.integers(2, size=shape_DI) == 1
    full_DI, alike_DI = recorded.full_N[picked_DI], recorded.alike_N[picked_DI]
    return Scores(np.where(is_full_DI, full_DI, alike_DI), np.where(is_full_DI, alike_DI, full_DI))


def lost_answers(loss: float) -> Draw:
    """A null night on which answers are lost whole, as many as make a true loss of `loss`."""

    def draw(recorded: Recorded, shape_DI: tuple[int, int], rng: np.random.Generator) -> Scores:
        night = null_night(recorded, shape_DI, rng)
        mean = float((recorded.full_N.mean() + recorded.alike_N.mean()) / 2)
        # A lost answer costs its score, so a share of loss / mean of them costs `loss` on average.
        is_lost_DI = rng.random(shape_DI) < loss / mean
        return Scores(np.where(is_lost_DI, 0.0, night.tonight_DI), night.baseline_DI)

    return draw


def two_bits(loss: float) -> Draw:
    """Gains and losses as 2-bit keys and values have them, drawn as often as makes a true loss of `loss`."""

    def draw(recorded: Recorded, shape_DI: tuple[int, int], rng: np.random.Generator) -> Scores:
        differences_N = recorded.worse_N - recorded.full_N
        even_N = np.full(len(differences_N), 1 / len(differences_N))
        tilted = World(recorded.task, differences_N, even_N).tilted(-loss)
        picked_DI = rng.choice(len(differences_N), size=shape_DI, p=tilted.weights_N)
        return Scores(recorded.worse_N[picked_DI], recorded.full_N[picked_DI])

    return draw


def verdicts(
    policies: Sequence[Sequence[Scores]], noises: Sequence[Sequence[Scores]], margin: float, alpha: float
) -> Verdicts:
    """The gate's rules on D nights: a check per policy and task and one over a policy's tasks, Holm over all of them.

    `policies` are scores by policy and task, `noises` the A/A noise of each. Checks are in that order, a policy's mean over
    tasks after its tasks.
    """
    passes, fails, p_values = [], [], []
    for tasks, noise in zip(policies, noises, strict=True):
        drawn, noisy = [_samples(it) for it in tasks], [_samples(it) for it in noise]
        groups = [([one], [other]) for one, other in zip(drawn, noisy, strict=True)]
        groups += [(drawn, noisy)] if len(drawn) > 1 else []
        for samples, floors in groups:
            pass_D, fail_D = _margin_verdicts(Strata(samples), margin)
            if len(samples) > 1:  # a mean passes where all its tasks do
                pass_D = pass_D | (~fail_D & np.all(passes[-len(samples) :], axis=0))
            passes.append(pass_D)
            fails.append(fail_D & ~_is_inside(Strata(samples), Strata(floors)))
            p_values.append(_excess_p(Strata(samples), margin))
    is_significant_DK = holm_adjusted(np.stack(p_values, axis=1)) < alpha
    return Verdicts(np.stack(passes, axis=1), np.stack(fails, axis=1) & is_significant_DK)


def holm_adjusted(p_DK: FloatArray) -> FloatArray:
    """Holm's step-down p-values of each night's K tests."""
    # Stable, like the sort of the shipped Holm.
    order_DK = np.argsort(p_DK, axis=1, kind="stable")
    weights_K = np.arange(p_DK.shape[1], 0, -1)
    sorted_DK = np.minimum(1.0, np.take_along_axis(p_DK, order_DK, axis=1) * weights_K)
    adjusted_DK = np.empty_like(p_DK)
    np.put_along_axis(adjusted_DK, order_DK, np.maximum.accumulate(sorted_DK, axis=1), axis=1)
    return adjusted_DK


def _samples(scores: Scores) -> Samples:
    gains_DI = scores.tonight_DI - scores.baseline_DI
    return Samples(gains_DI, np.ones_like(gains_DI), (gains_DI > 0).sum(axis=1), (gains_DI < 0).sum(axis=1))


def _margin_verdicts(strata: Strata, margin: float) -> tuple[BoolArray, BoolArray]:
    """Passes and fails by the 95 % interval, or where few items differ by the exact bound of the share that loses."""
    if sum(it.sums_DC.shape[1] for it in strata.tasks) < MIN_CLUSTERS:
        nothing_D = np.zeros(len(strata.mean_D), dtype=bool)
        return nothing_D, nothing_D
    low_D, high_D = shipped_ends(strata)
    enough_D = strata.has_enough_pairs_D
    pass_D = enough_D & (low_D > -margin)
    fail_D = enough_D & ~pass_D & (high_D < -margin)
    if len(strata.tasks) == 1:
        num_items = strata.tasks[0].sums_DC.shape[1]
        num_lower_D = strata.tasks[0].num_lower_D
        bound_D = stats.beta.ppf(1 - ONE_SIDED_ALPHA, num_lower_D + 1, num_items - num_lower_D)
        # The exact upper bound is NaN where every item loses; there enough items differ, so it is not asked.
        pass_D = pass_D | (~enough_D & (bound_D < margin))
    return pass_D, fail_D


def _is_inside(strata: Strata, noise: Strata) -> BoolArray:
    """Whether the loss is no larger than the far end of the A/A interval."""
    low_D, high_D = shipped_ends(noise)
    size_D = np.max(np.abs([noise.mean_D, low_D, high_D]), axis=0)
    return np.asarray((size_D > 0) & (np.abs(strata.mean_D) <= size_D))


def _excess_p(strata: Strata, margin: float) -> FloatArray:
    error_D, freedom_D = t_errors(strata)
    excess_D = strata.mean_D + margin
    with np.errstate(invalid="ignore", divide="ignore"):
        p_D = stats.t.cdf(excess_D / error_D, df=freedom_D)
    return np.where(error_D > 0, p_D, np.where(excess_D < 0, 0.0, 1.0))
