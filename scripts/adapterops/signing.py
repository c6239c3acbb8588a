"""Signatures of releases and candidates: OpenSSF model-signing over the files of a directory.

A key file (elliptic curve, PEM) signs anywhere; in GitHub Actions the workflow's own identity signs
without a key (Sigstore).
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapterops.errors import InfrastructureError, RejectedError, UsageError

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from model_signing import verifying


@dataclass(frozen=True)
class Trust:
    """Whose signature a release, or a candidate, must carry.

    Args:
        public_key: PEM file; None where a Sigstore identity signs.
        identity: of the signing workflow:
            `https://github.com/<owner>/<repository>/.github/workflows/<file>@<ref>`.
        issuer: of that identity: `https://token.actions.githubusercontent.com` for GitHub Actions.
    """

    public_key: Path | None
    identity: str | None = None
    issuer: str | None = None

    def verifier(self) -> verifying.Config:
        """What checks signatures. For an identity it asks Sigstore for its keys; nothing goes to
        the public log.

        Raises:
            UsageError: the public key cannot be read, or is none.
            InfrastructureError: Sigstore cannot be asked.
        """
        from model_signing import verifying

        if self.public_key and not self.public_key.is_file():
            raise UsageError(
                f"{self.public_key} does not exist. Put the public key of who signs releases there"
                " (store.signed_by)."
            )
        try:
            if self.public_key:
                return verifying.Config().use_elliptic_key_verifier(public_key=self.public_key)
            return verifying.Config().use_sigstore_verifier(
                identity=str(self.identity), oidc_issuer=str(self.issuer)
            )
        except Exception as error:
            # what cryptography and sigstore raise, and AttributeError for a key of another kind
            reason = str(error).strip().rstrip(".") or type(error).__name__
            if self.public_key:
                raise UsageError(
                    f"{self.public_key} is not an elliptic-curve public key (PEM): {reason}. Make"
                    " it of the private one: openssl ec -in signing.pem -pubout -out"
                    " signing.pub.pem"
                ) from None
            raise InfrastructureError(
                f"Sigstore cannot be asked for the keys that signatures are checked with: {reason}."
                " This machine must reach *.sigstore.dev."
            ) from None

    def verify(self, directory: Path, signature: Path) -> None:
        """Check that exactly the files in `directory`, the signature aside, are what was signed by
        whom we trust.

        Raises:
            RejectedError: a file was changed, added or removed since, or somebody else signed.
            UsageError: the public key cannot be read, or is none.
            InfrastructureError: Sigstore cannot be asked.
        """
        from model_signing import hashing

        config = self.verifier().set_hashing_config(
            hashing.Config().set_ignored_paths(paths=[signature])
        )
        try:
            config.verify(directory, signature)
            if not self.public_key:
                from sigstore.models import Bundle

                check_source(
                    Bundle.from_json(signature.read_bytes()).signing_certificate, str(self.identity)
                )
        except RejectedError:
            raise
        except (
            Exception
        ) as error:  # the library raises ValueError, and what cryptography and sigstore raise
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise RejectedError(f"the signature does not hold: {reason}") from None


def check_source(certificate: Certificate, identity: str) -> None:
    """That a workflow ran in the repository that its file is in.

    Others may call the file, and then sign with its name.

    Args:
        certificate: of a signature that holds.
        identity: whose it is; one that is no GitHub workflow has no source.

    Raises:
        RejectedError: another repository, or none.
    """
    from sigstore.errors import VerificationError
    from sigstore.verify.policy import OIDCSourceRepositoryURI

    repository, is_workflow, _ = identity.partition("/.github/workflows/")
    if is_workflow:
        try:
            OIDCSourceRepositoryURI(repository).verify(certificate)
        except VerificationError as error:
            raise RejectedError(f"the signature was not made in {repository}: {error}") from None


@dataclass(frozen=True)
class Signer:
    """Who signs what is published or kept.

    Args:
        private_key: PEM file of an elliptic-curve key; None signs with the identity of the GitHub
            Actions workflow.
    """

    private_key: Path | None

    def sign(self, directory: Path) -> bytes:
        """The signature (a Sigstore bundle, JSON) over every file in `directory`.

        Raises:
            UsageError: the key cannot be used.
            InfrastructureError: Sigstore does not sign.
        """
        from model_signing import hashing, signing

        with tempfile.TemporaryDirectory() as scratch:
            signature = Path(scratch) / "signature.json"
            config = signing.Config().set_hashing_config(
                hashing.Config().set_ignored_paths(paths=[])
            )
            try:
                if self.private_key:
                    config = config.use_elliptic_key_signer(private_key=self.private_key)
                else:
                    config = config.use_sigstore_signer(use_ambient_credentials=True)
                config.sign(directory, signature)
            except Exception as error:
                if self.private_key:
                    raise UsageError(
                        f"--signing-key {self.private_key}:"
                        f" {str(error).strip() or type(error).__name__}. Make one: openssl ecparam"
                        " -name prime256v1 -genkey -noout -out signing.pem"
                    ) from None
                raise InfrastructureError(
                    f"Sigstore does not sign: {error}. In GitHub Actions the job needs"
                    " `permissions: id-token: write`."
                ) from None
            return signature.read_bytes()


def make_key_pair(private_key: Path, public_key: Path) -> None:
    """A new P-256 key pair in PEM; the private key is readable by its owner alone."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    private_key.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(private_key, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private)
    public_key.write_bytes(public)


def signer_from(value: str | None) -> Signer | None:
    """A signer from `--signing-key`: a path, `keyless`, or nothing.

    Raises:
        UsageError: no such file.
    """
    if not value:
        return None
    if value == "keyless":
        return Signer(None)
    path = Path(value)
    if not path.is_file():
        raise UsageError(f"--signing-key {value} does not exist.")
    return Signer(path)
