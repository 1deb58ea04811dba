"""The commands of one program as a table: which one a command line means, and how all are listed. Knows none by name."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jobs.console.paths import INSTALLED, SCRIPT

_ASKS_FOR_HELP = "help"
_MAX_USAGE_CHARS = 26  # a longer usage has a line to itself
_ALSO_CALLED = {"list": "ls"}
# What other programs call something near: for the hint, since it is not quite the same.
_NEAR = {
    "show": "report",
    "table": "report",
    "diff": "compare",
    "check": "validate",
    "plan": "validate",
}


class CommandError(ValueError):
    """A word that stands where a command or a settings file should, and is neither."""


class Command(NamedTuple):
    """One command: what follows its name, what it does in half a line, and what runs it; no `about`: it is not listed."""

    usage: str
    about: str
    run: Callable[[Sequence[str]], int]


def main_of(module_name: str) -> Callable[[Sequence[str]], int]:
    """The `main` of a module that is imported when it is called."""

    def run(arguments: Sequence[str]) -> int:
        return int(importlib.import_module(module_name).main(arguments))

    return run


def program(command: str = "") -> str:
    """What usage lines call the program, or one command of it: "sweep.py ls"; "kvmerger ls" where that was called."""
    called = Path(sys.argv[0]).stem
    return f"{INSTALLED if called == INSTALLED else Path(SCRIPT).name} {command}".strip()


def listed(commands: Mapping[str, Command]) -> str:
    """The commands for `--help`, a line each."""
    lines = []
    for name, command in commands.items():
        head = f"{name} {command.usage}".strip()
        if not command.about:
            continue
        if len(head) > _MAX_USAGE_CHARS:
            lines.append(f"  {head}")
            head = ""
        lines.append(f"  {head:<{_MAX_USAGE_CHARS}}{command.about}")
    return "\n".join(lines)


def understood(
    arguments: Sequence[str], commands: Mapping[str, Command], default: str
) -> tuple[str, list[str]]:
    """The command that is meant, and its arguments; without a command all are those of `default`.

    `help` and `help COMMAND` ask for help, and `list` is `ls`.
    """
    first, *rest = arguments or [default]
    if first == _ASKS_FOR_HELP:
        name, *_ = [*rest, default]
        return (name if name in commands else default), ["--help"]
    first = _ALSO_CALLED.get(first, first)
    return (first, rest) if first in commands else (default, [first, *rest])


def refuse_no_command(word: str, commands: Mapping[str, Command], settings: Iterable[str]) -> None:
    """Raise `CommandError` where `word`, which is no file, cannot have been meant as the path of a settings file either.

    `settings` are the names of the settings that can be named without a path.
    """
    if Path(word).suffix or Path(word).name != word:
        return
    known = [name for name, command in commands.items() if command.about]
    other = _NEAR.get(word, "")
    near = difflib.get_close_matches(word, [*known, *settings], n=1) or [
        it for it in [other] if it in commands
    ]
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise CommandError(
        f"there is no command and no settings file {word!r}{hint}; commands: {', '.join(known)}; "
        f"shipped settings: {', '.join(settings)}"
    )


def refuse_misplaced(words: Iterable[str], commands: Mapping[str, Command]) -> None:
    """Raise `CommandError` where a command stands behind something else, where it would be taken for a file."""
    for word in words:
        if word in commands and not Path(word).exists():
            raise CommandError(f"{word!r} is a command; write it first: {program(word)} …")
