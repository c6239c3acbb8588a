"""`/retrain`, `/rerun-gate`, `/rollback <adapter>`: comments, bound to the commit that they saw."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

from github.Repository import Repository

from adapterops.errors import RejectedError
from adapterops.escape import inline
from adapterops.schemas import did_you_mean

_COMMANDS = ("/retrain", "/rerun-gate", "/rollback")
_MAY_WRITE = ("write", "maintain", "admin")
_ADAPTER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
WORKFLOW = "pull-request.yaml"


class _User(TypedDict):
    login: str


class _Comment(TypedDict):
    id: int
    body: str
    created_at: str
    user: _User


class _Issue(TypedDict):
    number: int
    pull_request: NotRequired[object]  # there is one, and nothing else is read of it


class CommentEvent(TypedDict):
    """Payload of `issue_comment`, as far as it is read here."""

    issue: _Issue
    comment: _Comment


@dataclass(frozen=True)
class Command:
    """A command; `adapter` is that of `/rollback`, else empty."""

    name: str
    adapter: str = ""


def parse(body: str) -> Command | None:
    """The command of a comment's first line; None for a comment that is none.

    Raises:
        RejectedError: it looks like a command and is not one.
    """
    first, *rest = (body.strip().splitlines() or [""])[0].split()[:3] or [""]
    if not first.startswith("/"):
        return None
    if first not in _COMMANDS:
        guess = did_you_mean(first, list(_COMMANDS))
        if not guess:  # paths and other people's bots begin with a slash too
            return None
        raise RejectedError(f"{inline(first, 40)} is not a command.{guess}")
    if first == "/rollback":
        if len(rest) != 1 or not _ADAPTER.fullmatch(rest[0]):
            raise RejectedError("`/rollback` takes one adapter: `/rollback support-demo`.")
        return Command(first, rest[0])
    if rest:
        raise RejectedError(f"`{first}` takes nothing after it.")
    return Command(first)


def carry_out(event: CommentEvent, repository: Repository, adapters: list[str]) -> str:
    """Do what the comment says and answer it: 👀 first, 🚀 once it is under way.

    A refused one gets 👎 and the reason.

    Args:
        event: payload of `issue_comment`.
        repository: where.
        adapters: names that `/rollback` knows.

    Returns:
        What was done, one sentence.

    Raises:
        RejectedError: refused; the comment is answered already.
    """
    issue = repository.get_issue(event["issue"]["number"])
    comment = issue.get_comment(event["comment"]["id"])
    author = event["comment"]["user"]["login"]
    try:
        command = parse(event["comment"]["body"])
        if command is None:
            return "no command"
        if repository.get_collaborator_permission(author) not in _MAY_WRITE:
            raise RejectedError(
                f"`{command.name}` is for people with write access to this repository."
            )
        comment.create_reaction("eyes")
        done = _do(command, event, repository, adapters)
    except RejectedError as error:
        comment.create_reaction("-1")
        issue.create_comment(f"{error}")
        raise
    comment.create_reaction("rocket")
    return done


def _do(command: Command, event: CommentEvent, repository: Repository, adapters: list[str]) -> str:
    if command.name == "/rollback":
        return _roll_back(command.adapter, repository, adapters)
    if "pull_request" not in event["issue"]:
        raise RejectedError(f"`{command.name}` belongs under a pull request.")
    pull = repository.get_pull(event["issue"]["number"])
    if pull.state != "open":
        raise RejectedError(f"`{command.name}`: this pull request is {pull.state}.")
    if pull.head.repo is None or pull.head.repo.full_name != repository.full_name:
        raise RejectedError(f"`{command.name}`: pull requests from forks get no GPU.")
    head = pull.head.sha
    runs = repository.get_workflow(WORKFLOW).get_runs(head_sha=head, event="pull_request")
    run = next(iter(runs), None)
    if run is None:
        raise RejectedError(
            f"`{command.name}`: there is no run of {WORKFLOW} on {head[:12]} yet. Push again, or"
            " wait for it."
        )
    # The push of this head started the run: after the comment, it is not what its author saw.
    if run.created_at.isoformat() > _time(event["comment"]["created_at"]):
        raise RejectedError(
            f"`{command.name}`: {head[:12]} was pushed after your comment. Look at it, and comment"
            " again."
        )
    if run.status != "completed":
        raise RejectedError(
            f"`{command.name}`: the run on {head[:12]} has not ended yet: {run.html_url}"
        )
    restarted = run.rerun() if command.name == "/retrain" else run.rerun_failed_jobs()
    if not restarted:
        raise RejectedError(
            f"`{command.name}`: GitHub did not restart {run.html_url}. Runs older than a month"
            " cannot be: push again."
        )
    if repository.get_pull(pull.number).head.sha != head:
        run.cancel()
        raise RejectedError(
            f"`{command.name}`: another commit was pushed meanwhile. Look at it, and comment again."
        )
    return f"{run.html_url} runs again on {head[:12]}"


def _roll_back(adapter: str, repository: Repository, adapters: list[str]) -> str:
    if adapter not in adapters:
        raise RejectedError(f"There is no adapter `{adapter}`.{did_you_mean(adapter, adapters)}")
    inputs = {"adapter": adapter, "rollback": "true", "version": ""}
    repository.get_workflow("deploy.yaml").create_dispatch(repository.default_branch, inputs)
    return f"rollback of {adapter} is under way"


def _time(value: str) -> str:
    return value.replace("Z", "+00:00")


def read_event(path: Path) -> CommentEvent:
    """The payload at `$GITHUB_EVENT_PATH`."""
    event: CommentEvent = json.loads(path.read_text(encoding="utf-8"))
    return event
