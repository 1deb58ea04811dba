"""Intervals for the mean of skewed values that `evaluators.statistics.skewed` was chosen from, for many data sets at once.

Each takes (D, C) values and gives 95 % ends, (D,) each. Resampling methods share their draws: how often each context is
drawn, applied as one matrix product.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from scipy import stats

from evaluators.statistics.intervals import (
    MIN_BOOTSTRAP_CLUSTERS,
    FloatArray,
    bca_levels,
    drawn_clusters,
)
from evaluators.statistics.skewed import Ends

NUM_RESAMPLES = 999
_TAILS = (0.025, 0.975)
_FAR = 1e9  # standard errors: stands for a resample without spread
_MAX_EXPONENT = 50.0
_BISECTIONS = 40
_TINY = 1e-9


def student(values_DC: FloatArray) -> Ends:
    """Student's t."""
    mean_D, error_D = _mean_and_error(values_DC)
    half_D = _quantile(values_DC) * error_D
    return Ends(mean_D - half_D, mean_D + half_D)


def widened(values_DC: FloatArray) -> Ends:
    """Student's t, wider by 1 + 8 / C."""
    mean_D, error_D = _mean_and_error(values_DC)
    half_D = _quantile(values_DC) * (1 + 8 / values_DC.shape[1]) * error_D
    return Ends(mean_D - half_D, mean_D + half_D)


def bca(values_DC: FloatArray) -> Ends:
    """Bias-corrected and accelerated bootstrap (Efron 1987)."""
    mean_D, means_DR, _ = _resampled(values_DC)
    levels_D2 = bca_levels(means_DR, mean_D, values_DC - mean_D[:, None], 0.95)
    low_D, high_D = np.stack([np.quantile(*it) for it in zip(means_DR, levels_D2, strict=True)], axis=1)
    return Ends(low_D, high_D)


def today(values_DC: FloatArray) -> Ends:
    """What `mean_interval` gives: Student's t below 200 contexts, BCa from there."""
    return (student if values_DC.shape[1] < MIN_BOOTSTRAP_CLUSTERS else bca)(values_DC)


def johnson(values_DC: FloatArray) -> Ends:
    """Johnson's modified t (1978, JASA 73): Student's, moved by the skewness."""
    mean_D, error_D = _mean_and_error(values_DC)
    centre_D = mean_D + _skewness(values_DC) * error_D / (6 * np.sqrt(values_DC.shape[1]))
    half_D = _quantile(values_DC) * error_D
    return Ends(centre_D - half_D, centre_D + half_D)


def hall(values_DC: FloatArray) -> Ends:
    """Hall's transformation (1992, JRSS B 54) with t's quantiles, as published: neither enlarged nor monotone."""
    mean_D, error_D = _mean_and_error(values_DC)
    tilt_D = _skewness(values_DC) / np.sqrt(values_DC.shape[1])
    tilt_D = np.where(np.abs(tilt_D) < _TINY, _TINY, tilt_D)

    def inverse(quantile: float) -> FloatArray:
        return np.asarray(3 / tilt_D * (np.cbrt(1 + tilt_D * (quantile - tilt_D / 6)) - 1))

    quantile = _quantile(values_DC)
    return Ends(mean_D - inverse(quantile) * error_D, mean_D - inverse(-quantile) * error_D)


def bootstrap_t(values_DC: FloatArray) -> Ends:
    """Studentized bootstrap."""
    mean_D, means_DR, errors_DR = _resampled(values_DC)
    _, error_D = _mean_and_error(values_DC)
    low_D, high_D = _percentiles(means_DR - mean_D[:, None], errors_DR)
    return Ends(mean_D - high_D * error_D, mean_D - low_D * error_D)


def bootstrap_t_log(values_DC: FloatArray) -> Ends:
    """Studentized bootstrap of the logarithm of the mean; for values above 0."""
    mean_D, means_DR, errors_DR = _resampled(values_DC)
    _, error_D = _mean_and_error(values_DC)
    low_D, high_D = _percentiles(np.log(means_DR / mean_D[:, None]), errors_DR / means_DR)
    ratio_D = error_D / mean_D
    ends = (mean_D * np.exp(np.clip(-it * ratio_D, -np.inf, _MAX_EXPONENT)) for it in (high_D, low_D))
    return Ends(*ends)


