"""What the week's runs left: why candidates were turned away, what training cost."""

from __future__ import annotations

import collections
import datetime
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from adapterops.documents import read_json
from adapterops.errors import UsageError
from adapterops.retrospective.history import aware
from adapterops.retrospective.section import Section
from adapterops.schemas import schema_of
from adapterops.shapes.gate_report import Comparison, Gate, GateReport
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.specs.price_list import PRICING, gpu_type, load_pricing

T = TypeVar("T")  # a shape: one of the TypedDicts of `adapterops.shapes`
# What differs between two errors of one kind: counts, and from here on figures and the remedy.
_COUNT, _DETAILS = re.compile(r"^\d+ (of \d+ )?"), re.compile(r" \(|[,;:] |\.( |$)")


def gate_failures(runs: Path, since: datetime.datetime, until: datetime.datetime) -> Section:
    """Reasons of the week's verdicts that were not PASS; each counts once for a verdict."""
    documents, invalid = _verdicts(runs)
    reports = [report for judged_at, report in documents if since <= judged_at < until]
    blocked = [report for report in reports if report["verdict"] != "PASS"]
    counted = collections.Counter(
        reason for report in blocked for reason in dict.fromkeys(_reasons(report))
    )
    rows = [(reason, str(count)) for reason, count in counted.most_common()]
    return Section(
        "Gate failures",
        ("reason", "verdicts"),
        rows,
        f"{len(blocked)} of {len(reports)} verdicts were not PASS.{invalid}",
    )


def training(
    runs: Path,
    since: datetime.datetime,
    until: datetime.datetime,
    usd_per_gpu_hour: float | None,
    released_as: Callable[[str], str | None],
) -> Section:
    """Hours and cost by adapter; a run without a verdict or release is shown too, for it cost too.

    Args:
        runs: directory with the documents of runs.
        since: begin of the week.
        until: end of the week.
        usd_per_gpu_hour: price; None takes that of the device in `configs/pricing.yaml`, and none
            where it does not know the device.
        released_as: the name of the adapter that was released with this digest.

    Raises:
        UsageError: `configs/pricing.yaml` is at fault.
    """
    reports, _ = _verdicts(runs)
    documents, invalid = _documents(runs, TrainManifest, lambda manifest: manifest["finished_at"])
    judged = {report["adapter"]["digest"]: report["adapter"]["name"] for _, report in reports}
    gpus = load_pricing()["gpus"]
    hours: dict[tuple[str, str, str], list[float]] = collections.defaultdict(list)
    for finished, manifest in documents:
        if since <= finished < until:
            digest, device = manifest["adapter"]["digest"], manifest["environment"]["device"]
            name = judged.get(digest) or released_as(digest) or "not judged"
            # Each process has a device of its own.
            spent = manifest["run"]["processes"] * manifest["total_seconds"] / 3600
            hours[name, manifest["recipe"], device].append(spent)
    rows = []
    for (name, recipe, device), each in sorted(hours.items()):
        known = gpu_type(device, gpus)
        price = gpus[known]["usd_per_hour"] if known else None
        if usd_per_gpu_hour is not None:
            price = usd_per_gpu_hour
        usd = "-" if price is None else f"{sum(each) * price:.2f}"
        rows.append((name, recipe, device, str(len(each)), f"{sum(each):.2f}", usd))
    by = f"USD by {PRICING}; `-` where it does not know the device."
    note = "Nothing was trained."
    if rows:
        note = by if usd_per_gpu_hour is None else ""
    columns = ("adapter", "recipe", "device", "runs", "device hours", "USD")
    return Section("Training", columns, rows, note + invalid)


def _verdicts(runs: Path) -> tuple[list[tuple[datetime.datetime, GateReport]], str]:
    return _documents(runs, GateReport, lambda report: report["judged_at"])


def _documents(
    runs: Path, shape: type[T], date: Callable[[T], str]
) -> tuple[list[tuple[datetime.datetime, T]], str]:
    """Every valid document of that shape below `runs`, each content once, with its own date.

    And a sentence if others could not be counted. The date of the file says nothing: artifacts are
    downloaded when they are looked at.
    """
    found: dict[str, tuple[datetime.datetime, T]] = {}
    invalid, schema = 0, schema_of(shape)
    for path in sorted(runs.rglob(f"{schema}.json")):
        try:
            document = read_json(path, shape)
        except (OSError, UsageError):
            invalid += 1  # also what an older version of this repository wrote
            continue
        if when := aware(date(document)):
            found[json.dumps(document, sort_keys=True)] = when, document
        else:
            invalid += 1
    if not invalid:
        return list(found.values()), ""
    said = f" {invalid} more {schema}.json are not valid by configs/schemas/{schema}.json."
    return list(found.values()), said


def _reasons(report: GateReport) -> Iterator[str]:
    """Why a verdict is not PASS, without the figures; what only warns is left out."""
    for error in report["errors"]:
        cause = _DETAILS.split(_COUNT.sub("", error))[0]
        yield f"no evidence: {cause[:1].lower()}{cause[1:]}"
    for row in report["gates"]:
        few = "not measured" if row["value"] is None else "measured on too few"
        yield from _reason(row, {"FAIL": "missed", "INCONCLUSIVE": "undecided", "ERROR": few})
    for comparison in report["comparisons"]:
        against = comparison["against"]
        few = f"compared with {against} on too few"
        if comparison["effect"] is None:
            few = f"not compared with {against}"
        words = {"FAIL": f"worse than {against}", "INCONCLUSIVE": f"undecided against {against}"}
        yield from _reason(comparison, {**words, "ERROR": few})


def _reason(row: Gate | Comparison, words: dict[str, str]) -> Iterator[str]:
    verdict = row["verdict"]
    if verdict and verdict in words and (verdict != "INCONCLUSIVE" or row["blocking"]):
        yield f"{row['metric']} {words[verdict]}"
