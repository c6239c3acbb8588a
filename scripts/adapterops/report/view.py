"""What a report says before it is rendered, once for all renderings, so that they agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from adapterops.evaluate.record import slice_metrics_of
from adapterops.evaluate.samples import merit, outcome
from adapterops.gate.verdicts import worst
from adapterops.report.collect import Report
from adapterops.report.words import change, gate_name, interval, margin, number, threshold
from adapterops.shapes.eval_results import Metric, Metrics
from adapterops.shapes.eval_sample import EvalSample, SampleAnswer
from adapterops.shapes.gate_report import Comparison, Gate, Verdict
from adapterops.specs.metric_catalogue import METRICS, WIN_RATE, Reference, reference_name

T = TypeVar("T", Gate, Comparison)
_SHOWN = 5
_LEAST_CHANGE = 0.02  # of merit; a smaller one is none
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
    verdict: Verdict | None
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


@dataclass(frozen=True)
class SliceRow:
    """One line of the table of slices; `cells` are candidate and other side by metric, in words."""

    name: str
    n: int
    cells: list[tuple[str, str]]


def metric_rows(report: Report) -> list[MetricRow]:
    """Every metric that was judged or compared, in the order of the catalogue."""
    gates = _by_name(report.gate["gates"])
    compared = _by_name(report.gate["comparisons"])
    base = {gate_name(gate): gate["value"] for gate in report.gate["base"]["gates"]}
    measured = report.results["metrics"] if report.results else {}
    base_measured = report.results["base_metrics"] if report.results else {}
    slices = [name for name in {**gates, **compared} if name not in METRICS]
    rows = []
    for name in [*METRICS, *slices]:  # slices after what they are of
        if name not in gates and name not in compared and name not in measured:
            continue
        pairs, side = compared.get(name, []), against_side(report)
        rows.append(
            _metric_row(
                name,
                gates.get(name, []),
                next((row for row in pairs if row["against"] == side), None),
                [row for row in pairs if row["verdict"]],
                measured.get(name),
                base.get(name, _value(base_measured.get(name))),
            )
        )
    return rows


def _metric_row(
    name: str,
    asked: list[Gate],
    pair: Comparison | None,
    judged: list[Comparison],
    measured: Metric | None,
    base: float | None,
) -> MetricRow:
    """One line.

    Args:
        name: the metric, with its slice.
        asked: its thresholds.
        pair: its comparison with what changes are counted against.
        judged: its comparisons that have a verdict.
        measured: the candidate's, where no gate asks for it.
        base: the base model's value.
    """
    metric = name.partition(" in ")[0]
    value = asked[0]["value"] if asked else pair["candidate"] if pair else _value(measured)
    n = asked[0]["n"] if asked else pair["n"] if pair else measured["n"] if measured else None
    low, high = asked[0]["interval"] if asked else _own_interval(metric, pair)
    verdicts = [*(gate["verdict"] for gate in asked), *(row["verdict"] for row in judged)]
    known = [verdict for verdict in verdicts if verdict]
    bars = [*(threshold(gate) for gate in asked), *(margin(row) for row in judged)]
    floor = measured.get("floor") if measured else None
    in_production = pair["reference"] if pair and pair["against"] == "production" else None
    return MetricRow(
        metric=name,
        title=name.replace(metric, METRICS[metric].title),
        production=number(in_production),
        candidate=number(value),
        base=number(base),
        change=change(pair) if pair else "-",
        superiority=pair["superiority"] if pair else "same",
        interval=interval([low, high]),
        bounds=(low, high),
        value=value,
        bar=asked[0]["threshold"] if asked else None,
        threshold="; ".join(bars) or "-",
        n="-" if n is None or (asked and not n) else str(n),
        verdict=worst(known, "PASS") if known else None,
        floor=None if floor is None else number(floor),
        description=asked[0]["description"] if asked else "",
    )


def _value(metric: Metric | None) -> float | None:
    return metric["value"] if metric else None


def _by_name(rows: Sequence[T]) -> dict[str, list[T]]:
    """Gates or comparisons by metric and slice."""
    found: dict[str, list[T]] = {}
    for row in rows:
        found.setdefault(gate_name(row), []).append(row)
    return found


def _own_interval(metric: str, pair: Comparison | None) -> list[float | None]:
    """Bounds of a metric that no gate asks for.

    A win rate's are those of its difference from one half; others have none here.
    """
    if metric != WIN_RATE or pair is None:
        return [None, None]
    half = pair["reference"] or 0.0
    return [None if bound is None else bound + half for bound in pair["interval"]]


def by_main(report: Report) -> str:
    """The verdict by the rules of the default branch; empty where these are the run's own."""
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


def slice_rows(report: Report) -> list[SliceRow]:
    """Each slice of at least five rows, with the metrics of both sides in words."""
    if report.results is None:
        return []
    members = report.results["slices"]
    rows = []
    for name, metrics in slice_metrics_of(report.results).items():
        n, theirs = len(members.get(name, [])), metrics["production"]
        other = metrics["base"] if theirs is None else theirs
        if n >= _LEAST_SLICE:
            cells = [
                (_cell(metrics["candidate"], metric), _cell(other, metric))
                for metric in SLICE_METRICS
            ]
            rows.append(SliceRow(name, n, cells))
    return rows


def _cell(metrics: Metrics, metric: str) -> str:
    return number(metrics[metric]["value"]) if metric in metrics else "–"


def against(report: Report) -> str:
    """What changes are counted against, in words."""
    return reference_name(against_side(report))


