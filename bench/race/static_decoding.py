"""Decode a compressed cache of transformers by a CUDA graph: it is copied into a static cache, one step of which is replayed.

A replay works on the addresses that were captured, so every tensor of a step is made once and only ever written in place.

Shapes: B rows, S slots (kept ones and room for the answer), T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

_WARM_UP_STEPS = 2


class SlotLayer(StaticLayer):
    """A static layer that writes where ``slot_1`` says: transformers' own counts in another way in each version."""

    def __init__(self, num_slots: int, slot_1: Tensor) -> None:
        super().__init__(num_slots)
        self.slot_1 = slot_1

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one token's keys and values (B, H, 1, D) in place; all slots."""
        self.keys.index_copy_(2, self.slot_1, key_states)
        self.values.index_copy_(2, self.slot_1, value_states)
        return self.keys, self.values


class StaticDecoder:
    """Greedy decoding from caches of one batch size and one number of kept slots. Captures at first use; CUDA or not."""

    def __init__(self, module: Any, batch: int, num_slots: int, num_new_tokens: int) -> None:
        config = module.config
        self._module = module
        self._num_slots, self._num_new_tokens = num_slots, num_new_tokens
        size = num_slots + num_new_tokens
        self._token_B1 = torch.zeros(batch, 1, dtype=torch.long, device=module.device)
        self._slot_1 = torch.zeros(1, dtype=torch.long, device=module.device)
        self._cache = Cache(layers=[SlotLayer(size, self._slot_1) for _ in range(config.num_hidden_layers)])
        self._cache.early_initialization(
            batch,
            config.num_key_value_heads,
            module.model.layers[0].self_attn.head_dim,
            module.dtype,
            module.device,
        )
        self._position_B1 = torch.zeros_like(self._token_B1)
        # Slots still to be written are masked, not left out: shapes are captured as well.
        self._is_visible_B11S = torch.zeros(batch, 1, 1, size, dtype=torch.bool, device=module.device)
        self._answer_BT = torch.zeros(batch, num_new_tokens, dtype=torch.long, device=module.device)
        self._graph = self._capture() if module.device.type == "cuda" else None

    def decode(self, cache: Any, token_B1: Tensor, position: int) -> Tensor:
        """Tokens (B, T), the first one given, after the slots of ``cache`` (a `DynamicCache`); ``position`` is its own."""
        for static, dynamic in zip(self._cache.layers, cache.layers, strict=True):
            static.keys[:, :, : self._num_slots] = dynamic.keys
            static.values[:, :, : self._num_slots] = dynamic.values
        self._set(token_B1, position)
        for _ in range(self._num_new_tokens - 1):
            if self._graph is None:
                self._step()
            else:
                self._graph.replay()
        return self._answer_BT.clone()  # the next answer is written into the same storage

    def _set(self, token_B1: Tensor, position: int) -> None:
        self._token_B1.copy_(token_B1)
        self._slot_1.fill_(self._num_slots)
        self._position_B1.fill_(position)
        self._is_visible_B11S.fill_(False)
        self._is_visible_B11S[..., : self._num_slots] = True
        self._answer_BT[:, :1] = token_B1

    def _step(self) -> None:
        # Before the pass: a token sees itself.
        self._is_visible_B11S.index_fill_(3, self._slot_1, True)
        logits_B1V = self._module(
            input_ids=self._token_B1,
            attention_mask=self._is_visible_B11S,
            position_ids=self._position_B1,
            cache_position=self._slot_1,
            past_key_values=self._cache,
        ).logits
        self._token_B1.copy_(logits_B1V[:, -1].argmax(dim=-1, keepdim=True))
        # A tensor, not a Python number: a replay would repeat the captured one.
        self._slot_1.add_(1)
        self._position_B1.add_(1)
        self._answer_BT.index_copy_(1, self._slot_1 - self._num_slots, self._token_B1)

    def _capture(self) -> torch.cuda.CUDAGraph:
        # Warmed up on a side stream, as torch asks: what a first call allocates and tries out must not be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._set(self._token_B1, self._num_slots)
            for _ in range(_WARM_UP_STEPS):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph
