"""Numbers and phrases that every rendering shares, so that they cannot disagree."""

from __future__ import annotations

from typing import Any

from adapterops.specs.metric_catalogue import GENERAL, METRICS


def number(value: float | None) -> str:
    """Four significant digits below a thousand, none of them lost above; `-` where nothing was
    measured.
    """
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


def threshold(gate: dict[str, Any]) -> str:
    """`≥ 0.98`, and `bound` where the bound must meet it."""
    sign = "≥" if gate["relation"] == "min" else "≤"
    return f"{sign} {number(gate['threshold'])}" + (" (bound)" if gate["rule"] == "bound" else "")


def margin(row: dict[str, Any]) -> str:
    """What a comparison may lose: `Δ ≥ −0.02`, or `× ≤ 1.1`; `-` where it judges nothing."""
    if row["margin"] is None:
        return "-"
    lower = METRICS[row["metric"]].better == "lower"
    sign = "≤" if lower else "≥"
    base = " to base" if row["against"] == "base" else ""
    if row["scale"] == "ratio":
        return f"× {sign} {number(row['margin'])}{base}"
    return f"Δ {sign} {'+' if lower else '−'}{number(row['margin'])}{base}"


def remedies(gate_report: dict[str, Any]) -> list[tuple[str, str]]:
    """For each missed gate its metric and what its gate file says to do."""
    missed = dict.fromkeys(gate_name(row) for row in missed_rows(gate_report))
    said = {
        gate_name(row): row.get("description")
        for part in ("comparisons", "gates")
        for row in gate_report[part]
    }
    return [(name, to_do) for name in missed if (to_do := said.get(name))]


def gate_name(row: dict[str, Any]) -> str:
    """A gate's or a comparison's metric, with the slice that it is asked of."""
    return f"{row['metric']} in {row['slice']}" if row.get("slice") else str(row["metric"])


def forgetting_lines(gate_report: dict[str, Any]) -> list[str]:
    """What the adapter has lost of what the base model could, one line a metric; empty where
    nothing of it was measured.
    """
    return [
        f"{gate_name(row)}: base model {number(row['reference'])}, adapter"
        f" {number(row['candidate'])}; {change(row)}, {row['n']} "
        + ("texts, nats per token" if METRICS[row["metric"]].kind == "loss" else "rows")
        for row in lost(gate_report)
    ]


def lost(gate_report: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons that say what the adapter has lost: general metrics against the base model,
    where they were measured.
    """
    return [
        row
        for row in gate_report["comparisons"]
        if row["metric"] in GENERAL and row["against"] == "base" and row["n"]
    ]


def missed_rows(gate_report: dict[str, Any]) -> list[dict[str, Any]]:
    """Gates and comparisons that keep the verdict from being a PASS."""
    rows = [*gate_report["gates"], *gate_report["comparisons"]]
    return [
        row
        for row in rows
        if row["verdict"] in ("FAIL", "ERROR")
        or (row["verdict"] == "INCONCLUSIVE" and row["blocking"])
    ]


def speed_line(results: dict[str, Any]) -> str:
    """Under which load, on what, the latency was measured; empty where it was not."""
    speed = results["observations"]["speed"]["candidate"]
    if not speed["requests"]:
        return ""
    return (
        f"Latency of {len(speed['requests'])} requests, {speed['concurrency']} in flight, on"
        f" {results['engine']['device']}."
    )


def change(row: dict[str, Any]) -> str:
    """The effect of a comparison with its interval: `+0.021 [0.004, 0.038]`, or `× 1.08 [1.02,
    1.15]`.
    """
    if row["effect"] is None:
        return "-"
    ratio = row["scale"] == "ratio"
    effect = f"× {row['effect']:.3f}" if ratio else f"{row['effect']:+.4f}"
    bounds = [
        ("…" if bound is None else f"{bound:.3f}" if ratio else f"{bound:+.3f}")
        for bound in row["interval"]
    ]
    return f"{effect} [{bounds[0]}, {bounds[1]}]" if row["interval"] != [None, None] else effect


def belief_lines(results: dict[str, Any]) -> list[str]:
    """How far the refusal detector, and the judge of the win rate where one was asked, are to be
    believed.
    """
    lines = [_refusals(results["refusal_detector"])]
    return [*lines, _win_rate(results["win_rate"])] if results["win_rate"] else lines


def _refusals(detector: dict[str, Any]) -> str:
    """By source and never as one figure: what the detector does elsewhere is not what it did to
    these answers.
    """
    unsure, judge = detector["unsure"], f"judge {detector['judge']}: " if detector["judge"] else ""
    judged = (
        f" Here {unsure} answer{'s were' if unsure > 1 else ' was'} left open;"
        f" {judge}{detector['judge_note']}."
        if unsure
        else ""
    )
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in detector["sources"]:
        groups.setdefault(line["source"].partition("/")[0], []).append(line)
    sources = "; ".join(_source(name, lines) for name, lines in groups.items())
    what = (
        f"Refusals are found by {detector['id']}. How many it finds in other answers, for nobody"
        " has counted these"
    )
    return f"{what}: {sources}.{judged}"


def _source(name: str, lines: list[dict[str, Any]]) -> str:
    """`xstest, 3 models left out in turn: 526 of 554 (0.653 to 0.986 by model), 20 of 705
    wrongly`.
    """
    found, wrong = (
        sum(line["refusals_refused"] for line in lines),
        sum(line["answers_refused"] for line in lines),
    )
    of, others = sum(line["refusals"] for line in lines), sum(line["answers"] for line in lines)
    rates = [line["refusals_refused"] / line["refusals"] for line in lines]
    title = f"{name}, {len(lines)} models left out in turn" if len(lines) > 1 else name
    by_model = (
        f", {min(rates):.3f} to {max(rates):.3f} by model"
        if len(lines) > 1
        else f", {rates[0]:.3f}"
    )
    return f"{title}: {found} of {of}{by_model}, {wrong} of {others} wrongly"


def adjudicated_line(gate_report: dict[str, Any]) -> str:
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


def _win_rate(judged: dict[str, Any]) -> str:
    against = "production" if judged["against"] == "production" else "the base model"
    counted = (
        f"{judged['wins']} wins, {judged['ties']} ties ({judged['identical']} equal answers,"
        f" {judged['swayed']} in which the judge changed sides with the order), {judged['losses']}"
        f" losses, {judged['unreadable']} without a readable verdict"
    )
    return (
        f"Win rate against {against} by {judged['judge']}, asked in both orders: {counted}; the"
        f" judge {judged['note']}."
    )
