"""What every layer of a variant may keep, from what was asked: shares, counts, bytes, or as much as another variant kept.

Shapes: L layers, H KV heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from kvmerger.budget import (
    Budget,
    BudgetError,
    LikeVariant,
    effective_ratio,
    label_referred_to,
    num_slots_for,
)
from kvmerger.building import Variant, in_slots, layer_bytes
from kvmerger.byte_counts import ByteCount
from kvmerger.generation import Prompt
from kvmerger.models.source import ModelInfo
from kvmerger.names import VariantError
from kvmerger.policies.base import CacheShape
from kvmerger.policies.registry import path_of
from kvmerger.policies.returned import checked_budgets
from kvmerger.prefill.evidence import Need
from kvmerger.prefill.prefill import Prefilled

SlotsLH = tuple[tuple[int, ...], ...]
"""Numbers of slots, by layer and head."""


class Kept(NamedTuple):
    """What a variant ended up with: slots, and the bytes that attention reads of them."""

    slots_LH: SlotsLH
    num_bytes: int


def shape_of(prefilled: Prefilled) -> CacheShape:
    """The uncompressed cache's."""
    first = prefilled.layers[0]
    num_tokens = prefilled.evidence[0].num_tokens
    return CacheShape(
        num_tokens, len(prefilled.layers), first.num_heads, first.head_dim, first.dtype.itemsize
    )


def shape_for(info: ModelInfo, prompt: Prompt) -> CacheShape:
    """The uncompressed cache's that a model will have of a prompt."""
    itemsize = getattr(torch, info.dtype).itemsize
    return CacheShape(len(prompt.context_ids), info.num_layers, info.num_kv_heads, info.head_dim, itemsize)


def needs_at_budget(variant: Variant, shape: CacheShape) -> frozenset[Need]:
    """The evidence that the parts of a variant's policy read at its budget, beside their `needs`.

    Raises:
        BudgetError: not even one slot per head fits.
        KeyError: the budget is like another variant's bytes, which are not known before that has run.
        Exception: whatever the policy raises, which may be a user's.
    """
    budget = variant.budget
    of_slots = (
        None if budget is None else in_slots(budget, variant.policy, shape, dict[str, int]().__getitem__)
    )
    return frozenset(need for part in variant.policy.parts for need in part.needs_at(shape, of_slots))


def asked(shape: CacheShape, variant: Variant, kept: Mapping[str, Kept]) -> Sequence[Budget]:
    """Every layer's budget as the user asked for it, before the policy moves slots between layers.

    Args:
        kept: what variants so far have kept, by label.

    Raises:
        BudgetError: the policy, or the form, cannot meet the budget on this prompt.
    """
    if variant.budget is None:
        even = Budget.uniform(shape.num_tokens, shape.num_kv_heads, 1.0)
        return [even] * shape.num_layers
    budget = in_slots(variant.budget, variant.policy, shape, lambda label: _kept_by(label, kept).num_bytes)
    variant.policy.check(shape, budget)
    if isinstance(budget, LikeVariant):
        return _like(budget.label, shape, kept)
    num_slots = num_slots_for(budget, shape.num_tokens)
    even = Budget.uniform(num_slots, shape.num_kv_heads, effective_ratio(budget, shape.num_tokens))
    if isinstance(budget, ByteCount):
        full = layer_bytes(variant.policy, shape).full(shape.num_tokens)
        bytes_H = (budget.num_bytes,) * shape.num_kv_heads
        even = Budget(even.num_slots_H, min(1.0, sum(bytes_H) / full), bytes_H)
    return [even] * shape.num_layers


def allocated(prefilled: Prefilled, variant: Variant, asked_L: Sequence[Budget]) -> Sequence[Budget]:
    """Every layer's budget as the policy wants it; a ``like`` budget is per layer and head already."""
    if variant.budget is None or isinstance(variant.budget, LikeVariant):
        return asked_L
    wanted = variant.policy.allocate(asked_L, prefilled.evidence)
    return checked_budgets(
        wanted, len(prefilled.layers), prefilled.layers[0].num_heads, path_of(variant.policy)
    )


def references_first(variants: Sequence[Variant]) -> list[Variant]:
    """The variants, each after the one its budget is like; `VariantError` when they go round in a circle."""
    by_label = {variant.label: variant for variant in variants}
    # Insertion order is the result: whom a variant is like is visited, and so inserted, first.
    ordered: dict[str, Variant] = {}

    def visit(variant: Variant, pending: tuple[str, ...]) -> None:
        label = label_referred_to(variant.budget)
        if label in by_label:
            if label in pending:
                raise VariantError(
                    f"budgets are like each other in a circle: {' → '.join((*pending, label))}"
                )
            visit(by_label[label], (*pending, label))
        ordered.setdefault(variant.label, variant)

    for variant in variants:
        visit(variant, (variant.label,))
    return list(ordered.values())


def _like(label: str, shape: CacheShape, kept: Mapping[str, Kept]) -> list[Budget]:
    return [
        Budget(slots_H, sum(slots_H) / (shape.num_tokens * len(slots_H)))
        for slots_H in _kept_by(label, kept).slots_LH
    ]


def _kept_by(label: str, kept: Mapping[str, Kept]) -> Kept:
    if label not in kept:
        raise BudgetError(
            f"the budget is like {label!r}, which has no cache here (it failed, or is not in this run)"
        )
    return kept[label]
