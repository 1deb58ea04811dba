"""What policies say of themselves is complete, and the documentation names each with what it reads."""

import re
from dataclasses import MISSING
from pathlib import Path

import pytest

from kvmerger.building import build
from kvmerger.policies import registry

DESCRIBED = {(described.name, described.is_wrapper): described for described in registry.describe()}


def test_every_policy_and_wrapper_is_described_once() -> None:
    described = registry.describe()
    assert [it.name for it in described if not it.is_wrapper] == registry.names()
    assert [it.name for it in described if it.is_wrapper] == registry.wrapper_names()


@pytest.mark.parametrize("key", list(DESCRIBED))
def test_a_summary_is_one_sentence_of_the_policys_own(key: tuple[str, bool]) -> None:
    summary = DESCRIBED[key].summary
    assert re.fullmatch(r"[A-Z][^()]*\.", summary), summary
    assert [it.summary for it in DESCRIBED.values()].count(summary) == 1


@pytest.mark.parametrize("name", registry.names())
def test_the_described_defaults_build_the_default_policy(name: str) -> None:
    assert build(name, dict(DESCRIBED[name, False].parameters)) == build(name, {})


def test_what_a_wrapper_wraps_is_no_parameter() -> None:
    for name in registry.wrapper_names():
        parameters = dict(DESCRIBED[name, True].parameters)
        assert registry.INNER not in parameters
        assert MISSING not in parameters.values()


def rows(page: str) -> dict[str, list[str]]:
    """First cell (a name in backticks) → the other cells."""
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {first.strip("`"): rest for first, *rest in cells}


def test_the_documentation_has_a_row_for_each(repo_root: Path) -> None:
    page = (repo_root / "docs" / "policies.md").read_text(encoding="utf-8")
    policies, _, wrappers = page.partition("## Wrappers")
    assert sorted(rows(policies)) == registry.names()
    assert sorted(rows(wrappers)) == registry.wrapper_names()
    for name, (_, _, reads, *_) in rows(policies).items():
        assert set(re.findall(r"`(\w+)`", reads)) == {need.name for need in build(name, {}).needs()}, name
