"""Change what is served: write the channel, watch the hosts follow, judge, promote or abort."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from adapterops.deploy.counters import Accumulated
from adapterops.deploy.fleet import Fleet, open_fleet, persist
from adapterops.deploy.rollout import judge_step, overall
from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.shapes.release_manifest import Probe
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


@dataclass(frozen=True)
class _Trial:
    """A version on its way to the users.

    Args:
        store: where the channel lies.
        fleet: the hosts.
        rollout: strategy, steps, limits.
        name: of the adapter.
        digest: of the version.
        probes: recorded questions.
        console: where progress is shown.
    """

    store: ObjectStore
    fleet: Fleet
    rollout: Rollout
    name: str
    digest: str
    probes: list[Probe]
    console: Console

    def say(self, line: str) -> None:
        """Show progress."""
        _say(self.console, line)

    def change(self, step: Callable[[Channel], Channel], reason: str) -> Channel:
        """Change the channel, also through an outage of the store.

        Raises:
            InfrastructureError: the store is away for too long.
        """
        act = functools.partial(change_channel, self.store, self.name, step, reason=reason)
        return persist(act, _STORE_AWAY_S, self.say)

    def check(self) -> None:
        """Return if nobody ended the trial, as far as the store tells.

        Raises:
            RejectedError: somebody did.
        """
        try:
            found = read_channel(self.store, self.name)
        except InfrastructureError:
            return  # the hosts serve on without the store, and so does the rollout
        if found:
            _check_canary(found[0], self.digest)


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
    """Roll a release out: loaded everywhere at weight 0, canary step by step, then stable.

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
    with open_fleet(gateways, timeout_s) as fleet:
        trial = _Trial(store, fleet, rollout, name, digest, manifest["probes"], console)
        found = read_channel(store, name)
        channel = found[0] if found else None
        if channel and channel.stable == digest and channel.canary is None:
            fleet.await_ready(channel, "stable")
            generation = f"generation {channel.generation}"
            trial.say(f"{name}: {digest[:12]} is the stable version already ({generation})")
            return channel
        try:
            channel = _on_trial(trial, channel)
            _roll_out(trial, channel)
            refuse_withdrawn(store, name, digest)
            step = functools.partial(_finish, digest=digest)
            channel = trial.change(step, "all rollout steps passed")
        except PausedError:
            raise
        except BaseException:  # an interrupt too: traffic goes back first
            _withdraw(store, name, digest, console)
            raise
        fleet.await_ready(channel, "stable")
        trial.say(f"generation {channel.generation}: {digest[:12]} is stable on {fleet}")
        return channel


def _on_trial(trial: _Trial, found: Channel | None) -> Channel:
    """The channel with the version as canary, at the weight it had reached.

    Raises:
        RejectedError: another canary is under way.
        InfrastructureError: the store.
    """
    digest = trial.digest
    reached = found.weight if found and found.canary == digest else 0
    step = functools.partial(start_canary, digest=digest, weight=reached)
    channel = change_channel(trial.store, trial.name, step, reason="canary is loaded")
    trial.say(
        f"generation {channel.generation}: canary {digest[:12]} at {reached} %,"
        f" being loaded on {trial.fleet}"
    )
    return channel


def _roll_out(trial: _Trial, channel: Channel) -> None:
    """The steps from the weight that the channel has.

    Raises:
        AdapterOpsError: see `deploy`.
    """
    trial.fleet.await_ready(channel, "canary")
    trial.fleet.smoke(trial.name, trial.digest, trial.probes)
    evidence = Accumulated(trial.name)
    reason = "loaded and answering"
    # A trial that was paused above the last step of today's rollout is still to be judged.
    steps = [step for step in trial.rollout.weights if step >= channel.weight] or [channel.weight]
    for weight in steps:
        trial.say(f"{reason}: canary to {weight} %")
        go_on = functools.partial(_go_on, digest=trial.digest, weight=weight)
        channel = trial.change(go_on, reason)
        trial.fleet.await_ready(channel, "canary")
        if trial.rollout.judged:
            _judge(trial, evidence, channel)
            reason = f"step of {weight} % passed"


def _judge(trial: _Trial, evidence: Accumulated, channel: Channel) -> None:
    """Return once the canary has passed its step.

    Raises:
        RejectedError: a limit was missed, or somebody ended the trial.
        PausedError: nothing is decided.
        InfrastructureError: a host is silent.
    """
    trial.fleet.read(evidence)  # where counting begins
    findings = judge_step(
        trial.fleet,
        trial.rollout,
        evidence,
        channel.stable,
        trial.digest,
        trial.probes,
        trial.console,
        check=trial.check,
    )
    for finding in findings:
        trial.say(f"  {finding.verdict:12} {finding.reason}")
    verdict = overall(findings)
    missed = "; ".join(finding.reason for finding in findings if finding.verdict == verdict)
    version, weight = f"{trial.name} {trial.digest[:12]}", channel.weight
    if verdict == "FAIL":
        raise RejectedError(f"{version} failed at {weight} %: {missed}.")
    if verdict == "INCONCLUSIVE":
        raise PausedError(
            f"{version} is paused at {weight} %: after {trial.rollout.max_duration_s:.0f} s nothing"
            f" is decided: {missed}. The canary stays."
            " Deploy the same version again to go on, or end it with --abort."
        )


def _go_on(channel: Channel, digest: str, weight: int) -> Channel:
    """The next step of a trial, which nobody ended since the last one."""
    _check_canary(channel, digest)
    return start_canary(channel, digest, weight)


def _finish(channel: Channel, digest: str) -> Channel:
    """Promote a canary, which nobody ended since its last step; done twice, it is done once."""
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
    """End the trial of this version, if there is one; the error that led here is to be shown."""
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
    """Serve the previous version again: the channel changes, the hosts follow.

    Asked for again, it is done already.

    Raises:
        RejectedError: there is no previous version, or another version became stable meanwhile.
        InfrastructureError: the store, or a host that does not follow in time.
    """
    try:
        withdrawn = frozenset(read_withdrawn(store, name, None).releases)
    except AdapterOpsError as error:
        # Going back must not wait for a list that is damaged; hosts heed what they know of it.
        _say(console, f"what is withdrawn is not known here: {error}")
        withdrawn = frozenset()
    with open_fleet(gateways, timeout_s) as fleet:
        channel = roll_back(store, name, withdrawn=withdrawn)
        started = time.monotonic()
        _say(console, f"generation {channel.generation}: {channel.reason}, {_stable(channel)}")
        fleet.await_ready(channel, "stable")
        seconds = time.monotonic() - started
        _say(console, f"serving on {fleet} {seconds:.2f} s after the channel changed")
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
