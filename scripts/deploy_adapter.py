"""Deploy a released adapter."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import click

from adapterops.command import command, console
from adapterops.errors import UsageError


@command()
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option("--version", help="Digest of a release, its first digits, or `latest`.")
@click.option(
    "--rollback",
    "roll_back",
    is_flag=True,
    help="Serve the previous version again. Asked for twice, it is done once.",
)
@click.option("--abort", "abort_canary", is_flag=True, help="End the canary that is under way.")
@click.option(
    "--gateway",
    multiple=True,
    default=["http://127.0.0.1:8080"],
    show_default=True,
    help="Root of a serving host's gateway.",
)
@click.option("--bucket", help="S3 bucket. Default: $ADAPTER_BUCKET.")
@click.option(
    "--timeout",
    type=click.FloatRange(1),
    default=600.0,
    show_default=True,
    help="Seconds that hosts may take for a step.",
)
def main(
    adapter: str,
    version: str | None,
    roll_back: bool,
    abort_canary: bool,
    gateway: tuple[str, ...],
    bucket: str | None,
    timeout: float,
) -> None:
    """Deploy a released adapter: canary first, then stable; or roll back. Serving hosts follow the
    channel by themselves.

    Steps and limits come from adapters/<name>.yaml. Exit code 1: a limit was missed and the canary
    aborted, or nothing could be decided and the rollout is paused; deploy the same version again to
    go on, or --abort. Where the gateways ask for keys, GATEWAY_API_KEY is an operator's.

    \b
    Example:
      python scripts/deploy_adapter.py --adapter support-demo --version latest \\
          --bucket qlora-adapters
      python scripts/deploy_adapter.py --adapter support-demo --rollback --bucket qlora-adapters
    """
    from adapterops.deploy.deploy import abort, deploy, rollback
    from adapterops.specs.adapter import load_adapter
    from adapterops.store.objects import open_store
    from adapterops.store.releases import find_version

    if [bool(version), roll_back, abort_canary].count(True) != 1:
        raise UsageError("say what to do: one of --version, --rollback and --abort.")
    spec = load_adapter(adapter)
    store = open_store(bucket)
    hosts = [host.rstrip("/") for host in gateway]
    if roll_back:
        rollback(store, adapter, hosts, console, timeout_s=timeout)
    elif abort_canary:
        abort(store, adapter, console)
    else:
        digest = find_version(store, adapter, str(version))
        deploy(store, adapter, digest, hosts, spec.rollout, console, timeout_s=timeout)


if __name__ == "__main__":
    main()
