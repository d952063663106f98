"""Decides whether measured kernels show the four findings of section 5.1 of Achiam et al. (2019).

A curve consists of the means over trials of one task and activation, along the widths 32, 64, 128, 256 with two hidden
layers, or along the depths 1, 2, 3, 4 with 64 units. Each version of the tasks and each initializer is evaluated
separately. The paper states that a quantity "tends to" increase: here, a curve tends to grow if its rank correlation,
Kendall's tau, is positive, that is, if more pairs of its points rise than fall; it tends to fall if tau is negative. A
group consists of the three activations for one task and architecture.

1. The diagonal tends to grow with width, along at least three quarters of the curves, and to fall with depth, along at
   least three quarters of the curves.
2. a: The row ratio tends to grow with depth, along at least three quarters of the curves.
   b: It does not clearly correlate with width: it tends to grow along fewer than three quarters of the curves, and to
   fall along fewer than three quarters of the curves.
3. relu commonly has the largest of both: the largest diagonal in more than half of the groups, and the largest row
   ratio in more than half of the groups.
4. sin has high diagonals with low row ratios: in more than half of the groups, its diagonal is at least half of the
   group's largest diagonal, and its row ratio is the smallest of the three.

A curve or group with a non-finite value counts as not showing the finding. In addition to the trends, strict counts are
reported: the numbers of curves that grow, or fall, at every step. The thresholds of the strict counts, which originally
decided findings 1 and 2, and those of findings 3 and 4 were fixed before any measurement. The use of trends instead was
decided afterwards, because "tend to" does not claim more; the trends have the same threshold.
"""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.studies.ntk.measurements import (
    ACTIVATIONS,
    ARCHITECTURES,
    BY_DEPTH,
    BY_WIDTH,
    Architecture,
    Measurement,
)

_TREND = 0.75  # minimum share of the curves
_COMMONLY = 0.5  # the share of the groups must exceed this
_HIGH = 0.5  # minimum share of the group's largest diagonal

Cell = tuple[str, str, Architecture]


class Spread(NamedTuple):
    """Mean and (population) standard deviation over trials."""

    mean: float
    std: float


class Finding(NamedTuple):
    """A finding of the paper, whether it holds here, and the numbers that decide it."""

    number: str
    holds: bool
    figures: str

    def __str__(self) -> str:
        return f"finding {self.number}: {'holds' if self.holds else 'does not hold'}: {self.figures}"


def over_trials(rows: Iterable[Measurement], quantity: str) -> dict[Cell, Spread]:
    """Mean and standard deviation of "diagonal" or "row_ratio" in each cell."""
    values = collections.defaultdict(list)
    for row in rows:
        values[row.task, row.activation, row.architecture].append(getattr(row, quantity))
    with np.errstate(invalid="ignore"):  # the standard deviation of infinities is NaN
        return {cell: Spread(float(np.mean(trials)), float(np.std(trials))) for cell, trials in values.items()}


def decide(rows: Sequence[Measurement]) -> list[Finding]:
    """Decides findings 1, 2a, 2b, 3 and 4 from all measurements of one version of the tasks and one initializer."""
    diagonal, ratio = (
        {cell: spread.mean for cell, spread in over_trials(rows, quantity).items()}
        for quantity in ("diagonal", "row_ratio")
    )
    return [
        _diagonal_trends(diagonal),
        _ratio_by_depth(ratio),
        _ratio_by_width(ratio),
        _relu_is_largest(diagonal, ratio),
        _sin(diagonal, ratio),
    ]


class _Trend(NamedTuple):
    """Numbers of curves that tend to grow, tend to fall, always grow, always fall; of all curves; and the mean tau."""

    grow: int
    fall: int
    always_grow: int
    always_fall: int
    curves: int
    tau: float


def _trend(curves: Sequence[Sequence[float]]) -> _Trend:
    taus = [kendall(curve) for curve in curves]
    return _Trend(
        grow=sum(tau > 0 for tau in taus),
        fall=sum(tau < 0 for tau in taus),
        always_grow=sum(map(_grows, curves)),
        always_fall=sum(_grows(curve[::-1]) for curve in curves),
        curves=len(curves),
        tau=float(np.mean(taus)),
    )


