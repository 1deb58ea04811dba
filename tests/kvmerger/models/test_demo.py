"""The demo model's tokenizer is right whatever transformers makes of its file, and its cache is where it can be."""

import random
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from transformers import AutoTokenizer

from kvmerger.models.demo import DemoModelError, _gguf_file, _read_tokenizer, demo_folder
from kvmerger.models.errors import ModelError
from kvmerger.models.source import load_info

pytestmark = pytest.mark.demo
PIECES = (
    "a", "Zß", " ", "  ", "\n", "\t", "\r", "\0", "12", "'s", "漢", "\U0001f600", "<|im_end|>", "<repo_name>", "<|im_",
)  # fmt: skip


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As it is after it was saved; read anew, whatever an earlier version has left in the cache."""
    folder = tmp_path_factory.mktemp("tokenizer")
    _read_tokenizer(_gguf_file()).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_every_text_has_the_ids_that_transformers_gives_it_and_comes_back(ours: Any, seed: int) -> None:
    rng, file = random.Random(seed), _gguf_file()
    theirs = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(1, 40))) for _ in range(300)]
    for text in (*texts, *rng.sample(list(topics.values()), 5)):
        ids = ours(text)["input_ids"]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == text


def test_its_chats_end_as_the_model_was_taught(ours: Any) -> None:
    assert (ours.bos_token, ours.eos_token, len(ours)) == ("<|im_start|>", "<|im_end|>", 49_152)
    chat = ours.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("XDG_CACHE_HOME", "/proc/none"), ("HOME", "/proc/none"), ("XDG_CACHE_HOME", "FILE")],
)
def test_a_cache_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, value.replace("FILE", str(tmp_path / "file")))
    with pytest.raises(
        ModelError, match=r"cannot be kept in .*; set XDG_CACHE_HOME to a folder that can be written"
    ):
        load_info("demo")


def test_a_user_without_a_home_folder_is_told_where_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(DemoModelError, match="set XDG_CACHE_HOME"):
        demo_folder(with_weights=False)


def test_an_empty_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert demo_folder(with_weights=False).is_relative_to(tmp_path / ".cache" / "kvmerger")
