"""Compare the accuracies of several methods over draws and over datasets.

Two questions have two units. Whether method A beats B *on this dataset* is asked over draws: both were trained on the
same few images in each, so the differences per draw are compared, not the two means (`paired`). Whether A beats B *in
general* is asked over datasets: the mean over a dataset's draws is then one observation, however many draws there were
(`estimate` of these means, `versus`, `friedman`).

Sources: Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006), for the rank tests;
Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979); Bonett and Wright, Sample size requirements for
Pearson, Kendall and Spearman correlations (2000), for the interval of a rank correlation; Tukey, Bias and confidence in
not-quite large samples (1958), for the jackknife.

Shapes: N datasets, K methods; scores are (N, K), higher is better.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean of ``count`` values with its confidence interval, mean ± half; ``half`` is None for a single value."""

    mean: float
    half: float | None
    count: int

    @property
    def low(self) -> float:
        return self.mean - (self.half if self.half is not None else math.inf)

    @property
    def high(self) -> float:
        return self.mean + (self.half if self.half is not None else math.inf)

    def __str__(self) -> str:
        return f"{self.mean:.2f}" if self.half is None else f"{self.mean:.2f} ± {self.half:.2f}"


@dataclass(frozen=True)
class Difference:
    """How much one method is better than another, over units that both have.

    Attributes:
        estimate: mean difference.
        p: p-value of the two-sided test of no difference; NaN where there is nothing to test.
        p_adjusted: ``p`` after Holm's correction for the number of methods compared; NaN if there was none.
        wins, losses: units in which the method is better and worse.
    """

    estimate: Estimate
    p: float
    p_adjusted: float = math.nan
    wins: int = 0
    losses: int = 0


