"""Make an API key."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import hashlib
import secrets
from typing import Any

import click
import yaml

from adapterops.command import command
from adapterops.errors import UsageError
from adapterops.schemas import dotted, schema_problems


@command()
@click.argument("name")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    help="What this key may ask for; repeatable. Default: all.",
)
@click.option(
    "--requests-per-minute",
    type=click.IntRange(1),
    help="On each host, of which there may be several. Default: unlimited.",
)
@click.option(
    "--limit",
    "limits",
    type=(str, str),
    multiple=True,
    metavar="NAME VALUE",
    help="Otherwise than gateway.limits; repeatable.",
)
@click.option(
    "--operator",
    is_flag=True,
    help="May also name a version, send probes, and read the metrics: deployments, Prometheus.",
)
def main(
    name: str,
    adapters: tuple[str, ...],
    requests_per_minute: int | None,
    limits: tuple[tuple[str, str], ...],
    operator: bool,
) -> None:
    """Make an API key: the key on the first line, for its owner; below it the entry for the
    gateway's file of keys, which holds its hash.

    The key is shown once and stored nowhere. A gateway takes up the changed file within seconds.

    \b
    Example:
      python scripts/api_key.py shop-frontend --adapter support-ko --requests-per-minute 600
      python scripts/api_key.py extraction --limit max_tokens 8192 --limit grammars true
    """
    key = f"qlg-{secrets.token_urlsafe(32)}"
    entry: dict[str, Any] = {
        "name": name,
        "sha256": hashlib.sha256(key.encode()).hexdigest(),
        "adapters": list(adapters) or "all",
        "requests_per_minute": requests_per_minute,
        "role": "operator" if operator else "client",
    }
    if limits:
        entry["limits"] = {limit: yaml.safe_load(value) for limit, value in limits}
    if problems := schema_problems({"keys": [entry]}, "api_keys"):
        raise UsageError(
            "\n".join(f"`{dotted(problem.path[2:])}`: {problem.message}" for problem in problems)
        )
    click.echo(key)
    click.echo("")
    for line in yaml.safe_dump([entry], sort_keys=False, default_flow_style=None).splitlines():
        click.echo(f"  {line}")


if __name__ == "__main__":
    main()
