"""What the shipped gates can decide on the shipped rows: the tables of docs/measurements/power.md.

python tests/benchmarks/power.py
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from adapterops.gate.explain import outlooks_of, rows_of, whole  # noqa: E402
from adapterops.specs.adapter import load_adapter  # noqa: E402
from adapterops.specs.gate import load_gates  # noqa: E402
from adapterops.statistics.power import outlooks  # noqa: E402


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def shipped(name: str) -> None:
    """A line for each threshold and margin."""
    spec = load_adapter(name)
    config = load_gates(spec.evaluation.gate)
    found = outlooks_of(config, rows_of(spec), registered=bool(spec.extension_data))
    print(f"\n`{name}`\n")
    print(
        "| gate | rows or requests | P(PASS), equal | P(PASS), at the bar | P(no PASS), twice as"
        " much worse | P(FAIL), the same |"
    )
    print("|---|---|---|---|---|---|")
    for one in found:
        chances = " | ".join(map(_shown, (one.equal, one.bar, one.worse, one.failed)))
        name = f"`{one.metric}` in `{one.slice}`" if one.slice else f"`{one.metric}`"
        print(f"| {name} {one.asked} | {one.rows} | {chances} |")
    print(f"\n{whole(found)} (product {math.prod(one.passes for one in found):.3f})")


def costs() -> None:
    """Rows that smaller margins take."""
    spec = load_adapter("support-ko")
    gates = {gate.metric: gate for gate in load_gates(spec.evaluation.gate).gates}
    print("\n| margin | `rouge_l` | `format_compliance` | `over_refusal` |")
    print("|---|---|---|---|")
    for margin in (0.02, 0.03, 0.04, 0.05, 0.06):
        cells = []
        for metric in ("rouge_l", "format_compliance", "over_refusal"):
            gate = gates[metric].__class__(
                **{**vars(gates[metric]), "minimum": None, "maximum": None, "margin": margin}
            )
            (one,) = outlooks(gate, 20, 0.95)
            cells.append(str(one.needed))
        print(f"| {margin:g} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print all tables."""
    for path in sorted((ROOT / "adapters").glob("*.yaml")):
        shipped(path.stem)
    costs()


if __name__ == "__main__":
    main()
