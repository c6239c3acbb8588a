"""How often the bounds of the gate are wrong: the tables of docs/measurements/intervals.md.

python tests/benchmarks/intervals.py paired [--step 1]        levels of paired rates, every n
python tests/benchmarks/intervals.py candidates               other limits of paired rates
python tests/benchmarks/intervals.py latency                  latencies in spells, sides in \\
    turn or not
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from adapterops.gate.evidence import nearest_rank_p95  # noqa: E402
from adapterops.statistics import intervals, paired  # noqa: E402

Numbers = NDArray[Any]
MARGINS = (0.02, 0.03, 0.05, 0.10)
LEVEL = 0.05


def level(region: Numbers, n: int, difference: float, shares: int = 801) -> tuple[float, float]:
    """The greatest chance of a region at a true difference, and the share of changed rows there.

    Summed over all outcomes by scipy's binomial distribution: losses, then gains among the rest.
    """
    share = (1 - abs(difference)) / 2 * np.sin(np.linspace(0, math.pi / 2, shares)) ** 2
    gain, loss = share + max(difference, 0.0), share + max(-difference, 0.0)
    spread = 7 * math.sqrt(n) / 2 + 12
    chances = np.zeros(shares)
    for part in np.array_split(np.arange(shares), max(1, shares // 50)):
        first, last = (
            max(int(n * loss[part[0]] - spread), 0),
            min(int(n * loss[part[-1]] + spread), n),
        )
        losses = np.arange(first, last + 1)
        rest, least = n - losses, region[losses]
        tail = special.bdtrc(
            least - 1.0, rest, np.minimum(gain[part] / (1 - loss[part]), 1.0)[:, None]
        )
        tail = np.where(least <= 0, 1.0, np.where(least > rest, 0.0, tail))
        chances[part] = (stats.binom.pmf(losses, n, loss[part][:, None]) * tail).sum(axis=1)
    best = int(chances.argmax())
    return float(chances[best]), float(gain[best] + loss[best])


def levels(step: int, shares: int, margins: list[float]) -> None:
    """The worst n of each margin and direction."""
    print("| margin | wrong | n | worst level | at n | changed rows | mean level |")
    print("|---|---|---|---|---|---|---|")
    for margin in margins:
        for wrong, bar in (("PASS", -margin), ("FAIL", margin)):
            sizes = range(20, 1_001, step)
            found = [
                (*level(paired.least_gains(n, bar, 1 - LEVEL), n, bar, shares), n) for n in sizes
            ]
            worst = max(found)
            mean = np.mean([chance for chance, *_ in found])
            print(
                f"| {margin:g} | false {wrong} | {len(found)} of 20–1,000 | {worst[0]:.5f} |"
                f" {worst[2]} | {worst[1]:.3f} | {mean:.3f} |",
                flush=True,
            )


def _region(limit: Callable[[int, int, int], float], n: int, bar: float, most: int) -> Numbers:
    """Least gains by losses of a limit; it grows with the gains. More losses than `most` never
    pass."""
    least = np.full(n + 1, n + 1)
    start = 0
    for losses in range(min(most, n) + 1):
        k = start
        while k <= n - losses and limit(k, losses, n) <= bar:
            k += 1
        least[losses] = start = k
    return least


def _tango(correction: float) -> Callable[[int, int, int], float]:
    z = float(special.ndtri(1 - LEVEL))

    def limit(gains: int, losses: int, n: int) -> float:
        """By bisection: the least difference whose statistic, less the correction, is below z."""
        low, high = -1 + 1e-12, (gains - losses) / n
        for _ in range(40):
            middle = (low + high) / 2
            a, c = 2 * n, -losses * middle * (1 - middle)
            b = -gains - losses + (2 * n - gains + losses) * middle
            share = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
            spread = math.sqrt(max(n * (2 * share + middle * (1 - middle)), 1e-300))
            far = (gains - losses - n * middle - correction) / spread >= z
            low, high = (middle, high) if far else (low, middle)
        return low

    return limit


def _newcombe(gains: int, losses: int, n: int) -> float:
    """Square-and-add on the two Wilson limits of gains and losses (Newcombe 1998, without its
    phi)."""
    z = float(special.ndtri(1 - LEVEL))

    def wilson(hits: int, sign: int) -> float:
        share = hits / n
        root = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
        return (share + z * z / (2 * n) + sign * root) / (1 + z * z / n)

    up, down = gains / n, losses / n
    return up - down - math.hypot(up - wilson(gains, -1), wilson(losses, 1) - down)


def _two_exact(gains: int, losses: int, n: int) -> float:
    """The error shared by two exact limits (Clopper & Pearson), of gains and of losses."""
    low = float(stats.beta.ppf(LEVEL / 2, gains, n - gains + 1)) if gains else 0.0
    high = float(stats.beta.ppf(1 - LEVEL / 2, losses + 1, n - losses)) if losses < n else 1.0
    return low - high


def candidates() -> None:
    """Level and power of the limits that were considered, over some n."""
    limits = {
        "score (Tango 1998), as it was": _tango(0.0),
        "score, corrected by 1/4": _tango(0.25),
        "score, corrected by 1/2": _tango(0.5),
        "square and add (Newcombe 1998)": _newcombe,
        "two exact limits (Bonferroni)": _two_exact,
    }
    sizes = (65, 100, 133, 156, 200, 239, 300, 461, 700)
    print(
        "| limit | worst false PASS | worst false FAIL | P(PASS, equal), margin 0.02 / 0.05: n ="
        " 239 | n = 461 |"
    )
    print("|---|---|---|---|---|")
    for name, limit in [("exact (Buehler) by the score limit", None), *limits.items()]:
        worst, power = {"PASS": (0.0, 0), "FAIL": (0.0, 0)}, {}
        for n in sizes:
            for margin in MARGINS[:3]:
                for wrong, bar in (("PASS", -margin), ("FAIL", margin)):
                    region = (
                        _region(limit, n, bar, 60)
                        if limit
                        else paired.least_gains(n, bar, 1 - LEVEL)
                    )
                    worst[wrong] = max(worst[wrong], (level(region, n, bar, 201)[0], n))
                    if wrong == "PASS":
                        power[n, margin] = paired.chance(region, n, 0.005, 0.005)
        shown = " | ".join(f"{power[n, 0.02]:.2f} / {power[n, 0.05]:.2f}" for n in (239, 461))
        levels_ = " | ".join(
            f"{worst[wrong][0]:.4f} (n = {worst[wrong][1]})" for wrong in ("PASS", "FAIL")
        )
        print(f"| {name} | {levels_} | {shown} |", flush=True)


def _spells(random: np.random.Generator, phi: float, n: int) -> Numbers:
    """Standard normal values of which each keeps a share of the one before."""
    series = random.standard_normal(n)
    for place in range(1, n):
        series[place] = phi * series[place - 1] + math.sqrt(1 - phi * phi) * series[place]
    return series


def latency(experiments: int) -> None:
    """One-sided errors at the bar: of the 95th percentile, and of the ratio of two."""
    random, truth = np.random.default_rng(1), float(special.ndtri(0.95))
    print(
        "| phi | n | p95, each request alone: low / high | p95, as judged: low / high | no upper"
        " bound |"
    )
    print("|---|---|---|---|---|")
    for n in (100, 200, 400):
        for phi in (0.0, 0.3, 0.5, 0.7):
            below, above = intervals.quantile_ranks(n, 0.95, 0.95)
            wrong = np.zeros(5)
            for _ in range(experiments):
                values = _spells(random, phi, n)
                ranked, found = (
                    np.sort(values),
                    intervals.quantile_interval(values.tolist(), 0.95, 0.95),
                )
                wrong += [
                    ranked[below - 1] > truth,
                    above <= n and ranked[min(above, n) - 1] < truth,
                    found.low is not None and found.low > truth,
                    found.high is not None and found.high < truth,
                    found.high is None,
                ]
            low, high, own_low, own_high, none = wrong / experiments
            print(
                f"| {phi} | {n} | {low:.3f} / {high:.3f} | {own_low:.3f} / {own_high:.3f} |"
                f" {none:.2f} |",
                flush=True,
            )
    print(
        "\n| prompts · noise | phi | one side after the other: false PASS / FAIL | in turn: false"
        " PASS / FAIL |"
    )
    print("|---|---|---|---|")
    for prompts, noise in ((0.5, 0.1), (0.3, 0.3), (0.0, 0.2)):
        for phi in (0.0, 0.3, 0.5, 0.7):
            wrong = np.zeros(4)
            for seed in range(experiments // 4):
                asked = random.normal(0, prompts, 200)
                both = _spells(random, phi, 400).reshape(200, 2)
                both = np.where(random.random((200, 1)) < 0.5, both, both[:, ::-1])
                apart = np.stack([_spells(random, phi, 200), _spells(random, phi, 200)], axis=1)
                for place, spells in enumerate((apart, both)):
                    times = np.exp(asked[:, None] + noise * spells) * (1.1, 1.0)
                    low, high = intervals.ratio_interval(
                        times[:, 0], times[:, 1], nearest_rank_p95, 0.95, seed, 399
                    )
                    wrong[2 * place : 2 * place + 2] += [
                        high is not None and high < 1.1,
                        low is not None and low > 1.1,
                    ]
            one, two, three, four = wrong / (experiments // 4)
            print(
                f"| {prompts} · {noise} | {phi} | {one:.3f} / {two:.3f} | {three:.3f} /"
                f" {four:.3f} |",
                flush=True,
            )


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", choices=("paired", "candidates", "latency"))
    parser.add_argument("--step", type=int, default=1, help="of n")
    parser.add_argument(
        "--shares", type=int, default=301, help="shares of changed rows that are tried for each n"
    )
    parser.add_argument(
        "--margin", type=float, action="append", help="only this one; several times"
    )
    parser.add_argument("--experiments", type=int, default=2_000, help="of each line of `latency`")
    options = parser.parse_args()
    started = time.monotonic()
    if options.table == "paired":
        levels(options.step, options.shares, options.margin or list(MARGINS))
    elif options.table == "latency":
        latency(options.experiments)
    else:
        candidates()
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
