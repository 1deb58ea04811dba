"""A model whose files are not what its configuration describes is refused, by headers and when it is loaded."""

import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from kvmerger.models.errors import ModelError
from kvmerger.models.loading import load_model
from kvmerger.models.source import load_info, read_config
from kvmerger.models.weight_files import INDEX, check_index, refuse_differences, weight_files
from tests.fakes.model_folders import change_json, change_weights, save_model_folder

UP = "model.layers.1.mlp.up_proj.weight"


def as_bin(folder: Path) -> None:
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": True}, {"max_shard_size": "20KB"}], ids=str)
def test_whole_folders_of_every_family_pass(tmp_path: Path, model_type: str, options: dict[str, Any]) -> None:
    folder = save_model_folder(tmp_path, model_type, **options)
    assert load_info(str(folder)).model_type == model_type
    assert load_model(str(folder), device="cpu").info.num_layers == 2


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("is_tied", [False, True])
def test_an_index_alone_names_what_every_family_has(tmp_path: Path, model_type: str, is_tied: bool) -> None:
    folder = save_model_folder(tmp_path, model_type, max_shard_size="20KB", tie_word_embeddings=is_tied)
    check_index("m", read_config(str(folder)), folder / INDEX)


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}


def as_fp8(folder: Path, *, without_scale: str = "") -> None:
    """Projections as codes with a scale each, but for one; that one has the scale of its inputs alone."""
    changes: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "_proj" in name:
            scale = tensor.abs().max() / 448
            changes[name] = (tensor / scale).to(torch.float8_e4m3fn)
            ending = "input_scale" if name == without_scale else "weight_scale_inv"
            changes[name.replace("weight", ending)] = scale.reshape(1, 1)
    change_weights(folder, **changes)
    change_json(folder / "config.json", quantization_config=FP8)


@pytest.mark.parametrize("is_bin", [False, True])
def test_codes_of_eight_bits_without_their_scale_are_no_weights(tmp_path: Path, is_bin: bool) -> None:
    folder = save_model_folder(tmp_path)
    as_fp8(folder, without_scale=UP)
    if is_bin:
        as_bin(folder)
    said = rf"quantised \(fp8\), and 1 of its 14 tensors of 8-bit floats have no scale beside them: {UP}; get"
    for call in (load_info, load_model):
        with pytest.raises(ModelError, match=said):
            call(str(folder), device="cpu")


def test_codes_of_eight_bits_with_their_scales_pass(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path)
    as_fp8(folder)
    assert load_info(str(folder), device="cpu").num_layers == 2


def test_names_that_transformers_translates_pass(tmp_path: Path) -> None:
    # A decoder saved by itself has no "model." in its names, and an old one has buffers that are computed today.
    folder = save_model_folder(tmp_path / "whole", tie_word_embeddings=True)
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder).model.save_pretrained(bare)
    change_json(bare / "config.json", tie_word_embeddings=True)
    change_weights(bare, layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    assert load_info(str(bare)).num_layers == 2
    assert load_model(str(bare), device="cpu").info.num_layers == 2


@pytest.mark.parametrize("is_bin", [False, True])
@pytest.mark.parametrize(
    ("weights", "config", "said"),
    [
        ({UP: None}, {}, f"1 missing: {UP}"),
        ({"model.norm.weight": None, "lm_head.weight": None}, {}, "2 missing: lm_head.weight, model.norm.weight"),
        ({}, {"num_hidden_layers": 3}, "9 missing: model.layers.2.input_layernorm.weight, "),
        ({}, {"num_hidden_layers": 1}, "9 surplus: model.layers.1.input_layernorm.weight, "),
        ({"score.weight": torch.ones(2, 32)}, {}, "1 surplus: score.weight"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, {}, "1 surplus: model.layers.0.self_attn.q_proj.bias"),
        ({UP: torch.ones(48, 31)}, {}, rf"1 of another shape: {UP} is \[48, 31\], not \[48, 32\]"),
        ({}, {"hidden_size": 16}, "21 of another shape: lm_head.weight is"),
        ({}, {"vocab_size": 500}, "2 of another shape: lm_head.weight is"),
        ({}, {"attention_bias": True}, "8 missing: model.layers.0.self_attn.k_proj.bias"),
    ],
)  # fmt: skip
def test_what_is_missing_surplus_or_of_another_shape_is_named(
    tmp_path: Path, weights: dict[str, Any], config: dict[str, Any], said: str, is_bin: bool
) -> None:
    folder = save_model_folder(tmp_path)
    change_weights(folder, **{name.replace(".", "__"): tensor for name, tensor in weights.items()})
    change_json(folder / "config.json", **config)
    if is_bin:
        as_bin(folder)
    with pytest.raises(ModelError, match=said):
        load_info(str(folder))


def test_no_warning_table_nor_progress_bar_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_model_folder(tmp_path)
    capfd.readouterr()
    load_model(str(folder), device="cpu")
    change_weights(folder, **{UP.replace(".", "__"): None})
    with pytest.raises(ModelError):
        load_info(str(folder))
    assert capfd.readouterr() == ("", "")


def test_what_headers_could_not_tell_is_refused_when_the_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a hub id, whose files are not here when its plan is made.
    folder = save_model_folder(tmp_path)
    change_weights(folder, **{UP.replace(".", "__"): None, "model__norm__weight": torch.ones(3)})
    monkeypatch.setattr("kvmerger.models.folder.check_weights", lambda *_: None)
    with pytest.raises(ModelError, match=rf"1 missing: {UP}; 1 of another shape: model.norm.weight is \[3\]"):
        load_model(str(folder), device="cpu")


def test_many_names_are_counted_and_only_the_first_shown() -> None:
    found = {
        "missing_keys": {f"k{index}" for index in range(9)},
        "unexpected_keys": [],
        "mismatched_keys": [],
    }
    with pytest.raises(ModelError, match=r"9 missing: k0, k1, k2 and 6 more. Get"):
        refuse_differences("m", found)


def test_missing_shards_are_named_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path, max_shard_size="20KB")
    shards = weight_files(folder)
    assert len(shards) > 2
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"lacks 1 of {len(shards)} weight files: {shards[1].name}"):
        load_info(str(folder))


