"""Neighbouring layers as one layer of all their heads (a stack), so that a policy is called once for many layers.

At short prompts compressing costs launches, not arithmetic, and a stack of thirty layers takes as many launches as one layer.
A stack's heads lie one layer after the other. Which layers form a stack depends on shapes and budgets alone, never on what a
device has free: the same prompt is compressed by the same calls on every device of a kind.

Shapes: L layers, H KV heads of all layers of a stack, N tokens, S slots, D head size, X anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, groupby

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.cache.forms.widths import WidthCounts, Widths
from kvmerger.cache.head_counters import HeadCounters
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.slot_table import storage_addresses
from kvmerger.kernels.dispatch import is_for_triton
from kvmerger.policies.base import Policy
from kvmerger.prefill.evidence import Evidence, Need

# Bytes of a stack's keys; longer layers come one by one. In plain torch this bounds what merging holds at a time in fp32,
# about 12 times as much; on a CPU that should fit its cache.
_MOST_KEY_BYTES = {"cpu": 2**20}
_MOST_KEY_BYTES_ELSEWHERE = 2**27
# Our own kernels hold nothing in fp32 but a few numbers a token. What is kept of a stack is one piece of memory, though.
_MOST_KEY_BYTES_BY_TRITON = 2**30


class StackedEvidence(Evidence):
    """Evidence about several layers as about one layer of all their heads; there is nothing to capture any more."""

    def __init__(self, layers: Sequence[Evidence]) -> None:
        # Not `super().__init__`: there are no states here, all evidence comes from the layers' own.
        first = layers[0]
        self.layer_index, self.num_layers = first.layer_index, first.num_layers
        self.num_heads, self.num_tokens = first.num_heads * len(layers), first.num_tokens
        self.device, self.prompt_seed = first.device, first.prompt_seed
        self._layers = tuple(layers)
        self._stacked: dict[Need, Tensor] = {}

    @property
    def scaling(self) -> float:
        """All layers'."""
        return self._layers[0].scaling

    @property
    def layers(self) -> tuple[Evidence, ...]:
        """Each layer's."""
        return self._layers

    def get(self, need: Need) -> Tensor:
        """Every layer's, one after the other."""
        if need not in self._stacked:
            self._stacked[need] = torch.cat([layer.get(need) for layer in self._layers])
        return self._stacked[need]


