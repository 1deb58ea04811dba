"""Show a results folder in MLflow without running anything: `python jobs/sweep.py mirror RESULTS_DIR [--uri URI]`.

For rows that were computed while the server was away, scored again, or brought from another machine. Mirroring a folder
twice changes nothing, and a sweep that goes on later continues the same runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.console.command_line import EXIT_BAD_INPUT, EXIT_OK
from jobs.console.commands import program
from jobs.results.schema import ResultError
from jobs.results.store import ResultStore
from jobs.tracking.mirror import mirror_folder
from jobs.tracking.tracker import TrackingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Mirror one folder; 0, or 2 when there is nothing to mirror or the server did not take it."""
    parser = argparse.ArgumentParser(
        prog=program("mirror"), description="Show a results folder in MLflow without running anything."
    )
    parser.add_argument("results_dir", type=Path, help="the output_dir of a sweep, such as results/demo")
    parser.add_argument("--uri", help="tracking server or sqlite:///FILE (default: what the settings name)")
    parser.add_argument("--experiment", help="(default: what the settings name)")
    options = parser.parse_args(arguments)
    try:
        is_delivered, how_to_open = mirror_folder(
            ResultStore(options.results_dir), options.uri, options.experiment
        )
    except (ResultError, TrackingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print("MLflow  " + how_to_open.replace("\n", "\n        "))
    if not is_delivered:
        print("error: not everything arrived; the same command sends what is missing", file=sys.stderr)
        return EXIT_BAD_INPUT
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