@pytest.mark.parametrize("index", ["{}", "[]", "no json", '{"weight_map": 3}'])
def test_a_broken_index_is_one_sentence(tmp_path: Path, index: str) -> None:
    folder = save_model_folder(tmp_path, max_shard_size="20KB")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="not the index of a model's weight files"):
        load_info(str(folder))


@pytest.mark.parametrize(
    "beside", ["consolidated.safetensors", "pytorch_model.bin", "model-00001-of-00002.safetensors"]
)
def test_weights_that_are_there_twice_count_once_and_change_nothing(tmp_path: Path, beside: str) -> None:
    folder = save_model_folder(tmp_path)
    before = load_info(str(folder))
    assert before.weight_bytes == (folder / "model.safetensors").stat().st_size
    shutil.copy(folder / "model.safetensors", folder / beside)
    assert load_info(str(folder)) == before


def test_codes_of_a_quantisation_nobody_told_of_are_refused(tmp_path: Path) -> None:
    folder = save_model_folder(tmp_path)
    change_weights(folder, **{UP.replace(".", "__"): torch.ones(48, 32, dtype=torch.int8)})
    with pytest.raises(ModelError, match=r"is I8, while config.json says nothing of quantisation"):
        load_info(str(folder))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a weight file was run",))


@pytest.mark.parametrize("content", [b"no pickle", pickle.dumps(Evil()), pickle.dumps([1]), b""])
def test_bin_files_that_hold_no_tensors_are_one_sentence_and_run_nothing(
    tmp_path: Path, content: bytes
) -> None:
    folder = save_model_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read|holds no named tensors"):
        load_info(str(folder))


def test_cut_off_weights_are_found_by_their_header(tmp_path: Path) -> None:
    file = save_model_folder(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read"):
        load_info(str(tmp_path))


def test_weights_of_a_hub_id_are_looked_at_once_they_are_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0" * 40
    repository = tmp_path / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = save_model_folder(repository / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read once, at import
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    names = list(load_file(folder / "model.safetensors"))
    info = load_info("somebody/tiny")
    assert (info.revision, info.weight_bytes) == (commit, (folder / "model.safetensors").stat().st_size)
    change_weights(folder, **{UP.replace(".", "__"): None})
    with pytest.raises(ModelError, match="1 missing"):
        load_info("somebody/tiny")
    # Of half a download the index alone is looked at.
    (folder / "model.safetensors").unlink()
    assert load_info("somebody/tiny").weight_bytes == 0
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_info("somebody/tiny").weight_bytes == 0
    for wrong, said in (
        ({UP: None}, f"are 1 missing: {UP}"),
        ({"model.layers.2.mlp.up_proj.weight": "x"}, "are 1 surplus: model.layers.2"),
    ):
        changed = {key: file for key, file in (index["weight_map"] | wrong).items() if file}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(ModelError, match=re.escape(said)):
            load_info("somebody/tiny")
