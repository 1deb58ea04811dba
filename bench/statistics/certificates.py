"""How often is any certificate false? Simulated worlds in which every policy stands exactly at the boundary.

    python -m bench.statistics.certificates [--worlds 10000] [--seed 1]

Prints two tables and writes nothing. In each world 20 policies are tested on the same contexts, and a context that is hard
for one is hard for all as far as they are correlated. Every budget that must not be certified loses on exactly the share
asked for, which is as close to the truth as a false certificate can come. Docs: docs/statistics.md.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import optimize, stats

from bench.statistics.tables import share_of, table_of
from evaluators.statistics.fixed_sequence import most_bad, needed_contexts

SHARE, ERROR = 0.05, 0.05
NUM_POLICIES = 20
NUM_CONTEXTS = (117, 200, 400)
CORRELATIONS = (0.0, 0.5, 0.9)
_WORLDS_AT_ONCE = 250
_PERCENT = 100
_COLUMNS = 110
_MILD_SHARE = 0.01  # of the budget above the boundary in a sequence
_TASK_SHARES = (0.0, 0.02, 0.06, 0.12)  # four tasks, 5 % in the mixture
_NUM_QUESTIONS = 10
IntArray = NDArray[np.int64]
Draw = Callable[[int, float, int, np.random.Generator], IntArray]
"""(contexts, correlation, worlds, draws) → lost contexts (W worlds, P policies, L budgets from mild to strict)."""


def lost_alike(
    shares_NL: NDArray[np.float64], correlation: float, num_worlds: int, rng: np.random.Generator
) -> IntArray:
    """Lost contexts (W, P, L) of N contexts, each lost with its own share: all policies share one normal factor a context."""
    shape_WPN = (num_worlds, NUM_POLICIES, len(shares_NL))
    hard_WPN = rng.standard_normal((num_worlds, 1, len(shares_NL)))
    levels = []
    for limits_N in stats.norm.ppf(shares_NL).T:
        own_WPN = rng.standard_normal(shape_WPN)
        latent_WPN = np.sqrt(correlation) * hard_WPN + np.sqrt(1 - correlation) * own_WPN
        levels.append((latent_WPN < limits_N).sum(axis=2))
    return np.stack(levels, axis=2)


def at_the_boundary(
    num_contexts: int, correlation: float, num_worlds: int, rng: np.random.Generator
) -> IntArray:
    """One budget a policy, and none of them may be certified."""
    return lost_alike(np.full((num_contexts, 1), SHARE), correlation, num_worlds, rng)


def after_a_mild_one(
    num_contexts: int, correlation: float, num_worlds: int, rng: np.random.Generator
) -> IntArray:
    """A mild budget that is truly good, then two at the boundary, which the tests must not go on to."""
    shares_L = np.array([_MILD_SHARE, SHARE, SHARE])
    return lost_alike(np.tile(shares_L, (num_contexts, 1)), correlation, num_worlds, rng)


def over_tasks(num_contexts: int, correlation: float, num_worlds: int, rng: np.random.Generator) -> IntArray:
    """Four tasks in fixed equal numbers, on which different shares are lost: 5 % of the mixture."""
    shares_N = np.resize(_TASK_SHARES, num_contexts)
    # Where the number is none of fours, a little more or less than the share would be lost.
    shares_N = shares_N * (SHARE / shares_N.mean())
    return lost_alike(shares_N[:, None], correlation, num_worlds, rng)


def any_false(
    lost_WPL: IntArray, num_contexts: int, num_good: int, error: float, *, keeps_order: bool = True
) -> NDArray[np.bool_]:
    """Of each world, whether any policy gets a budget certified beyond its `num_good` first; `error` is of one sequence."""
    most = most_bad(num_contexts, SHARE, error)
    if most is None:
        return np.zeros(len(lost_WPL), dtype=bool)
    is_shown_WPL = lost_WPL <= most
    if keeps_order:  # up to the first that is not shown
        is_shown_WPL = np.cumprod(is_shown_WPL, axis=2) > 0
    return np.asarray(is_shown_WPL[:, :, num_good:].any(axis=(1, 2)))


class FalseWorlds(NamedTuple):
    """Worlds with any false certificate: by the shipped rule, and where one part of it is left out."""

    shipped: int
    without_order: int
    without_split: int


def simulate(
    draw: Draw, num_good: int, num_contexts: int, correlation: float, num_worlds: int, seed: int
) -> FalseWorlds:
    """Count worlds with any false certificate."""
    # A stream for each line of the table: with the same draws, one unlucky sample would stand in several.
    rng = np.random.default_rng([seed, num_good, num_contexts, round(_PERCENT * correlation)])
    found = np.zeros(3, dtype=np.int64)
    split = ERROR / NUM_POLICIES
    for number in _batches(num_worlds):
        lost_WPL = draw(num_contexts, correlation, number, rng)
        found += [
            any_false(lost_WPL, num_contexts, num_good, split).sum(),
            any_false(lost_WPL, num_contexts, num_good, split, keeps_order=False).sum(),
            any_false(lost_WPL, num_contexts, num_good, ERROR).sum(),
        ]
    return FalseWorlds(*map(int, found))


def simulate_questions(num_contexts: int, correlation: float, num_worlds: int, seed: int) -> tuple[int, int]:
    """One policy, ten questions a context: false certificates with contexts as units, and with questions as units.

    The unit's own share is at the boundary in both: 5 % of contexts have a bad question, or 5 % of questions are bad.
    """
    rng = np.random.default_rng([seed, num_contexts, round(_PERCENT * correlation)])
    of_question = stats.norm.ppf(SHARE)
    of_context = _limit_of_worst(correlation)
    most_of_contexts = most_bad(num_contexts, SHARE, ERROR)
    most_of_questions = most_bad(num_contexts * _NUM_QUESTIONS, SHARE, ERROR)
    assert most_of_contexts is not None and most_of_questions is not None
    by_context = by_question = 0
    for number in _batches(num_worlds):
        shape_WNQ = (number, num_contexts, _NUM_QUESTIONS)
        hard_WN = rng.standard_normal((number, num_contexts, 1))
        latent_WNQ = np.sqrt(correlation) * hard_WN + np.sqrt(1 - correlation) * rng.standard_normal(
            shape_WNQ
        )
        lost_W = (latent_WNQ.min(axis=2) < of_context).sum(axis=1)
        by_context += int((lost_W <= most_of_contexts).sum())
        by_question += int(((latent_WNQ < of_question).sum(axis=(1, 2)) <= most_of_questions).sum())
    return by_context, by_question


def _limit_of_worst(correlation: float) -> float:
    """The limit below which the smallest of a context's latent draws lies with a chance of `SHARE`."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def excess(limit: float) -> float:
        own = stats.norm.sf((limit - np.sqrt(correlation) * nodes) / np.sqrt(1 - correlation))
        return float(1 - weights @ own**_NUM_QUESTIONS) - SHARE

    return float(optimize.brentq(excess, -8.0, 2.0))


