"""A sweep tries the policies of users' own, once, before it loads any weights, and says what fails first."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.planning import policy_contract
from jobs.planning.policy_contract import PolicyContractError, require_contracts
from jobs.results.store import ResultStore
from jobs.sweep import main
from kvmerger.models import loading
from kvmerger.variants import parse_policies
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model

MODULE = "policies_to_be_tried"
POLICIES = """
import faulthandler, os, sys
from dataclasses import dataclass
from kvmerger import KEY_NORMS, Policy, ScoringPolicy

@dataclass(frozen=True)
class Sound(ScoringPolicy):
    sign: float = -1.0

    def scores(self, evidence):
        return self.sign * evidence.get(KEY_NORMS)

@dataclass(frozen=True)
class Nan(Sound):
    def scores(self, evidence):
        return super().scores(evidence) * 0 / 0

@dataclass(frozen=True)
class TooFew(Sound):
    def scores(self, evidence):
        return super().scores(evidence)[:, 1:]

@dataclass(frozen=True)
class Raises(Sound):
    def scores(self, evidence):
        return evidence.nothing

@dataclass(frozen=True)
class Leaves(Sound):
    def scores(self, evidence):
        os._exit(0)

@dataclass(frozen=True)
class Segfaults(Sound):
    def scores(self, evidence):
        faulthandler._sigsegv()

@dataclass(frozen=True)
class TellsWhere(Sound):
    def scores(self, evidence):
        with open(__file__ + ".pids", "a") as file:
            print(os.getpid(), file=file)
        return super().scores(evidence)

@dataclass(frozen=True)
class Exits(Sound):
    def scores(self, evidence):
        sys.exit(0)

@dataclass(frozen=True)
class LongWindow(Sound):
    num_protected = 1000

