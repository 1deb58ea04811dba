"""The table at the end of a sweep, made from its parquet rows alone: `python jobs/report.py RESULTS_DIR [--html]`.

Reads a finished, broken-off or running sweep; loads no model. Only `--rescore` writes into the folder's rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.analysis.findings import Findings
from jobs.console.command_line import EXIT_BAD_INPUT, EXIT_OK
from jobs.console.commands import program
from jobs.console.paths import PathError, local_path
from jobs.reporting.terminal import render, report_console
from jobs.results.schema import ResultError
from jobs.results.store import ResultStore

_BESIDE_THE_RESULTS = Path()  # `--html` without a file; None is `--html` not given at all


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a results folder; 0, or 2 when there is none."""
    parser = argparse.ArgumentParser(
        prog=program("report"), description="Print the table of a finished, broken off or running sweep."
    )
    parser.add_argument("results_dir", type=Path, help="the output_dir of a sweep, such as results/demo")
    parser.add_argument(
        "--html",
        nargs="?",
        type=Path,
        const=_BESIDE_THE_RESULTS,
        metavar="FILE",
        help="write a page with figures as well (default: report.html in the results folder)",
    )
    parser.add_argument(
        "--rescore",
        action="store_true",
        help="first score all stored predictions anew, without a model, and say what changed",
    )
    parser.add_argument(
        "--submission",
        type=Path,
        metavar="FOLDER",
        help="write the answers to ZeroSCROLLS' test set as the leaderboard takes them, a file per variant",
    )
    parser.add_argument("--width", type=int, help="columns to print on (default: the terminal's)")
    options = parser.parse_args(arguments)
    store = ResultStore(options.results_dir)
    try:
        store.check_exists()
        if options.rescore:
            _rescore(store)
        if options.submission is not None:
            return _submit(store, local_path(options.submission))
        html = None if options.html is None else local_path(options.html)
        return _report(store, html, options.width)
    except (ResultError, PathError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _report(store: ResultStore, html: Path | None, width: int | None) -> int:
    findings = Findings.read(store)
    if findings.planned is None and not findings.rows:
        raise ResultError(f"there are no results in {str(store.root)!r}; run jobs/sweep.py")
    console = report_console(width)
    console.print(render(findings.summary, console.width))
    if html is not None:
        # Only now: matplotlib takes half a second to load, which the table does not wait for.
        from jobs.reporting.page import DEFAULT_NAME, render_page, write_page

        path = store.root / DEFAULT_NAME if html == _BESIDE_THE_RESULTS else html
        write_page(render_page(findings).html, path)
        console.print(f"report      {path}", highlight=False, soft_wrap=True)
    return EXIT_OK


def _rescore(store: ResultStore) -> None:
    from jobs.results.rescore import change_lines, rescore_results

    for line in change_lines(rescore_results(store, time.time())):
        print(line)
    print(f"earlier rows stay in {store.rows_folder}, the newest of each are read\n")


def _submit(store: ResultStore, folder: Path) -> int:
    from jobs.reporting.submission import write_submissions

    for line in write_submissions(store.read_table().to_pylist(), folder):
        print(line)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
