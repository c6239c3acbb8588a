"""One step of a rollout: gather evidence, probe where users are too few, and judge."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console

from adapterops.deploy.counters import (
    Accumulated,
    Counts,
    Finding,
    Verdict,
    judge_latency,
    judge_rate,
    judge_saturation,
)
from adapterops.deploy.fleet import Fleet
from adapterops.shapes.release_manifest import Probe
from adapterops.specs.adapter import Rollout

_POLL_S = 1.0
# More requests before the next look: looking on and on would find a good moment sooner or later.
_GROWTH = 1.5
# Between looks only what is beyond doubt ends a step. Saturation has no interval: it never is.
_ABORT_CONFIDENCE = 0.999


def judge_step(
    fleet: Fleet,
    rollout: Rollout,
    evidence: Accumulated,
    stable: str | None,
    canary: str,
    probes: list[Probe],
    console: Console,
    *,
    check: Callable[[], None],
) -> list[Finding]:
    """Watch the canary at its weight until limits are met or missed, or the time is over.

    Args:
        fleet: the hosts.
        rollout: durations, limits, probing.
        evidence: counters since the rollout began; the stable version is judged on all of them, the
            canary on this step's.
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
    started, mark, next_look = time.monotonic(), evidence.mark(), float(rollout.min_requests)
    asked = [canary, stable] if stable else [canary]
    evidence.saturation.clear()
    with console.status("") as status:
        while True:
            check()
            fleet.read(evidence)
            elapsed = time.monotonic() - started
            counts = evidence.counts(canary, mark)
            base = evidence.counts(stable) if stable else None
            status.update(
                f"{counts.requests} of {rollout.min_requests} requests, {counts.errors} errors,"
                f" {elapsed:.0f} s"
            )
            beyond_doubt = judge(rollout, counts, base, evidence.saturation, _ABORT_CONFIDENCE)
            if overall([one for one in beyond_doubt if one.metric != "saturation"]) == "FAIL":
                return beyond_doubt
            over = elapsed >= rollout.max_duration_s
            if over or (elapsed >= rollout.min_duration_s and counts.requests >= next_look):
                findings = judge(rollout, counts, base, evidence.saturation, rollout.confidence)
                if over or overall(findings) != "INCONCLUSIVE":
                    return findings
                next_look = max(rollout.min_requests, counts.requests * _GROWTH)
            by_now = min(1.0, (elapsed + _POLL_S) / max(rollout.min_duration_s, _POLL_S))
            versions = [evidence.counts(digest, mark) for digest in asked]
            missing = _missing(versions, next_look * by_now)
            count = min(missing, round(rollout.probes_per_s * _POLL_S))
            if count > 0:
                fleet.probe(evidence.adapter, asked, probes, count)
            time.sleep(max(0.0, _POLL_S - (time.monotonic() - started - elapsed)))


def _missing(versions: list[Counts], wanted: float) -> int:
    """Probes that each version still needs in this step: none if users ask each often enough.

    At 100 % users ask the canary alone; and probes of one version are compared with nothing but
    probes of the other.
    """
    if min(counts.users.requests for counts in versions) >= wanted:
        return 0
    return round(wanted - min(counts.probes.requests for counts in versions))


def judge(
    rollout: Rollout,
    canary: Counts,
    stable: Counts | None,
    saturation: dict[str, list[float]],
    confidence: float,
) -> list[Finding]:
    """Every limit of the rollout; one that nothing was counted for is INCONCLUSIVE.

    No API key decides alone. Where several asked, each limit is judged once more without each of
    them, and what rests on one key is INCONCLUSIVE: a limit that is met by all but missed without
    it, and a limit that is missed by all but not without it. With errors the others must say the
    contrary, that the limit is met: what a client causes is no error here (`request_record.py`), so
    they are real, and a client that has most of the traffic must not see them for want of others.
    How long answers take, and thumbs, are a client's to shape.

    Args:
        rollout: the limits.
        canary: what the canary did.
        stable: what the stable version did; None if there is none.
        saturation: readings by host.
        confidence: of each one-sided bound.
    """
    findings = [
        *_limits(rollout, canary, stable, confidence),
        judge_saturation(saturation, rollout.limits["saturation"]),
    ]
    keys = sorted(canary.keys.keys() | (stable.keys.keys() if stable else set()))
    for key in keys if len(keys) > 1 else ():
        others = _limits(
            rollout, canary.without(key), stable.without(key) if stable else None, confidence
        )
        said = {finding.metric: finding for finding in others}
        findings = [_unless_alone(finding, said.get(finding.metric), key) for finding in findings]
    if canary.requests < rollout.min_requests and overall(findings) != "FAIL":
        short = f"{canary.requests} requests, wanted {rollout.min_requests}"
        findings.append(Finding("requests", "INCONCLUSIVE", short))
    return findings


def _limits(
    rollout: Rollout, canary: Counts, stable: Counts | None, confidence: float
) -> list[Finding]:
    """The limits that keys have a voice in."""
    limits = rollout.limits
    # A stable version that nobody asked counts as free of errors: a canary that fails must not keep
    # its traffic for want of a comparison.
    errors = (stable.errors, stable.requests) if stable and stable.requests else None
    findings = [
        judge_rate(
            "error_rate", (canary.errors, canary.requests), errors, limits["error_rate"], confidence
        ),
        judge_latency(canary, stable, limits["latency_p95_ratio"], confidence),
    ]
    thumbs = (canary.down, canary.up + canary.down)
    base = (stable.down, stable.up + stable.down) if stable else None
    if "negative_feedback" in limits:
        findings.append(
            judge_rate("negative_feedback", thumbs, base, limits["negative_feedback"], confidence)
        )
    if "win_rate" in limits:
        # Not the gate's win rate, in which a judge compares two answers to one question: the same
        # thumbs on another scale. The chance that a random thumb of the canary's is better than a
        # random one of the stable version's, ties halved, is 1/2 - difference/2.
        finding = judge_rate("win_rate", thumbs, base, 1 - 2 * limits["win_rate"], confidence)
        reason = f"{finding.reason} (thumbs down; a win rate of {limits['win_rate']:.2f})"
        findings.append(Finding("win_rate", finding.verdict, reason))
    return findings


def _unless_alone(finding: Finding, others: Finding | None, key: str) -> Finding:
    """The finding, or INCONCLUSIVE if it rests on one key.

    Args:
        finding: of all keys.
        others: the same limit without the key; None for one that keys have no voice in.
        key: its name.
    """
    if others is None:
        return finding
    contrary = others.verdict != "FAIL"
    if finding.metric == "error_rate":
        contrary = others.verdict == "PASS"
    missed_by_one = finding.verdict == "FAIL" and contrary
    hidden_by_one = finding.verdict == "PASS" and others.verdict == "FAIL"
    if not missed_by_one and not hidden_by_one:
        return finding
    reason = f"{finding.reason}, which rests on key {key} alone; without it: {others.reason}"
    return Finding(finding.metric, "INCONCLUSIVE", reason)


def overall(findings: list[Finding]) -> Verdict:
    """The worst of the findings."""
    verdicts = {finding.verdict for finding in findings}
    if "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts else "PASS"
