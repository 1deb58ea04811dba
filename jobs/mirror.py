"""Show a results folder in MLflow without running anything: `python jobs/sweep.py mirror RESULTS_DIR [--uri URI]`.

For rows that were computed while the server was away, scored again, or brought from another machine. Mirroring a folder
twice changes nothing, and a sweep that goes on later continues the same runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.console.command_line import EXIT_BAD_INPUT, EXIT_OK, Parser, told_to_users
from jobs.console.commands import program
from jobs.console.printing import tell
from jobs.results.store import ResultStore
from jobs.tracking.mirror import mirror_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror one folder; 0, or 2 when there is nothing to mirror or the server did not take it."""
    parser = Parser(
        prog=program("mirror"), description="Show a results folder in MLflow without running anything."
    )
    parser.add_argument("results_dir", type=Path, help="the output_dir of a sweep, such as results/demo")
    parser.add_argument("--uri", help="tracking server or sqlite:///FILE (default: what the settings name)")
    parser.add_argument("--experiment", help="(default: what the settings name)")
    options = parser.parse_args(arguments)
    return told_to_users(lambda: _mirror(options))


def _mirror(options: argparse.Namespace) -> int:
    store = ResultStore(options.results_dir)
    is_delivered, how_to_open = mirror_folder(store, options.uri, options.experiment)
    print("MLflow  " + how_to_open.replace("\n", "\n        "))
    if not is_delivered:
        tell("error: not everything arrived; the same command sends what is missing")
        return EXIT_BAD_INPUT
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
