"""Releases: `adapters/<name>/sha256-<digest>/`, written once, verified by every reader."""

from __future__ import annotations

import datetime
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapterops.documents import new_directory, sha256_file, sha256_json
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import schema_problems
from adapterops.shapes.gate_report import Comparison, Gate, GateReport
from adapterops.shapes.release_manifest import Loss, ReleaseManifest, Source
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.signing import Signer, Trust
from adapterops.specs.metric_catalogue import GENERAL
from adapterops.store.objects import ObjectStore
from adapterops.store.signed import SignedDocument, add_signature, parse, text_of, write_once
from adapterops.store.withdrawn import refuse_withdrawn

ReleasedFile = Literal["adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"]
adapter_files: tuple[ReleasedFile, ...] = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
)
MANIFEST = "manifest.json"
SIGNATURE = "signature.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Release:
    """A published adapter.

    Args:
        name: of the adapter.
        digest: of the release.
        manifest: `configs/schemas/release_manifest.json`.
        new: whether it was not there before.
        mended: what a release that was there before lacked, or had damaged, and now has: files,
            `signature`.
    """

    name: str
    digest: str
    manifest: ReleaseManifest
    new: bool
    mended: tuple[str, ...] = ()

    @property
    def outcome(self) -> str:
        """What publishing it did, for people."""
        if self.new:
            return "published"
        return (
            f"already published, now with {', '.join(self.mended)}"
            if self.mended
            else "already published, nothing to do"
        )

    @property
    def uri(self) -> str:
        """Where it lies below the bucket."""
        return _prefix(self.name, self.digest)


def adapter_digest(directory: Path) -> str:
    """The adapter's identity: SHA-256 of the canonical JSON of its files' SHA-256, 64 hex digits.

    Raises:
        UsageError: one of the files is missing.
    """
    missing = [name for name in adapter_files if not (directory / name).is_file()]
    if missing:
        raise UsageError(
            f"{directory} is not an adapter directory: {', '.join(missing)} missing. Train it with"
            " train_qlora.py."
        )
    return sha256_json({name: sha256_file(directory / name) for name in adapter_files})


def publish(
    store: ObjectStore,
    name: str,
    directory: Path,
    gate_report: GateReport,
    train_manifest: TrainManifest,
    *,
    source: Source,
    signer: Signer | None = None,
) -> Release:
    """Publish an adapter that passed its gates; the manifest is written last, and a release exists
    when its manifest does.

    A release that is there already is completed: files that are missing or damaged are written, for
    its digest says which bytes are right, and its manifest is signed if there is a signer and no
    signature. The manifest itself never changes.

    Args:
        store: where to.
        name: adapter name.
        directory: adapter directory.
        gate_report: the verdict on this very adapter.
        train_manifest: how it was trained.
        source: `commit`, `pr` and `actor`, each may be None.
        signer: who signs; None publishes unsigned, which hosts that ask for a signature do not
            load.

    Returns:
        The release; `new` is False if it was there already, and then its manifest is the one of the
        first time.

    Raises:
        RejectedError: the version is withdrawn, the verdict is not PASS, verdict or train manifest
            is on another adapter, the weights are not safetensors, or what would be signed is not
            what this run would publish.
        UsageError: a bad name, directory or key.
        InfrastructureError: the store, or a damaged manifest in it.
    """
    prefix = _prefix(name, digest := adapter_digest(directory))
    _check_verdict(name, gate_report)
    _check_provenance(name, digest, directory, gate_report, train_manifest)
    check_weights(directory)
    manifest = _manifest(name, digest, directory, gate_report, train_manifest, source)
    refuse_withdrawn(store, name, digest)
    existing = _find_release_to_complete(store, name, digest)
    files = [directory / file for file in adapter_files]
    mended = [file.name for file in files if store.put_known(f"{prefix}/{file.name}", file)]
    if existing:
        return _complete(store, existing, manifest, directory, signer, mended)
    document = _signed(manifest, directory)
    if signer and not add_signature(store, document, signer):
        # Its name is the digest of a manifest of this moment: nobody can have signed that before.
        raise RejectedError(
            f"s3://{store.bucket}/{document.signature_key} exists before its manifest. Somebody put"
            " it there: nothing is published. Look who writes to the bucket, and remove it."
        )
    try:
        write_once(store, document, None)
    except RejectedError:
        # Somebody published the same adapter since we looked: as if we had come later.
        if existing := _find_release_to_complete(store, name, digest):
            return _complete(store, existing, manifest, directory, signer, [])
        raise
    return Release(name, digest, manifest, new=True)


