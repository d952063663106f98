import numpy as np
import pytest

from preqn_jax.training import statistics


def test_final_is_the_mean_of_the_last_three_evaluations():
    returns = np.array([[9.0, 1.0, 2.0, 6.0], [0.0, 0.0, 0.0, 3.0]])
    np.testing.assert_allclose(statistics.final(returns), [3.0, 1.0])


def test_interquartile_mean_drops_a_quarter_at_each_end_of_all_runs():
    assert statistics.interquartile_mean([np.array([-100.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0, 1e6])]) == 3.5


def test_probability_of_improvement_counts_pairs_and_halves_ties():
    x, y = np.array([1.0, 3.0]), np.array([1.0, 2.0])  # 1 = 1, 1 < 2, 3 > 1, 3 > 2
    assert statistics.probability_of_improvement([x], [y]) == pytest.approx(2.5 / 4)
    assert statistics.probability_of_improvement([x, y], [y, x]) == pytest.approx(0.5)  # the mean over two tasks


def test_an_estimate_resamples_each_task_by_itself():
    constant, varied = np.full(4, 7.0), np.array([0.0, 1.0, 2.0, 3.0])
    value, low, high = statistics.estimate(lambda a, b: a.mean() + b.mean(), constant, varied)
    assert value == pytest.approx(8.5)
    assert 7.0 < low < 8.0 < 9.0 < high < 10.0  # were tasks mixed, 3 + 3 and 7 + 7 would be drawn too


def test_the_bootstrap_interval_of_a_mean_is_about_that_of_the_normal_law():
    sample = np.random.default_rng(0).normal(size=400)
    _, low, high = statistics.estimate(np.mean, sample)
    error = sample.std() / np.sqrt(400)
    np.testing.assert_allclose([low, high], sample.mean() + 1.96 * error * np.array([-1, 1]), atol=0.3 * error)
    np.testing.assert_allclose(statistics.mean_interval(sample[:, None]), np.array([[low], [high]]), atol=0.3 * error)


def test_rank_correlation_by_hand():
    assert statistics.rank_correlation([1, 2, 3, 4], [10, 20, 1e9, np.inf]) == pytest.approx(1)
    assert statistics.rank_correlation([1, 2, 3], [3, 2, 2]) == pytest.approx(-np.sqrt(3) / 2)  # a tie
    assert np.isnan(statistics.rank_correlation([1, 2, 3], [5, 5, 5]))


def test_one_run_has_no_interval():
    assert np.isnan(statistics.estimate(np.mean, np.ones(1))[1:]).all()
    assert np.isnan(statistics.mean_interval(np.ones((1, 5)))).all()
