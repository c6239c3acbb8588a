"""The plan of a pull request: `configs/schemas/plan.json`."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapterops import escape
from adapterops.candidates.kept import Candidate, find_candidate
from adapterops.candidates.keys import Keys, adapter_keys, adapter_names
from adapterops.candidates.promotion import unsigned_release
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.git_tree import (
    TAKEN,
    changed_paths,
    entries,
    extract,
    merged_tree,
    problems_of,
    takeable,
)
from adapterops.plan.estimate import PRICING, Estimate, cap_usd, estimate
from adapterops.plan.rules import POLICY, is_rule, rule_changes
from adapterops.signing import Trust
from adapterops.specs.policy import load_policy
from adapterops.store.objects import ObjectStore

BUDGET_LABEL = "gpu-budget-approved"
_PAGES = (".png", ".svg", ".txt")  # what else below docs/ is only read; docs/aws/ is applied
_APPROVE = (
    f"Or have somebody who may set labels set `{BUDGET_LABEL}`, and comment `/retrain`. It counts"
    " for what was pushed before it was set: where it stands already, take it off and set it"
    " again."
)


def build_plan(
    base: str,
    head: str,
    repository: Path,
    store: ObjectStore | None,
    *,
    fork: bool = False,
    approved: bool = False,
    trust: Trust | None = None,
) -> dict[str, Any]:
    """What has to be computed before `head` may be merged into `base`.

    Args:
        base: commit of the default branch; its code runs here.
        head: exact head commit of the pull request.
        repository: a clone that has both.
        store: where candidates lie; None takes everything as missing.
        fork: the pull request comes from a fork.
        approved: somebody let this very head cost more than the cap.
        trust: whose signature candidates must carry; None asks for none.

    Returns:
        A document of the schema `plan`.

    Raises:
        UsageError: the default branch's own settings, or the public key of `trust`, are broken.
        InfrastructureError: git, the store, or Sigstore.
    """
    plan: dict[str, Any] = {
        "schema": "plan/v1",
        "base": base,
        "head": head,
        "tree": None,
        "fork": fork,
        "verdict": "PROCEED",
        "reason": "",
        "problems": [],
        "changes": classify([]),
        "rules": [],
        "gpu": {"allowed": False, "reason": ""},
        "budget": {"usd": None, "cap_usd": None, "approved": approved},
        "adapters": [],
        "validate": [],
        "train": [],
    }
    problems: list[str] = plan["problems"]
    try:
        tree = plan["tree"] = merged_tree(base, head, repository)
    except RejectedError as error:
        problems.append(str(error))
        return _conclude(plan)
    changed = changed_paths(f"{base}^{{tree}}", tree, repository)
    plan["changes"] = classify(changed)
    problems += problems_of(
        entries(tree, repository, *TAKEN), entries(base, repository, *TAKEN), repository
    )
    if problems:
        return _conclude(plan)
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        before, after = Path(scratch).resolve() / "base", Path(scratch).resolve() / "pull-request"
        extract(base, base, repository, before)
        extract(tree, base, repository, after)
        plan["rules"] = [asdict(change) for change in rule_changes(changed, before, after)]
        problems += _policy_problems(changed, after)
        unknown: list[str] = []
        plan["adapters"] = _adapters(before, after, store, trust, problems, unknown)
        plan["budget"]["cap_usd"] = cap_usd(before)
        # What cannot be predicted cannot be held to a cap: it does not get through because a
        # tokenizer could not be fetched.
        problems += (
            []
            if plan["budget"]["approved"] or fork
            else [f"the cost cannot be predicted. {one} {_APPROVE}" for one in unknown]
        )
    return _conclude(plan)


def _policy_problems(changed: list[str], after: Path) -> list[str]:
    """What breaks a data policy that the pull request changes: no check is made by one that cannot
    be read.
    """
    if POLICY not in changed:
        return []
    try:
        load_policy(after / POLICY)
    except UsageError as error:
        return [str(error).replace(f"{after}/", "")]
    return []


def classify(paths: list[str]) -> dict[str, list[str]]:
    """Paths by what they can do: train on, judge by, set, run, or only be read."""
    kinds: dict[str, list[str]] = {
        "data": [],
        "rules": [],
        "settings": [],
        "code": [],
        "documents": [],
    }
    for path in paths:
        if is_rule(path):
            kinds["rules"].append(escape.line(path))
        elif path.endswith(".md") or (path.startswith("docs/") and path.endswith(_PAGES)):
            kinds["documents"].append(escape.line(path))
        elif takeable(path):
            kinds["data" if path.startswith("data/") else "settings"].append(escape.line(path))
        else:
            kinds["code"].append(escape.line(path))
    return kinds


def _adapters(
    before: Path,
    after: Path,
    store: ObjectStore | None,
    trust: Trust | None,
    problems: list[str],
    unknown: list[str],
) -> list[dict[str, Any]]:
    """A row for each affected adapter; what is broken goes to `problems`, whose cost cannot be
    predicted to `unknown`.
    """
    rows = []
    for name in sorted({*adapter_names(before), *adapter_names(after)}):
        row: dict[str, Any] = {
            "name": name,
            **dict.fromkeys(("training_key", "judgement_key", "digest", "verdict")),
            "released": False,
        }
        if name not in adapter_names(after):
            nothing = {
                "minutes": 0.0,
                "usd": 0.0,
                "basis": "nothing is computed",
                "hints": [],
                "power": [],
            }
            rows.append({**row, "change": "removed", "action": "none", **nothing})
            continue
        try:
            keys = adapter_keys(name, after)
        except UsageError as error:
            problems.append(str(error))
            continue
        former = _keys_or_none(name, before)
        change = _change(former, keys)
        if change is None:
            continue
        known = (
            find_candidate(store, keys, trust)
            if store
            else Candidate(None, keys.judgement(None), None, released=False)
        )
        # It passed when it was released, and going back to it must not need a GPU, whatever the
        # rules are by now.
        going_back = known.released and change != "judgement"
        if (
            going_back
            and store
            and trust
            and (problem := unsigned_release(store, keys, str(known.digest), trust))
        ):
            problems.append(f"{name}: {problem}")
        if (
            known.distrust and not going_back
        ):  # the release would refuse it after the merge, and no run can replace it
            problems.append(f"{name}: {known.distrust}   # then comment `/retrain`")
        verdict = "PASS" if going_back else known.verdict
        action = "train" if known.digest is None else "judge" if verdict is None else "reuse"
        try:
            guess = estimate(keys, action)
        except (UsageError, InfrastructureError) as error:
            guess = Estimate(None, None, f"unknown: {error}".partition("\n")[0])
            unknown.append(f"{name}: {error}".partition("\n")[0])
        if guess.problem:
            problems.append(
                f"{name}: {guess.problem.replace(f'{after}/', '')}"
            )  # paths are those of the repository
        power = _beforehand(keys, after, problems) if action in ("train", "judge") else []
        rows.append(
            {
                **row,
                "change": change,
                "training_key": keys.training,
                "judgement_key": known.judgement_key,
                "digest": known.digest,
                "verdict": verdict,
                "released": going_back,
                "action": action,
                "minutes": guess.minutes,
                "usd": guess.usd,
                "basis": guess.basis,
                "hints": list(guess.hints),
                "power": power,
            }
        )
    return rows


def _beforehand(keys: Keys, after: Path, problems: list[str]) -> list[str]:
    """What the gates can decide on this adapter's rows; that no evaluation of it can pass goes to
    `problems`.
    """
    from adapterops.gate.explain import (
        explain,
        problems_beforehand,
        rows_of,
    )  # here, for scipy takes a second
    from adapterops.specs.gate import load_gates

    spec = keys.spec
    try:
        counts = rows_of(spec)
    except RejectedError:
        return []  # the validation of the data names every row
    problems += [
        f"{spec.name}: {one.replace(f'{after}/', '')}" for one in problems_beforehand(spec, counts)
    ]
    return explain(load_gates(spec.evaluation.gate), counts, registered=bool(spec.extension_data))


def _keys_or_none(name: str, root: Path) -> Keys | None:
    """Keys on the default branch; None for an adapter that is new, or broken there and mended by
    this pull request.
    """
    try:
        return adapter_keys(name, root)
    except UsageError:
        return None


def _change(former: Keys | None, keys: Keys) -> str | None:
    if former is None:
        return "new"
    if former.training != keys.training:
        return "weights"
    return "judgement" if former.rules != keys.rules else None


def _conclude(plan: dict[str, Any]) -> dict[str, Any]:
    """Say what follows from what was found: verdict, GPU, which jobs run."""
    adapters, problems = plan["adapters"], plan["problems"]
    wanted = [row["name"] for row in adapters if row["action"] in ("train", "judge")]
    costs = [row["usd"] for row in adapters]
    budget = plan["budget"]
    known = round(sum(cost for cost in costs if cost is not None), 2)
    budget["usd"] = None if None in costs else known
    code = plan["changes"]["code"]
    if wanted and plan["fork"]:
        problems.append(
            f"{_names(wanted)} would have to be trained, and pull requests from forks get no GPU. A"
            " member of this repository pushes the branch here, after reading it: git fetch origin"
            " pull/NUMBER/head && git push origin FETCH_HEAD:refs/heads/NAME"
        )
    elif wanted and code:
        problems.append(
            f"{_names(wanted)} would have to be trained, and this pull request changes code or"
            f" trusted settings too ({_names(code[:3])}{' …' if len(code) > 3 else ''}). Such a"
            " pull request gets CPU tests and no GPU. Split it: code in one, data and settings in"
            " another."
        )
    elif (
        wanted
        and budget["cap_usd"] is not None
        and known > budget["cap_usd"]
        and not budget["approved"]
    ):
        problems.append(
            f"predicted cost ${known:.2f} exceeds cap_usd {budget['cap_usd']:g} of {PRICING}. Train"
            f" on less. {_APPROVE}"
        )
    if not wanted:
        plan["gpu"] = {"allowed": False, "reason": "Nothing has to be trained or judged."}
    elif problems:
        plan["gpu"] = {"allowed": False, "reason": "The pull request is refused as it is."}
    else:
        plan["gpu"] = {
            "allowed": True,
            "reason": f"{_names(wanted)}: weights or verdict are not there yet.",
        }
        plan["train"] = wanted
    if not problems:
        plan["validate"] = [row["name"] for row in adapters if row["action"] != "none"]
    plan["verdict"] = "REFUSED" if problems else "PROCEED"
    plan["reason"] = _reason(plan)
    return plan


def _reason(plan: dict[str, Any]) -> str:
    adapters = plan["adapters"]
    if plan["problems"]:
        return str(plan["problems"][0]).partition("\n")[0]
    if plan["train"]:
        return f"{_names(plan['train'])} gets a GPU job."
    known = [
        f"{row['name']} {'released' if row['released'] else row['verdict']}"
        for row in adapters
        if row["verdict"]
    ]
    if known:
        return f"Computed before: {_names(known)}. Nothing is trained."
    return "No adapter's weights or verdict depend on what changes here. Nothing is trained."


def _names(names: list[str]) -> str:
    return ", ".join(map(escape.line, names))
