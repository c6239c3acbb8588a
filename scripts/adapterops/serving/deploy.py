"""Change what is served: write the channel, watch the hosts converge, promote or abort."""

from __future__ import annotations

import functools
import time
from typing import Any

import httpx
from rich.console import Console

from adapterops.errors import InfrastructureError, RejectedError
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
        RejectedError: not published, another canary is under way, or a host found the version unfit; the canary is aborted.
        InfrastructureError: a host or the store does not answer; the canary is aborted.
    """
    manifest = find_release(store, name, digest)
    if manifest is None:
        raise RejectedError(f"{name}: version {digest[:12]} is not published. Publish it first.")
    found = read_channel(store, name)
    if found and found[0].stable == digest and found[0].canary is None:
        _await_ready(gateways, name, "stable", digest, timeout_s, console)
        console.print(f"{name}: {digest[:12]} is the stable version already (generation {found[0].generation})")
        return found[0]
    try:
        for weight in steps:
            step = functools.partial(start_canary, digest=digest, weight=weight)
            channel = change_channel(store, name, step, reason=f"canary at {weight} %")
            console.print(f"generation {channel.generation}: canary {digest[:12]} at {weight} %")
            _await_ready(gateways, name, "canary", digest, timeout_s, console)
            for gateway in gateways:
                _smoke(gateway, name, digest, manifest["probes"])
    except BaseException:  # an interrupt too: traffic goes back first
        channel = change_channel(
            store, name, lambda channel: abort_canary(channel) if channel.canary == digest else channel, reason="rollout failed"
        )
        console.print(f"generation {channel.generation}: canary aborted, stable is {str(channel.stable)[:12]}")
        raise
    channel = change_channel(store, name, lambda channel: promote(channel, digest), reason="all rollout steps passed")
    _await_ready(gateways, name, "stable", digest, timeout_s, console)
    console.print(f"generation {channel.generation}: {digest[:12]} is stable on {len(gateways)} host{'s' if len(gateways) != 1 else ''}")
    return channel


def rollback(store: ObjectStore, name: str, gateways: list[str], console: Console, *, timeout_s: float = 60) -> Channel:
    """Serve the previous version again; only the channel changes, the hosts follow.

    Raises:
        RejectedError: there is no previous version.
        InfrastructureError: the store, or a host that does not follow in time.
    """
    started = time.monotonic()
    channel = change_channel(store, name, roll_back, reason="rollback")
    console.print(f"generation {channel.generation}: rolled back to {str(channel.stable)[:12]}")
    _await_ready(gateways, name, "stable", str(channel.stable), timeout_s, console)
    console.print(f"serving on {len(gateways)} hosts after {time.monotonic() - started:.1f} s")
    return channel


def abort(store: ObjectStore, name: str, console: Console) -> Channel:
    """End a canary; everything goes to the stable version."""
    channel = change_channel(store, name, abort_canary, reason="aborted by hand")
    console.print(f"generation {channel.generation}: no canary, stable is {str(channel.stable)[:12]}")
    return channel


def _await_ready(gateways: list[str], name: str, role: str, digest: str, timeout_s: float, console: Console) -> None:
    deadline = time.monotonic() + timeout_s
    with console.status(f"waiting for {len(gateways)} hosts to have {digest[:12]} ready"):
        for gateway in gateways:
            while True:
                report = _health(gateway).get("adapters", {}).get(name, {})
                if report.get(role) == digest and report.get(f"{role}_ready"):
                    break
                if report.get(role) == digest and digest in report.get("unfit", {}):
                    raise RejectedError(f"{gateway}: {name} {digest[:12]}: {report['unfit'][digest]}")
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
