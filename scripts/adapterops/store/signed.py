"""Documents in the store, written once: what they are is checked, and who signed them.

A signature (`adapterops.signing`) is over files of given names: the document under the last part of
its key, and whatever it says must be signed with it. It is written before the document, so that
whoever finds a document finds its signature.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from adapterops.documents import readable_json
from adapterops.errors import RejectedError
from adapterops.schemas import schema_of, schema_problems

if TYPE_CHECKING:
    from adapterops.signing import Signer, Trust
    from adapterops.store.objects import ObjectStore

T = TypeVar("T")  # a shape: one of the TypedDicts of `adapterops.shapes`
_SIGNATURE = "signature.json"


class UnsignedError(RejectedError):
    """There is no signature over a document as it was read."""


@dataclass(frozen=True)
class SignedDocument:
    """A document and its signature in the store.

    Args:
        key: of the document; its last part is the name that is signed.
        content: the document's bytes.
        signature_key: of the signature.
        beside: files that are signed with it.
    """

    key: str
    content: bytes
    signature_key: str
    beside: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The name that it is signed by."""
        return self.key.rpartition("/")[2]


def write_once(store: ObjectStore, document: SignedDocument, signer: Signer | None) -> None:
    """Write a document unless its key holds another one, its signature before it.

    Raises:
        RejectedError: the key holds another one.
        UsageError: the key to sign with cannot be used.
        InfrastructureError: the store.
    """
    if signer:
        add_signature(store, document, signer)
    store.put_new(document.key, document.content, "application/json")


def add_signature(store: ObjectStore, document: SignedDocument, signer: Signer) -> bool:
    """Sign a document unless it is signed; no two signatures are alike, and one will do.

    Returns:
        Whether this signature is the one.
    """
    signature = sign(signer, document.name, document.content, document.beside)
    try:
        store.put_new(document.signature_key, signature, "application/json")
    except RejectedError:
        return False
    return True


def check_signature(store: ObjectStore, document: SignedDocument, trust: Trust) -> None:
    """That a document, as it was read, is signed by whom we trust.

    Raises:
        UnsignedError: it has none, or was changed since.
        RejectedError: somebody else signed it, or other bytes.
        InfrastructureError: the store, or Sigstore cannot be asked.
    """
    signature = store.get(document.signature_key)
    if signature is None:
        raise UnsignedError("it is not signed")
    verify(trust, document.name, document.content, signature.content)


def sign(signer: Signer, name: str, content: bytes, beside: tuple[Path, ...] = ()) -> bytes:
    """The signature over a document of that name, and over the files beside it; nothing else."""
    with tempfile.TemporaryDirectory() as scratch:
        for file in beside:
            shutil.copyfile(file, Path(scratch) / file.name)
        (Path(scratch) / name).write_bytes(content)
        return signer.sign(Path(scratch))


def verify(trust: Trust, name: str, content: bytes, signature: bytes) -> None:
    """That the signature is over a document of that name, alone, by whom we trust.

    Raises:
        RejectedError: it is not.
    """
    with tempfile.TemporaryDirectory() as scratch:
        proof = Path(scratch) / _SIGNATURE
        (Path(scratch) / name).write_bytes(content)
        proof.write_bytes(signature)
        trust.verify(Path(scratch), proof)


def text_of(document: object) -> bytes:
    """The bytes of a document in the store; of one that was read, those that were signed.

    NaN is let through: a damaged document is written out as it was read, and its signature tells.
    """
    return readable_json(document, allow_nan=True)


def parse(content: bytes, shape: type[T]) -> tuple[T | None, str]:
    """A document, or None and what is wrong with it: no JSON, or not what its schema says."""
    try:
        document: T = json.loads(content)
        # Half of a surrogate pair can be read, and neither shown nor written again.
        json.dumps(document, ensure_ascii=False).encode()
        problems = schema_problems(document, schema_of(shape))
    except (ValueError, RecursionError) as error:  # the latter: brackets nested a thousand deep
        return None, f"it is not JSON ({error})"
    return (None, str(problems[0])) if problems else (document, "")