@dataclass(frozen=True)
class NeedsANumber(ScoringPolicy):
    scale: float

    def scores(self, evidence):
        return evidence.get(KEY_NORMS) * self.scale / self.scale
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / f"{MODULE}.py").write_text(POLICIES)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield save_settings(tmp_path, save_tiny_model(tmp_path / "model"), save_data(tmp_path / "data", 2))
    sys.modules.pop(MODULE, None)  # of this process: contracts are tried in another


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is tried; nothing is found."""
    names: list[str] = []
    monkeypatch.setattr(policy_contract, "first_failures", lambda own: (names.append(name) for name in own))
    return names


def policies(*entries: str, budget: object = 0.5) -> list[str]:
    return ["--set", f"policies=[{', '.join(f'{{name: {it}, budget: {budget}}}' for it in entries)}]"]


@pytest.mark.parametrize(
    ("policy", "command", "words"),
    [
        ("TooFew+adakv", [], "must be floats (H, N) = (2, 311), one per KV head and token; got (2, 310)"),
        ("Raises", ["--dry-run"], "AttributeError: 'Evidence' object has no attribute 'nothing'"),
    ],
    ids=["run", "validate"],
)
def test_a_broken_policy_is_one_sentence_before_any_weights(
    policy: str, words: str, command: list[str], config: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    name = f"{MODULE}:{policy}"
    assert main([str(config), *command, *policies(name)]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: policy '{name}' breaks the contract, first in ")
    assert words in error
    assert f"jobs/sweep.py --check-policy {name}`" in error
    assert "check_policies: false" in error


def test_one_other_process_says_of_each_what_it_fails_first(config: Path) -> None:
    too_few = "must be floats (H, N) = (2, 311), one per KV head and token; got (2, 310)"
    expected: list[tuple[str, dict[str, float], str | None]] = [
        ("TellsWhere", {}, None),
        ("Nan", {}, "layer 0: 622 scores are NaN"),
        ("TellsWhere+adakv", {}, None),
        ("TooFew", {}, too_few),
        ("Nan+compensated", {}, "NaN"),
        ("Exits", {}, "SystemExit: 0"),
        ("NeedsANumber", {"scale": 0.0}, "622 scores are NaN"),
        ("LongWindow", {}, None),  # refuses so short a prompt
    ]
    own = {f"{MODULE}:{policy}": params for policy, params, _ in expected}
    for (policy, _, words), failure in zip(expected, policy_contract.first_failures(own), strict=True):
        assert (failure is None) == (words is None), policy
        assert failure is None or words is None or words in failure[1], policy
    (pid,) = set((config.parent / f"{MODULE}.py.pids").read_text().split())
    assert int(pid) != os.getpid()


@pytest.mark.parametrize(
    ("policy", "command", "how"),
    [
        ("Leaves", ["--dry-run"], "its process ended itself with exit code 0"),
        ("Segfaults", [], "its process died of SIGSEGV"),
    ],
)
def test_a_policy_that_kills_its_process_is_one_sentence_and_loses_nothing(
    policy: str, how: str, command: list[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(config)]) == 0
    store = ResultStore(config.parent / "results")
    before = store.identities()
    name = f"{MODULE}:{policy}"
    assert main([str(config), *command, *policies("knorm", f"{MODULE}:Sound", name)]) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: policy '{name}' cannot be tried: {how}; mend it (`")
    assert f"jobs/sweep.py --check-policy {name}` shows where), or set check_policies: false" in error
    assert before and store.identities() == before


def test_without_a_users_policy_no_process_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_contract, "first_failures", lambda own: pytest.fail(f"{own} were tried"))
    require_contracts(parse_policies([{"name": "snapkv+adakv", "budget": 0.5}]), lambda _: None)


def test_without_the_check_its_rows_fail_and_no_others(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [f"{MODULE}:{policy}" for policy in ("Nan", "TooFew")]
    assert main([str(config), *policies(*broken, "knorm"), "--set", "check_policies=false"]) == 3
    rows = ResultStore(tmp_path / "results").read_table().to_pylist()
    messages = {row["variant"]: row["failure_message"] for row in rows if row["status"] == "failed"}
    assert set(messages) == {"Nan@0.5", "TooFew@0.5"}
    assert f"{MODULE}:Nan: " in messages["Nan@0.5"]
    assert "of its scores are NaN, which rank above all others" in messages["Nan@0.5"]
    assert f"{MODULE}:TooFew: scores must be floats (H, N) = " in messages["TooFew@0.5"]


def test_each_is_tried_once_and_not_where_its_rows_are_there(config: Path, tried: list[str]) -> None:
    sound = f"{MODULE}:Sound"
    command = [str(config), *policies(sound, f"{sound}+adakv", "knorm", budget="[0.5, 0.6]")]
    assert main(command) == 0
    assert tried == [sound, f"{sound}+adakv"]
    assert main(command) == 0
    assert tried == [sound, f"{sound}+adakv"]
    assert main([*command, "--output_dir", f"{config.parent}/more", "--set", "check_policies=false"]) == 0
    assert tried == [sound, f"{sound}+adakv"]


def test_what_is_tried_is_told_with_the_sweeps_own_parameters(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[dict[str, object]] = []

    def fail_at_zero(own):
        tried.append(dict(own))
        yield from (("a check", "does not hold") if not params["scale"] else None for params in own.values())

    monkeypatch.setattr(policy_contract, "first_failures", fail_at_zero)
    said: list[str] = []
    name = f"{MODULE}:NeedsANumber"
    require_contracts(parse_policies([{"name": name, "budget": 0.5, "scale": 2.0}]), said.append)
    assert said == [f"trying {name} on random layers …"]
    assert tried == [{name: {"scale": 2.0}}]
    with pytest.raises(
        PolicyContractError, match=r"NeedsANumber' with \{'scale': 0.0\} breaks .*does not hold"
    ):
        require_contracts(parse_policies([{"name": name, "budget": 0.5, "scale": 0.0}]), said.append)
