"""The one required check of a pull request: may it be merged? Decided from the plan, the jobs'
results and the store.
"""

from __future__ import annotations

import json
from typing import Any

# Jobs that the plan switches on and off, and the output of the plan job that says so.
_SWITCHED = {"validate": "validate", "train": "train", "code": "code"}
# A comment that could not be posted blocks nobody: the verdict is in the store, the report among
# the run's artifacts.
_INDIFFERENT = ("report",)


def decide(needs: dict[str, Any], plan: dict[str, Any]) -> list[str]:
    """Why the pull request may not be merged; empty if it may.

    A job that did not run is accepted only where the plan job switched it off. An adapter counts as
    judged only if the store has the verdict for its keys as they are now, whatever a job claims.

    Args:
        needs: the `needs` context of the job: `result` and `outputs` by job name.
        plan: the plan, made anew after all jobs ended.
    """
    planned = needs.get("plan", {})
    if planned.get("result") != "success":
        problems = list(plan["problems"])
        return problems or [
            f"The plan job ended with {planned.get('result', 'nothing')}. Open its log, mend the"
            " cause, and re-run the jobs."
        ]
    outputs = planned.get("outputs", {})
    problems = []
    for job, facts in sorted(needs.items()):
        if job == "plan" or job in _INDIFFERENT:
            continue
        result = facts.get("result")
        switch = outputs.get(_SWITCHED.get(job, ""))
        if switch is None:
            problems.append(
                f"Job `{job}`: the plan does not say whether it runs. Its result {result} is not"
                " accepted."
            )
        elif _on(switch) and result != "success":
            problems.append(f"Job `{job}` ended with {result}. {_REMEDY.get(job, 'See its log.')}")
        elif not _on(switch) and result != "skipped":
            problems.append(f"Job `{job}` ended with {result}, although the plan switched it off.")
    problems += [
        f"Job `{job}` is not among this check's needs." for job in _SWITCHED if job not in needs
    ]
    problems += plan["problems"]
    for row in plan["adapters"]:
        if row["action"] == "none" or row["verdict"] == "PASS":
            continue
        if row["verdict"]:
            problems.append(
                f"{row['name']}: the gate says {row['verdict']}. See the report's comment for what"
                " to do."
            )
        elif row["name"] not in json.loads(outputs.get("train") or "[]") and not problems:
            problems.append(
                f"{row['name']}: the default branch moved, and with it what a merge would train."
                " Update the branch; its run trains it."
            )
        else:
            problems.append(
                f"{row['name']}: there is no verdict for its keys. Comment `/retrain` once the"
                " cause is mended."
            )
    return list(dict.fromkeys(problems))


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
