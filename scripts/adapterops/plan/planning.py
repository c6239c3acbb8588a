"""The plan of a pull request: `configs/schemas/plan.json`."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

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
from adapterops.plan.estimate import Action, Estimate, cap_usd, estimate
from adapterops.plan.rules import POLICY, is_rule, rule_changes
from adapterops.shapes.plan import Changes, Plan, PlannedAdapter
from adapterops.signing import Trust
from adapterops.specs.policy import load_policy
from adapterops.specs.price_list import PRICING
from adapterops.store.objects import ObjectStore

BUDGET_LABEL = "gpu-budget-approved"
_PAGES = (".png", ".svg", ".txt")  # what else below docs/ is only read; docs/aws/ is applied
_Change = Literal["new", "weights", "judgement"]
_Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
_APPROVE = (
    f"Or have somebody who may set labels set `{BUDGET_LABEL}`, and comment `/retrain`."
    " It counts for what was pushed before it was set:"
    " where it stands already, take it off and set it again."
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
) -> Plan:
    """What has to be computed before `head` may be merged into `base`.

    Args:
        base: commit of the default branch; its code runs here.
        head: exact head commit of the pull request.
        repository: a clone that has both.
        store: where candidates lie; None takes everything as missing.
        fork: the pull request comes from a fork.
        approved: somebody let this very head cost more than the cap.
        trust: whose signature candidates must carry; None asks for none.

    Raises:
        UsageError: the default branch's own settings, or the public key of `trust`, are broken.
        InfrastructureError: git, the store, or Sigstore.
    """
    plan = _nothing_found(base, head, fork=fork, approved=approved)
    problems = plan["problems"]
    try:
        tree = plan["tree"] = merged_tree(base, head, repository)
    except RejectedError as error:
        problems.append(str(error))
        return _conclude(plan)
    changed = changed_paths(f"{base}^{{tree}}", tree, repository)
    plan["changes"] = classify(changed)
    brought, trusted = (entries(side, repository, *TAKEN) for side in (tree, base))
    problems += problems_of(brought, trusted, repository)
    if problems:
        return _conclude(plan)
    with tempfile.TemporaryDirectory(prefix="plan-") as scratch:
        before, after = Path(scratch).resolve() / "base", Path(scratch).resolve() / "pull-request"
        extract(base, base, repository, before)
        extract(tree, base, repository, after)
        plan["rules"] = [change.document() for change in rule_changes(changed, before, after)]
        problems += _policy_problems(changed, after)
        found = _adapters(before, after, store, trust)
        plan["adapters"] = found.rows
        problems += found.problems
        plan["budget"]["cap_usd"] = cap_usd(before)
        # What cannot be predicted cannot be held to a cap: it does not get through because a
        # tokenizer could not be fetched.
        if not (approved or fork):
            problems += [f"the cost cannot be predicted. {one} {_APPROVE}" for one in found.unknown]
    return _conclude(plan)


def _nothing_found(base: str, head: str, *, fork: bool, approved: bool) -> Plan:
    """The plan of a pull request that changes nothing."""
    return {
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


def _policy_problems(changed: list[str], after: Path) -> list[str]:
    """What breaks a data policy that the pull request changes: none can be checked by it."""
    if POLICY not in changed:
        return []
    try:
        load_policy(after / POLICY)
    except UsageError as error:
        return [str(error).replace(f"{after}/", "")]
    return []


def classify(paths: list[str]) -> Changes:
    """Paths by what they can do: train on, judge by, set, run, or only be read."""
    kinds: Changes = {"data": [], "rules": [], "settings": [], "code": [], "documents": []}
    for path in paths:
        if is_rule(path):
            kind = kinds["rules"]
        elif path.endswith(".md") or (path.startswith("docs/") and path.endswith(_PAGES)):
            kind = kinds["documents"]
        elif takeable(path):
            kind = kinds["data"] if path.startswith("data/") else kinds["settings"]
        else:
            kind = kinds["code"]
        kind.append(escape.line(path))
    return kinds


@dataclass
class _Found:
    """What the adapters of both trees say.

    Args:
        rows: of the affected ones.
        problems: what is broken, or refused.
        unknown: whose cost cannot be predicted, and why.
    """

    rows: list[PlannedAdapter] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def _adapters(before: Path, after: Path, store: ObjectStore | None, trust: Trust | None) -> _Found:
    """A row for each affected adapter."""
    found = _Found()
    for name in sorted({*adapter_names(before), *adapter_names(after)}):
        if name not in adapter_names(after):
            found.rows.append(_removed(name))
            continue
        try:
            keys = adapter_keys(name, after)
        except UsageError as error:
            found.problems.append(str(error))
            continue
        if change := _change(_keys_or_none(name, before), keys):
            found.rows.append(_affected(keys, change, after, store, trust, found))
    return found


def _removed(name: str) -> PlannedAdapter:
    return {
        "name": name,
        "change": "removed",
        "training_key": None,
        "judgement_key": None,
        "digest": None,
        "verdict": None,
        "released": False,
        "action": "none",
        "minutes": 0.0,
        "usd": 0.0,
        "basis": "nothing is computed",
        "hints": [],
        "power": [],
    }


def _affected(
    keys: Keys,
    change: _Change,
    after: Path,
    store: ObjectStore | None,
    trust: Trust | None,
    found: _Found,
) -> PlannedAdapter:
    """What is known of an adapter and what is done about it; `found` takes what is wrong."""
    name = keys.spec.name
    if store:
        known = find_candidate(store, keys, trust)
    else:
        known = Candidate(None, keys.judgement(None), None, released=False)
    # It passed when it was released, and going back to it must not need a GPU, whatever the rules
    # are by now.
    going_back = known.released and change != "judgement"
    if going_back and store and trust:
        unsigned = unsigned_release(store, keys, str(known.digest), trust)
        found.problems += [f"{name}: {unsigned}"] if unsigned else []
    if known.distrust and not going_back:
        # The release would refuse it after the merge, and no run can replace it.
        found.problems.append(f"{name}: {known.distrust}   # then comment `/retrain`")
    judged: _Verdict | None = known.judgement["verdict"] if known.judgement else None
    verdict = "PASS" if going_back else judged
    action: Action = "train" if known.digest is None else "judge" if verdict is None else "reuse"
    cost = _cost(keys, action, after, found)
    power = _beforehand(keys, after, found.problems) if action in ("train", "judge") else []
    return {
        "name": name,
        "change": change,
        "training_key": keys.training,
        "judgement_key": known.judgement_key,
        "digest": known.digest,
        "verdict": verdict,
        "released": going_back,
        "action": action,
        "minutes": cost.minutes,
        "usd": cost.usd,
        "basis": cost.basis,
        "hints": list(cost.hints),
        "power": power,
    }


def _cost(keys: Keys, action: Action, after: Path, found: _Found) -> Estimate:
    """What the action would cost; `found` takes why it cannot run, or why nobody knows."""
    name = keys.spec.name
    try:
        cost = estimate(keys, action)
    except (UsageError, InfrastructureError) as error:
        found.unknown.append(f"{name}: {error}".partition("\n")[0])
        return Estimate(None, None, f"unknown: {error}".partition("\n")[0])
    if cost.problem:  # paths are those of the repository
        found.problems.append(f"{name}: {cost.problem.replace(f'{after}/', '')}")
    return cost


def _beforehand(keys: Keys, after: Path, problems: list[str]) -> list[str]:
    """What the gates can decide on this adapter's rows; that none can pass goes to `problems`."""
    # Here, for scipy takes a second.
    from adapterops.gate.explain import explain, problems_beforehand, rows_of
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
    """Keys on the default branch; None for an adapter that is new, or broken there."""
    try:
        return adapter_keys(name, root)
    except UsageError:
        return None


