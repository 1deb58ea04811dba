"""Run the sweep and hold it against a baseline: `python jobs/nightly.py [CONFIG.yaml] [--promote]`.

The exit code is the verdict. Nothing but argparse is imported before the arguments are understood.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from jobs.console.command_line import (
        Parser,
        add_settings_arguments,
        config_of,
        find_policies_beside,
        overrides_of,
        told_to_users,
    )
    from jobs.console.commands import program
except ModuleNotFoundError as error:
    # A crontab with another Python than the one this is installed in: the exit code of an uncaught error is a verdict's.
    print(f"error: {error}; run it with the Python that kvmerger is installed in", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from jobs.settings.gate import GateSettings
    from jobs.settings.schema import Settings

_SCRIPT = "nightly.py"
_DEFAULT_CONFIG = Path(__file__).parent / "configs" / "nightly.yaml"
_EPILOG = """\
exit codes: 0 pass, 1 regression, 2 bad input (also: not delivered), 3 too many failed items, 4 inconclusive,
            70 an error nobody foresaw (no verdict; its stack is in a file), 130 interrupted (rows kept; run it again)
examples:
  {program} --promote                     the first night: run it and make it the baseline
  {program}                               tonight against the baseline
  {program} --baseline results/release    against a results folder
  {program} my.yaml --dry-run             what can be said before the run
docs/nightly.md says what is decided, how surely, and how many items that takes
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one night; returns the exit code. Errors a user can cause are printed without a trace."""
    options = build_parser().parse_args(arguments)
    return told_to_users(lambda: _night(options))


def build_parser() -> argparse.ArgumentParser:
    """What a night takes."""
    name = _SCRIPT if Path(sys.argv[0]).name == _SCRIPT else program("nightly")
    parser = Parser(
        prog=name,
        description="Run a sweep and decide whether any policy got worse than its baseline.",
        epilog=_EPILOG.format(program=name),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(parser, "nightly, the demo's with a `gate:` section")
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="compare with this results folder instead"
    )
    parser.add_argument(
        "--promote",
        action="store_true",
        help="make tonight the baseline, whatever the verdict; the exit code stays the verdict's",
    )
    parser.add_argument(
        "--night", type=_name, metavar="NAME", help="the night's folder (default: date and commit)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="stop before the run: baseline, plan, what cannot be resolved"
    )
    return parser


def _name(text: str) -> str:
    # No path: nights are found again as the folders of `output_dir`.
    if Path(text).name != text or text.startswith("."):
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a folder")
    return text


def _night(options: argparse.Namespace) -> int:
    from jobs.execution.thread_waiting import choose_thread_waiting
    from jobs.settings.errors import SettingsError
    from jobs.settings.file import settings_file
    from jobs.settings.schema import load_settings

    choose_thread_waiting()
    options.named_config = options.config or options.config_flag
    options.config = settings_file(config_of(options, _DEFAULT_CONFIG))
    find_policies_beside(options.config)
    settings = load_settings(options.config, overrides_of(options), options.limit)
    if settings.gate is None:
        raise SettingsError(
            f"{options.config}: `gate` is missing: a nightly needs its margins, if only `gate: {{}}` for the defaults "
            f"(see {_DEFAULT_CONFIG})"
        )
    gate = settings.gate
    if options.baseline is not None:
        from jobs.console.paths import local_path

        gate = gate.model_copy(update={"baseline": local_path(options.baseline).absolute()})
    from jobs.reporting.terminal import report_console
    from jobs.results.provenance import git_commit
    from jobs.runs.night import Night, night_name

    name = options.night or night_name(datetime.datetime.now(datetime.UTC), git_commit())
    night = Night(
        settings=_of_night(settings, gate, name),
        gate=gate,
        root=settings.output_dir,
        is_promoted=options.promote,
        command=_command(options),
        console=report_console(),
    )
    return night.run(options.dry_run)


def _of_night(settings: Settings, gate: GateSettings, name: str) -> Settings:
    """The settings with a folder and a run for this night, in one experiment with all others."""
    tracking = settings.tracking
    if not tracking.experiment_id:
        # Taken before the name is changed, since it defaults to the name.
        tracking = tracking.model_copy(update={"experiment": tracking.experiment or settings.name})
    changes = {
        "name": f"{settings.name} {name}",
        "output_dir": settings.output_dir / name,
        "tracking": tracking,
        "gate": gate,
    }
    return settings.model_copy(update=changes)


def _command(options: argparse.Namespace) -> str:
    """The command line again, for messages, without the flags that belong to one night only."""
    from jobs.console.addresses import hidden_in
    from jobs.console.paths import called, shown

    words = called("nightly")
    named = options.named_config
    if named is not None:
        # Shipped settings by the name they were asked for, and not by where they happen to lie.
        words.append(shown(named) if named.exists() else str(named))
    for override in options.overrides:
        words += ["--set", override]
    given = {"--limit": options.limit, "--output_dir": options.output_dir, "--executor": options.executor}
    for flag, value in given.items():
        words += [flag, str(value)] if value is not None else []
    return shlex.join(map(str, hidden_in(words)))


if __name__ == "__main__":
    sys.exit(main())
