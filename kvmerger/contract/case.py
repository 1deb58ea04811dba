"""What a policy is tried on: a policy built from its name, random layers, and what compressing makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kvmerger.budget import Budget, BudgetError, BytesShare, KeptRatio
from kvmerger.building import Variant, build, form_of
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.cache.packed_layer import PackedLayer
from kvmerger.contract.layers import NUM_TOKENS, random_prefill
from kvmerger.decoding.ragged_cache import Prefix
from kvmerger.engine.budgets import allocated, asked, shape_of
from kvmerger.engine.compress import CompressFailure, compress_all
from kvmerger.policies.base import Policy, PolicyError
from kvmerger.policies.storage.stored import unstored
from kvmerger.prefill.prefill import Prefilled

KEPT_RATIO = 0.5
_LABEL = "checked"


class ContractError(Exception):
    """What a check found wrong."""


@dataclass(frozen=True, slots=True)
class Case:
    """A policy built from its name and parameters, and the seed and dtype of the layers it is tried on."""

    name: str
    seed: int
    dtype: torch.dtype
    params: Mapping[str, Any] = field(default_factory=dict)

    def variant(self, policy: Policy | None = None) -> Variant:
        """The policy, or the given one, at the budget of all checks; a new instance each time. A form has its own checks."""
        made = unstored(build(self.name, self.params)) if policy is None else policy
        return Variant(_LABEL, made, self.budget(made))

    @staticmethod
    def budget(policy: Policy) -> KeptRatio | BytesShare | None:
        """That of all checks, in bytes for a policy that takes no other; None for one that takes none."""
        possible = (KeptRatio(KEPT_RATIO), BytesShare(KEPT_RATIO))
        return next((it for it in possible if not policy.parts[0].budget_refusal(it)), None)

    def budgets(self, prefilled: Prefilled) -> Sequence[Budget]:
        """Every layer's, as the policy allocates it."""
        variant = self.variant()
        return allocated(prefilled, variant, asked(shape_of(prefilled), variant, {}))

    def prefilled(self, num_tokens: int = NUM_TOKENS) -> Prefilled:
        """The layers and the policy's evidence."""
        policy = self.variant().policy
        budget = self.budget(policy)
        of_slots = budget if isinstance(budget, KeptRatio) else None
        return random_prefill(self.seed, self.dtype, policy, num_tokens, of_slots)

    def failure(self, prefilled: Prefilled) -> CompressFailure | None:
        """Why the policy cannot compress ``prefilled``; None where it can."""
        return compress_all(prefilled, [self.variant()]).failed.get(_LABEL)

    def compressed(self, prefilled: Prefilled | None = None) -> Sequence[LayerCache]:
        """What the policy keeps of every layer, decoded where it brings a form of its own.

        Raises:
            ContractError: it raised something.
        """
        return [layer.plain() for layer in self.held(prefilled)]

    def alone(self, prefilled: Prefilled, index: int, budget: Budget) -> LayerCache:
        """`compressed` of one layer by itself."""
        policy = self.variant().policy
        kept = policy.compress(prefilled.layers[index], prefilled.evidence[index], budget)
        form = None if kept.widths is None else form_of(policy)
        return kept if form is None else PackedLayer.of(kept, form).plain()

    def held(self, prefilled: Prefilled | None = None) -> Prefix:
        """What the policy keeps of every layer, as it is held.

        Raises:
            ContractError: it raised something.
        """
        compression = compress_all(prefilled or self.prefilled(), [self.variant()])
        if failure := compression.failed.get(_LABEL):
            # A sentence of ours names the fault. What else was raised is only understood with its trace.
            is_sentence = issubclass(failure.error_type, PolicyError | BudgetError)
            raise ContractError(
                f"compress raised {failure.error_type.__name__}: {failure.message}"
                if is_sentence
                else f"compress raised\n{failure.traceback}"
            )
        return compression.done[_LABEL].prefix


def expect(is_met: bool, message: str) -> None:
    """Raise `ContractError` with ``message`` unless ``is_met``."""
    # Not an assert statement: users may run Python with -O.
    if not is_met:
        raise ContractError(message)


def bits(layers: Sequence[LayerCache]) -> list[tuple]:
    """Every number of ``layers``, to be compared by ==."""
    # For == NaN differs from itself: a layer with NaN never counts as unchanged.
    return [
        (layer.num_slots_H, *(tensor.flatten().tolist() for tensor in layer.tensors())) for layer in layers
    ]
