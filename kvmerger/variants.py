"""A variant is a policy, its parameters and a budget, under a label that is unique in its sweep.

A `VariantSpec` is plain data: it can be hashed, pickled, stored and compared without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvmerger import variant_names
from kvmerger.budget import (
    AskedBudget,
    BytesLike,
    BytesShare,
    KeptRatio,
    LikeVariant,
    SlotCount,
    label_referred_to,
)
from kvmerger.budget_text import kept_ratio_from_compression_ratio, parse_budget
from kvmerger.form_names import ALL_NAMES as FORM_NAMES
from kvmerger.form_names import is_form
from kvmerger.names import VariantError, nearest
from kvmerger.nested import frozen, names_in
from kvmerger.variant_names import WrittenName, protecting_massive, read_name, spelling

FULL = variant_names.FULL
NO_CONTEXT = "no_context"
FULL_AA = "full_aa"
REFERENCE_LABELS = (FULL, NO_CONTEXT, FULL_AA)
"""Rows every run has: the whole cache, the tail alone, and the whole cache once more in another row bucket."""

_RATIO_HELP = (
    "a bare `ratio` is the fraction kept in some tools and the fraction removed in others; "
    "write `budget: 0.5` (fraction kept) or `compression_ratio: 0.5` (fraction removed)"
)


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One policy at one budget. ``params`` are (name, value) pairs sorted by name; values are hashable, lists are tuples.

    ``policy`` has all parts joined by ``+``, the form too: ``keydiff+keepkv+kivi4``. No budget: every slot is
    kept, or as many as the prompt asks for (`variant_names.OUTCOMES`).
    """

    label: str
    policy: str
    params: tuple[tuple[str, Any], ...] = ()
    budget: AskedBudget | None = None

    @property
    def paths(self) -> frozenset[str]:
        """Every ``module:Class`` of the policy's parts, and every name in its parameters: nested presses'."""
        parts = {part for part in self.policy.split("+") if ":" in part}
        return frozenset(parts | set(names_in(tuple(value for _, value in self.params))))

    def canonical(self, others: Mapping[str, VariantSpec] | None = None) -> dict[str, Any]:
        """What the variant *is*, as JSON-able data without its label.

        A ``like`` budget is spelt out as the variant it refers to when ``others`` (label → spec) has it, so that
        renaming that variant changes no identity and changing it does.
        """
        budget: Any = None
        match self.budget:
            case KeptRatio(ratio=ratio):
                budget = {"kept_ratio": ratio}
            case SlotCount(num_slots=num_slots):
                budget = {"slots": num_slots}
            case BytesShare(ratio=ratio):
                budget = {"bytes": ratio}
            case LikeVariant(label=label) | BytesLike(label=label):
                like = {"like": others[label].canonical(others) if others and label in others else label}
                budget = {"bytes": like} if isinstance(self.budget, BytesLike) else like
        return {"policy": self.policy, "params": dict(self.params), "budget": budget}


