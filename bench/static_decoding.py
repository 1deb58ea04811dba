"""Decode a compressed cache of transformers as its static caches are meant to be used: one step captured, then replayed.

Shapes: B rows, S slots (kept ones and room for the answer), T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_WARM_UP_STEPS = 2


class StaticDecoder:
    """Greedy decoding from caches of one batch size and one number of kept slots. Captures at first use; CUDA or not."""

    def __init__(self, module: Any, batch: int, num_slots: int, num_new_tokens: int) -> None:
        from transformers import StaticCache

        config = module.config
        self._module = module
        self._num_slots, self._num_new_tokens = num_slots, num_new_tokens
        self._cache = StaticCache(config=config, max_cache_len=num_slots + num_new_tokens)
        self._cache.early_initialization(
            batch,
            config.num_key_value_heads,
            module.model.layers[0].self_attn.head_dim,
            module.dtype,
            module.device,
        )
        size = num_slots + num_new_tokens
        self._token_B1 = torch.zeros(batch, 1, dtype=torch.long, device=module.device)
        self._slot_1 = torch.zeros(1, dtype=torch.long, device=module.device)
        self._position_B1 = torch.zeros_like(self._token_B1)
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
        return self._answer_BT.clone()

    def _set(self, token_B1: Tensor, position: int) -> None:
        self._token_B1.copy_(token_B1)
        self._slot_1.fill_(self._num_slots)
        self._position_B1.fill_(position)
        self._is_visible_B11S.fill_(False)
        self._is_visible_B11S[..., : self._num_slots] = True
        self._answer_BT[:, :1] = token_B1

    def _step(self) -> None:
        self._is_visible_B11S.index_fill_(3, self._slot_1, True)
        logits_B1V = self._module(
            input_ids=self._token_B1,
            attention_mask=self._is_visible_B11S,
            position_ids=self._position_B1,
            cache_position=self._slot_1,
            past_key_values=self._cache,
        ).logits
        self._token_B1.copy_(logits_B1V[:, -1].argmax(dim=-1, keepdim=True))
        self._slot_1.add_(1)
        self._position_B1.add_(1)
        self._answer_BT.index_copy_(1, self._slot_1 - self._num_slots, self._token_B1)

    def _capture(self) -> torch.cuda.CUDAGraph:
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
