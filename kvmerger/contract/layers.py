"""Random layers to try policies on: what a prefill would leave behind, without a model.

Shapes: N tokens, H KV heads, Q query heads, D head size, E hidden size.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from kvmerger.budget import BudgetSpec
from kvmerger.cache.layer_cache import LayerCache, room_for
from kvmerger.models.token_classes import PUNCTUATION, SPECIAL
from kvmerger.policies.base import CacheShape, Policy, declared_needs
from kvmerger.prefill.evidence import (
    Evidence,
    LayerStates,
    Need,
    PromptStates,
    reads_hidden_states,
    repeat_needs,
)
from kvmerger.prefill.prefill import Prefilled
from kvmerger.prefill.repeat_states import Gathered, RepeatStates
from kvmerger.prefill.token_classes import TOKEN_CLASSES

if TYPE_CHECKING:
    from transformers import LlamaConfig

# 311 is prime: no window, partition or block of a kernel divides it, so every last one is a short one.
NUM_LAYERS, NUM_KV_HEADS, NUM_QUERY_HEADS, HEAD_DIM, NUM_TOKENS = 8, 2, 4, 16, 311
# A neighbour's share in each key, so that some neighbours are alike and some are not, as in real prompts.
_NEIGHBOUR_SHARE = 0.8
_INSTRUCTION_TOKENS = 3
_PUNCTUATION_DISTANCE = 9
_MASSIVE_MAGNITUDE = 1e4  # of normal numbers, whose median is 0.67


def random_prefill(
    seed: int,
    dtype: torch.dtype,
    policy: Policy,
    num_tokens: int = NUM_TOKENS,
    budget: BudgetSpec | None = None,
) -> Prefilled:
    """What a prefill would leave behind: correlated random keys, random queries and values, the policy's evidence.

    For policies that read hidden states there is a real attention module; its inputs are drawn apart from q, k and v.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(num_heads: int) -> torch.Tensor:
        return torch.randn(num_heads, num_tokens, HEAD_DIM, generator=generator)

    shape = CacheShape(num_tokens, NUM_LAYERS, NUM_KV_HEADS, HEAD_DIM, dtype.itemsize)
    at_budget = (part.needs_at(shape, budget) for part in policy.parts)
    needs = frozenset(declared_needs(policy)).union(*at_budget)
    prompt = PromptStates()
    has_hidden_states = any(map(reads_hidden_states, needs))
    layers: list[LayerCache] = []
    evidence: list[Evidence] = []
    for layer_index in range(NUM_LAYERS):
        k_HND = draw(NUM_KV_HEADS)
        share_HN1 = _NEIGHBOUR_SHARE * torch.rand(NUM_KV_HEADS, num_tokens - 1, 1, generator=generator)
        k_HND[:, 1:] = share_HN1 * k_HND[:, :-1] + (1 - share_HN1) * k_HND[:, 1:]
        q_QND, v_HND = draw(NUM_QUERY_HEADS), draw(NUM_KV_HEADS)
        hidden_NE, attention = (
            _attention_input(generator, dtype, num_tokens, layer_index) if has_hidden_states else (None, None)
        )
        states = LayerStates(
            q_QND.to(dtype), k_HND.to(dtype), v_HND.to(dtype), HEAD_DIM**-0.5, hidden_NE, attention, rotary()
        )
        if hidden_NE is not None:
            states = replace(states, residual_NE=_with_massive_tokens(hidden_NE, layer_index))
        gathered = Evidence(replace(states, prompt=prompt), layer_index, NUM_LAYERS, prompt_seed=seed)
        gathered.capture(needs)
        if TOKEN_CLASSES in needs:
            gathered.put(TOKEN_CLASSES, _token_classes(num_tokens))
        if repeated := repeat_needs(needs):
            _repeat(gathered, states, repeated, generator)
        # As prefill writes them: neighbours in one storage, so that stacking them copies nothing.
        if not layers:
            layers = list(room_for(NUM_LAYERS, states.k_HND))
        layers[layer_index].k_HND.copy_(states.k_HND)
        layers[layer_index].v_HND.copy_(states.v_HND)
        evidence.append(gathered)
    return Prefilled(tuple(layers), tuple(evidence))


def _repeat(
    evidence: Evidence, states: LayerStates, needs: Sequence[Need], generator: torch.Generator
) -> None:
    """What a repetition in two parts would tell: an instruction of a few tokens, then keys and queries like the prompt's."""
    num_tokens = states.k_HND.shape[1]
    gathered, middle = Gathered(needs), (num_tokens + 1) // 2
    for part in filter(len, (range(middle), range(middle, num_tokens))):
        place_T = torch.tensor([*[0] * _INSTRUCTION_TOKENS, *part], dtype=torch.int64)
        q_QTD, k_HTD, v_HTD = (
            x[:, place_T] + torch.randn(x[:, place_T].shape, generator=generator).to(x.dtype)
            for x in (states.q_QND, states.k_HND, states.v_HND)
        )
        hidden_TE = None if states.hidden_NE is None else states.hidden_NE[place_T]
        gathered.add(
            RepeatStates(
                q_QTD, k_HTD, v_HTD, states.k_HND, states.v_HND, part, states.scaling, hidden_TE, states.attention,
            )
        )  # fmt: skip
    for need, found in gathered.found().items():
        evidence.put(need, found)


def _token_classes(num_tokens: int) -> torch.Tensor:
    """A special token at the start, and punctuation as often as in text."""
    is_punctuation_N = torch.arange(num_tokens) % _PUNCTUATION_DISTANCE == _PUNCTUATION_DISTANCE - 1
    classes_N = is_punctuation_N.to(torch.uint8) * PUNCTUATION
    classes_N[:1] = SPECIAL
    return classes_N


def _with_massive_tokens(hidden_NE: torch.Tensor, layer_index: int) -> torch.Tensor:
    """A stream whose first token, and one in its first half, are massive; before the second layer none is, as in models."""
    if layer_index == 0:
        return hidden_NE
    residual_NE = hidden_NE.clone()
    for token in (0, hidden_NE.shape[0] // 3):
        residual_NE[token, 0] = _MASSIVE_MAGNITUDE
    return residual_NE


def _attention_input(
    generator: torch.Generator, dtype: torch.dtype, num_tokens: int, layer_index: int
) -> tuple[torch.Tensor, nn.Module]:
    """Hidden states, and a Llama attention module with random weights."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    config = _config()
    attention = LlamaAttention(config, layer_idx=layer_index).requires_grad_(False)
    for weight in attention.parameters():
        weight.normal_(std=config.hidden_size**-0.5, generator=generator)
    hidden_NE = torch.randn(num_tokens, config.hidden_size, generator=generator)
    return hidden_NE.to(dtype), attention.to(dtype)


@functools.cache
def rotary() -> nn.Module:
    """A rotary embedding for heads of `HEAD_DIM` channels."""
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    return LlamaRotaryEmbedding(_config())


def _config() -> LlamaConfig:
    from transformers import LlamaConfig

    return LlamaConfig(
        hidden_size=NUM_QUERY_HEADS * HEAD_DIM, head_dim=HEAD_DIM,
        num_attention_heads=NUM_QUERY_HEADS, num_key_value_heads=NUM_KV_HEADS, num_hidden_layers=NUM_LAYERS,
    )  # fmt: skip
