"""Making a policy from its name and parameters: ``snapkv``, ``my_module:MyPolicy``, or parts joined by ``+``.

The first part is a policy; every further one wraps what stands to its left: ``snapkv+adakv`` ranks tokens as SnapKV does
and lets AdaKV share the budget out among heads. A form follows what chooses and merges slots, and what acts while answering
follows the form: ``h2o+keepkv+int4+h2o_decode``. A form alone stores every slot. Each call makes a fresh instance, so no
policy carries state from one item to the next.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmerger.budget import (
    AskedBudget,
    BudgetSpec,
    BytesLike,
    BytesShare,
    LayerBytes,
    SlotCount,
    label_referred_to,
    slots_like,
    slots_of_share,
)
from kvmerger.byte_counts import bytes_like, bytes_of_share
from kvmerger.cache.forms.answers import Answers
from kvmerger.cache.forms.base import Form
from kvmerger.form_names import Split, split_parts, understood
from kvmerger.names import VariantError, nearest
from kvmerger.policies import registry
from kvmerger.policies.adapters import kvpress
from kvmerger.policies.base import CacheShape, Policy, PolicyError
from kvmerger.policies.storage import forms
from kvmerger.policies.storage.stored import Everything
from kvmerger.prefill.evidence import Need
from kvmerger.prefill.massive import MASSIVE
from kvmerger.variants import FULL, VariantSpec


@dataclass(frozen=True, slots=True)
class Variant:
    """What the engine runs: a policy instance, the budget it gets, and the label of its rows.

    ``counts_massive``: its rows count what became of massive tokens (`prefill.massive_counts`), whatever its policy reads.
    """

    label: str
    policy: Policy
    budget: AskedBudget | None
    counts_massive: bool = False

    @property
    def needs_to_count(self) -> frozenset[Need]:
        """Evidence beside its policy's."""
        return frozenset({MASSIVE}) if self.counts_massive else frozenset()


def build_variant(spec: VariantSpec) -> Variant:
    """Make the policy a spec names.

    Raises:
        VariantError: unknown policy or parameter, with the nearest name there is, or values or a kind of budget that it
            cannot take.
        PolicyError: values the policy itself refuses.
    """
    policy = build(spec.policy, dict(spec.params), spec.budget)
    if refusal := policy.parts[0].budget_refusal(spec.budget):
        raise VariantError(f"policy {spec.policy!r} {refusal}")
    return Variant(spec.label, policy, spec.budget)


def build(name: str, params: Mapping[str, Any], budget: AskedBudget | None = None) -> Policy:
    """Make the policy ``name`` with ``params``; a parameter that two parts have is written ``part.param``.

    ``budget`` is what was written with the name, for remedies that name both.

    Raises:
        VariantError: an unknown part or parameter, with the nearest name there is, values the part cannot take, or parts in
            an order that has no meaning.
        PolicyError: values or a combination that the parts themselves refuse.
    """
    split = split_parts([understood(part) for part in name.split("+")])
    is_bare = split.form is not None and split.before in ((), (FULL,))
    parts = [*(() if is_bare else split.before), *((split.form,) if split.form else ()), *split.after]
    _refuse_wrapper_first(split)
    makers, known = zip(*(_maker_of(part, index, split) for index, part in enumerate(parts)), strict=True)
    _refuse_order(split, budget)
    if twice := next((part for part in parts[1:] if parts.count(part) > 1), None):
        raise VariantError(f"{twice!r} stands twice in {'+'.join(parts)!r}; keep one of them")
    policy: Policy | None = Everything() if is_bare else None
    for part, make, own in zip(parts, makers, _routed(parts, params, known), strict=True):
        inner = {} if policy is None else {registry.INNER: policy}
        try:
            policy = make(**inner, **own)
        # ValueErrors themselves: caught below, they would be wrapped in words that say less.
        except (PolicyError, VariantError):
            raise
        except (TypeError, ValueError) as error:
            raise VariantError(f"{part} cannot be made with {own}: {error}") from error
        except Exception as error:
            if ":" not in part:
                raise
            # A user's own `__post_init__` may raise anything.
            raise VariantError(
                f"{part} cannot be made with {own}: {type(error).__name__}: {error}; mend it there"
            ) from error
    assert policy is not None, "a name has at least one part"
    return policy


def form_of(policy: Policy) -> Form | None:
    """What ``policy``'s slots are stored in; None for the model's own dtype."""
    return next((part.form for part in policy.parts if part.form is not None), None)


def is_uneven(policy: Policy) -> bool:
    """Whether ``policy`` may give heads, or layers, unlike numbers of slots."""
    return any(part.heads_differ or part.layers_differ for part in policy.parts)


def sizes_of_form(policy: Policy) -> Answers | None:
    """What says how many bytes ``policy``'s slots take; None for the model's own dtype. Raises `FormError` when asked."""
    return None if (form := form_of(policy)) is None else Answers(form)


def spends_bytes(policy: Policy) -> bool:
    """Whether ``policy`` is given bytes in place of slots."""
    return any(part.spends_bytes for part in policy.parts)


