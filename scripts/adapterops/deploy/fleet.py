"""The serving hosts as a deployment sees them: their gateways."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import httpx

from adapterops.deploy.counters import Accumulated
from adapterops.errors import InfrastructureError, RejectedError
from adapterops.shapes.release_manifest import Message, Probe
from adapterops.store.channels import Channel
from adapterops.store.host_report import HostReport

_Result = TypeVar("_Result")
_POLL_S = 0.1
_SILENT_S = 15.0  # a gateway that does not answer for this long is down
# Nobody waits longer for probes: a canary that hangs must not keep the next look at what users get.
_ANSWERED_S = 2.0
# A probe that is given up then without a byte counts as an error of its version.
_ASK_TIMEOUT_S = 120.0
# A longer answer shows no more of errors and latency, and a key's `max_tokens` may be little more.
_PROBE_TOKENS = 512
# A version that an engine forgot (it was restarted) is loaded again within this time.
_RELOAD_S = 60.0


@dataclass
class Fleet:
    """Gateways, by their roots; `$GATEWAY_API_KEY` is an operator's key where they ask for keys.

    Args:
        gateways: all hosts.
        timeout_s: how long one may take to have a version ready.
    """

    gateways: list[str]
    timeout_s: float
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))
    # Apart: probes that hang leave the others free.
    _probers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(32))
    _probes: list[Future[None]] = field(default_factory=list)
    _client: httpx.Client = field(
        default_factory=lambda: httpx.Client(headers=_headers(), trust_env=False)
    )
    _questions: Iterator[int] = field(default_factory=itertools.count)

    def __str__(self) -> str:
        return f"{len(self.gateways)} host{'s' if len(self.gateways) != 1 else ''}"

    def await_ready(self, channel: Channel, role: Literal["stable", "canary"]) -> None:
        """Return once every host has the channel's version ready in this role.

        Raises:
            RejectedError: a host found the version unfit, or somebody changed the channel
                meanwhile.
            InfrastructureError: a host is not there, or not in time; what the others do is said.
        """
        name, digest = channel.adapter, str(channel.stable if role == "stable" else channel.canary)
        deadline = time.monotonic() + self.timeout_s
        heard = dict.fromkeys(self.gateways, time.monotonic())
        silent_s = min(_SILENT_S, self.timeout_s)
        while True:
            answers = self._pool.map(self._report, self.gateways, itertools.repeat(name))
            reports = dict(zip(self.gateways, answers, strict=True))
            waiting = []
            for gateway, (error, report) in reports.items():
                if not error:
                    heard[gateway] = time.monotonic()
                _refuse_unfit(gateway, channel, role, digest, report)
                ready = report.get("stable_ready" if role == "stable" else "canary_ready")
                if report.get(role) != digest or not ready:
                    waiting.append(gateway)
            if not waiting:
                return
            now = time.monotonic()
            silent = [gateway for gateway in waiting if now - heard[gateway] > silent_s]
            if now > deadline or silent == waiting:
                error, report = reports[waiting[0]]
                said = "; ".join(report.get("errors", [])) or error
                said = said or f"it reports {report or 'nothing'}"
                raise InfrastructureError(
                    f"{', '.join(waiting)}: {name} {digest[:12]} is not ready after"
                    f" {self.timeout_s - (deadline - now):.0f} s: {said}"
                    f" ({len(self.gateways) - len(waiting)} of {self} have it;"
                    " a host that comes back follows by itself)"
                )
            time.sleep(_POLL_S)

    def state(self, gateway: str, name: str) -> str:
        """In a few words, what a host serves of an adapter."""
        error, report = self._report(gateway, name)
        if error or not report:
            return error or "does not follow it"
        said = "nothing stable"
        if stable := report["stable"]:
            said = f"{stable[:12]} {'ready' if report['stable_ready'] else 'not ready'}"
        if canary := report["canary"]:
            said += f", canary {canary[:12]} at {report['weight']} %"
        return said

    def _report(self, gateway: str, name: str) -> tuple[str, HostReport]:
        """What stands in the way of asking, and what the host reports of the adapter."""
        try:
            answer = self._client.get(f"{gateway}/health", timeout=5)
            adapters = answer.json().get("adapters")
            if adapters is None and answer.status_code == 200:
                alone = "it shows its state to operators alone"
                return f"{alone}: put an operator's key into GATEWAY_API_KEY", {}
            return "", (adapters or {}).get(name, {})
        except (httpx.HTTPError, ValueError) as error:
            return f"it does not answer ({error})", {}

    def ask(
        self, gateway: str, name: str, digest: str, messages: list[Message], max_tokens: int
    ) -> httpx.Response:
        """One recorded question to a version by name, marked as a probe.

        Raises:
            InfrastructureError: the gateway does not answer.
        """
        body = {"model": name, "messages": messages, "temperature": 0, "max_tokens": max_tokens}
        headers = {"x-adapter-version": digest, "x-request-purpose": "probe"}
        try:
            return self._client.post(
                f"{gateway}/v1/chat/completions", json=body, headers=headers, timeout=_ASK_TIMEOUT_S
            )
        except httpx.HTTPError as error:
            raise InfrastructureError(
                f"{gateway} does not answer a request for {name}: {error}"
            ) from None

    def smoke(self, name: str, digest: str, probes: list[Probe]) -> None:
        """One recorded question through every front door.

        Raises:
            RejectedError: the answer is not of this version.
            InfrastructureError: a host does not answer, or fails.
        """
        greeting: list[Message] = [{"role": "user", "content": "Hello?"}]
        messages = probes[0]["messages"] if probes else greeting
        for gateway in self.gateways:
            deadline = time.monotonic() + min(_RELOAD_S, self.timeout_s)
            # A version that was ready can be gone until the host has noticed that it is.
            while (
                answer := self.ask(gateway, name, digest, messages, 32)
            ).status_code == 503 and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            said = (
                f"{gateway}: a request for {name} {digest[:12]} was answered with"
                f" {answer.status_code}: {answer.text[:300]}"
            )
            if answer.status_code >= 500:
                raise InfrastructureError(said)
            if answer.status_code != 200 or answer.headers.get("x-adapter-version") != digest[:12]:
                raise RejectedError(said)

    def probe(self, name: str, digests: list[str], probes: list[Probe], count: int) -> None:
        """Ask `count` recorded questions of each version, spread over the hosts.

        What became of them is in the hosts' metrics. Returns after two seconds at the latest. While
        questions of an earlier call are not answered, no others are asked.
        """

        def one(digest: str, number: int) -> None:
            probe = probes[number % len(probes)]
            gateway = self.gateways[number % len(self.gateways)]
            tokens = min(_PROBE_TOKENS, len(probe["output"].encode()) + 8)
            try:
                self.ask(gateway, name, digest, probe["messages"], tokens)
            except InfrastructureError:
                return  # a host that is down shows when its metrics are read

        if probes and all(probe.done() for probe in self._probes):
            asked = [
                (digest, next(self._questions) // len(digests))
                for _ in range(count)
                for digest in digests
            ]
            self._probes = [self._probers.submit(one, *item) for item in asked]
        wait(self._probes, _ANSWERED_S)

    def read(self, evidence: Accumulated) -> None:
        """Add what the hosts counted since the last look.

        Raises:
            InfrastructureError: a host has not answered for some time: what it does is not known.
        """
        texts = self._pool.map(self._metrics, self.gateways)
        for gateway, text in zip(self.gateways, texts, strict=True):
            if text is not None:
                evidence.add(gateway, text)
            elif evidence.silent_for(gateway) > _SILENT_S:
                raise InfrastructureError(
                    f"{gateway}: no metrics for {_SILENT_S:.0f} s."
                    " What the canary does there is not known."
                )

    def _metrics(self, gateway: str) -> str | None:
        try:
            answer = self._client.get(f"{gateway}/metrics", timeout=5)
        except httpx.HTTPError:
            return None
        return answer.text if answer.status_code == 200 else None


@contextmanager
def open_fleet(gateways: list[str], timeout_s: float) -> Iterator[Fleet]:
    """A fleet whose connections are closed in the end."""
    fleet = Fleet(gateways, timeout_s)
    try:
        yield fleet
    finally:
        for pool in (fleet._pool, fleet._probers):
            pool.shutdown(cancel_futures=True)
        fleet._client.close()


def persist(act: Callable[[], _Result], timeout_s: float, say: Callable[[str], None]) -> _Result:
    """Do it, and while the store is away again and again; the first failure is said.

    Raises:
        InfrastructureError: still not, after `timeout_s` seconds.
    """
    deadline, said = time.monotonic() + timeout_s, False
    while True:
        try:
            return act()
        except InfrastructureError as error:
            if time.monotonic() > deadline:
                raise
            if not said:
                say(f"{error} Trying again for {timeout_s:.0f} s.")
            said = True
            time.sleep(1)


def _refuse_unfit(
    gateway: str,
    channel: Channel,
    role: Literal["stable", "canary"],
    digest: str,
    report: HostReport,
) -> None:
    unfit = report.get("unfit", {})
    if report.get(role) == digest and digest in unfit:
        raise RejectedError(f"{gateway}: {channel.adapter} {digest[:12]}: {unfit[digest]}")
    if report.get(role) != digest and report.get("generation", 0) > channel.generation:
        raise RejectedError(
            f"{gateway}: {channel.adapter} is at generation {report['generation']}, in which"
            f" {digest[:12]} is no longer {role}. Somebody changed the channel after generation"
            f" {channel.generation}; see the audit log."
        )


def _headers() -> dict[str, str]:
    key = os.environ.get("GATEWAY_API_KEY")
    return {"authorization": f"Bearer {key}"} if key else {}
