"""How many connections and requests the file descriptors of a host are enough for."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from adapterops.errors import UsageError

_KEPT = 128  # for the object store, downloads, logs, and newcomers before they are turned away
_KEPT_PER_ENGINE = 16  # its process, its pipes, health checks and the reconciler
_FEWEST = 24
_PER_REQUEST = 2  # connections to engines: one that answers, and an idle one to another engine


@dataclass(frozen=True)
class Room:
    """What a host has room for at once."""

    connections: int
    requests: int
    descriptors: int


def make_room(connections: int, requests: int, engines: int) -> Room:
    """Raise the soft limit on descriptors as far as needed and allowed, and share them out.

    Requests get at most half of them, so that connections are left for `/health`.

    Args:
        connections: wanted from clients.
        requests: wanted under way.
        engines: of the host.

    Raises:
        UsageError: the limit is too low to serve anybody.
    """
    kept = _KEPT + _KEPT_PER_ENGINE * engines
    limit = _raise_limit(kept + connections + _PER_REQUEST * requests)
    usable = limit - kept
    if usable < _FEWEST:
        raise UsageError(
            f"{limit} file descriptors (ulimit -n) are too few: {kept} are kept for the object"
            f" store, logs and {engines} engines. Allow"
            f" {kept + connections + _PER_REQUEST * requests} (systemd: LimitNOFILE)."
        )
    requests = min(requests, usable // (2 * _PER_REQUEST))
    return Room(min(connections, usable - _PER_REQUEST * requests), requests, limit)


def _raise_limit(wanted: int) -> int:
    """The soft limit, raised to `wanted` if the hard one allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted
