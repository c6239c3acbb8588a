"""The comment on the pull request: one for each adapter, edited in place unless the verdict changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import requests
from github import Auth, Github, GithubException, GithubRetry

from adapterops.errors import InfrastructureError
from adapterops.report.comment import marker_of, superseded

if TYPE_CHECKING:
    from github.IssueComment import IssueComment


@dataclass(frozen=True)
class PullRequest:
    """Where to comment.

    Args:
        repository: `owner/name`.
        number: of the pull request.
        token: with `pull-requests: write`.
        api_url: GitHub's, or an Enterprise server's.
        author: who the comments are by; a comment by anybody else is never touched, whatever marker it carries.
        retries: of what failed with 5xx or a rate limit.
    """

    repository: str
    number: int
    token: str
    api_url: str = "https://api.github.com"
    author: str = "github-actions[bot]"
    retries: int = 5


def post(where: PullRequest, adapter: str, verdict: str, body: str) -> tuple[str, str]:
    """Post a report.

    The same verdict edits the comment, so that the conversation stays short; another one is a new comment, so that people are
    notified, and the former one is folded with a link to it.

    Returns:
        `created`, `edited` or `unchanged`, and the comment's address.

    Raises:
        InfrastructureError: GitHub does not answer or refuses.
    """
    retry = GithubRetry(total=where.retries, backoff_factor=0.5, secondary_rate_wait=10)
    github = Github(base_url=where.api_url, auth=Auth.Token(where.token), retry=retry, timeout=30)
    try:
        issue = github.get_repo(where.repository, lazy=True).get_issue(where.number)
        mine = [comment for comment in issue.get_comments() if _is_mine(comment, where.author, adapter)]
        if mine and marker_of(mine[-1].body) == (adapter, verdict):
            if mine[-1].body.strip() == body.strip():
                return "unchanged", mine[-1].html_url
            mine[-1].edit(body)
            return "edited", mine[-1].html_url
        new = issue.create_comment(body)
        for former in mine:
            former.edit(superseded(former.body, adapter, new.html_url))
        return "created", new.html_url
    except (GithubException, requests.RequestException) as error:
        raise InfrastructureError(f"{where.repository}#{where.number}: the comment was not posted: {_reason(error)}") from None
    finally:
        github.close()


def _is_mine(comment: IssueComment, author: str, adapter: str) -> bool:
    marker = marker_of(comment.body or "")
    by_author = comment.user is not None and comment.user.login == author
    return by_author and marker is not None and marker[0] == adapter and marker[1] != "SUPERSEDED"


def _reason(error: Exception) -> str:
    if isinstance(error, GithubException):
        message = error.data.get("message") if isinstance(error.data, dict) else error.data
        hint = " The token needs pull-requests: write." if error.status in (401, 403, 404) else ""
        return f"{error.status} {message or ''}.{hint}"
    return str(error)
