"""Gather the week: audit log, releases, gate reports, train manifests, metrics, data."""

from __future__ import annotations

import collections
import datetime
import itertools
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from adapterops.errors import InfrastructureError
from adapterops.retrospective.history import Deployment, deployments
from adapterops.schemas import ROOT, schema_problems
from adapterops.store.catalogue import adapter_names
from adapterops.store.channels import Channel, history
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import find_release

_PROMETHEUS = {
    "requests": "sum by (adapter) (increase(llm_request_total[{days}d]))",
    "errors": 'sum by (adapter) (increase(llm_request_total{{status=~"5.."}}[{days}d]))',
    "p95_s": 'histogram_quantile(0.95, sum by (adapter, le) (increase(llm_version_duration_seconds_bucket{{origin="user"}}[{days}d])))',
    "tokens": "sum by (adapter) (increase(llm_generated_tokens_total[{days}d]))",
    "thumbs_down": 'sum by (adapter) (increase(llm_feedback_total{{rating="down"}}[{days}d]))',
}


@dataclass(frozen=True)
class Section:
    """A table of the report, or a sentence where there is nothing to show."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]] = ()
    note: str = ""


def collect(
    store: ObjectStore, *, until: datetime.datetime, days: int, runs: Path | None, prometheus: str | None, usd_per_gpu_hour: float | None
) -> list[Section]:
    """The sections of the report for the `days` before `until`.

    Args:
        store: audit log and releases.
        until: end of the week, with a time zone.
        days: length.
        runs: directory with `gate_report.json` and `train_manifest.json` files of the week's runs, at any depth; None leaves them out.
        prometheus: root of a Prometheus server; None leaves its figures out.
        usd_per_gpu_hour: price; None leaves the cost out.

    Raises:
        InfrastructureError: store or Prometheus does not answer.
    """
    since = until - datetime.timedelta(days=days)
    logs = {name: list(history(store, name)) for name in adapter_names(store)}
    all_deployments = [item for entries in logs.values() for item in deployments(entries)]
    week = [item for item in all_deployments if since <= item.began < until]
    found = [_summary(store, week), _deployments(week)]
    if runs:
        found += [_gate_failures(runs, since, until), _training(store, runs, since, until, usd_per_gpu_hour)]
    found.append(_data(since, until))
    if prometheus:
        found.append(_service(prometheus, days, until))
    found.append(_risks(logs, all_deployments, until))
    return found


def _summary(store: ObjectStore, week: list[Deployment]) -> Section:
    ended = [item for item in week if item.outcome != "under way"]
    failed = [item for item in ended if item.failed]
    leads = [lead for item in week if (lead := _lead_time(store, item))]
    restores = [item.restored_after for item in failed if item.restored_after]
    rate = f"{len(failed) / len(ended):.0%} ({len(failed)} of {len(ended)})" if ended else "-"
    rows = [
        ("deployments", str(len(week))),
        ("promoted", str(sum(item.outcome == "promoted" for item in week))),
        ("lead time, end of training to all traffic, median", _median(leads)),
        ("change-failure rate", rate),
        ("time to restore, median", _median(restores)),
    ]
    return Section("Delivery", ("measure", "value"), rows)


def _lead_time(store: ObjectStore, item: Deployment) -> datetime.timedelta | None:
    manifest = find_release(store, item.adapter, item.digest) if item.stable_at else None
    if manifest is None or item.stable_at is None:
        return None
    try:
        return item.stable_at - datetime.datetime.fromisoformat(manifest["trained_at"])
    except (ValueError, TypeError):  # no date, or one without a time zone
        return None


def _deployments(week: list[Deployment]) -> Section:
    rows = [
        (item.adapter, item.digest[:12], f"{item.began:%Y-%m-%d %H:%M}", item.by, item.outcome, _duration(item.restored_after))
        for item in week
    ]
    return Section("Deployments", ("adapter", "version", "began", "by", "outcome", "restored after"), rows, "" if rows else "None.")


def _documents(runs: Path, name: str, schema: str) -> tuple[list[dict[str, Any]], str]:
    """Every valid document of that name below `runs`, each content once; and a sentence if others could not be counted."""
    found, invalid = {}, 0
    for path in sorted(runs.rglob(name)):
        try:
            document = json.loads(path.read_bytes())
        except (OSError, ValueError):
            document = None
        if document is None or schema_problems(document, schema):
            invalid += 1  # also what an older version of this repository wrote
        else:
            found[json.dumps(document, sort_keys=True)] = {**document, "_written": path.stat().st_mtime}
    return list(found.values()), f" {invalid} more {name} are not valid by configs/schemas/{schema}.json." if invalid else ""


def _gate_failures(runs: Path, since: datetime.datetime, until: datetime.datetime) -> Section:
    documents, invalid = _documents(runs, "gate_report.json", "gate_report")
    reports = [report for report in documents if since.timestamp() <= report["_written"] < until.timestamp()]
    counted = collections.Counter(
        (gate["metric"], gate["verdict"]) for report in reports for gate in report["gates"] if gate["verdict"] != "PASS"
    )
    blocked = sum(report["verdict"] != "PASS" for report in reports)
    rows = [(metric, verdict, str(count)) for (metric, verdict), count in counted.most_common()]
    return Section("Gate failures", ("metric", "verdict", "times"), rows, f"{blocked} of {len(reports)} verdicts were not PASS.{invalid}")


def _training(store: ObjectStore, runs: Path, since: datetime.datetime, until: datetime.datetime, usd: float | None) -> Section:
    """Hours and cost by adapter; a run that no verdict and no release names is shown as such, for it cost too."""
    reports, _ = _documents(runs, "gate_report.json", "gate_report")
    manifests, invalid = _documents(runs, "train_manifest.json", "train_manifest")
    judged = {report["adapter"]["digest"]: report["adapter"].get("name") for report in reports}
    names = adapter_names(store)
    hours: dict[tuple[str, str], float] = collections.defaultdict(float)
    count: collections.Counter[tuple[str, str]] = collections.Counter()
    for manifest in manifests:
        finished = _aware(manifest["finished_at"])
        if finished and since <= finished < until:
            digest = manifest["adapter"]["digest"]
            adapter = judged.get(digest) or next((name for name in names if find_release(store, name, digest)), "not judged")
            hours[adapter, manifest["recipe"]] += manifest["total_seconds"] / 3600
            count[adapter, manifest["recipe"]] += 1
    rows = [
        (*key, str(count[key]), f"{spent:.2f}", f"{spent * usd:.2f}" if usd is not None else "-") for key, spent in sorted(hours.items())
    ]
    return Section(
        "Training", ("adapter", "recipe", "runs", "device hours", "USD"), rows, ("" if rows else "Nothing was trained.") + invalid
    )


def _data(since: datetime.datetime, until: datetime.datetime) -> Section:
    """Rows of each training file at both ends of the week, by Git."""
    before, now = _commit_before(since), _commit_before(until)
    rows = []
    for path in sorted((ROOT / "data" / "training").glob("*")):
        name = str(path.relative_to(ROOT))
        old, new = _lines(before, name), _lines(now, name)
        rows.append((name, str(old), str(new), f"{new - old:+d}"))
    note = "" if before else "Git knows no commit from before the week; it is counted from nothing."
    return Section("Data", ("file", "lines before", "lines now", "growth"), rows, note)


def _commit_before(when: datetime.datetime) -> str:
    command = ["git", "rev-list", "-1", f"--before={when.isoformat()}", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def _lines(commit: str, name: str) -> int:
    if not commit:
        return 0
    shown = subprocess.run(["git", "show", f"{commit}:{name}"], cwd=ROOT, capture_output=True, check=False)  # noqa: S607
    return shown.stdout.count(b"\n") if shown.returncode == 0 else 0


def _service(prometheus: str, days: int, until: datetime.datetime) -> Section:
    found: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for figure, query in _PROMETHEUS.items():
        try:
            answer = httpx.get(
                f"{prometheus.rstrip('/')}/api/v1/query", params={"query": query.format(days=days), "time": until.timestamp()}, timeout=30
            )
            results = answer.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise InfrastructureError(f"--prometheus {prometheus} does not answer: {error}") from None
        for result in results:
            found[result["metric"].get("adapter", "-")][figure] = float(result["value"][1])
    rows = []
    for adapter, figures in sorted(found.items()):
        requests = figures.get("requests", 0.0)
        share = f"{figures.get('errors', 0.0) / requests:.3%}" if requests else "-"
        cells = [f"{requests:.0f}", share, f"{figures.get('p95_s', float('nan')):.2f}"]
        rows.append((adapter, *cells, f"{figures.get('tokens', 0):.0f}", f"{figures.get('thumbs_down', 0):.0f}"))
    return Section("Service", ("adapter", "requests", "errors", "p95 s", "tokens", "thumbs down"), rows, "" if rows else "No requests.")


def _risks(logs: dict[str, list[Channel]], found: list[Deployment], until: datetime.datetime) -> Section:
    rows = []
    for name, entries in logs.items():
        if not entries:
            rows.append((name, "released and never deployed"))
            continue
        last = entries[-1]
        age = until - (_aware(last.updated_at) or until)
        if last.canary:
            rows.append((name, f"canary {last.canary[:12]} at {last.weight} % for {_duration(age)}: end it, or go on"))
        if last.rolled_back:
            rows.append((name, f"{last.rolled_back[:12]} was rolled back: revert its pull request, so that Git and fleet agree"))
        if last.stable and not last.previous:
            rows.append((name, "no previous version: a rollback has nowhere to go"))
        if age > datetime.timedelta(days=60):
            rows.append((name, f"not changed for {age.days} days: is its data still right?"))
        failed = list(itertools.takewhile(lambda item: item.failed, reversed([item for item in found if item.adapter == name])))
        if len(failed) > 1:
            rows.append((name, f"the last {len(failed)} deployments failed"))
    return Section("Open risks", ("adapter", "risk"), rows, "" if rows else "None known.")


def _aware(text: str) -> datetime.datetime | None:
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)


def _median(spans: list[datetime.timedelta]) -> str:
    return _duration(datetime.timedelta(seconds=median(span.total_seconds() for span in spans))) if spans else "-"


def _duration(span: datetime.timedelta | None) -> str:
    if span is None:
        return "-"
    seconds = span.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
