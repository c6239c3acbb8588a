"""Change what is served: write the channel, watch the hosts converge, judge each step, promote or
abort.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from rich.console import Console

from adapterops.deploy.counters import Accumulated
from adapterops.deploy.fleet import Fleet, open_fleet, persist
from adapterops.deploy.rollout import judge_step, overall
from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.specs.adapter import Rollout
from adapterops.store.channels import (
    Channel,
    abort_canary,
    change_channel,
    promote,
    read_channel,
    roll_back,
    start_canary,
)
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import find_release
from adapterops.store.withdrawn import read_withdrawn, refuse_withdrawn

_STORE_AWAY_S = 300.0  # an outage of the store this long does not end a rollout


class PausedError(RejectedError):
    """The evidence decides nothing: the canary stays at its weight until somebody decides."""


def deploy(
    store: ObjectStore,
    name: str,
    digest: str,
    gateways: list[str],
    rollout: Rollout,
    console: Console,
    *,
    timeout_s: float = 600,
) -> Channel:
    """Roll a release out: loaded everywhere at weight 0, then as canary at each step's weight, then
    as the stable version.

    A rollout of this version that was paused, or whose command died, goes on at the weight it has.

    Args:
        store: where the channel lies.
        name: adapter name.
        digest: a published release.
        gateways: roots of the serving hosts' gateways, all of which must be ready at each step.
        rollout: strategy, steps, limits.
        console: where progress is shown.
        timeout_s: how long the hosts may take to load the version.

    Returns:
        The channel in the end.

    Raises:
        RejectedError: not published, withdrawn, another canary is under way, somebody ended this
            one meanwhile, a host found the version unfit, or a step's limit was missed; the canary,
            where it is still this one, is aborted.
        PausedError: a step was inconclusive; the canary stays.
        InfrastructureError: a host or the store does not answer; the canary is aborted.
    """
    manifest = find_release(store, name, digest)
    if manifest is None:
        raise RejectedError(f"{name}: version {digest[:12]} is not published. Publish it first.")
    refuse_withdrawn(store, name, digest)
    say = functools.partial(_say, console)
    with open_fleet(gateways, timeout_s) as fleet:
        found = read_channel(store, name)
        if found and found[0].stable == digest and found[0].canary is None:
            fleet.await_ready(found[0], "stable")
            say(
                f"{name}: {digest[:12]} is the stable version already (generation"
                f" {found[0].generation})"
            )
            return found[0]
        try:
            reached = found[0].weight if found and found[0].canary == digest else 0
            channel = change_channel(
                store,
                name,
                functools.partial(start_canary, digest=digest, weight=reached),
                reason="canary is loaded",
            )
            say(
                f"generation {channel.generation}: canary {digest[:12]} at {reached} %, being"
                f" loaded on {fleet}"
            )
            _roll_out(store, fleet, rollout, channel, manifest, console)
            refuse_withdrawn(store, name, digest)
            step = functools.partial(_finish, digest=digest)
            channel = persist(
                lambda: change_channel(store, name, step, reason="all rollout steps passed"),
                _STORE_AWAY_S,
                say,
            )
        except PausedError:
            raise
        except BaseException:  # an interrupt too: traffic goes back first
            _withdraw(store, name, digest, console)
            raise
        fleet.await_ready(channel, "stable")
        say(f"generation {channel.generation}: {digest[:12]} is stable on {fleet}")
        return channel


def _roll_out(
    store: ObjectStore,
    fleet: Fleet,
    rollout: Rollout,
    channel: Channel,
    manifest: dict[str, Any],
    console: Console,
) -> None:
    """The steps from the weight that the channel has.

    Raises:
        AdapterOpsError: see `deploy`.
    """
    name, digest, say = channel.adapter, str(channel.canary), functools.partial(_say, console)
    fleet.await_ready(channel, "canary")
    fleet.smoke(name, digest, manifest["probes"])
    evidence = Accumulated(name)
    reason = "loaded and answering"
    # A trial that was paused above the last step of today's rollout is still to be judged.
    for weight in [step for step in rollout.weights if step >= channel.weight] or [channel.weight]:
        step = functools.partial(_go_on, digest=digest, weight=weight)
        say(f"{reason}: canary to {weight} %")
        channel = persist(
            lambda step=step, reason=reason: change_channel(store, name, step, reason=reason),  # type: ignore[misc]
            _STORE_AWAY_S,
            say,
        )
        fleet.await_ready(channel, "canary")
        if not rollout.judged:
            continue
        fleet.read(evidence)  # where counting begins

        def check() -> None:
            try:
                found = read_channel(store, name)
            except InfrastructureError:
                return  # the hosts serve on without the store, and so does the rollout
            if found:
                _check_canary(found[0], digest)

        findings = judge_step(
            fleet,
            rollout,
            evidence,
            channel.stable,
            digest,
            manifest["probes"],
            console,
            check=check,
        )
        verdict = overall(findings)
        for finding in findings:
            say(f"  {finding.verdict:12} {finding.reason}")
        missed = "; ".join(finding.reason for finding in findings if finding.verdict == verdict)
        if verdict == "FAIL":
            raise RejectedError(f"{name} {digest[:12]} failed at {weight} %: {missed}.")
        if verdict == "INCONCLUSIVE":
            raise PausedError(
                f"{name} {digest[:12]} is paused at {weight} %: after {rollout.max_duration_s:.0f}"
                f" s nothing is decided: {missed}. The canary stays. Deploy the same version again"
                " to go on, or end it with --abort."
            )
        reason = f"step of {weight} % passed"


def _go_on(channel: Channel, digest: str, weight: int) -> Channel:
    """The next step of a trial, which nobody ended since the last one."""
    _check_canary(channel, digest)
    return start_canary(channel, digest, weight)


def _finish(channel: Channel, digest: str) -> Channel:
    """Promote a canary, which nobody ended since its last step; one that is promoted already stays
    so.
    """
    if channel.stable == digest and channel.canary is None:
        return channel
    _check_canary(channel, digest)
    return promote(channel, digest)


def _check_canary(channel: Channel, digest: str) -> None:
    if channel.canary != digest:
        now = f"canary {channel.canary[:12]}" if channel.canary else "no canary"
        raise RejectedError(
            f"{channel.adapter}: the rollout of {digest[:12]} ends here, for somebody ended its"
            f" trial: generation {channel.generation} has {now}, and {_stable(channel)} (by"
            f" {channel.updated_by}: {channel.reason}). Deploy it again if that was not meant."
        )


def _withdraw(store: ObjectStore, name: str, digest: str, console: Console) -> None:
    """End the trial of this version, if it is on trial, and say what was done; the error that led
    here is the one to show.
    """
    aborted = False

    def change(channel: Channel) -> Channel:
        nonlocal aborted
        aborted = channel.canary == digest
        return abort_canary(channel) if aborted else channel

    say = functools.partial(_say, console)
    act = functools.partial(change_channel, store, name, change, reason="rollout failed")
    try:
        channel = persist(
            act,
            _STORE_AWAY_S,
            lambda error: say(f"aborting the canary {digest[:12]} failed: {error}"),
        )
    except AdapterOpsError as error:
        say(f"aborting the canary {digest[:12]} failed: {error} Repeat it with --abort.")
        return
    done = "canary aborted" if aborted else f"{digest[:12]} is not the canary, nothing to abort"
    say(f"generation {channel.generation}: {done}, {_stable(channel)}")


def rollback(
    store: ObjectStore, name: str, gateways: list[str], console: Console, *, timeout_s: float = 60
) -> Channel:
    """Serve the previous version again; only the channel changes, the hosts follow. Asked for
    again, it is done already.

    Raises:
        RejectedError: there is no previous version, or another version became stable meanwhile.
        InfrastructureError: the store, or a host that does not follow in time.
    """
    try:
        withdrawn = frozenset(read_withdrawn(store, name, None).releases)
    except AdapterOpsError as error:
        # going back must not wait for a list that is damaged; hosts heed what they know of it
        _say(console, f"what is withdrawn is not known here: {error}")
        withdrawn = frozenset()
    with open_fleet(gateways, timeout_s) as fleet:
        channel = roll_back(store, name, withdrawn=withdrawn)
        started = time.monotonic()
        _say(console, f"generation {channel.generation}: {channel.reason}, {_stable(channel)}")
        fleet.await_ready(channel, "stable")
        _say(
            console,
            f"serving on {fleet} {time.monotonic() - started:.2f} s after the channel changed",
        )
        return channel


def abort(store: ObjectStore, name: str, console: Console) -> Channel:
    """End a canary; everything goes to the stable version."""
    channel = change_channel(store, name, abort_canary, reason="aborted by hand")
    _say(console, f"generation {channel.generation}: no canary, {_stable(channel)}")
    return channel


def _say(console: Console, line: str) -> None:
    # Whole, and as it is: addresses and error messages are copied from here.
    console.print(line, soft_wrap=True, markup=False)


def _stable(channel: Channel) -> str:
    return f"stable is {channel.stable[:12]}" if channel.stable else "there is no stable version"
