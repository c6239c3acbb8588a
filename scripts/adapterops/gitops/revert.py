"""The pull request that takes a release back, so that Git and fleet agree again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from github import Auth, GithubException, GithubIntegration
from github.Issue import Issue
from github.PullRequest import PullRequest
from github.Repository import Repository
from jwt.exceptions import PyJWTError

from adapterops.candidates.promotion import changed_adapters
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.git_tree import TAKEN, git
from adapterops.gitops.github import own_issues

_LOOKED_AT = 50  # commits
_IDENTITY = (
    *("-c", "user.name=github-actions[bot]"),
    *("-c", "user.email=41898282+github-actions[bot]@users.noreply.github.com"),
)
_TAKEN_BACK = (
    "{adapter}: the release made by {commit} was rolled back or did not get through its rollout."
)


def releasing_commit(adapter: str, repository: Path) -> str:
    """The newest commit of the first-parent line that changed the adapter's training key.

    Raises:
        RejectedError: none of the last 50 did.
    """
    newest = ["rev-list", "--first-parent", f"--max-count={_LOOKED_AT}", "HEAD", "--", *TAKEN]
    for commit in git(*newest, repository=repository).stdout.decode().split():
        if parent := _parent(commit, 1, repository):
            with tempfile.TemporaryDirectory(prefix="revert-") as scratch:
                directory = Path(scratch).resolve()
                if adapter in changed_adapters(parent, commit, repository, directory):
                    return commit
    raise RejectedError(
        f"{adapter}: none of the last {_LOOKED_AT} commits to data, configs or adapters changed it."
        " Revert by hand."
    )


def _parent(commit: str, number: int, repository: Path) -> str | None:
    """The id of a commit's first or second parent, if it has one."""
    asked = ("rev-parse", "--verify", "--quiet", f"{commit}^{number}")
    found = git(*asked, repository=repository, ok=(0, 1, 128))
    return found.stdout.decode().strip() if found.returncode == 0 else None


def push_revert(adapter: str, commit: str, repository: Path) -> str:
    """Push a branch with the commit reverted on the default branch; returns its name.

    Raises:
        RejectedError: the revert conflicts with what came later.
        InfrastructureError: the remote refuses.
    """
    branch = f"revert/{adapter}-{commit[:12]}"
    mainline = ["-m", "1"] if _parent(commit, 2, repository) else []
    with tempfile.TemporaryDirectory(prefix="revert-") as scratch:
        tree = Path(scratch) / "tree"
        git("worktree", "add", "--quiet", "--detach", str(tree), "HEAD", repository=repository)
        try:
            revert = [*_IDENTITY, "revert", "--no-edit", *mainline, commit]
            result = git(*revert, repository=tree, ok=(0, 1))
            if result.returncode != 0:
                raise RejectedError(
                    f"{adapter}: reverting {commit[:12]} conflicts with later changes. Revert by"
                    f" hand: git revert {commit}"
                )
            destination = f"HEAD:refs/heads/{branch}"
            git("push", "--quiet", "--force", "origin", destination, repository=tree)
        finally:
            git("worktree", "remove", "--force", str(tree), repository=repository)
    return branch


def open_revert(adapter: str, commit: str, branch: str, repository: Repository) -> PullRequest:
    """The open pull request of the branch, made if there is none.

    Raises:
        InfrastructureError: the API.
    """
    head = f"{repository.owner.login}:{branch}"
    for pull in repository.get_pulls(state="open", head=head):
        return pull
    body = (
        f"{_TAKEN_BACK.format(adapter=adapter, commit=commit)}"
        " While this is not merged, Git says one version and the fleet serves another.\n\n"
        "Merging trains nothing: the former adapter is found by its key and released again."
    )
    try:
        return repository.create_pull(
            base=repository.default_branch,
            head=branch,
            title=f"Revert {adapter} to its former version",
            body=body,
        )
    except AttributeError as error:  # an answer without the fields of a pull request
        raise InfrastructureError(f"GitHub's answer is no pull request: {error}") from None


def ask_for_revert(adapter: str, commit: str, repository: Repository) -> Issue:
    """The open issue that says what a person runs where no App opens reverts.

    A pull request of the workflow's own token has no author among people: one person could ask for
    it and approve it.
    """
    title = f"Revert {adapter} to its former version ({commit[:12]})"
    for issue in own_issues(repository, title):
        return issue
    branch = f"revert/{adapter}-{commit[:12]}"
    body = (
        f"{_TAKEN_BACK.format(adapter=adapter, commit=commit)}"
        " While it is not reverted, Git says one version and the fleet serves another."
        " Merging the revert trains nothing.\n\n"
        "```\n"
        f"git fetch origin && git switch -c {branch} origin/{repository.default_branch}\n"
        f"git revert --no-edit {commit} && git push -u origin {branch}\n"
        "gh pr create --fill\n"
        "```\n\n"
        "A GitHub App can do this: docs/setup-github.md, step 5."
    )
    return repository.create_issue(title=title, body=body)


def app_token(app_id: str, key: str, repository: str) -> str:
    """A token of the GitHub App: for an hour, and to push a branch and open a pull request.

    Raises:
        UsageError: the key is none.
        InfrastructureError: GitHub refuses: the App is not installed, or has fewer rights.
    """
    url = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    try:
        integration = GithubIntegration(auth=Auth.AppAuth(int(app_id), key), base_url=url)
        installation = integration.get_repo_installation(*repository.split("/", 1))
        return integration.get_access_token(
            installation.id, {"contents": "write", "pull_requests": "write"}
        ).token
    except GithubException as error:
        raise InfrastructureError(
            f"GitHub App {app_id}: {error.status} for {repository}. Install it there, with contents"
            " and pull requests to write."
        ) from None
    except (ValueError, TypeError, PyJWTError) as error:
        raise UsageError(
            "REVERT_APP_ID and REVERT_APP_KEY are no App's id and private key (PEM):"
            f" {type(error).__name__}."
        ) from None
