"""Candidates: what pull-request runs computed, kept in the store under the keys of their inputs.

    candidates/<training key>/
        adapter/sha256-<digest>/…       the adapter's files
        candidate.json                  written last: which digest this key has, for good
        judgements/<judgement key>/…    documents of one evaluation and its verdict
        judgements/<judgement key>/judgement.json   written last
    …/signatures/<SHA-256 of candidate.json or judgement.json>.json
                                        beside the document that it signs, written before it

Whoever writes first decides: training is not repeatable to the bit, and a second try must not get a
second verdict. The judgement key holds the adapter's name and the digest of what was in production:
what was judged under another name, or against a former one, is judged again. The trained bytes may
be shared by names.

What may write here is not what says that an adapter is good: `train.yaml` signs both documents,
which name every other file by its SHA-256, and the release takes what it has signed. The names are
an enumeration (their schemas). Only what a run has computed is signed by it: a run takes neither an
adapter nor a verdict that somebody else put there, and never adds a signature to what was kept
without.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict, TypeVar

from adapterops.candidates.checkpoints import remove_remote
from adapterops.candidates.keys import Keys
from adapterops.documents import new_directory, read_json, sha256_file, sha256_json
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import ROOT, schema_of, schema_problems
from adapterops.shapes.candidate import Candidate as CandidateDocument
from adapterops.shapes.gate_report import GateReport
from adapterops.shapes.judgement import Judgement, Source
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.signing import Signer, Trust
from adapterops.store.channels import read_channel
from adapterops.store.incoming import inner
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import adapter_digest, adapter_files, find_release
from adapterops.store.signed import (
    SignedDocument,
    UnsignedError,
    check_signature,
    parse,
    text_of,
    write_once,
)

D = TypeVar("D", bound=Mapping[str, object])  # a shape: what is kept under a key
Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
RunDocument = Literal[
    "gate_report.json",
    "eval_results.json",
    "eval_samples.jsonl",
    "data_report.json",
    "main/gate_report.json",
    "main/eval_results.json",
    "main/eval_samples.jsonl",
    "main/data_report.json",
]
_MANIFEST: Literal["train_manifest.json"] = "train_manifest.json"
# The documents of a run; what is rendered of them is rendered again.
_MEASURED: tuple[RunDocument, ...] = ("gate_report.json", "eval_results.json", "eval_samples.jsonl")
# main/: by the default branch's rules.
_BESIDE: tuple[RunDocument, ...] = (
    "data_report.json",
    "main/gate_report.json",
    "main/eval_results.json",
    "main/eval_samples.jsonl",
    "main/data_report.json",
)
# as pull-request.yaml calls it, whichever ref that runs on
_SIGNING_WORKFLOW = ".github/workflows/train.yaml@refs/heads/main"
_ISSUER = "https://token.actions.githubusercontent.com"


@dataclass(frozen=True)
class Candidate:
    """What is known under an adapter's keys.

    Args:
        digest: of the adapter that was trained, None if none was.
        judgement_key: of the verdict that counts now: under these rules, against the adapter that
            is in production.
        judgement: `configs/schemas/judgement.json` for that key, None if there is none that counts.
        released: the adapter is a release of this training key: it passed once, under the rules and
            against the production of that day.
        distrust: why adapter or verdict do not count as signed by whom we trust, with the command
            that removes them; empty if they do, and where no trust was given. A release is no
            excuse: its own files lie below adapters/, and have a signature of their own.
    """

    digest: str | None
    judgement_key: str
    judgement: Judgement | None
    released: bool
    distrust: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """PASS, FAIL, INCONCLUSIVE or None."""
        return self.judgement["verdict"] if self.judgement else None


def trust_from(value: str | None) -> Trust | None:
    """Whose signature candidates must carry, from `--signed-by`: a public key's path, `keyless`
    (this repository's train.yaml), or nothing.

    Raises:
        UsageError: no such file, or no repository to be the identity's.
    """
    if not value:
        return None
    if value == "keyless":
        server = os.environ.get("GITHUB_SERVER_URL")
        repository = os.environ.get("GITHUB_REPOSITORY")
        if not server or not repository:
            raise UsageError(
                "--signed-by keyless needs GITHUB_SERVER_URL and GITHUB_REPOSITORY, as GitHub"
                " Actions set them."
            )
        return Trust(None, f"{server}/{repository}/{_SIGNING_WORKFLOW}", _ISSUER)
    if not (ROOT / value).is_file():
        raise UsageError(
            f"--signed-by {value} does not exist. Put the public half of the key there that"
            " candidates are signed with."
        )
    return Trust(ROOT / value)


def find_candidate(store: ObjectStore, keys: Keys, trust: Trust | None = None) -> Candidate:
    """What is known under the keys; the adapter's files are not fetched.

    Raises:
        InfrastructureError: the store, or a damaged document.
    """
    adapter = _adapter(store, keys.training)
    production = _production(store, keys, adapter["digest"] if adapter else None)
    judgement_key = keys.judgement(production)
    return _candidate(store, keys.spec.name, keys.training, adapter, judgement_key, trust)


def find_judged(
    store: ObjectStore, name: str, training_key: str, judgement_key: str, trust: Trust | None = None
) -> Candidate:
    """What `find_candidate` says, for keys that a plan names; `name` is the adapter's.

    Raises:
        InfrastructureError: the store, or a damaged document.
    """
    return _candidate(
        store, name, training_key, _adapter(store, training_key), judgement_key, trust
    )


def _candidate(
    store: ObjectStore,
    name: str,
    training_key: str,
    adapter: CandidateDocument | None,
    judgement_key: str,
    trust: Trust | None,
) -> Candidate:
    if adapter is None:
        return Candidate(None, judgement_key, None, released=False)
    digest, place = adapter["digest"], _judged(training_key, judgement_key)
    shas = {
        file["name"]: file["sha256"] for file in adapter["files"] if file["name"] in adapter_files
    }
    if sha256_json(shas) != digest:
        raise InfrastructureError(
            f"{_kept(training_key)}: its files do not have the digest that it names."
        )
    judgement = find_judgement(store, name, training_key, judgement_key)
    if judgement and judgement["digest"] != digest:
        raise InfrastructureError(f"{place} is damaged: `digest` is not {digest[:12]}")
    release = find_release(store, name, digest)
    released = release is not None and release["training_key"] == training_key
    distrust = ""
    if trust:
        distrust = _distrust(store, _kept(training_key), adapter, trust)
    if trust and judgement and not distrust:
        distrust = _distrust(store, place, judgement, trust)
    return Candidate(digest, judgement_key, None if distrust else judgement, released, distrust)


def find_judgement(
    store: ObjectStore, name: str, training_key: str, judgement_key: str
) -> Judgement | None:
    """The judgement on the adapter of that name under a judgement key, None if there is none.

    Raises:
        InfrastructureError: the store, or a damaged document.
    """
    key = _judged(training_key, judgement_key)
    expected = {"adapter": name, "training_key": training_key, "judgement_key": judgement_key}
    return _document(store, key, Judgement, expected)


def fetch_measurements(
    store: ObjectStore, keys: Keys, run: Path, trust: Trust | None = None
) -> bool:
    """Bring the documents of the newest verdict on this adapter, given under other rules, so that
    only the gate has to judge anew.

    Whether they are of the evaluation that today's rules ask for is told by `eval_key`, when it is
    looked for there. The verdict itself is left behind.

    Returns:
        Whether there was one that is signed as `trust` asks.

    Raises:
        InfrastructureError: the store, or damaged documents.
    """
    found = sorted(
        store.entries(f"{_prefix(keys.training)}/judgements/"),
        key=lambda entry: entry[1],
        reverse=True,
    )
    for key in (key for key, _ in found if key.endswith("/judgement.json")):
        judgement_key = key.split("/")[-2]
        expected = {"training_key": keys.training, "judgement_key": judgement_key}
        judgement = _document(store, _judged(keys.training, judgement_key), Judgement, expected)
        adapter = _adapter(store, keys.training)
        # A copy of the adapter under another name has the same training key: its verdicts lie here
        # too.
        if (
            not judgement
            or not adapter
            or judgement["digest"] != adapter["digest"]
            or judgement["adapter"] != keys.spec.name
        ):
            continue
        if trust and _distrust(store, key, judgement, trust):
            continue
        fetch_judgement(store, judgement, run)
        (run / "gate_report.json").unlink()
        shutil.rmtree(run / "main", ignore_errors=True)
        return True
    return False


def _production(store: ObjectStore, keys: Keys, candidate: str | None) -> str | None:
    """Digest of what `evaluate.production` would compare the candidate with, None for nothing."""
    found = read_channel(store, keys.spec.name)
    stable = found[0].stable if found else None
    if stable is None or stable == candidate:
        return None
    manifest = find_release(store, keys.spec.name, stable)
    same_base = manifest and manifest["base_model"]["name"] == keys.recipe.base_model.name
    return stable if same_base else None


def fetch_adapter(
    store: ObjectStore, training_key: str, target: Path, trust: Trust | None = None
) -> str | None:
    """Bring the adapter of a training key to `target`, verified, or not at all.

    Returns:
        Its digest, None if nothing was trained under this key.

    Raises:
        RejectedError: it is not signed by whom we trust.
        InfrastructureError: the store, or bytes that are not those of its documents.
    """
    document = _trusted(store, training_key, trust)
    if document is None:
        return None
    with new_directory(target) as staging:
        _download(store, document, staging, (*adapter_files, _MANIFEST))
        if adapter_digest(staging) != document["digest"]:
            raise InfrastructureError(
                f"{_prefix(training_key)}: the candidate's files contradict each other. It is not"
                " used."
            )
    return document["digest"]


def fetch_train_manifest(
    store: ObjectStore, training_key: str, target: Path, trust: Trust | None = None
) -> None:
    """Bring to `target` how the adapter of a training key was trained, verified, and not its
    weights; errors as `fetch_adapter`.
    """
    if document := _trusted(store, training_key, trust):
        with new_directory(target) as staging:
            _download(store, document, staging, (_MANIFEST,))


def _trusted(
    store: ObjectStore, training_key: str, trust: Trust | None
) -> CandidateDocument | None:
    """The candidate of a training key, None if there is none.

    Raises:
        RejectedError: it is not signed by whom we trust.
    """
    document = _adapter(store, training_key)
    if document and trust:
        _refuse_distrusted(store, _kept(training_key), document, trust)
    return document


def _download(
    store: ObjectStore, document: CandidateDocument, staging: Path, names: tuple[str, ...]
) -> None:
    """Bring files of a candidate; the train manifest among them must be on that very adapter."""
    training_key, digest = document["training_key"], document["digest"]
    for file in document["files"]:
        if file["name"] in names:
            key = f"{_prefix(training_key)}/adapter/sha256-{digest}/{file['name']}"
            store.download(key, staging, file["name"], sha256=file["sha256"], size=file["size"])
    manifest = read_json(staging / _MANIFEST, TrainManifest)
    if manifest["adapter"]["digest"] != digest or manifest["training_key"] != training_key:
        raise InfrastructureError(
            f"{_prefix(training_key)}: the candidate's files contradict each other. It is not used."
        )


def keep_adapter(
    store: ObjectStore,
    training_key: str,
    model: Path,
    signer: Signer | None = None,
    trust: Trust | None = None,
) -> str:
    """Keep a trained adapter under its key; one that is kept already replaces the local one.

    Args:
        store: where to.
        training_key: of the adapter.
        model: adapter directory.
        signer: who signs; None keeps it unsigned.
        trust: whose signature another one must carry to replace this one.

    Returns:
        The digest that is kept.

    Raises:
        RejectedError: another one is kept, which is not signed by whom we trust.
        UsageError: the directory holds an adapter of another key.
        InfrastructureError: the store.
    """
    manifest = read_json(model / _MANIFEST, TrainManifest)
    digest = adapter_digest(model)
    if manifest["training_key"] != training_key or manifest["adapter"]["digest"] != digest:
        raise UsageError(
            f"{model}: not the adapter of training key {training_key[:12]}. Train it again."
        )
    files = (*adapter_files, _MANIFEST)
    document: CandidateDocument = {
        "schema": "candidate/v1",
        "training_key": training_key,
        "digest": digest,
        "files": [{"name": name, **_measured(model / name)} for name in files],
    }
    kept = _adapter(store, training_key)
    if kept is None:
        for name in files:
            store.put_new(f"{_prefix(training_key)}/adapter/sha256-{digest}/{name}", model / name)
        kept = _put_first(store, _kept(training_key), document, CandidateDocument, signer)
    if kept["digest"] != digest:
        fetch_adapter(store, training_key, model, trust)
    remove_remote(store, training_key)  # nobody will go on with this training
    return kept["digest"]


def keep_judgement(
    store: ObjectStore,
    keys: Keys,
    run: Path,
    source: Source,
    signer: Signer | None = None,
    trust: Trust | None = None,
) -> Judgement | None:
    """Keep a run's documents and verdict under its judgement key; the first one stays.

    Args:
        store: where to.
        keys: of the adapter.
        run: run directory with `model/` and `gate_report.json`.
        source: `commit`, `pr`, `run` (URL of the workflow run); each may be None.
        signer: who signs; None keeps it unsigned.
        trust: whose signature a former one must carry to be the verdict.

    Returns:
        The judgement that is kept; None for an ERROR or where an extension is yet to be drawn.

    Raises:
        RejectedError: the verdict is on another adapter than the one in `model/`, or a former one
            is not signed by whom we trust.
        UsageError: a document is missing.
        InfrastructureError: the store.
    """
    report = read_json(run / "gate_report.json", GateReport)
    digest = adapter_digest(run / "model")
    _check_own(run, keys, report, digest)
    verdict = report["verdict"]
    if verdict == "ERROR" or report["extension"]["wanted"]:
        return None
    # What the evaluation did compare with, whatever is in production by now.
    production = report["production"]["digest"]
    judgement_key = keys.judgement(production)
    names = _documents_of(run)
    document: Judgement = {
        "schema": "judgement/v1",
        "adapter": keys.spec.name,
        "training_key": keys.training,
        "judgement_key": judgement_key,
        "production": production,
        "digest": digest,
        "verdict": verdict,
        "reason": report["reason"],
        "documents": [{"name": name, **_measured(run / name)} for name in names],
        "source": source,
    }
    key = _judged(keys.training, judgement_key)
    kept = find_judgement(store, keys.spec.name, keys.training, judgement_key)
    if kept is None:
        for name in names:
            # By content, so that two runs that judge at once do not mix their documents.
            place = f"{key.rpartition('/')[0]}/documents/{sha256_file(run / name)}"
            store.put_new(place, run / name)
        kept = _put_first(store, key, document, Judgement, signer)
    if trust and kept is not document:
        _refuse_distrusted(store, key, kept, trust)
    return kept


def _check_own(run: Path, keys: Keys, report: GateReport, digest: str) -> None:
    """Refuse a verdict on another adapter than the run's.

    Raises:
        RejectedError: so it is.
    """
    adapter = report["adapter"]
    if adapter["digest"] != digest or adapter["training_key"] != keys.training:
        raise RejectedError(
            f"{run}/gate_report.json is on another adapter than {run}/model. Evaluate and gate this"
            " one."
        )
    if (name := adapter.get("name")) != keys.spec.name:
        raise RejectedError(
            f"{run}/gate_report.json is on adapter {name}, not {keys.spec.name}. Gate it with"
            f" --adapter {keys.spec.name}."
        )


def _documents_of(run: Path) -> list[RunDocument]:
    """The documents of a run that are kept.

    Raises:
        UsageError: one is missing.
    """
    if missing := [name for name in _MEASURED if not (run / name).is_file()]:
        raise UsageError(f"{run}/{missing[0]} is missing. Evaluate and gate the adapter first.")
    return [name for name in (*_MEASURED, *_BESIDE) if (run / name).is_file()]


def fetch_judgement(store: ObjectStore, judgement: Judgement, run: Path) -> None:
    """Bring the documents of a judgement into a run directory, verified.

    Raises:
        InfrastructureError: the store, other bytes than promised, or a name that is none of a run's
            documents.
    """
    key = _judged(judgement["training_key"], judgement["judgement_key"])
    prefix = f"{key.rpartition('/')[0]}/documents"
    if problems := schema_problems(judgement, "judgement"):
        raise InfrastructureError(
            f"judgement {judgement['judgement_key'][:12]} is damaged: {problems[0]}"
        )
    run.mkdir(parents=True, exist_ok=True)
    for file in judgement["documents"]:
        main, _, name = file["name"].rpartition("/")  # of its schema's names, main/… alone has one
        place = inner(run, main) if main else run
        store.download(
            f"{prefix}/{file['sha256']}", place, name, sha256=file["sha256"], size=file["size"]
        )
    report = read_json(run / "gate_report.json", GateReport)
    if (report["verdict"], report["adapter"]["digest"]) != (
        judgement["verdict"],
        judgement["digest"],
    ):
        shutil.rmtree(run, ignore_errors=True)
        raise InfrastructureError(
            f"judgement {judgement['judgement_key'][:12]} and its gate report contradict each"
            " other. It is not used."
        )


def _prefix(training_key: str) -> str:
    return f"candidates/{training_key}"


def _kept(training_key: str) -> str:
    return f"{_prefix(training_key)}/candidate.json"


def _judged(training_key: str, judgement_key: str) -> str:
    return f"{_prefix(training_key)}/judgements/{judgement_key}/judgement.json"


class _Measured(TypedDict):
    size: int
    sha256: str


def _measured(path: Path) -> _Measured:
    return {"size": path.stat().st_size, "sha256": sha256_file(path)}


def _adapter(store: ObjectStore, training_key: str) -> CandidateDocument | None:
    key = _kept(training_key)
    return _document(store, key, CandidateDocument, {"training_key": training_key})


def _document(store: ObjectStore, key: str, shape: type[D], expected: dict[str, str]) -> D | None:
    fetched = store.get(key)
    if fetched is None:
        return None
    document, problem = parse(fetched.content, shape)
    if document is not None:
        other = [name for name, value in expected.items() if document.get(name) != value]
        if not other:
            return document
        problem = f"`{other[0]}` is not {expected[other[0]][:12]}"
    raise InfrastructureError(f"s3://{store.bucket}/{key} is damaged: {problem}")


def _put_first(
    store: ObjectStore, key: str, document: D, shape: type[D], signer: Signer | None
) -> D:
    """Write a document unless there is one; the one that is there in the end."""
    problems = schema_problems(document, schema_of(shape))
    if problems:
        raise RuntimeError(f"{key} would break its schema: {problems[0]}")
    try:
        write_once(store, _signed(key, document), signer)
    except RejectedError:
        if present := _document(store, key, shape, {}):
            return present
        raise
    return document


def _signed(key: str, document: Mapping[str, object]) -> SignedDocument:
    """Its signature is named by what it signs, so that whoever is first has one."""
    content = text_of(document)
    digest = hashlib.sha256(content).hexdigest()
    return SignedDocument(key, content, f"{key.rpartition('/')[0]}/signatures/{digest}.json")


def _distrust(store: ObjectStore, key: str, document: Mapping[str, object], trust: Trust) -> str:
    """Why a document does not count as signed by whom we trust, with the command that removes it;
    empty if it does.

    It is written out again as `_put_first` does: what is verified is what was read, and no second
    look at the store.
    """
    try:
        check_signature(store, _signed(key, document), trust)
        return ""
    except UnsignedError:
        reason = "it is not signed, or was changed since"
    except RejectedError as error:
        reason = str(error)
    place = f"s3://{store.bucket}/{key}"
    return (
        f"{place} is not used: {reason}. If it was kept before signatures were asked for, or under"
        " a former key, an administrator of the bucket removes it: aws s3 rm --recursive"
        f" {place.rpartition('/')[0]}/"
    )


def _refuse_distrusted(
    store: ObjectStore, key: str, document: Mapping[str, object], trust: Trust
) -> None:
    if problem := _distrust(store, key, document, trust):
        raise RejectedError(problem)
