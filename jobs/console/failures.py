"""What becomes of an error that ends a command: a sentence where a user can cause it, otherwise a report of a bug.

Told by types alone. What is neither one of ours nor an operating system's word on a file is nobody's foresight.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import traceback

from jobs.console.addresses import hidden_in, without_passwords
from jobs.console.paths import is_in_a_job

_OUR_PACKAGES = ("kvmerger", "evaluators", "jobs")
_NEEDED = "install what pyproject.toml names, as `make install` does"


def cause_in_words(error: BaseException) -> str | None:
    """What the user can mend, in a sentence; None where it is a bug."""
    match error:
        case ValueError() if _is_ours(error):
            return str(error)
        case MemoryError():
            return "this machine's memory ran out; give fewer or shorter items (--limit), or a smaller model"
        # With a file's name it is the system's word on a path, and without one anything at all, such as a lost connection.
        case OSError(filename=str() | bytes() as name, strerror=str() as reason):
            return f"{os.fsdecode(name)!r}: {reason}"
        case ModuleNotFoundError(name=str() as name) if name.partition(".")[0] not in _OUR_PACKAGES:
            return f"the package {name!r} is not installed in {sys.executable}; {_NEEDED}"
    return None


def bug_report(error: BaseException) -> str:
    """What to send and where. The stack is in a file, or below where no file can be written or would soon be gone."""
    stack = without_passwords("".join(traceback.format_exception(error)))
    what = without_passwords(f"{type(error).__name__}: {error}")
    command = shlex.join(map(str, hidden_in(sys.argv)))
    told = f"{command}\n{platform.platform()}, Python {platform.python_version()}\n\n{stack}"
    said = (
        f"error: {what}. Nobody foresaw this: it is a bug, of ours or in code that the settings name, and no verdict on any "
        "policy. Rows already stored are kept"
    )
    # A job's files go with its machine, and its log stays.
    path = None if is_in_a_job() else _written(told)
    if path is None:
        return f"{told}{said}.\nPlease report it with all of the above and your settings file"
    return (
        f"{said}.\nPlease report it with your settings file and {path}, which has the command and the stack"
    )


def _written(text: str) -> str | None:
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="kvmerger-bug-",
            suffix=".txt",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            file.write(text)
    except OSError:
        return None
    return file.name


def _is_ours(error: ValueError) -> bool:
    """Whether it is one of our own subclasses of ValueError: those a user can cause, any other is a bug."""
    # By the bases: a user's policy may raise a subclass of one of ours.
    return any(
        issubclass(kind, ValueError) and kind.__module__.partition(".")[0] in _OUR_PACKAGES
        for kind in type(error).__mro__
    )
