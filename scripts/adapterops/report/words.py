"""Numbers and phrases that every rendering shares, so that they cannot disagree."""

from __future__ import annotations

import re
from typing import Any

from adapterops.evaluate.catalogue import GENERAL, METRICS

# Control characters, and the marks that turn the direction of whatever follows: text could read otherwise than it is.
_UNSEEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def number(value: float | None) -> str:
    """Four significant digits below a thousand, none of them lost above; `-` where nothing was measured."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def interval(bounds: list[float | None]) -> str:
    """`0.93–0.99`; a bound that does not exist is `…`."""
    low, high = bounds
    if low is None and high is None:
        return "-"
    return "–".join("…" if bound is None else f"{bound:,.0f}" if abs(bound) >= 1000 else f"{bound:.3g}" for bound in (low, high))


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


def visible(text: str) -> str:
    """Text in which what would not be seen, or would turn the direction of reading, stands as its code point."""
    return _UNSEEN.sub(lambda match: f"<U+{ord(match.group()):04X}>", text)


def remedies(gate_report: dict[str, Any]) -> list[tuple[str, str]]:
    """For each missed gate its metric and what its gate file says to do."""
    missed = dict.fromkeys(gate_name(row) for row in missed_rows(gate_report))
    said = {gate_name(row): row.get("description") for part in ("comparisons", "gates") for row in gate_report[part]}
    return [(name, to_do) for name in missed if (to_do := said.get(name))]


def gate_name(row: dict[str, Any]) -> str:
    """A gate's or a comparison's metric, with the slice that it is asked of."""
    return f"{row['metric']} in {row['slice']}" if row.get("slice") else str(row["metric"])


def forgetting_lines(gate_report: dict[str, Any]) -> list[str]:
    """What the adapter has lost of what the base model could, one line a metric; empty where nothing of it was measured."""
    return [
        f"{gate_name(row)}: base model {number(row['reference'])}, adapter {number(row['candidate'])}; {change(row)}, {row['n']} "
        + ("texts, nats per token" if METRICS[row["metric"]].kind == "loss" else "rows")
        for row in lost(gate_report)
    ]


def lost(gate_report: dict[str, Any]) -> list[dict[str, Any]]:
    """The comparisons that say what the adapter has lost: general metrics against the base model, where they were measured."""
    return [row for row in gate_report["comparisons"] if row["metric"] in GENERAL and row["against"] == "base" and row["n"]]


def missed_rows(gate_report: dict[str, Any]) -> list[dict[str, Any]]:
    """Gates and comparisons that keep the verdict from being a PASS."""
    rows = [*gate_report["gates"], *gate_report["comparisons"]]
    return [row for row in rows if row["verdict"] in ("FAIL", "ERROR") or (row["verdict"] == "INCONCLUSIVE" and row["blocking"])]


def speed_line(results: dict[str, Any]) -> str:
    """Under which load, on what, the latency was measured; empty where it was not."""
    speed = results["observations"]["speed"]["candidate"]
    if not speed["requests"]:
        return ""
    return f"Latency of {len(speed['requests'])} requests, {speed['concurrency']} in flight, on {results['engine']['device']}."


def change(row: dict[str, Any]) -> str:
    """The effect of a comparison with its interval: `+0.021 [0.004, 0.038]`, or `× 1.08 [1.02, 1.15]`."""
    if row["effect"] is None:
        return "-"
    ratio = row["scale"] == "ratio"
    effect = f"× {row['effect']:.3f}" if ratio else f"{row['effect']:+.4f}"
    bounds = [("…" if bound is None else f"{bound:.3f}" if ratio else f"{bound:+.3f}") for bound in row["interval"]]
    return f"{effect} [{bounds[0]}, {bounds[1]}]" if row["interval"] != [None, None] else effect


def belief_lines(results: dict[str, Any]) -> list[str]:
    """How far the refusal detector, and the judge of the win rate where one was asked, are to be believed."""
    lines = [_refusals(results["refusal_detector"])]
    return [*lines, _win_rate(results["win_rate"])] if results["win_rate"] else lines


def _refusals(detector: dict[str, Any]) -> str:
    unsure, judge = detector["unsure"], f"judge {detector['judge']}: " if detector["judge"] else ""
    judged = f"; {unsure} answer{'s' if unsure > 1 else ''} unsure, {judge}{detector['judge_note']}" if unsure else ""
    found, wrong = round(detector["recall"] * detector["refused"]), round(detector["false_positive_rate"] * detector["complied"])
    recall = f"recall {detector['recall']:.3f} ({found} of {detector['refused']})"
    false_positives = f"false-positive rate {detector['false_positive_rate']:.3f} ({wrong} of {detector['complied']})"
    return f"Refusals are found by {detector['id']}: {recall}, {false_positives} on held-back labelled answers{judged}."


def _win_rate(judged: dict[str, Any]) -> str:
    against = "production" if judged["against"] == "production" else "the base model"
    counted = (
        f"{judged['wins']} wins, {judged['ties']} ties ({judged['identical']} equal answers, {judged['swayed']} in which the judge changed "
        f"sides with the order), {judged['losses']} losses, {judged['unreadable']} without a readable verdict"
    )
    return f"Win rate against {against} by {judged['judge']}, asked in both orders: {counted}; the judge {judged['note']}."
