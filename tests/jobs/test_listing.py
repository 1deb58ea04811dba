"""`ls` names what a settings file can name: all of it, and where it comes from."""

import pytest

from evaluators import registry as benchmarks
from evaluators import scoring
from jobs.settings.file import shipped_names
from jobs.sweep import main
from kvmerger.cache.forms import registry as forms
from kvmerger.models.source import SUPPORTED_MODEL_TYPES
from kvmerger.policies import registry as policies


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, width: int = 200) -> str:
    assert main(["ls", *arguments, "--width", str(width)]) == 0
    return capsys.readouterr().out


def test_every_policy_and_part_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "policies")
    assert all(name in out for name in [*policies.names(), *policies.wrapper_names()])


def test_what_a_server_needs_is_told_of_each(capsys: pytest.CaptureFixture[str]) -> None:
    words = " ".join(printed(capsys, "policies").split())
    assert "a server needs" in words and "ragged heads" in words and "whole blocks" in words
    assert "TensorRT-LLM" in words and "llama.cpp" in words and "nowhere" not in words


def test_every_form_is_listed_with_what_is_stored_and_its_share_of_bf16(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, _, table = printed(capsys, "policies").partition("what slots are stored in")
    lines = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert set(forms.names()) <= set(lines)
    assert "e4m3 floats at scale 1" in lines["fp8"] and "50%" in lines["fp8"]
    assert "scale and minimum per token" in lines["int4"] and "27%" in lines["int4"]
    assert "group_size=32" in lines["kivi4"]


@pytest.mark.parametrize("width", [80, 160])
def test_every_task_is_listed_with_its_size_and_what_it_tells_apart(
    capsys: pytest.CaptureFixture[str], width: int
) -> None:
    told, _, sources = printed(capsys, "tasks", width=width).partition("where its rows come")
    words = " ".join(told.split())
    for it in benchmarks.describe_tasks():
        assert it.name in told and it.num_items.split()[0] in words
        assert f"{it.answer_tokens:,}" in words if it.answer_tokens else "yours" in words
        assert it.licence.split()[0] in sources and it.separates.split()[0] in sources
        assert sources.count(f"\n{it.name.partition('/')[0]} ") == 1, "said once a benchmark"


def test_one_benchmarks_tasks_are_listed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    by_task = printed(capsys, "tasks", "ruler/niah_single_1")
    assert by_task == printed(capsys, "tasks", "ruler")
    assert "ruler/vt" in by_task and "ruler_rows/" not in by_task and "longbench/" not in by_task
    assert main(["ls", "tasks", "longbenhc"]) == 2
    assert "no benchmark 'longbenhc' (did you mean 'longbench'?)" in capsys.readouterr().err
    assert main(["ls", "models", "ruler"]) == 2
    assert "ls models takes no name, got 'ruler'" in capsys.readouterr().err


def test_models_are_listed_with_their_families(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "models")
    assert all(name in out for name in ["demo", *SUPPORTED_MODEL_TYPES])


def test_every_metric_that_a_row_can_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = {line.split()[0]: line for line in printed(capsys, "metrics").splitlines() if line.strip()}
    assert set(scoring.list_metrics()) <= set(lines)
    for name in scoring.list_metrics():
        assert ("all_classes" in lines[name]) == scoring.uses_classes(name)
        assert len(lines[name].split()) > 3  # each says what it gives


def test_shipped_settings_are_listed_by_the_names_they_are_found_by(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = printed(capsys, "settings").splitlines()
    assert [line.split()[0] for line in lines[2:-1]] == shipped_names()
    assert all(len(line.split()) > 3 for line in lines[2:-1])


def test_ls_alone_lists_the_lists(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed(capsys).split()
    assert {"policies", "tasks", "metrics", "models", "settings"} <= set(words)


@pytest.mark.parametrize(
    ("word", "meant"), [("polices", "policies"), ("metric", "metrics"), ("Tasks", "tasks")]
)
def test_another_word_is_answered_with_the_nearest(
    word: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", word]) == 2
    assert f"there is no list of {word!r} (did you mean {meant!r}?); ls shows" in capsys.readouterr().err
