"""Intervals cover what they promise, agree with scipy and statsmodels, and never shrink to
nothing."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from adapterops.statistics.intervals import (
    effective_size,
    independent_exceedances,
    mean_interval,
    quantile_interval,
    rate_interval,
)

EXPERIMENTS = 2_000
# Three standard errors of a proportion of 0.05 seen in 2,000 experiments.
SLACK = 3 * math.sqrt(0.05 * 0.95 / EXPERIMENTS)


def rate(hits, n, confidence=0.95):
    return rate_interval([True] * hits + [False] * (n - hits), range(n), confidence)


@pytest.mark.parametrize(
    ("hits", "n"), [(0, 30), (1, 30), (49, 50), (147, 150), (150, 150), (288, 300)]
)
def test_rates_agree_with_scipy_and_statsmodels(hits, n):
    low, high = rate(hits, n)
    assert (low, high) == pytest.approx(
        proportion_confint(hits, n, alpha=0.10, method="beta"), abs=1e-9, nan_ok=True
    )
    exact = stats.binomtest(hits, n).proportion_ci(0.90, "exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-9)


@pytest.mark.parametrize(("failures", "needed"), [(0, 149), (1, 236), (3, 386)])
def test_as_many_rows_are_needed_to_show_98_percent_as_the_tables_say(failures, needed):
    assert rate(needed - failures, needed).low >= 0.98
    assert rate(needed - 1 - failures, needed - 1).low < 0.98


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.98, 0.999, 1.0])
@pytest.mark.parametrize("n", [20, 100, 300])
def test_the_bounds_of_a_rate_hold_in_each_of_all_possible_outcomes_weighed_by_chance(n, truth):
    """Exact, without simulation: the chance that a bound is on the wrong side of the truth is at
    most 5 %."""
    hits = np.arange(n + 1)
    chance = stats.binom.pmf(hits, n, truth)
    bounds = [rate(int(k), n) for k in hits]
    assert sum(p for p, bound in zip(chance, bounds, strict=True) if bound.low > truth) <= 0.05
    assert sum(p for p, bound in zip(chance, bounds, strict=True) if bound.high < truth) <= 0.05


@pytest.mark.parametrize("share", [0, 1])
def test_an_interval_at_none_or_all_has_a_width(share):
    low, high = rate(50 * share, 50)
    assert high - low == pytest.approx(1 - 0.05 ** (1 / 50))


def test_the_bounds_of_a_mean_cover_at_their_nominal_rate():
    random = np.random.default_rng(7)
    truth = 8 / 11  # mean of Beta(8, 3): skewed like ROUGE-L
    bounds = [
        mean_interval(random.beta(8, 3, 120), range(120), 0.95, seed, (0, 1), resamples=799)
        for seed in range(EXPERIMENTS)
    ]
    assert abs(np.mean([bound.low > truth for bound in bounds]) - 0.05) < SLACK + 0.005
    assert abs(np.mean([bound.high < truth for bound in bounds]) - 0.05) < SLACK + 0.005


def test_the_bounds_of_a_mean_agree_with_scipys_bca_and_are_the_same_every_time():
    values = np.random.default_rng(1).beta(8, 3, 200)
    reference = stats.bootstrap(
        (values,), np.mean, confidence_level=0.90, n_resamples=9_999, rng=np.random.default_rng(5)
    )
    found = mean_interval(values, range(200), 0.95, 5, (0, 1))
    assert found == pytest.approx(
        (reference.confidence_interval.low, reference.confidence_interval.high), abs=1e-3
    )
    assert found == mean_interval(values, range(200), 0.95, 5, (0, 1))


def test_a_mean_of_equal_values_is_not_certain():
    low, high = mean_interval([0.7] * 58, range(58), 0.95, 1, (0, 1))
    assert low == pytest.approx(0.7 * 0.05 ** (1 / 58))
    assert high > 0.7


def test_differences_that_are_equal_but_for_rounding_are_not_certain_either():
    """0.75 - 0.7 and 0.85 - 0.8 differ in the last bit; a BCa interval of them does not exist."""
    low, high = mean_interval([0.75 - 0.7, 0.85 - 0.8] * 100, range(200), 0.95, 1, (-1, 1))
    assert low < 0.05 < high
    assert high - low < 0.04


def grouped(random, groups, size, spread=0.15):
    """Rows of one group share a part of their value."""
    shared = random.normal(0, spread, groups).repeat(size)
    return 0.6 + shared + random.normal(0, 0.05, groups * size), np.arange(groups).repeat(size)


def test_rows_of_one_source_widen_the_interval_as_whole_groups_are_resampled():
    random = np.random.default_rng(3)
    covered, naive = [], []
    for seed in range(500):
        values, groups = grouped(random, 40, 5)
        covered.append(mean_interval(values, groups, 0.95, seed, (-1, 2), resamples=599).low <= 0.6)
        naive.append(
            mean_interval(values, range(200), 0.95, seed, (-1, 2), resamples=599).low <= 0.6
        )
    assert np.mean(covered) > 0.92
    assert (
        np.mean(naive) < 0.85
    )  # what treating the rows as independent would have promised and not kept


def test_rates_count_groups_that_agree_with_themselves_once():
    outcomes, groups = (
        [True, True, True, False, False, False] * 10,
        [index // 3 for index in range(60)],
    )
    assert effective_size([float(value) for value in outcomes], groups) == pytest.approx(
        20 * 19 / 20
    )
    assert rate_interval([True] * 60, groups, 0.95) == pytest.approx(rate(20, 20))
    assert rate_interval(outcomes, groups, 0.95).low < rate(30, 60).low


@pytest.mark.parametrize(
    ("n", "low_rank", "high_rank"), [(58, 52, None), (59, 53, 59), (200, 185, 196)]
)
def test_the_95th_percentile_is_bounded_by_order_statistics(n, low_rank, high_rank):
    turns = [
        value
        for pair in zip(range(n // 2, 0, -1), range(n // 2 + 1, n + 1), strict=False)
        for value in pair
    ]
    values = turns + [n] * (n % 2)  # small and large in turn: no slow spell
    assert quantile_interval(values, 0.95, 0.95) == (low_rank, high_rank)


def test_the_bounds_of_the_95th_percentile_hold_for_a_long_tailed_latency():
    random = np.random.default_rng(11)
    truth = float(np.exp(6 + 0.5 * stats.norm.ppf(0.95)))
    bounds = [
        quantile_interval(random.lognormal(6, 0.5, 200), 0.95, 0.95) for _ in range(EXPERIMENTS)
    ]
    assert np.mean([bound.low > truth for bound in bounds]) <= 0.05 + SLACK
    assert np.mean([bound.high < truth for bound in bounds]) <= 0.05 + SLACK


# --- requests that follow each other ---


def spells(random, phi, experiments, n):
    """Standard normal series in which each value keeps a share `phi` of the one before."""
    noise = random.standard_normal((experiments, n))
    series = np.empty_like(noise)
    series[:, 0] = noise[:, 0]
    for place in range(1, n):
        series[:, place] = phi * series[:, place - 1] + math.sqrt(1 - phi * phi) * noise[:, place]
    return series


@pytest.mark.parametrize("phi", [0.0, 0.3, 0.5, 0.7])
def test_the_bounds_of_the_95th_percentile_hold_where_slow_requests_come_in_spells(phi):
    """As if each request were independent, 200 of them miss by 0.09 and 0.07 at phi = 0.5."""
    truth, experiments = stats.norm.ppf(0.95), 1_000
    bounds = [
        quantile_interval(values, 0.95, 0.95)
        for values in spells(np.random.default_rng(21), phi, experiments, 200)
    ]
    slack = 3 * math.sqrt(0.05 * 0.95 / experiments)
    assert (
        np.mean([bound.low is not None and bound.low > truth for bound in bounds])
        <= 0.05 + slack / 2
    )
    assert (
        np.mean([bound.high is not None and bound.high < truth for bound in bounds])
        <= 0.05 + slack / 2
    )


def test_requests_in_spells_count_for_fewer():
    random = np.random.default_rng(22)
    worth = [
        independent_exceedances(spells(random, phi, 1, 400)[0], 0.95) for phi in (0.0, 0.5, 0.8)
    ]
    assert worth[0] > 300 > worth[1] > worth[2] > 20
    assert independent_exceedances([1.0] * 50, 0.95) == 50
