"""The comment on the pull request: one for each adapter, a new one where the verdict changes."""

from __future__ import annotations

from dataclasses import dataclass

import requests
from github import Auth, Github, GithubException

from adapterops.errors import InfrastructureError
from adapterops.gitops.github import ACTIONS, own_comments, reason, retries, upsert_comment
from adapterops.report.comment import SUPERSEDED, family, marker, superseded


@dataclass(frozen=True)
class PullRequest:
    """Where to comment.

    Args:
        repository: `owner/name`.
        number: of the pull request.
        token: with `pull-requests: write`.
        api_url: GitHub's, or an Enterprise server's.
        author: who the comments are by; a comment by anybody else is never touched, whatever marker
            it carries.
        retries: of what failed with 5xx or a rate limit.
    """

    repository: str
    number: int
    token: str
    api_url: str = "https://api.github.com"
    author: str = ACTIONS
    retries: int = 5


@dataclass(frozen=True)
class Posted:
    """What became of a report.

    Args:
        done: `created`, `edited` or `unchanged`.
        address: the comment's.
        unfolded: why an earlier comment still stands beside it, empty if none does; the next post
            folds it.
    """

    done: str
    address: str
    unfolded: str = ""


def post(where: PullRequest, adapter: str, verdict: str, body: str) -> Posted:
    """Post a report.

    The same verdict edits the comment, so that the conversation stays short; another one is a new
    comment, so that people are notified. Every earlier one is folded with a link to the one that
    holds, also one that a former post left.

    Raises:
        InfrastructureError: GitHub does not answer or refuses.
    """
    github = Github(
        base_url=where.api_url,
        auth=Auth.Token(where.token),
        retry=retries(where.retries),
        timeout=30,
    )
    try:
        try:
            issue = github.get_repo(where.repository, lazy=True).get_issue(where.number)
            live, done = upsert_comment(
                issue, marker(adapter, verdict), body, family=family(adapter), author=where.author
            )
        except (GithubException, requests.RequestException) as error:
            raise InfrastructureError(
                f"{where.repository}#{where.number}: the comment was not posted: {_reason(error)}"
            ) from None
        try:
            # Asked anew: a request that GitHub carried out and answered with an error was repeated,
            # and left a comment too.
            for former in own_comments(issue, family(adapter), where.author):
                if former.id != live.id and not former.body.startswith(marker(adapter, SUPERSEDED)):
                    former.edit(superseded(former.body, adapter, live.html_url))
        except (GithubException, requests.RequestException) as error:
            return Posted(done, live.html_url, _reason(error))
        return Posted(done, live.html_url)
    finally:
        github.close()


def _reason(error: Exception) -> str:
    if isinstance(error, GithubException):
        return reason(error, "The token needs pull-requests: write.")
    return str(error)
