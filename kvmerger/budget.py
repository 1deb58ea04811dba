"""What a policy may keep. Nothing outside this module turns a ratio, of slots or of bytes, into a number of slots.

Ratios are handled as the decimal the user wrote: 0.7 of 10 tokens is 7, although ``int(10 * (1 - 0.3))`` and its
relatives say 6 or 7 depending on the pair.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol


class BudgetError(ValueError):
    """A budget that cannot be read, or that a policy cannot meet on a prompt of this length."""


@dataclass(frozen=True, slots=True)
class KeptRatio:
    """The fraction of the compressed part's slots to keep, in (0, 1]."""

    ratio: float

    def __str__(self) -> str:
        return repr(self.ratio)  # never without its point: 1.0 keeps everything, 1 keeps one slot


@dataclass(frozen=True, slots=True)
class SlotCount:
    """A number of slots per KV head and layer, whatever the prompt's length."""

    num_slots: int

    def __str__(self) -> str:
        return str(self.num_slots)


@dataclass(frozen=True, slots=True)
class LikeVariant:
    """As many slots as another variant of the sweep ended up with, per layer and head."""

    label: str

    def __str__(self) -> str:
        return f"like:{self.label}"


@dataclass(frozen=True, slots=True)
class BytesShare:
    """A fraction, in (0, 1], of the bytes that the full cache's keys and values take in the model's dtype."""

    ratio: float

    def __str__(self) -> str:
        return f"bytes:{self.ratio!r}"


@dataclass(frozen=True, slots=True)
class BytesLike:
    """As many bytes as another variant of the sweep ended up with, positions apart."""

    label: str

    def __str__(self) -> str:
        return f"bytes:like:{self.label}"


BudgetSpec = KeptRatio | SlotCount | LikeVariant
"""What a policy is asked about: a budget of bytes has become a number of slots by then."""
AskedBudget = BudgetSpec | BytesShare | BytesLike
"""What a variant may be given."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The slots one layer may keep, one whole number per KV head.

    ``asked_ratio`` is the fraction asked for (0–1), for rules that scale with the budget. It is what the user wrote,
    unless the policy's own `allocate` moved slots between layers.
    """

    num_slots_H: tuple[int, ...]
    asked_ratio: float
    num_bytes_H: tuple[int, ...] | None = None
    """Bytes of every head, for a policy that spends bytes; slots are then the most there can be."""

    @property
    def num_slots(self) -> int:
        """Slots of the layer, all heads together."""
        return sum(self.num_slots_H)

    @classmethod
    def uniform(cls, num_slots: int, num_heads: int, asked_ratio: float) -> Budget:
        """The same number of slots in every head."""
        return cls((num_slots,) * num_heads, asked_ratio)


def label_referred_to(budget: AskedBudget | None) -> str | None:
    """The label of the variant whose slots or bytes decide about ``budget``; None where none does."""
    return budget.label if isinstance(budget, LikeVariant | BytesLike) else None


def num_slots_for(spec: KeptRatio | SlotCount, num_tokens: int) -> int:
    """Slots per KV head that ``spec`` allows on ``num_tokens`` tokens: rounded down, at least 1, at most all."""
    if isinstance(spec, SlotCount):
        return min(spec.num_slots, num_tokens)
    return max(1, share_of(num_tokens, spec.ratio))


def share_of(num_slots: int, ratio: float) -> int:
    """The part of ``num_slots`` that ``ratio`` (0–1) names, rounded down."""
    # Through the decimal that repr gives: as binary fractions, 0.7 of 10 would be a little less than 7.
    return math.floor(Fraction(str(ratio)) * num_slots)


def effective_ratio(spec: KeptRatio | SlotCount, num_tokens: int) -> float:
    """The fraction of ``num_tokens`` that ``spec`` allows, for rules that scale with the budget."""
    return spec.ratio if isinstance(spec, KeptRatio) else min(1.0, spec.num_slots / num_tokens)


