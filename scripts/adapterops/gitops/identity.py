"""GitHub's OpenID Connect token of this job, in a file with which boto3 takes a role."""

from __future__ import annotations

import os
from pathlib import Path

from adapterops.command import to_runner
from adapterops.errors import InfrastructureError, UsageError
from adapterops.escape import workflow_command


def write_token(path: Path) -> None:
    """Ask GitHub for a token and write it, for this user's eyes only.

    It lasts minutes, and the role that is taken with it an hour.

    Raises:
        UsageError: the job has no right to a token.
        InfrastructureError: GitHub gave none.
    """
    import httpx

    url, bearer = (os.environ.get(f"ACTIONS_ID_TOKEN_REQUEST_{name}") for name in ("URL", "TOKEN"))
    if not url or not bearer:
        raise UsageError(
            "a role needs GitHub's OpenID Connect token."
            " Give the job `permissions: id-token: write`."
        )
    try:
        answer = httpx.get(
            url,
            params={"audience": "sts.amazonaws.com"},
            headers={"authorization": f"bearer {bearer}"},
            timeout=20,
        )
        answer.raise_for_status()
        token = str(answer.json()["value"])
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise InfrastructureError(
            f"GitHub gave no OpenID Connect token: {type(error).__name__}. Re-run the job."
        ) from None
    if os.environ.get("GITHUB_ACTIONS"):
        to_runner.out(workflow_command("add-mask", token), highlight=False)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)


def renew_token() -> None:
    """Replace the token of an earlier `assume_role.py` in this job, if there is one.

    boto3 can take the role again then.

    Raises:
        InfrastructureError: GitHub gave none.
    """
    file = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if file and os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL"):
        write_token(Path(file))
