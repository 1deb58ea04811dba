"""Compare two result folders, or two variants of one: `python jobs/compare.py RESULTS_A RESULTS_B`.

Reads parquet only and writes nothing. Exit code 0 whatever the verdicts say, 2 for what cannot be compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.analysis.comparability import HEAVY_COLUMNS, ComparisonError
from jobs.analysis.comparison import Comparison, compare_folders, compare_variants
from jobs.analysis.folder.findings import Findings
from jobs.analysis.labels import label_meant
from jobs.console.command_line import EXIT_OK, Parser, told_to_users
from jobs.console.commands import program
from jobs.reporting.comparison_table import render_comparison
from jobs.reporting.terminal import report_console
from jobs.results.schema import ResultError, Row
from jobs.results.store import ResultStore

DEFAULT_MARGIN_POINTS = 2.0
_POINTS = 100  # a score of 1
_EPILOG = """\
examples:
  compare results/monday results/tuesday                                    every variant both have, B - A
  compare results/monday results/tuesday --policy snapkv@0.5 --margin 1
  compare results/demo --policy kvmerger@0.5 --against snapkv@0.5           two variants of one folder
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; 0, or 2 with a sentence on standard error."""
    options = _parser().parse_args(arguments)
    return told_to_users(lambda: _compare(options))


def _compare(options: argparse.Namespace) -> int:
    comparison = _comparison(options)
    console = report_console(options.width)
    console.print(render_comparison(comparison, options.margin, console.width))
    return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program("compare"),
        description="Paired differences of two results on the same items, with intervals, p-values and verdicts.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results_a", type=Path, metavar="RESULTS_A", help="the reference: an output_dir")
    parser.add_argument(
        "results_b", nargs="?", type=Path, metavar="RESULTS_B", help="what is compared with it"
    )
    parser.add_argument(
        "--policy", metavar="LABEL", nargs="+", action="extend", default=[], help="only these variants"
    )
    parser.add_argument(
        "--against", metavar="LABEL", help="another variant of the same folder, the reference"
    )
    parser.add_argument(
        "--margin",
        type=_points,
        default=DEFAULT_MARGIN_POINTS,
        metavar="POINTS",
        help="how many points of score B may lose (default: %(default)s)",
    )
    parser.add_argument(
        "--width", type=int, metavar="N", help="columns to print on (default: the terminal's)"
    )
    return parser


def _points(text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    # "nan" and "inf" are floats to Python.
    if not (math.isfinite(points) and points > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of points above 0")
    return points


def _comparison(options: argparse.Namespace) -> Comparison:
    margin = options.margin / _POINTS
    if options.results_b is None:
        if options.against is None or len(options.policy) != 1:
            raise ComparisonError(
                "give two folders, or one folder with `--policy LABEL --against LABEL` for two of its variants"
            )
        rows = _read(options.results_a)
        policy, against = (label_meant(name, _labels(rows)) for name in (*options.policy, options.against))
        return compare_variants(rows, policy, against, margin)
    if options.against is not None:
        raise ComparisonError("--against names a variant of one folder; leave it or the second folder out")
    sides = _read(options.results_a), _read(options.results_b)
    meant = [label_meant(name, _labels(*sides)) for name in options.policy]
    found = compare_folders(*sides, meant, margin)
    return replace(found, name_a=str(options.results_a), name_b=str(options.results_b))


def _labels(*sides: Sequence[Row]) -> list[str]:
    return [row["variant"] for rows in sides for row in rows]


def _read(folder: Path) -> list[Row]:
    """The rows the folder's latest run owes; ResultError when there are none."""
    store = ResultStore(folder)
    store.check_exists()
    rows = Findings.read(store).rows_with(*HEAVY_COLUMNS)
    if not rows:
        raise ResultError(f"there are no results in {str(folder)!r}; run jobs/sweep.py")
    return rows


if __name__ == "__main__":
    sys.exit(main())