class Measured(Protocol):
    """What says how many bytes slots take: every form does."""

    def num_bytes(self, num_slots_H: Sequence[int], head_dim: int) -> int:
        """Bytes of a layer's keys and values with so many slots in its heads, scales and all; rises with the slots."""

    def most_bytes(self, num_slots: int, num_heads: int, head_dim: int) -> int:
        """The most bytes of ``num_slots`` slots, however heads share them; of L layers at most L times these."""


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """What the slots of one layer take as a variant stores them, positions apart.

    Attributes:
        itemsize: bytes of a number in the model's dtype.
        form: what slots are stored in; None for the model's dtype.
        adds_log_mass: whether every slot has a log mass.
        is_uneven: whether heads or layers may share the slots unevenly.
    """

    num_heads: int
    head_dim: int
    itemsize: int
    form: Measured | None = None
    adds_log_mass: bool = False
    is_uneven: bool = False

    def full(self, num_tokens: int) -> int:
        """Bytes of the full cache's keys and values."""
        return _KEYS_AND_VALUES * self.num_heads * num_tokens * self.head_dim * self.itemsize

    def of(self, num_slots_H: Sequence[int]) -> int:
        """Bytes of so many slots in the heads."""
        num_slots = sum(num_slots_H)
        log_mass = num_slots * _LOG_MASS_BYTES if self.adds_log_mass else 0
        if self.form is None:
            return _KEYS_AND_VALUES * num_slots * self.head_dim * self.itemsize + log_mass
        return self.form.num_bytes(num_slots_H, self.head_dim) + log_mass

    def most_of(self, num_slots: int) -> int:
        """The most bytes a layer takes where each head has ``num_slots``, or, if `is_uneven`, where that is their mean."""
        if self.form is None or not self.is_uneven:
            return self.of((num_slots,) * self.num_heads)
        of_all = num_slots * self.num_heads
        log_mass = of_all * _LOG_MASS_BYTES if self.adds_log_mass else 0
        return self.form.most_bytes(of_all, self.num_heads, self.head_dim) + log_mass

    def most_slots(self, num_bytes: int, num_tokens: int) -> int:
        """The most slots per head, from 0 to ``num_tokens``, that take no more than ``num_bytes`` however they are shared."""
        if self.of((num_tokens,) * self.num_heads) <= num_bytes:
            return num_tokens  # where every head holds everything, there is nothing to share
        # By halves: a form may charge for whole groups, so that bytes are no multiple of slots.
        return bisect.bisect_right(range(1, num_tokens + 1), num_bytes, key=self.most_of)


def slots_of_share(share: BytesShare, layer: LayerBytes, num_tokens: int) -> int:
    """Slots per KV head whose bytes are at most the ``share`` of the full cache's, on ``num_tokens`` tokens; at most all.

    All layers are alike, so what holds for one holds for the cache.

    Raises:
        BudgetError: not even one slot per head fits, with the least share that would do.
    """
    return _slots_within(share, share_of(layer.full(num_tokens), share.ratio), layer, num_tokens)


def slots_like(like: BytesLike, num_bytes: int, num_layers: int, layer: LayerBytes, num_tokens: int) -> int:
    """Slots per KV head whose bytes, over all layers, are at most the ``num_bytes`` of the variant that ``like`` names.

    Raises:
        BudgetError: not even one slot per head fits, with the least share that would do.
    """
    return _slots_within(like, num_bytes // num_layers, layer, num_tokens)


def _slots_within(budget: BytesShare | BytesLike, num_bytes: int, layer: LayerBytes, num_tokens: int) -> int:
    if num_slots := layer.most_slots(num_bytes, num_tokens):
        return num_slots
    one = layer.most_of(1)
    # Rounded up: the share that is named must do.
    least = math.ceil(Fraction(one * _STEPS_OF_SHARE, layer.full(num_tokens))) / _STEPS_OF_SHARE
    remedy = f"give {{bytes: {least}}} or more" if least <= 1 else "leave out such short prompts"
    raise BudgetError(
        f"the budget {budget} is {num_bytes} bytes a layer on {num_tokens} tokens, and one slot in each of {layer.num_heads} "
        f"heads takes {one}, scales included; {remedy}"
    )


_KEYS_AND_VALUES = 2
_LOG_MASS_BYTES = 4  # fp32
_STEPS_OF_SHARE = 10**6
