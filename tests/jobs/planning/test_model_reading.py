"""What a sweep says of its model before it runs: refusals, and where answers may not end."""

import warnings
from pathlib import Path
from typing import Any

import pytest

from evaluators.item import BenchmarkItem
from evaluators.tokenizer import PromptError
from jobs.planning.model_reading import read_model
from jobs.planning.preparation import prepare
from jobs.settings.schema import Settings, load_settings
from jobs.sweep import main
from kvmerger.models.errors import ModelError
from tests.fakes.model_folders import (
    CHAT_TEMPLATE,
    change_json,
    change_weights,
    save_model_folder,
    without_numbers,
)
from tests.fakes.plans import item
from tests.fakes.sweeps import save_data, save_settings, save_tiny_model


def settings_for(folder: Path, model: Path, *overrides: str) -> Settings:
    return load_settings(save_settings(folder, model, save_data(folder / "data", 1)), overrides)


def said(folder: Path, model: Path, items: list[BenchmarkItem] | None = None) -> tuple[str, ...]:
    return read_model(settings_for(folder, model), "cpu").warnings_for(items or [chat_item()])


def chat_item(**changes: Any) -> BenchmarkItem:
    return item(1, use_chat_template=True, **changes)


def test_nothing_is_said_of_a_model_that_is_what_it_says(tmp_path: Path) -> None:
    assert said(tmp_path, save_model_folder(tmp_path / "model")) == ()


@pytest.mark.parametrize("ends_at", [0, [0, 1]])
def test_a_turn_that_ends_at_no_end_token_is_told_with_both(tmp_path: Path, ends_at: int | list[int]) -> None:
    model = save_model_folder(tmp_path / "model", eos_token_id=ends_at)
    (warning,) = said(tmp_path, model)
    assert "ends a turn with '<|im_end|>' (2), but answers end at '<|endoftext|>' (0)" in warning
    assert "put 2 into eos_token_id of generation_config.json" in warning
    change_json(model / "generation_config.json", eos_token_id=[0, 2])
    assert said(tmp_path, model) == ()


def test_a_model_without_end_tokens_is_told_its_templates(tmp_path: Path) -> None:
    model = save_model_folder(tmp_path / "model", eos_token_id=None)
    (warning,) = said(tmp_path, model)
    assert "answers end at nothing" in warning


def test_a_template_that_no_item_needs_is_not_spoken_of(tmp_path: Path) -> None:
    model = save_model_folder(
        tmp_path / "model", eos_token_id=0, chat_template="{{ range(9999) | random }}" + CHAT_TEMPLATE
    )
    assert said(tmp_path, model, [item(1, use_chat_template=False)]) == ()
    with pytest.raises(PromptError, match="another text each time"):
        said(tmp_path, model)


def test_what_is_not_as_the_folder_says_is_told_once_and_every_time(tmp_path: Path) -> None:
    model = save_model_folder(tmp_path / "model", "qwen2")
    change_json(model / "config.json", auto_map={"AutoModelForCausalLM": "theirs.Model"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            own_code, other_class = said(tmp_path, model)
            assert "code of its own" in own_code and "Qwen2Tokenizer would read" in other_class


@pytest.mark.parametrize(
    ("device", "executor", "address", "message"),
    [
        ("gpu", "inline", None, "did you mean 'cuda'"),
        ("gpu", "ray", "192.0.2.1:6379", "did you mean 'cuda'"),
        ("cuda:1", "ray", "192.0.2.1:6379", "Ray gives each actor a GPU of its own"),
        ("mps", "inline", None, "no Apple GPU"),
        # A Ray that is started here has this machine's devices.
        ("mps", "ray", None, "no Apple GPU"),
        ("mps", "ray", "192.0.2.1:6379", None),
    ],
)  # fmt: skip
def test_a_device_that_does_not_exist_is_told_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    executor: str,
    address: str | None,
    message: str | None,
) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    settings = settings_for(
        tmp_path, save_model_folder(tmp_path / "model"), f"model.device={device}", f"executor={executor}"
    )
    if message is None:
        assert read_model(settings, device).info.device == device
        return
    with pytest.raises(ModelError, match=message):
        read_model(settings, device)


def test_a_plan_hands_on_what_is_to_be_said(tmp_path: Path) -> None:
    model = save_model_folder(tmp_path / "model", eos_token_id=0)
    settings = settings_for(tmp_path, model)
    assert len(prepare(settings, done=(), find_device=lambda: "cpu").warnings) == 1


def test_a_template_with_a_clock_plans_the_same_rows_at_any_time(tmp_path: Path) -> None:
    template = "{{ strftime_now('%Y-%m-%d %H:%M:%S.%f') }}" + CHAT_TEMPLATE
    settings = settings_for(tmp_path, save_model_folder(tmp_path / "model", chat_template=template))
    first, second = (prepare(settings, done=(), find_device=lambda: "cpu").plan.rows for _ in range(2))
    assert [row.key for row in first] == [row.key for row in second]


@pytest.mark.parametrize("command", [["validate"], ["run"]])
def test_a_model_that_lacks_weights_ends_validate_and_run_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    model = save_model_folder(tmp_path / "model")
    change_weights(model, model__layers__1__mlp__up_proj__weight=None)
    config = save_settings(tmp_path, model, save_data(tmp_path / "data", 1))
    capsys.readouterr()
    assert main([*command, str(config)]) == 2
    out, err = capsys.readouterr()
    assert "1 missing: model.layers.1.mlp.up_proj.weight" in err and "Traceback" not in out + err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", [["validate"], ["run"]])
def test_what_is_to_be_said_is_shown_by_validate_and_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    config = save_settings(
        tmp_path, save_model_folder(tmp_path / "model", eos_token_id=0), save_data(tmp_path / "data", 1)
    )
    capsys.readouterr()
    assert main([*command, str(config)]) == 0
    out, _ = capsys.readouterr()
    assert "warning: the chat template ends a turn with '<|im_end|>' (2)" in " ".join(out.split())


def test_a_dry_run_needs_no_weights_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = save_settings(tmp_path, save_tiny_model(tmp_path / "model"), save_data(tmp_path / "data", 3))
    without_numbers(tmp_path / "model")
    monkeypatch.setattr(
        "kvmerger.models.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded")
    )
    before = sorted(tmp_path.rglob("*"))
    assert main([str(config), "--dry-run", "--set", "policies=[{name: knorm, budget: [0.5, 100000]}]"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    assert "3 items x 5 variants = 15 rows" in out and "predicted K/V" in out
    assert "degenerate: knorm@100000" in out
