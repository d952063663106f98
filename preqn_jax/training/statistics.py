"""Aggregates over runs and tasks with bootstrap intervals (Agarwal et al. 2021, arXiv 2108.13264).

A sample is one run's score; samples of different tasks are resampled apart (stratified). With as few runs as three a
bootstrap interval is narrower than the truth: it can hold nothing that no run has shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray

CONFIDENCE = 0.95
_RESAMPLES = 2000
_LAST = 3  # evaluations that a final return is the mean of


class Estimate(NamedTuple):
    """A number and its bootstrap interval; NaN bounds where there are fewer than two runs."""

    value: float
    low: float
    high: float


def final(returns: Array) -> Array:
    """Mean of the last three evaluations; ``[..., checkpoints]`` -> ``[...]``."""
    return returns[..., -_LAST:].mean(axis=-1)


def interquartile_mean(scores: Sequence[Array]) -> float:
    """Mean of the middle half of all runs of all tasks; one array ``[runs]`` a task."""
    from scipy import stats  # here, as it takes most of a second, and every training run imports this module

    return float(stats.trim_mean(np.concatenate(list(scores)), 0.25))


def probability_of_improvement(scores: Sequence[Array], others: Sequence[Array]) -> float:
    """P(a run of the first scores more than a run of the second), ties half, averaged over tasks."""
    probabilities = []
    for x, y in zip(scores, others, strict=True):
        difference = x[:, None] - y[None, :]
        probabilities.append(np.mean(np.where(difference == 0, 0.5, difference > 0)))
    return float(np.mean(probabilities))


def estimate(statistic: Callable[..., float], *samples: Array) -> Estimate:
    """``statistic(*samples)``, each sample ``[runs]`` resampled by itself, with its percentile interval."""
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
    """Spearman's, in [-1, 1]: how nearly one grows with the other.

    An infinite value is larger than all others; NaN where one of the two is constant.
    """
    from scipy import stats

    ranks = [stats.rankdata(values) for values in (x, y)]
    if any(np.ptp(values) == 0 for values in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def mean_interval(samples: Array) -> tuple[Array, Array]:
    """Bounds of the mean over runs, ``[runs, checkpoints]`` -> two ``[checkpoints]``; NaN for a single run."""
    runs = len(samples)
    if runs < 2:
        nothing = np.full(samples.shape[1:], np.nan)
        return nothing, nothing
    drawn = np.random.default_rng(0).integers(runs, size=(_RESAMPLES, runs))
    tail = 50.0 * (1.0 - CONFIDENCE)
    low, high = np.percentile(samples[drawn].mean(axis=1), [tail, 100.0 - tail], axis=0)
    return low, high
