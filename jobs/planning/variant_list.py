"""All variants of a sweep by label: the reference rows first, then the wanted ones in the order of the settings.

No two of them are the same computation, and no chain of `like` budgets is a circle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvmerger.budget import LikeVariant, label_referred_to
from kvmerger.names import VariantError
from kvmerger.variants import REFERENCE_LABELS, VariantSpec


@dataclass(frozen=True, slots=True)
class VariantList:
    """Specs by label, in order. Make it with `of`."""

    specs: Mapping[str, VariantSpec]

    @classmethod
    def of(cls, wanted: Sequence[VariantSpec]) -> VariantList:
        """Add the reference rows to the wanted variants.

        Raises:
            VariantError: two labels mean the same computation.
        """
        specs = {label: VariantSpec(label, label) for label in REFERENCE_LABELS}
        # `full` may be listed among the wanted: a dict keeps the place of the reference row.
        specs.update({spec.label: spec for spec in wanted})
        variants = cls(specs)
        variants._check_distinct()
        return variants

    def chain(self, label: str) -> tuple[str, ...]:
        """`label` and the labels that its budget, theirs and so on refer to, one after the other."""
        # This ends, since `parse_policies` has refused circles.
        labels = [label]
        while (like := label_referred_to(self.specs[labels[-1]].budget)) is not None:
            labels.append(like)
        return tuple(labels)

    def end_of_slots(self, label: str) -> VariantSpec:
        """The variant whose own budget decides how many slots `label` gets, itself where that is one of bytes."""
        spec = self.specs[label]
        while isinstance(spec.budget, LikeVariant):
            spec = self.specs[spec.budget.label]
        return spec

    def canonical(self, label: str) -> dict[str, Any]:
        """What the variant is, without its label."""
        return self.specs[label].canonical(self.specs)

    def needed_for(self, labels: Iterable[str]) -> tuple[VariantSpec, ...]:
        """The variants that must run so that `labels` get their rows: themselves and those their budgets refer to.

        Reference rows are left out, since the engine always makes them.
        """
        # With their `like` targets, even if those are done: how many slots they keep is known only by running them.
        needed = set(labels)
        waiting = list(needed)
        while waiting:
            like = label_referred_to(self.specs[waiting.pop()].budget)
            if like is not None and like not in needed:
                needed.add(like)
                waiting.append(like)
        return tuple(
            it for label, it in self.specs.items() if label in needed and label not in REFERENCE_LABELS
        )

    def _check_distinct(self) -> None:
        label_of: dict[str, str] = {}
        for label in self.specs:
            key = json.dumps(self.canonical(label), sort_keys=True)
            if key in label_of:
                both = f"{label_of[key]!r} and {label!r}"
                raise VariantError(f"{both} are the same policy, parameters and budget; drop one")
            label_of[key] = label
