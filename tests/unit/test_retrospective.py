"""Deployments as the audit log tells them, and reports that hostile text cannot break."""

import datetime
from dataclasses import replace

import pytest

from adapterops.retrospective.collect import Section
from adapterops.retrospective.history import deployments
from adapterops.retrospective.render import markdown, page
from adapterops.store.channels import Channel, abort_canary, promote, start_canary

A, B, C = "a" * 64, "b" * 64, "c" * 64
BEGIN = datetime.datetime(2026, 11, 2, tzinfo=datetime.UTC)


def roll_back(channel):
    return replace(channel, stable=channel.previous, previous=None, canary=None, weight=0, rolled_back=channel.stable)


def log(*changes):
    """Entries a minute apart."""
    channel, entries = Channel("support", updated_by="kim"), []
    for number, change in enumerate(changes, 1):
        channel = replace(change(channel), generation=number, updated_at=(BEGIN + datetime.timedelta(minutes=number)).isoformat())
        entries.append(channel)
    return entries


def canary(digest, weight):
    return lambda channel: start_canary(channel, digest, weight)


def stable(digest):
    return lambda channel: promote(channel, digest)


@pytest.mark.parametrize(
    ("changes", "outcomes"),
    [
        ([stable(A)], [(A, "promoted", None)]),
        ([canary(A, 0), canary(A, 10), canary(A, 100), stable(A)], [(A, "promoted", None)]),
        ([stable(A), canary(B, 10), abort_canary], [(A, "promoted", None), (B, "aborted", 1)]),
        ([stable(A), canary(B, 0), canary(B, 10), abort_canary], [(A, "promoted", None), (B, "aborted", 1)]),
        ([stable(A), canary(B, 0), abort_canary], [(A, "promoted", None), (B, "aborted", None)]),  # nobody was asked to wait for it
        ([stable(A), canary(B, 10), stable(B), roll_back], [(A, "promoted", None), (B, "rolled back", 2)]),
        ([stable(A), canary(B, 10)], [(A, "promoted", None), (B, "under way", None)]),
        ([stable(A), stable(B), canary(C, 10), roll_back], [(A, "promoted", None), (B, "rolled back", 2), (C, "aborted", 1)]),
        (
            [stable(A), canary(B, 10), abort_canary, canary(B, 10), stable(B)],
            [(A, "promoted", None), (B, "aborted", 1), (B, "promoted", None)],
        ),
        ([stable(A), stable(B), roll_back, canary(C, 5), abort_canary], [(A, "promoted", None), (B, "rolled back", 1), (C, "aborted", 1)]),
    ],
)
def test_the_audit_log_tells_how_each_deployment_ended_and_how_long_a_bad_one_lasted(changes, outcomes):
    found = deployments(log(*changes))
    minutes = [item.restored_after and item.restored_after.total_seconds() / 60 for item in found]
    assert [(item.digest, item.outcome, restored) for item, restored in zip(found, minutes, strict=True)] == outcomes


def test_text_from_the_store_stays_text():
    section = Section("Deployments", ("by",), [("@octocat <img src=x onerror=alert(1)> | a\nb `c`",)], "None.")
    text = markdown("Week", [section])
    assert "@octocat" not in text
    assert "<img" not in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 3
    assert "<img" not in page("Week", [section])
