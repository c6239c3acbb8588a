"""What the week's runs left: why candidates were turned away, what training cost."""

from __future__ import annotations

import collections
import datetime
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adapterops.retrospective.history import aware
from adapterops.retrospective.section import Section
from adapterops.schemas import ROOT, schema_problems
from adapterops.shapes.pricing import Pricing
from adapterops.yamlfile import load_yaml

_PRICING = "configs/pricing.yaml"
# What differs between two errors of one kind: counts, and from here on figures, digests and the
# remedy.
_COUNT, _DETAILS = re.compile(r"^\d+ (of \d+ )?"), re.compile(r" \(|[,;:] |\.( |$)")


def gate_failures(runs: Path, since: datetime.datetime, until: datetime.datetime) -> Section:
    """Reasons of the verdicts that were given in the week and were not PASS; each counts once for a
    verdict.
    """
    documents, invalid = _documents(runs, "gate_report", "judged_at")
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
    """Hours and cost by adapter; a run that no verdict and no release names is shown as such, for
    it cost too.

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
    reports, _ = _documents(runs, "gate_report", "judged_at")
    manifests, invalid = _documents(runs, "train_manifest", "finished_at")
    judged = {report["adapter"]["digest"]: report["adapter"]["name"] for _, report in reports}
    prices = {
        name: gpu["usd_per_hour"]
        for name, gpu in load_yaml(ROOT / _PRICING, Pricing)["gpus"].items()
    }
    hours: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    count: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for finished, manifest in manifests:
        if since <= finished < until:
            digest = manifest["adapter"]["digest"]
            key = (
                judged.get(digest) or released_as(digest) or "not judged",
                manifest["recipe"],
                manifest["environment"]["device"],
            )
            hours[key] += (
                manifest["run"]["processes"] * manifest["total_seconds"] / 3600
            )  # each process has a device of its own
            count[key] += 1
    rows = []
    for key, spent in sorted(hours.items()):
        price = usd_per_gpu_hour if usd_per_gpu_hour is not None else _price(prices, key[2])
        rows.append(
            (
                *key,
                str(count[key]),
                f"{spent:.2f}",
                "-" if price is None else f"{spent * price:.2f}",
            )
        )
    by = (
        f"USD by {_PRICING}; `-` where it does not know the device."
        if usd_per_gpu_hour is None
        else ""
    )
    note = (by if rows else "Nothing was trained.") + invalid
    return Section(
        "Training", ("adapter", "recipe", "device", "runs", "device hours", "USD"), rows, note
    )


def _documents(
    runs: Path, schema: str, date: str
) -> tuple[list[tuple[datetime.datetime, dict[str, Any]]], str]:
    """Every valid document of that schema below `runs` with the date that it gives itself, each
    content once.

    And a sentence if others could not be counted. The date of the file says nothing: artifacts are
    downloaded when they are looked at.
    """
    found, invalid = {}, 0
    for path in sorted(runs.rglob(f"{schema}.json")):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError):
            document = None
        if (
            document is None
            or schema_problems(document, schema)
            or (when := aware(document[date])) is None
        ):
            invalid += 1  # also what an older version of this repository wrote
        else:
            found[json.dumps(document, sort_keys=True)] = when, document
    return (
        list(found.values()),
        f" {invalid} more {schema}.json are not valid by configs/schemas/{schema}.json."
        if invalid
        else "",
    )


def _reasons(report: dict[str, Any]) -> Iterator[str]:
    """Why a verdict is not PASS, without the figures: equal for equal causes. What only warns is
    left out, as in the verdict.
    """
    for error in report["errors"]:
        cause = _DETAILS.split(_COUNT.sub("", error))[0]
        yield f"no evidence: {cause[:1].lower()}{cause[1:]}"
    for row in report["gates"]:
        few = "not measured" if row["value"] is None else "measured on too few"
        yield from _reason(row, {"FAIL": "missed", "INCONCLUSIVE": "undecided", "ERROR": few})
    for row in report["comparisons"]:
        against = row["against"]
        few = (
            f"not compared with {against}"
            if row["effect"] is None
            else f"compared with {against} on too few"
        )
        yield from _reason(
            row,
            {
                "FAIL": f"worse than {against}",
                "INCONCLUSIVE": f"undecided against {against}",
                "ERROR": few,
            },
        )


def _reason(row: dict[str, Any], words: dict[str, str]) -> Iterator[str]:
    if row["verdict"] in words and (row["verdict"] != "INCONCLUSIVE" or row["blocking"]):
        yield f"{row['metric']} {words[row['verdict']]}"


def _price(prices: dict[str, float], device: str) -> float | None:
    """US dollars an hour of a device as its driver calls it: `NVIDIA A100-SXM4-80GB` is `a100-80`,
    and `NVIDIA L40S` is not `l4`.
    """
    words = {word.removesuffix("gb") for word in re.split(r"[^a-z0-9]+", device.lower())}
    known = [name for name in prices if words.issuperset(name.lower().split("-"))]
    return prices[max(known, key=len)] if known else None
