"""May a pull request be merged? Decided from the plan, the jobs' results and the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TypedDict

from adapterops.shapes.plan import Plan, PlannedAdapter

# Jobs that the plan switches on and off, and the output of the plan job that says so.
_SWITCHED = {"validate": "validate", "train": "train", "code": "code"}
# A comment that could not be posted blocks nobody: the verdict is in the store, the report among
# the run's artifacts.
_INDIFFERENT = ("report",)


class JobResult(TypedDict, total=False):
    """A job in GitHub's `needs` context."""

    result: str
    outputs: dict[str, str]


def decide(needs: Mapping[str, JobResult], plan: Plan) -> list[str]:
    """Why the pull request may not be merged; empty if it may.

    A job that did not run is accepted only where the plan job switched it off. An adapter counts as
    judged only if the store has the verdict for its keys as they are now, whatever a job claims.

    Args:
        needs: the `needs` context of the job, by job name.
        plan: the plan, made anew after all jobs ended.
    """
    planned = needs.get("plan", JobResult())
    if planned.get("result") != "success":
        result = planned.get("result", "nothing")
        return list(plan["problems"]) or [
            f"The plan job ended with {result}. Open its log, mend the cause, and re-run the jobs."
        ]
    outputs = planned.get("outputs", {})
    problems = _job_problems(needs, outputs)
    problems += plan["problems"]
    trained = json.loads(outputs.get("train") or "[]")
    for row in plan["adapters"]:
        if row["action"] != "none" and row["verdict"] != "PASS":
            # Where a job is to blame, the branch need not have moved.
            moved = row["name"] not in trained and not problems
            problems.append(_without_a_pass(row, moved=moved))
    return list(dict.fromkeys(problems))


def _job_problems(needs: Mapping[str, JobResult], outputs: dict[str, str]) -> list[str]:
    """Jobs that did not end as the plan job said, or that it does not know."""
    problems = []
    for job, facts in sorted(needs.items()):
        if job == "plan" or job in _INDIFFERENT:
            continue
        result = facts.get("result")
        switch = outputs.get(_SWITCHED.get(job, ""))
        if switch is None:
            problems.append(
                f"Job `{job}`: the plan does not say whether it runs."
                f" Its result {result} is not accepted."
            )
        elif _on(switch) and result != "success":
            problems.append(f"Job `{job}` ended with {result}. {_REMEDY.get(job, 'See its log.')}")
        elif not _on(switch) and result != "skipped":
            problems.append(f"Job `{job}` ended with {result}, although the plan switched it off.")
    return problems + [
        f"Job `{job}` is not among this check's needs." for job in _SWITCHED if job not in needs
    ]


def _without_a_pass(row: PlannedAdapter, *, moved: bool) -> str:
    name, verdict = row["name"], row["verdict"]
    if verdict:
        return f"{name}: the gate says {verdict}. See the report's comment for what to do."
    if moved:
        return (
            f"{name}: the default branch moved, and with it what a merge would train."
            " Update the branch; its run trains it."
        )
    return f"{name}: there is no verdict for its keys. Comment `/retrain` once the cause is mended."


_REMEDY = {
    "validate": (
        "The findings are annotated in the files; `make validate` shows them on your machine."
    ),
    "train": "See the gate's table in its summary, or the log where it broke off.",
    "code": "`make test` shows the same on your machine.",
}


def _on(switch: str) -> bool:
    """`true` or a JSON list that is not empty."""
    return bool(json.loads(switch))
