"""Change what is served: write the channel, watch the hosts converge, promote or abort."""

from __future__ import annotations

import functools
import time
from typing import Any, Literal

import httpx
from rich.console import Console

from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.store.channels import Channel, abort_canary, change_channel, promote, read_channel, roll_back, start_canary
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import find_release

_POLL_S = 0.25


def deploy(
    store: ObjectStore, name: str, digest: str, gateways: list[str], steps: list[int], console: Console, *, timeout_s: float = 600
) -> Channel:
    """Roll a release out: as canary at each step's weight, then as the stable version.

    Args:
        store: where the channel lies.
        name: adapter name.
        digest: a published release.
        gateways: roots of the serving hosts' gateways, all of which must be ready at each step.
        steps: percent of traffic, in order.
        console: where progress is shown.
        timeout_s: how long the hosts may take for each step.

    Returns:
        The channel in the end.

    Raises:
        RejectedError: not published, another canary is under way, somebody ended this one meanwhile, or a host found the version
            unfit; the canary, where it is still this one, is aborted.
        InfrastructureError: a host or the store does not answer; the canary is aborted.
    """
    manifest = find_release(store, name, digest)
    if manifest is None:
        raise RejectedError(f"{name}: version {digest[:12]} is not published. Publish it first.")
    found = read_channel(store, name)
    if found and found[0].stable == digest and found[0].canary is None:
        _await_ready(gateways, found[0], "stable", timeout_s, console)
        _say(console, f"{name}: {digest[:12]} is the stable version already (generation {found[0].generation})")
        return found[0]
    try:
        for number, weight in enumerate(steps):
            step = functools.partial(start_canary if number == 0 else _go_on, digest=digest, weight=weight)
            channel = change_channel(store, name, step, reason=f"canary at {weight} %")
            _say(console, f"generation {channel.generation}: canary {digest[:12]} at {weight} %")
            _await_ready(gateways, channel, "canary", timeout_s, console)
            for gateway in gateways:
                _smoke(gateway, name, digest, manifest["probes"])
        channel = change_channel(store, name, functools.partial(_finish, digest=digest), reason="all rollout steps passed")
    except BaseException:  # an interrupt too: traffic goes back first
        _withdraw(store, name, digest, console)
        raise
    _await_ready(gateways, channel, "stable", timeout_s, console)
    _say(console, f"generation {channel.generation}: {digest[:12]} is stable on {_hosts(gateways)}")
    return channel


def _go_on(channel: Channel, digest: str, weight: int) -> Channel:
    """The next step of a trial, which nobody ended since the last one."""
    _check_canary(channel, digest)
    return start_canary(channel, digest, weight)


def _finish(channel: Channel, digest: str) -> Channel:
    """Promote a canary, which nobody ended since its last step; one that is promoted already stays so."""
    if channel.stable == digest and channel.canary is None:
        return channel
    _check_canary(channel, digest)
    return promote(channel, digest)


def _check_canary(channel: Channel, digest: str) -> None:
    if channel.canary != digest:
        now = f"canary {channel.canary[:12]}" if channel.canary else "no canary"
        raise RejectedError(
            f"{channel.adapter}: the rollout of {digest[:12]} ends here, for somebody ended its trial: generation {channel.generation} has "
            f"{now}, and {_stable(channel)} (by {channel.updated_by}: {channel.reason}). Deploy it again if that was not meant."
        )


def _withdraw(store: ObjectStore, name: str, digest: str, console: Console) -> None:
    """End the trial of this version, if it is on trial, and say what was done; the error that led here is the one to show."""
    aborted = False

    def change(channel: Channel) -> Channel:
        nonlocal aborted
        aborted = channel.canary == digest
        return abort_canary(channel) if aborted else channel

    try:
        channel = change_channel(store, name, change, reason="rollout failed")
    except AdapterOpsError as error:
        _say(console, f"aborting the canary {digest[:12]} failed: {error} Repeat it with --abort.")
        return
    done = "canary aborted" if aborted else f"{digest[:12]} is not the canary, nothing to abort"
    _say(console, f"generation {channel.generation}: {done}, {_stable(channel)}")


