"""The plan of a pull request as GitHub has it: commits, label, store, signatures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterops.candidates.kept import trust_from
from adapterops.git_tree import fetch, resolve
from adapterops.gitops.github import approved_since_push
from adapterops.plan.planning import BUDGET_LABEL, build_plan
from adapterops.shapes.plan import Plan
from adapterops.store.objects import open_store


@dataclass(frozen=True)
class Asked:
    """What a job knows of a pull request.

    Args:
        head: its exact head commit; fetched from origin if missing.
        base: revision of the default branch.
        number: of the pull request, whose label may approve a budget; None is approved by nobody.
        fork: it comes from a fork.
        no_store: do not ask the store what is computed already.
        bucket: with candidates; None takes `$ADAPTER_BUCKET`.
        signed_by: whose signature candidates must carry, see `trust_from`.
    """

    head: str
    base: str
    number: int | None = None
    fork: bool = False
    no_store: bool = False
    bucket: str | None = None
    signed_by: str | None = None


def plan_pull_request(asked: Asked, root: Path) -> Plan:
    """What has to be computed before it may be merged; `root` is the default branch's checkout.

    Raises:
        UsageError: the default branch's settings, or an option, are at fault.
        InfrastructureError: git, GitHub, the store, or Sigstore.
    """
    fetch(asked.head, root)
    store = None if asked.no_store else open_store(asked.bucket)
    return build_plan(
        resolve(asked.base, root),
        asked.head,
        root,
        store,
        fork=asked.fork,
        approved=approved_since_push(asked.number, asked.head, BUDGET_LABEL),
        trust=trust_from(asked.signed_by),
    )
