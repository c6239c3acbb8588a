"""Gather the week: audit log, releases, gate reports, train manifests, metrics, data."""

from __future__ import annotations

import collections
import datetime
import functools
import itertools
from pathlib import Path
from statistics import median

import httpx

from adapterops.errors import InfrastructureError
from adapterops.retrospective.data_changes import data_growth
from adapterops.retrospective.history import Deployment, aware, deployments
from adapterops.retrospective.runs import gate_failures, training
from adapterops.retrospective.section import Section
from adapterops.schemas import ROOT
from adapterops.store.catalogue import adapter_names
from adapterops.store.channels import Channel, history
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import find_release

_PROMETHEUS = {
    "requests": "sum by (adapter) (increase(llm_request_total[{days}d]))",
    "errors": 'sum by (adapter) (increase(llm_request_total{{status=~"5.."}}[{days}d]))',
    "p95_s": (
        "histogram_quantile(0.95, sum by (adapter, le)"
        ' (increase(llm_version_duration_seconds_bucket{{origin="user"}}[{days}d])))'
    ),
    "tokens": "sum by (adapter) (increase(llm_generated_tokens_total[{days}d]))",
    "thumbs_down": 'sum by (adapter) (increase(llm_feedback_total{{rating="down"}}[{days}d]))',
}


def collect(
    store: ObjectStore,
    *,
    until: datetime.datetime,
    days: int,
    runs: Path | None,
    prometheus: str | None,
    usd_per_gpu_hour: float | None,
) -> list[Section]:
    """The sections of the report for the `days` before `until`.

    Args:
        store: audit log and releases.
        until: end of the week, with a time zone.
        days: length.
        runs: directory with `gate_report.json` and `train_manifest.json` files of the week's runs,
            at any depth; None leaves them out.
        prometheus: root of a Prometheus server; None leaves its figures out.
        usd_per_gpu_hour: price; None takes those of `configs/pricing.yaml`.

    Raises:
        UsageError: `configs/pricing.yaml` is at fault.
        InfrastructureError: store or Prometheus does not answer.
    """
    since = until - datetime.timedelta(days=days)
    logs = {name: list(history(store, name)) for name in adapter_names(store)}
    all_deployments = [item for entries in logs.values() for item in deployments(entries)]
    week = [item for item in all_deployments if since <= item.began < until]
    found = [_summary(store, week), _deployments(week)]
    if runs:
        released_as = functools.partial(_released_as, store, list(logs))
        found += [
            gate_failures(runs, since, until),
            training(runs, since, until, usd_per_gpu_hour, released_as),
        ]
    found.append(data_growth(ROOT, since, until))
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
        (
            item.adapter,
            item.digest[:12],
            f"{item.began:%Y-%m-%d %H:%M}",
            item.by,
            item.outcome,
            _duration(item.restored_after),
        )
        for item in week
    ]
    return Section(
        "Deployments",
        ("adapter", "version", "began", "by", "outcome", "restored after"),
        rows,
        "" if rows else "None.",
    )


def _released_as(store: ObjectStore, names: list[str], digest: str) -> str | None:
    return next((name for name in names if find_release(store, name, digest)), None)


def _service(prometheus: str, days: int, until: datetime.datetime) -> Section:
    found: dict[str, dict[str, float]] = collections.defaultdict(dict)
    for figure, query in _PROMETHEUS.items():
        try:
            answer = httpx.get(
                f"{prometheus.rstrip('/')}/api/v1/query",
                params={"query": query.format(days=days), "time": until.timestamp()},
                timeout=30,
            )
            results = answer.raise_for_status().json()["data"]["result"]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise InfrastructureError(
                f"--prometheus {prometheus} does not answer: {error}"
            ) from None
        for result in results:
            found[result["metric"].get("adapter", "-")][figure] = float(result["value"][1])
    rows = []
    for adapter, figures in sorted(found.items()):
        requests = figures.get("requests", 0.0)
        share = f"{figures.get('errors', 0.0) / requests:.3%}" if requests else "-"
        cells = [f"{requests:.0f}", share, f"{figures.get('p95_s', float('nan')):.2f}"]
        cells += [f"{figures.get('tokens', 0):.0f}", f"{figures.get('thumbs_down', 0):.0f}"]
        rows.append((adapter, *cells))
    return Section(
        "Service",
        ("adapter", "requests", "errors", "p95 s", "tokens", "thumbs down"),
        rows,
        "" if rows else "No requests.",
    )


def _risks(
    logs: dict[str, list[Channel]], found: list[Deployment], until: datetime.datetime
) -> Section:
    rows = []
    for name, entries in logs.items():
        if not entries:
            rows.append((name, "released and never deployed"))
            continue
        last = entries[-1]
        age = until - (aware(last.updated_at) or until)
        if last.canary:
            trial = f"canary {last.canary[:12]} at {last.weight} % for {_duration(age)}"
            rows.append((name, f"{trial}: end it, or go on"))
        if last.rolled_back:
            back = f"{last.rolled_back[:12]} was rolled back"
            rows.append((name, f"{back}: revert its pull request, so that Git and fleet agree"))
        if last.stable and not last.previous:
            rows.append((name, "no previous version: a rollback has nowhere to go"))
        if age > datetime.timedelta(days=60):
            rows.append((name, f"not changed for {age.days} days: is its data still right?"))
        latest = reversed([item for item in found if item.adapter == name])
        failed = list(itertools.takewhile(lambda item: item.failed, latest))
        if len(failed) > 1:
            rows.append((name, f"the last {len(failed)} deployments failed"))
    return Section("Open risks", ("adapter", "risk"), rows, "" if rows else "None known.")


def _median(spans: list[datetime.timedelta]) -> str:
    if not spans:
        return "-"
    return _duration(datetime.timedelta(seconds=median(span.total_seconds() for span in spans)))


def _duration(span: datetime.timedelta | None) -> str:
    if span is None:
        return "-"
    seconds = span.total_seconds()
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
