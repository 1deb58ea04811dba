"""Which variants answer together: as many as rows and memory allow, each after the one whose budget it takes over.

A row's numbers depend on its batch's bucket and on its place in it. Both are settled by the number of rows alone; groups
that memory makes smaller keep them, with dummies where the others would have been. So a row's answer does not depend on
how much memory there happened to be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate

import torch

from kvmerger.budget import LayerBytes, LikeVariant, label_referred_to, num_slots_for
from kvmerger.building import Variant, form_of, in_slots, layer_bytes, spends_bytes
from kvmerger.byte_counts import ByteCount
from kvmerger.device import available_bytes
from kvmerger.generation import Prompt
from kvmerger.limits import another_bucket, bucket_for
from kvmerger.policies.base import CacheShape, Policy

POSITION_BYTES = 4
"""Of a slot, beside its key and value."""
SHARE_PLANNED = 0.9
"""Of the free memory: the rest is for what compressing and a forward pass need in between, and for the allocator's gaps."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of one batch beside the full ones, which every group has, from index 0 on.

    place_by_label: index of each label's first row; a row per question. bucket: rows of the batch, dummies included.
    """

    place_by_label: Mapping[str, int]
    bucket: int

    def part(self, labels: Sequence[str]) -> Group:
        """Only these labels, where they are."""
        return Group({label: self.place_by_label[label] for label in labels}, self.bucket)

    def parted(self, apart: Collection[str]) -> list[Group]:
        """The labels that are not ``apart``, and those that are; a group for each that there are."""
        both = [
            [label for label in self.place_by_label if (label in apart) == is_apart]
            for is_apart in (False, True)
        ]
        return [self.part(labels) for labels in both if labels]

    def halves(self) -> tuple[Group, Group]:
        """The first half of at least two labels, and the others."""
        labels = list(self.place_by_label)
        middle = (len(labels) + 1) // 2
        return self.part(labels[:middle]), self.part(labels[middle:])


def by_rows(labels: Sequence[str], num_questions: int, max_rows: int) -> list[Group]:
    """Groups of at most ``max_rows`` rows, one label at least, with the full row in each."""
    # One less, for the full row that stands in every group.
    size = max(1, max_rows // num_questions - 1)
    groups = []
    for start in range(0, len(labels), size):
        chosen = labels[start : start + size]
        places = {label: (index + 1) * num_questions for index, label in enumerate(chosen)}
        groups.append(Group(places, bucket_for((len(chosen) + 1) * num_questions)))
    return groups


def by_answers(labels: Sequence[str], acting: Collection[str], prompt: Prompt, max_rows: int) -> list[Group]:
    """`by_rows`; where answers may be long, the ``acting``, who bound what they hold, in groups of their own."""
    if not prompt.has_long_answers:
        return by_rows(labels, len(prompt.questions), max_rows)
    both = [[label for label in labels if (label in acting) == acts] for acts in (False, True)]
    # The others first: their full rows say what all are forced along.
    return [group for some in both for group in by_rows(some, len(prompt.questions), max_rows)]


def by_bytes(group: Group, bytes_by_label: Mapping[str, int], free_bytes: int | None) -> Iterator[Group]:
    """Parts of ``group`` that are expected to fit into ``free_bytes`` (None: all do), one label at least."""
    chosen: list[str] = []
    held_bytes = 0
    for label in group.place_by_label:
        label_bytes = bytes_by_label.get(label, 0)
        if chosen and free_bytes is not None and held_bytes + label_bytes > free_bytes:
            yield group.part(chosen)
            chosen, held_bytes = [], 0
        chosen.append(label)
        held_bytes += label_bytes
    yield group.part(chosen)


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Where the rows of several prompts are in one batch: each prompt's first, by its number, and how many rows there are.

    Settled by the sizes of their own batches alone, as a group's places are: a prompt that fails after it was found sound,
    or that memory makes answer at another time, leaves dummies in its seat.
    """

    start_by_prompt: Mapping[int, int]
    num_rows: int

    @classmethod
    def of(cls, bucket_by_prompt: Mapping[int, int], taken: int = 0) -> BatchLayout:
        """One prompt's bucket after the other, in a bucket that is not ``taken``."""
        starts = [0, *accumulate(bucket_by_prompt.values())]
        # Not strict: the last start is nobody's, but the number of rows.
        return cls(dict(zip(bucket_by_prompt, starts, strict=False)), another_bucket(starts[-1], taken))


def prompts_together(bucket_by_prompt: Mapping[int, int], max_rows: int) -> list[list[int]]:
    """Prompts, by number, that decode together: in order, as many as have ``max_rows`` rows at most, one at least."""
    found: list[list[int]] = []
    num_rows = 0
    for prompt, bucket in bucket_by_prompt.items():
        if not found or num_rows + bucket > max_rows:
            found.append([])
            num_rows = 0
        found[-1].append(prompt)
        num_rows += bucket
    return found


