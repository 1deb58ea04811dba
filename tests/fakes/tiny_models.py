"""Small random models with grouped-query attention, twice: behind our seam, and as transformers runs them itself.

Weights are larger than the usual initialisation, so that attention is far from uniform and a dropped token shows.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from kvmerger.models.attention import ATTENTION_NAME, register_attention
from kvmerger.models.loading import LoadedModel
from kvmerger.models.repeat_words import RepeatWords
from kvmerger.models.source import ModelInfo

VOCAB_SIZE = 211
TOKEN_CLASSES = (1, 2, 0, 0, 0, 0, 0, 2, 0)
REPEAT_WORDS = RepeatWords(first_ids=(3, 5), next_ids=(7, 11, 13), suffix_ids=(17,))
TIE_LOGITS = 1e-3
"""Closer than this, the better of two tokens is a matter of rounding: kernels differ by up to 1e-4."""
_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
}


class TinyModel(NamedTuple):
    """ours: behind the seam. plain: the same weights under transformers' own attention."""

    ours: LoadedModel
    plain: Any


def tiny_model(
    seed: int,
    dtype: torch.dtype = torch.float32,
    *,
    model_type: str = "llama",
    num_layers: int = 5,
    **config: Any,
) -> TinyModel:
    """A model of 4 query heads on 2 KV heads, fresh weights from ``seed``, without an end token."""
    config_class, model_class, extra = _CLASSES[model_type]
    made = config_class(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=96, num_hidden_layers=num_layers,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, max_position_embeddings=4096,
        initializer_range=0.2, eos_token_id=None, bos_token_id=None, pad_token_id=None, **{**extra, **config},
    )  # fmt: skip
    torch.manual_seed(seed)
    plain = model_class(copy.deepcopy(made)).to(dtype).eval()
    register_attention()
    behind_seam = (
        model_class._from_config(copy.deepcopy(made), attn_implementation=ATTENTION_NAME).to(dtype).eval()
    )
    behind_seam.load_state_dict(plain.state_dict())
    ours = LoadedModel(
        behind_seam, _info(made, dtype), frozenset(),
        repeat_words=lambda: REPEAT_WORDS, token_classes=lambda ids: [TOKEN_CLASSES[it % 9] for it in ids],
    )  # fmt: skip
    return TinyModel(ours, plain)


def _info(config: Any, dtype: torch.dtype) -> ModelInfo:
    return ModelInfo(
        name="tiny", revision="random", model_type=config.model_type, num_layers=config.num_hidden_layers,
        num_query_heads=4, num_kv_heads=2, head_dim=16, vocab_size=VOCAB_SIZE, max_positions=4096,
        dtype=str(dtype).removeprefix("torch."), device="cpu", weight_bytes=0,
    )  # fmt: skip


def assert_same_greedy_tokens(
    plain: Any, ids_1T: torch.Tensor, ours: tuple[int, ...], generated_1T: torch.Tensor
) -> None:
    """The tokens are those ``plain.generate`` gave; where they part, both must be its best but for rounding.

    After such a tie the two go on from different texts, so nothing behind it is compared.
    """
    expected = generated_1T[0, ids_1T.shape[1] :].tolist()
    assert len(ours) == len(expected)
    for index, (our_token, their_token) in enumerate(zip(ours, expected, strict=True)):
        if our_token != their_token:
            with torch.inference_mode():
                logits_V = plain(generated_1T[:, : ids_1T.shape[1] + index]).logits[0, -1]
            gap = float(logits_V[their_token] - logits_V[our_token])
            assert gap < TIE_LOGITS, (
                f"token {index} is {our_token}, transformers says {their_token} by {gap} logits"
            )
            return
