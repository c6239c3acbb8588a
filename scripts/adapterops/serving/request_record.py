"""One request and its answer: what is measured, and the line of the access log."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from adapterops.serving.gateway_metrics import Metrics
from adapterops.serving.routes import Version

# The engine's own count stands at the end of an answer, or of a stream whose client asked for it;
# inside a text the quote is escaped.
_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')
_TAIL = 1024
# vLLM says 200 before it looks at a question that is streamed, and what is wrong with it in an
# event. Inside a text the quote is escaped.
_ERROR_EVENT, _ERROR_CODE = b'data: {"error":', re.compile(rb'"code":\s*(\d{3})\b')
# a probe that went away after this long without a byte, the first or another, did not change its
# mind
_HUNG_S = 30.0
# status of a request that accuses neither: the stable version and the canary fail it alike, or may
# do so
_REFUSED_BY_BOTH = "both"


@dataclass(slots=True)
class Exchange:
    """Facts of one request, filled in as they become known.

    What a client does to its own request is no fact of the version: the time it takes to send its
    question or to read its answer, that it hangs up, and an error that the other version on trial
    gives too.
    """

    request_id: str
    method: str
    path: str
    kind: Literal["chat", "completion"]
    started: float = field(default_factory=time.perf_counter)
    key: str = "-"
    origin: Literal["user", "probe"] = "user"
    adapter: str = "unknown"
    version: Version | None = None
    failed: Version | None = None
    evidence: bool = True
    stream: bool = False
    status: int = 500
    engine: str = ""
    retries: int = 0
    first_byte: float | None = None
    asked: float = field(default_factory=time.perf_counter)
    waiting_since: float | None = field(default_factory=time.perf_counter)
    unread: float = 0.0
    sent: int = 0
    prompt: Any = None
    _handed: float = 0.0
    _events: int = 0
    _carry: bytes = b""
    _tail: bytes = b""
    _broke: bool = False

    def chunk(self, chunk: bytes) -> None:
        """Note a part of the answer."""
        # while a client does not read what it has been sent, the engine keeps nobody waiting
        self.waiting_since = None
        self._handed = time.perf_counter()
        if self.first_byte is None:
            self.first_byte = self._handed
        self.sent += len(chunk)
        if self.stream:
            self._events += (self._carry + chunk).count(b"data:")
            self._carry = chunk[-4:]
            self._broke = self._broke or _ERROR_EVENT in self._tail[1 - len(_ERROR_EVENT) :] + chunk
        self._tail = chunk[-_TAIL:] if len(chunk) >= _TAIL else (self._tail + chunk)[-_TAIL:]

    def sent_on(self) -> None:
        """Note that the client has what came so far: from now on the engine is waited for."""
        self.waiting_since = time.perf_counter()
        self.unread += self.waiting_since - self._handed

    def arrived(self) -> None:
        """Note that the question is whole: from now on the engine is waited for."""
        self.asked = self.waiting_since = time.perf_counter()

    @property
    def outcome(self) -> int:
        """The status; of a stream with an error in it, that error's."""
        if self.status != 200 or not self._broke:
            return self.status
        found = _ERROR_CODE.findall(self._tail)
        return int(found[-1]) if found else 500

    @property
    def tokens(self) -> int:
        """Tokens generated: what the engine says, else the number of chunks of a stream without its
        closing one.
        """
        found = _USAGE.findall(self._tail)
        return int(found[-1]) if found else max(0, self._events - 1)

    def finish(self, metrics: Metrics, base_model: str) -> None:
        """Count it. Users' requests make the guide's metrics; probes are counted by version
        alone.
        """
        now = time.perf_counter()
        seconds = now - self.asked - self.unread
        if self.origin == "user":
            metrics.requests.labels(self.adapter, str(self.outcome)).inc()
            metrics.duration.labels(base_model, self.adapter, self.kind).observe(seconds)
        if self.version is None or not self.evidence:
            return
        accused = self.failed or self.version
        labels = metrics.labels_of(accused)
        metrics.version_requests.labels(*labels, self.origin, self.key, self._judged(now)).inc()
        if self.outcome == 200 and not self.failed:
            metrics.version_duration.labels(*labels, self.origin, self.key).observe(seconds)
            metrics.tokens.labels(*labels).inc(self.tokens)
            if self.stream and self.first_byte is not None:
                metrics.first_token.labels(*labels).observe(self.first_byte - self.asked)

    def _judged(self, now: float) -> str:
        """The status that counts for the version that was asked first."""
        if self.failed:
            return "500" if self.outcome == 200 else _REFUSED_BY_BOTH
        if self._broke and self.outcome >= 500:
            # no other version can be asked any more, so nobody knows whose doing it is
            return _REFUSED_BY_BOTH
        # A client can hang up whenever it likes. A probe is the rollout's own, and a version that
        # hangs gives nothing else.
        hung = (
            self.status == 499
            and self.origin == "probe"
            and self.waiting_since
            and now - self.waiting_since >= _HUNG_S
        )
        return "504" if hung else str(self.outcome)

    def log(self) -> None:
        """One line of JSON to standard output."""
        now = time.perf_counter()
        line = {
            "time": round(time.time(), 3),
            "method": self.method,
            "path": self.path,
            "request_id": self.request_id,
            "key": self.key,
            "origin": self.origin,
            "kind": self.kind,
            "adapter": self.adapter,
            "version": self.version.digest[:12] if self.version else None,
            "failed": self.failed.digest[:12] if self.failed else None,
            "status": self.outcome,
            "stream": self.stream,
            "ms": round((now - self.started) * 1000, 1),
            "first_byte_ms": None
            if self.first_byte is None
            else round((self.first_byte - self.started) * 1000, 1),
            "tokens": self.tokens,
            "bytes": self.sent,
            "engine": self.engine,
            "retries": self.retries,
        }
        if self.prompt is not None:
            line["prompt"] = self.prompt
        write_line(line)


def write_line(line: Mapping[str, object]) -> None:
    """A line of JSON to standard output; one that cannot be written (a full disk) costs nobody the
    answer.
    """
    # Half a surrogate pair, as clients may send it, becomes its escape.
    text = json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace").decode()
    with contextlib.suppress(OSError):
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
