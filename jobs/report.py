"""The table at the end of a sweep, made from its parquet rows alone: `python jobs/report.py RESULTS_DIR [--html]`.

Reads a finished, broken-off or running sweep; loads no model. Only `--rescore` writes into the folder's rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.analysis.folder.findings import Findings
from jobs.analysis.ranking.order import BY_DEFAULT, SORTS
from jobs.console.command_line import EXIT_OK, Parser, told_to_users
from jobs.console.commands import program
from jobs.console.paths import local_path, shown
from jobs.console.printing import text_console
from jobs.reporting.exports import as_csv, as_json
from jobs.reporting.headline import headline_of
from jobs.reporting.terminal import View, render, report_console
from jobs.results.schema import ResultError
from jobs.results.store import ResultStore

_EPILOG = """\
examples:
  report results/demo --sort bytes             the table again, the smallest cache first
  report results/demo --html                   and the page with figures
  report results/demo --csv > numbers.csv      every number; what is not known is empty, never 0
"""
_BESIDE_THE_RESULTS = Path()  # `--html` without a file; None is `--html` not given at all


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a results folder; 0, or 2 when there is none."""
    options = _parser().parse_args(arguments)
    return told_to_users(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    store = ResultStore(options.results_dir)
    store.check_exists()
    if options.rescore:
        with store.held():
            _rescore(store)
    if options.submission is not None:
        return _submit(store, local_path(options.submission))
    return _report(store, options)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program("report"),
        description="Print the table of a finished, broken off or running sweep.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("results_dir", type=Path, help="the output_dir of a sweep, such as results/demo")
    parser.add_argument(
        "--sort",
        choices=SORTS,
        default=BY_DEFAULT,
        metavar="COLUMN",
        help=f"{', '.join(SORTS)} (default: nll)",
    )
    parser.add_argument(
        "--task",
        metavar="NAME",
        help="of one task alone, as ruler/4096/vt; with --html the page is report-NAME.html",
    )
    _add_how_much(parser)
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
    return parser


def _add_how_much(parser: argparse.ArgumentParser) -> None:
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument(
        "--brief", dest="is_brief", action="store_true", default=None, help="of several tasks the mean alone"
    )
    how_much.add_argument(
        "--all", dest="is_brief", action="store_false", help="every task, however many lines that are"
    )
    for name, what in (("csv", "a line per variant and task"), ("json", "with the headline")):
        how_much.add_argument(
            f"--{name}", action="store_true", help=f"all numbers for scripts, and nothing else: {what}"
        )


def _report(store: ResultStore, options: argparse.Namespace) -> int:
    findings = Findings.read(store)
    if findings.planned is None and not findings.rows:
        raise ResultError(f"there are no results in {str(store.root)!r}; run jobs/sweep.py")
    if options.task is not None:
        findings = findings.of_task(options.task)
    html = None if options.html is None else local_path(options.html)
    is_for_scripts = options.csv or options.json
    if options.csv:
        print(as_csv(findings.summary, options.sort), end="")
    elif options.json:
        print(as_json(findings.summary, options.sort, headline_of(findings)))
    else:
        console = report_console(options.width)
        sentences = headline_of(findings)
        view = View(options.sort, options.is_brief)
        console.print(render(findings.summary, console.width, view, sentences))
    if html is not None:
        # Only now: matplotlib takes half a second to load, which the table does not wait for.
        from jobs.reporting.page import DEFAULT_NAME, render_page, write_page

        name = DEFAULT_NAME if options.task is None else f"report-{options.task.replace('/', '-')}.html"
        path = store.root / name if html == _BESIDE_THE_RESULTS else html
        write_page(render_page(findings).html, path)
        # On stderr beside what a script reads.
        console = text_console(stderr=is_for_scripts)
        console.print(f"report      {shown(path)}", soft_wrap=True)
    return EXIT_OK


def _rescore(store: ResultStore) -> None:
    from jobs.results.rescore import change_lines, rescore_results

    # On stderr, since --csv and --json may follow.
    for line in change_lines(rescore_results(store, time.time())):
        print(line, file=sys.stderr)
    print(f"earlier rows stay in {store.rows_folder}, the newest of each are read\n", file=sys.stderr)


def _submit(store: ResultStore, folder: Path) -> int:
    from jobs.reporting.submission import write_submissions

    for line in write_submissions(store.read_table().to_pylist(), folder):
        print(line)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