class Stacks:
    """All layers of a prompt, any stretch of them as one; each stretch is put together once for all policies."""

    def __init__(self, layers: Sequence[LayerCache], evidence_L: Sequence[Evidence]) -> None:
        self._layers, self._evidence_L = layers, evidence_L
        self._evidence_of: dict[range, StackedEvidence] = {}
        self.storages = storage_addresses(tensor for layer in layers for tensor in layer.tensors())
        """Addresses of what the layers are held in: no variant may keep a part of it."""

    @property
    def num_tokens(self) -> int:
        """Of the prompt."""
        return self._evidence_L[0].num_tokens

    def stretches(self, policy: Policy, budget_L: Sequence[Budget]) -> Iterator[range]:
        """The stretches of layers that ``policy`` may be given as one, in order; alone where it does not take stacks."""
        keys = [
            policy.stack_key(evidence, budget) if policy.compresses_stacks else index
            for index, (evidence, budget) in enumerate(zip(self._evidence_L, budget_L, strict=True))
        ]
        keys_SD = self._layers[0].k_SD
        elsewhere = _MOST_KEY_BYTES_BY_TRITON if is_for_triton(keys_SD) else _MOST_KEY_BYTES_ELSEWHERE
        most_bytes = _MOST_KEY_BYTES.get(keys_SD.device.type, elsewhere)
        most = max(1, most_bytes // max(1, keys_SD.nbytes))
        for _, alike in groupby(range(len(keys)), keys.__getitem__):
            indices = list(alike)
            for start in range(0, len(indices), most):
                part = indices[start : start + most]
                yield range(part[0], part[-1] + 1)

    def of(self, stretch: range) -> tuple[LayerCache, Evidence]:
        """The layers of a stretch as one, and their evidence."""
        layers = self._layers[stretch.start : stretch.stop]
        if len(stretch) == 1:
            return layers[0], self._evidence_L[stretch.start]
        if stretch not in self._evidence_of:
            self._evidence_of[stretch] = StackedEvidence(self._evidence_L[stretch.start : stretch.stop])
        return stacked(layers), self._evidence_of[stretch]


def stacked_budget(budget_L: Sequence[Budget]) -> Budget:
    """Every head's slots, and bytes where all layers have them; the ratio is the first layer's."""
    bytes_LH = [budget.num_bytes_H for budget in budget_L if budget.num_bytes_H is not None]
    return Budget(
        tuple(num_slots for budget in budget_L for num_slots in budget.num_slots_H),
        budget_L[0].asked_ratio,
        tuple(chain.from_iterable(bytes_LH)) if len(bytes_LH) == len(budget_L) else None,
    )


def stacked(layers: Sequence[LayerCache]) -> LayerCache:
    """Uncompressed layers as one of all their heads; a view where they lie one behind the other in memory."""
    return LayerCache(
        _joined([layer.k_SD for layer in layers]),
        _joined([layer.v_SD for layer in layers]),
        _joined([layer.position_S for layer in layers]),
        tuple(num_slots for layer in layers for num_slots in layer.num_slots_H),
    )


def unstacked(kept: LayerCache, num_layers: int) -> list[LayerCache]:
    """What was kept of a stack, layer by layer: slices of its tensors, which live and die together. Fetches the counters.

    Raises:
        ValueError: counters that cannot be told apart by layer, or are not one of each head.
    """
    if isinstance(kept.counters, HeadCounters):
        kept.counters.require_heads(kept.num_heads)
    if num_layers == 1:
        return [kept.with_counters(dict(kept.counters))]
    if kept.counters and not isinstance(kept.counters, HeadCounters):
        raise ValueError(
            f"a policy that compresses stacks of layers counts head by head (LayerCache.counting), got {kept.counters}"
        )
    counters = kept.counters if isinstance(kept.counters, HeadCounters) else HeadCounters({})
    num_heads = kept.num_heads // num_layers
    slots_LH = [kept.num_slots_H[start : start + num_heads] for start in range(0, kept.num_heads, num_heads)]
    num_slots_L = [sum(slots_H) for slots_H in slots_LH]

    def parts(tensor: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * num_layers if tensor is None else tensor.split(num_slots_L)

    return [
        LayerCache(*of_layer)
        for of_layer in zip(
            kept.k_SD.split(num_slots_L),
            kept.v_SD.split(num_slots_L),
            kept.position_S.split(num_slots_L),
            slots_LH,
            parts(kept.log_mass_S),
            counters.by_layer(num_layers),
            parts(kept.score_S),
            [kept.next_position] * num_layers,
            _widths_by_layer(kept.widths, num_slots_L),
            strict=True,
        )
    ]


def _widths_by_layer(widths: Widths | None, num_slots_L: Sequence[int]) -> Sequence[Widths | None]:
    if widths is None:
        return [None] * len(num_slots_L)
    k_LHD = widths.k_HD.unflatten(0, (len(num_slots_L), -1))
    num_heads = k_LHD.shape[1]

    def counts_of(layer: int) -> WidthCounts | None:
        its = slice(layer * num_heads, (layer + 1) * num_heads)
        return None if widths.counts is None else WidthCounts(*(of_side[its] for of_side in widths.counts))

    return [
        Widths(v_S, k_LHD[layer], counts_of(layer)) for layer, v_S in enumerate(widths.v_S.split(num_slots_L))
    ]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    is_one_block = all(
        tensor.is_contiguous()
        and tensor.shape == first.shape
        and tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and tensor.storage_offset() == first.storage_offset() + index * first.numel()
        for index, tensor in enumerate(tensors)
    )
    # One stride fits all only where layers are neighbours in one storage, as `room_for` lays them out.
    if not is_one_block:
        return torch.cat(list(tensors))
    return first.as_strided((len(tensors) * first.shape[0], *first.shape[1:]), first.stride())
