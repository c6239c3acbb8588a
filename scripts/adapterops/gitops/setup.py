"""Is everything there that a job's later steps need? Asked before a GPU second is spent."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from adapterops.candidates.kept import trust_from
from adapterops.engine.installed import engine_version
from adapterops.errors import AdapterOpsError, UsageError
from adapterops.signing import signer_from
from adapterops.store.objects import open_store

_FREE_GIB = 30
_DOCUMENT = "docs/setup-github.md"


def _bucket_read() -> str:
    next(iter(open_store().keys("candidates/")), None)
    next(iter(open_store().keys("channels/")), None)
    return ""


def _candidates_write() -> str:
    for prefix in ("candidates", "checkpoints"):
        open_store().put_new(
            f"{prefix}/.setup-check", b"the role may write candidates\n", "text/plain"
        )
    return ""


def _candidates_sign() -> str:
    try:
        signer = signer_from(os.environ.get("CANDIDATE_SIGNING_KEY"))
        trust = trust_from(os.environ.get("CANDIDATE_SIGNED_BY"))
        if signer and trust and bool(signer.private_key) != bool(trust.public_key):
            return (
                "one of the variables CANDIDATE_SIGNING_KEY and CANDIDATE_PUBLIC_KEY is set."
                " They are the halves of a key pair: set both."
            )
        if signer and not signer.private_key and not os.environ.get("ACTIONS_ID_TOKEN_REQUEST_URL"):
            return (
                "ACTIONS_ID_TOKEN_REQUEST_URL is not set,"
                " and without a key the job's identity signs."
                " Give the job `permissions: id-token: write`,"
                " or set the variables CANDIDATE_SIGNING_KEY and CANDIDATE_PUBLIC_KEY."
            )
        if trust and not trust.public_key:
            trust.verifier()  # no trial signature, which would stay in Sigstore's public log
        if signer and trust and signer.private_key:
            with tempfile.TemporaryDirectory() as scratch:
                (Path(scratch) / "trial").write_bytes(b"the halves belong together\n")
                signature = Path(scratch) / "signature.json"
                signature.write_bytes(signer.sign(Path(scratch)))
                trust.verify(Path(scratch), signature)
    except AdapterOpsError as error:
        said = str(error).rstrip(".")
        return f"the variables CANDIDATE_SIGNING_KEY and CANDIDATE_PUBLIC_KEY: {said}."
    return ""


def _releases_write() -> str:
    for prefix in ("adapters", "channels", "audit", "withdrawn"):
        open_store().put_new(
            f"{prefix}/.setup-check", b"the role may write releases\n", "text/plain"
        )
    return ""


def _gpu() -> str:
    if os.environ.get("NO_GPU") == "true":
        return ""
    if not shutil.which("nvidia-smi"):
        return (
            "nvidia-smi is not installed on this runner. Install the NVIDIA driver, or take the"
            " label gpu-a100 off the runner."
        )
    command = ["nvidia-smi", "-L"]  # found on PATH just now
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    if listing.returncode != 0 or "GPU" not in listing.stdout:
        return f"nvidia-smi finds no GPU: {(listing.stderr or listing.stdout).strip()[:200]}"
    return ""


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free >= _FREE_GIB:
        return ""
    return (
        f"{free:.0f} GiB free in {Path.cwd()}, wanted {_FREE_GIB}."
        " Clean its work directory and caches."
    )


def _engine() -> str:
    engine_version()
    return ""


def _gateways() -> str:
    urls = os.environ.get("GATEWAYS", "").split()
    if not urls:
        return (
            "the variable GATEWAYS is empty. Set it to the serving hosts' gateways, for example:"
            " http://10.0.0.7:8080 http://10.0.0.8:8080"
        )
    problems = []
    for url in urls:
        try:
            answer = httpx.get(f"{url.rstrip('/')}/health", timeout=10)
            if answer.status_code >= 500 and "adapters" not in answer.text:
                problems.append(f"{url}/health answers {answer.status_code}.")
        except httpx.HTTPError as error:
            problems.append(f"gateway {url} cannot be reached from this runner: {error}.")
    return " ".join(problems)


def _github() -> str:
    if os.environ.get("GITHUB_TOKEN"):
        return ""
    return "GITHUB_TOKEN is not set. In the workflow: env: {GITHUB_TOKEN: ${{ github.token }}}"


CHECKS: dict[str, Callable[[], str]] = {
    "bucket": _bucket_read,
    "candidates-write": _candidates_write,
    "candidates-sign": _candidates_sign,
    "releases-write": _releases_write,
    "gpu": _gpu,
    "disk": _disk,
    "engine": _engine,
    "gateways": _gateways,
    "github": _github,
}


def missing(needed: list[str]) -> list[str]:
    """What of the needed things is not there, each with what to do; empty if all is well.

    Raises:
        UsageError: a need that is not known.
    """
    if unknown := [need for need in needed if need not in CHECKS]:
        raise UsageError(f"--need {unknown[0]}: expected one of {', '.join(CHECKS)}.")
    problems = []
    for need in needed:
        try:
            problem = CHECKS[need]()
        except AdapterOpsError as error:
            problem = str(error)
        if problem:
            problems.append(f"{need}: {problem} See {_DOCUMENT}.")
    return problems
