"""How often is the truly best policy ruled out? Simulated worlds in which it is best by a hair.

    python -m bench.statistics.leaders [--worlds 600] [--seed 7]

Prints a line per kind of world and writes nothing. Each world's rows go through `jobs.analysis.ranking.leaders`, as a page's
do. Docs: docs/statistics.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evaluators.statistics.intervals import proportion_interval
from jobs.analysis.pairing import ANSWER_NLL, SCORE, ComparedMetric
from jobs.analysis.ranking.leaders import leader
from jobs.results.schema import OK, Row

_HAIR = 1e-4  # nats: makes one policy the best, and no rows can tell
_SPREAD, _RIGHT_SHARE = 0.3, 0.8


class World(NamedTuple):
    """Policies and contexts; of answer NLL, `is_skewed`: noise of a log-normal in place of a normal distribution."""

    metric: ComparedMetric
    num_policies: int
    num_contexts: int
    is_skewed: bool = False


WORLDS = (
    World(ANSWER_NLL, 10, 50),
    World(ANSWER_NLL, 10, 50, is_skewed=True),
    World(ANSWER_NLL, 20, 100, is_skewed=True),
    World(SCORE, 10, 50),
)


def is_best_ruled_out(world: World, rng: np.random.Generator) -> bool:
    """Whether policy 0, the best, is neither the leader of a world's rows nor beside it."""
    shared_N = rng.normal(size=world.num_contexts)  # N: contexts
    rows: list[Row] = []
    for policy in range(world.num_policies):
        noise_N = (
            rng.lognormal(size=world.num_contexts)
            if world.is_skewed
            else rng.normal(0, _SPREAD, world.num_contexts)
        )
        nll_N = shared_N + noise_N - _HAIR * (policy == 0)
        score_N = rng.random(world.num_contexts) < _RIGHT_SHARE
        rows += [
            {
                "status": OK,
                "variant": str(policy),
                "benchmark": "b",
                "task": "t",
                "item_id": str(item),
                "cluster_id": str(item),
                "answer_nll": float(nll_N[item]),
                "score": float(score_N[item]),
            }
            for item in range(world.num_contexts)
        ]
    column = world.metric.column
    means = {
        str(policy): statistics.fmean(row[column] for row in rows if row["variant"] == str(policy))
        for policy in range(world.num_policies)
    }
    found = leader(rows, world.metric, means)
    assert found is not None
    return "0" not in {found.label, *found.close}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print for each kind of world the share in which the best is ruled out, with its exact interval."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worlds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(options.seed)
    for world in WORLDS:
        num_missed = sum(is_best_ruled_out(world, rng) for _ in range(options.worlds))
        share = proportion_interval(num_missed, options.worlds)
        assert share.low is not None and share.high is not None
        kind = f"{world.metric.name}{', skewed' if world.is_skewed else ''}"
        print(
            f"{kind}: {world.num_policies} policies on {world.num_contexts} contexts: the best is ruled out in "
            f"{share.mean:.1%} of {options.worlds} worlds ({share.low:.1%} to {share.high:.1%})"
        )


if __name__ == "__main__":
    main()
