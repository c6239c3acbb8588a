"""Numbers and phrases that every rendering shares, so that they cannot disagree."""

from __future__ import annotations

from adapterops.gate.verdicts import is_missed
from adapterops.shapes.eval_results import (
    EvalResults,
    RefusalDetector,
    SourceFigures,
    WinRate,
)
from adapterops.shapes.gate_report import Comparison, Gate, GateReport
from adapterops.specs.metric_catalogue import GENERAL, METRICS, reference_name


def number(value: float | None) -> str:
    """Four significant digits, or all before the point; `-` where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def interval(bounds: list[float | None]) -> str:
    """`0.93–0.99`; a bound that does not exist is `…`."""
    low, high = bounds
    if low is None and high is None:
        return "-"
    return "–".join(
        "…" if bound is None else f"{bound:,.0f}" if abs(bound) >= 1000 else f"{bound:.3g}"
        for bound in (low, high)
    )


def threshold(gate: Gate) -> str:
    """`≥ 0.98`, and `bound` where the bound must meet it."""
    sign = "≥" if gate["relation"] == "min" else "≤"
    return f"{sign} {number(gate['threshold'])}" + (" (bound)" if gate["rule"] == "bound" else "")


def margin(row: Comparison) -> str:
    """What a comparison may lose: `Δ ≥ −0.02`, or `× ≤ 1.1`; `-` where it judges nothing."""
    if row["margin"] is None:
        return "-"
    lower = METRICS[row["metric"]].better == "lower"
    sign = "≤" if lower else "≥"
    base = " to base" if row["against"] == "base" else ""
    if row["scale"] == "ratio":
        return f"× {sign} {number(row['margin'])}{base}"
    return f"Δ {sign} {'+' if lower else '−'}{number(row['margin'])}{base}"


def remedies(gate_report: GateReport) -> list[tuple[str, str]]:
    """For each missed gate its metric and what its gate file says to do."""
    missed = dict.fromkeys(gate_name(row) for row in missed_rows(gate_report))
    rows: list[Gate | Comparison] = [*gate_report["comparisons"], *gate_report["gates"]]
    said = {gate_name(row): row.get("description") for row in rows}
    return [(name, to_do) for name in missed if (to_do := said.get(name))]


def gate_name(row: Gate | Comparison) -> str:
    """A gate's or a comparison's metric, with the slice that it is asked of."""
    return f"{row['metric']} in {row['slice']}" if row.get("slice") else row["metric"]


def forgetting_lines(gate_report: GateReport) -> list[str]:
    """What the adapter has lost of what the base model could, one line a measured metric."""
    return [
        f"{gate_name(row)}: base model {number(row['reference'])}, adapter"
        f" {number(row['candidate'])}; {change(row)}, {row['n']} "
        + ("texts, nats per token" if METRICS[row["metric"]].kind == "loss" else "rows")
        for row in lost(gate_report)
    ]


def lost(gate_report: GateReport) -> list[Comparison]:
    """The comparisons that say what the adapter has lost, where it was measured."""
    return [
        row
        for row in gate_report["comparisons"]
        if row["metric"] in GENERAL and row["against"] == "base" and row["n"]
    ]


def missed_rows(gate_report: GateReport) -> list[Gate | Comparison]:
    """Gates and comparisons that keep the verdict from being a PASS."""
    rows: list[Gate | Comparison] = [*gate_report["gates"], *gate_report["comparisons"]]
    return [row for row in rows if is_missed(row)]


def speed_line(results: EvalResults) -> str:
    """Under which load, on what, the latency was measured; empty where it was not."""
    speed = results["observations"]["speed"]["candidate"]
    if not speed["requests"]:
        return ""
    return (
        f"Latency of {len(speed['requests'])} requests, {speed['concurrency']} in flight, on"
        f" {results['engine']['device']}."
    )


def change(row: Comparison) -> str:
    """The effect of a comparison with its interval: `+0.02 [0.01, 0.03]`, `× 1.08 [1.02, 1.15]`."""
    if row["effect"] is None:
        return "-"
    ratio = row["scale"] == "ratio"
    effect = f"× {row['effect']:.3f}" if ratio else f"{row['effect']:+.4f}"
    bounds = [
        ("…" if bound is None else f"{bound:.3f}" if ratio else f"{bound:+.3f}")
        for bound in row["interval"]
    ]
    return f"{effect} [{bounds[0]}, {bounds[1]}]" if row["interval"] != [None, None] else effect


def belief_lines(results: EvalResults) -> list[str]:
    """How far the refusal detector, and the win rate's judge if one was asked, can be believed."""
    lines = [_refusals(results["refusal_detector"])]
    return [*lines, _win_rate(results["win_rate"])] if results["win_rate"] else lines


def _refusals(detector: RefusalDetector) -> str:
    """By source and never as one figure: elsewhere is not here."""
    unsure, judge = detector["unsure"], f"judge {detector['judge']}: " if detector["judge"] else ""
    left_open = f" Here {unsure} answer{'s were' if unsure > 1 else ' was'} left open;"
    judged = f"{left_open} {judge}{detector['judge_note']}." if unsure else ""
    groups: dict[str, list[SourceFigures]] = {}
    for line in detector["sources"]:
        groups.setdefault(line["source"].partition("/")[0], []).append(line)
    sources = "; ".join(_source(name, lines) for name, lines in groups.items())
    what = (
        f"Refusals are found by {detector['id']}. How many it finds in other answers, for nobody"
        " has counted these"
    )
    return f"{what}: {sources}.{judged}"


def _source(name: str, lines: list[SourceFigures]) -> str:
    """`xstest, 3 models left out in turn: 526 of 554, 0.653 to 0.986 by model, 20 of 705 wrongly`.

    One line is one model, or a source without models.
    """
    found = sum(line["refusals_refused"] for line in lines)
    wrong = sum(line["answers_refused"] for line in lines)
    of, others = sum(line["refusals"] for line in lines), sum(line["answers"] for line in lines)
    rates = [line["refusals_refused"] / line["refusals"] for line in lines]
    title, by_model = name, f"{rates[0]:.3f}"
    if len(lines) > 1:
        title = f"{name}, {len(lines)} models left out in turn"
        by_model = f"{min(rates):.3f} to {max(rates):.3f} by model"
    return f"{title}: {found} of {of}, {by_model}, {wrong} of {others} wrongly"


def adjudicated_line(gate_report: GateReport) -> str:
    """What people's labels did to the verdict; empty where there are none."""
    about = gate_report["adjudicated"]
    if not about["labels"]:
        return ""
    unused = about["labels"] - about["used"]
    rest = f"; {unused} are of answers that nobody gives now, and do nothing" if unused else ""
    return (
        f"Judged by people: {about['used']} answers, of which {about['changed']} outcomes changed"
        f" ({about['path']}){rest}."
    )


def _win_rate(judged: WinRate) -> str:
    counted = (
        f"{judged['wins']} wins,"
        f" {judged['ties']} ties ({judged['identical']} equal answers, {judged['swayed']} in which"
        " the judge changed sides with the order),"
        f" {judged['losses']} losses, {judged['unreadable']} without a readable verdict"
    )
    who = f"Win rate against {reference_name(judged['against'])} by {judged['judge']}"
    return f"{who}, asked in both orders: {counted}; the judge {judged['note']}."
