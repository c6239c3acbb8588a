"""From the audit log of one adapter to its deployments: when each began and how it ended."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from adapterops.store.channels import Channel


@dataclass(frozen=True)
class Deployment:
    """One version's way to the users.

    Args:
        adapter: its name.
        digest: of the version.
        began: first generation that names it as canary or stable.
        exposed_at: first generation in which it could get a request; None if it never could.
        stable_at: when all traffic went to it; None if it never did.
        outcome: how it ended, so far.
        ended: when it was aborted or rolled back.
        by: who began it.
    """

    adapter: str
    digest: str
    began: datetime.datetime
    stable_at: datetime.datetime | None
    outcome: Literal["promoted", "aborted", "rolled back", "under way"]
    ended: datetime.datetime | None
    by: str
    exposed_at: datetime.datetime | None = None

    @property
    def failed(self) -> bool:
        """Counts for the change-failure rate."""
        return self.outcome in ("aborted", "rolled back")

    @property
    def restored_after(self) -> datetime.timedelta | None:
        """How long a failed version could get requests; None if it did not fail, or never could."""
        if self.failed and self.ended and self.exposed_at:
            return self.ended - self.exposed_at
        return None


def deployments(entries: Iterable[Channel]) -> list[Deployment]:
    """Every deployment in an audit log, the oldest first; deployed again, a version has another."""
    found: list[Deployment] = []
    former = Channel("")
    for entry in entries:
        when = datetime.datetime.fromisoformat(entry.updated_at)
        rolled_back = (
            entry.rolled_back
            and entry.rolled_back != former.rolled_back
            and entry.rolled_back == former.stable
        )
        if entry.canary and entry.canary != former.canary:
            found.append(_begun(entry, entry.canary, when))
        if entry.canary and entry.weight > 0:
            number = _last(found, entry.canary)
            if number is not None and not found[number].exposed_at:
                found[number] = replace(found[number], exposed_at=when)
        if former.canary and former.canary not in (entry.canary, entry.stable):
            _end(found, former.canary, "aborted", when)
        if rolled_back:
            _end(found, str(entry.rolled_back), "rolled back", when)
        elif entry.stable and entry.stable != former.stable:
            last = _last(found, entry.stable)
            if last is None or found[last].outcome != "under way":
                found.append(_begun(entry, entry.stable, when))  # without a trial
                last = len(found) - 1
            exposed = found[last].exposed_at or when
            found[last] = replace(
                found[last], stable_at=when, outcome="promoted", exposed_at=exposed
            )
        former = entry
    return found


def _begun(entry: Channel, digest: str, when: datetime.datetime) -> Deployment:
    return Deployment(entry.adapter, digest, when, None, "under way", None, entry.updated_by)


def aware(text: str) -> datetime.datetime | None:
    """The moment that a document gives, UTC where it names no zone; None if it is no date."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return when if when.tzinfo else when.replace(tzinfo=datetime.UTC)


def _last(found: list[Deployment], digest: str) -> int | None:
    return next(
        (number for number in reversed(range(len(found))) if found[number].digest == digest), None
    )


def _end(
    found: list[Deployment],
    digest: str,
    outcome: Literal["aborted", "rolled back"],
    when: datetime.datetime,
) -> None:
    number = _last(found, digest)
    if number is not None:
        found[number] = replace(found[number], outcome=outcome, ended=when)
