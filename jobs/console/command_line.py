"""What the commands share before anything heavy is imported: flags, the search path for policies, exit codes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

EXIT_OK, EXIT_BAD_INPUT, EXIT_SOME_FAILED, EXIT_INTERRUPTED = 0, 2, 3, 130
_OUR_PACKAGES = ("kvmerger", "evaluators", "jobs")


def told_to_users(run: Callable[[], int]) -> int:
    """The exit code of `run`. Errors a user can cause are printed as a sentence, without a trace; any other is raised."""
    from jobs.console.interrupts import sigterm_interrupts

    try:
        with sigterm_interrupts():
            return run()
    except KeyboardInterrupt:
        print("interrupted; rows already stored are kept, and the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except ValueError as error:
        if not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT


def _is_ours(error: ValueError) -> bool:
    """Whether it is one of our own subclasses of ValueError: those a user can cause, any other is a bug."""
    # By the bases: a user's policy may raise a subclass of one of ours.
    return any(
        issubclass(kind, ValueError) and kind.__module__.partition(".")[0] in _OUR_PACKAGES
        for kind in type(error).__mro__
    )


def find_policies_beside(config: Path) -> None:
    """Put the current folder and that of the settings on `sys.path`, so that `module:Class` finds a policy there."""
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