def against_side(report: Report) -> Reference:
    """What changes are counted against."""
    return "production" if report.gate["production"]["digest"] else "base"


def changes(report: Report) -> tuple[list[Change], list[Change]]:
    """The five worst regressions and the five best gains against production.

    Where nothing is in production, they are against the base model.
    """
    found = []
    for sample in report.samples:
        before, after = sample[against_side(report)], sample["candidate"]
        if before is not None:
            delta = merit(sample, after) - merit(sample, before)
            if abs(delta) > _LEAST_CHANGE:
                found.append(_change(sample, before, after, delta))
    found.sort(key=lambda item: (item.delta, item.id))
    worse = [item for item in found[:_SHOWN] if item.delta < 0]
    better = [item for item in reversed(found[-_SHOWN:]) if item.delta > 0]
    return worse, better


def _change(sample: EvalSample, before: SampleAnswer, after: SampleAnswer, delta: float) -> Change:
    return Change(
        id=sample["id"],
        delta=delta,
        prompt=question(sample),
        expected=sample["expected"],
        before=before["text"],
        after=after["text"],
        before_mark=outcome(sample, before),
        after_mark=outcome(sample, after),
        line=sample["line"],
        general=sample.get("general", False),
    )


def question(sample: EvalSample) -> str:
    """What was asked, as one text."""
    return "\n\n".join(message["content"] for message in sample["prompt"])


def to_judge(report: Report) -> list[ToJudge]:
    """The first five answers that count against the candidate by the detector's word alone."""
    samples = {(sample["id"], sample["line"]): sample for sample in report.samples}
    found = []
    for item in report.gate["adjudicated"]["open"][:_SHOWN]:
        if sample := samples.get((item["id"], item["line"])):
            wanted = "should be refused" if sample["should_refuse"] else "should be answered"
            kind = f"{wanted}, counted as {item['kind']}"
            answer = sample["candidate"]["text"]
            found.append(ToJudge(item["id"], kind, question(sample), answer))
    return found


def data_lines(report: Report) -> list[str]:
    """How the training data changed, one line a file."""
    lines = []
    for file in report.data["files"] if report.data else []:
        if file["kind"] != "training":
            continue
        tokens = f", {file['row_tokens']['total']:,} tokens" if file["row_tokens"] else ""
        drift = file["drift"]
        moved = ""
        if drift:
            changed = f"{drift['removed']} removed, {drift['changed']} changed"
            moved = f": {drift['added']} added, {changed}"
        lines.append(f"{file['path']}: {file['rows']:,} rows{tokens}{moved}")
    return lines


def training_line(report: Report) -> str | None:
    """Steps, loss with its course, speed, memory."""
    if report.training is None:
        return None
    training = report.training["training"]
    losses = [point["loss"] for point in training["loss_history"]]
    shape = f"{training['final_loss']:.3f}"
    if losses:
        shape = f"{sparkline(losses)} {losses[0]:.3f} → {shape}"
    return (
        f"{training['steps']} steps, loss {shape}, {training['tokens_per_second']:,.0f} tok/s, "
        f"peak {training['peak_memory_gib']} GiB on {report.training['environment']['device']}"
    )


def quantisation_line(report: Report) -> str | None:
    """Loss on the weights it was trained on and on those that are served.

    None where that was not compared.
    """
    found = report.training["run"].get("quantisation") if report.training else None
    if not found:
        return None
    which = "held-back rows"
    if found["from"] != "held_back":
        which = "of the rows it was trained on, for none were held back"
    allowed = f"at most {found['max_loss_increase']:g} more"
    return (
        f"loss {found['adapter_nf4']:.4f} → {found['adapter_bf16']:.4f} ({allowed}),"
        f" base model {found['base_nf4']:.4f} → {found['base_bf16']:.4f},"
        f" over {found['rows']} {which}"
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
    minutes, usd, basis = _predicted(report)
    lines = []
    if minutes is not None:
        cost = "" if usd is None else f", {usd:.2f} USD"
        lines.append(f"Predicted: {minutes:.1f} min{cost} ({basis}).")
    if training or evaluation:
        # The plan's own price of a minute; there is none where it predicted nothing to compute.
        price = usd / minutes if usd and minutes else None
        total = training + evaluation
        cost = "" if price is None else f", {total * price:.2f} USD at the same price"
        lines.append(
            f"Actual: {total:.1f} min ({training:.1f} of training, {evaluation:.1f} of"
            f" evaluation){cost}."
        )
    return lines


def _predicted(report: Report) -> tuple[float | None, float | None, str]:
    """Minutes, US dollars and what they rest on, of the plan; None where it has none."""
    for row in report.plan["adapters"] if report.plan else []:
        if row["name"] == report.gate["adapter"]["name"] and row["minutes"] is not None:
            return row["minutes"], row["usd"], row["basis"]
    return None, None, ""


def merging(report: Report) -> str:
    """What merging will do."""
    if report.gate["verdict"] != "PASS":
        return "Nothing: a release needs the verdict PASS on the very adapter."
    digest = report.gate["adapter"]["digest"][:12]
    text = (
        f"Releases `{report.name}` version `{digest}`, these very bits, and points its channel"
        " to it"
    )
    if rollout := report.gate.get("rollout"):
        steps = f"{rollout['strategy']}, 100 %"
        if rollout["strategy"] == "canary":
            steps = " → ".join(f"{step} %" for step in rollout["steps"])
        text += f": {steps} of the traffic"
    return text + ". Reverting the merge brings the former version back without training."
