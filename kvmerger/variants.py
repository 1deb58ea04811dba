"""A variant is a policy, its parameters and a budget, under a label that is unique in its sweep.

A `VariantSpec` is plain data: it can be hashed, pickled, stored and compared without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmerger.budget import (
    BudgetSpec,
    KeptRatio,
    LikeVariant,
    SlotCount,
    kept_ratio_from_compression_ratio,
    parse_budget,
)
from kvmerger.merging.protected import threshold_label
from kvmerger.names import VariantError, nearest

FULL = "full"
NO_CONTEXT = "no_context"
FULL_AA = "full_aa"
REFERENCE_LABELS = (FULL, NO_CONTEXT, FULL_AA)
"""Rows every run has: the whole cache, the tail alone, and the whole cache once more in another row bucket."""

ALIASES = {
    "no_press": FULL,
    "full_cache": FULL,
    "baseline": FULL,
    "none": FULL,
    # What acts during decoding follows what compresses the prompt; by its own name it follows its own method.
    "cam": "streaming_llm+cam",
    "h2o_decode": "h2o+h2o_decode",
    "streaming_llm_decode": "streaming_llm+streaming_llm_decode",
    "tova_decode": "tova+tova_decode",
}
_KVPRESS_ADAKV = "adakv_"
"""kvpress writes ``adakv_snapkv`` where parts are joined here: ``snapkv+adakv``."""
_RATIO_HELP = (
    "a bare `ratio` is the fraction kept in some tools and the fraction removed in others; "
    "write `budget: 0.5` (fraction kept) or `compression_ratio: 0.5` (fraction removed)"
)


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One policy at one budget. ``params`` are (name, value) pairs sorted by name; values are hashable."""

    label: str
    policy: str
    params: tuple[tuple[str, Any], ...] = ()
    budget: BudgetSpec | None = None

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
            case LikeVariant(label=label):
                budget = {"like": others[label].canonical(others) if others and label in others else label}
        return {"policy": self.policy, "params": dict(self.params), "budget": budget}


def parse_policy_entry(entry: str | Mapping[str, Any]) -> list[VariantSpec]:
    """Read one entry of a sweep's ``policies`` list; a list of budgets gives one variant each.

    ``"full"``, ``{name: snapkv, budget: 0.5, window_size: 32}``, ``{name: knorm, compression_ratio: [0.5, 0.65]}``,
    ``{name: my_package.my_module:MyPolicy, budget: {like: kvmerger@0.5}, label: mine}``.

    Raises:
        VariantError: unknown shape, both kinds of budget, or a bare ``ratio``.
        BudgetError: a budget that cannot be read.
    """
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise VariantError(f"a policy entry is a name or a mapping with `name`, got {entry!r}")
    if not all(isinstance(key, str) for key in entry):
        raise VariantError(f"policy {entry['name']!r}: keys are words, got {dict(entry)!r}")
    params = {key: _frozen(value) for key, value in entry.items() if key not in _RESERVED_KEYS}
    if "ratio" in params:
        raise VariantError(f"policy {entry['name']!r}: {_RATIO_HELP}")
    name = _canonical_name(entry["name"])
    budgets = _budgets(entry)
    # By name, not by label: `baseline` and its like have become `full` above.
    if name in REFERENCE_LABELS:
        if budgets or params:
            raise VariantError(
                f"`{name}` is a reference row and takes no budget and no parameters, got {dict(entry)!r}"
            )
        return [VariantSpec(name, name)]
    if not budgets:
        _refuse_misspelt(name, params)
        raise VariantError(f"policy {name!r} needs a budget, such as `budget: 0.5`; got {dict(entry)!r}")
    # Sorted: the order in which parameters were written is no part of what a variant is.
    pairs = tuple(sorted(params.items()))
    return [VariantSpec(_label(entry, name, params, budget), name, pairs, budget) for budget in budgets]


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
    # After the labels are known to be unique: of two alike, this keeps the later one only.
    by_label = {spec.label: spec for spec in specs}
    for spec in specs:
        _check_like(spec, by_label)
    return specs


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


