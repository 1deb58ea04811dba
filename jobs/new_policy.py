"""Write the smallest policy there is to start from: `python jobs/sweep.py new-policy my_policies.py`. Overwrites nothing."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.console.command_line import EXIT_OK, Parser, told_to_users
from jobs.console.commands import program
from jobs.console.paths import command_line, local_path, shown

CLASS = "MostAttended"
# CONTRIBUTING.md shows the same lines, which a test holds together.
POLICY = f'''\
from dataclasses import dataclass
from kvmerger import ATTENTION_MASS, ScoringPolicy


@dataclass(frozen=True)
class {CLASS}(ScoringPolicy):
    """Keep the tokens that receive the most attention."""

    def needs(self):
        return frozenset({{ATTENTION_MASS}})

    def scores(self, evidence):
        return evidence.get(ATTENTION_MASS)
'''
_ENDING = ".py"


class NewPolicyError(ValueError):
    """A file that a policy cannot be written to, or could not be imported from."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file and say what to do with it; 2 where something is there already, or the name is no module's."""
    parser = Parser(
        prog=program("new-policy"), description="Write a policy in ten lines, to start your own from."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a name such as my_policies.py")
    options = parser.parse_args(arguments)
    return told_to_users(lambda: _write(options))


def _write(options: argparse.Namespace) -> int:
    path = local_path(options.file)
    _check_name(path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(POLICY)
    except FileExistsError as error:
        raise NewPolicyError(f"{str(path)!r} is there already; name another file") from error
    except OSError as error:
        raise NewPolicyError(f"cannot write {str(path)!r}: {error.strerror}; name another file") from error
    name = f"{path.stem}:{CLASS}"
    where = (
        ""
        if path.absolute().parent == Path.cwd()
        else f"{shlex.join(['cd', '--', shown(path.absolute().parent)])} && "
    )
    print(f"written  {shown(path)}, a policy in ten lines: {name}")
    print(f"check    {where}{command_line('--check-policy', name)}")
    print(f"run      {where}{command_line('--set', f'policies=[{name}@0.5]')}")
    return EXIT_OK


def _check_name(path: Path) -> None:
    if path.suffix != _ENDING or not path.stem.isidentifier():
        raise NewPolicyError(
            f"{path.name!r} is no name of a Python module, by which settings name a policy; write letters, digits and _ "
            f"with {_ENDING} behind them, such as my_policies{_ENDING}"
        )
    # What lies beside the settings is looked for last, so that a file there shadows no package.
    if path.stem in sys.stdlib_module_names or importlib.util.find_spec(path.stem) is not None:
        if path.exists():
            return  # told as what it is, by who opens it
        raise NewPolicyError(
            f"{path.stem!r} is a package that is installed, and would be found first; name another file"
        )


if __name__ == "__main__":
    sys.exit(main())