def cox(values_DC: FloatArray) -> Ends:
    """Cox's interval for the mean of a lognormal, with t's quantiles (Olsson 2005); for values above 0."""
    logs_DC = np.log(values_DC)
    num, variance_D = values_DC.shape[1], logs_DC.var(axis=1, ddof=1)
    centre_D = logs_DC.mean(axis=1) + variance_D / 2
    half_D = _quantile(values_DC) * np.sqrt(variance_D / num + variance_D**2 / (2 * (num - 1)))
    return Ends(np.exp(centre_D - half_D), np.exp(np.minimum(centre_D + half_D, _MAX_EXPONENT)))


def empirical_likelihood(values_DC: FloatArray) -> Ends:
    """Empirical likelihood (Owen 1988), Bartlett-corrected."""
    num = values_DC.shape[1]
    centred_DC = values_DC - values_DC.mean(axis=1, keepdims=True)
    spread_D = np.maximum(values_DC.std(axis=1), _TINY)
    skewness_D, kurtosis_D = ((centred_DC**it).mean(axis=1) / spread_D**it for it in (3, 4))
    bartlett_D = np.maximum(kurtosis_D / 2 - skewness_D**2 / 3, 0)
    most_D = stats.chi2.ppf(0.95, 1) * (1 + bartlett_D / num)
    ends = []
    for far_D in (values_DC.min(axis=1), values_DC.max(axis=1)):
        inside_D, outside_D = values_DC.mean(axis=1), far_D
        for _ in range(_BISECTIONS):
            middle_D = (inside_D + outside_D) / 2
            is_inside_D = _log_ratio(values_DC - middle_D[:, None]) <= most_D
            inside_D = np.where(is_inside_D, middle_D, inside_D)
            outside_D = np.where(is_inside_D, outside_D, middle_D)
        ends.append((inside_D + outside_D) / 2)
    return Ends(*ends)


def _log_ratio(centred_DC: FloatArray) -> FloatArray:
    """-2 log of the empirical likelihood ratio of a mean of 0, inf where all values lie on one side."""
    num, most_D, least_D = centred_DC.shape[1], centred_DC.max(axis=1), centred_DC.min(axis=1)
    is_possible_D = (most_D > 0) & (least_D < 0)
    low_D = (1 / num - 1) / np.where(is_possible_D, most_D, 1.0)
    high_D = (1 / num - 1) / np.where(is_possible_D, least_D, -1.0)
    for _ in range(_BISECTIONS):
        middle_D = (low_D + high_D) / 2
        is_left_D = (centred_DC / (1 + middle_D[:, None] * centred_DC)).sum(axis=1) > 0
        low_D, high_D = np.where(is_left_D, middle_D, low_D), np.where(is_left_D, high_D, middle_D)
    factors_DC = np.maximum(1 + ((low_D + high_D) / 2)[:, None] * centred_DC, _TINY)
    return np.where(is_possible_D, 2 * np.log(factors_DC).sum(axis=1), np.inf)


def _mean_and_error(values_DC: FloatArray) -> tuple[FloatArray, FloatArray]:
    return values_DC.mean(axis=1), values_DC.std(axis=1, ddof=1) / np.sqrt(values_DC.shape[1])


def _skewness(values_DC: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):  # NaN where all values are equal
        return np.nan_to_num(stats.skew(values_DC, axis=1, bias=False))


def _quantile(values_DC: FloatArray) -> float:
    return float(stats.t.ppf(_TAILS[1], df=values_DC.shape[1] - 1))


def _resampled(values_DC: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The mean, and means and standard errors of the resamples: (D,), (D, R), (D, R)."""
    num, mean_D = values_DC.shape[1], values_DC.mean(axis=1)
    counts_CR = _counts(num).T
    means_DR = values_DC @ counts_CR / num
    variances_DR = np.maximum((values_DC**2) @ counts_CR / num - means_DR**2, 0)
    return mean_D, means_DR, np.sqrt(variances_DR / (num - 1))


def _percentiles(distances_DR: FloatArray, errors_DR: FloatArray) -> FloatArray:
    """Both tails of distance / error, (2, D)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        studentized_DR = distances_DR / errors_DR
    is_known_DR = np.isfinite(studentized_DR)
    studentized_DR = np.where(is_known_DR, studentized_DR, _FAR * np.sign(distances_DR))
    return np.asarray(np.quantile(studentized_DR, _TAILS, axis=1))


@cache
def _counts(num_clusters: int) -> FloatArray:
    drawn_RC = np.concatenate(list(drawn_clusters(num_clusters, 0, NUM_RESAMPLES)))
    return np.stack([np.bincount(it, minlength=num_clusters) for it in drawn_RC]).astype(float)
