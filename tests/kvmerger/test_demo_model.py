"""The demo model's tokenizer is the one its file describes, whatever transformers makes of that file."""

import random
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from transformers import AutoTokenizer

from kvmerger.demo_model import _gguf_file, demo_folder

pytestmark = pytest.mark.demo
PIECES = [
    "a",
    "Zß",
    " ",
    "  ",
    "\n",
    "\t",
    "\r",
    "\0",
    "12",
    "'s",
    "漢",
    "\U0001f600",
    "<|im_end|>",
    "<repo_name>",
    "<|im_",
]


def test_every_text_has_the_ids_that_transformers_gives_it_and_comes_back(seed: int) -> None:
    rng, file = random.Random(seed), _gguf_file()
    ours = AutoTokenizer.from_pretrained(demo_folder(with_weights=False))
    theirs = AutoTokenizer.from_pretrained(Path(file).parent, gguf_file=file.name)
    texts = ["".join(rng.choices(PIECES, k=rng.randrange(1, 40))) for _ in range(300)]
    for text in (*texts, *rng.sample(list(topics.values()), 5)):
        ids = ours(text)["input_ids"]
        assert ids == theirs(text, add_special_tokens=False)["input_ids"], text
        assert ours.decode(ids) == text


def test_its_chats_end_as_the_model_was_taught() -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo_folder(with_weights=False))
    assert (tokenizer.bos_token, tokenizer.eos_token, len(tokenizer)) == (
        "<|im_start|>",
        "<|im_end|>",
        49_152,
    )
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nhi<|im_end|>\n")
