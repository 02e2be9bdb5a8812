"""Means, intervals and probabilities against rliable 1.2.0 on the same numbers."""

import numpy as np
import pytest
from scipy import stats

from fql.reports.statistics import curve, estimate, improvement, interquartile_mean, mean

OURS = [[0.73, 0.62, 0.54], [0.7, 0.87, 0.48], [0.91, 0.83, 0.43], [0.66, 0.91, 0.4]]
OURS = np.array([*OURS, [0.42, 0.66, 0.69]])
OTHERS = [[0.33, 0.76, 0.18], [0.65, 0.73, 0.67], [0.34, 0.45, 0.53], [0.27, 0.82, 0.6]]
OTHERS = np.array([*OTHERS, [0.59, 0.46, 0.62]])
"""(runs, tasks)."""


@pytest.mark.parametrize(
    ('statistic', 'value', 'low', 'high'),
    [(mean, 0.65667, 0.59067, 0.71933), (interquartile_mean, 0.65667, 0.57111, 0.74333)],
)
def test_intervals_are_those_of_rliable(statistic, value, low, high):
    """Of its get_interval_estimates, percentiles of 20,000 resamples within each task."""
    found = estimate(statistic, list(OURS.T))
    assert found.value == pytest.approx(value, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.008)


def test_each_task_counts_the_same_in_the_mean():
    """Also while some of its runs are missing."""
    assert estimate(mean, [np.array([1.0, 0.5, 0.0]), np.array([1.0, 1.0])]).value == 0.75


def test_the_interquartile_mean_leaves_a_quarter_out_on_each_side():
    values = np.array([0, 0, 4, 5, 6, 7, 100, 1000])
    assert estimate(interquartile_mean, [values]).value == 5.5


def test_the_probability_of_improvement_is_that_of_rliable():
    found = improvement(list(OURS.T), list(OTHERS.T))
    assert found.value == pytest.approx(0.69333, abs=1e-5)
    assert (found.low, found.high) == pytest.approx((0.50667, 0.85333), abs=0.02)
    # A tie is half a win, as in the Mann-Whitney statistic.
    ours, others = np.array([1.0, 2.0, 2.0]), np.array([2.0, 0.0])
    expected = stats.mannwhitneyu(ours, others).statistic / 6
    assert improvement([ours], [others]).value == pytest.approx(expected)


def test_one_run_has_no_interval():
    found = estimate(mean, [np.array([0.5])])
    assert found.value == 0.5
    assert np.isnan(found.low)
    _, low, high = curve(np.array([[0.1, 0.2]]))
    assert np.isnan([low, high]).all()


def test_a_curve_has_the_interval_of_each_step():
    value, low, high = curve(OURS)
    for step in range(3):
        alone = estimate(mean, [OURS[:, step]])
        assert value[step] == pytest.approx(alone.value)
        assert (low[step], high[step]) == pytest.approx((alone.low, alone.high), abs=0.01)
    assert (curve(np.ones((4, 2)))[1] == 1).all()
