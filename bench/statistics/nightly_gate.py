"""How often does the gate cry wolf, and what does it find at how many items? Simulated nights from recorded scores.

    python -m bench.statistics.nightly_gate [--nights 2000] [--seed 1] [--recorded FOLDER]

Prints three tables and writes nothing. A night has two policies on four tasks: ten checks of scores, one family. Docs:
docs/nightly.md.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy
from rich.console import Console
from rich.table import Table

from bench.statistics.coverage import RECORDED
from bench.statistics.simulated_nights import (
    Draw,
    Recorded,
    Verdicts,
    lost_answers,
    null_night,
    recorded_tasks,
    two_bits,
    verdicts,
)
from bench.statistics.tables import share_of, table_of
from jobs.settings.gate import GateSettings

NUM_ITEMS = (50, 100, 200, 400, 800)
MARGIN = 0.01
MARGINS = (0.01, 0.015, 0.02, 0.03)
DROP = 0.03
_COLUMNS = 120
_POINTS = 100
_PERCENT = 100


def simulate(
    recorded: Sequence[Recorded],
    num_nights: int,
    num_items: int,
    draws: Sequence[Sequence[Draw]],
    seed: int,
    margin: float = MARGIN,
) -> Verdicts:
    """Verdicts on nights of `num_items` a task; `draws` say how each policy does on each task."""
    rng = np.random.default_rng([seed, num_items])
    shape_DI = (num_nights, num_items)
    # Drawn in this order from one stream: policies first, then the night's A/A rows.
    policies = [[draw(it, shape_DI, rng) for draw, it in zip(of, recorded, strict=True)] for of in draws]
    noises = [[null_night(it, shape_DI, rng) for it in recorded]] * len(draws)  # one full cache a night
    return verdicts(policies, noises, margin, GateSettings().alpha)


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nights", type=int, default=2_000, help="simulated nights of each line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--recorded", type=Path, default=RECORDED, help="folder of recorded scores")
    options = parser.parse_args(arguments)
    start_s = time.perf_counter()
    recorded = recorded_tasks(options.recorded)
    console = Console(width=_COLUMNS, highlight=False)
    if not recorded:
        console.print(
            f"there are no recorded scores in {options.recorded}; name their folder with --recorded",
            soft_wrap=True,
        )
        return 2
    for it in recorded:
        console.print(
            f"{it.task}: {len(it.full_N)} recorded items, {it.flip_ratio:.0%} flip, by {it.flip_size:.2f} on average"
        )
    console.print(_false_alarms(recorded, options.nights, options.seed))
    console.print(_detection(recorded, options.nights, options.seed))
    console.print(_passes(recorded, options.nights, options.seed))
    console.print(
        f"{options.nights} nights a line, margin {_POINTS * MARGIN:g} point, alpha {GateSettings().alpha:g}, seed "
        f"{options.seed}; Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}; "
        f"{time.perf_counter() - start_s:.0f} s"
    )
    return 0


def _false_alarms(recorded: Sequence[Recorded], num_nights: int, seed: int) -> Table:
    table = table_of("nights without a loss beyond the margin", "the true loss is")
    for head in ("items a task", "false alarms", "95 % interval", "night passes"):
        table.add_column(head, justify="right")
    for name, draw in (
        ("nothing: flips alone", null_night),
        ("the margin, everywhere", lost_answers(MARGIN)),
    ):
        for num_items in NUM_ITEMS:
            found = simulate(recorded, num_nights, num_items, [[draw] * len(recorded)] * 2, seed)
            num_alarms = int(found.fails_DK.any(axis=1).sum())
            table.add_row(
                name if num_items == NUM_ITEMS[0] else "",
                str(num_items),
                *share_of(num_alarms, num_nights)[:2],
                f"{_PERCENT * found.passes_DK.all(axis=1).mean():.1f}",
                end_section=num_items == NUM_ITEMS[-1],
            )
    return table


def _detection(recorded: Sequence[Recorded], num_nights: int, seed: int) -> Table:
    table = table_of(f"one of two policies loses {_POINTS * DROP:g} points", "how")
    for head in ("on", "items a task", "found", "95 % interval", "passes all the same"):
        table.add_column(head, justify="right")
    for name, worse in (("answers lost whole", lost_answers(DROP)), ("as 2-bit K and V", two_bits(DROP))):
        for where, num_worse in (("all 4 tasks", len(recorded)), ("1 of 4", 1)):
            for num_items in NUM_ITEMS:
                # The last task is qasper, whose flips are the most frequent.
                draws = [null_night] * (len(recorded) - num_worse) + [worse] * num_worse
                found = simulate(recorded, num_nights, num_items, [draws, [null_night] * len(recorded)], seed)
                of_policy_DK = slice(0, len(recorded) + 1)
                num_found = int(found.fails_DK[:, of_policy_DK].any(axis=1).sum())
                is_first = num_items == NUM_ITEMS[0]
                table.add_row(
                    name if is_first and num_worse > 1 else "",
                    where if is_first else "",
                    str(num_items),
                    *share_of(num_found, num_nights)[:2],
                    f"{_PERCENT * found.passes_DK.all(axis=1).mean():.1f}",
                    end_section=num_items == NUM_ITEMS[-1],
                )
    return table


def _passes(recorded: Sequence[Recorded], num_nights: int, seed: int) -> Table:
    table = table_of("nights without any loss that pass, and checks that do", "margin")
    for num_items in NUM_ITEMS:
        table.add_column(f"{num_items} items", justify="right")
    for margin in MARGINS:
        cells = []
        for num_items in NUM_ITEMS:
            draws = [[null_night] * len(recorded)] * 2
            found = simulate(recorded, num_nights, num_items, draws, seed, margin)
            night, check = found.passes_DK.all(axis=1).mean(), found.passes_DK.mean()
            cells.append(f"{_PERCENT * night:.0f}, {_PERCENT * check:.0f}")
        table.add_row(f"{_POINTS * margin:g} points", *cells)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
