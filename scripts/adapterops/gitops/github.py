"""The GitHub API, through PyGithub: at `$GITHUB_API_URL` as `$GITHUB_TOKEN`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Literal

import requests
from github import Auth, Github, GithubException, GithubRetry
from github.Issue import Issue
from github.IssueComment import IssueComment
from github.NamedUser import NamedUser
from github.Organization import Organization
from github.Repository import Repository

from adapterops.errors import InfrastructureError, UsageError

ACTIONS = "github-actions[bot]"  # whose token a workflow's own is
# For a rate limit: a job that asks has minutes, and the reset may be an hour away.
_LONGEST_WAIT_S = 180


def retries(total: int) -> GithubRetry:
    """Retries of what failed with 5xx or a rate limit, whatever was asked.

    GitHub may have carried out what it answered with an error. Said twice, an edit is an edit, a
    rollback is found done, a comment or an issue stands twice, and a pull request or a release is
    refused as there already: that is an error to look at, and nothing is lost.

    Args:
        total: at most so many a request, after 0, 4, 8, 16 … seconds.
    """
    return GithubRetry(
        total=total,
        backoff_factor=2,
        secondary_rate_wait=10,
        max_rate_limit_wait=_LONGEST_WAIT_S,
        retry_after_max=_LONGEST_WAIT_S,
        status_forcelist=[429, *range(500, 600)],
        allowed_methods=None,
    )


@contextmanager
def repository(name: str | None = None) -> Iterator[Repository]:
    """The repository `owner/name`, else `$GITHUB_REPOSITORY`.

    Raises:
        UsageError: no repository or no token.
        InfrastructureError: the API refuses or cannot be reached; names what was asked and what the
            token lacks.
    """
    full_name = name or os.environ.get("GITHUB_REPOSITORY")
    token = os.environ.get("GITHUB_TOKEN")
    if not full_name:
        raise UsageError(
            "no repository. Name one with --repository owner/name or in GITHUB_REPOSITORY."
        )
    if not token:
        raise UsageError(
            "GITHUB_TOKEN is not set. In a workflow: env: {GITHUB_TOKEN: ${{ github.token }}}"
        )
    url = os.environ.get("GITHUB_API_URL", "https://api.github.com")
    client = Github(
        auth=Auth.Token(token), base_url=url, retry=retries(3), timeout=20, per_page=100, lazy=True
    )
    try:
        yield client.get_repo(full_name)
    except GithubException as error:
        said = reason(error, "Check the job's permissions.")
        raise InfrastructureError(f"GitHub API at {url}, {full_name}: {said}") from None
    except requests.RequestException as error:
        raise InfrastructureError(f"GitHub API at {url} cannot be reached: {error}") from None
    finally:
        client.close()


def reason(error: GithubException, hint: str) -> str:
    """What GitHub said; with a hint where the token may lack a right."""
    message = error.data.get("message") if isinstance(error.data, dict) else error.data
    refused = error.status in (401, 403, 404)
    return f"{error.status} {message or ''}.{f' {hint}' if refused else ''}"


def approved_since_push(pull_request: int | None, head: str, label: str) -> bool:
    """Whether somebody else set a label on a pull request after its head was pushed.

    What was set before speaks of other commits. Who opened the pull request, or pushed its head,
    does not approve it, nor does a workflow that they started. Both times are GitHub's own, of the
    label's `labeled` events and of the branch's newest activity. Commits carry no time of a push,
    only dates that whoever made them has chosen.

    Args:
        pull_request: its number; None is approved by nobody.
        head: the commit that is planned. It must be what the branch's newest push left there.
        label: its name.

    Raises:
        UsageError: no repository or no token.
        InfrastructureError: the API refuses or cannot be reached.
    """
    if pull_request is None:
        return False
    with repository() as repo:
        issue = repo.get_issue(pull_request)
        if label not in {known.name for known in issue.labels}:
            return False
        pull = repo.get_pull(pull_request)
        wanted = {"ref": f"refs/heads/{pull.head.ref}", "per_page": 100}
        address = f"{repo.url}/activity"
        _, pushes = repo.requester.requestJsonAndCheck("GET", address, parameters=wanted)
        newest = max(pushes, key=lambda push: (push["timestamp"], push["id"]), default=None)
        if newest is None or newest["after"] != head:
            return False
        pushed = datetime.fromisoformat(newest["timestamp"])
        own = {pull.user.login, (newest["actor"] or {}).get("login")}
        set_at = (
            event.created_at
            for event in issue.get_events()
            if event.event == "labeled" and event.label and event.label.name == label
            if event.actor and event.actor.type == "User" and event.actor.login not in own
        )
        return any(moment > pushed for moment in set_at)


def is_by(user: NamedUser | Organization | None, author: str = ACTIONS) -> bool:
    """Whether this account wrote something: the one bot of this login.

    A person's login has no brackets, and another bot has another one.
    """
    return user is not None and user.type == "Bot" and user.login == author


def own_issues(repository: Repository, title: str) -> list[Issue]:
    """Open issues of this title that a workflow opened; anybody can choose a title."""
    return [
        issue
        for issue in repository.get_issues(state="open")
        if issue.title == title and is_by(issue.user)
    ]


def own_comments(issue: Issue, marker: str, author: str = ACTIONS) -> list[IssueComment]:
    """Comments by the author that begin with a marker, the oldest first.

    Anybody can paste a marker, and the author's own text may quote one further down.
    """
    return [
        comment
        for comment in issue.get_comments()
        if (comment.body or "").startswith(marker) and is_by(comment.user, author)
    ]


def upsert_comment(
    issue: Issue, marker: str, body: str, *, family: str | None = None, author: str = ACTIONS
) -> tuple[IssueComment, Literal["created", "edited", "unchanged"]]:
    """Keep one comment that begins with a hidden marker: make it, or edit it in place.

    Args:
        issue: where; a pull request is an issue too.
        marker: an HTML comment that nothing else begins with.
        body: Markdown, without the marker.
        family: beginning of the markers among which this one is. If the newest comment of them has
            another marker, a new comment is made.
        author: login of the bot whose token is used.
    """
    text = f"{marker}\n{body}".strip()
    mine = own_comments(issue, family or marker, author)
    if not mine or not mine[-1].body.startswith(marker):
        return issue.create_comment(text), "created"
    if mine[-1].body.strip() == text:
        return mine[-1], "unchanged"
    mine[-1].edit(text)
    return mine[-1], "edited"