def _change(former: Keys | None, keys: Keys) -> _Change | None:
    if former is None:
        return "new"
    if former.training != keys.training:
        return "weights"
    return "judgement" if former.rules != keys.rules else None


def _conclude(plan: Plan) -> Plan:
    """Say what follows from what was found: verdict, GPU, which jobs run."""
    adapters, problems = plan["adapters"], plan["problems"]
    wanted = [row["name"] for row in adapters if row["action"] in ("train", "judge")]
    costs = [row["usd"] for row in adapters if row["usd"] is not None]
    known = round(sum(costs), 2)
    plan["budget"]["usd"] = known if len(costs) == len(adapters) else None
    if wanted and (refused := _no_gpu(plan, wanted, known)):
        problems.append(refused)
    if not wanted:
        plan["gpu"]["reason"] = "Nothing has to be trained or judged."
    elif problems:
        plan["gpu"]["reason"] = "The pull request is refused as it is."
    else:
        reason = f"{_names(wanted)}: weights or verdict are not there yet."
        plan["gpu"] = {"allowed": True, "reason": reason}
        plan["train"] = wanted
    if not problems:
        plan["validate"] = [row["name"] for row in adapters if row["action"] != "none"]
    plan["verdict"] = "REFUSED" if problems else "PROCEED"
    plan["reason"] = _reason(plan)
    return plan


def _no_gpu(plan: Plan, wanted: list[str], usd: float) -> str:
    """Why adapters that need a GPU get none, and what to do; empty if they may have one."""
    names, code = _names(wanted), plan["changes"]["code"]
    cap, approved = plan["budget"]["cap_usd"], plan["budget"]["approved"]
    if plan["fork"]:
        return (
            f"{names} would have to be trained, and pull requests from forks get no GPU."
            " A member of this repository pushes the branch here, after reading it:"
            " git fetch origin pull/NUMBER/head && git push origin FETCH_HEAD:refs/heads/NAME"
        )
    if code:
        changed = f"{_names(code[:3])}{' …' if len(code) > 3 else ''}"
        return (
            f"{names} would have to be trained, and this pull request changes code or trusted"
            f" settings too ({changed}). Such a pull request gets CPU tests and no GPU."
            " Split it: code in one, data and settings in another."
        )
    if cap is not None and usd > cap and not approved:
        return (
            f"predicted cost ${usd:.2f} exceeds cap_usd {cap:g} of {PRICING}. Train on less."
            f" {_APPROVE}"
        )
    return ""


def _reason(plan: Plan) -> str:
    adapters = plan["adapters"]
    if plan["problems"]:
        return plan["problems"][0].partition("\n")[0]
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
