"""kvpress's sides of the race run with the versions they were made for, or not at all."""

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from bench.race.__main__ import main
from bench.race.kvpress_environment import KVPRESS, TRANSFORMERS, refusal


@pytest.mark.parametrize(
    ("kvpress", "transformers", "is_refused"),
    [("0.5.5", "5.2.0", False), ("0.5.5", "5.23.0", True), ("0.5.4", "5.2.0", True), (None, "5.2.0", True)],
)
def test_kvpress_runs_in_its_own_environment_or_says_where(
    kvpress: str | None, transformers: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = {"kvpress": kvpress, "transformers": transformers}

    def version(package: str) -> str:
        found = installed[package]
        if found is None:
            raise PackageNotFoundError(package)
        return found

    monkeypatch.setattr("bench.race.kvpress_environment.version", version)
    why = refusal()
    assert (why is not None) == is_refused
    if why is not None:
        assert f"here are {kvpress or 'none'} and {transformers}" in why and "kvpress.txt" in why


def test_a_race_with_a_side_it_cannot_run_ends_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.race.kvpress_environment.TRANSFORMERS", "0.0")
    monkeypatch.setattr("sys.argv", ["race", "--sides", "fused", "kvpress@8k"])
    with pytest.raises(SystemExit):
        main()
    assert "kvpress's sides need" in capsys.readouterr().err


def test_the_pinned_environment_is_one_that_is_not_refused(repo_root: Path) -> None:
    pins = (repo_root / "bench" / "race" / "kvpress.txt").read_text(encoding="utf-8").splitlines()
    assert f"kvpress=={KVPRESS}" in pins
    assert any(pin.startswith(f"transformers=={TRANSFORMERS}.") for pin in pins)
