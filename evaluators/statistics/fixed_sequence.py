"""Is a share of contexts small enough? Exact tests of one share after another, in an order that was fixed beforehand.

Learn then Test (Angelopoulos et al. 2021, section 5) with fixed-sequence testing, as arXiv 2609.27981 uses it for KV caches:
each test spends the whole error, and the first that fails ends the sequence. The chance that any share is wrongly shown to
be small enough is then at most the error, whatever the shares are and however the tests depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from evaluators.statistics.intervals import StatisticsError


def share_p_value(num_bad: int, num_contexts: int, share: float) -> float:
    """P(at most `num_bad` of `num_contexts` are bad) if a `share` of all contexts is: small where fewer than that are.

    Contexts are independent. Where several kinds of contexts come in fixed numbers, `share` is that of the mixture, and the
    p-value errs on the safe side wherever it is small enough to be used (Hoeffding 1956, theorem 4).
    Raises StatisticsError unless 0 <= num_bad <= num_contexts, num_contexts > 0 and 0 < share < 1.
    """
    if not 0 <= num_bad <= num_contexts or num_contexts == 0:
        raise StatisticsError(f"{num_bad} of {num_contexts} is no share; need 0 <= k <= n and n > 0.")
    _check_between("share", share)
    from scipy import stats

    return float(stats.binom.cdf(num_bad, num_contexts, share))


def needed_contexts(share: float, error: float) -> int:
    """The fewest contexts that can show, when none is bad, that at most a `share` is: 59 for 5 % at an error of 5 %."""
    _check_between("share", share)
    _check_between("error", error)
    number = math.ceil(math.log(error) / math.log1p(-share))
    # The logarithms may round to the wrong side of a whole number, and the p-value decides.
    while share_p_value(0, number, share) > error:
        number += 1
    while number > 1 and share_p_value(0, number - 1, share) <= error:
        number -= 1
    return number


def most_bad(num_contexts: int, share: float, error: float) -> int | None:
    """The most bad contexts of `num_contexts` that still show it; None where not even 0 do."""
    if num_contexts == 0 or share_p_value(0, num_contexts, share) > error:
        return None
    from scipy import stats

    # Near the quantile, and again the p-value decides.
    number = max(0, int(stats.binom.ppf(error, num_contexts, share)) - 1)
    while share_p_value(number + 1, num_contexts, share) <= error:
        number += 1
    return number


def num_shown(p_values: Iterable[float], error: float) -> int:
    """How many tests of a sequence succeed before the first that does not; the error is spent on each in full."""
    _check_between("error", error)
    number = 0
    for p_value in p_values:
        if not p_value <= error:  # so that NaN ends it too
            break
        number += 1
    return number


def _check_between(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise StatisticsError(f"{name} = {value} does not lie between 0 and 1.")
