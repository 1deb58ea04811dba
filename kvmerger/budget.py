"""What a policy may keep. Nothing outside this module turns a ratio into a number of slots.

Ratios are handled as the decimal the user wrote: 0.7 of 10 tokens is 7, although ``int(10 * (1 - 0.3))`` and its
relatives say 6 or 7 depending on the pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction


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


BudgetSpec = KeptRatio | SlotCount | LikeVariant


@dataclass(frozen=True, slots=True)
class Budget:
    """The slots one layer may keep, one whole number per KV head.

    ``asked_ratio`` is the fraction asked for (0–1), for rules that scale with the budget. It is what the user wrote,
    unless the policy's own `allocate` moved slots between layers.
    """

    num_slots_H: tuple[int, ...]
    asked_ratio: float

    @property
    def num_slots(self) -> int:
        """Slots of the layer, all heads together."""
        return sum(self.num_slots_H)

    @classmethod
    def uniform(cls, num_slots: int, num_heads: int, asked_ratio: float) -> Budget:
        """The same number of slots in every head."""
        return cls((num_slots,) * num_heads, asked_ratio)


def kept_ratio_from_compression_ratio(compression_ratio: float) -> KeptRatio:
    """Convert kvpress's ``compression_ratio`` (the fraction *removed*, in [0, 1)) into the fraction kept."""
    if isinstance(compression_ratio, bool) or not isinstance(compression_ratio, int | float):
        raise BudgetError(f"compression_ratio must be a number in [0, 1), got {compression_ratio!r}")
    if not 0 <= compression_ratio < 1:
        raise BudgetError(
            f"compression_ratio is the fraction removed and must be in [0, 1), got {compression_ratio}; "
            f"to keep a fraction of the cache write `budget: <fraction kept>`"
        )
    return KeptRatio(float(1 - Fraction(str(compression_ratio))))


def parse_budget(value: object) -> BudgetSpec:
    """Read a budget as people write it: ``0.5`` (fraction kept), ``512`` (slots per KV head), ``{like: label}``.

    Raises:
        BudgetError: for anything else, with the value and what would be right.
    """
    # bool before int, of which it is a subclass; 1 is a slot, 1.0 is everything.
    match value:
        case KeptRatio() | SlotCount() | LikeVariant():
            return value
        case bool():
            pass
        case int() if value >= 1:
            return SlotCount(value)
        case float() if 0 < value <= 1:
            return KeptRatio(value)
        case {"like": str(label)} if isinstance(value, Mapping) and len(value) == 1:
            return LikeVariant(label)
    raise BudgetError(
        f"budget {value!r} is none of: a kept fraction in (0, 1] such as 0.5, a whole number of slots per KV head "
        f"such as 512, or {{like: <label of another variant>}}"
    )


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
