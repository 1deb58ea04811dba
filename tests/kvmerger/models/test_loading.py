"""Models are accepted only when the engine's numbers are right for them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kvmerger.models.attention import SeamError
from kvmerger.models.loading import load_model
from kvmerger.models.source import ModelError, check_config, load_info
from tests.fakes.model_folders import change_weights, save_model_folder
from tests.fakes.tiny_models import tiny_model


def saved_model(folder: Path, **config: object) -> Path:
    made = LlamaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, **{"intermediate_size": 32, **config},
    )  # fmt: skip
    LlamaForCausalLM(made).save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_local_folder_loads_behind_the_seam(tmp_path: Path) -> None:
    loaded = load_model(str(saved_model(tmp_path)), dtype="bfloat16", device="cpu")
    assert (loaded.info.num_layers, loaded.info.num_kv_heads, loaded.info.head_dim) == (2, 2, 8)
    assert loaded.info.dtype == "bfloat16"
    assert loaded.info.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2
    with pytest.raises(SeamError, match="without a handler"):
        loaded.module(torch.zeros(1, 3, dtype=torch.long))


def test_revision_follows_the_weights(tmp_path: Path) -> None:
    first = load_info(str(saved_model(tmp_path / "a"))).revision
    assert load_info(str(saved_model(tmp_path / "b"))).revision != first
    assert load_info(str(tmp_path / "a")).revision == first


def test_revision_notices_other_layers_behind_the_same_beginning(tmp_path: Path) -> None:
    before = load_info(str(saved_model(tmp_path, intermediate_size=8192))).revision
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: 2**20] + data[: 2**20 - 1 : -1])
    assert load_info(str(tmp_path)).revision != before


@pytest.mark.parametrize("config", ['{"model_type": "no_such_type"}', "{}"])
def test_an_unknown_model_type_is_one_sentence(config: str, tmp_path: Path) -> None:
    saved_model(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match="supported are"):
        load_info(str(tmp_path))


def test_broken_weights_are_one_sentence(tmp_path: Path) -> None:
    file = saved_model(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be read"):
        load_model(str(tmp_path), device="cpu")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    saved_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights"):
        load_model(str(tmp_path))


@pytest.mark.parametrize("name", ["./missing", "/no/such/folder"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_info(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neox"}, "supported are llama, mistral, qwen2, qwen3"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "dynamic"),
    ],
)
def test_unsupported_models_are_refused_before_their_weights_are_read(
    changes: dict, message: str, tmp_path: Path
) -> None:
    saved_model(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(ModelError, match=message):
        load_info(str(tmp_path))


def test_mixed_attention_kinds_are_refused() -> None:
    config = tiny_model(0, model_type="qwen2").plain.config
    config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ModelError, match="mixes attention kinds"):
        check_config("mixed", config)


@pytest.mark.parametrize("options", [{"dtype": "int8"}, {"device": "cuda:0"}])
def test_impossible_dtypes_and_devices_are_refused(options: dict, tmp_path: Path) -> None:
    if "device" in options and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ModelError, match=next(iter(options))):
        load_info(str(saved_model(tmp_path)), **options)


def test_an_unreachable_hub_gives_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once, at import
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="offline, give a local folder or `demo`"):
        load_info("nobody/no-such-model")


def test_a_device_of_another_machine_is_planned_for_without_having_it() -> None:
    info = load_info("demo", device="cuda", is_run_here=False)
    assert (info.device, info.dtype) == ("cuda", "bfloat16")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_give_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path)
    change_weights(folder, model__norm__weight=torch.full((32,), value))
    with pytest.raises(ModelError, match="gives NaN or infinity for a few tokens in float32"):
        load_model(str(folder), device="cpu")


def test_numbers_that_the_dtype_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path)
    change_weights(folder, model__norm__weight=torch.full((32,), 1e6))
    assert load_model(str(folder), device="cpu", dtype="bfloat16").info.dtype == "bfloat16"
    with pytest.raises(ModelError, match=r"the dtype cannot hold its numbers; .* `dtype: bfloat16`"):
        load_model(str(folder), device="cpu", dtype="float16")


def test_a_model_too_large_for_its_device_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nmore")

    folder = save_model_folder(tmp_path)
    monkeypatch.setattr(LlamaForCausalLM, "to", full)
    with pytest.raises(
        ModelError, match=r"does not fit on cpu: OutOfMemoryError: CUDA out of memory.*; use a larger device"
    ):
        load_model(str(folder), device="cpu")