def expected_bytes(
    variants: Sequence[Variant], prompt: Prompt, shape: CacheShape, prompt_seed: int
) -> dict[str, int]:
    """Bytes each variant will hold, by label: its prefix and, where it acts while it answers, each row's own copy of it.

    Where the prompt decides what is kept, that everything is.
    """
    by_label = {variant.label: variant for variant in variants}
    tail_tokens = [question.most_tail_tokens for question in prompt.questions]
    expected: dict[str, int] = {}
    for variant in variants:
        slots = _most_slots(variant, by_label, shape, expected)
        spent = _bytes_spent(variant, shape, expected)
        num_bytes = _bytes_of(variant.policy, slots, shape) if spent is None else spent
        if _acts(variant, prompt_seed):
            # Slots of its own hold prefix and tail, plain; the tail as it was read is kept to start again.
            num_bytes += sum(_bytes_of(None, slots + 2 * tail, shape) for tail in tail_tokens)
        expected[variant.label] = num_bytes
    return expected


def tail_bytes(bucket: int, prompt: Prompt, full_bytes: int) -> int:
    """Bytes that a batch's tails are expected to take, those of its dummies too."""
    return bucket * prompt.most_tail_tokens * full_bytes // len(prompt.context_ids)


def plannable_bytes(device: torch.device) -> int | None:
    """Bytes of ``device`` that a group may be planned to fill; None on the CPU, which is not asked."""
    if device.type != "cuda":
        return None
    return int(available_bytes(device) * SHARE_PLANNED)


def _bytes_of(policy: Policy | None, slots: int, shape: CacheShape) -> int:
    """Bytes of so many slots in every head and layer as ``policy`` holds them, positions included; None: plain."""
    positions = POSITION_BYTES * slots * shape.num_kv_heads
    # A policy and its form may be a user's.
    with suppress(Exception):
        if policy is not None:
            return shape.num_layers * (layer_bytes(policy, shape).most_of(slots) + positions)
    assert shape.head_dim is not None and shape.itemsize is not None, "a cache's sizes are known"
    plain = LayerBytes(shape.num_kv_heads, shape.head_dim, shape.itemsize)
    return shape.num_layers * (plain.most_of(slots) + positions)


def _bytes_spent(variant: Variant, shape: CacheShape, expected: Mapping[str, int]) -> int | None:
    """Bytes that a policy which spends bytes holds at most, positions included; None for any other."""
    # As in `_most_slots`.
    with suppress(Exception):
        if variant.budget is not None and spends_bytes(variant.policy):
            budget = in_slots(variant.budget, variant.policy, shape, expected.__getitem__)
            assert isinstance(budget, ByteCount), "its budgets are of bytes"
            of_head = budget.num_bytes + POSITION_BYTES * budget.num_slots
            return shape.num_layers * shape.num_kv_heads * of_head
    return None


def _most_slots(
    variant: Variant, by_label: Mapping[str, Variant], shape: CacheShape, expected: Mapping[str, int]
) -> int:
    """Slots per head that ``variant`` may come to; ``expected`` are the bytes of those before it."""
    while isinstance(variant.budget, LikeVariant) and variant.budget.label in by_label:
        variant = by_label[variant.budget.label]
    # A policy may be a user's, and a budget impossible: compressing will tell.
    with suppress(Exception):
        if variant.budget is not None and not variant.policy.budget_is_outcome:
            budget = in_slots(variant.budget, variant.policy, shape, expected.__getitem__)
            if not isinstance(budget, LikeVariant):
                return min(num_slots_for(budget, shape.num_tokens), shape.num_tokens)
    return shape.num_tokens


def labels_that_act(variants: Sequence[Variant], prompt_seed: int) -> frozenset[str]:
    """Of variants that act while they answer, and of those whose budget is like such a one's, however far."""
    return _with_followers(variants, {it.label for it in variants if _acts(it, prompt_seed)})


def labels_without_kernels(variants: Sequence[Variant]) -> frozenset[str]:
    """Of variants whose form no kernel reads, and of those whose budget is like such a one's, however far."""
    return _with_followers(variants, {it.label for it in variants if _has_no_kernel(it)})


def _with_followers(variants: Sequence[Variant], labels: set[str]) -> frozenset[str]:
    for variant in variants:  # each comes after the one it is like
        if label_referred_to(variant.budget) in labels:
            labels.add(variant.label)
    return frozenset(labels)


def _has_no_kernel(variant: Variant) -> bool:
    # What a user's form raises fails its own row, when it is compressed.
    with suppress(Exception):
        return (form := form_of(variant.policy)) is not None and form.layouts() is None
    return False


def _acts(variant: Variant, prompt_seed: int) -> bool:
    with suppress(Exception):
        return variant.policy.decode_rule(prompt_seed) is not None
    return False
