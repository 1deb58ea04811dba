"""Nights end to end on a tiny real model: every exit code, and what a planted regression looks like at 8 a.m."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from jobs.nightly import _of_night, main
from jobs.results.store import ResultStore
from jobs.settings.gate import GateSettings
from tests.fakes.engine import make_settings
from tests.fakes.nights import LABEL, NUM_ITEMS, plant, save_night, save_sure_model

NUM_FEW = 3
DOWN = "tracking={uri: 'http://127.0.0.1:9'}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_sure_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def promoted(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """Settings of nights with enough items for a verdict, the first of them promoted."""
    config = save_night(tmp_path_factory.mktemp("nights"), model)
    assert night(config, "first", "--promote") == 0
    return config


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The same with too few items for any verdict on quality."""
    config = save_night(tmp_path_factory.mktemp("few"), model, NUM_FEW)
    assert night(config, "first", "--promote") == 0
    return config


@pytest.fixture(autouse=True)
def _unharmed(request: pytest.FixtureRequest) -> None:
    """Whatever a test planted is gone before the next."""
    for name in ("promoted", "few"):
        if name in request.fixturenames:
            plant(request.getfixturevalue(name).parent, 1.0)


def night(config: Path, name: str, *more: str) -> int:
    return main(["--config", str(config), "--night", name, *more])


