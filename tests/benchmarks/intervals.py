"""How often the bounds of the gate are wrong: the tables of docs/measurements/intervals.md.

python tests/benchmarks/intervals.py paired [--step 1]        levels of paired rates, every n
python tests/benchmarks/intervals.py candidates               other limits of paired rates
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

from adapterops.gate import paired  # noqa: E402

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
        first, last = max(int(n * loss[part[0]] - spread), 0), min(int(n * loss[part[-1]] + spread), n)
        losses = np.arange(first, last + 1)
        rest, least = n - losses, region[losses]
        tail = special.bdtrc(least - 1.0, rest, np.minimum(gain[part] / (1 - loss[part]), 1.0)[:, None])
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
            found = [(*level(paired.least_gains(n, bar, 1 - LEVEL), n, bar, shares), n) for n in sizes]
            worst = max(found)
            mean = np.mean([chance for chance, *_ in found])
            print(
                f"| {margin:g} | false {wrong} | {len(found)} of 20–1,000 | {worst[0]:.5f} | {worst[2]} | {worst[1]:.3f} | {mean:.3f} |",
                flush=True,
            )


def _region(limit: Callable[[int, int, int], float], n: int, bar: float, most: int) -> Numbers:
    """Least gains by losses of a limit; it grows with the gains. More losses than `most` never pass."""
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
    """Square-and-add on the two Wilson limits of gains and losses (Newcombe 1998, without its phi)."""
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
    print("| limit | worst false PASS | worst false FAIL | P(PASS, equal), margin 0.02 / 0.05: n = 239 | n = 461 |")
    print("|---|---|---|---|---|")
    for name, limit in [("exact (Buehler) by the score limit", None), *limits.items()]:
        worst, power = {"PASS": (0.0, 0), "FAIL": (0.0, 0)}, {}
        for n in sizes:
            for margin in MARGINS[:3]:
                for wrong, bar in (("PASS", -margin), ("FAIL", margin)):
                    region = _region(limit, n, bar, 60) if limit else paired.least_gains(n, bar, 1 - LEVEL)
                    worst[wrong] = max(worst[wrong], (level(region, n, bar, 201)[0], n))
                    if wrong == "PASS":
                        power[n, margin] = paired.chance(region, n, 0.005, 0.005)
        shown = " | ".join(f"{power[n, 0.02]:.2f} / {power[n, 0.05]:.2f}" for n in (239, 461))
        levels_ = " | ".join(f"{worst[wrong][0]:.4f} (n = {worst[wrong][1]})" for wrong in ("PASS", "FAIL"))
        print(f"| {name} | {levels_} | {shown} |", flush=True)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("paired", "candidates"))
    parser.add_argument("--step", type=int, default=1, help="of n")
    parser.add_argument("--shares", type=int, default=301, help="shares of changed rows that are tried for each n")
    parser.add_argument("--margin", type=float, action="append", help="only this one; several times")
    options = parser.parse_args()
    started = time.monotonic()
    if options.table == "paired":
        levels(options.step, options.shares, options.margin or list(MARGINS))
    else:
        candidates()
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
