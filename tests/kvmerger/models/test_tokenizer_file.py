"""Texts become the tokens that the folder's tokenizer.json says, whatever class transformers would read it with."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, processors
from transformers import AutoTokenizer

from kvmerger.models.errors import ModelError, ModelWarning
from kvmerger.models.loading import load_tokenizer
from tests.fakes.model_folders import change_json, save_model_folder

TEXTS = (
    "needle 4217421 is\n\n42 here",
    "cafe\u0301",
    "plain words only",
    " a  b",
    "the magic number is 42",
    "a<|im_end|> b",
)


def folder_with(folder: Path, model_type: str, tokenizer_class: str | None, **config: Any) -> Path:
    save_model_folder(folder, model_type)
    change_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class, **config)
    return folder


def ids_of_the_file(folder: Path, text: str) -> list[int]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "tokenizer_class",
    [
        "PreTrainedTokenizerFast",
        "LlamaTokenizerFast",
        "LlamaTokenizer",
        "GPT2Tokenizer",
        "Qwen2Tokenizer",
        "NoSuchClass",
        None,
    ],
)
def test_every_class_reads_texts_as_the_file_does(
    tmp_path: Path, model_type: str, tokenizer_class: str | None
) -> None:
    folder = folder_with(tmp_path, model_type, tokenizer_class)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        tokenizer = load_tokenizer(str(folder))
    for text in TEXTS:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids_of_the_file(folder, text), text
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.chat_template


def test_a_class_that_is_not_obeyed_is_named_with_a_text_it_would_misread(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "qwen2", "PreTrainedTokenizerFast")
    misread = AutoTokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"]
    assert misread != ids_of_the_file(folder, TEXTS[0]), (
        "transformers obeys the file by itself now; test another class"
    )
    with pytest.warns(
        ModelWarning, match=r"transformers' Qwen2Tokenizer would read .* as other tokens than the folder's"
    ):
        load_tokenizer(str(folder))


def test_a_file_that_is_obeyed_is_not_spoken_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        load_tokenizer(str(folder_with(tmp_path / "plain", "llama", "PreTrainedTokenizerFast")))
        # What tokenizer_config.json adds is the folder's own word too.
        more = folder_with(
            tmp_path / "more", "llama", "PreTrainedTokenizerFast", extra_special_tokens=["<|tool|>"]
        )
        assert len(load_tokenizer(str(more))("<|tool|>")["input_ids"]) == 1


def test_the_files_own_bos_and_normalisation_stay(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "qwen2", None, bos_token="<|endoftext|>")
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.normalizer = normalizers.Lowercase()
    file.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    file.add_special_tokens([AddedToken("<|tool|>", lstrip=True, rstrip=True)])
    file.save(str(folder / "tokenizer.json"))
    with pytest.warns(ModelWarning):
        tokenizer = load_tokenizer(str(folder))
    for text in ("UPPER", "a <|tool|> b"):
        assert tokenizer(text)["input_ids"] == file.encode(text).ids


def test_a_file_that_no_class_obeys_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = save_model_folder(tmp_path / "a"), save_model_folder(tmp_path / "b")
    change_json(other / "tokenizer_config.json", add_prefix_space=True)
    file = json.loads((other / "tokenizer.json").read_text())
    file["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(file))
    wrong = AutoTokenizer.from_pretrained(other)
    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.from_pretrained", lambda *_, **__: wrong)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: misreads)
    file["normalizer"] = {"type": "Prepend", "prepend": "x"}
    (other / "tokenizer.json").write_text(json.dumps(file))
    misreads = type(wrong)(tokenizer_file=str(other / "tokenizer.json"))
    with pytest.raises(
        ModelError, match=r"neither .* nor the plain class of transformers reads texts as tokenizer.json says"
    ):
        load_tokenizer(str(folder))


def test_a_tokenizer_without_that_file_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "qwen2", "Qwen2Tokenizer")
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    (folder / "tokenizer.json").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        assert (
            load_tokenizer(str(folder)).decode(load_tokenizer(str(folder))("magic 42")["input_ids"])
            == "magic 42"
        )


@pytest.mark.parametrize("content", ["", "{}", "[", '{"model": 3}'])
def test_a_broken_tokenizer_file_is_one_sentence(tmp_path: Path, content: str) -> None:
    folder = save_model_folder(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="cannot be read") as raised:
        load_tokenizer(str(folder))
    assert "\n" not in str(raised.value)
