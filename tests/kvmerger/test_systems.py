"""The page of systems names what there is: parts that can be built, and files that hold what is said to prove them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvmerger.building import build
from kvmerger.cache.forms import registry as form_registry
from kvmerger.variant_names import read_name

PAGE = Path(__file__).parents[2] / "docs" / "systems.md"
QUOTED = re.compile("`([^`]+)`")


def rows() -> list[list[str]]:
    table = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in table[1:]]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_system_is_here_under_its_name_and_held_to_what_proves_it(row: list[str], repo_root: Path) -> None:
    _, names, proofs, _, place = row
    assert QUOTED.findall(names) and QUOTED.findall(proofs) and place
    for name in QUOTED.findall(names):
        command = name.removeprefix("python ").split()
        if command[0].endswith(".py"):
            assert (repo_root / command[0]).is_file(), name
        # Of a form of tables the name is known, and nothing can be built without a table.
        elif name not in form_registry.names_of_tables():
            assert build(read_name(name).policy, {}) is not None
    for path in QUOTED.findall(proofs):
        assert (repo_root / path).is_file(), path
