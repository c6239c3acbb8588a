"""Withdrawn releases: a signed, ever-growing list for each adapter; nobody serves them again.

    withdrawn/<name>.json    the list and its signature in one object, changed by compare-and-swap

The signature is that of releases (`store.signed_by`), over the canonical JSON of the list, so that
writing to the bucket is not enough to withdraw. Removing the list, or putting a former one back,
brings no version back: hosts keep what they have seen.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from dataclasses import dataclass, field

from adapterops.documents import canonical_json
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import schema_problems
from adapterops.shapes.withdrawn import Release as Entry
from adapterops.shapes.withdrawn import Withdrawn as WithdrawnDocument
from adapterops.signing import Signer, Trust
from adapterops.store.channels import Channel, change_channel, read_channel, who, without
from adapterops.store.objects import ConflictError, Fetched, ObjectStore
from adapterops.store.signed import parse, sign, text_of, verify

_LIST_BYTES = 256 * 1024
_SIGNED = "withdrawn.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS = 20


@dataclass(frozen=True)
class Withdrawn:
    """A list of withdrawn releases.

    Args:
        number: grows with each change; a host that has seen a higher one was given a former list.
        releases: by digest, its entry of the list: `digest`, `reason`, `by`, `at`.
    """

    number: int = 0
    releases: dict[str, Entry] = field(default_factory=dict)

    def joined(self, other: Withdrawn) -> Withdrawn:
        """What is on either list."""
        return Withdrawn(max(self.number, other.number), {**other.releases, **self.releases})

    def document(self, name: str) -> WithdrawnDocument:
        """The list as its document, unsigned."""
        releases = list(self.releases.values())
        return {
            "schema": "withdrawn/v1",
            "list": {"adapter": name, "number": self.number, "releases": releases},
            "signature": None,
        }


def refuse_withdrawn(store: ObjectStore, name: str, digest: str) -> None:
    """Raise if the list names the version, whoever signed it: in doubt nothing is released.

    Raises:
        RejectedError: so it does, or it is damaged.
        InfrastructureError: the store.
    """
    if entry := read_withdrawn(store, name, None).releases.get(digest):
        raise RejectedError(
            f"{name}: version {digest[:12]} is withdrawn ({entry['reason']}). Release another one."
        )


def read_withdrawn(store: ObjectStore, name: str, trust: Trust | None) -> Withdrawn:
    """An adapter's list of withdrawn releases; an empty one if there is none.

    Args:
        store: where it lies.
        name: of the adapter.
        trust: whose signature it must carry; None asks for none.

    Raises:
        RejectedError: it is damaged, or not signed by whom we trust.
        InfrastructureError: the store, or Sigstore cannot be asked.
        UsageError: the public key is not there.
    """
    found = read_list(store, name)
    return from_document(found.content, store.bucket, name, trust) if found else Withdrawn()


def read_list(store: ObjectStore, name: str) -> Fetched | None:
    """The object that holds an adapter's list, unread."""
    return store.get(_key(name), _LIST_BYTES)


def from_document(content: bytes, bucket: str, name: str, trust: Trust | None) -> Withdrawn:
    """The list in a document; errors as `read_withdrawn`, and where it lies is `bucket`."""
    document, problem = parse(content, WithdrawnDocument)
    if document and document["list"]["adapter"] != name:
        problem = "it is of another adapter"
    if document is None or problem:
        raise RejectedError(
            f"s3://{bucket}/{_key(name)} is not a valid list of withdrawn releases: {problem}"
        )
    if trust:
        _check_signature(document, f"s3://{bucket}/{_key(name)}", trust)
    signed = document["list"]
    return Withdrawn(
        int(signed["number"]), {entry["digest"]: entry for entry in signed["releases"]}
    )


def _check_signature(document: WithdrawnDocument, place: str, trust: Trust) -> None:
    signature = document["signature"]
    if signature is None:
        raise RejectedError(f"{place} is not signed, so that nothing is withdrawn by it.")
    try:
        verify(trust, _SIGNED, canonical_json(document["list"]), signature.encode())
    except RejectedError as error:
        raise RejectedError(f"{place}: {error}. Nothing is withdrawn by it.") from None


def withdraw(
    store: ObjectStore,
    name: str,
    digest: str,
    *,
    reason: str,
    signer: Signer | None,
    trust: Trust | None,
    actor: str | None = None,
) -> Channel | None:
    """Add a version to the list, then take it out of the channel: a trial of it ends, and a
    previous version takes its place.

    Args:
        store: where list and channel lie.
        name: of the adapter.
        digest: of the version, published or not.
        reason: why, on one line.
        signer: who signs the list; None leaves it unsigned, which only hosts that ask for no
            signature heed.
        trust: whose signature the present list must carry to be gone on from.
        actor: who; None takes the GitHub actor or the user.

    Returns:
        The channel afterwards; None if there is none.

    Raises:
        UsageError: no digest, a reason that breaks the schema, or a key that cannot be used.
        RejectedError: the present list is damaged, or not signed by whom we trust.
        InfrastructureError: the store.
    """
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"adapter version {digest!r}: expected 64 hex digits.")
    entry: Entry = {
        "digest": digest,
        "reason": reason,
        "by": actor or who(),
        "at": datetime.datetime.now(datetime.UTC).isoformat(),
    }
    _append(store, name, entry, signer, trust)

    def leave(channel: Channel) -> Channel:
        return without(channel, frozenset({digest}))

    if read_channel(store, name) is None:
        return None
    return change_channel(
        store, name, leave, reason=f"{digest[:12]} is withdrawn: {reason}"[:1000], actor=actor
    )


def _append(
    store: ObjectStore, name: str, entry: Entry, signer: Signer | None, trust: Trust | None
) -> None:
    for _ in range(_ATTEMPTS):
        found = read_list(store, name)
        present = from_document(found.content, store.bucket, name, trust) if found else Withdrawn()
        if entry["digest"] in present.releases:
            return
        # At least the second of the clock: of a list that was removed since, hosts know the number
        # still.
        number = max(present.number + 1, int(datetime.datetime.now(datetime.UTC).timestamp()))
        content = _content(
            Withdrawn(number, {**present.releases, entry["digest"]: entry}), name, signer
        )
        # A lost swap: somebody else wrote, or the answer of this very write got lost; then it is
        # there at the next look.
        with contextlib.suppress(ConflictError):
            store.swap(_key(name), content, found.etag if found else None)
            return
    raise InfrastructureError(
        f"withdrawn releases of {name}: lost the race for the write {_ATTEMPTS} times. Run it"
        " again."
    )


def _content(new: Withdrawn, name: str, signer: Signer | None) -> bytes:
    """The bytes of a list with its signature.

    Raises:
        UsageError: it breaks its schema, or is too large.
    """
    document = new.document(name)
    if problems := schema_problems(document, "withdrawn"):
        raise UsageError(f"withdrawn releases of {name}: {problems[0]} Nothing is written.")
    if signer:
        document["signature"] = sign(signer, _SIGNED, canonical_json(document["list"])).decode()
    content = text_of(document)
    if len(content) > _LIST_BYTES:
        raise UsageError(
            f"withdrawn releases of {name}: the list would exceed {_LIST_BYTES} bytes. Use the"
            " adapter under a new name."
        )
    return content


def _key(name: str) -> str:
    return f"withdrawn/{name}.json"
