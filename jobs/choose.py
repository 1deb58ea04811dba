"""Which policy, at which memory: `python jobs/sweep.py choose RESULTS [--loss 0.1 | --memory 24GiB --tokens 32000]`.

Reads stored rows only, loads no model and writes nothing. Exit code 0 whatever the answer is, 2 for a question that the
results cannot answer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

from jobs.analysis.choosing.certificates import Contract, certify
from jobs.analysis.choosing.fits import Demand, what_fits
from jobs.analysis.choosing.losses import LOSS_KINDS, ChoiceError, loss_kind
from jobs.analysis.choosing.step_times import SECONDS
from jobs.analysis.folder.findings import Findings
from jobs.console.byte_sizes import parse_bytes
from jobs.console.command_line import EXIT_OK, Parser, told_to_users
from jobs.console.commands import program
from jobs.reporting.choice_json import certificates_as_json, fits_as_json
from jobs.reporting.choice_tables import render_certificates, render_fits
from jobs.reporting.terminal import report_console
from jobs.results.grouping import ISOLATED
from jobs.results.schema import ResultError, Row
from jobs.results.store import ResultStore

_CONTRACT = Contract()
_EPILOG = """\
Certified: the smallest budget of each policy at which at most a share of contexts lose more than a loss, by exact tests that
are all right together with the confidence asked for. Fits: with --memory and --tokens. Both: give --loss too.
examples:
  choose results/my                                             at most 5 % of contexts lose more than 0.1 of score
  choose results/my --metric nll --loss 0.05 --share 0.1 --by task
  choose results/my --policy snapkv keydiff+int8                the error is split over these two alone
  choose results/my --memory 24GiB --tokens 32000 --requests 8 --weights 15GiB
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answer; 0, or 2 with a sentence on standard error."""
    options = _parser().parse_args(arguments)
    return told_to_users(lambda: _choose(options))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog=program("choose"),
        description="Which policy, at which memory: answered from stored rows, without a model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results_dir", type=Path, metavar="RESULTS", help="the output_dir of a sweep, such as results/demo"
    )
    what = f"(default: {_CONTRACT.most_loss:g}, in the metric's unit: of score 0.1 are 10 points)"
    parser.add_argument("--loss", type=float, metavar="X", help=f"what a context may lose {what}")
    parser.add_argument(
        "--share",
        type=float,
        metavar="X",
        help=f"of contexts that may lose more (default: {_CONTRACT.share:g})",
    )
    parser.add_argument("--confidence", type=float, metavar="X", help=f"(default: {_CONTRACT.confidence:g})")
    parser.add_argument(
        "--metric",
        default=_CONTRACT.kind.name,
        metavar="NAME",
        help=f"what is lost: {', '.join(LOSS_KINDS)} (default: %(default)s)",
    )
    parser.add_argument("--by", choices=("task",), help="a certificate for each task, not for their mixture")
    parser.add_argument(
        "--policy", metavar="NAME", nargs="+", action="extend", default=[], help="certify these alone"
    )
    parser.add_argument("--keep-cut", action="store_true", help="count contexts whose prompts were cut")
    parser.add_argument("--memory", metavar="SIZE", help="what must hold all requests, as 24GiB")
    parser.add_argument("--tokens", type=_positive, metavar="N", help="context of a request, with --memory")
    parser.add_argument("--requests", type=_positive, metavar="N", help="at once, with --memory (default: 1)")
    parser.add_argument("--weights", metavar="SIZE", help="what the model's weights take of --memory")
    parser.add_argument("--json", action="store_true", help="for scripts: everything, as JSON")
    parser.add_argument(
        "--width", type=int, metavar="N", help="columns to print on (default: the terminal's)"
    )
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def _choose(options: argparse.Namespace) -> int:
    kind, demand = loss_kind(options.metric), _demand(options)
    asked = {
        name: value
        for name, value in (
            ("most_loss", options.loss),
            ("share", options.share),
            ("confidence", options.confidence),
        )
        if value is not None
    }
    contract = Contract(kind, keeps_cut=options.keep_cut, **asked)
    contract.check()
    findings = _read(options.results_dir)
    is_certifying = demand is None or bool(asked or options.by or options.policy or options.keep_cut)
    certificates = (
        certify(findings.rows, contract, options.policy, by_task=options.by == "task")
        if is_certifying
        else None
    )
    fits = None if demand is None else what_fits(_rows_with_seconds(findings), demand, kind)
    if options.json:
        found: dict[str, Any] = {} if fits is None else {"fits": fits_as_json(fits)}
        found |= {} if certificates is None else {"certificates": certificates_as_json(certificates)}
        print(json.dumps(found, indent=2))
        return EXIT_OK
    console = report_console(options.width)
    if fits is not None:
        console.print(render_fits(fits, console.width))
    if fits is not None and certificates is not None:
        console.print()
    if certificates is not None:
        console.print(render_certificates(certificates, console.width))
    if num_missing := _num_missing(findings):
        console.print(
            Text(f"{num_missing} planned rows are missing (not run yet): run the sweep again", style="yellow")
        )
    return EXIT_OK


def _demand(options: argparse.Namespace) -> Demand | None:
    if options.memory is None:
        given = [name for name in ("tokens", "requests", "weights") if getattr(options, name) is not None]
        if given:
            raise ChoiceError(f"--{given[0]} says what is to fit, and needs --memory, as --memory 24GiB")
        return None
    if options.tokens is None:
        raise ChoiceError("--memory needs --tokens: how long the context of a request is, as --tokens 32000")
    weights = None if options.weights is None else parse_bytes(options.weights)
    demand = Demand(parse_bytes(options.memory), options.tokens, options.requests, weights)
    demand.check()
    return demand


def _read(folder: Path) -> Findings:
    store = ResultStore(folder)
    store.check_exists()
    findings = Findings.read(store)
    if not findings.rows:
        raise ResultError(f"there are no results in {str(folder)!r}; run jobs/sweep.py")
    return findings


def _rows_with_seconds(findings: Findings) -> Sequence[Row]:
    """The rows, with their seconds where any can tell a variant's own."""
    is_told = any(row["execution"] == ISOLATED for row in findings.rows)
    return findings.rows_with(SECONDS) if is_told else findings.rows


def _num_missing(findings: Findings) -> int:
    return 0 if findings.planned is None else len(findings.planned) - len(findings.rows)


if __name__ == "__main__":
    sys.exit(main())
