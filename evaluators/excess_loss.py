"""How surely a loss is larger than a margin: the p-value that Holm's correction asks for beside an interval.

`no_worse_than` reads one interval, which says nothing about how many others were read in the same night.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluators.macro_average import TaskPairs, mean_and_error


def excess_loss_p_value(tasks: Sequence[TaskPairs], margin: float) -> float:
    """One-sided p of a - b on average being no lower than -margin; more is better, one task or a mean over several.

    Cluster-robust Student t, over tasks with Satterthwaite's degrees of freedom: the interval `no_worse_than` reads below
    200 clusters, turned round. One cluster in a task says nothing: 1. Where every cluster loses the same there is no
    spread to test against: 0 or 1. Raises StatisticsError for no task, or as `mean_interval` does for one of them.
    """
    estimate = mean_and_error(tasks)
    if estimate.error is None:
        return 1.0
    excess = estimate.mean + margin
    if estimate.error == 0:
        return 0.0 if excess < 0 else 1.0
    from scipy import stats

    return float(stats.t.cdf(excess / estimate.error, df=estimate.freedom))
