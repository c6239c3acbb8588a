"""Differences between what main says, what the channels say, and what the serving hosts have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from adapterops.candidates.keys import adapter_names
from adapterops.candidates.promotion import find_promotion
from adapterops.errors import UsageError
from adapterops.store.channels import read_channel
from adapterops.store.objects import ObjectStore


def find_drift(store: ObjectStore, root: Path, gateways: list[str]) -> list[str]:
    """Each difference with what mends it; empty if all agree. An adapter that was never released is
    no difference.

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
            wanted = (
                promotion.digest[:12]
                if promotion.digest
                else f"training key {promotion.training_key[:12]}, which has no candidate"
            )
            served = str(state.stable)[:12] + (
                f" with canary {state.canary[:12]} at {state.weight} %" if state.canary else ""
            )
            found.append(
                f"{name}: main wants {wanted}, the channel serves {served} ({state.updated_by}:"
                f" {state.reason}). Merge the open revert, or release main: gh workflow run"
                f" release.yaml -f adapter={name}"
            )
        for gateway, health in hosts.items():
            report: dict[str, Any] = health.get("adapters", {}).get(name, {})
            if not health:
                found.append(f"{gateway} does not answer.")
            elif report and (report.get("stable"), report.get("stable_ready")) != (
                state.stable,
                True,
            ):
                found.append(
                    f"{gateway}: {name} is at generation {report.get('generation')}, stable"
                    f" {str(report.get('stable'))[:12]},"
                    f" {'ready' if report.get('stable_ready') else 'not ready'}; the channel is at"
                    f" generation {state.generation}, stable {str(state.stable)[:12]}. See the"
                    " host's log."
                )
    return list(dict.fromkeys(found))


def _health(gateway: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = httpx.get(f"{gateway.rstrip('/')}/health", timeout=10).json()
        return document
    except (httpx.HTTPError, ValueError):
        return {}
