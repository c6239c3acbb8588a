"""Deploy, and tell GitHub."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import os
import sys

import click

from adapterops.command import command, console, run_child
from adapterops.errors import UsageError


@command()
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option("--version", default="", help="Digest of a release, its first digits, or `latest`.")
@click.option("--rollback", "roll_back", is_flag=True, help="Serve the previous version again.")
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
def main(adapter: str, version: str, roll_back: bool, name: str | None) -> int:
    """Run deploy_adapter.py against the gateways of $GATEWAYS inside a GitHub deployment, and give
    it the outcome as status.

    \b
    Example:
      GATEWAYS="http://10.0.0.7:8080 http://10.0.0.8:8080" python \\
          scripts/ci/deploy_from_actions.py --adapter support-demo --version latest
    """
    from adapterops.errors import AdapterOpsError
    from adapterops.git_tree import resolve
    from adapterops.gitops.github import repository
    from adapterops.schemas import ROOT

    gateways = os.environ.get("GATEWAYS", "").split()
    if not gateways:
        raise UsageError(
            "GATEWAYS is empty. Set it to the serving hosts' gateways, separated by blanks."
        )
    if bool(version) == roll_back:
        raise UsageError("say what to do: --version or --rollback.")
    deploy = [sys.executable, str(ROOT / "scripts" / "deploy_adapter.py"), "--adapter", adapter]
    deploy += ["--rollback"] if roll_back else ["--version", version]
    for gateway in gateways:
        deploy += ["--gateway", gateway]
    what = "rollback" if roll_back else version[:12]
    with repository(name) as repo:
        deployment = repo.create_deployment(
            ref=resolve("HEAD", ROOT),
            task="rollback" if roll_back else "deploy",
            auto_merge=False,
            required_contexts=[],
            environment=f"production/{adapter}",
            description=f"{adapter} {what}",
            payload={"adapter": adapter, "version": version or "previous"},
        )
        server, run = (
            os.environ.get("GITHUB_SERVER_URL", "https://github.com"),
            os.environ.get("GITHUB_RUN_ID", ""),
        )
        log = f"{server}/{repo.full_name}/actions/runs/{run}"
        deployment.create_status("in_progress", target_url=log, description=f"{adapter} {what}")
    code = run_child(deploy)
    state = {0: "success", 1: "failure"}.get(code, "error")
    # The channel has changed or not, whatever GitHub answers now.
    try:
        with repository(name) as repo:
            repo.get_deployment(deployment.id).create_status(
                state, target_url=log, description=f"{adapter} {what}: exit code {code}"
            )
    except AdapterOpsError as error:
        console.print(
            f"the deployment's status {state} was not recorded: {error}",
            markup=False,
            soft_wrap=True,
        )
    return code


if __name__ == "__main__":
    main()