def _manifest(
    name: str,
    digest: str,
    directory: Path,
    gate_report: GateReport,
    train_manifest: TrainManifest,
    source: Source,
) -> ReleaseManifest:
    base_model = train_manifest["base_model"]
    manifest: ReleaseManifest = {
        "schema": "release_manifest/v1",
        "adapter": name,
        "digest": digest,
        "files": [
            {
                "name": file,
                "size": (directory / file).stat().st_size,
                "sha256": sha256_file(directory / file),
            }
            for file in adapter_files
        ],
        "base_model": {
            "name": base_model["name"],
            "source_id": base_model["source_id"],
            "revision": base_model["revision"],
        },
        "rank": train_manifest["adapter"]["rank"],
        "training_key": train_manifest["training_key"],
        "gate_key": gate_report["gate_key"],
        "verdict": "PASS",
        "metrics": {
            gate["metric"]: gate["value"] for gate in gate_report["gates"] if not gate.get("slice")
        },
        "lost": _lost(gate_report),
        "probes": gate_report["probes"],
        "trained_at": train_manifest["finished_at"],
        "published_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
        "source": source,
    }
    problems = schema_problems(manifest, "release_manifest")
    if problems:
        raise RuntimeError(f"the release manifest would break its schema: {problems[0]}")
    return manifest


def _find_release_to_complete(store: ObjectStore, name: str, digest: str) -> ReleaseManifest | None:
    manifest, problem = _read_manifest(store, name, digest)
    if problem:
        raise InfrastructureError(
            f"{problem.rstrip('.')}. No publication overwrites it: bring the object's former"
            " version back, or remove it (`aws s3 rm`) and publish again; then this is the latest"
            " release."
        )
    return manifest


def _complete(
    store: ObjectStore,
    existing: ReleaseManifest,
    manifest: ReleaseManifest,
    directory: Path,
    signer: Signer | None,
    mended: list[str],
) -> Release:
    """Sign a release that is there without a signature, if there is a signer.

    Its manifest is what anybody with write access to the store made of it: signed is only what this
    run itself would publish. When and from where it was published first is taken from the store.
    """
    name, digest, release = existing["adapter"], existing["digest"], _signed(existing, directory)
    if signer and store.get(release.signature_key) is None:
        differs = _differences(existing, manifest)
        if differs:
            raise RejectedError(
                f"{name} {digest[:12]} is published unsigned, with another {', '.join(differs)}"
                " than this run has. It is not signed. Publish from the run with gate key"
                f" {existing['gate_key'][:12]}; if there is none, somebody changed the manifest"
                f" (s3://{store.bucket}/{release.key})."
            )
        if add_signature(store, release, signer):
            mended = [*mended, "signature"]
    return Release(name, digest, existing, new=False, mended=tuple(mended))


