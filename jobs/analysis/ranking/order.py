"""Variants in the order of one of their numbers, best first. Reference rows stay where they are, before all others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

from jobs.analysis.summary import MacroMean
from jobs.analysis.variant_summary import VariantSummary, mean_of
from kvmerger.variants import REFERENCE_LABELS

Line: TypeAlias = VariantSummary | MacroMean
AnyLine = TypeVar("AnyLine", VariantSummary, MacroMean)

AS_CONFIGURED = "configured"
BY_DEFAULT = "nll"


def _mean(line: Line, name: str) -> float | None:
    # On one task a number has an interval around it, over tasks it has none.
    value = getattr(line, name)
    return value if value is None or isinstance(value, float) else mean_of(value)


def _number(name: str, is_higher_better: bool = False) -> Callable[[Line], float | None]:
    def read(line: Line) -> float | None:
        value = _mean(line, name)
        return -value if is_higher_better and value is not None else value

    return read


COLUMNS: Mapping[str, Callable[[Line], float | None]] = {
    BY_DEFAULT: _number("answer_nll"),
    "recovered": _number("nll_recovered", is_higher_better=True),
    "kl": _number("kl"),
    "top1": _number("top1_agreement", is_higher_better=True),
    "score": _number("score", is_higher_better=True),
    "bytes": lambda line: line.storage.held_share,
    "slots": _number("kept_ratio"),
}
"""Column → what is least for the best of it."""
SORTS = (*COLUMNS, AS_CONFIGURED)


def in_order(lines: Sequence[AnyLine], column: str) -> list[AnyLine]:
    """The lines by a column of `SORTS`, best first; those without the number last, and equal ones as they came."""
    references = [it for it in lines if it.label in REFERENCE_LABELS]
    others = [it for it in lines if it.label not in REFERENCE_LABELS]
    if column != AS_CONFIGURED:
        read = COLUMNS[column]
        others.sort(key=lambda it: ((value := read(it)) is None, value or 0.0))
    return references + others
