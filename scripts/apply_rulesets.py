"""Apply the repository's rules."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import json
from typing import Any

import click

from adapterops.command import command, console


@command()
@click.option("--repository", "name", help="owner/name. Default: $GITHUB_REPOSITORY.")
@click.option(
    "--check",
    is_flag=True,
    help="Change nothing; exit 1 if the rules in force are not those of .github/rulesets/.",
)
def main(name: str | None, check: bool) -> int:
    """Apply .github/rulesets/*.json and the form of the tokens' subject to a repository.
    $GITHUB_TOKEN needs administration rights.

    The subject (`sub`) of OpenID Connect tokens is made to name the workflow file and its ref: the
    role that writes candidates accepts train.yaml at the default branch and nothing else.

    \b
    Example:
      GITHUB_TOKEN=$(gh auth token) python scripts/apply_rulesets.py \\
          --repository your-org/qlora-gitops
    """
    from adapterops.gitops.github import repository
    from adapterops.schemas import ROOT

    wanted = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / ".github" / "rulesets").glob("*.json"))
    ]
    with repository(name) as repo:
        requester, base = repo.requester, f"/repos/{repo.full_name}"
        present = {
            str(ruleset["name"]): ruleset
            for ruleset in requester.requestJsonAndCheck("GET", f"{base}/rulesets")[1]
        }
        different = []
        for ruleset in wanted:
            known = present.get(ruleset["name"])
            if known and check:
                known = requester.requestJsonAndCheck("GET", f"{base}/rulesets/{known['id']}")[1]
            if known is None or (check and not _holds(ruleset, known)):
                different.append(ruleset["name"])
            if check:
                continue
            method, path = (
                ("PUT", f"{base}/rulesets/{known['id']}") if known else ("POST", f"{base}/rulesets")
            )
            requester.requestJsonAndCheck(method, path, input=ruleset)
            console.print(f"ruleset {ruleset['name']}: {'replaced' if known else 'created'}")
        if check:
            console.print(
                f"differ: {', '.join(different)}"
                if different
                else "the rules in force are those of .github/rulesets/"
            )
            return 1 if different else 0
        subject = {
            "use_default": False,
            "include_claim_keys": ["repo", "context", "job_workflow_ref"],
        }
        requester.requestJsonAndCheck(
            "PUT", f"{base}/actions/oidc/customization/sub", input=subject
        )
        console.print("subject of OpenID Connect tokens: repo, context, job_workflow_ref")
    return 0


def _holds(wanted: Any, found: Any) -> bool:
    """True if all that is wanted is in what was found, which has ids, dates and defaults beside
    it.
    """
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and _holds(value, found[key]) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(wanted) == len(found)
            and all(any(_holds(one, other) for other in found) for one in wanted)
        )
    return bool(wanted == found)


if __name__ == "__main__":
    main()
