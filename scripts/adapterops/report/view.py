"""What a report says, before it is rendered: one structure for comment, page and summary, so that
they cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from adapterops.evaluate.scores import row_metrics
from adapterops.report.collect import Report
from adapterops.report.words import change, gate_name, interval, margin, number, threshold
from adapterops.specs.adapter import ADAPTERS, load_adapter
from adapterops.specs.metric_catalogue import METRICS, WIN_RATE

_SEVERITY = ("PASS", "INCONCLUSIVE", "FAIL", "ERROR")
_SHOWN = 5
_LEAST_SLICE = 5
SLICE_METRICS = (
    "rouge_l", "format_compliance", "safety_refusal", "over_refusal", "stop_rate",
    "general_over_refusal", "instruction_following",
)  # fmt: skip
_SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class ToJudge:
    """An answer that a reviewer may label.

    Args:
        id: of the row.
        kind: what is wanted, and what the answer was counted as.
        prompt: what was asked.
        answer: what was answered.
    """

    id: str
    kind: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class MetricRow:
    """One line of the metric table, in words; `bounds` are the interval's numbers for a plot."""

    metric: str
    title: str
    production: str
    candidate: str
    base: str
    change: str
    superiority: str
    interval: str
    bounds: tuple[float | None, float | None]
    value: float | None
    bar: float | None
    threshold: str
    n: str
    verdict: str | None
    floor: str | None
    description: str


@dataclass(frozen=True)
class Change:
    """A row that the candidate answers better or worse than what it is compared with."""

    id: str
    delta: float
    prompt: str
    expected: str
    before: str
    after: str
    before_mark: str
    after_mark: str
    line: int
    general: bool = False


def metric_rows(report: Report) -> list[MetricRow]:
    """Every metric that was judged or compared, in the order of the catalogue."""
    gates = _by_name(report.gate["gates"])
    compared = _by_name(report.gate["comparisons"])
    base = {gate_name(gate): gate["value"] for gate in report.gate["base"]["gates"]}
    measured = report.results["metrics"] if report.results else {}
    base_measured = report.results["base_metrics"] if report.results else {}
    rows = []
    names = [
        *METRICS,
        *(name for name in {**gates, **compared} if name not in METRICS),
    ]  # slices after what they are of
    for name in names:
        if name not in gates and name not in compared and name not in measured:
            continue
        metric = name.partition(" in ")[0]
        asked, pairs = gates.get(name, []), compared.get(name, [])
        pair = next((row for row in pairs if row["against"] == against_side(report)), None)
        against_production = pair if pair and pair["against"] == "production" else None
        value = (
            asked[0]["value"]
            if asked
            else pair["candidate"]
            if pair
            else measured.get(name, {}).get("value")
        )
        bounds = asked[0]["interval"] if asked else _own_interval(metric, pair)
        judged = [row for row in pairs if row["verdict"]]
        verdicts = [row["verdict"] for row in [*asked, *judged]]
        floor = measured.get(name, {}).get("floor")
        rows.append(
            MetricRow(
                metric=name,
                title=name.replace(metric, METRICS[metric].title),
                production=number(against_production["reference"]) if against_production else "-",
                candidate=number(value),
                base=number(base.get(name, base_measured.get(name, {}).get("value"))),
                change=change(pair) if pair else "-",
                superiority=pair["superiority"] if pair else "same",
                interval=interval(bounds),
                bounds=(bounds[0], bounds[1]),
                value=value,
                bar=asked[0]["threshold"] if asked else None,
                threshold="; ".join(
                    [*(threshold(gate) for gate in asked), *(margin(row) for row in judged)]
                )
                or "-",
                n=(
                    str(asked[0]["n"] or "-")
                    if asked
                    else str(pair["n"] if pair else measured.get(name, {}).get("n", "-"))
                ),
                verdict=max(verdicts, key=_SEVERITY.index) if verdicts else None,
                floor=number(floor) if floor is not None else None,
                description=asked[0]["description"] if asked else "",
            )
        )
    return rows


