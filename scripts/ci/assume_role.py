"""Let this job's AWS calls use a role."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import os
from pathlib import Path

import click

from adapterops.command import command, console


@command()
@click.option(
    "--role",
    default="",
    help=(
        "ARN of the role. Empty: the runner's own credentials are used (instance profile,"
        " environment)."
    ),
)
@click.option("--region", default="", help="AWS region for later steps.")
def main(role: str, region: str) -> None:
    """Let the job's later steps use an AWS role through GitHub's OpenID Connect token; no key is
    stored anywhere.

    boto3 exchanges the token itself (AWS_ROLE_ARN, AWS_WEB_IDENTITY_TOKEN_FILE). The token is
    short-lived: call this right before the steps that need the role, after training and not before
    it.

    \b
    Example:
      python scripts/ci/assume_role.py --role arn:aws:iam::123456789012:role/qlora-candidates \\
          --region eu-west-1
    """
    from adapterops.gitops.identity import write_token
    from adapterops.gitops.outputs import set_environment

    if region:
        set_environment(AWS_REGION=region)
    if not role:
        console.print("no role is configured: the runner's own AWS credentials are used")
        return
    path = (
        Path(os.environ.get("RUNNER_TEMP", "/tmp")) / "aws-web-identity-token"  # noqa: S108
    )  # outside of a runner it is of no use
    write_token(path)
    session = "-".join(
        [
            "qlora-gitops",
            *(os.environ.get(name, "local") for name in ("GITHUB_RUN_ID", "GITHUB_RUN_ATTEMPT")),
        ]
    )
    set_environment(
        AWS_ROLE_ARN=role, AWS_WEB_IDENTITY_TOKEN_FILE=str(path), AWS_ROLE_SESSION_NAME=session
    )
    console.print(f"later steps use {role}")


if __name__ == "__main__":
    main()