def parse_policy_entry(entry: str | Mapping[str, Any]) -> list[VariantSpec]:
    """Read one entry of a sweep's ``policies`` list; a list of budgets gives one variant each.

    ``"full"``, ``"snapkv@0.5+fp8"``, ``{name: snapkv, budget: 0.5, window_size: 32}``, ``{name: kivi4, group_size: 64}``,
    ``{name: knorm+int4, compression_ratio: [0.5, 0.65]}``, ``{name: snapkv+int4, budget: {bytes: 0.2}}``,
    ``{name: my_package.my_module:MyPolicy, budget: {like: kvmerger@0.5}, label: mine}``,
    ``{name: snapkv, budget: 0.5, protect_massive: true}``, which is ``snapkv+protect_massive@0.5``.

    Raises:
        VariantError: unknown shape, both kinds of budget, a bare ``ratio``, or a form that there is not.
        BudgetError: a budget that cannot be read.
    """
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise VariantError(f"a policy entry is a name or a mapping with `name`, got {entry!r}")
    if not all(isinstance(key, str) for key in entry):
        raise VariantError(f"policy {entry['name']!r}: keys are words, got {dict(entry)!r}")
    params = {key: frozen(value) for key, value in entry.items() if key not in _RESERVED_KEYS}
    if "ratio" in params:
        raise VariantError(f"policy {entry['name']!r}: {_RATIO_HELP}")
    written = read_name(entry["name"])
    budgets = _budgets(entry, written)
    # By name, not by label: `baseline` and its like have become `full` above.
    if written.policy in REFERENCE_LABELS:
        if budgets or params:
            raise VariantError(
                f"`{written.policy}` is a reference row and takes no budget and no parameters, got {dict(entry)!r}"
            )
        return [VariantSpec(written.policy, written.policy)]
    if not written.is_bare:
        written, params = protecting_massive(written, params)
    # Sorted: the order in which parameters were written is no part of what a variant is.
    pairs = tuple(sorted(params.items()))
    if written.is_bare:
        _refuse_budget(written, budgets)
        return [VariantSpec(str(entry.get("label", written.label(params, None))), written.policy, pairs)]
    if not budgets:
        # Whether a user's policy takes none is known once it is imported (`building.build_variant`).
        if written.is_outcome or ":" in written.split.before[0]:
            return [VariantSpec(str(entry.get("label", written.label(params, None))), written.policy, pairs)]
        _refuse_misspelt(written.policy, params)
        asked = f"`{written.shown}@0.5`" if list(entry) == ["name"] else f"`budget: 0.5`; got {dict(entry)!r}"
        raise VariantError(
            f"policy {written.policy!r}{nearest(written.policy, FORM_NAMES, _LIKELY)} needs a budget, such as {asked}"
        )
    return [
        VariantSpec(_label(entry, written, params, budget), written.policy, pairs, budget)
        for budget in budgets
    ]


def parse_policies(entries: Sequence[str | Mapping[str, Any]]) -> list[VariantSpec]:
    """Read a whole ``policies`` list and check that labels are unique and ``like`` refers to one of them."""
    specs = [spec for entry in entries for spec in parse_policy_entry(entry)]
    labels = [spec.label for spec in specs]
    for spec in specs:
        if spec.label in REFERENCE_LABELS and spec.policy != spec.label:
            raise VariantError(
                f"the label {spec.label!r} is a reference row's; give {spec.policy!r} another one"
            )
    for label in labels:
        if labels.count(label) > 1:
            raise VariantError(
                f"two policies have the label {label!r}; give one of them its own with `label: …`"
            )
    specs = _with_known_labels(specs)
    # After the labels are known to be unique: of two alike, this keeps the later one only.
    by_label = {spec.label: spec for spec in specs}
    for spec in specs:
        _check_like(spec, by_label)
    return specs


_LIKELY = 0.8  # so close that a form is meant, which would need no budget
_RESERVED_KEYS = ("budget", "compression_ratio", "label", "name")


def _refuse_misspelt(name: str, params: Mapping[str, Any]) -> None:
    """Raise `VariantError` for a key that resembles one read here, in an entry without a budget.

    Other unknown keys may be parameters of the policy, which cannot be asked before it is built.
    """
    for key in params:
        if near := nearest(key, _RESERVED_KEYS):
            raise VariantError(
                f"policy {name!r}: unknown key {key!r}{near}; it needs a budget, such as `budget: 0.5`"
            )


def _refuse_budget(written: WrittenName, budgets: Sequence[AskedBudget]) -> None:
    if budgets:
        raise VariantError(
            f"{written.policy!r} has no policy before its form: it keeps every slot and takes no budget, got {budgets[0]}; "
            f"put one in front, such as snapkv@{budgets[0]}+{written.split.form}"
        )


def _budgets(entry: Mapping[str, Any], written: WrittenName) -> list[AskedBudget]:
    if "budget" in entry and "compression_ratio" in entry:
        raise VariantError(
            f"policy {entry['name']!r} has both `budget` (kept) and `compression_ratio` (removed); keep one"
        )
    if written.budget is not None:
        for key in ("budget", "compression_ratio"):
            if key in entry:
                raise VariantError(
                    f"policy {entry['name']!r} has a budget in its name and `{key}: {entry[key]}`; keep one"
                )
        return [written.budget]
    if "compression_ratio" in entry:
        return [kept_ratio_from_compression_ratio(value) for value in _as_list(entry["compression_ratio"])]
    return [parse_budget(value) for value in _as_list(entry.get("budget", []))]


