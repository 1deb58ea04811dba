"""From the full row's cache to every variant's own: allocation, compression, `like` budgets, failures kept apart.

Each variant ends either as a prefix that shares no storage with the full row, or as a recorded failure.

Shapes: L layers, H KV heads.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from kvmerger.budget import Budget, BudgetError, LikeVariant, effective_ratio, num_slots_for
from kvmerger.building import Variant
from kvmerger.cache.head_counters import combined, numbers_of
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.slot_table import storage_bytes
from kvmerger.decoding.decode_rule import DecodeRule, require_rule
from kvmerger.decoding.ragged_cache import Prefix
from kvmerger.device import now_s
from kvmerger.engine.stacks import Stacks, stacked_budget, unstacked
from kvmerger.names import VariantError
from kvmerger.policies.base import CacheShape, Policy, PolicyError, declared_needs
from kvmerger.policies.registry import path_of
from kvmerger.policies.returned import checked_budgets, counting_nan
from kvmerger.prefill.evidence import forget_frames
from kvmerger.prefill.prefill import Prefilled
from kvmerger.variants import FULL

SlotsLH = tuple[tuple[int, ...], ...]
"""Numbers of slots, by layer and head."""

DID_NOTHING = "kept every slot: the policy did nothing"
"""Why a row says nothing about its policy, unless that acts during decoding."""


@dataclass(frozen=True, slots=True)
class Compressed:
    """One variant after compression.

    asked_slots: what its budget allows over all layers and heads, None without one. rule: what its policy does during
    decoding, None for nothing.
    """

    label: str
    prefix: Prefix
    asked_slots: int | None
    compress_s: float
    degenerate_reason: str | None = None
    rule: DecodeRule | None = None

    @property
    def slots_LH(self) -> SlotsLH:
        """Slots kept, by layer and head."""
        return tuple(layer.num_slots_H for layer in self.prefix)

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct storages behind the prefix."""
        return storage_bytes(tensor for layer in self.prefix for tensor in layer.tensors())


@dataclass(frozen=True, slots=True)
class CompressFailure:
    """Why a variant has no prefix. No exception, whose frames would hold the prompt's K/V."""

    label: str
    error_type: type[BaseException]
    message: str
    traceback: str


@dataclass
class Compression:
    """Outcome of a group of variants, by label. slots_LH: what each one kept, of earlier groups too."""

    done: dict[str, Compressed] = field(default_factory=dict)
    failed: dict[str, CompressFailure] = field(default_factory=dict)
    slots_LH: dict[str, SlotsLH] = field(default_factory=dict)


def compress_all(
    prefilled: Prefilled, variants: Sequence[Variant], earlier: Mapping[str, SlotsLH] | None = None
) -> Compression:
    """Compress ``prefilled`` for every variant; a variant's own error stops that variant only.

    Args:
        earlier: `Compression.slots_LH` of the groups before this one, for budgets that are like theirs.

    Raises:
        torch.OutOfMemoryError: the device's memory does not hold all of them at once.
    """
    outcome = Compression(slots_LH=dict(earlier or {}))
    outcome.done[FULL] = Compressed(FULL, prefilled.layers, None, 0.0)
    outcome.slots_LH[FULL] = outcome.done[FULL].slots_LH
    stacks = Stacks(prefilled.layers, prefilled.evidence)
    for variant in references_first(variants):
        try:
            outcome.done[variant.label] = _compress(prefilled, variant, outcome, stacks)
            outcome.slots_LH[variant.label] = outcome.done[variant.label].slots_LH
        except torch.OutOfMemoryError:
            raise  # no fault of this variant's: it may fit in a smaller batch
        # A user's policy may raise anything, and exit; it becomes that variant's failed row.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            outcome.failed[variant.label] = CompressFailure(
                variant.label, type(error), str(error), traceback.format_exc()
            )
            forget_frames(error)  # evidence may keep it
    return outcome


