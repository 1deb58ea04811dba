"""From the full row's cache to every variant's own: allocation, compression, `like` budgets, failures kept apart.

Each variant ends either as a prefix that shares no storage with the full row, or as a recorded failure.

Shapes: L layers, H KV heads.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from kvmerger.budget import Budget
from kvmerger.building import Variant, form_of, spends_bytes
from kvmerger.cache.forms.base import Form
from kvmerger.cache.head_counters import numbers_of
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import HeldLayer, PackedLayer
from kvmerger.decoding.decode_rule import AnswerRule, require_rule
from kvmerger.decoding.ragged_cache import Prefix
from kvmerger.device import now_s
from kvmerger.engine.budgets import Kept, SlotsLH, allocated, asked, references_first, shape_of
from kvmerger.engine.context_free import kept_whole, rules_of
from kvmerger.engine.degenerate import NOTHING_TO_COMPRESS, why_degenerate
from kvmerger.engine.stacks import Stacks, stacked_budget, unstacked
from kvmerger.engine.storing import Sizes, sizes_of, stored
from kvmerger.generation import Prompt
from kvmerger.merging.noted import noting_members
from kvmerger.policies.base import Policy, PolicyError, declared_needs
from kvmerger.policies.registry import path_of
from kvmerger.policies.returned import counting_nan
from kvmerger.prefill.evidence import forget_frames
from kvmerger.prefill.massive import MASSIVE
from kvmerger.prefill.massive_counts import counting_massive
from kvmerger.prefill.prefill import Prefilled
from kvmerger.variants import FULL


@dataclass(frozen=True, slots=True)
class Compressed:
    """One variant after compression.

    asked_slots: what its budget allows over all layers and heads, None without one. rule: what its policy does during
    decoding, None for nothing. rule_by_question: the same where each question's row has a rule of its own.
    form_asked: the policy's, which a prefix may still be without.
    """

    label: str
    prefix: Prefix
    asked_slots: int | None
    compress_s: float
    degenerate_reason: str | None = None
    rule: AnswerRule | None = None
    rule_by_question: tuple[AnswerRule | None, ...] = ()
    form_asked: Form | None = None

    @property
    def bounds_itself(self) -> bool:
        """Whether its policy acts on every one of its rows while they answer."""
        return all(self.rule_by_question) if self.rule_by_question else self.rule is not None

    def rule_of(self, question: int) -> AnswerRule | None:
        """What its policy does while it answers this question."""
        return self.rule_by_question[question] if self.rule_by_question else self.rule

    @property
    def form(self) -> Form | None:
        """What its slots are stored in, whatever each layer has of it; None for the model's own dtype."""
        return self.form_asked if any(isinstance(layer, PackedLayer) for layer in self.prefix) else None

    @property
    def slots_LH(self) -> SlotsLH:
        """Slots kept, by layer and head."""
        return tuple(layer.num_slots_H for layer in self.prefix)

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct storages behind the prefix."""
        return self.sizes.held

    @property
    def sizes(self) -> Sizes:
        """What the prefix takes."""
        return sizes_of(self.prefix)

    @property
    def kept(self) -> Kept:
        """What budgets like this variant's take over."""
        return Kept(self.slots_LH, self.sizes.read)


@dataclass(frozen=True, slots=True)
class CompressFailure:
    """Why a variant has no prefix. No exception, whose frames would hold the prompt's K/V."""

    label: str
    error_type: type[BaseException]
    message: str
    traceback: str


@dataclass
class Compression:
    """Outcome of a group of variants, by label. kept: what each one ended up with, of earlier groups too."""

    done: dict[str, Compressed] = field(default_factory=dict)
    failed: dict[str, CompressFailure] = field(default_factory=dict)
    kept: dict[str, Kept] = field(default_factory=dict)


def compress_all(
    prefilled: Prefilled,
    variants: Sequence[Variant],
    earlier: Mapping[str, Kept] | None = None,
    prompt: Prompt | None = None,
) -> Compression:
    """Compress ``prefilled`` for every variant; a variant's own error stops that variant only.

    Args:
        prompt: what was prefilled; of one that is context-free all variants keep everything.
        earlier: `Compression.kept` of the groups before this one, for budgets that are like theirs.

    Raises:
        torch.OutOfMemoryError: the device's memory does not hold all of them at once.
    """
    outcome = Compression(kept=dict(earlier or {}))
    outcome.done[FULL] = Compressed(FULL, prefilled.layers, None, 0.0)
    outcome.kept[FULL] = outcome.done[FULL].kept
    stacks = Stacks(prefilled.layers, prefilled.evidence)
    for variant in references_first(variants):
        try:
            outcome.done[variant.label] = (
                _left_whole(prefilled, variant, prompt)
                if prompt is not None and prompt.is_context_free
                else _compress(prefilled, variant, outcome, stacks)
            )
            outcome.kept[variant.label] = outcome.done[variant.label].kept
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