def _differences(existing: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """Fields of a manifest that another run would publish otherwise."""
    kept = ("published_at", "source")
    return [field for field in wanted if field not in kept and existing.get(field) != wanted[field]]


def _signed(manifest: ReleaseManifest, directory: Path) -> SignedDocument:
    """The manifest with the adapter's files: what a reader will have is what is signed.

    The signature is named by the manifest that it signs: an upload that was killed leaves a
    signature of no manifest, and hinders nobody.
    """
    content = text_of(manifest)
    prefix = _prefix(manifest["adapter"], manifest["digest"])
    signature = f"{prefix}/signature-{hashlib.sha256(content).hexdigest()[:32]}.json"
    files = tuple(directory / file for file in adapter_files)
    return SignedDocument(f"{prefix}/{MANIFEST}", content, signature, files)


def check_weights(directory: Path) -> None:
    """Refuse weights that are not safetensors, by their content: a pickle runs code when loaded.

    Raises:
        RejectedError: so they are.
    """
    from safetensors import SafetensorError, safe_open

    path = directory / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        with path.open("rb") as raw:
            start = raw.read(2)
        kind = (
            " It begins like a pickle or a zip of pickles, which can run code."
            if start in (b"PK", b"\x80\x02", b"\x80\x04")
            else ""
        )
        raise RejectedError(
            f"{path.name} is not safetensors ({error}).{kind} Nothing else is published or loaded."
        ) from None
    if not names:
        raise RejectedError(f"{path.name} holds no tensors.")


def _lost(gate_report: GateReport) -> list[Loss]:
    """What the adapter lost of the base model's abilities: general metrics, with intervals."""
    lost: list[Loss] = []
    for row in gate_report["comparisons"]:
        base, adapter, difference = row["reference"], row["candidate"], row["effect"]
        if row["metric"] not in GENERAL or row["against"] != "base" or not row["n"]:
            continue
        if base is None or adapter is None or difference is None:
            continue
        lost.append(
            {
                "metric": row["metric"],
                "slice": row.get("slice"),
                "base": base,
                "adapter": adapter,
                "n": row["n"],
                "difference": difference,
                "interval": row["interval"],
                "confidence": row["confidence"],
            }
        )
    return lost


def _check_verdict(name: str, gate_report: GateReport) -> None:
    """Only a PASS is published, and it rests on measured gates that do not contradict it."""
    if gate_report["verdict"] != "PASS":
        raise RejectedError(
            f"{name}: the gate's verdict is {gate_report['verdict']}: {gate_report['reason']}"
            " Nothing is published."
        )
    gates = gate_report["gates"]
    compared = [row for row in gate_report["comparisons"] if row["verdict"]]
    judged: list[Gate | Comparison] = [*gates, *compared]
    stops = [
        row
        for row in judged
        if row["verdict"] in ("FAIL", "ERROR")
        or (row["verdict"] == "INCONCLUSIVE" and row["blocking"])
    ]
    unmeasured = [row for row in gates if row["value"] is None or not math.isfinite(row["value"])]
    if gates and not stops and not unmeasured:
        return
    what = ", ".join(f"{row['metric']} is {row['verdict']}" for row in stops)
    what = (
        what
        or ", ".join(f"{row['metric']} has no value" for row in unmeasured)
        or "no gate was asked"
    )
    raise RejectedError(
        f"{name}: the gate report says PASS although {what}. The gate does not write that: judge"
        " the evaluation again."
    )


def _check_provenance(
    name: str,
    digest: str,
    directory: Path,
    gate_report: GateReport,
    train_manifest: TrainManifest,
) -> None:
    """Directory, verdict and train manifest must be of one adapter, as far as each of them says."""
    judged = gate_report["adapter"]
    if judged["digest"] != digest:
        raise RejectedError(
            f"{name}: the gate report is on adapter {judged['digest'][:12]}, {directory} holds"
            f" {digest[:12]}. Evaluate and gate this one."
        )
    # Without quality_gate.py --adapter a report names no adapter; the digest says which one it is
    # on.
    if judged.get("name") not in (None, name):
        raise RejectedError(
            f"{name}: the gate report is on adapter {judged['name']}. Publish under that name, or"
            f" gate it as {name}."
        )
    for fact, trained, expected in (
        ("adapter", train_manifest["adapter"]["digest"], digest),
        ("training key", train_manifest["training_key"], judged.get("training_key")),
        ("base model", train_manifest["base_model"]["name"], judged.get("base_model")),
    ):
        if expected is not None and trained != expected:
            short = [
                str(value)[:12] if _DIGEST.fullmatch(str(value)) else str(value)
                for value in (trained, expected)
            ]
            raise RejectedError(
                f"{name}: the train manifest is of {fact} {short[0]}, the gate report of"
                f" {short[1]}. Use the train_manifest.json that train_qlora.py wrote beside this"
                " adapter, and evaluate and gate it again."
            )


def find_release(store: ObjectStore, name: str, digest: str) -> ReleaseManifest | None:
    """The manifest of a release, or None if it is not published.

    Raises:
        InfrastructureError: the manifest in the store is damaged, or is another release's.
    """
    manifest, problem = _read_manifest(store, name, digest)
    if problem:
        raise InfrastructureError(problem)
    return manifest


def _read_manifest(
    store: ObjectStore, name: str, digest: str
) -> tuple[ReleaseManifest | None, str]:
    """A release's manifest, None without a good one; and what is wrong with it, or nothing."""
    key = f"{_prefix(name, digest)}/{MANIFEST}"
    fetched = store.get(key)
    if fetched is None:
        return None, ""
    manifest, problem = _parse_manifest(fetched.content, name, digest)
    if problem:
        return None, f"s3://{store.bucket}/{key} is not a valid release manifest: {problem}"
    return manifest, ""


def _parse_manifest(content: bytes, name: str, digest: str) -> tuple[ReleaseManifest | None, str]:
    manifest, problem = parse(content, ReleaseManifest)
    if manifest is None:
        return None, problem
    if (manifest["adapter"], manifest["digest"]) != (name, digest):
        return None, f"it is the manifest of {manifest['adapter']} {manifest['digest'][:12]}"
    if sha256_json({file["name"]: file["sha256"] for file in manifest["files"]}) != digest:
        return None, "its files do not have the digest that it is named by"
    return manifest, ""


def fetch_release(
    store: ObjectStore,
    name: str,
    digest: str,
    root: Path,
    *,
    base_model: str,
    trust: Trust | None = None,
) -> tuple[Path, ReleaseManifest]:
    """Bring a release to `<root>/<name>/sha256-<digest>`, whole and verified, or not at all.

    Args:
        store: where from.
        name: adapter name.
        digest: the release.
        root: local directory of releases.
        base_model: name of the base model that is served here.
        trust: whose signature the release must carry; None asks for none.

    Returns:
        The directory and the release manifest.

    Raises:
        RejectedError: not published, made for another base model, not signed by whom we trust, or
            not safetensors.
        InfrastructureError: the store, bytes that are not those of the manifest, or a directory
            that cannot be written.
    """
    target = root / name / f"sha256-{digest}"
    manifest = local_manifest(target, name, digest, signed=trust is not None)
    if manifest and trust:
        try:
            trust.verify(target, target / SIGNATURE)
        except RejectedError:
            # Damaged here, or signed with a key that is trusted no more: the store may have a
            # better one.
            manifest = None
    if manifest is None:
        manifest = find_release(store, name, digest)
        if manifest is None:
            raise RejectedError(
                f"{name}: version {digest[:12]} is not published in bucket {store.bucket}."
            )
        check_base_model(manifest, base_model)
        try:
            with new_directory(target) as staging:
                _download(store, manifest, staging, trust)
        except OSError as error:
            raise InfrastructureError(
                f"{target} cannot be written: {error.strerror or error}. Check free space and"
                " permissions."
            ) from None
    check_base_model(manifest, base_model)
    return target, manifest


def _download(
    store: ObjectStore, manifest: ReleaseManifest, staging: Path, trust: Trust | None
) -> None:
    """Bring a release's files, manifest and signature into a directory, all verified."""
    prefix = _prefix(manifest["adapter"], manifest["digest"])
    for file in manifest["files"]:
        key = f"{prefix}/{file['name']}"
        store.download(key, staging, file["name"], sha256=file["sha256"], size=file["size"])
    release = _signed(manifest, staging)
    (staging / MANIFEST).write_bytes(release.content)
    if trust:
        _check_signature(store, manifest, release, staging, trust)
    check_weights(staging)


def _check_signature(
    store: ObjectStore,
    manifest: ReleaseManifest,
    release: SignedDocument,
    staging: Path,
    trust: Trust,
) -> None:
    """Bring the signature beside what it signs: a host verifies it there at each start."""
    signature = store.get(release.signature_key)
    if signature is None:
        raise RejectedError(
            f"{manifest['adapter']} {manifest['digest'][:12]} is not signed, or its manifest was"
            " changed since. Publish it again, from the run that made it, with --signing-key; a"
            " changed manifest is not signed, and the reason is said."
        )
    (staging / SIGNATURE).write_bytes(signature.content)
    try:
        trust.verify(staging, staging / SIGNATURE)
    except RejectedError as error:
        raise RejectedError(
            f"{error}. Nothing is loaded. If you know why (another key, a damaged object), remove"
            f" s3://{store.bucket}/{release.signature_key} and publish the release again with"
            " --signing-key."
        ) from None


def local_manifest(
    directory: Path, name: str, digest: str, *, signed: bool = False
) -> ReleaseManifest | None:
    """The manifest of an intact local copy of this release, every file's SHA-256 verified; None if
    it is missing, damaged or another.

    With `signed`, a copy without a signature counts as damaged; whether the signature holds is
    another question.
    """
    try:
        manifest, _ = _parse_manifest((directory / MANIFEST).read_bytes(), name, digest)
        if manifest is None or (signed and not (directory / SIGNATURE).is_file()):
            return None
        files = manifest["files"]
        found = {path.name for path in directory.iterdir()} - {SIGNATURE}
        intact = found == {MANIFEST, *(file["name"] for file in files)} and all(
            sha256_file(directory / file["name"]) == file["sha256"] for file in files
        )
    except OSError:
        return None
    return manifest if intact else None


def check_base_model(manifest: ReleaseManifest, base_model: str) -> None:
    """Refuse an adapter that was trained on another base model than the one served.

    Raises:
        RejectedError: so it is.
    """
    trained_on = manifest["base_model"]["name"]
    if trained_on != base_model:
        raise RejectedError(
            f"{manifest['adapter']} {manifest['digest'][:12]} was trained on {trained_on};"
            f" {base_model} is served here."
        )


def list_releases(store: ObjectStore, name: str) -> list[ReleaseManifest]:
    """Manifests of every release of an adapter, the oldest first.

    Raises:
        InfrastructureError: the store, or a manifest in it that is damaged.
    """
    manifests, damaged = _read_manifests(store, name)
    if damaged:
        raise InfrastructureError(next(iter(damaged.values())))
    return manifests


def _read_manifests(store: ObjectStore, name: str) -> tuple[list[ReleaseManifest], dict[str, str]]:
    """Good manifests, the oldest first, and what is wrong with each of the others, by digest."""
    pattern = re.compile(
        rf"adapters/{re.escape(_checked(name))}/sha256-([0-9a-f]{{64}})/{re.escape(MANIFEST)}"
    )
    manifests, damaged = [], {}
    for key in store.keys(f"adapters/{name}/"):
        if match := pattern.fullmatch(key):
            manifest, problem = _read_manifest(store, name, match.group(1))
            if problem:
                damaged[match.group(1)] = problem
            elif manifest:
                manifests.append(manifest)
    return sorted(manifests, key=lambda manifest: manifest["published_at"]), damaged


def find_version(store: ObjectStore, name: str, version: str) -> str:
    """The digest that a person means: a full digest, its first digits, or `latest`.

    Raises:
        UsageError: nothing is published, the digits fit none, several or a damaged release, or a
            damaged one may be the latest.
        InfrastructureError: the store.
    """
    manifests, damaged = _read_manifests(store, name)
    digests = [manifest["digest"] for manifest in manifests]
    if not digests and not damaged:
        raise UsageError(f"{name} has no releases in bucket {store.bucket}. Publish one first.")
    known = (
        "Published, newest last:"
        f" {', '.join(digest[:12] for digest in digests[-10:]) or 'none that is intact'}."
    )
    if version == "latest":
        if damaged:
            problem = next(iter(damaged.values())).rstrip(".")
            raise UsageError(
                f"--version latest: a damaged release may be the newest. {problem}. Name a version."
                f" {known}"
            )
        return digests[-1]
    digits = version.removeprefix("sha256-")
    fitting = [digest for digest in (*digests, *damaged) if digest.startswith(digits)]
    if not digits or len(fitting) != 1:
        why = "" if digits else ", for it has no digits"
        raise UsageError(
            f"--version {version} fits {len(fitting)} releases of {name}{why}. {known}"
        )
    if fitting[0] in damaged:
        raise UsageError(f"--version {version}: {damaged[fitting[0]].rstrip('.')}. {known}")
    return fitting[0]


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(f"adapter name {name!r}: expected lower-case letters, digits and dashes.")
    return name


def _prefix(name: str, digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"adapter version {digest!r}: expected 64 hex digits.")
    return f"adapters/{_checked(name)}/sha256-{digest}"
