"""Model folders to break: small random weights, a byte-level tokenizer and a chat template, as transformers saves them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Llama 3's splitting: up to three digits are one token, where Qwen's own has one digit each.
LLAMA3_SPLITTING = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LEARNED = "the magic number is 421 and 42 and 4217421, not 217 " * 20
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def save_model_folder(
    folder: Path,
    model_type: str = "llama",
    *,
    chat_template: str | None = CHAT_TEMPLATE,
    max_shard_size: str = "1GB",
    **config: Any,
) -> Path:
    """A two-layer model that ends at `<|im_end|>`, with all its files."""
    tokenizer = Tokenizer(BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLITTING), "isolated")
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([_LEARNED], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=chat_template
    )
    fast.save_pretrained(folder)
    config_class, model_class = _CLASSES[model_type]
    torch.manual_seed(0)
    made = config_class(
        vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=2048, bos_token_id=None, pad_token_id=None,
        **{"eos_token_id": SPECIAL.index("<|im_end|>"), **config},
    )  # fmt: skip
    model_class(made).save_pretrained(folder, max_shard_size=max_shard_size)
    return folder


def change_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; a key that is set to None is taken out."""
    merged = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))


def change_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Set tensors of `model.safetensors`, `__` for a dot in their names; None takes one out."""
    file = folder / "model.safetensors"
    tensors: dict[str, Any] = load_file(file)
    tensors.update({name.replace("__", "."): tensor for name, tensor in changes.items()})
    save_file({name: it for name, it in tensors.items() if it is not None}, file, metadata={"format": "pt"})


def without_numbers(folder: Path) -> Path:
    """Leave of `model.safetensors` the header alone, and a hole of the right length behind it."""
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: 8 + int.from_bytes(whole[:8], "little")])
    os.truncate(file, len(whole))
    return folder