def _as_list(value: Any) -> list[Any]:
    # A list alone means several: `{like: label}` is one budget, and so is a number.
    return value if isinstance(value, list) else [value]


def _label(
    entry: Mapping[str, Any], written: WrittenName, params: Mapping[str, Any], budget: AskedBudget
) -> str:
    if "label" not in entry:
        return written.label(params, budget)
    # One label for several budgets could not be unique: each budget is then appended to it.
    is_of_several = any(isinstance(entry.get(key), list) for key in ("budget", "compression_ratio"))
    return f"{entry['label']}{written.budget_shown(params, budget) if is_of_several else ''}"


def _with_known_labels(specs: Sequence[VariantSpec]) -> list[VariantSpec]:
    """The specs, each with the label that its budget refers to as that variant spells it."""
    labels = {FULL, *(spec.label for spec in specs)}
    by_spelling = {spelling(label): label for label in labels}

    def known(spec: VariantSpec) -> VariantSpec:
        wanted = label_referred_to(spec.budget)
        # As it is first: a label of the user's own may read like another spelling of a name.
        if wanted is None or wanted in labels or spelling(wanted) not in by_spelling:
            return spec
        budget = BytesLike if isinstance(spec.budget, BytesLike) else LikeVariant
        return replace(spec, budget=budget(by_spelling[spelling(wanted)]))

    return [known(spec) for spec in specs]


def _check_like(spec: VariantSpec, by_label: Mapping[str, VariantSpec]) -> None:
    """Raise `VariantError` unless ``like``, followed from variant to variant, ends at a budget or at the full cache."""
    followed = [spec.label]
    while (wanted := label_referred_to(spec.budget)) is not None:
        if wanted == FULL:
            return
        if wanted not in by_label or wanted in REFERENCE_LABELS:
            hint = _hint_for_like(spec, wanted, by_label)
            raise VariantError(
                f"{spec.label!r} has a budget like {wanted!r}, which no policy is labelled{hint}"
            )
        if wanted in followed:
            raise VariantError(f"budgets are like each other in a circle: {' → '.join([*followed, wanted])}")
        followed.append(wanted)
        spec = by_label[wanted]


def _hint_for_like(spec: VariantSpec, wanted: str, by_label: Mapping[str, VariantSpec]) -> str:
    """The label that may be meant, and the entry that would give the wanted one."""
    # A label made of the wanted one resembles it most, and is what asks for it.
    others = [
        label
        for label, other in by_label.items()
        if other.budget != spec.budget and label not in (FULL_AA, NO_CONTEXT)
    ]
    entry = _entry_of(wanted)
    add = f"; add {entry} to the policies, or name a label that is there" if entry else ""
    return f"{nearest(wanted, others)}{add}"


def _entry_of(label: str) -> str:
    """The entry that gives a variant of this label, as YAML; "" where there is none."""
    try:
        written = read_name(label)
    except ValueError:
        return ""
    if not _is_known(written):
        return ""
    match written.budget:
        case None:
            return label if written.is_bare or written.is_outcome else ""
        case KeptRatio() | SlotCount():
            return f"{{name: {written.policy}, budget: {written.budget}}}"
        case BytesShare(ratio=ratio):
            return f"{{name: {written.policy}, budget: {{bytes: {ratio}}}}}"
    return ""


def _is_known(written: WrittenName) -> bool:
    # Brings torch into a module that does without: only an error that ends the sweep may come by here.
    from kvmerger.policies import registry

    first, *wrappers = written.policy.split("+")
    is_first_known = first in {FULL, *registry.names()} or is_form(first, is_first=True)
    return is_first_known and set(wrappers) <= {*registry.wrapper_names(), *FORM_NAMES}