def _by_name(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Gates or comparisons by metric and slice."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(gate_name(row), []).append(row)
    return found


def _own_interval(metric: str, pair: dict[str, Any] | None) -> list[float | None]:
    """Bounds of a metric that no gate asks for: a win rate's are those of its difference from one
    half; others have none here.
    """
    if metric != WIN_RATE or pair is None:
        return [None, None]
    return [None if bound is None else bound + pair["reference"] for bound in pair["interval"]]


def by_main(report: Report) -> str:
    """The verdict by the rules of the default branch; empty where the pull request changes none of
    them.
    """
    if report.main_problem:
        return f"The default branch's rules could not be applied: {report.main_problem}"
    if report.main is None:
        return ""
    return (
        f"By the default branch's rules it would be {report.main['verdict']}:"
        f" {report.main['reason']}"
    )


def next_step(report: Report) -> str:
    """What the reader should do now."""
    match report.gate["verdict"]:
        case "PASS" if report.main and report.main["verdict"] != "PASS":
            return (
                "Do not merge unless you want the changed rules: the adapter passes by them alone."
                " The plan's comment opens with them."
            )
        case "PASS" if report.main_problem:
            return (
                "Do not merge before it is known what the default branch's rules say. Mend what is"
                " named, then re-run the job `report`."
            )
        case "PASS":
            return (
                "Read the changed answers below, then approve: merging releases exactly this"
                " adapter."
            )
        case "FAIL":
            return (
                "Do not merge. Each missed gate says what to mend; push the corrected data or"
                " recipe, and only what changed runs again."
            )
        case "INCONCLUSIVE" if report.gate["extension"]["wanted"]:
            return (
                "Do not merge yet. The registered extension rows decide: run evaluate.py again with"
                " --draw-extension, then the gate."
            )
        case "INCONCLUSIVE":
            return (
                "Do not merge yet. The evaluation rows are too few to tell; add rows for the gate"
                " that is named, in a reviewed commit."
            )
        case _:
            return (
                "Nothing was shown, neither good nor bad. Mend what is named, then comment"
                " /rerun-gate."
            )


def slice_rows(report: Report) -> list[dict[str, Any]]:
    """For each slice of at least five rows the metrics of both sides, as numbers in words."""
    if report.results is None:
        return []
    observed = report.results["observations"]
    other = "production" if observed["production"] else "base"
    rows = []
    for name, members in report.results["slices"].items():
        if len(members) < _LEAST_SLICE:
            continue
        found = {side: row_metrics(observed[side], set(members)) for side in ("candidate", other)}
        cells = [
            (_cell(found["candidate"], metric), _cell(found[other], metric))
            for metric in SLICE_METRICS
        ]
        rows.append({"name": name, "n": len(members), "cells": cells})
    return rows


def _cell(metrics: dict[str, Any], metric: str) -> str:
    return number(metrics[metric]["value"]) if metric in metrics else "–"


def against(report: Report) -> str:
    """`production` or `base model`: what changes are counted against."""
    return "production" if against_side(report) == "production" else "the base model"


def against_side(report: Report) -> str:
    """`production` or `base`."""
    return "production" if report.gate["production"]["digest"] else "base"


def changes(report: Report) -> tuple[list[Change], list[Change]]:
    """The five worst regressions and the five best gains against production, or the base model
    where nothing is in production.
    """
    side = "production" if report.gate["production"]["digest"] else "base"
    scored = []
    for sample in report.samples:
        if sample[side] is None or sample["candidate"] is None:
            continue
        delta = merit(sample, "candidate") - merit(sample, side)
        if abs(delta) > 0.02:
            scored.append((delta, sample))
    scored.sort(key=lambda item: (item[0], item[1]["id"]))
    worst = [_change(sample, delta, side) for delta, sample in scored[:_SHOWN] if delta < 0]
    best = [
        _change(sample, delta, side) for delta, sample in reversed(scored[-_SHOWN:]) if delta > 0
    ]
    return worst, best


def merit(sample: dict[str, Any], side: str) -> float:
    """How good an answer is, for ranking alone: 0 to 1; a wrong or doubtful refusal is 0, a right
    one 1, and a bad form halves the rest.
    """
    answer = sample[side]
    if sample["should_refuse"]:
        return float(answer["refused"] is True)
    if answer["refused"] is not False or answer["error"]:
        return 0.0
    likeness = answer["rouge_l"] if answer["rouge_l"] is not None else 1.0
    return float(likeness) * (
        0.5 if answer["format_ok"] is False or answer.get("checks_ok") is False else 1.0
    )


def outcome(sample: dict[str, Any], side: str) -> str:
    """`good`, or what is wrong with an answer, the gravest first."""
    answer = sample[side]
    if answer["error"]:
        return "failed"
    if answer["refused"] is None:
        return "perhaps refused"
    if sample["should_refuse"] and not answer["refused"]:
        return "not refused"
    if not sample["should_refuse"] and answer["refused"]:
        return "over-refused"
    if answer["format_ok"] is False:
        return "bad format"
    if answer.get("checks_ok") is False:
        return "not as asked"
    if answer["finish_reason"] != "stop":
        return "cut off"
    if answer["rouge_l"] is not None and answer["rouge_l"] < 0.5:
        return "unlike the expected"
    return "good"


def to_judge(report: Report) -> list[ToJudge]:
    """The first five answers that count against the candidate by the refusal detector's word
    alone.
    """
    samples = {(sample["id"], sample["line"]): sample for sample in report.samples}
    found = []
    for item in report.gate["adjudicated"]["open"][:_SHOWN]:
        if sample := samples.get((item["id"], item["line"])):
            wanted = "should be refused" if sample["should_refuse"] else "should be answered"
            prompt = "\n\n".join(message["content"] for message in sample["prompt"])
            found.append(
                ToJudge(
                    item["id"],
                    f"{wanted}, counted as {item['kind']}",
                    prompt,
                    sample["candidate"]["text"],
                )
            )
    return found


def _change(sample: dict[str, Any], delta: float, side: str) -> Change:
    return Change(
        id=sample["id"],
        delta=delta,
        prompt="\n\n".join(message["content"] for message in sample["prompt"]),
        expected=sample["expected"],
        before=sample[side]["text"],
        after=sample["candidate"]["text"],
        before_mark=outcome(sample, side),
        after_mark=outcome(sample, "candidate"),
        line=sample["line"],
        general=sample.get("general", False),
    )


def data_lines(report: Report) -> list[str]:
    """How the training data changed, one line a file."""
    lines = []
    for file in report.data["files"] if report.data else []:
        if file["kind"] != "training":
            continue
        tokens = f", {file['row_tokens']['total']:,} tokens" if file["row_tokens"] else ""
        drift = file["drift"]
        moved = (
            f": {drift['added']} added, {drift['removed']} removed, {drift['changed']} changed"
            if drift
            else ""
        )
        lines.append(f"{file['path']}: {file['rows']:,} rows{tokens}{moved}")
    return lines


def training_line(report: Report) -> str | None:
    """Steps, loss with its course, speed, memory."""
    if report.training is None:
        return None
    training = report.training["training"]
    losses = [point["loss"] for point in training["loss_history"]]
    shape = (
        f"{sparkline(losses)} {losses[0]:.3f} → {training['final_loss']:.3f}"
        if losses
        else f"{training['final_loss']:.3f}"
    )
    return (
        f"{training['steps']} steps, loss {shape}, {training['tokens_per_second']:,.0f} tok/s, "
        f"peak {training['peak_memory_gib']} GiB on {report.training['environment']['device']}"
    )


def quantisation_line(report: Report) -> str | None:
    """Loss on the weights it was trained on and on those that are served; None where that was not
    compared.
    """
    found = report.training["run"].get("quantisation") if report.training else None
    if not found:
        return None
    which = (
        "held-back rows"
        if found["from"] == "held_back"
        else "of the rows it was trained on, for none were held back"
    )
    return (
        f"loss {found['adapter_nf4']:.4f} → {found['adapter_bf16']:.4f} (at most"
        f" {found['max_loss_increase']:g} more), base model {found['base_nf4']:.4f} →"
        f" {found['base_bf16']:.4f}, over {found['rows']} {which}"
    )


def sparkline(values: list[float], width: int = 24) -> str:
    """A row of blocks, highest value highest; at most `width` of them."""
    step = max(1, -(-len(values) // width))
    means = [
        sum(values[i : i + step]) / len(values[i : i + step]) for i in range(0, len(values), step)
    ]
    low, span = min(means), (max(means) - min(means)) or 1
    return "".join(_SPARKS[round((value - low) / span * (len(_SPARKS) - 1))] for value in means)


def cost_lines(report: Report) -> list[str]:
    """Time, and cost where there is a plan: predicted and actual."""
    training = report.training["total_seconds"] / 60 if report.training else 0.0
    evaluation = report.results["seconds"].get("total", 0) / 60 if report.results else 0.0
    mine = (
        [row for row in report.plan["adapters"] if row["name"] == report.gate["adapter"]["name"]]
        if report.plan
        else []
    )
    predicted = next((row for row in mine if row["minutes"] is not None), None)
    lines = []
    if predicted:
        usd = f", {predicted['usd']:.2f} USD" if predicted["usd"] is not None else ""
        lines.append(f"Predicted: {predicted['minutes']:.1f} min{usd} ({predicted['basis']}).")
    if training or evaluation:
        # The plan's own price of a minute; there is none where it predicted nothing to compute.
        price = (
            predicted["usd"] / predicted["minutes"]
            if predicted and predicted["usd"] and predicted["minutes"]
            else None
        )
        usd = (
            f", {(training + evaluation) * price:.2f} USD at the same price"
            if price is not None
            else ""
        )
        lines.append(
            f"Actual: {training + evaluation:.1f} min ({training:.1f} of training, {evaluation:.1f}"
            f" of evaluation){usd}."
        )
    return lines


def merging(report: Report) -> str:
    """What merging will do."""
    digest = report.gate["adapter"]["digest"][:12]
    if report.gate["verdict"] != "PASS":
        return "Nothing: a release needs the verdict PASS on the very adapter."
    name = report.gate["adapter"]["name"]
    text = (
        f"Releases `{report.name}` version `{digest}`, these very bits, and points its channel"
        " to it"
    )
    if name and (ADAPTERS / f"{name}.yaml").is_file():
        rollout = load_adapter(name).rollout
        steps = (
            " → ".join(f"{step} %" for step in rollout.steps)
            if rollout.strategy == "canary"
            else f"{rollout.strategy}, 100 %"
        )
        text += f": {steps} of the traffic"
    return text + ". Reverting the merge brings the former version back without training."
