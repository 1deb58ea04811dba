"""The contract of a policy: a frozen dataclass of its parameters that turns values into values.

A policy keeps no state between calls, changes none of its inputs, and names in `needs` every piece of evidence that
reads the queries. The engine asks nothing else of it, and never what class it is.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

from kvmerger.budget import Budget, BudgetSpec
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import DecodeRule
from kvmerger.prefill.evidence import Evidence, Need


class PolicyError(ValueError):
    """Parameters a policy does not accept, or something a policy says of itself that has no meaning."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The uncompressed cache a policy will meet: what a plan knows before any weights are loaded."""

    num_tokens: int
    num_layers: int
    num_kv_heads: int


@dataclass(frozen=True)
class Policy(abc.ABC):
    """Base of all policies. Subclass it as a frozen dataclass and register it, or name it as ``module:Class``."""

    version: ClassVar[int] = 1
    """Raise it when results change: old rows then no longer count as done."""
    keeps_slots_unchanged: ClassVar[bool] = True
    """Whether every kept slot is bit-equal to prefill's K/V at its position (eviction), or may be new (merging)."""

    compresses_stacks: ClassVar[bool] = False
    """Whether `compress` takes neighbouring layers as one layer of all their heads, which it then must treat each by
    itself, or layer by layer as `Evidence.by_layer` tells. It is called once for many layers then, not once for each."""

    @property
    def budget_is_outcome(self) -> bool:
        """Whether the number of kept slots follows from the prompt instead of the budget."""
        return False

    @property
    def parts(self) -> tuple[Policy, ...]:
        """This policy, after what it wraps: all whose versions and code its results depend on."""
        return (self,)

    def needs(self) -> frozenset[Need]:
        """Evidence that `compress` and `allocate` read. Pure; may depend on the parameters."""
        return frozenset()

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:  # noqa: B027 - most policies need no check
        """Raise `BudgetError` when this policy cannot work at ``budget`` on a cache of ``shape``; changes nothing."""

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Move slots between layers: takes the even budget of every layer, returns each layer's own.

        Not called for ``like`` budgets, which are per layer and head already.
        """
        return budget_L

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """What one layer must have in common with its neighbour for both to be compressed as one.

        Asked only where `compresses_stacks`. Of a stack, ``budget.asked_ratio`` and ``evidence.layer_index`` are its first
        layer's, so whoever reads them must not let them differ in what matters.
        """
        return budget

    def decode_rule(self, prompt_seed: int) -> DecodeRule | None:
        """What this policy does while its rows answer; None, as here, when it is done once `compress` has returned.

        ``prompt_seed``, from the prompt's tokens and the sweep's seed, is all that a rule's randomness may depend on.
        """
        return None

    @abc.abstractmethod
    def compress(self, layer: LayerCache, evidence: Evidence, budget: Budget) -> LayerCache:
        """Return what to keep of ``layer``, the uncompressed cache of one layer (uniform heads), within ``budget``.

        Changes neither ``layer`` nor ``evidence``. Positions ascend within each head. May return ``layer`` itself to
        keep everything.

        Raises:
            BudgetError: the budget cannot be met on this prompt.
        """


def declared_needs(policy: Policy) -> Set[Need]:
    """What ``policy.needs()`` gives: where a policy may be a stranger's, nobody else's evidence may suffer from it.

    Raises:
        PolicyError: it is no set of `Need`.
        Exception: whatever ``needs`` raises.
    """
    needs: object = policy.needs()
    example = 'frozenset({Need("window_attention", (64,))})'
    if not isinstance(needs, Set):
        raise PolicyError(
            f"{type(policy).__name__}.needs() must give a set of Need, as {example}, got {needs!r}"
        )
    for need in needs:
        if not (isinstance(need, Need) and isinstance(need.name, str) and isinstance(need.params, tuple)):
            raise PolicyError(
                f"{type(policy).__name__}.needs() must give a set of Need, each a name and a tuple of parameters, as "
                f"{example}, got {need!r} in it"
            )
    return needs
