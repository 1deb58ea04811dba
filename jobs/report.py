"""The table at the end of a sweep, made from its parquet rows alone: `python jobs/report.py RESULTS_DIR [--html]`.

Never mixes query modes, models or tasks in one table, calls few clusters few, and always prints where every planned
row went.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from evaluators.statistics.intervals import MIN_CLUSTERS
from jobs.console.command_line import EXIT_BAD_INPUT, EXIT_OK
from jobs.published_beside import published_beside
from jobs.published_table import render_published
from jobs.report_table import overall_table, shown_name, task_table
from jobs.results.schema import ResultError
from jobs.results.store import ResultStore
from jobs.summary import ResultSummary, TaskSummary, summarize

_LOG_COLUMNS = 100
_MESSAGE_CHARS = 300
_LEGEND = (
    "NLL: nats per token of the gold answer; recov.: of what the context is worth to that NLL, the share that is left (0: "
    "as without it, 1: as with the full cache); KL and top-1: against the full cache, along its own answer; kept: measured "
    "slots; 95 % intervals, none where all values are equal"
)
_BESIDE_THE_RESULTS = Path()  # `--html` without a file
_CORPUS_SCORE = (
    "the score above is a mean over items; the published number, from corpus means of its parts, is"
)


def render(summary: ResultSummary, width: int) -> RenderableType:
    """Everything a reader needs, for a terminal of `width` columns."""
    parts: list[RenderableType] = []
    for setting in summary.settings():
        tasks = [task for task in summary.tasks if task.setting == setting]
        for task in tasks:
            parts += [task_table(task, width), *_notes(task), Text()]
        if len(tasks) > 1:
            parts += [overall_table(setting, summary.macro_means(setting), len(tasks)), Text()]
        for beside in published_beside(summary, setting):
            parts += [*render_published(beside, width), Text()]
    legend = [Text(_LEGEND, style="dim"), Text()] if parts else []
    return Group(*parts, *legend, *_failure_lines(summary), *_sum_lines(summary))


def report_console(width: int | None = None) -> Console:
    """Standard output, `width` columns wide: by default as wide as the terminal, or what a log file should get."""
    return Console(width=width or (None if sys.stdout.isatty() else _LOG_COLUMNS))


def _notes(task: TaskSummary) -> Iterator[Text]:
    if task.is_too_few:
        clusters = "1 cluster" if task.num_clusters == 1 else f"{task.num_clusters} clusters"
        why = f"too few to rank policies by ({MIN_CLUSTERS} are needed); the intervals are Student's t over contexts"
        yield Text(f"n = {clusters}: {why}", style="yellow")
    if not task.has_scale and task.num_clusters:
        yield Text(
            "no verdict: the full cache does not beat having no context by an interval above 0, so nothing can be recovered"
        )
    for reason in dict.fromkeys(it.unscored_reason for it in task.variants if it.unscored_reason):
        yield Text(f"no score: {reason}")
    published = [
        f"{shown_name(it)} {100 * it.corpus_score:.2f}" for it in task.variants if it.corpus_score is not None
    ]
    if published:
        yield Text(f"{_CORPUS_SCORE}: {', '.join(published)}")
    for variant in task.variants:
        if variant.num_degenerate:
            where = f"{variant.num_degenerate} of {variant.num_finished} rows"
            yield Text(
                f"degenerate: {shown_name(variant)}, {where}: {variant.degenerate_reason}", style="yellow"
            )


def _failure_lines(summary: ResultSummary) -> Iterator[Text]:
    for it in summary.failures:
        message = it.message if len(it.message) <= _MESSAGE_CHARS else f"{it.message[:_MESSAGE_CHARS]}…"
        where = f"failed: {it.label}, {it.num_rows} x {it.error_type} in {it.phase}"
        yield Text.assemble((where, "red"), f": {message}")


def _sum_lines(summary: ResultSummary) -> Iterator[Text]:
    missing = f" + {summary.num_missing} missing (not run yet)" if summary.num_missing else ""
    yield Text(
        f"planned {summary.num_planned} = {summary.num_ok} ok + {summary.num_truncated} truncated + "
        f"{summary.num_failed} failed{missing}",
        style="bold",
    )
    if summary.num_other:
        yield Text(f"{summary.num_other} rows of other settings in this folder are not shown", style="dim")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a results folder; 0, or 2 when there is none."""
    parser = argparse.ArgumentParser(
        description="Print the table of a finished, broken off or running sweep."
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
            return _submit(store, options.submission)
        return _report(store, options.html, options.width)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _report(store: ResultStore, html: Path | None, width: int | None) -> int:
    table, planned = store.read_table(), store.read_plan()
    if planned is None and table.num_rows == 0:
        raise ResultError(f"there are no results in {str(store.root)!r}; run jobs/sweep.py")
    console = report_console(width)
    console.print(render(summarize(table, planned), console.width))
    if html is not None:
        # Only now: matplotlib takes half a second to load, which the table does not wait for.
        from jobs.report_page import DEFAULT_NAME, write_report

        path = write_report(store, store.root / DEFAULT_NAME if html == _BESIDE_THE_RESULTS else html)
        console.print(f"report      {path}", highlight=False, soft_wrap=True)
    return EXIT_OK


def _rescore(store: ResultStore) -> None:
    from jobs.results.rescore import change_lines, rescore_results

    for line in change_lines(rescore_results(store, time.time())):
        print(line)
    print(f"earlier rows stay in {store.rows_folder}, the newest of each are read\n")


def _submit(store: ResultStore, folder: Path) -> int:
    from jobs.submission import write_submissions

    for line in write_submissions(store.read_table().to_pylist(), folder):
        print(line)
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
