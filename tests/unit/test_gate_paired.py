"""The bounds of a paired difference of rates keep their level: summed over every outcome, not
drawn."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from adapterops.statistics.intervals import paired_rate_interval
from adapterops.statistics.paired import chance, least_gains, paired_bounds

LEVEL = 0.05


def bounds(gains, losses, n, confidence=0.95):
    """Of n rows on which both sides agree but for `gains` and `losses`."""
    agree = n - gains - losses
    candidate = [True] * gains + [False] * losses + [True] * agree
    reference = [False] * gains + [True] * losses + [True] * agree
    return paired_rate_interval(candidate, reference, range(n), confidence)


def edge(n, most, wanted):
    """For each number of losses up to `most` the least gains for which `wanted(low, high)`
    holds."""
    least = np.full(n + 1, n + 1)
    for losses in range(most + 1):
        found = [k for k in range(losses, -1, -1) if wanted(*bounds(k, losses, n))]
        more = (k for k in range(losses + 1, n - losses + 1) if wanted(*bounds(k, losses, n)))
        least[losses] = min(found) if found else next(more, n + 1)
    return least


def greatest_chance(least, n, difference, shares):
    """Of an outcome in the region, by the multinomial distribution itself.

    `shares` are halves of what the difference leaves to rows that change: 0.5 is all of it.
    """
    gains, losses = np.meshgrid(np.arange(n + 1), np.arange(n + 1))
    inside = (gains + losses <= n) & (gains >= least[losses])
    outcomes = np.stack([gains[inside], losses[inside], n - gains[inside] - losses[inside]], axis=1)
    chances = []
    for share in np.asarray(shares) * (1 - abs(difference)):
        truth = np.array([share + max(difference, 0), share + max(-difference, 0)])
        chances.append(stats.multinomial.pmf(outcomes, n, [*truth, 1 - truth.sum()]).sum())
    return max(chances)


def test_133_rows_pass_a_loss_of_the_margin_no_more_often_than_the_level():
    """The score limit alone passes it with 0.068: where no row is lost, and none gained."""
    least = edge(133, 4, lambda low, _: low > -0.02)
    assert greatest_chance(least, 133, -0.02, [0.0, 0.001]) <= LEVEL


def test_156_rows_fail_a_loss_of_the_margin_no_more_often_than_the_level():
    """The score limit alone fails it with 0.099: where six rows are lost and none gained."""
    most = edge(156, 8, lambda low, _: low > 0.02)  # gains and losses change places: -high < -0.02
    assert greatest_chance(most, 156, 0.02, [0.0, 0.003]) <= LEVEL


# The shares are dense where few rows change, and where nearly all do: there a limit that is only
# approximate goes wrong.
SHARES = np.sin(np.linspace(0, np.pi / 2, 201)) ** 2 / 2


@pytest.mark.parametrize("bar", [-0.1, -0.05, -0.02, 0.02, 0.05, 0.1])
@pytest.mark.parametrize("n", [20, 33, 65, 133, 156])
def test_no_true_difference_and_share_of_changes_is_taken_for_better_too_often(n, bar):
    """A negative bar is a false PASS at that margin, a positive one a false FAIL at it.

    `tests/benchmarks/intervals.py` does it for every n from 20 to 1,000.
    """
    assert greatest_chance(least_gains(n, bar, 0.95), n, bar, SHARES) <= LEVEL


@pytest.mark.parametrize(("n", "bar"), [(133, -0.02), (156, 0.02), (239, -0.02), (400, -0.05)])
@pytest.mark.parametrize("confidence", [0.95, 0.975])
def test_the_region_that_passes_is_that_of_the_bounds(n, bar, confidence):
    region = least_gains(n, bar, confidence)
    for losses in (0, 1, 3, 10):
        least = int(region[losses])
        assert paired_bounds(least, losses, n, confidence)[0] > bar
        if least:
            assert paired_bounds(least - 1, losses, n, confidence)[0] <= bar


def test_the_region_stays_within_its_level_where_confidence_is_higher():
    region = least_gains(300, -0.02, 0.975)
    assert greatest_chance(region, 300, -0.02, [0, 0.002, 0.01, 0.05]) <= 0.025


def test_the_chance_of_a_region_is_the_multinomial_sum():
    region = least_gains(65, -0.05, 0.95)
    expected = greatest_chance(region, 65, 0.0, [0.02])
    assert chance(region, 65, 0.02, 0.02) == pytest.approx(expected, abs=1e-8)


def test_more_losses_or_fewer_gains_never_raise_a_bound():
    outcomes = [(g, k) for g, k in itertools.product(range(0, 12, 2), repeat=2)]
    found = {(g, k): bounds(g, k, 60) for g, k in outcomes}
    for (g, k), (low, high) in found.items():
        for other in ((g - 2, k), (g, k + 2)):
            if other in found:
                assert found[other].low <= low + 1e-5
                assert found[other].high <= high + 1e-5


def test_both_bounds_are_mirrors():
    low, high = bounds(12, 2, 14, 0.975)
    assert bounds(2, 12, 14, 0.975) == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    ("gains", "losses", "n"), [(0, 0, 1), (1, 0, 1), (0, 20, 20), (20, 0, 20), (10, 10, 20)]
)
def test_extreme_outcomes_have_bounds_that_hold_the_estimate(gains, losses, n):
    low, high = bounds(gains, losses, n)
    assert -1 <= low <= (gains - losses) / n <= high <= 1


def test_equal_answers_on_200_rows_leave_what_200_rows_can_hide():
    low, high = bounds(0, 0, 200)
    assert low == pytest.approx(-high)
    assert high == pytest.approx(1 - LEVEL ** (1 / 200), abs=5e-5)


def test_rows_of_one_group_count_once():
    """100 groups of two equal rows are worth about 100 rows, and never more."""
    candidate, reference = [True] * 196 + [False] * 4, [True] * 200
    groups = [i // 2 for i in range(200)]
    low, _ = paired_rate_interval(candidate, reference, groups, 0.95)
    assert low <= bounds(0, 2, 99).low + 1e-9
    assert low < bounds(0, 4, 200).low


def test_a_bound_needs_no_more_rows_than_nothing_lost_does():
    """(1 - margin)^n is the chance that a loss of the margin shows in none of n rows."""
    needed = math.ceil(math.log(LEVEL) / math.log(1 - 0.02))
    assert needed == 149
    assert bounds(0, 0, needed).low > -0.02
    assert bounds(0, 0, needed - 1).low <= -0.02
