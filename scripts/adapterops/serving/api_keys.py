"""API keys: hashed at rest, each with its adapters, its rate, its limits and its role."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from adapterops.errors import UsageError
from adapterops.shapes.api_keys import ApiKeys as ApiKeysDocument
from adapterops.specs.limits import Limits
from adapterops.yamlfile import load_yaml

log = logging.getLogger("gateway")
_LOOK_AGAIN_S = 2.0
_KNOWN_SCHEMAS = 256  # of a key; vLLM keeps 512 MB of what it compiled
_BURST_S = 10.0  # a key may save up this many seconds of its rate


@dataclass
class ApiKey:
    """Who asks, and what that one may do.

    Args:
        name: for the access log; never the key.
        adapters: what may be asked for; None is everything, the base model too.
        requests_per_minute: on each host, for hosts do not tell each other; None is unlimited.
        role: an `operator` may also name a version, send probes and read the metrics.
        limits: caps of its requests and its share of the host.
    """

    name: str
    limits: Limits
    adapters: frozenset[str] | None = None
    requests_per_minute: int | None = None
    role: Literal["client", "operator"] = "client"
    _tokens: float = field(default=-1.0, repr=False)
    _at: float = field(default=0.0, repr=False)
    _schemas: OrderedDict[bytes, float] = field(default_factory=OrderedDict, repr=False)

    def wait(self, now: float) -> float:
        """Take one request from the key's bucket; seconds to wait if it is empty, 0 if not."""
        if self.requests_per_minute is None:
            return 0.0
        rate = self.requests_per_minute / 60
        size = max(1.0, rate * _BURST_S)
        self._tokens = (
            size if self._tokens < 0 else min(size, self._tokens + (now - self._at) * rate)
        )
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / rate
        self._tokens -= 1
        return 0.0

    def may_compile(self, schemas: bytes, now: float) -> bool:
        """Take up the schemas of a request; False if too many new ones came within the last minute.

        Those that came before are compiled already.
        """
        digest = hashlib.sha256(schemas).digest()
        if digest in self._schemas:
            return True
        recent = sum(now - at < 60 for at in self._schemas.values())
        if recent >= self.limits.schemas_per_minute:
            return False
        self._schemas[digest] = now
        if len(self._schemas) > max(_KNOWN_SCHEMAS, self.limits.schemas_per_minute):
            self._schemas.popitem(last=False)
        return True


class ApiKeys:
    """The keys of a file; a changed file counts within seconds, and one that became invalid is
    reported and not used.

    Args:
        path: `configs/schemas/api_keys.json`; None lets everybody do everything, as one key that
            has the host to itself: for a gateway on loopback, or behind another one that asks for
            keys.
        limits: of a key whose entry changes none.

    Raises:
        UsageError: the file is not what its schema says, when it is first read.

    A key has 256 random bits (`api_key.py` makes it), so that a plain SHA-256 of it cannot be
    turned back: slow password hashes are for secrets that people choose.
    """

    def __init__(self, path: Path | None, limits: Limits) -> None:
        self._path = path
        self._limits = limits
        self._anyone = ApiKey("-", replace(limits, share=None), role="operator")
        self._stamp = _stamp(path)  # before it is read: what changes meanwhile is read again
        self._keys: dict[str, ApiKey] = _load(path, limits) if path else {}
        self._looked = time.monotonic()

    def find(self, authorization: str | None) -> ApiKey | None:
        """The key of an `Authorization: Bearer …` header, None if there is none like that."""
        if self._path is None:
            return self._anyone
        self._look_again()
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        return self._keys.get(
            hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).hexdigest()
        )

    def _look_again(self) -> None:
        now = time.monotonic()
        if now - self._looked < _LOOK_AGAIN_S:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if self._path is None or stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            fresh = _load(self._path, self._limits)
        except UsageError as error:
            log.error("%s The keys read before stay in force.", error)
            return
        for digest, key in fresh.items():
            if former := self._keys.get(digest):
                key._tokens, key._at, key._schemas = former._tokens, former._at, former._schemas
        self._keys = fresh
        log.info("%s: %d keys", self._path, len(fresh))


def _stamp(path: Path | None) -> tuple[int, int]:
    """Which file it is and when it was last written.

    By the kernel's clock: a copy that keeps its date (`cp -p`, rsync, a backup) must not keep a
    revoked key alive.
    """
    try:
        status = path.stat() if path else None
    except OSError:
        status = None
    return (status.st_ino, status.st_ctime_ns) if status else (0, 0)


def _load(path: Path, limits: Limits) -> dict[str, ApiKey]:
    entries = load_yaml(path, ApiKeysDocument)["keys"]
    given = {
        "name": [entry["name"] for entry in entries],
        "sha256": [entry["sha256"] for entry in entries],
    }
    for what, values in given.items():
        if twice := sorted({value for value in values if values.count(value) > 1}):
            raise UsageError(
                f"{path}: the {what} {twice[0]} is given to two keys. The access log could not tell"
                " them apart."
            )
    return {
        entry["sha256"]: ApiKey(
            entry["name"],
            replace(limits, **entry.get("limits", {})),
            None if entry["adapters"] == "all" else frozenset(entry["adapters"]),
            entry["requests_per_minute"],
            entry["role"],
        )
        for entry in entries
    }
