"""What KVMerger and its controls share: tokens that are never merged, and layers kept whole at the others' expense.

Shapes: L layers, H KV heads, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kvmerger.budget import Budget, BudgetError, BudgetSpec, LikeVariant, num_slots_for, share_of
from kvmerger.merging.protected import ProtectedRatios, protected_ratios
from kvmerger.merging.runs import protect
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.parameters import require_choices, require_count, require_ratio
from kvmerger.policies.registry import name_of
from kvmerger.prefill.attention_sources import ATTENTION_SOURCES, AttentionSource, mass_need
from kvmerger.prefill.evidence import Evidence, Need


@dataclass(frozen=True)
class ProtectingPolicy(Policy):
    """Base of policies that protect the most recent and the most attended tokens, and leave some layers alone.

    Attributes:
        recent_ratio, heavy_ratio: fractions of the prompt never merged (most recent, most attended); None follows the
            layer's budget as `protected_ratios` says.
        skip_layers: layers kept whole, negative from the end. They count: the others keep less.
        attention_source: whose attention finds heavy tokens: all of ``prefill``, or the last ``window``.
        window_size: tokens of that window.
    """

    recent_ratio: float | None = None
    heavy_ratio: float | None = None
    skip_layers: tuple[int, ...] = (0, 1, -1)
    attention_source: AttentionSource = "prefill"
    window_size: int = 64

    def __post_init__(self) -> None:
        """Refuse values outside their domain."""
        require_choices(self._name, vars(self), {"attention_source": ATTENTION_SOURCES})
        require_count(self._name, "window_size", self.window_size)
        # A tuple: a variant's parameters are hashed, so a YAML's list has become one.
        if not (
            isinstance(self.skip_layers, tuple) and all(isinstance(index, int) for index in self.skip_layers)
        ):
            raise PolicyError(
                f"{self._name}: skip_layers is a list such as [0, 1, -1], got {self.skip_layers!r}"
            )
        for name in ("recent_ratio", "heavy_ratio"):
            if getattr(self, name) is not None:
                require_ratio(self._name, name, getattr(self, name))

    @property
    def layers_differ(self) -> bool:  # type: ignore[override]
        """Where some are kept whole."""
        return bool(self.skip_layers)

    @property
    def _name(self) -> str:
        return name_of(self)

    @property
    def _mass_need(self) -> Need:
        return mass_need(self.attention_source, self.window_size)

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """The skipped layers must exist, and with the protected tokens leave room within the budget."""
        self._check_shape(shape)
        if isinstance(budget, LikeVariant):
            return
        num_slots = self._slots_of_other_layers(
            num_slots_for(budget, shape.num_tokens), shape.num_tokens, shape.num_layers
        )
        self._require_room(num_slots, shape.num_tokens, max(0.0, num_slots / shape.num_tokens))

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Skipped layers keep everything; the others pay for it, so that the whole model meets the budget."""
        num_layers, num_tokens = len(budget_L), evidence_L[0].num_tokens
        skipped, num_heads = self._skipped(num_layers), len(budget_L[0].num_slots_H)
        whole = Budget.uniform(num_tokens, num_heads, budget_L[0].asked_ratio)
        num_slots = self._slots_of_other_layers(budget_L[0].num_slots_H[0], num_tokens, num_layers)
        # What is protected follows what these layers may keep: by the whole model's ratio, a model of few layers would
        # have more protected tokens than its merged layers have slots.
        others = Budget.uniform(num_slots, num_heads, num_slots / num_tokens)
        return tuple(whole if index in skipped else others for index in range(num_layers))

    def _check_shape(self, shape: CacheShape) -> None:
        absent = [index for index in self.skip_layers if not -shape.num_layers <= index < shape.num_layers]
        if absent:
            raise BudgetError(
                f"{self._name}: skip_layers names {absent}, and the model has {shape.num_layers} layers"
            )
        if self.attention_source == "window" and shape.num_tokens <= self.window_size:
            raise BudgetError(
                f"{self._name}: the compressed part has {shape.num_tokens} tokens, no more than "
                f"window_size={self.window_size}; lower window_size or leave out such short prompts"
            )

    def _protected(self, kept_ratio: float) -> ProtectedRatios:
        by_budget = protected_ratios(kept_ratio)
        return ProtectedRatios(
            by_budget.recent_ratio if self.recent_ratio is None else self.recent_ratio,
            by_budget.heavy_ratio if self.heavy_ratio is None else self.heavy_ratio,
        )

    def _protect(self, mass_HN: Tensor, kept_ratio: float) -> Tensor:
        """The tokens a budget of ``kept_ratio`` protects: bool (H, N)."""
        return protect(mass_HN, *self._num_protected(kept_ratio, mass_HN.shape[1]))

    def _num_protected(self, kept_ratio: float, num_tokens: int) -> tuple[int, int]:
        """Recent and heavy tokens that a budget of ``kept_ratio`` protects."""
        protected = self._protected(kept_ratio)
        return share_of(num_tokens, protected.recent_ratio), share_of(num_tokens, protected.heavy_ratio)

    def _skipped(self, num_layers: int) -> set[int]:
        # Modulo: −1 and the last layer's own index are one layer, which pays once.
        return {index % num_layers for index in self.skip_layers}

    def _slots_of_other_layers(self, num_slots: int, num_tokens: int, num_layers: int) -> int:
        """Slots per head left for each layer not skipped, so that all average ``num_slots``; may be negative."""
        num_skipped = len(self._skipped(num_layers))
        if num_skipped == num_layers:
            raise BudgetError(
                f"{self._name}: skip_layers={self.skip_layers} leaves none of {num_layers} layers to compress"
            )
        # Rounded down: the model may hold a few slots less than allowed, never more.
        return (num_slots * num_layers - num_tokens * num_skipped) // (num_layers - num_skipped)

    def _require_room(self, num_slots: int, num_tokens: int, kept_ratio: float) -> None:
        protected = self._protected(kept_ratio)
        num_protected = sum(self._num_protected(kept_ratio, num_tokens))
        if num_slots <= num_protected:
            raise BudgetError(
                f"{self._name}: after skip_layers={self.skip_layers} the budget leaves {max(num_slots, 0)} slots per head "
                f"of {num_tokens} tokens, and {num_protected} are protected (recent {protected.recent_ratio:g}, heavy "
                f"{protected.heavy_ratio:g}); raise the budget, skip fewer layers or protect less"
            )