def verdict_of(config: Path, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((config.parent / "nights" / name / "gate.json").read_text())
    return found


def test_the_same_code_again_passes(promoted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert night(promoted, "same") == 0
    out = capsys.readouterr().out
    assert "PASS  same against first: of 6 checks 0 worse, 6 passed, 0 open" in out
    assert "bit for bit the baseline on all" in out and verdict_of(promoted, "same")["verdict"] == "pass"


def test_a_slightly_worse_policy_is_caught(promoted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(promoted.parent, 0.7)
    assert night(promoted, "worse") == 1
    out = capsys.readouterr().out
    assert "REGRESSION  worse against first" in out
    assert (
        f"worse    {LABEL} on longbench/qasper: NLL +" in out
        and "items are worse, most: longbench/qasper/row" in out
    )
    assert f"{LABEL}, version: " in out
    verdict = verdict_of(promoted, "worse")
    assert (verdict["verdict"], verdict["exit_code"]) == ("fail", 1)
    assert (promoted.parent / "nights" / "worse" / "gate.md").read_text().count("REGRESSION") == 1


def test_ten_per_cent_more_memory_is_caught(promoted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plant(promoted.parent, 1.1)
    assert night(promoted, "bigger") == 1
    out = capsys.readouterr().out
    assert (
        f"worse    {LABEL} on longbench/qasper: KV bytes +10." in out
        and f"{NUM_ITEMS} of {NUM_ITEMS} items" in out
    )


def test_few_items_are_said_before_the_run_and_end_inconclusive(
    few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert night(few, "open") == 4
    out = capsys.readouterr().out
    assert out.index("cannot resolve longbench/qasper, score: 3 contexts carry no verdict") < out.index(
        "INCONCLUSIVE"
    )
    assert "too few: 3 contexts of 50" in out
    assert night(few, "open", "--set", "gate.inconclusive=pass") == 0


def test_too_many_failed_items_have_an_exit_code_of_their_own(
    few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(few.parent, 1.0, first="raise RuntimeError('broken')")
    assert night(few, "broken") == 3
    assert f"failed   {NUM_FEW} of {2 * NUM_FEW} items x variants" in capsys.readouterr().out
    assert night(few, "broken", "--promote") == 3
    assert json.loads((few.parent / "nights" / "baseline.json").read_text())["night"] == "first"


def test_without_a_baseline_nothing_is_run_and_the_way_to_one_is_told(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = save_night(tmp_path, model, NUM_FEW)
    capsys.readouterr()
    assert night(config, "first") == 2
    err = capsys.readouterr().err
    assert (
        err.startswith("error: there is no baseline yet.") and "--promote" in err and "--baseline DIR" in err
    )
    assert not (tmp_path / "nights").exists()


def test_a_results_folder_can_be_the_baseline_and_is_never_promoted_over(
    few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(few.parent / "nights" / "first")
    assert night(few, "against-folder", "--baseline", folder, "--set", "gate.inconclusive=pass") == 0
    assert "against  folder" in capsys.readouterr().out
    assert night(few, "against-folder", "--baseline", folder, "--promote") == 2
    assert "--promote cannot change the baseline" in capsys.readouterr().err
    assert night(few, "against-nothing", "--baseline", str(few.parent / "nowhere")) == 2
    assert "has no results" in capsys.readouterr().err


def test_a_promotion_takes_a_regression_as_the_new_normal_and_still_says_so(
    tmp_path: Path, model: Path
) -> None:
    config = save_night(tmp_path, model, NUM_FEW)
    assert night(config, "first", "--promote") == 0
    plant(tmp_path, 1.1)
    assert night(config, "bigger", "--promote") == 1
    assert json.loads((tmp_path / "nights" / "baseline.json").read_text())["night"] == "bigger"
    assert night(config, "after", "--set", "gate.inconclusive=pass") == 0


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("query_mode=query_aware", "query mode: query_agnostic in the baseline, query_aware in this night"),
        ("model.dtype=bfloat16", "dtype: float32 in the baseline, bfloat16 in this night"),
        ("tasks.0.max_new_tokens=3", "prompt or answer length of 3 of 3 common items"),
    ],
)
def test_a_baseline_of_other_settings_is_refused_before_the_run(
    few: Path, override: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert night(few, "other", "--set", override) == 2
    err = capsys.readouterr().err
    assert told in err and "--promote" in err
    assert not (few.parent / "nights" / "other").exists()


def test_another_models_baseline_is_refused(
    few: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_sure_model(tmp_path_factory.mktemp("other-model"))
    assert night(few, "other", "--set", f"model.name={other}") == 2
    assert "model: " in capsys.readouterr().err


def test_settings_without_a_gate_or_with_an_unknown_policy_are_refused(
    few: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert night(few, "x", "--set", "gate=null") == 2
    assert "`gate` is missing" in capsys.readouterr().err
    assert night(few, "x", "--set", "gate.policies=[Plantd@0.8]") == 2
    assert f"did you mean '{LABEL}'" in capsys.readouterr().err
    assert night(few, "x", "--set", "gate.margins.score_points=0") == 2
    assert "score_points" in capsys.readouterr().err


def test_a_server_that_is_down_costs_no_rows(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert night(few, "down", "--set", DOWN) == 2
    out = capsys.readouterr().out
    assert "the server is down" in out and "rows are kept" in out
    assert ResultStore(few.parent / "nights" / "down").read_table().num_rows == 4 * NUM_FEW


def test_the_next_night_delivers_what_one_without_a_server_left(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file where the database's folder should be is a server that is down."""
    server = tmp_path / "server"
    server.write_text("down")
    uri = f"sqlite:///{server / 'mlflow.db'}"
    config = save_night(tmp_path, model, NUM_FEW, tracking={"uri": uri})
    assert night(config, "one", "--promote") == 2
    out = capsys.readouterr().out
    assert "not promoted" in out and "the next run sends them" in out
    server.unlink()
    server.mkdir()
    assert night(config, "two", "--promote") == 0
    out = capsys.readouterr().out
    assert "delivered: the earlier night one" in out and "promoted: tiny-nightly two" in out
    assert night(config, "three", "--set", "gate.inconclusive=pass") == 0
    out = capsys.readouterr().out
    assert "INCONCLUSIVE  three against tiny-nightly two" in out and "earlier night" not in out
    client = MlflowClient(tracking_uri=uri)
    experiment_id = client.get_experiment_by_name("tiny-nightly").experiment_id
    runs = client.search_runs([experiment_id], "tags.`kvmerger.role` = 'sweep'")
    tags = {run.info.run_name: run.data.tags for run in runs}
    assert tags.keys() == {"tiny-nightly one", "tiny-nightly two", "tiny-nightly three"}
    assert [name for name, it in tags.items() if it.get("baseline") == "true"] == ["tiny-nightly two"]
    assert tags["tiny-nightly three"]["gate"] == "inconclusive"
    shutil.rmtree(server)
    server.write_text("down again")
    plant(tmp_path, 1.1)
    assert night(config, "four") == 1  # against the rows of two, as last seen
    assert "as last seen" in capsys.readouterr().out


def test_a_regression_is_told_even_if_the_server_is_down(few: Path) -> None:
    plant(few.parent, 1.1)
    folder = str(few.parent / "nights" / "first")
    assert night(few, "down-and-worse", "--baseline", folder, "--set", DOWN) == 1


def test_a_dry_run_says_what_can_be_said_and_writes_nothing(
    few: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its cache of the policy is no file of ours
    before = sorted(few.parent.rglob("*"))
    assert night(few, "dry", "--dry-run") == 0
    assert sorted(few.parent.rglob("*")) == before
    assert "cannot resolve" in capsys.readouterr().out


@pytest.mark.parametrize("code", [0, 1])
def test_a_policys_module_that_exits_is_no_verdict(
    few: Path, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own exit code would be taken for a pass, or for a regression."""
    plant(few.parent, 1.0)
    module = few.parent / "nightly_policies.py"
    module.write_text(f"raise SystemExit({code})\n")
    assert night(few, f"exits-{code}") == 2
    assert "nightly_policies" in capsys.readouterr().err
    plant(few.parent, 1.0)
    plant(few.parent, 1.0, first=f"raise SystemExit({code})")
    assert night(few, f"exits-inside-{code}") == 3
    assert "TOO MANY FAILED ITEMS" in capsys.readouterr().out


def test_a_name_that_is_no_folder_is_refused(few: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        night(few, "a/b")


@pytest.mark.parametrize(
    ("tracking", "found"),
    [
        ({}, ("nightly", None)),
        ({"experiment": "mine"}, ("mine", None)),
        ({"experiment_id": "4"}, (None, "4")),
    ],
)
def test_all_nights_are_in_one_experiment(
    tracking: dict[str, str], found: tuple[str | None, str | None]
) -> None:
    settings = make_settings(name="nightly", tracking=tracking)
    night = _of_night(settings, GateSettings(), "2026-11-30")
    assert night.name == "nightly 2026-11-30"
    assert (night.tracking.experiment, night.tracking.experiment_id) == found
