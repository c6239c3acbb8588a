"""The pull request that takes a release back, so that Git and fleet agree again."""

from __future__ import annotations

import tempfile
from pathlib import Path

from github.PullRequest import PullRequest
from github.Repository import Repository

from adapterops.errors import InfrastructureError, RejectedError
from adapterops.gitops.promote import changed_adapters
from adapterops.plan.tree import TAKEN, git

_LOOKED_AT = 50  # commits


def releasing_commit(adapter: str, repository: Path) -> str:
    """The newest commit of the default branch's first-parent line that changed the adapter's training key.

    Raises:
        RejectedError: none of the last 50 did.
    """
    log = (
        git("rev-list", "--first-parent", f"--max-count={_LOOKED_AT}", "HEAD", "--", *TAKEN, repository=repository).stdout.decode().split()
    )
    for commit in log:
        parent = git("rev-parse", "--verify", "--quiet", f"{commit}^1", repository=repository, ok=(0, 1, 128))
        if parent.returncode == 0:
            with tempfile.TemporaryDirectory(prefix="revert-") as scratch:
                if adapter in changed_adapters(parent.stdout.decode().strip(), commit, repository, Path(scratch).resolve()):
                    return commit
    raise RejectedError(f"{adapter}: none of the last {_LOOKED_AT} commits to data, configs or adapters changed it. Revert by hand.")


def push_revert(adapter: str, commit: str, repository: Path) -> str:
    """Push a branch with the commit reverted on top of the default branch; returns its name, the same for the same commit.

    Raises:
        RejectedError: the revert conflicts with what came later.
        InfrastructureError: the remote refuses.
    """
    branch = f"revert/{adapter}-{commit[:12]}"
    merge = git("rev-parse", "--verify", "--quiet", f"{commit}^2", repository=repository, ok=(0, 1, 128)).returncode == 0
    with tempfile.TemporaryDirectory(prefix="revert-") as scratch:
        tree = Path(scratch) / "tree"
        git("worktree", "add", "--quiet", "--detach", str(tree), "HEAD", repository=repository)
        try:
            identity = ["-c", "user.name=github-actions[bot]", "-c", "user.email=41898282+github-actions[bot]@users.noreply.github.com"]
            result = git(*identity, "revert", "--no-edit", *(["-m", "1"] if merge else []), commit, repository=tree, ok=(0, 1))
            if result.returncode != 0:
                raise RejectedError(f"{adapter}: reverting {commit[:12]} conflicts with later changes. Revert by hand: git revert {commit}")
            git("push", "--quiet", "--force", "origin", f"HEAD:refs/heads/{branch}", repository=tree)
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
        f"{adapter}: the release made by {commit} was rolled back or did not get through its rollout. While this is not merged, Git says "
        "one version and the fleet serves another.\n\nMerging trains nothing: the former adapter is found by its key and released again. "
        "Checks do not start by themselves on a pull request that a workflow opened: close and reopen it."
    )
    try:
        return repository.create_pull(
            base=repository.default_branch, head=branch, title=f"Revert {adapter} to its former version", body=body
        )
    except AttributeError as error:  # an answer without the fields of a pull request
        raise InfrastructureError(f"GitHub's answer is no pull request: {error}") from None