def layer_bytes(policy: Policy, shape: CacheShape) -> LayerBytes:
    """What a layer's slots take as ``policy`` stores them; ``shape`` has its sizes known."""
    assert shape.head_dim is not None and shape.itemsize is not None, "bytes need both sizes"
    return LayerBytes(
        shape.num_kv_heads,
        shape.head_dim,
        shape.itemsize,
        sizes_of_form(policy),
        policy.adds_log_mass,
        is_uneven(policy),
    )


def in_slots(
    budget: AskedBudget, policy: Policy, shape: CacheShape, bytes_of: Callable[[str], int]
) -> BudgetSpec:
    """``budget`` as ``policy`` is asked about it: one of bytes becomes the number of slots per head that its form leaves, or,
    for a policy that spends bytes, the bytes per head.

    ``bytes_of`` gives the bytes that the variant of a label holds over all layers, positions apart; it is asked for a budget
    that is like another's bytes alone.

    Raises:
        BudgetError: not even one slot per head fits.
        FormError: the form cannot say what slots take.
    """
    if spends_bytes(policy):
        match budget:
            case BytesShare():
                return bytes_of_share(budget, layer_bytes(policy, shape), shape.num_tokens)
            case BytesLike(label=label):
                layer = layer_bytes(policy, shape)
                return bytes_like(bytes_of(label), shape.num_layers, layer, shape.num_tokens)
    match budget:
        case BytesShare():
            return SlotCount(slots_of_share(budget, layer_bytes(policy, shape), shape.num_tokens))
        case BytesLike(label=label):
            layer = layer_bytes(policy, shape)
            return SlotCount(slots_like(budget, bytes_of(label), shape.num_layers, layer, shape.num_tokens))
    return budget


def _maker_of(part: str, index: int, split: Split) -> tuple[Callable[..., Policy], Sequence[str]]:
    """What makes a part of what stands before it and its parameters, and their names."""
    if part == split.form:
        return forms.maker_of(part), forms.parameter_names(part)
    if not index and ":" in part and (press := kvpress.maker_of(part)):
        return press
    part_class = (
        registry.get_wrapper(part) if index else registry.get(part, is_before_form=split.form is not None)
    )
    return part_class, [field.name for field in registry.parameters_of(part_class)]


def _refuse_wrapper_first(split: Split) -> None:
    """Raise `VariantError` where a name begins with what follows a `+`, as kvpress's nested presses do."""
    wrappers = registry.wrapper_names()
    if not split.before or split.before[0] not in wrappers or split.before[0] in registry.names():
        return
    leading = list(itertools.takewhile(wrappers.__contains__, split.before))
    others = split.before[len(leading) :]
    # Nested presses name the outer one first, and here it comes last.
    turned = [*(others[:1] or ("snapkv",)), *reversed(leading), *others[1:]]
    meant = "+".join([*turned, *([split.form] if split.form else []), *split.after])
    or_another = "" if others else " or another policy"
    raise VariantError(
        f"{leading[0]!r} stands behind the policy that it changes; write {meant!r}{or_another}"
    )


def _refuse_order(split: Split, budget: AskedBudget | None = None) -> None:
    """Raise `VariantError` where a form stands before what merges or behind what acts while answering."""
    if split.form is None:
        _refuse_changes(split)
        return
    # Of wrappers alone: a user's policy may act in the class that chooses slots, and then has no other place.
    early = [part for part in split.before[1:] if _acts(part)]
    late = [part for part in split.after if not _acts(part)]
    if early or late:
        chosen = [part for part in split.before if part not in early] + late
        acting = early + [part for part in split.after if part not in late]
        given = "+".join([*split.before, split.form, *split.after])
        raise VariantError(
            f"{given!r}: a form stores what is left once slots are chosen and merged, and what acts while answering follows "
            f"it; write {_with_budget(chosen, [split.form, *acting], budget)!r}"
        )


def _with_budget(chosen: Sequence[str], others: Sequence[str], budget: AskedBudget | None) -> str:
    """Parts as one name, the budget where it is read: behind what chooses slots, or at the end where it is a label."""
    tail = "" if budget is None else f"@{budget}"
    if label_referred_to(budget) is not None:
        return "+".join([*chosen, *others]) + tail
    return "+".join(["+".join(chosen) + tail, *others])


def _refuse_changes(split: Split) -> None:
    """Raise `VariantError` where something would change slots of a policy that has chosen their widths already."""
    first, *wrappers = split.before
    changing = [part for part in wrappers if not _acts(part)]
    if changing and ":" not in first and registry.get(first).spends_bytes:
        raise VariantError(
            f"{'+'.join(split.before)!r}: {first!r} gives every slot a width of its own and stores it so; {changing[0]!r} "
            f"would change which slots there are, or what is in them; for its ranking alone put a form behind, as in "
            f"{'+'.join([first, *changing, 'int4'])!r}"
        )


def _acts(wrapper: str) -> bool:
    return registry.get_wrapper(wrapper).decode_rule is not Policy.decode_rule


def _routed(
    parts: Sequence[str], params: Mapping[str, Any], known: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Each part's own parameters, in the order of the parts."""
    name = "+".join(parts)
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
