"""Look after releases and channels."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import json
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import EXISTING_FILE, command, console
from adapterops.errors import RejectedError, UsageError

if TYPE_CHECKING:
    from adapterops.store.catalogue import Served
    from adapterops.store.objects import ObjectStore


def _refuse_nan(_: click.Context, __: click.Parameter, days: float) -> float:
    """Click takes it for a number in any range."""
    if math.isnan(days):
        raise UsageError("--min-age-days nan: expected a number of days.")
    return days


@command()
@click.argument(
    "action", type=click.Choice(["list", "history", "show", "verify", "gc", "withdraw", "renumber"])
)
@click.argument("adapter", required=False)
@click.option(
    "--version",
    help=(
        "show, verify, withdraw: a digest, its first digits, or `latest`. Default: `latest`;"
        " withdraw has none."
    ),
)
@click.option(
    "--gateway", multiple=True, help="list: a serving host to ask what it serves; repeatable."
)
@click.option(
    "--config",
    type=EXISTING_FILE,
    help="verify: check as this serving host would (signature, base model).",
)
@click.option(
    "--generations",
    type=click.IntRange(1),
    default=10,
    show_default=True,
    help="gc: last generations that keep what they name.",
)
@click.option(
    "--min-age-days",
    type=click.FloatRange(0, 36_500),
    default=30.0,
    show_default=True,
    callback=_refuse_nan,
    help="gc: younger uploads are kept.",
)
@click.option("--delete", is_flag=True, help="gc: delete; without it, say what would be.")
@click.option(
    "--reason", help="withdraw, renumber: why, on one line; for the list and the audit log."
)
@click.option(
    "--signing-key",
    envvar="SIGNING_KEY",
    help=(
        "withdraw: private key (PEM) that signs releases, or `keyless`: the identity of the GitHub"
        " Actions workflow. Default: $SIGNING_KEY, else unsigned, which only hosts heed that ask"
        " for no signature."
    ),
)
@click.option(
    "--above",
    type=click.IntRange(1, 999_999_998),
    help="renumber: the highest generation that a host has seen.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
def main(
    action: str,
    adapter: str | None,
    version: str | None,
    gateway: tuple[str, ...],
    config: Path | None,
    generations: int,
    min_age_days: float,
    delete: bool,
    reason: str | None,
    signing_key: str | None,
    above: int | None,
    as_json: bool,
    bucket: str | None,
) -> None:
    """What is released, what is served where, since when, by whom, from which pull request.

    \b
    list [ADAPTER]    every adapter: what is stable, since when, by whom, from which pull request
    history ADAPTER   every state that the channel has had
    show ADAPTER      the manifest of a release
    verify ADAPTER    check a release: digests, weights, with --config signature and base model
    gc [ADAPTER]      releases that no channel and none of its last generations names
    withdraw ADAPTER  never serve a version again: hosts take the previous one at once,
                      nothing publishes or deploys it
    renumber ADAPTER  write the channel under a higher generation, for hosts that refuse a
                      bucket that was restored

    \b
    Example:
      python scripts/adapters.py list --bucket qlora-adapters --gateway http://10.0.0.5:8080
      python scripts/adapters.py verify support-ko --version 1a2b3c4d5e6f \\
          --config configs/serving.yaml
      python scripts/adapters.py gc --generations 10 --delete
      python scripts/adapters.py withdraw support-ko --version 1a2b3c4d5e6f \\
          --reason "leaks names" --signing-key signing.pem
    """
    from adapterops.store.objects import open_store

    store = open_store(bucket)
    if action not in ("list", "gc") and not adapter:
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
            _show(store, name, version or "latest")
        case "verify":
            _verify(store, name, version or "latest", config)
        case "withdraw":
            _withdraw(store, name, version, reason, signing_key, config)
        case "renumber":
            _renumber(store, name, above, reason)
        case _:
            _gc(store, adapter, generations, min_age_days, delete)


def _check_known(store: ObjectStore, name: str) -> None:
    from adapterops.schemas import did_you_mean
    from adapterops.store.catalogue import adapter_names

    if name not in (known := adapter_names(store)):
        near = did_you_mean(name, known)
        raise UsageError(
            f"{name} has neither a channel nor a release in bucket {store.bucket}.{near} Known:"
            f" {', '.join(known) or 'none'}."
        )


def _list(
    store: ObjectStore, names: list[str] | None, gateways: tuple[str, ...], as_json: bool
) -> None:
    from adapterops.deploy.fleet import open_fleet
    from adapterops.store.catalogue import adapter_names, served
    from adapterops.store.channels import channel_document

    rows = []
    with open_fleet([gateway.rstrip("/") for gateway in gateways], 5) as fleet:
        for name in names or adapter_names(store):
            state = served(store, name)
            rows.append((state, {host: fleet.state(host, name) for host in fleet.gateways}))
    if as_json:
        documents = [
            {
                "adapter": state.adapter,
                "channel": state.channel and channel_document(state.channel),
                "since": state.since and state.since.updated_at,
                "source": state.source or {},
                "hosts": hosts,
            }
            for state, hosts in rows
        ]
        click.echo(json.dumps(documents, indent=2, ensure_ascii=False))
        return
    columns = ["adapter", "stable", "since", "by", "pr", "commit", "canary", "generation"]
    _print([*columns, *gateways], [[*_cells(state), *hosts.values()] for state, hosts in rows])


def _cells(state: Served) -> list[str]:
    """One adapter's line of the list."""
    channel, since, source = state.channel, state.since, state.source
    trial = f"{channel.canary[:12]} at {channel.weight} %" if channel and channel.canary else "-"
    return [
        state.adapter,
        (channel.stable or "-")[:12] if channel else "-",
        since.updated_at[:16] if since else "-",
        since.updated_by if since else "-",
        _text(source and source["pr"]),
        _text(source and source["commit"])[:10],
        trial,
        str(channel.generation) if channel else "-",
    ]


