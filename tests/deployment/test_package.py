"""What is installed as a package is whole: its command starts ours, and every file that code reads is declared as data."""

import importlib
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from jobs.console.paths import INSTALLED
from jobs.sweep import main

PACKAGES = ("kvmerger", "evaluators", "jobs")
# Read by schedulers and people in a checkout, never by the package's own code.
FOR_CHECKOUTS = "jobs/schedules/"


@pytest.fixture(scope="module")
def declared(repo_root: Path) -> dict[str, Any]:
    with (repo_root / "pyproject.toml").open("rb") as file:
        loaded: dict[str, Any] = tomllib.load(file)
    return loaded


def test_the_command_is_the_program(declared: dict[str, Any]) -> None:
    module_name, _, function = declared["project"]["scripts"][INSTALLED].partition(":")
    assert getattr(importlib.import_module(module_name), function) is main


def test_every_data_file_is_declared(declared: dict[str, Any], repo_root: Path) -> None:
    patterns = declared["tool"]["setuptools"]["package-data"]
    files = [
        path.relative_to(repo_root).as_posix()
        for package in PACKAGES
        for path in (repo_root / package).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert any(path.startswith("jobs/configs/") for path in files)
    missing = [
        path
        for path in files
        if not path.startswith(FOR_CHECKOUTS)
        and not any(fnmatch(path.partition("/")[2], it) for it in patterns[path.partition("/")[0]])
    ]
    assert missing == []


def test_every_folder_of_code_is_a_package(declared: dict[str, Any], repo_root: Path) -> None:
    """A folder without `__init__.py` would be left out of the wheel without a word."""
    assert declared["tool"]["setuptools"]["packages"]["find"]["include"] == [f"{it}*" for it in PACKAGES]
    folders = {path.parent for package in PACKAGES for path in (repo_root / package).rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
