"""`ls` names what a settings file can name: all of it, and where it comes from."""

import pytest

from evaluators import registry as benchmarks
from jobs.sweep import main
from kvmerger.models.source import SUPPORTED_MODEL_TYPES
from kvmerger.policies import registry as policies


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["ls", *arguments, "--width", "200"]) == 0
    return capsys.readouterr().out


def test_every_policy_and_part_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "policies")
    assert all(name in out for name in [*policies.names(), *policies.wrapper_names()])


def test_every_task_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "tasks")
    assert all(name in out for name in benchmarks.list_tasks())


def test_models_are_listed_with_their_families(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "models")
    assert all(name in out for name in ["demo", *SUPPORTED_MODEL_TYPES])


def test_another_word_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["ls", "polices"])
    assert ended.value.code == 2
    assert "choose from" in capsys.readouterr().err