def _compress(prefilled: Prefilled, variant: Variant, outcome: Compression, stacks: Stacks) -> Compressed:
    device = prefilled.layers[0].device
    start_s = now_s(device)
    needs = declared_needs(variant.policy)  # raises here, where it costs this variant alone
    asked_L = asked(shape_of(prefilled), variant, outcome.kept)
    budget_L = allocated(prefilled, variant, asked_L)
    form = form_of(variant.policy)
    counts_massive = MASSIVE in needs | variant.needs_to_count
    kept_L = _kept_layers(
        variant.policy, budget_L, stacks, is_to_be_stored=form is not None, counts_massive=counts_massive
    )
    if spends_bytes(variant.policy) and all(kept.widths is None for kept in kept_L):
        # Its bytes hold everything as it is.
        prefix: Sequence[HeldLayer] = [kept.owning(stacks.storages) for kept in kept_L]
    else:
        prefix = stored(kept_L, form, stacks.storages)
    # Of a budget that is bytes all through no slots were asked.
    is_of_slots = variant.budget is not None and not spends_bytes(variant.policy)
    asked_slots = sum(budget.num_slots for budget in asked_L) if is_of_slots else None
    return Compressed(
        variant.label,
        tuple(prefix),
        asked_slots,
        now_s(device) - start_s,
        why_degenerate(variant, kept_L, prefilled.layers),
        require_rule(variant.policy.decode_rule(prefilled.evidence[0].prompt_seed)),
        form_asked=form,
    )


def _left_whole(prefilled: Prefilled, variant: Variant, prompt: Prompt) -> Compressed:
    """The variant on a prompt of which nothing is compressed."""
    start_s = now_s(prefilled.layers[0].device)
    rules, kept_L = rules_of(variant, prefilled, prompt), kept_whole(variant, prefilled)
    compress_s = now_s(prefilled.layers[0].device) - start_s
    return Compressed(variant.label, kept_L, None, compress_s, NOTHING_TO_COMPRESS, rule_by_question=rules)


def _kept_layers(
    policy: Policy,
    budget_L: Sequence[Budget],
    stacks: Stacks,
    *,
    is_to_be_stored: bool,
    counts_massive: bool,
) -> list[LayerCache]:
    """What ``policy`` keeps of every layer, checked; in storages that the full row has no part in.

    What ``is_to_be_stored`` in a form may share its keys and values with the full row until then.
    """
    kept_by: dict[range, LayerCache] = {}
    with counting_nan() as nan_counts:
        for stretch in stacks.stretches(policy, budget_L):
            layer, evidence = stacks.of(stretch)
            budget = stacked_budget(budget_L[stretch.start : stretch.stop])
            with noting_members() if counts_massive else nullcontext(()) as merged:
                kept = policy.compress(layer, evidence, budget)
            if not isinstance(kept, LayerCache):
                raise PolicyError(f"{path_of(policy)}: compress() must give a LayerCache, got {kept!r:.100}")
            # A slice of the full row would keep all of that alive, and its bytes be counted as this variant's.
            kept_by[stretch] = kept if is_to_be_stored else kept.owning(stacks.storages)
            kept_by[stretch].check_shapes()
            kept_by[stretch].check_same_kind(layer)
            _require_end(policy, kept, stacks.num_tokens)
            _require_reader(policy, kept, is_to_be_stored=is_to_be_stored)
            if counts_massive:
                is_eviction = policy.keeps_slots_unchanged
                kept_by[stretch] = counting_massive(
                    kept_by[stretch], layer, evidence, merged, is_eviction=is_eviction
                )
    num_tokens = stacks.num_tokens
    is_sound = torch.stack(
        [
            *(kept.is_ascending() for kept in kept_by.values()),
            *(_is_within(kept.position_S, _end(kept, num_tokens)) for kept in kept_by.values()),
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


def _is_within(position_S: Tensor, end: int) -> Tensor:
    """Whether all positions are from 0 on and before ``end``: a bool on the device."""
    return ((position_S >= 0) & (position_S < end)).all()


def _end(kept: LayerCache, num_tokens: int) -> int:
    """The position behind the last one that a slot may have."""
    return num_tokens if kept.next_position is None else kept.next_position


def _require_end(policy: Policy, kept: LayerCache, num_tokens: int) -> None:
    # Room for the tail and the answer was counted from the prompt's length on.
    if not 0 <= _end(kept, num_tokens) <= num_tokens:
        raise PolicyError(
            f"{path_of(policy)}: next_position must be from 0 to the prompt's length, {num_tokens}, got {kept.next_position}"
        )


def _require_reader(policy: Policy, kept: LayerCache, *, is_to_be_stored: bool) -> None:
    if kept.widths is not None and not is_to_be_stored:
        raise PolicyError(f"{path_of(policy)}: it chooses widths and has no form that stores slots in them")


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
        if not bool(_is_within(layer.position_S, end := _end(layer, num_tokens))):
            low, high = int(layer.position_S.min()), int(layer.position_S.max())
            whose = "the prompt's" if layer.next_position is None else "those before next_position"
            raise PolicyError(
                f"{path_of(policy)}: kept positions reach from {low} to {high}, {whose} from 0 to {end - 1}"
            )


def _require_finite(policy: Policy, counters_L: Sequence[Mapping[str, float]]) -> None:
    for index, counters in enumerate(counters_L):
        for name, value in counters.items():
            if not isfinite(value):
                raise PolicyError(
                    f"{path_of(policy)}: its counter {name!r} is {value} in layer {index}; leave out what there is no number "
                    f"for"
                )
