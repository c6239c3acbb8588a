"""Make an API key."""

from __future__ import annotations

import hashlib
import secrets

import click

from adapterops.command import command


@command()
@click.argument("name")
@click.option("--adapter", "adapters", multiple=True, help="What this key may ask for; repeatable. Default: all.")
@click.option("--requests-per-minute", type=click.IntRange(1), help="On each host, of which there may be several. Default: unlimited.")
@click.option("--operator", is_flag=True, help="May also name a version, send probes, and read the metrics: deployments, Prometheus.")
def main(name: str, adapters: tuple[str, ...], requests_per_minute: int | None, operator: bool) -> None:
    """Make an API key: the key on the first line, for its owner; below it the entry for the gateway's file of keys, which holds its hash.

    The key is shown once and stored nowhere. A gateway takes up the changed file within seconds.

    \b
    Example:
      python scripts/api_key.py shop-frontend --adapter support-ko --requests-per-minute 600
    """
    key = f"qlg-{secrets.token_urlsafe(32)}"
    click.echo(key)
    click.echo("")
    click.echo(f"  - name: {name}")
    click.echo(f"    sha256: {hashlib.sha256(key.encode()).hexdigest()}")
    click.echo(f"    adapters: {'[' + ', '.join(adapters) + ']' if adapters else 'all'}")
    click.echo(f"    requests_per_minute: {requests_per_minute or 'null'}")
    click.echo(f"    role: {'operator' if operator else 'client'}")


if __name__ == "__main__":
    main()
