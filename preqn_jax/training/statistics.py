"""Aggregates over runs and tasks with bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

A sample is the score of one run. Samples of different tasks are resampled separately (stratified bootstrap). With only
three runs a bootstrap interval is too narrow, since it cannot contain values outside the range of the observed runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray

CONFIDENCE = 0.95
_RESAMPLES = 2000
_LAST = 3  # the final return is the mean of this number of evaluations


class Estimate(NamedTuple):
    """An estimate and its bootstrap interval; the bounds are NaN for fewer than two runs."""

    value: float
    low: float
    high: float


def final(returns: Array) -> Array:
    """Mean of the last three evaluations; ``[..., checkpoints]`` -> ``[...]``."""
    return returns[..., -_LAST:].mean(axis=-1)


def interquartile_mean(scores: Sequence[Array]) -> float:
    """Mean of the middle half of all runs of all tasks; ``scores`` has one array ``[runs]`` per task."""
    from scipy import stats  # imported here because it is slow, and every training run imports this module

    return float(stats.trim_mean(np.concatenate(list(scores)), 0.25))


def probability_of_improvement(scores: Sequence[Array], others: Sequence[Array]) -> float:
    """P(a run of the first method scores higher than one of the second), averaged over tasks; ties count one half."""
    probabilities = []
    for x, y in zip(scores, others, strict=True):
        difference = x[:, None] - y[None, :]
        probabilities.append(np.mean(np.where(difference == 0, 0.5, difference > 0)))
    return float(np.mean(probabilities))


def estimate(statistic: Callable[..., float], *samples: Array) -> Estimate:
    """``statistic(*samples)`` with a percentile bootstrap interval; each sample ``[runs]`` is resampled separately."""
    value = float(statistic(*samples))
    if min(len(sample) for sample in samples) < 2:
        return Estimate(value, np.nan, np.nan)
    from scipy import stats

    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def rank_correlation(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float:
    """Spearman's rank correlation, in [-1, 1].

    Infinite values rank above all others; the result is NaN if x or y is constant.
    """
    from scipy import stats

    ranks = [stats.rankdata(values) for values in (x, y)]
    if any(np.ptp(values) == 0 for values in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def mean_interval(samples: Array) -> tuple[Array, Array]:
    """Bootstrap bounds of the mean over runs, ``[runs, checkpoints]`` -> two ``[checkpoints]``; NaN for one run."""
    runs = len(samples)
    if runs < 2:
        nothing = np.full(samples.shape[1:], np.nan)
        return nothing, nothing
    drawn = np.random.default_rng(0).integers(runs, size=(_RESAMPLES, runs))
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(samples[drawn].mean(axis=1), [tail, 100.0 - tail], axis=0)
    return low, high
