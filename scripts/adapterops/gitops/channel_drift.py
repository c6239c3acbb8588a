"""Differences between what main says, what the channels say, and what the serving hosts have."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import httpx

from adapterops.candidates.keys import adapter_names
from adapterops.candidates.promotion import find_promotion
from adapterops.errors import UsageError
from adapterops.store.channels import Channel, read_channel
from adapterops.store.host_report import HostReport
from adapterops.store.objects import ObjectStore


class _Health(TypedDict, total=False):
    """What a gateway's `/health` tells operators, as far as it is read here."""

    adapters: dict[str, HostReport]


def find_drift(store: ObjectStore, root: Path, gateways: list[str]) -> list[str]:
    """Each difference with what mends it; an adapter that was never released is none.

    Raises:
        InfrastructureError: the store.
    """
    found = []
    hosts = {gateway: _health(gateway) for gateway in gateways}
    for name in adapter_names(root):
        channel = read_channel(store, name)
        if channel is None:
            continue
        state = channel[0]
        try:
            promotion = find_promotion(store, name, root)
        except UsageError as error:
            found.append(f"{name}: main is broken: {error}")
            continue
        if promotion:
            wanted = f"training key {promotion.training_key[:12]}, which has no candidate"
            if promotion.digest:
                wanted = promotion.digest[:12]
            found.append(
                f"{name}: main wants {wanted}, the channel serves {_served(state)}."
                " Merge the open revert, or release main:"
                f" gh workflow run release.yaml -f adapter={name}"
            )
        for gateway, health in hosts.items():
            if not health:
                found.append(f"{gateway} does not answer.")
            elif report := health.get("adapters", {}).get(name):
                found += _behind(gateway, state, report)
    return list(dict.fromkeys(found))


def _served(channel: Channel) -> str:
    served = str(channel.stable)[:12]
    if channel.canary:
        served += f" with canary {channel.canary[:12]} at {channel.weight} %"
    return f"{served} ({channel.updated_by}: {channel.reason})"


def _behind(gateway: str, channel: Channel, report: HostReport) -> list[str]:
    """That a host does not serve the channel's stable version; empty if it does."""
    stable, ready = report.get("stable"), report.get("stable_ready")
    if (stable, ready) == (channel.stable, True):
        return []
    return [
        f"{gateway}: {channel.adapter} is at generation {report.get('generation')},"
        f" stable {str(stable)[:12]}, {'ready' if ready else 'not ready'};"
        f" the channel is at generation {channel.generation}, stable {str(channel.stable)[:12]}."
        " See the host's log."
    ]


def _health(gateway: str) -> _Health:
    try:
        health: _Health = httpx.get(f"{gateway.rstrip('/')}/health", timeout=10).json()
        return health
    except (httpx.HTTPError, ValueError):
        return {}
