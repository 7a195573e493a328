"""Intervals, paired differences and rank tests, compared with scipy, published tables and worked examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from dassl_lite.evaluation.statistics import (
    alike,
    critical_difference,
    estimate,
    estimate_of_means,
    harmonic_mean,
    holm,
    paired,
    permutation_p,
    rank,
    rank_correlation,
    versus,
)


def table(datasets: int = 9, methods: int = 4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(70, 10, (datasets, 1)) + rng.normal(0, 2, (datasets, methods)) + np.arange(methods)


def test_the_interval_of_an_estimate_equals_scipy() -> None:
    values = [61.2, 63.9, 60.1, 65.0]
    found = estimate(values)
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.count == 4
    assert str(estimate([60.0])) == "60.00"
    assert estimate([60.0]).high == math.inf


def test_a_function_of_means_has_a_jackknife_interval() -> None:
    rows = np.random.default_rng(1).normal([80.0, 60.0], [4.0, 9.0], (400, 2))
    one = estimate_of_means(rows[:, :1], lambda mean: mean)
    assert (one.mean, one.half) == pytest.approx((rows[:, 0].mean(), estimate(rows[:, 0]).half))
    found = estimate_of_means(rows, harmonic_mean)
    base, new = rows.mean(axis=0)
    assert found.mean == pytest.approx(2 * base * new / (base + new))
    slopes = 2 * np.array([new, base]) ** 2 / (base + new) ** 2  # the delta method, a good approximation for many rows
    variance = slopes @ np.cov(rows.T) @ slopes / len(rows)
    assert found.half == pytest.approx(1.966 * variance**0.5, rel=0.01)
    assert estimate_of_means(rows[:1], harmonic_mean).half is None


def test_a_paired_difference_uses_only_shared_draws() -> None:
    first = {1: 70.0, 2: 75.0, 3: 71.0, 9: 0.0}
    second = {2: 74.0, 1: 68.0, 3: 70.5, 4: 100.0}
    found = paired(first, second)
    expected = stats.ttest_rel([70, 75, 71], [68, 74, 70.5])
    assert found.estimate.mean == pytest.approx(3.5 / 3)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.estimate.half == pytest.approx(expected.confidence_interval(0.95).high - 3.5 / 3)
    assert (found.wins, found.losses) == (3, 0)
    assert paired(first, {77: 1.0}) is None
    assert math.isnan(paired({1: 2.0}, {1: 1.0}).p)
    assert math.isnan(paired({1: 2.0, 2: 3.0}, {1: 1.0, 2: 2.0}).p)  # no spread, so no test


def test_friedmans_test_equals_scipy_with_and_without_ties() -> None:
    for scores in (table(), table(5, 3), np.round(table(12, 5) / 4)):
        found, expected = rank(scores), stats.friedmanchisquare(*scores.T)
        assert found.statistic == pytest.approx(expected.statistic)
        assert found.p == pytest.approx(expected.pvalue)
        assert np.mean(found.mean_ranks) == pytest.approx((scores.shape[1] + 1) / 2)


def test_friedmans_test_needs_three_methods_two_datasets_and_a_difference() -> None:
    for scores in (table(9, 2), table(1, 4), np.full((4, 3), 50.0)):
        assert math.isnan(rank(scores).p)
    with pytest.raises(ValueError, match="nothing to rank"):
        rank(np.empty((0, 3)))


# Demsar (2006), table 5a: critical values of the two-tailed Nemenyi test at 0.05 and 0.10 for 2 to 10 methods.
NEMENYI = {
    0.95: (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164),
    0.90: (1.645, 2.052, 2.291, 2.459, 2.589, 2.693, 2.780, 2.855, 2.920),
}


@pytest.mark.parametrize("level", NEMENYI)
def test_the_critical_difference_uses_the_published_critical_values(level: float) -> None:
    for methods, value in enumerate(NEMENYI[level], start=2):
        quantile = critical_difference(methods, 10, level) / math.sqrt(methods * (methods + 1) / 60)
        assert quantile == pytest.approx(value, abs=1.1e-3)


def test_the_worked_example_of_demsars_paper_is_reproduced() -> None:
    # Four algorithms on 14 data sets: mean ranks and critical difference as in section 3.2.4.
    difference, ranks = critical_difference(4, 14), (3.143, 2.000, 2.893, 1.964)
    assert difference == pytest.approx(1.25, abs=5e-3)
    assert critical_difference(4, 14, 0.90) == pytest.approx(1.12, abs=5e-3)
    assert alike(ranks, difference) == [(3, 1, 2, 0)]
    assert alike(ranks, critical_difference(4, 14, 0.90)) == [(3, 1, 2), (2, 0)]  # plain C4.5 is worse than two others
    assert math.isnan(critical_difference(1, 5))


def test_groups_of_similar_methods_are_maximal() -> None:
    assert alike((1.0, 1.2, 1.4, 3.0), 0.5) == [(0, 1, 2)]
    assert alike((1.0, 2.0, 3.0), 0.5) == []


def test_wilcoxons_test_equals_scipy_with_holms_correction() -> None:
    scores = table()
    by_method = {f"m{k}": dict(enumerate(scores[:, k])) for k in range(4)}
    found = versus(by_method, "m0")
    assert set(found) == {"m1", "m2", "m3"}
    raw = [stats.wilcoxon(scores[:, k], scores[:, 0]).pvalue for k in (1, 2, 3)]
    assert [found[f"m{k}"].p for k in (1, 2, 3)] == pytest.approx(raw)
    assert [found[f"m{k}"].p_adjusted for k in (1, 2, 3)] == pytest.approx(holm(raw))
    assert found["m3"].wins + found["m3"].losses == 9


def test_methods_are_compared_on_shared_datasets() -> None:
    found = versus(
        {"a": {1: 5.0, 2: 6.0, 3: 7.0}, "b": {2: 7.0, 3: 8.0, 4: 1.0}, "c": {9: 1.0}, "d": {1: 5.0, 2: 6.0}}, "a"
    )
    assert found["b"].estimate.mean == 1.0
    assert "c" not in found
    assert (found["d"].p, found["d"].wins, found["d"].losses) == (1.0, 0, 0)  # equal everywhere


def test_holm_is_monotone_and_at_most_one() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_harmonic_mean_matches_a_published_value() -> None:
    assert harmonic_mean(82.69, 63.22) == pytest.approx(71.66, abs=5e-3)  # CoOp over 11 datasets, as published
    assert harmonic_mean(0.0, 0.0) == 0.0


@pytest.mark.slow
def test_the_permutation_test_of_a_rank_correlation_is_exact_for_few_pairs_and_close_for_many() -> None:
    # Of the 24 pairings of four, two are monotone; with a tie in y, 4 of 24 are as far from zero as the one at hand.
    assert permutation_p([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(2 / 24)
    assert permutation_p([1, 2, 3, 4], [10, 20, 20, 40]) == pytest.approx(4 / 24)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 5))
    exact = stats.permutation_test(
        (x,), lambda of: stats.spearmanr(of, y).statistic, permutation_type="pairings", n_resamples=120
    )
    assert permutation_p(x, y) == pytest.approx(exact.pvalue)
    x, y = rng.multivariate_normal([0, 0], [[1, 0.4], [0.4, 1]], 30).T
    assert permutation_p(x, y) == pytest.approx(stats.spearmanr(x, y).pvalue, abs=0.02)
    assert permutation_p(range(12), range(12), draws=99) == 0.01  # the smallest p-value of 99 random pairings
    assert all(map(math.isnan, (permutation_p([1, 2], [1, 2]), permutation_p([1, 1, 1], [1, 2, 3]))))


@pytest.mark.slow
def test_a_rank_correlation_has_an_interval_that_covers_it() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(300):  # a normal pair of correlation 0.6 has Spearman's 6 / pi asin(0.3)
        pair = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 25)
        r, low, high = rank_correlation(pair[:, 0], pair[:, 1])
        assert r == pytest.approx(stats.spearmanr(pair).statistic)
        hits += low < 6 / math.pi * math.asin(0.3) < high
    assert 0.91 < hits / 300 < 0.985
    assert rank_correlation([1, 2, 3], [3, 2, 1])[0] == -1.0
    assert all(map(math.isnan, rank_correlation([1, 1], [2, 3])))
    with pytest.raises(ValueError, match="cannot be paired"):
        rank_correlation([1], [1, 2])
