"""A model and data small enough to sweep in seconds: real files, real weights, real code."""

import json
import signal
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "some",
    "dogs",
    "ran",
    "to",
    "town",
    "and",
    "back",
    "again",
    "for",
    "no",
    "reason",
    "at",
    "all",
]


def save_tiny_model(folder: Path) -> Path:
    """A random two-layer GQA Llama with a tokenizer of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(["<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=0,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def save_data(folder: Path, num_items: int, num_words: int = 30) -> Path:
    """LongBench rows for qasper; item 0 has a context of one word."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {
            "input": f"what did number {index} do",
            "context": " ".join(
                _WORDS[(index + word) % len(_WORDS)] for word in range(num_words if index else 1)
            ),
            "answers": ["it sat"],
            "length": num_words,
            "all_classes": None,
            "_id": f"row{index}",
        }
        for index in range(num_items)
    ]
    (folder / "qasper.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def save_settings(folder: Path, model: Path, data: Path) -> Path:
    """Settings of a sweep over both, without Ray and tracking; results go to `folder/results`."""
    settings = {
        "name": "tiny",
        "model": {"name": str(model)},
        "tasks": [{"name": "longbench/qasper", "data": str(data), "max_new_tokens": 4}],
        "policies": ["full", {"name": "knorm", "budget": 0.5}],
        "query_mode": "query_agnostic",
        "executor": "inline",
        "output_dir": str(folder / "results"),
        "tracking": False,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def hear_interrupts() -> None:
    """For a subprocess, before its program: where a shell has put the tests in the background, Ctrl-C would be ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
