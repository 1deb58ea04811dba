"""Folders that would have another model evaluated, or lose a part of it in silence, are told in one sentence."""

import ast
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvmerger.models.errors import ModelError, ModelWarning
from kvmerger.models.folder import check_quantisation
from kvmerger.models.loading import load_end_ids, load_model, load_tokenizer
from kvmerger.models.source import load_info
from tests.fakes.model_folders import change_json, save_model_folder

MARKER = "code that came with a model was run"


def with_code(folder: Path, file: str, **auto_map: str | list[str | None]) -> None:
    (folder / "own_code.py").write_text(f"raise SystemExit({MARKER!r})")
    change_json(folder / file, auto_map=auto_map)


@pytest.fixture
def says_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked on the terminal whether to run a model's code has said yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")


@pytest.mark.parametrize(
    ("quantisation", "said"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, r"\(awq\).*gptqmodel"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, r"\(gptq\)"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"\(bitsandbytes\).*bitsandbytes"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, r"\(compressed-tensors\)"),
        ({"quant_method": "of next year"}, "of next year"),
        ({"bits": 4}, "no `quant_method`"),
        ({}, "no `quant_method`"),
    ],
    ids=lambda it: it.get("quant_method", str(it)) if isinstance(it, dict) else "",
)  # fmt: skip
def test_a_quantised_folder_without_its_library_is_one_sentence(
    tmp_path: Path, quantisation: dict[str, Any], said: str
) -> None:
    folder = save_model_folder(tmp_path)
    change_json(folder / "config.json", quantization_config=quantisation)
    for call in (load_info, load_model):
        with pytest.raises(
            ModelError, match=f"is quantised.*give the folder of the plain weights.*{said}|{said}"
        ):
            call(str(folder), device="cpu")


@pytest.mark.parametrize("is_run_here", [True, False])
def test_a_gpu_that_a_quantisation_asks_for_may_be_another_machines(
    monkeypatch: pytest.MonkeyPatch, is_run_here: bool
) -> None:
    class Quantiser:
        def validate_environment(self, **_: object) -> None:
            raise RuntimeError("GPU is required")

    monkeypatch.setattr("transformers.quantizers.AutoHfQuantizer.from_config", lambda *_, **__: Quantiser())
    config = SimpleNamespace(quantization_config={"quant_method": "gptq"})
    if is_run_here:
        with pytest.raises(ModelError, match=r"quantised \(gptq\).*GPU is required"):
            check_quantisation("m", config, is_run_here=True)
    else:
        check_quantisation("m", config, is_run_here=False)


def test_an_adapter_beside_the_weights_is_refused(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="merge it into the weights"):
        load_info(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[2]", "\x00"])
def test_a_broken_generation_config_loses_no_end_tokens_in_silence(tmp_path: Path, content: str) -> None:
    folder = save_model_folder(tmp_path)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match="tokens that end an answer"):
        load_info(str(folder))


def test_end_tokens_are_those_of_both_files(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path, eos_token_id=0)
    change_json(folder / "generation_config.json", eos_token_id=[1, 2])
    assert load_end_ids(str(folder)) == {0, 1, 2} == load_model(str(folder), device="cpu").eos_ids
    (folder / "generation_config.json").unlink()
    assert load_end_ids(str(folder)) == {0}


@pytest.mark.usefixtures("says_yes")
def test_an_unknown_family_with_code_of_its_own_is_refused_without_asking(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path)
    change_json(folder / "config.json", model_type="theirs")
    with_code(folder, "config.json", AutoConfig="own_code.C", AutoModelForCausalLM="own_code.M")
    for call in (load_info, load_model, load_end_ids):
        with pytest.raises(
            ModelError, match=r"a 'theirs' with code of its own \(auto_map\), which is never run"
        ):
            call(str(folder))


@pytest.mark.usefixtures("says_yes")
def test_a_known_family_with_code_of_its_own_is_read_as_transformers_own_and_told(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path)
    with_code(folder, "config.json", AutoConfig="own_code.C", AutoModelForCausalLM="own_code.M")
    with pytest.warns(ModelWarning, match="never run: it is evaluated as transformers' llama"):
        assert type(load_model(str(folder), device="cpu").module).__name__ == "LlamaForCausalLM"


@pytest.mark.usefixtures("says_yes")
@pytest.mark.parametrize("has_file", [True, False])
def test_a_tokenizer_with_code_of_its_own_is_read_from_its_file_or_refused(
    tmp_path: Path, has_file: bool
) -> None:
    folder = save_model_folder(tmp_path)
    with_code(folder, "tokenizer_config.json", AutoTokenizer=["own_code.T", "own_code.T"])
    if has_file:
        with pytest.warns(ModelWarning, match=r"its tokenizer comes with code.*tokenizer.json is read"):
            assert load_tokenizer(str(folder)).decode([5]) != ""
    else:
        (folder / "tokenizer.json").unlink()
        with pytest.raises(
            ModelError, match=r"tokenizer is code of its own.*give a folder with a tokenizer.json"
        ):
            load_tokenizer(str(folder))


def test_a_folder_whose_name_is_a_family_is_not_guessed_to_be_one(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path / "llama")
    change_json(folder / "config.json", model_type=None)
    with pytest.raises(ModelError, match=r"of no type \(config.json has no model_type\); supported are"):
        load_info(str(folder))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"}, {"num_attention_heads": 0}, {"num_attention_heads": 3}, {"num_hidden_layers": -1},
        {"rope_parameters": {"rope_type": "llama3"}}, {"rope_parameters": "x"}, {"hidden_act": "theirs"},
        {"num_key_value_heads": 3}, {"vocab_size": 0}, {"max_position_embeddings": "many"}, {"head_dim": 7},
        {"rms_norm_eps": "small"}, {"layer_types": ["full_attention"]},
    ],
    ids=json.dumps,
)  # fmt: skip
def test_a_configuration_that_makes_no_model_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = save_model_folder(tmp_path)
    change_json(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=r"cannot be read|is not what its config.json describes") as raised:
        load_info(str(folder))
    assert "\n" not in str(raised.value)


def test_remote_code_is_off_in_every_call(repo_root: Path) -> None:
    """Told to transformers each time: left to itself it asks on the terminal."""
    calls = [
        (file.name, call)
        for package in ("kvmerger", "evaluators", "jobs", "bench")
        for file in (repo_root / package).rglob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("Auto") and "from_" in ast.unparse(call.func)
        and "Quantizer" not in ast.unparse(call.func)
    ]  # fmt: skip
    assert len(calls) >= 6
    assert [
        (name, call.lineno) for name, call in calls if "trust_remote_code=False" not in ast.unparse(call)
    ] == []
