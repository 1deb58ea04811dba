"""What the commands share before anything heavy is imported: flags, the search path for policies, exit codes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from jobs.console.addresses import without_passwords
from jobs.console.failures import bug_report, cause_in_words
from jobs.console.printing import printable, tell

EXIT_OK, EXIT_BAD_INPUT, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 0, 2, 3, 130
EXIT_BUG = 70
"""An error that nobody foresaw; sysexits.h calls it EX_SOFTWARE. Python's own 1 is a nightly's verdict."""
EXIT_READER_GONE = 141
"""What a shell says of a program whose output nobody reads any more: 128 and SIGPIPE."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors show no password of an address that was typed."""

    def error(self, message: str) -> NoReturn:
        """As argparse has it: usage and message on standard error, exit code 2."""
        super().error(without_passwords(message))


class ArgumentsError(ValueError):
    """Arguments that contradict each other."""


def told_to_users(run: Callable[[], int]) -> int:
    """The exit code of `run`. Errors a user can cause are printed as a sentence, any other with its trace.

    Raises:
        SystemExit: argparse's, after it has printed what it had to say.
    """
    from jobs.console.interrupts import sigterm_interrupts

    try:
        with printable(), sigterm_interrupts():
            return run()
    except KeyboardInterrupt:
        tell("interrupted; rows already stored are kept, and the same command goes on")
        return EXIT_INTERRUPTED
    except SystemExit as error:
        # A policy's module that exits would otherwise choose our exit code, a pass among them.
        if not _is_of_argparse(error):
            return _told(error)
        raise
    # Not Exception: a tokenizer's Rust panics with a class that is none.
    except BaseException as error:  # noqa: BLE001 - edge of the process
        return _told(error)


def _told(error: BaseException) -> int:
    """Say what went wrong and return the exit code: a sentence for what a user can cause, a bug report for the rest."""
    # Whatever reads our output may be gone, and printing to it must not raise what would end in Python's own exit code.
    with suppress(Exception):
        if sentence := cause_in_words(error):
            tell(f"error: {sentence}")
            return EXIT_BAD_INPUT
        if isinstance(error, BrokenPipeError) and _has_lost_its_reader():
            return EXIT_READER_GONE
        tell(bug_report(error))
    return EXIT_BUG


def _is_of_argparse(error: SystemExit) -> bool:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == argparse.__name__


def _has_lost_its_reader() -> bool:
    """Whether standard output leads nowhere any more, as before `| head`; what is printed from then on is dropped."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python itself complains when it ends
        return True
    return False


def add_settings_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """What every command that runs settings takes: which file, and what is changed in it for once."""
    parser.add_argument(
        "config", nargs="?", type=Path, help=f"settings: a file, or shipped ones by name (default: {default})"
    )
    # What `nightly` has always been called with.
    parser.add_argument("--config", dest="config_flag", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "--set", dest="overrides", metavar="a.b=value", action="append", default=[], help="change one setting"
    )
    parser.add_argument("--limit", type=_positive, metavar="N", help="items of each task")
    parser.add_argument("--output_dir", "--output-dir", metavar="DIR", help="where results go")
    parser.add_argument("--executor", choices=("inline", "ray"), help="inline: this process, without Ray")


def config_of(options: argparse.Namespace, default: Path) -> Path:
    """The settings that a command line names, as they are written, or `default`.

    Raises:
        ArgumentsError: two of them.
    """
    if options.config is not None and options.config_flag is not None:
        raise ArgumentsError(
            f"two settings files, {str(options.config)!r} and {str(options.config_flag)!r}; name one"
        )
    named: Path | None = options.config or options.config_flag
    return default if named is None else named


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def find_policies_beside(config: Path) -> None:
    """Put the current folder and that of the settings on `sys.path`, so that `module:Class` finds a policy there."""
    # Python has put a script's own folder first, where our commands would be found in place of a user's report.py.
    ours = Path(__file__).resolve().parents[1]
    sys.path[:] = [place for place in sys.path if not place or Path(place).resolve() != ours]
    for folder in (Path.cwd(), config.absolute().parent):
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # last, so that a file there shadows no package


def overrides_of(options: argparse.Namespace) -> list[str]:
    """`--set` and the flags that have a name of their own, as `key=value`; the latter win."""
    # JSON is YAML too, and quotes what YAML would read as something else: a folder called 2024.
    named = {"output_dir": options.output_dir, "executor": options.executor}
    return [
        *options.overrides,
        *(f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None),
    ]
