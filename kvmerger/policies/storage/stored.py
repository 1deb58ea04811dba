"""A form as a part of a policy's name: the wrapped policy chooses slots, and the engine stores them in the form."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from kvmerger.budget import AskedBudget, Budget, BudgetSpec
from kvmerger.cache.forms import registry as forms
from kvmerger.cache.forms.answers import Answers
from kvmerger.cache.forms.base import Form
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import AnswerRule
from kvmerger.names import FormError
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.registry import INNER, name_of, register_unlisted
from kvmerger.policies.wrapper import SlotWrapper
from kvmerger.prefill.evidence import Evidence


# By keyword: a field that was a class variable in the base class comes before `inner`, in the base's place.
@dataclass(frozen=True, kw_only=True)
class Stored(SlotWrapper):
    """Keep what the wrapped policy keeps, in a form of fewer bits.

    `compress` gives plain slots; whoever runs the policy encodes them, all layers' alike, once they are checked.

    Attributes:
        inner: the wrapped policy. It has no form of its own.
        form: what its slots are stored in.
    """

    # `field()`, since the class variable of the same name would otherwise be its default.
    form: Form = field()  # type: ignore[misc]

    def __post_init__(self) -> None:
        """Refuse a form on a form."""
        for part in self.inner.parts:
            if part.form is not None:
                raise PolicyError(
                    f"{name_of(self)} cannot store what {name_of(part)} has stored: a cache has one form; keep one of them"
                )

    @property
    def given_name(self) -> str:
        """The form's."""
        return forms.name_of(self.form)

    # A property takes the place of a class variable: the answer is the form's.
    @property
    def version(self) -> int:  # type: ignore[override]
        """The form's."""
        return self.form.version

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:
        """Raise `BudgetError` where the wrapped policy does, and `PolicyError` for heads that the form cannot store."""
        super().check(shape, budget)
        if shape.head_dim is None:
            return
        try:
            answers = Answers(self.form)
            answers.check(shape.head_dim)
            answers.of_layer(0, shape.num_layers)
            answers.num_bytes((shape.num_tokens,) * shape.num_kv_heads, shape.head_dim)
        except FormError as error:
            raise PolicyError(str(error)) from error

    def decode_rule(self, prompt_seed: int) -> AnswerRule | None:
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
