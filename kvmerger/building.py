"""Making a policy from its name and parameters: ``snapkv``, ``my_module:MyPolicy``, or parts joined by ``+``.

The first part is a policy; every further one wraps what stands to its left: ``snapkv+adakv`` ranks tokens as SnapKV does
and lets AdaKV share the budget out among heads. Each call makes a fresh instance, so no policy carries state from one item
to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmerger.budget import BudgetSpec
from kvmerger.names import VariantError, nearest
from kvmerger.policies import registry
from kvmerger.policies.base import Policy, PolicyError
from kvmerger.variants import VariantSpec


@dataclass(frozen=True, slots=True)
class Variant:
    """What the engine runs: a policy instance, the budget it gets, and the label of its rows."""

    label: str
    policy: Policy
    budget: BudgetSpec | None


def build_variant(spec: VariantSpec) -> Variant:
    """Make the policy a spec names.

    Raises:
        VariantError: unknown policy or parameter, with the nearest name there is, or values the policy cannot take.
        PolicyError: values the policy itself refuses.
    """
    return Variant(spec.label, build(spec.policy, dict(spec.params)), spec.budget)


def build(name: str, params: Mapping[str, Any]) -> Policy:
    """Make the policy ``name`` with ``params``; a parameter that two parts have is written ``part.param``.

    Raises:
        VariantError: an unknown part or parameter, with the nearest name there is, or values the part cannot take.
        PolicyError: values or a combination that the parts themselves refuse.
    """
    parts = name.split("+")
    classes = [registry.get(parts[0]), *(registry.get_wrapper(part) for part in parts[1:])]
    known = [[field.name for field in registry.parameters_of(part_class)] for part_class in classes]
    values = _routed(name, params, known)
    policy: Policy | None = None
    for part, part_class, own in zip(parts, classes, values, strict=True):
        inner = {} if policy is None else {registry.INNER: policy}
        try:
            policy = part_class(**inner, **own)
        # A ValueError itself: caught below, it would be wrapped in words that say less.
        except PolicyError:
            raise
        except (TypeError, ValueError) as error:
            raise VariantError(f"{part} cannot be made with {own}: {error}") from error
    assert policy is not None, "a name has at least one part"
    return policy


def _routed(name: str, params: Mapping[str, Any], known: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Each part's own parameters, in the order of the parts."""
    parts = name.split("+")
    own: list[dict[str, Any]] = [{} for _ in parts]
    for key, value in params.items():
        # From the right: `my.module:MyPolicy.alpha` has dots in its part.
        part, has_part, bare = key.rpartition(".")
        takers = [
            index
            for index, names in enumerate(known)
            if bare in names and (not has_part or parts[index] == part)
        ]
        if not takers:
            everything = [parameter for names in known for parameter in names]
            raise VariantError(
                f"{name} has no parameter {key!r}{nearest(key, everything)}; it has {everything}"
            )
        if len(takers) > 1:
            choices = " or ".join(repr(f"{parts[index]}.{bare}") for index in takers)
            raise VariantError(f"{name}: more than one part has a parameter {bare!r}; write {choices}")
        own[takers[0]][bare] = value
    return own
