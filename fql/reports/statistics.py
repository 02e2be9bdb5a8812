"""Results of several seeds in a few numbers, as Agarwal et al. 2021 (arXiv 2108.13264) advise.

SciPy computes all of it. That paper's library, rliable, draws from NumPy's global state and pins
packages that are not needed here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 5_000
CONFIDENCE = 0.95
BATCH = 500
"""Resamples computed at a time."""


@dataclass(frozen=True)
class Estimate:
    """A number, and its bootstrap interval; NaN where a single run allows none."""

    value: float
    low: float
    high: float


def mean(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean over tasks of the mean over runs: each task counts the same."""
    return np.mean([np.mean(values, axis=axis) for values in strata], axis=0)


def interquartile_mean(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of the middle half of all values."""
    return stats.trim_mean(np.concatenate(strata, axis=axis), 0.25, axis=axis)


def estimate(statistic: Callable[..., np.ndarray], strata: Sequence[np.ndarray]) -> Estimate:
    """A statistic of runs, with the interval of a stratified bootstrap by percentiles.

    Args:
        statistic: of one array for each stratum, along the last axis.
        strata: results of the runs, (runs,) for each task; those of a task are drawn among
            themselves.
    """
    value = float(statistic(*strata, axis=-1))
    if min(map(len, strata)) < 2:
        return Estimate(value, np.nan, np.nan)
    interval = _interval(statistic, strata)
    return Estimate(value, float(interval.low), float(interval.high))


def improvement(ours: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Estimate:
    """The probability that a run of ours is better than one of theirs, over tasks.

    It is the mean over tasks of the Mann-Whitney statistic; a tie counts as half.

    Args:
        ours, others: results, (runs,) for each task.
    """
    tasks = len(ours)

    def probability(*strata: np.ndarray, axis: int = -1) -> np.ndarray:
        assert axis == -1
        pairs = zip(strata[:tasks], strata[tasks:], strict=True)
        differences = [x[..., :, None] - y[..., None, :] for x, y in pairs]
        wins = [(np.sign(delta) + 1).mean(axis=(-2, -1)) / 2 for delta in differences]
        return np.mean(wins, axis=0)

    return estimate(probability, [*ours, *others])


def curve(results: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over runs of (runs, steps) results, and the ends of its interval, (steps,) each."""
    value = results.mean(axis=0)
    if len(results) < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    interval = _interval(np.mean, [results], axis=0)
    return value, interval.low, interval.high


def _interval(
    statistic: Callable[..., np.ndarray], strata: Sequence[np.ndarray], axis: int = -1
) -> stats._common.ConfidenceInterval:
    return stats.bootstrap(
        strata,
        statistic,
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        axis=axis,
        confidence_level=CONFIDENCE,
        method='percentile',
        rng=np.random.default_rng(0),
    ).confidence_interval
