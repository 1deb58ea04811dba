"""Tests of whether a paired difference could be chance, and Holm's correction for many of them.

Values are a - b on the same items. If only chance tells a from b, the sign of each cluster's sum is a fair coin: that is the
sign-flip test, and McNemar's is the same for single items that are right or wrong. Clusters are the units, never items.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from evaluators.statistics.intervals import FloatArray, StatisticsError, checked, group

ALPHA = 0.05  # two-sided, after Holm's correction
NUM_SIGN_FLIPS = 9_999
_SIGN_SEED = 20_241  # fixed: the same rows always print the same p
_MAX_DRAWN_SIGNS = 1_000_000  # signs at a time: 20 bytes of each are held
_TIE_DECIMALS = 12  # equal totals differ by rounding, and a tie counts against the difference

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class PairedTest:
    """A two-sided p-value. `method` is "mcnemar_exact" or "cluster_sign_flip"."""

    p_value: float
    method: str


@dataclass(frozen=True, slots=True)
class HolmResult:
    """One member of a family: its p adjusted for all of them, and whether it is significant at the family's alpha."""

    p_value: float
    adjusted_p: float
    is_significant: bool


def paired_test(a: Sequence[float], b: Sequence[float], clusters: Sequence[Hashable]) -> PairedTest:
    """Two-sided test that a - b is 0 on average; the three are in the same order.

    Scores of 0 and 1 with one item a cluster: exact McNemar. Its pairs must be independent, so with several items on
    a context, as with scores in between, the signs of whole clusters are flipped instead.
    Raises StatisticsError for nothing, NaN or infinity, or unequal lengths.
    """
    if len(a) != len(b):
        raise StatisticsError(f"{len(a)} values cannot be paired with {len(b)}; keep the items both have.")
    differences = checked(a) - checked(b)
    grouped = group(differences, clusters)
    if is_binary(a) and is_binary(b) and len(grouped.sizes_C) == len(differences):
        num_higher, num_lower = int((differences > 0).sum()), int((differences < 0).sum())
        return PairedTest(mcnemar_p_value(num_higher, num_lower), "mcnemar_exact")
    return PairedTest(sign_flip_p_value(grouped.sums_C), "cluster_sign_flip")


def is_binary(values: Sequence[float]) -> bool:
    """Whether every value is 0 or 1."""
    return all(value in (0, 1) for value in values)


def mcnemar_p_value(num_higher: int, num_lower: int) -> float:
    """Exact two-sided McNemar test: of the pairs that differ, half should go each way. 1 when none differs."""
    if num_higher + num_lower == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(num_higher, num_higher + num_lower).pvalue)


def sign_flip_p_value(sums_C: FloatArray) -> float:
    """Two-sided p of the total of `sums_C`, one sum a cluster, if each cluster's sign were a coin.

    Clusters whose sum is 0 are left out. Up to 13 others: all signs, exact. More: 9,999 seeded draws, the observed signs
    counted as one of them, so p is at least 0.0001.
    """
    sums_C = sums_C[sums_C != 0]
    total = math.fsum(sums_C)  # exact, whatever the order: its sign decides below
    if len(sums_C) < 2 or total == 0:  # any other signs are as far off
        return 1.0
    # Shares of all there is, so that the rounding below does not depend on the unit; signed and sorted, so that the seeded
    # draws meet the same clusters whatever the order of items and whichever side is a.
    shares_C = np.sort(sums_C * np.sign(total) / np.abs(sums_C).sum())
    observed = _distances(shares_C, np.ones((1, len(shares_C))))[0]
    num_as_far, num_tried = 0, 0
    for signs_NC in _signs(len(shares_C)):
        num_as_far += int((_distances(shares_C, signs_NC) >= observed).sum())
        num_tried += len(signs_NC)
    if num_tried == 2 ** len(shares_C):
        return num_as_far / num_tried  # the observed signs are one of all
    return (num_as_far + 1) / (num_tried + 1)


def _signs(num_clusters: int) -> Iterator[FloatArray]:
    """Rows of signs, +1 or -1, some at a time: all there are, or as many seeded draws as there is patience for."""
    if 2**num_clusters <= NUM_SIGN_FLIPS:
        flipped = np.arange(2**num_clusters)[:, None] >> np.arange(num_clusters) & 1
        yield np.where(flipped, -1.0, 1.0)
        return
    # Drawn as scipy's permutation_test would with this seed, a tenth of its time: it permutes pairs of indices.
    rng = np.random.default_rng(_SIGN_SEED)
    at_once = max(1, _MAX_DRAWN_SIGNS // num_clusters)
    for start in range(0, NUM_SIGN_FLIPS, at_once):
        num_rows = min(at_once, NUM_SIGN_FLIPS - start)
        drawn = rng.integers(0, 2**32, size=(num_rows, num_clusters), dtype=np.uint32)
        yield np.where(drawn & 1, 1.0, -1.0)


def _distances(shares_C: FloatArray, signs_NC: FloatArray) -> FloatArray:
    """How far the total of each row of signs lies from 0, with ties made equal."""
    return np.asarray(np.abs(signs_NC @ shares_C).round(_TIE_DECIMALS))


def holm(p_values: Mapping[Key, float], alpha: float = ALPHA) -> dict[Key, HolmResult]:
    """Holm's step-down correction over one family, name → p (Holm 1979); names come back in the same order.

    The chance of any false alarm in the family is at most `alpha`, whatever depends on what.
    Raises StatisticsError for a p outside 0 to 1.
    """
    for name, p_value in p_values.items():
        if not 0 <= p_value <= 1:
            raise StatisticsError(f"p = {p_value} of {name!r} is no probability.")
    adjusted: dict[Key, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda it: p_values[it])):
        # A larger p never gets a smaller adjusted one than those before it.
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {
        name: HolmResult(p_value, adjusted[name], adjusted[name] < alpha)
        for name, p_value in p_values.items()
    }