def _history(store: ObjectStore, name: str, as_json: bool) -> None:
    from adapterops.store.channels import channel_document, history

    def damaged(key: str, problem: str) -> None:
        click.echo(
            f"s3://{store.bucket}/{key} is left out, it is no valid audit entry: {problem}. Bring"
            " its former version back.",
            err=True,
        )

    entries = list(history(store, name, damaged))
    if as_json:
        click.echo(
            json.dumps([channel_document(entry) for entry in entries], indent=2, ensure_ascii=False)
        )
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

    click.echo(
        json.dumps(
            find_release(store, name, find_version(store, name, version)),
            indent=2,
            ensure_ascii=False,
        )
    )


def _verify(store: ObjectStore, name: str, version: str, config: Path | None) -> None:
    from adapterops.specs.serving import load_serving_config
    from adapterops.store.releases import fetch_release, find_release, find_version
    from adapterops.store.withdrawn import refuse_withdrawn

    host = load_serving_config(config) if config else None
    digest = find_version(store, name, version)
    with tempfile.TemporaryDirectory() as scratch:
        manifest = find_release(store, name, digest)
        if manifest is None:
            raise RejectedError(f"{name}: version {digest[:12]} was removed since it was listed.")
        refuse_withdrawn(store, name, digest)
        base_model = host.base_model.name if host else manifest["base_model"]["name"]
        fetch_release(
            store,
            name,
            digest,
            Path(scratch),
            base_model=base_model,
            trust=host.trust if host else None,
        )
    signed = (
        f"signed by {host.trust.public_key or host.trust.identity}"
        if host and host.trust
        else "signature not asked for"
    )
    console.print(
        f"{name} {digest[:12]}: {len(manifest['files'])} files as in the manifest, safetensors, for"
        f" {base_model}, {signed}",
        soft_wrap=True,
    )


def _gc(
    store: ObjectStore, adapter: str | None, generations: int, min_age_days: float, delete: bool
) -> None:
    from adapterops.store.catalogue import garbage, remove

    found = garbage(store, adapter, generations=generations, min_age_days=min_age_days)
    for item in found:
        if delete:
            remove(store, item)
        console.print(
            f"{'deleted' if delete else 'would delete'} {item.adapter} {item.digest[:12]}"
            f" ({item.why})",
            soft_wrap=True,
        )
    said = f"{len(found)} version{'s' if len(found) != 1 else ''}"
    console.print(
        f"{said} {'deleted' if delete else 'to delete; repeat with --delete'}"
        if found
        else "nothing to delete"
    )


def _withdraw(
    store: ObjectStore,
    name: str,
    version: str | None,
    reason: str | None,
    signing_key: str | None,
    config: Path | None,
) -> None:
    from adapterops.signing import signer_from
    from adapterops.specs.adapter import load_adapter
    from adapterops.specs.serving import load_serving_config
    from adapterops.store.releases import find_version
    from adapterops.store.withdrawn import withdraw

    if not version or not reason:
        raise UsageError("withdraw needs --version and --reason: which version, and why.")
    signer = signer_from(signing_key)
    host = load_serving_config(config or load_adapter(name).serving)
    if host.trust and not signer:
        raise UsageError(
            f"hosts of {host.path.name} heed signed lists alone (store.signed_by). Give"
            " --signing-key."
        )
    digest = version if len(version) == 64 else find_version(store, name, version)
    channel = withdraw(store, name, digest, reason=reason, signer=signer, trust=host.trust)
    now = "there is no channel"
    if channel:
        now = f"generation {channel.generation}, stable is {(channel.stable or 'nothing')[:12]}"
        if channel.stable == digest:
            now += (
                ", for there is no version to go back to: nothing is served until another one is"
                " deployed"
            )
    console.print(f"{name} {digest[:12]} is withdrawn; {now}", markup=False, soft_wrap=True)


def _renumber(store: ObjectStore, name: str, above: int | None, reason: str | None) -> None:
    from adapterops.store.channels import change_channel, read_channel

    if above is None or not reason:
        raise UsageError(
            "renumber needs --above and --reason: the generation that hosts have seen, and why."
        )
    if read_channel(store, name) is None:
        raise UsageError(f"{name} has no channel in bucket {store.bucket}. Deploy a version first.")
    channel = change_channel(store, name, lambda present: present, reason=reason, above=above)
    console.print(
        f"{name}: generation {channel.generation}, stable is {(channel.stable or 'nothing')[:12]}",
        markup=False,
        soft_wrap=True,
    )


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _print(columns: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[number]) for row in [columns, *rows]) for number in range(len(columns))]
    for row in [columns, *rows]:
        click.echo(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    main()
