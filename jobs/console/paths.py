"""Paths as people type them, and as they are printed for pasting into the shell they were printed in."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

INSTALLED = "kvmerger"
"""What the program is called where it is installed as a package."""
SCRIPT = "jobs/sweep.py"
"""What it is called in a checkout."""
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""What Ray sets for the driver of a job."""
# One slash too, since `Path` has joined the two of an address by the time that it is asked.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_VARIABLE = re.compile(r"\$(?:[A-Za-z_]\w*|\{[^}]*\})")


class PathError(ValueError):
    """What should be a file or folder of this machine is none that can be meant."""


def local_path(path: Path | str) -> Path:
    """The path with the home folder for ~ (as it is where there is no such user) and the values of $VARIABLES.

    Raises:
        PathError: an address, or a variable that is not set; as names of folders both would be made without a word.
    """
    text = str(path)
    if _ADDRESS.match(text):
        raise PathError(
            f"{text!r} is an address; name a file or folder of this machine (one that is mounted will do)"
        )
    filled = os.path.expandvars(text)
    if unset := _VARIABLE.search(filled):
        raise PathError(
            f"{text!r} names the variable {unset.group()}, which is not set; set it, or write the path out"
        )
    try:
        return Path(filled).expanduser()
    except RuntimeError:
        return Path(filled)


def is_in_a_job() -> bool:
    """Whether this is a Ray job's driver: its current folder is then none that the submitter knows."""
    return JOB_VARIABLE in os.environ


def job_submission() -> str | None:
    """The submission id of the Ray job that this process drives, as `ray job list` has it; None outside a job."""
    metadata = json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("metadata") or {}
    return metadata.get("job_submission_id")


def shown(path: Path) -> str:
    """`path` relative to the current folder when it lies inside, otherwise, and in a Ray job, whole."""
    absolute, here = path.absolute(), Path.cwd()
    if is_in_a_job():
        return str(absolute)
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def called(*words: str) -> list[str]:
    """The words that call this program, for pasting: ["kvmerger", "ls"] if that was called, else Python and the script."""
    name = Path(sys.argv[0])
    if name.stem != INSTALLED:
        script = Path(__file__).parents[2] / SCRIPT
        return [python(), shown(script), *words]
    # By its name alone where a shell finds it so.
    is_found = shutil.which(name.name) == str(name)
    return [name.name if is_found else shown(name), *words]


def command_line(*words: str) -> str:
    """As `called`, quoted for a shell."""
    return shlex.join(called(*words))


def python() -> str:
    """The path of the Python that is running."""
    # Not `python`: where the environment is not activated, that is another one.
    return shown(Path(sys.executable))


def file_in_the_way(folder: Path) -> str | None:
    """A sentence about the file that stands where `folder`, or a folder it lies in, should be; None when none does."""
    for place in (folder, *folder.parents):
        # Unlike `exists`, also true of a link to nothing, where no folder can be made.
        if os.path.lexists(place):
            kind = "a file" if place.exists() else "a link to nothing"
            return None if place.is_dir() else f"{place} is {kind}, not a folder; choose another output_dir"
    return None
