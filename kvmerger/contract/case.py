"""What a policy is tried on: a policy built from its name, random layers, and what compressing makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kvmerger.budget import BudgetError, KeptRatio
from kvmerger.building import Variant, build
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.contract.layers import NUM_TOKENS, random_prefill
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
    def budget(policy: Policy) -> KeptRatio | None:
        """That of all checks; None for a policy that takes none."""
        asked = KeptRatio(KEPT_RATIO)
        return None if policy.parts[0].budget_refusal(asked) else asked

    def prefilled(self, num_tokens: int = NUM_TOKENS) -> Prefilled:
        """The layers and the policy's evidence."""
        policy = self.variant().policy
        return random_prefill(self.seed, self.dtype, policy, num_tokens, self.budget(policy))

    def failure(self, prefilled: Prefilled) -> CompressFailure | None:
        """Why the policy cannot compress ``prefilled``; None where it can."""
        return compress_all(prefilled, [self.variant()]).failed.get(_LABEL)

    def compressed(self, prefilled: Prefilled | None = None) -> Sequence[LayerCache]:
        """What the policy keeps of every layer.

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
        return [layer.plain() for layer in compression.done[_LABEL].prefix]


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
