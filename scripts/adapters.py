"""Look after releases and channels."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterops.command import EXISTING_FILE, command, console
from adapterops.errors import UsageError

if TYPE_CHECKING:
    from adapterops.store.objects import ObjectStore


@command()
@click.argument("action", type=click.Choice(["list", "history", "show", "verify", "gc"]))
@click.argument("adapter", required=False)
@click.option("--version", default="latest", show_default=True, help="show, verify: a digest, its first digits, or `latest`.")
@click.option("--gateway", multiple=True, help="list: a serving host to ask what it serves; repeatable.")
@click.option("--config", type=EXISTING_FILE, help="verify: check as this serving host would (signature, base model).")
@click.option("--generations", type=click.IntRange(1), default=10, show_default=True, help="gc: last generations that keep what they name.")
@click.option("--min-age-days", type=click.FloatRange(0, 36_500), default=30.0, show_default=True, help="gc: younger uploads are kept.")
@click.option("--delete", is_flag=True, help="gc: delete; without it, say what would be.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
def main(
    action: str,
    adapter: str | None,
    version: str,
    gateway: tuple[str, ...],
    config: Path | None,
    generations: int,
    min_age_days: float,
    delete: bool,
    as_json: bool,
    bucket: str | None,
) -> None:
    """What is released, what is served where, since when, by whom, from which pull request.

    \b
    list [ADAPTER]    every adapter: what is stable, since when, by whom, from which pull request
    history ADAPTER   every state that the channel has had
    show ADAPTER      the manifest of a release
    verify ADAPTER    download a release and check digests, weights, and with --config signature and base model
    gc [ADAPTER]      releases that no channel and none of its last generations names

    \b
    Example:
      python scripts/adapters.py list --bucket qlora-adapters --gateway http://10.0.0.5:8080
      python scripts/adapters.py verify support-ko --version 1a2b3c4d5e6f --config configs/serving.yaml
      python scripts/adapters.py gc --generations 10 --delete
    """
    from adapterops.store.objects import open_store

    if math.isnan(min_age_days):  # click takes it for a number in any range
        raise UsageError("--min-age-days nan: expected a number of days.")
    store = open_store(bucket)
    if action in ("history", "show", "verify") and not adapter:
        raise UsageError(f"{action} of which adapter? Name it: adapters.py {action} ADAPTER.")
    name = str(adapter)
    if adapter:
        _check_known(store, adapter)
    match action:
        case "list":
            _list(store, [adapter] if adapter else None, gateway, as_json)
        case "history":
            _history(store, name, as_json)
        case "show":
            _show(store, name, version)
        case "verify":
            _verify(store, name, version, config)
        case _:
            _gc(store, adapter, generations, min_age_days, delete)


def _check_known(store: ObjectStore, name: str) -> None:
    from adapterops.schemas import did_you_mean
    from adapterops.store.catalogue import adapter_names

    if name not in (known := adapter_names(store)):
        near = did_you_mean(name, known)
        raise UsageError(f"{name} has neither a channel nor a release in bucket {store.bucket}.{near} Known: {', '.join(known) or 'none'}.")


def _list(store: ObjectStore, names: list[str] | None, gateways: tuple[str, ...], as_json: bool) -> None:
    from adapterops.serving.fleet import open_fleet
    from adapterops.store.catalogue import adapter_names, served
    from adapterops.store.channels import channel_document

    rows = []
    with open_fleet([gateway.rstrip("/") for gateway in gateways], 5) as fleet:
        for state in (served(store, name) for name in names or adapter_names(store)):
            channel, since = state["channel"], state["since"]
            hosts = {host: fleet.state(host, state["adapter"]) for host in fleet.gateways}
            rows.append((state["adapter"], channel, since, state["source"] or {}, hosts))
    if as_json:
        documents = [
            {
                "adapter": name,
                "channel": channel and channel_document(channel),
                "since": since and since.updated_at,
                "source": source,
                "hosts": hosts,
            }
            for name, channel, since, source, hosts in rows
        ]
        click.echo(json.dumps(documents, indent=2, ensure_ascii=False))
        return
    columns = ["adapter", "stable", "since", "by", "pr", "commit", "canary", "generation", *gateways]
    table = [
        [
            name,
            (channel.stable or "-")[:12] if channel else "-",
            since.updated_at[:16] if since else "-",
            since.updated_by if since else "-",
            _text(source.get("pr")),
            _text(source.get("commit"))[:10],
            f"{channel.canary[:12]} at {channel.weight} %" if channel and channel.canary else "-",
            str(channel.generation) if channel else "-",
            *hosts.values(),
        ]
        for name, channel, since, source, hosts in rows
    ]
    _print(columns, table)


def _history(store: ObjectStore, name: str, as_json: bool) -> None:
    from adapterops.store.channels import channel_document, history

    def damaged(key: str, problem: str) -> None:
        click.echo(
            f"s3://{store.bucket}/{key} is left out, it is no valid audit entry: {problem}. Bring its former version back.", err=True
        )

    entries = list(history(store, name, damaged))
    if as_json:
        click.echo(json.dumps([channel_document(entry) for entry in entries], indent=2, ensure_ascii=False))
        return
    table = [
        [
            str(entry.generation),
            entry.updated_at[:19],
            entry.updated_by,
            (entry.stable or "-")[:12],
            f"{entry.canary[:12]} at {entry.weight} %" if entry.canary else "-",
            entry.reason,
        ]
        for entry in entries
    ]
    _print(["generation", "when", "by", "stable", "canary", "reason"], table)


def _show(store: ObjectStore, name: str, version: str) -> None:
    from adapterops.store.releases import find_release, find_version

    click.echo(json.dumps(find_release(store, name, find_version(store, name, version)), indent=2, ensure_ascii=False))


def _verify(store: ObjectStore, name: str, version: str, config: Path | None) -> None:
    from adapterops.serving.config import load_serving_config
    from adapterops.store.releases import fetch_release, find_release, find_version

    host = load_serving_config(config) if config else None
    digest = find_version(store, name, version)
    with tempfile.TemporaryDirectory() as scratch:
        manifest: dict[str, Any] = find_release(store, name, digest) or {}
        base_model = host.base_model.name if host else manifest["base_model"]["name"]
        fetch_release(store, name, digest, Path(scratch), base_model=base_model, trust=host.trust if host else None)
    signed = f"signed by {host.trust.public_key or host.trust.identity}" if host and host.trust else "signature not asked for"
    console.print(
        f"{name} {digest[:12]}: {len(manifest['files'])} files as in the manifest, safetensors, for {base_model}, {signed}", soft_wrap=True
    )


def _gc(store: ObjectStore, adapter: str | None, generations: int, min_age_days: float, delete: bool) -> None:
    from adapterops.store.catalogue import garbage, remove

    found = garbage(store, adapter, generations=generations, min_age_days=min_age_days)
    for item in found:
        if delete:
            remove(store, item)
        console.print(f"{'deleted' if delete else 'would delete'} {item.adapter} {item.digest[:12]} ({item.why})", soft_wrap=True)
    said = f"{len(found)} version{'s' if len(found) != 1 else ''}"
    console.print(f"{said} {'deleted' if delete else 'to delete; repeat with --delete'}" if found else "nothing to delete")


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _print(columns: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[number]) for row in [columns, *rows]) for number in range(len(columns))]
    for row in [columns, *rows]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
