"""The noise floor: how far two decodings of the same full cache differ, which no policy is to blame for."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from evaluators.statistics.intervals import PairedDifference, paired_difference


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """The A/A difference. `size` is the far end of its 95 % interval (of one cluster, its mean), never negative.

    `flip_ratio` is the share of items whose value differs at all.
    """

    difference: PairedDifference
    size: float
    flip_ratio: float

    def covers(self, mean_difference: float) -> bool:
        """Whether a mean difference is no larger than what the batch shape alone can do."""
        # Where both decodings have the same bits there is no floor, so not even a difference of 0 lies in it.
        return self.size > 0 and abs(mean_difference) <= self.size


def noise_floor(again: Sequence[float], full: Sequence[float], clusters: Sequence[Hashable]) -> NoiseFloor:
    """The floor from the full cache decoded twice, in the same order of items; StatisticsError as `mean_interval`."""
    return floor_of(paired_difference(again, full, clusters))


def floor_of(difference: PairedDifference) -> NoiseFloor:
    """The floor an A/A difference gives, of one task or of a mean over tasks."""
    interval = difference.interval
    ends = (interval.mean, interval.low, interval.high)
    return NoiseFloor(
        difference=difference,
        size=max(abs(end) for end in ends if end is not None),
        flip_ratio=(difference.num_higher + difference.num_lower) / interval.num_items,
    )
