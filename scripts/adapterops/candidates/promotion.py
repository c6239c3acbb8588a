"""Promotion: the candidate whose keys `main` has becomes the release; nothing is trained here."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from adapterops.candidates.kept import Candidate, fetch_adapter, fetch_judgement, find_candidate
from adapterops.candidates.keys import Keys, adapter_keys, adapter_names
from adapterops.documents import new_directory
from adapterops.errors import RejectedError, UsageError
from adapterops.git_tree import extract
from adapterops.shapes.judgement import Judgement
from adapterops.signing import Trust
from adapterops.specs.serving import load_serving_config
from adapterops.store.channels import read_channel
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import adapter_files, fetch_release
from adapterops.store.withdrawn import refuse_withdrawn


@dataclass(frozen=True)
class Promotion:
    """One adapter that `main` wants served.

    Args:
        adapter: its name.
        training_key: as `main` has it.
        digest: the candidate's, None if there is none.
        released: it is a release already, as after a revert.
        problem: why it cannot be promoted, with the command that mends it; empty if it can.
    """

    adapter: str
    training_key: str
    digest: str | None
    released: bool
    problem: str


def changed_adapters(before: str | None, after: str, repository: Path, scratch: Path) -> list[str]:
    """Adapters whose training key differs between two commits; all of them without a former one.

    Raises:
        UsageError: an adapter of `after` is broken.
    """
    old, new = scratch / "before", scratch / "after"
    extract(after, after, repository, new)
    if before:
        extract(before, before, repository, old)
    changed = []
    for name in adapter_names(new):
        try:
            former = adapter_keys(name, old).training if before else None
        except UsageError:  # new, or broken until now
            former = None
        if adapter_keys(name, new).training != former:
            changed.append(name)
    return changed


def find_promotion(
    store: ObjectStore, name: str, root: Path, trust: Trust | None = None
) -> Promotion | None:
    """What promoting the adapter of a tree means; None if that version is stable already.

    Args:
        store: where candidates are.
        name: of the adapter.
        root: of the tree.
        trust: whose signature a candidate must carry; None asks for none.

    Raises:
        UsageError: the adapter's files are broken.
        InfrastructureError: the store.
    """
    keys = adapter_keys(name, root)
    known = find_candidate(store, keys, trust)
    found = read_channel(store, name)
    if known.digest and found and found[0].stable == known.digest and found[0].canary is None:
        return None
    problem = _problem(keys, known)
    if known.digest and not problem:
        try:
            refuse_withdrawn(store, name, known.digest)
        except RejectedError as error:
            problem = f"{error} Nothing is released: revert the merge, or change data or recipe."
    return Promotion(name, keys.training, known.digest, known.released, problem)


def _problem(keys: Keys, known: Candidate) -> str:
    name, digest, verdict = keys.spec.name, known.digest, known.verdict
    mend = (
        f"gh workflow run retrain.yaml --ref main -f adapter={name}   # then: gh workflow run"
        f" release.yaml --ref main -f adapter={name}"
    )
    if digest is None:
        return (
            f"{name}: no candidate has training key {keys.training[:12]}, which main has now: what"
            " was judged in the pull request is not what was merged. Nothing is released. Train"
            f" and judge main itself: {mend}"
        )
    if known.released:  # it passed when it was released; going back to it must not need a GPU
        return ""
    if known.distrust:
        return f"{name}: candidate {digest[:12]} is not released. {known.distrust}   # then: {mend}"
    if verdict not in (None, "PASS"):
        return (
            f"{name}: the gate said {verdict} on candidate {digest[:12]}. Nothing is released."
            " Revert the merge, or mend it in a new one."
        )
    if verdict is None:
        return (
            f"{name}: candidate {digest[:12]} has no verdict under the rules that main has now,"
            f" against the adapter that is in production now. Nothing is released. Judge it: {mend}"
        )
    return ""


def fetch_promotion(
    store: ObjectStore, promotion: Promotion, root: Path, run: Path, trust: Trust | None = None
) -> Judgement | None:
    """Bring the candidate and its verdict into a run directory, verified, ready for publishing;
    `trust` as in `find_promotion`.

    A release brings its own files, from below adapters/, with the signature that its hosts ask for,
    and no train manifest.

    Returns:
        The judgement, None for an older release whose verdict was under other rules, against
        another adapter, or is not signed.

    Raises:
        RejectedError: it cannot be promoted.
        InfrastructureError: the store, or damaged bytes.
    """
    if promotion.problem:
        raise RejectedError(promotion.problem)
    keys = adapter_keys(promotion.adapter, root)
    known = find_candidate(store, keys, trust)
    if known.digest != promotion.digest or _problem(keys, known):
        raise RejectedError(
            f"{promotion.adapter}: the candidate changed while it was looked at. Run the release"
            " again."
        )
    if known.released:
        _fetch_released(store, keys, str(known.digest), run / "model", trust)
    else:
        fetch_adapter(store, keys.training, run / "model", trust)
    if known.judgement:
        fetch_judgement(store, known.judgement, run)
    return known.judgement


def unsigned_release(store: ObjectStore, keys: Keys, digest: str, trust: Trust) -> str | None:
    """Why going back to a release would be refused after the merge; None if it would not.

    It needs no verdict, for it had one: so says its manifest, which is believed for its signature
    alone.

    Raises:
        InfrastructureError: the store, or damaged bytes.
    """
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _fetch_released(store, keys, digest, Path(scratch) / "model", trust)
    except (RejectedError, UsageError) as error:
        return (
            f"{error} Nothing goes back to it: change data or recipe, and what they make is judged."
        )
    return None


def _fetch_released(
    store: ObjectStore, keys: Keys, digest: str, target: Path, trust: Trust | None
) -> None:
    """Bring a release's own files to `target`; where candidates must be signed, so must it be, by
    whom its hosts trust.

    Raises:
        RejectedError: it is not signed by whom the hosts trust, or is of another training key.
        UsageError: the hosts' public key is not on this machine.
        InfrastructureError: the store, or damaged bytes.
    """
    name = keys.spec.name
    signed_by = load_serving_config(keys.spec.serving).trust if trust else None
    with tempfile.TemporaryDirectory() as scratch:
        base_model = keys.recipe.base_model.name
        release, manifest = fetch_release(
            store, name, digest, Path(scratch), base_model=base_model, trust=signed_by
        )
        if manifest["training_key"] != keys.training:
            raise RejectedError(
                f"{name}: release {digest[:12]} is of training key {manifest['training_key'][:12]}."
                " Run the release again."
            )
        with new_directory(target) as staging:
            for file in adapter_files:
                shutil.copyfile(release / file, staging / file)