def _budgets(entry: Mapping[str, Any]) -> list[BudgetSpec]:
    if "budget" in entry and "compression_ratio" in entry:
        raise VariantError(
            f"policy {entry['name']!r} has both `budget` (kept) and `compression_ratio` (removed); keep one"
        )
    if "compression_ratio" in entry:
        return [kept_ratio_from_compression_ratio(value) for value in _as_list(entry["compression_ratio"])]
    return [parse_budget(value) for value in _as_list(entry.get("budget", []))]


def _canonical_name(name: str) -> str:
    """One spelling for what has several, so that the same computation has one identity."""
    if name.startswith(_KVPRESS_ADAKV):
        return f"{name.removeprefix(_KVPRESS_ADAKV)}+adakv"
    return ALIASES.get(name, name)


def _as_list(value: Any) -> list[Any]:
    # A list alone means several: `{like: label}` is one budget, and so is a number.
    return value if isinstance(value, list) else [value]


def _frozen(value: Any) -> Any:
    # YAML gives lists, and a spec is hashed: policies therefore take their lists as tuples.
    return tuple(_frozen(element) for element in value) if isinstance(value, list) else value


def _label(entry: Mapping[str, Any], name: str, params: Mapping[str, Any], budget: BudgetSpec) -> str:
    # One label for several budgets could not be unique: each budget is then appended to it.
    if "label" in entry and not any(
        isinstance(entry.get(key), list) for key in ("budget", "compression_ratio")
    ):
        return str(entry["label"])
    own_name = entry["name"] if entry["name"] in ALIASES else name.rpartition(":")[2]
    base = str(entry.get("label", own_name))
    return f"{base}{threshold_label(name, params, budget) or f'@{budget}'}"


def _check_like(spec: VariantSpec, by_label: Mapping[str, VariantSpec]) -> None:
    """Raise `VariantError` unless ``like``, followed from variant to variant, ends at a budget or at the full cache."""
    followed = [spec.label]
    while isinstance(spec.budget, LikeVariant):
        wanted = spec.budget.label
        if wanted == FULL:
            return
        if wanted not in by_label or wanted in REFERENCE_LABELS:
            hint = _hint_for_like(spec.budget, by_label)
            raise VariantError(
                f"{spec.label!r} has a budget like {wanted!r}, which no policy is labelled{hint}"
            )
        if wanted in followed:
            raise VariantError(f"budgets are like each other in a circle: {' → '.join([*followed, wanted])}")
        followed.append(wanted)
        spec = by_label[wanted]


def _hint_for_like(budget: LikeVariant, by_label: Mapping[str, VariantSpec]) -> str:
    """The label that may be meant, and the entry that would give the wanted one."""
    # A label made of the wanted one resembles it most, and is what asks for it.
    others = [
        label
        for label, spec in by_label.items()
        if spec.budget != budget and label not in (FULL_AA, NO_CONTEXT)
    ]
    name, has_budget, number = budget.label.rpartition("@")
    entry = f"{{name: {name}, budget: {number}}}"
    is_policy = bool(has_budget) and _is_budget(number) and _is_known(name)
    add = f"; add {entry} to the policies, or name a label that is there" if is_policy else ""
    return f"{nearest(budget.label, others)}{add}"


def _is_budget(text: str) -> bool:
    """Whether a label's text after the @ is that of a fraction or of slots."""
    try:
        return str(parse_budget(float(text) if "." in text else int(text))) == text
    except ValueError:
        return False


def _is_known(name: str) -> bool:
    # Brings torch into a module that does without: only an error that ends the sweep may come by here.
    from kvmerger.policies import registry

    first, *wrappers = _canonical_name(name).split("+")
    return first in registry.names() and set(wrappers) <= set(registry.wrapper_names())
