"""The contract of a policy: a frozen dataclass of its parameters that turns values into values.

A policy keeps no state between calls, changes none of its inputs, and names in `needs` every piece of evidence that
reads the queries. The engine asks nothing else of it, and never what class it is.
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence, Set
from dataclasses import dataclass
from typing import ClassVar

from kvmerger.budget import AskedBudget, Budget, BudgetSpec, BytesLike, BytesShare
from kvmerger.cache.forms.base import Form
from kvmerger.cache.layer_cache import LayerCache
from kvmerger.decoding.decode_rule import AnswerRule
from kvmerger.prefill.evidence import Evidence, Need


class PolicyError(ValueError):
    """Parameters a policy does not accept, or something a policy says of itself that has no meaning."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """The uncompressed cache a policy will meet: what a plan knows before any weights are loaded.

    ``itemsize`` is the bytes of a number in the model's dtype. It and ``head_dim`` are None where nobody knows them.
    """

    num_tokens: int
    num_layers: int
    num_kv_heads: int
    head_dim: int | None = None
    itemsize: int | None = None


@dataclass(frozen=True)
class Policy(abc.ABC):
    """Base of all policies. Subclass it as a frozen dataclass and register it, or name it as ``module:Class``."""

    # Without slots: checks of parameters read vars(self), and a subclass may give a property in place of a class variable.

    version: ClassVar[int] = 1
    """Raise it when results change: old rows then no longer count as done."""
    keeps_slots_unchanged: ClassVar[bool] = True
    """Whether every kept slot is bit-equal to prefill's K/V at its position (eviction), or may be new (merging)."""

    heads_differ: ClassVar[bool] = False
    """Whether it gives the heads of a layer unlike numbers of slots. Of its own doing: what it wraps says so itself."""
    layers_differ: ClassVar[bool] = False
    """Whether it gives layers unlike numbers of slots, of its own doing."""
    heads_agree: ClassVar[bool] = False
    """Whether all heads of a layer keep the same tokens: what lets them share one choice while answering."""
    keeps_whole_blocks: ClassVar[bool] = False
    """Whether what it keeps are whole blocks of neighbouring tokens, the same in all heads of a layer."""

    form: ClassVar[Form | None] = None
    """What the engine stores slots in once `compress` has chosen them; None where a form's own part in the name decides.

    A policy that has one is stored in it alone, and may choose widths (`LayerCache.widths`) that it reads."""
    spends_bytes: ClassVar[bool] = False
    """Whether it is given bytes (`Budget.num_bytes_H`), and decides itself how many slots of which widths they hold."""

    compresses_stacks: ClassVar[bool] = False
    """Whether `compress` accepts a stack: neighbouring layers passed as one layer that has the heads of all of them.

    It must then treat every head by itself, or go layer by layer with `Evidence.by_layer`, and is called once a stack."""

    @property
    def budget_is_outcome(self) -> bool:
        """Whether the number of kept slots follows from the prompt instead of the budget."""
        return False

    @property
    def adds_log_mass(self) -> bool:
        """Whether `compress` may return log masses, which take 4 bytes a slot: a budget of bytes counts them."""
        return False

    @property
    def parts(self) -> tuple[Policy, ...]:
        """This policy, after what it wraps: all whose versions and code its results depend on."""
        return (self,)

    @property
    def given_name(self) -> str | None:
        """What users call this instance, where it is not its class's name; None, as of every policy but an adapted one."""
        return None

    @property
    def code_version(self) -> str:
        """What its results depend on beside `version` and its class's own file, for identities; "" where nothing."""
        return ""

    def needs(self) -> frozenset[Need]:
        """Evidence that `compress` and `allocate` read. Pure; may depend on the parameters."""
        return frozenset()

    def needs_at(self, shape: CacheShape, budget: BudgetSpec | None) -> frozenset[Need]:
        """Evidence beside `needs`, on a cache of ``shape`` at ``budget``. Pure; asked of every part by itself."""
        return frozenset()

    def budget_refusal(self, budget: AskedBudget | None) -> str | None:
        """Why it takes no budget of this kind, or not none, whatever the prompt: the end of a sentence; None if it does.

        Asked once, of the part that chooses slots, when a variant is made.
        """
        if self.spends_bytes and not isinstance(budget, BytesShare | BytesLike):
            got = "none" if budget is None else f"{budget}, which counts slots"
            return f"gives slots unlike widths and needs a budget in bytes, such as `budget: {{bytes: 0.25}}`; got {got}"
        if budget is None and not self.budget_is_outcome:
            return "needs a budget, such as `budget: 0.5`"
        return None

    def check(self, shape: CacheShape, budget: BudgetSpec) -> None:  # noqa: B027 - most policies need no check
        """Raise `BudgetError` when this policy cannot work at ``budget`` on a cache of ``shape``; changes nothing."""

    def keep_all(self, layer: LayerCache, evidence: Evidence) -> LayerCache:
        """All of ``layer``, where nothing of the prompt is compressed, with whatever a decode rule starts from."""
        return layer

    def needs_to_keep_all(self) -> frozenset[Need]:
        """Evidence that `keep_all` reads."""
        return frozenset()

    def check_answering(self, num_tokens: int, num_slots: int) -> None:  # noqa: B027 - as `check`
        """Raise `BudgetError` where rows that begin with ``num_tokens`` slots cannot be held to ``num_slots`` per head.

        Asked where nothing of the prompt is compressed, of a policy with a decode rule.
        """

    def caution(self, shape: CacheShape, budget: BudgetSpec) -> str | None:
        """What a user should know of ``budget`` on a cache of ``shape``, though it can be run; None, as here: nothing."""
        return None

    def allocate(self, budget_L: Sequence[Budget], evidence_L: Sequence[Evidence]) -> Sequence[Budget]:
        """Move slots between layers: takes the even budget of every layer, returns each layer's own.

        Not called for ``like`` budgets, which are per layer and head already.
        """
        return budget_L

    def stack_key(self, evidence: Evidence, budget: Budget) -> Hashable:
        """A value that is equal for neighbouring layers which may be compressed as one stack.

        Asked only where `compresses_stacks`.
        """
        # A stack has its first layer's `asked_ratio` and `layer_index`: a policy that reads them must put them into the key.
        return budget

    def decode_rule(self, prompt_seed: int) -> AnswerRule | None:
        """The rule that this policy's rows follow while they answer; None, as here, when nothing changes after `compress`.

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
    """What ``policy.needs()`` gives, checked, so that one policy's mistake does not cost others their evidence.

    Raises:
        PolicyError: it is no set of `Need`.
        Exception: whatever ``needs`` raises.
    """
    # A user's class may return anything; typed as declared, mypy would call the checks below unreachable.
    needs: object = policy.needs()
    example = 'frozenset({Need("window_attention", (64,))})'
    if not isinstance(needs, Set):
        raise PolicyError(
            f"{type(policy).__name__}.needs() must give a set of Need, as {example}, got {needs!r}"
        )
    for need in needs:
        # A plain tuple equals a Need and hashes alike, and would fail only inside prefill, for want of a name.
        if not (isinstance(need, Need) and isinstance(need.name, str) and isinstance(need.params, tuple)):
            raise PolicyError(
                f"{type(policy).__name__}.needs() must give a set of Need, each a name and a tuple of parameters, as "
                f"{example}, got {need!r} in it"
            )
    return needs
