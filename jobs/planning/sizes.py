"""How many slots and bytes each variant will hold of a prompt, foreseen without weights from budget, form and model shape.

Bytes are those a budget of bytes counts: keys, values, scales and log masses, positions apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.planning.work import ModelFacts
from kvmerger.budget import (
    BudgetError,
    BytesLike,
    BytesShare,
    LayerBytes,
    LikeVariant,
    Measured,
    num_slots_for,
    slots_like,
    slots_of_share,
)
from kvmerger.byte_counts import bytes_like, bytes_of_share
from kvmerger.names import FormError
from kvmerger.variants import NO_CONTEXT, REFERENCE_LABELS, VariantSpec

_BYTES_PER_ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class VariantFacts:
    """What a plan must know of a variant's policy.

    Attributes:
        version: of its class, and of those it is made of.
        budget_is_outcome: whether the prompt decides what it keeps.
        acts_while_answering: whether it drops slots as it answers, so that each of its rows has a copy of the prefix.
        form: what slots are stored in; None for the model's dtype.
        adds_log_mass: whether a slot may have a log mass.
        is_uneven: whether heads or layers may hold unlike numbers of slots.
        repeats_context: whether it reads a second pass, in which the model repeats the context.
        spends_bytes: whether it decides itself how many slots its bytes hold.
    """

    version: str
    budget_is_outcome: bool
    acts_while_answering: bool = False
    form: Measured | None = None
    adds_log_mass: bool = False
    is_uneven: bool = False
    repeats_context: bool = False
    spends_bytes: bool = False


@dataclass(frozen=True, slots=True)
class ForeseenSize:
    """What a variant holds of one prompt.

    Attributes:
        num_slots: per KV head, the mean where they differ.
        num_bytes: of all layers; where heads differ, of the split that takes most.
        is_at_most: whether the prompt decides, so that it may be less.
    """

    num_slots: int
    num_bytes: int
    is_at_most: bool = False


@dataclass(frozen=True)
class SizeForecast:
    """Foresees sizes by label. `specs` has an entry per label, `facts` one per label that is no reference row."""

    specs: Mapping[str, VariantSpec]
    facts: Mapping[str, VariantFacts]
    model: ModelFacts
    _known: dict[tuple[str, int], ForeseenSize | None] = field(default_factory=dict)

    def of(self, label: str, num_tokens: int) -> ForeseenSize | None:
        """The size at `num_tokens` tokens; None where the budget cannot be met or leads nowhere, or the form cannot tell."""
        key = (label, num_tokens)
        if key not in self._known:
            try:
                self._known[key] = self._foreseen(label, num_tokens)
            except (BudgetError, FormError):
                self._known[key] = None
        return self._known[key]

    def full_bytes(self, num_tokens: int) -> int:
        """Bytes of the full cache's keys and values."""
        return bytes_per_token(self.model) * num_tokens

    def _foreseen(self, label: str, num_tokens: int) -> ForeseenSize | None:
        if label in REFERENCE_LABELS:
            num_slots = 0 if label == NO_CONTEXT else num_tokens
            return ForeseenSize(num_slots, self.full_bytes(num_slots))
        if label in self.facts and self.facts[label].spends_bytes:
            return self._spent(label, num_tokens)
        slots = self._slots(label, num_tokens)
        if slots is None:
            return None
        num_slots, is_at_most = slots
        of_layer = self._layer(label).most_of(num_slots)
        return ForeseenSize(num_slots, of_layer * self.model.num_layers, is_at_most)

    def _spent(self, label: str, num_tokens: int) -> ForeseenSize | None:
        """At most the bytes asked for, in any number of slots; None where there is no budget to ask."""
        layer, num_layers = self._layer(label), self.model.num_layers
        match self.specs[label].budget if label in self.specs else None:
            case BytesShare() as share:
                count = bytes_of_share(share, layer, num_tokens)
            case BytesLike(label=other) if like := self.of(other, num_tokens):
                count = bytes_like(like.num_bytes, num_layers, layer, num_tokens)
            case _:
                return None
        num_bytes = min(count.num_bytes * layer.num_heads, layer.full(num_tokens))
        return ForeseenSize(num_tokens, num_bytes * num_layers, is_at_most=True)

    def _slots(self, label: str, num_tokens: int) -> tuple[int, bool] | None:
        """Slots per head, and whether they may be fewer; None where the variant that the budget refers to has none."""
        if label not in self.specs:
            return None
        budget = self.specs[label].budget
        if budget is None or (label in self.facts and self.facts[label].budget_is_outcome):
            # Without a budget a form holds everything; a policy without one decides by the prompt.
            return num_tokens, label in self.facts and self.facts[label].budget_is_outcome
        if isinstance(budget, LikeVariant | BytesLike):
            like = self.of(budget.label, num_tokens)
            if like is None:
                return None
            if isinstance(budget, LikeVariant):
                return like.num_slots, like.is_at_most
            layer, num_layers = self._layer(label), self.model.num_layers
            return slots_like(budget, like.num_bytes, num_layers, layer, num_tokens), like.is_at_most
        if isinstance(budget, BytesShare):
            return slots_of_share(budget, self._layer(label), num_tokens), False
        return num_slots_for(budget, num_tokens), False

    def _layer(self, label: str) -> LayerBytes:
        known, model = self.facts.get(label), self.model
        of_model = model.num_kv_heads, model.head_dim, itemsize_of(model)
        if known is None:
            return LayerBytes(*of_model)
        return LayerBytes(*of_model, known.form, known.adds_log_mass, self._is_uneven(label))

    def _is_uneven(self, label: str) -> bool:
        """Whether heads or layers may differ, of its own doing or of the variant's whose slots it takes over."""
        if label in self.facts and self.facts[label].is_uneven:
            return True
        budget = self.specs[label].budget if label in self.specs else None
        return isinstance(budget, LikeVariant) and self._is_uneven(budget.label)


def itemsize_of(model: ModelFacts) -> int:
    """Bytes of a number in the model's dtype.

    Raises:
        ValueError: a dtype whose size is not known.
    """
    dtype = model.dtype.rpartition(".")[2]
    if dtype not in _BYTES_PER_ELEMENT:
        raise ValueError(
            f"the size of dtype {model.dtype!r} is not known; known: {sorted(_BYTES_PER_ELEMENT)}"
        )
    return _BYTES_PER_ELEMENT[dtype]


def bytes_per_token(model: ModelFacts) -> int:
    """Bytes of K and V of one token in all layers and heads."""
    return LayerBytes(model.num_kv_heads, model.head_dim, itemsize_of(model)).full(1) * model.num_layers