def _batches(num_worlds: int) -> Iterator[int]:
    for start in range(0, num_worlds, _WORLDS_AT_ONCE):
        yield min(_WORLDS_AT_ONCE, num_worlds - start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print; 1 where the shipped rule is shown to be wrong too often."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=10_000, help="simulated worlds of each line")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    start_s = time.perf_counter()
    console = Console(width=_COLUMNS, highlight=False)
    table, is_kept = _policies_table(options.worlds, options.seed)
    console.print(table)
    console.print()
    of_questions, is_kept_too = _questions_table(options.worlds, options.seed)
    console.print(of_questions)
    console.print(
        f"{options.worlds} worlds a line, seed {options.seed}; {needed_contexts(SHARE, ERROR / NUM_POLICIES)} contexts are "
        f"the fewest for {NUM_POLICIES} policies; Python {platform.python_version()}, numpy {np.__version__}, scipy "
        f"{scipy.__version__}; {time.perf_counter() - start_s:.0f} s"
    )
    return 0 if is_kept and is_kept_too else 1


def _policies_table(num_worlds: int, seed: int) -> tuple[Table, bool]:
    table = table_of(f"{NUM_POLICIES} policies: worlds with any false certificate, %", "each policy has")
    for head in ("contexts", "correlation", "shipped", "95 % interval", "order not kept", "error not split"):
        table.add_column(head, justify="right")
    is_kept = True
    worlds: tuple[tuple[str, Draw, int], ...] = (
        ("one budget, at the boundary", at_the_boundary, 0),
        ("a good one, then two at it", after_a_mild_one, 1),
        ("one budget, four unlike tasks", over_tasks, 0),
    )
    for name, draw, num_good in worlds:
        for num_contexts in NUM_CONTEXTS:
            for correlation in CORRELATIONS:
                found = simulate(draw, num_good, num_contexts, correlation, num_worlds, seed)
                is_first = (num_contexts, correlation) == (NUM_CONTEXTS[0], CORRELATIONS[0])
                is_last = (num_contexts, correlation) == (NUM_CONTEXTS[-1], CORRELATIONS[-1])
                shown, ends, low = share_of(found.shipped, num_worlds)
                is_kept = is_kept and low <= ERROR
                table.add_row(
                    name if is_first else "",
                    str(num_contexts),
                    f"{correlation:g}",
                    shown,
                    ends,
                    share_of(found.without_order, num_worlds)[0],
                    share_of(found.without_split, num_worlds)[0],
                    end_section=is_last,
                )
    return table, is_kept


def _questions_table(num_worlds: int, seed: int) -> tuple[Table, bool]:
    table = table_of(
        f"1 policy, {_NUM_QUESTIONS} questions a context: worlds with a false certificate, %", "contexts"
    )
    for head in ("correlation", "units are contexts", "95 % interval", "units are questions"):
        table.add_column(head, justify="right")
    is_kept = True
    for num_contexts in NUM_CONTEXTS:
        for correlation in CORRELATIONS:
            right, naive = simulate_questions(num_contexts, correlation, num_worlds, seed)
            shown, ends, low = share_of(right, num_worlds)
            is_kept = is_kept and low <= ERROR
            table.add_row(
                str(num_contexts) if correlation == CORRELATIONS[0] else "",
                f"{correlation:g}",
                shown,
                ends,
                share_of(naive, num_worlds)[0],
            )
    return table, is_kept


if __name__ == "__main__":
    raise SystemExit(main())