def empty_prefix(prefilled: Prefilled) -> Prefix:
    """A prefix without one slot: what the tail alone can do."""
    return tuple(LayerCache.empty(layer) for layer in prefilled.layers)


def merged_counters(prefix: Prefix) -> dict[str, float]:
    """Put the layers' counters together, by the rule in `LayerCache.counters`."""
    names = dict.fromkeys(name for layer in prefix for name in layer.counters)
    return {
        name: combined(name, [layer.counters[name] for layer in prefix if name in layer.counters])
        for name in names
    }


def _compress(prefilled: Prefilled, variant: Variant, outcome: Compression, stacks: Stacks) -> Compressed:
    device = prefilled.layers[0].device
    start_s = now_s(device)
    declared_needs(variant.policy)  # raises here, where it costs this variant alone
    asked_L = _asked(prefilled, variant, outcome)
    budget_L = _allocated(prefilled, variant, asked_L)
    prefix = _kept_layers(variant.policy, budget_L, stacks)
    asked_slots = None if variant.budget is None else sum(budget.num_slots for budget in asked_L)
    return Compressed(
        variant.label,
        tuple(prefix),
        asked_slots,
        now_s(device) - start_s,
        _why_degenerate(variant.policy, prefix, prefilled.layers),
        require_rule(variant.policy.decode_rule(prefilled.evidence[0].prompt_seed)),
    )


def _kept_layers(policy: Policy, budget_L: Sequence[Budget], stacks: Stacks) -> list[LayerCache]:
    """What ``policy`` keeps of every layer, checked; in storages that the full row has no part in."""
    kept_by: dict[range, LayerCache] = {}
    with counting_nan() as nan_counts:
        for stretch in stacks.stretches(policy, budget_L):
            layer, evidence = stacks.of(stretch)
            kept = policy.compress(layer, evidence, stacked_budget(budget_L[stretch.start : stretch.stop]))
            if not isinstance(kept, LayerCache):
                raise PolicyError(f"{path_of(policy)}: compress() must give a LayerCache, got {kept!r:.100}")
            # A slice of the full row would keep all of that alive, and its bytes be counted as this variant's.
            kept_by[stretch] = kept.owning(stacks.storages)
            kept_by[stretch].check_shapes()
            kept_by[stretch].check_same_kind(layer)
    num_tokens = stacks.num_tokens
    is_sound = torch.stack(
        [
            *(kept.is_ascending() for kept in kept_by.values()),
            *(_is_within(kept.position_S, num_tokens) for kept in kept_by.values()),
            *(count == 0 for count in nan_counts),
        ]
    ).all()
    kept_L = [layer for stretch, kept in kept_by.items() for layer in unstacked(kept, len(stretch))]
    # Only now, with all work handed over and the host's done, is the device waited for.
    if not bool(is_sound):
        _raise_why(policy, list(kept_by.values()), num_tokens, nan_counts)
    counters_L = numbers_of([layer.counters for layer in kept_L])
    _require_finite(policy, counters_L)
    return [layer.with_counters(counters) for layer, counters in zip(kept_L, counters_L, strict=True)]


def _is_within(position_S: Tensor, num_tokens: int) -> Tensor:
    """Whether all positions are the prompt's: a bool on the device."""
    return ((position_S >= 0) & (position_S < num_tokens)).all()


def _raise_why(
    policy: Policy, kept: Sequence[LayerCache], num_tokens: int, nan_counts: Sequence[Tensor]
) -> None:
    """Raise ValueError for what is wrong with what ``policy`` kept; waits for the device, which is not the usual way."""
    # First: of NaN scores come positions that are no worse than any other choice.
    if num_nan := sum(int(count) for count in nan_counts):
        raise PolicyError(
            f"{path_of(policy)}: {num_nan} of its scores are NaN, which rank above all others: look for 0 / 0; where 'full' "
            f"fails too, it is the model: set another model.dtype"
        )
    for layer in kept:
        layer.check_integrity()
        if not bool(_is_within(layer.position_S, num_tokens)):
            low, high = int(layer.position_S.min()), int(layer.position_S.max())
            raise PolicyError(
                f"{path_of(policy)}: kept positions reach from {low} to {high}, the prompt's from 0 to {num_tokens - 1}"
            )


