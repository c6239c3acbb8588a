"""One step of a rollout: gather evidence, send probes where users are too few, and say pass, fail or inconclusive."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from adapterops.adapters import Rollout
from adapterops.serving.evidence import Accumulated, Counts, Finding, Verdict, judge_latency, judge_rate, judge_saturation
from adapterops.serving.fleet import Fleet

_POLL_S = 1.0
_GROWTH = 1.5  # the next look at a step that is undecided: looking again and again would find a good moment sooner or later
_ABORT_CONFIDENCE = 0.999  # between the looks only what is beyond doubt ends a step


def judge_step(
    fleet: Fleet,
    rollout: Rollout,
    evidence: Accumulated,
    stable: str | None,
    canary: str,
    probes: list[dict[str, Any]],
    console: Console,
    *,
    check: Callable[[], None],
) -> list[Finding]:
    """Watch the canary at its present weight until its limits are met, missed, or the step's time is over.

    Args:
        fleet: the hosts.
        rollout: durations, limits, probing.
        evidence: counters since the rollout began; the stable version is judged on all of them, the canary on this step's.
        stable: digest; None if the adapter has no stable version yet.
        canary: digest.
        probes: recorded questions.
        console: where progress is shown.
        check: called at every look; raises when somebody ended the trial.

    Returns:
        A finding for each limit. No data is INCONCLUSIVE, never PASS.

    Raises:
        InfrastructureError: a host is silent.
    """
    started, mark, looked = time.monotonic(), evidence.mark(), 0.0
    evidence.saturation.clear()
    with console.status("") as status:
        while True:
            check()
            fleet.read(evidence)
            elapsed = time.monotonic() - started
            counts, base = evidence.counts(canary, mark), evidence.counts(stable) if stable else Counts()
            status.update(f"{counts.requests} of {rollout.min_requests} requests, {counts.errors} errors, {elapsed:.0f} s")
            over = elapsed >= rollout.max_duration_s
            beyond_doubt = judge(rollout, counts, base, evidence.saturation, _ABORT_CONFIDENCE)
            if overall(beyond_doubt) == "FAIL":
                return beyond_doubt
            if over or (elapsed >= rollout.min_duration_s and counts.requests >= max(rollout.min_requests, looked * _GROWTH)):
                findings = judge(rollout, counts, base, evidence.saturation, rollout.confidence)
                if over or overall(findings) != "INCONCLUSIVE":
                    return findings
                looked = counts.requests
            wanted = max(rollout.min_requests, looked * _GROWTH) * min(1.0, (elapsed + _POLL_S) / max(rollout.min_duration_s, _POLL_S))
            _probe(fleet, rollout, evidence.adapter, stable, canary, probes, round(wanted - counts.requests), base)
            time.sleep(max(0.0, _POLL_S - (time.monotonic() - started - elapsed)))


def _probe(
    fleet: Fleet, rollout: Rollout, adapter: str, stable: str | None, canary: str, probes: list[dict[str, Any]], missing: int, base: Counts
) -> None:
    count = min(missing, round(rollout.probes_per_s * _POLL_S))
    if count > 0:
        digests = [canary, stable] if stable and base.requests < 4 * rollout.min_requests else [canary]
        fleet.probe(adapter, digests, probes, count)


def judge(rollout: Rollout, canary: Counts, stable: Counts, saturation: dict[str, list[float]], confidence: float) -> list[Finding]:
    """Every limit of the rollout; a limit that nothing was counted for is INCONCLUSIVE."""
    limits = rollout.limits
    findings = [
        judge_rate("error_rate", (canary.errors, canary.requests), (stable.errors, stable.requests), limits["error_rate"], confidence),
        judge_latency(canary, stable, limits["latency_p95_ratio"], confidence),
        judge_saturation(saturation, limits["saturation"]),
    ]
    if canary.requests < rollout.min_requests and overall(findings) != "FAIL":
        short = f"{canary.requests} requests, wanted {rollout.min_requests}"
        findings.append(Finding("requests", "INCONCLUSIVE", short))
    thumbs, base = (canary.down, canary.up + canary.down), (stable.down, stable.up + stable.down)
    if "negative_feedback" in limits:
        findings.append(judge_rate("negative_feedback", thumbs, base, limits["negative_feedback"], confidence))
    if "win_rate" in limits:
        # The chance that a vote for the canary is better than one for the stable version, ties halved: 1/2 - difference/2.
        finding = judge_rate("win_rate", thumbs, base, 1 - 2 * limits["win_rate"], confidence)
        findings.append(Finding("win_rate", finding.verdict, f"{finding.reason} (thumbs down; a win rate of {limits['win_rate']:.2f})"))
    return findings


def overall(findings: list[Finding]) -> Verdict:
    """The worst of the findings."""
    verdicts = {finding.verdict for finding in findings}
    return "FAIL" if "FAIL" in verdicts else "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"