def kendall(curve: Sequence[float]) -> float:
    """Kendall's tau of a curve: number of rising minus falling pairs, over number of pairs; NaN if not finite."""
    if not _finite(curve):
        return math.nan
    return float(np.mean([np.sign(b - a) for a, b in itertools.combinations(curve, 2)]))


def _diagonal_trends(diagonal: dict[Cell, float]) -> Finding:
    width, depth = _trend(_curves(diagonal, BY_WIDTH)), _trend(_curves(diagonal, BY_DEPTH))
    return Finding(
        "1",
        min(width.grow, depth.fall) >= _TREND * width.curves,
        f"the mean diagonal tends to grow with width along {width.grow} (mean tau {width.tau:.2f}) and to fall with "
        f"depth along {depth.fall} (mean tau {depth.tau:.2f}) of {width.curves} curves (needed of each: {_TREND:.0%}); "
        f"at every step it grows along {width.always_grow} and falls along {depth.always_fall}",
    )


def _ratio_by_depth(ratio: dict[Cell, float]) -> Finding:
    depth = _trend(_curves(ratio, BY_DEPTH))
    return Finding(
        "2a",
        depth.grow >= _TREND * depth.curves,
        f"the mean row ratio tends to grow with depth along {depth.grow} of {depth.curves} curves (mean tau "
        f"{depth.tau:.2f}; needed: {_TREND:.0%}); at every step it grows along {depth.always_grow}",
    )


def _ratio_by_width(ratio: dict[Cell, float]) -> Finding:
    width = _trend(_curves(ratio, BY_WIDTH))
    return Finding(
        "2b",
        math.isfinite(width.tau) and max(width.grow, width.fall) < _TREND * width.curves,
        f"the mean row ratio tends to grow with width along {width.grow} and to fall along {width.fall} of "
        f"{width.curves} curves (mean tau {width.tau:.2f}; needed of each: below {_TREND:.0%}); at every step it grows "
        f"along {width.always_grow} and falls along {width.always_fall}",
    )


def _relu_is_largest(diagonal: dict[Cell, float], ratio: dict[Cell, float]) -> Finding:
    diagonals, ratios = _groups(diagonal), _groups(ratio)
    largest_diagonal, largest_ratio = (
        sum(_exceeds_others(group, "relu") for group in groups) for groups in (diagonals, ratios)
    )
    return Finding(
        "3",
        min(largest_diagonal, largest_ratio) > _COMMONLY * len(diagonals),
        f"relu has the largest mean diagonal in {largest_diagonal} and the largest mean row ratio in {largest_ratio} "
        f"of {len(diagonals)} tasks x architectures (needed of each: more than {_COMMONLY:.0%})",
    )


def _sin(diagonal: dict[Cell, float], ratio: dict[Cell, float]) -> Finding:
    high = [_finite(group.values()) and group["sin"] >= _HIGH * max(group.values()) for group in _groups(diagonal)]
    low = [_exceeds_others({name: -value for name, value in group.items()}, "sin") for group in _groups(ratio)]
    both = sum(a and b for a, b in zip(high, low, strict=True))
    return Finding(
        "4",
        both > _COMMONLY * len(high),
        f"sin's mean diagonal is at least {_HIGH:.0%} of the largest in {sum(high)}, its mean row ratio the smallest "
        f"in {sum(low)}, and both in {both} of {len(high)} tasks x architectures (needed: more than {_COMMONLY:.0%})",
    )


def _curves(means: dict[Cell, float], architectures: Sequence[Architecture]) -> list[list[float]]:
    return [[means[task, name, a] for a in architectures] for task in _tasks(means) for name in ACTIVATIONS]


def _groups(means: dict[Cell, float]) -> list[dict[str, float]]:
    """The value of each activation, for each task and architecture."""
    return [
        {name: means[task, name, architecture] for name in ACTIVATIONS}
        for task, architecture in itertools.product(_tasks(means), ARCHITECTURES)
    ]


def _tasks(means: dict[Cell, float]) -> list[str]:
    return sorted({task for task, _, _ in means})


def _grows(curve: Sequence[float]) -> bool:
    return _finite(curve) and all(a < b for a, b in itertools.pairwise(curve))


def _exceeds_others(group: dict[str, float], name: str) -> bool:
    others = [value for other, value in group.items() if other != name]
    return _finite(group.values()) and group[name] > max(others)


def _finite(values: Iterable[float]) -> bool:
    return all(map(math.isfinite, values))
