"""Which variant of some results a person means. All names that tables, pages and MLflow print are understood."""

from __future__ import annotations

import re
from collections.abc import Iterable

from jobs.analysis.variant_summary import without_setup
from kvmerger.budget import BudgetError
from kvmerger.names import VariantError, folded, nearest
from kvmerger.variant_names import read_name, spelling
from kvmerger.variants import FULL, FULL_AA, NO_CONTEXT

REFERENCE_WORDS = {
    FULL: "full cache",
    FULL_AA: "full again (A/A noise)",
    NO_CONTEXT: "no context (tail alone)",
}
"""What tables call the reference rows."""
# What tables add behind a label: what a policy kept that decides it by itself, and where it did nothing.
_ADDED = re.compile(r" \((?:[\d.]+ ?% kept|degenerate[^)]*)\)")
_MAX_NAMED = 6


class LabelError(ValueError):
    """A name that means none of the variants there are, or several."""


def label_meant(name: str, labels: Iterable[str]) -> str:
    """The one of `labels` that `name` means.

    That is the label itself, a name as tables print it, another spelling of it (`SnapKV@0.50`, parts in another order), or
    the policy alone where one variant has it.

    Raises:
        LabelError: none, with the nearest there is, or several, with those.
    """
    known = list(dict.fromkeys(labels))
    for meaning in (_exact, _as_printed, _spelt, _bare, _folded):
        found = [label for label in known if meaning(name, label)]
        if len(found) == 1:
            return found[0]
        if found:
            raise LabelError(
                f"{name!r} is the name of {len(found)} variants, {_named(found)}; name one of them"
            )
    raise LabelError(f"there is no variant {name!r}{nearest(name, known)}; there is {_named(known)}")


def _named(labels: list[str]) -> str:
    shown = ", ".join(map(repr, labels[:_MAX_NAMED]))
    return f"{shown} and {len(labels) - _MAX_NAMED} more" if len(labels) > _MAX_NAMED else shown


def _exact(name: str, label: str) -> bool:
    return name == label


def _as_printed(name: str, label: str) -> bool:
    bare = _ADDED.sub("", name)
    return name == REFERENCE_WORDS.get(label) or (bare != name and bare in (label, without_setup(label)))


def _spelt(name: str, label: str) -> bool:
    return spelling(_ADDED.sub("", name)) == spelling(label)


def _bare(name: str, label: str) -> bool:
    """Whether the name, which has no budget, is that of the label's policy, form and all."""
    return spelling(name) == _without_budget(label)


def _without_budget(label: str) -> str:
    try:
        written = read_name(without_setup(label))
    except (VariantError, BudgetError):
        return label
    return spelling(written.policy)


def _folded(name: str, label: str) -> bool:
    return folded(_ADDED.sub("", name)) in (folded(label), folded(_without_budget(label)))
