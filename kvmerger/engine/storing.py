"""From chosen slots to how they are held: layers into their variant's form, in storages that the full row has no part in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from operator import mul
from typing import NamedTuple

from kvmerger.cache.forms.answers import Answers
from kvmerger.cache.forms.base import Form
from kvmerger.cache.head_counters import numbers_of
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import HeldLayer, PackedLayer
from kvmerger.cache.slot_table import storage_bytes


class Sizes(NamedTuple):
    """Bytes of distinct storages: all that is held, positions alone, and what attention reads at every step.

    Attention reads keys and values with their scales, and log masses: what budgets of bytes count.
    """

    held: int
    positions: int
    read: int


def stored(kept_L: Sequence[LayerCache], form: Form | None, forbidden: set[int]) -> Sequence[HeldLayer]:
    """``kept_L`` in ``form``; as they are without one.

    A form reads keys and values wherever they lie, the full row's own included.

    Args:
        forbidden: addresses of storages that nothing held may lie in.

    Raises:
        FormError: heads that the form cannot store, or answers of it that mean nothing.
        ValueError: parts that are not what the form says.
    """
    if form is None or not kept_L:
        return kept_L
    Answers(form).check(kept_L[0].head_dim)
    # One layer after the other: the numbers in fp32, on the way to their codes, are many times what is held.
    forms_L = [Answers(form).of_layer(index, len(kept_L)) for index in range(len(kept_L))]
    packed_L = [
        PackedLayer.of(layer, own).owning(forbidden) for layer, own in zip(kept_L, forms_L, strict=True)
    ]
    for packed in packed_L:
        packed.check_parts()
    counters_L = numbers_of(
        [own.counters(layer.k_SD, layer.v_SD) for layer, own in zip(kept_L, forms_L, strict=True)]
    )
    return [
        replace(packed, counters={**packed.counters, **counters})
        for packed, counters in zip(packed_L, counters_L, strict=True)
    ]


def sizes_of(prefix: Collection[HeldLayer]) -> Sizes:
    """What a prefix takes."""
    return Sizes(
        storage_bytes(tensor for layer in prefix for tensor in layer.tensors()),
        storage_bytes(layer.position_S for layer in prefix),
        storage_bytes(tensor for layer in prefix for tensor in layer.read_tensors()),
    )


def bits_of(prefix: Sequence[HeldLayer]) -> tuple[float, float]:
    """Bits of a stored key's number and of a value's, scales apart: the mean over all slots."""
    of_layers = [_bits_of_layer(layer) for layer in prefix]
    if len(set(of_layers)) == 1:
        return of_layers[0]
    num_slots = [layer.num_slots for layer in prefix]
    bits_k, bits_v = (
        sum(map(mul, num_slots, of_side)) / max(1, sum(num_slots)) for of_side in zip(*of_layers, strict=True)
    )
    return bits_k, bits_v


def _bits_of_layer(layer: HeldLayer) -> tuple[float, float]:
    if isinstance(layer, PackedLayer):
        return layer.form.bits_of(layer.parts, layer.num_slots_H, layer.head_dim)
    both = 8.0 * layer.dtype.itemsize
    return both, both
