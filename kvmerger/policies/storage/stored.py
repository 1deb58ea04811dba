"""A form as a part of a policy's name: the wrapped policy chooses slots, and the engine stores them in the form."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

from kvmerger.budget import AskedBudget, Budget, BudgetSpec
from kvmerger.cache.forms.base import Form
from kvmerger.cache.forms.layouts import FormError
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.registry import INNER, name_of, register_unlisted
from kvmerger.prefill.evidence import Evidence, Need


# By keyword: a field that was a class variable in the base class comes before `inner`, in the base's place.
@dataclass(frozen=True, kw_only=True)
class Stored(Policy):
    """Keep what the wrapped policy keeps, in a form of fewer bits.

    `compress` gives plain slots; whoever runs the policy encodes them, all layers' alike, once they are checked.

    Attributes:
        inner: the wrapped policy. It has no form of its own.
        form: what its slots are stored in.
    """

    inner: Policy
    # `field()`, since the class variable of the same name would otherwise be its default.
    form: Form = field()  # type: ignore[misc]

    def __post_init__(self) -> None:
        """Refuse a form on a form."""
        for part in self.inner.parts:
            if part.form is not None:
                raise PolicyError(
                    f"{name_of(self)} cannot store what {name_of(part)} has stored: a cache has one form; keep one of them"
                )

    # Here and below a property takes the place of a class variable: the answer is the instance's.
    @property
    def version(self) -> int:  # type: ignore[override]
        """The form's."""
        return self.form.version

    @property
    def keeps_slots_unchanged(self) -> bool:  # type: ignore[override]
        """As the wrapped policy says, of the slots that `compress` gives."""
        return self.inner.keeps_slots_unchanged

    @property
    def budget_is_outcome(self) -> bool:
        """As the wrapped policy says."""
        return self.inner.budget_is_outcome

    @property
    def adds_log_mass(self) -> bool:
        """As the wrapped policy says."""
        return self.inner.adds_log_mass

    @property
    def parts(self) -> tuple[Policy, ...]:
        """The wrapped policy's parts, then this one."""
        return (*self.inner.parts, self)

    def needs(self) -> frozenset[Need]:
        """What the wrapped policy reads."""
        return self.inner.needs()

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` where the wrapped policy does, and `PolicyError` for heads that the form cannot store."""
        self.inner.check(shape, budget)
        if shape.head_dim is None:
            return
        try:
            self.form.check(shape.head_dim)
        except FormError as error:
            raise PolicyError(f"{name_of(self)}: {error}") from error

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """As the wrapped policy allocates."""
        return self.inner.allocate(budget_L, evidence_L)

    @property
    def compresses_stacks(self) -> bool:  # type: ignore[override]
        """As the wrapped policy says."""
        return self.inner.compresses_stacks

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """The wrapped policy's."""
        return self.inner.stack_key(evidence, budget)

    def decode_rule(self, prompt_seed: int) -> DecodeRule | None:
        """The wrapped policy's own, where one class does both."""
        return self.inner.decode_rule(prompt_seed)

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """What the wrapped policy keeps, plain."""
        return self.inner.compress(layer, evidence, budget)


def unstored(policy: Policy) -> Policy:
    """``policy`` without its form: the same slots, plain."""
    if isinstance(policy, Stored):
        return policy.inner
    inner = getattr(policy, INNER, None)
    return replace(policy, **{INNER: unstored(inner)}) if isinstance(inner, Policy) else policy


@register_unlisted("full")
@dataclass(frozen=True)
class Everything(Policy):
    """Keep every slot: what a form alone stores."""

    def budget_refusal(self, budget: AskedBudget | None) -> str | None:
        """Nothing: whatever the budget, everything is kept."""
        return None

    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """The layer itself."""
        return layer