def _require_finite(policy: Policy, counters_L: Sequence[Mapping[str, float]]) -> None:
    for index, counters in enumerate(counters_L):
        for name, value in counters.items():
            if not isfinite(value):
                raise PolicyError(
                    f"{path_of(policy)}: its counter {name!r} is {value} in layer {index}; leave out what there is no number "
                    f"for"
                )


def _asked(prefilled: Prefilled, variant: Variant, outcome: Compression) -> Sequence[Budget]:
    """Every layer's budget as the user asked for it, before the policy moves slots between layers."""
    num_layers, num_tokens = len(prefilled.layers), prefilled.evidence[0].num_tokens
    num_heads = prefilled.layers[0].num_heads
    if variant.budget is None:
        return [Budget.uniform(num_tokens, num_heads, 1.0)] * num_layers
    variant.policy.check(CacheShape(num_tokens, num_layers, num_heads), variant.budget)
    if isinstance(variant.budget, LikeVariant):
        return _budgets_like(variant.budget.label, num_tokens, outcome)
    num_slots = num_slots_for(variant.budget, num_tokens)
    return [Budget.uniform(num_slots, num_heads, effective_ratio(variant.budget, num_tokens))] * num_layers


def _allocated(prefilled: Prefilled, variant: Variant, asked_L: Sequence[Budget]) -> Sequence[Budget]:
    """Every layer's budget as the policy wants it; a ``like`` budget is per layer and head already."""
    if variant.budget is None or isinstance(variant.budget, LikeVariant):
        return asked_L
    allocated = variant.policy.allocate(asked_L, prefilled.evidence)
    return checked_budgets(
        allocated, len(prefilled.layers), prefilled.layers[0].num_heads, path_of(variant.policy)
    )


def _budgets_like(label: str, num_tokens: int, outcome: Compression) -> list[Budget]:
    if label not in outcome.slots_LH:
        raise BudgetError(
            f"the budget is like {label!r}, which has no cache here (it failed, or is not in this run)"
        )
    return [
        Budget(slots_H, sum(slots_H) / (num_tokens * len(slots_H))) for slots_H in outcome.slots_LH[label]
    ]


def references_first(variants: Sequence[Variant]) -> list[Variant]:
    """The variants, each after the one its `like` budget names; `VariantError` when they go round in a circle."""
    by_label = {variant.label: variant for variant in variants}
    # Insertion order is the result: whom a variant is like is visited, and so inserted, first.
    ordered: dict[str, Variant] = {}

    def visit(variant: Variant, pending: tuple[str, ...]) -> None:
        if isinstance(variant.budget, LikeVariant) and variant.budget.label in by_label:
            if variant.budget.label in pending:
                raise VariantError(
                    f"budgets are like each other in a circle: {' → '.join((*pending, variant.budget.label))}"
                )
            visit(by_label[variant.budget.label], (*pending, variant.budget.label))
        ordered.setdefault(variant.label, variant)

    for variant in variants:
        visit(variant, (variant.label,))
    return list(ordered.values())


def _why_degenerate(policy: Policy, prefix: Sequence[LayerCache], full: Prefix) -> str | None:
    if all(kept.num_slots == whole.num_slots for kept, whole in zip(prefix, full, strict=True)):
        return DID_NOTHING
    # The least of all layers and heads (`LayerCache.counters`): 1 only where not one of them merged anything.
    if not policy.keeps_slots_unchanged and merged_counters(tuple(prefix)).get("is_pure_eviction") == 1.0:
        return "merged nothing: what was left out is evicted"
    return None