@dataclass(frozen=True)
class Ranking:
    """Methods ranked on every dataset: 1 is the best, ties share the mean of their ranks.

    Attributes:
        mean_ranks: K numbers.
        p: p-value of Friedman's test that all methods are alike; NaN for fewer than three methods or two datasets.
        critical_difference: Nemenyi's; methods whose mean ranks differ by less cannot be distinguished.
        datasets: N.
    """

    mean_ranks: tuple[float, ...]
    statistic: float
    p: float
    critical_difference: float
    datasets: int


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean, with the two-sided interval of Student's t with n - 1 degrees of freedom."""
    half = None
    if len(values) > 1:
        from scipy.stats import t  # takes a while to import, and only reports need it

        half = float(t.ppf(0.5 + level / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(statistics.fmean(values), half, len(values))


def estimate_of_means(rows: Sequence[Sequence[float]], combine: Callable[..., float], level: float = 0.95) -> Estimate:
    """A function of the means of several columns, with Tukey's jackknife interval over rows.

    An example is the harmonic mean of mean base and mean new accuracy, with one row per dataset. For one column and the
    identity it is `estimate`.

    Args:
        rows: (N, C).
        combine: the function of the C means.
    """
    table = np.asarray(rows, dtype=np.float64)
    count, whole = len(table), float(combine(*table.mean(axis=0)))
    if count < 2:
        return Estimate(whole, None, count)
    without = [combine(*means) for means in (table.sum(axis=0) - table) / (count - 1)]
    pseudo_values = [count * whole - (count - 1) * one for one in without]
    return replace(estimate(pseudo_values, level), mean=whole)


def paired(first: Mapping[Any, float], second: Mapping[Any, float], level: float = 0.95) -> Difference | None:
    """``first`` minus ``second`` over the draws that both have, with the paired t-test; None if they share none.

    Args:
        first, second: score by draw.
    """
    shared = [draw for draw in first if draw in second]
    if not shared:
        return None
    differences = [first[draw] - second[draw] for draw in shared]
    p = math.nan
    if len(shared) > 1 and len(set(differences)) > 1:
        from scipy.stats import ttest_1samp

        p = float(ttest_1samp(differences, 0.0).pvalue)
    return Difference(estimate(differences, level), p, math.nan, *_wins_and_losses(differences))


def _wins_and_losses(differences: Sequence[float]) -> tuple[int, int]:
    return sum(d > 0 for d in differences), sum(d < 0 for d in differences)


def versus(scores: Mapping[str, Mapping[Any, float]], reference: str) -> dict[str, Difference]:
    """Every method against ``reference`` over datasets: Wilcoxon's signed-rank test with Holm's correction.

    Args:
        scores: method -> dataset -> score. Each method is compared on the datasets that it shares with ``reference``;
            one that shares none is left out.
        reference: one of the methods.
    """
    from scipy.stats import wilcoxon

    found: dict[str, Difference] = {}
    for method, by_dataset in scores.items():
        shared = [dataset for dataset in by_dataset if dataset in scores[reference]]
        if method == reference or not shared:
            continue
        differences = [by_dataset[dataset] - scores[reference][dataset] for dataset in shared]
        p = math.nan
        if len(shared) > 1:  # without any difference, the test has nothing to rank
            p = float(wilcoxon(differences).pvalue) if any(differences) else 1.0
        found[method] = Difference(estimate(differences), p, math.nan, *_wins_and_losses(differences))
    tested = [method for method, difference in found.items() if not math.isnan(difference.p)]
    for method, adjusted in zip(tested, holm([found[method].p for method in tested]), strict=True):
        one = found[method]
        found[method] = Difference(one.estimate, one.p, adjusted, one.wins, one.losses)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: of m, the i-th smallest times m - i + 1, never below a smaller one's, at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for smaller, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - smaller) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def rank(scores: Scores, level: float = 0.95) -> Ranking:
    """Mean ranks of K methods over N datasets, Friedman's test, and Nemenyi's critical difference.

    Args:
        scores: (N, K) without gaps.

    Raises:
        ValueError: there is no dataset, or no method.
    """
    from scipy.stats import chi2, rankdata

    datasets, methods = scores.shape
    if not datasets or not methods:
        raise ValueError(f"nothing to rank in scores of shape {scores.shape}")
    ranks = rankdata(-scores, axis=1)
    means = ranks.mean(axis=0)
    statistic = p = math.nan
    # Within a dataset, ranks vary by K (K + 1) / 12, and by less if some are tied.
    spread = float(ranks.var(axis=1, ddof=1).sum())
    if methods > 2 and datasets > 1 and spread:
        statistic = float(datasets**2 * ((means - (methods + 1) / 2) ** 2).sum() / spread)
        p = float(chi2.sf(statistic, methods - 1))
    return Ranking(tuple(means), statistic, p, critical_difference(methods, datasets, level), datasets)


def critical_difference(methods: int, datasets: int, level: float = 0.95) -> float:
    """Nemenyi's: two of ``methods`` whose mean ranks over ``datasets`` differ by more are different; NaN for one."""
    if methods < 2:
        return math.nan
    from scipy.stats import studentized_range

    quantile = float(studentized_range.ppf(level, methods, math.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * datasets))


def alike(mean_ranks: Sequence[float], difference: float) -> list[tuple[int, ...]]:
    """The largest groups of methods, as indices from the best on, whose mean ranks differ by no more than
    ``difference``: the bars of a rank diagram."""
    order = sorted(range(len(mean_ranks)), key=lambda i: mean_ranks[i])
    groups: list[tuple[int, ...]] = []
    for start, best in enumerate(order):
        group = tuple(i for i in order[start:] if mean_ranks[i] - mean_ranks[best] <= difference)
        if len(group) > 1 and not any(set(group) <= set(other) for other in groups):
            groups.append(group)
    return groups


def harmonic_mean(base: float, new: float) -> float:
    """H of the accuracies on base and on new classes; 0 if one of them is 0. Average over datasets first."""
    return 2 * base * new / (base + new) if base + new else 0.0


def rank_correlation(x: Sequence[float], y: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """Spearman's correlation and the ends of its confidence interval; NaN if undefined.

    The interval uses Fisher's z with variance (1 + r^2 / 2) / (n - 3).
    """
    from scipy.stats import norm, spearmanr

    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} values cannot be paired")
    if len(x) < 2 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan, math.nan, math.nan
    r = float(spearmanr(x, y).statistic)
    if len(x) < 4 or abs(r) >= 1:
        return r, math.nan, math.nan
    half = float(norm.ppf(0.5 + level / 2)) * math.sqrt((1 + r * r / 2) / (len(x) - 3))
    z = math.atanh(r)
    return r, math.tanh(z - half), math.tanh(z + half)


def permutation_p(x: Sequence[float], y: Sequence[float], draws: int = 9999, seed: int = 0) -> float:
    """p-value of the two-sided permutation test that Spearman's correlation is zero; NaN if it is undefined.

    It is the share of pairings of ``x`` with ``y`` whose correlation is at least as large: of all of them for up to
    eight pairs, else of ``draws`` random ones and the pairing at hand.
    """
    from scipy.stats import rankdata

    if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    first, second = (rankdata(values) - (len(x) + 1) / 2 for values in (x, y))
    least = abs(float(first @ second)) - 1e-9
    if len(x) <= 8:
        pairings = np.array(list(itertools.permutations(second)))
        return float(np.mean(np.abs(pairings @ first) >= least))
    random = np.random.default_rng(seed)
    count = sum(abs(float(first @ random.permutation(second))) >= least for _ in range(draws))
    return (1 + count) / (1 + draws)