def rollback(store: ObjectStore, name: str, gateways: list[str], console: Console, *, timeout_s: float = 60) -> Channel:
    """Serve the previous version again; only the channel changes, the hosts follow. Asked for again, it is done already.

    Raises:
        RejectedError: there is no previous version, or another version became stable meanwhile.
        InfrastructureError: the store, or a host that does not follow in time.
    """
    started = time.monotonic()
    channel = roll_back(store, name)
    _say(console, f"generation {channel.generation}: {channel.reason}, {_stable(channel)}")
    _await_ready(gateways, channel, "stable", timeout_s, console)
    _say(console, f"serving on {_hosts(gateways)} after {time.monotonic() - started:.1f} s")
    return channel


def abort(store: ObjectStore, name: str, console: Console) -> Channel:
    """End a canary; everything goes to the stable version."""
    channel = change_channel(store, name, abort_canary, reason="aborted by hand")
    _say(console, f"generation {channel.generation}: no canary, {_stable(channel)}")
    return channel


def _say(console: Console, line: str) -> None:
    # Whole, and as it is: addresses and error messages are copied from here.
    console.print(line, soft_wrap=True, markup=False)


def _hosts(gateways: list[str]) -> str:
    return f"{len(gateways)} host{'s' if len(gateways) != 1 else ''}"


def _stable(channel: Channel) -> str:
    return f"stable is {channel.stable[:12]}" if channel.stable else "there is no stable version"


def _await_ready(gateways: list[str], channel: Channel, role: Literal["stable", "canary"], timeout_s: float, console: Console) -> None:
    name, digest = channel.adapter, str(channel.stable if role == "stable" else channel.canary)
    deadline = time.monotonic() + timeout_s
    with console.status(f"waiting for {_hosts(gateways)} to have {digest[:12]} ready"):
        for gateway in gateways:
            while True:
                report = _health(gateway).get("adapters", {}).get(name, {})
                if report.get(role) == digest and report.get(f"{role}_ready"):
                    break
                if report.get(role) == digest and digest in report.get("unfit", {}):
                    raise RejectedError(f"{gateway}: {name} {digest[:12]}: {report['unfit'][digest]}")
                if report.get(role) != digest and report.get("generation", 0) > channel.generation:
                    raise RejectedError(
                        f"{gateway}: {name} is at generation {report['generation']}, in which {digest[:12]} is no longer {role}. "
                        f"Somebody changed the channel after generation {channel.generation}; see the audit log."
                    )
                if time.monotonic() > deadline:
                    said = "; ".join(report.get("errors", [])) or f"it reports {report or 'nothing'}"
                    raise InfrastructureError(f"{gateway} does not have {name} {digest[:12]} ready after {timeout_s:.0f} s: {said}")
                time.sleep(_POLL_S)


def _health(gateway: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = httpx.get(f"{gateway}/health", timeout=5).json()
        return document
    except (httpx.HTTPError, ValueError) as error:
        return {"adapters": {}, "error": str(error)}


def _smoke(gateway: str, name: str, digest: str, probes: list[dict[str, Any]]) -> None:
    """One recorded question through the front door, to this version by name."""
    messages = probes[0]["messages"] if probes else [{"role": "user", "content": "Hello?"}]
    body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 32}
    try:
        answer = httpx.post(f"{gateway}/v1/chat/completions", json=body, headers={"x-adapter-version": digest}, timeout=120)
    except httpx.HTTPError as error:
        raise InfrastructureError(f"{gateway} does not answer a request for {name}: {error}") from None
    if answer.status_code >= 500:
        raise InfrastructureError(
            f"{gateway}: a request for {name} {digest[:12]} was answered with {answer.status_code}: {answer.text[:300]}"
        )
    if answer.status_code != 200 or answer.headers.get("x-adapter-version") != digest[:12]:
        raise RejectedError(f"{gateway}: a request for {name} {digest[:12]} was answered with {answer.status_code}: {answer.text[:300]}")
