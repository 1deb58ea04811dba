"""Decoding under a rule, written down as slowly as the methods' cards read: one token, one layer, one head at a time.

A head's cache is a list of slots; attention, scores and choices are computed in float64 from a double-precision copy of
the model's own weights. Nothing of the product's decoding is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Slot:
    """One key and value of one KV head."""

    position: int
    k_D: Tensor
    v_D: Tensor
    score: float = 0.0
    paid: float = 0.0


Rule = Callable[[list[list[Slot]], int, int, int], list[int]]
"""(heads of a layer with the new token last, its position, layer, step) → the index that leaves, per head."""


class SlowDecoder:
    """A tiny Llama that keeps, after prefill, only the positions it is told to."""

    def __init__(self, plain: Any, context_ids: tuple[int, ...], kept_LH: list[list[list[int]]]) -> None:
        self.model = copy.deepcopy(plain).double().model
        self.num_read = 0
        self.cache: list[list[list[Slot]]] = [[[] for _ in heads] for heads in kept_LH]
        for position, token in enumerate(context_ids):
            self.read(token, position)
        for heads, kept_H in zip(self.cache, kept_LH, strict=True):
            for head, kept in enumerate(kept_H):
                heads[head] = [slot for slot in heads[head] if slot.position in set(kept)]

    def read(self, token: int, position: int, rule: Rule | None = None, step: int = 0) -> Tensor:
        """Feed one token, let ``rule`` act in every layer, and return the last hidden state."""
        hidden_E = self.model.embed_tokens.weight[token]
        cos_D, sin_D = (
            part[0, 0] for part in self.model.rotary_emb(hidden_E[None, None], torch.tensor([[position]]))
        )
        for layer_index, layer in enumerate(self.model.layers):
            attention = layer.self_attn
            x_E = layer.input_layernorm(hidden_E)
            dim = attention.head_dim
            q = [rotated(q_D, cos_D, sin_D) for q_D in attention.q_proj(x_E).split(dim)]
            k = [rotated(k_D, cos_D, sin_D) for k_D in attention.k_proj(x_E).split(dim)]
            v = list(attention.v_proj(x_E).split(dim))
            heads = self.cache[layer_index]
            for head, slots in enumerate(heads):
                slots.append(Slot(position, k[head], v[head]))
            out_E = torch.cat(self._attend(q, heads, attention.scaling))
            hidden_E = hidden_E + attention.o_proj(out_E)
            hidden_E = hidden_E + layer.mlp(layer.post_attention_layernorm(hidden_E))
            if rule is not None:
                for slots, leaving in zip(heads, rule(heads, position, layer_index, step), strict=True):
                    del slots[leaving]
        return self.model.norm(hidden_E)

    @staticmethod
    def _attend(q: list[Tensor], heads: list[list[Slot]], scaling: float) -> list[Tensor]:
        group = len(q) // len(heads)
        outs = []
        for head, slots in enumerate(heads):
            for slot in slots:
                slot.paid = 0.0
            for q_D in q[head * group : (head + 1) * group]:
                probs = torch.stack([q_D @ slot.k_D * scaling for slot in slots]).softmax(dim=0)
                outs.append(sum(prob * slot.v_D for prob, slot in zip(probs, slots, strict=True)))
                for prob, slot in zip(probs.tolist(), slots, strict=True):
                    slot.paid += prob / group
            for slot in slots:
                slot.score += slot.paid
        return outs


def rotated(x_D: Tensor, cos_D: Tensor, sin_D: Tensor) -> Tensor:
    """RoPE on one vector, halves swapped."""
    first, second = x_D.chunk(2)
    return x_D * cos_D + torch.cat([-second, first]) * sin_D


def oldest_leaves(sinks: int) -> Rule:
    """StreamingLLM."""

    def rule(heads: list[list[Slot]], position: int, layer: int, step: int) -> list[int]:
        return [
            min(
                (index for index, slot in enumerate(slots) if slot.position >= sinks),
                key=lambda index: slots[index].position,
            )
            for slots in heads
        ]

    return rule


def lowest_score_leaves(recent: int) -> Rule:
    """H2O."""

    def rule(heads: list[list[Slot]], position: int, layer: int, step: int) -> list[int]:
        return [
            min(
                (index for index, slot in enumerate(slots) if slot.position <= position - recent),
                key=lambda index: slots[index].score,
            )
            for slots in heads
        ]

    return rule


def least_attended_leaves(heads: list[list[Slot]], position: int, layer: int, step: int) -> list[int]:
    """TOVA: heads hold the same positions, so one index does for all."""
    means = [sum(slot.paid for slot in same) / len(heads) for same in zip(*heads, strict=True)]
    return [means.index(min(means))] * len(heads)


def handed_on(chooser: Rule, num_heirs: int, seed: int) -> Rule:
    """CaM: whoever leaves may leave its value to those behind it."""

    def rule(heads: list[list[Slot]], position: int, layer: int, step: int) -> list[int]:
        leaving = chooser(heads, position, layer, step)
        for head, (slots, index) in enumerate(zip(heads, leaving, strict=True)):
            gone = slots[index]
            behind = sorted(
                (slot for slot in slots if slot.position > gone.position), key=lambda slot: slot.position
            )
            heirs = behind[:num_heirs]
            chance = min(1.0, gone.score / (sum(slot.score for slot in heirs) / len(heirs)))
            if drawn(seed, step, layer, head) < chance:
                for slot in heirs:
                    slot.v_D = slot.v_D + gone.v_D / num_heirs
        return leaving

    return rule


def drawn(seed: int, step: int, layer: int, head: int) -> float:
    """The product's draw, in Python's own integers."""
    bits = 0
    for more in (seed % 2**32, (seed >> 32) % 2**32, step, layer, head):
        bits = (bits * 0x7FEB352D + more + 1) % 2**32
        for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B)):
            bits = (bits ^ (bits >> shift)) * multiplier % 2**32
        bits ^= bits >> 16
    return (bits >> 8) / 2**24
