"""Converge on the channels: what they name is fetched, verified, loaded, checked for effect, and only then routable."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterops.documents import write_json
from adapterops.engine.client import load_adapter, served_models, unload_adapter
from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.evaluate.generate import generate
from adapterops.schemas import schema_problems
from adapterops.serving.config import ServingConfig
from adapterops.serving.routes import Route, Version, engine_name
from adapterops.store.channels import Channel, channel_document, channel_from, read_channel
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import fetch_release

log = logging.getLogger("reconciler")
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """One round: where requests go, and what `/health` tells of each adapter."""

    routes: dict[str, Route]
    report: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Failure:
    """Why a version is not ready, whether trying again can help, and when that is done."""

    message: str
    unfit: bool
    pause_s: float
    again_at: float


@dataclass
class Reconciler:
    """Holds what has been checked in this life of the engine; `run_once` does one round."""

    config: ServingConfig
    store: ObjectStore
    engine_url: str
    routes: dict[str, Route] = field(default_factory=dict)
    _ready: dict[str, Version] = field(default_factory=dict)
    _failures: dict[str, _Failure] = field(default_factory=dict)
    _channels: dict[str, Channel] = field(default_factory=dict)
    _said: dict[str, list[str]] = field(default_factory=dict)

    def run_once(self) -> Outcome:
        """Bring the engine to what the channels say; one adapter's trouble does not stop another's.

        Raises:
            InfrastructureError: the engine does not answer; routes stay as they were.
        """
        served = served_models(self.engine_url)
        # An engine that was restarted has forgotten its adapters: they are loaded and checked anew.
        self._ready = {name: version for name, version in self._ready.items() if served.get(name) == str(self._directory(version))}
        routes, report = {}, {}
        for adapter in self.config.adapters:
            routes[adapter], report[adapter] = self._reconcile(adapter)
        self.routes = routes
        return Outcome(routes, report)

    def _reconcile(self, adapter: str) -> tuple[Route, dict[str, Any]]:
        errors: list[str] = []
        channel = self._channel(adapter, errors)
        for digest in channel.versions:
            if not self._version(adapter, digest):
                self._make_ready(adapter, digest)
        failures = {digest: self._failures.get(engine_name(adapter, digest)) for digest in channel.versions}
        errors += [f"{digest[:12]}: {failure.message}" for digest, failure in failures.items() if failure]
        stable = self._version(adapter, channel.stable)
        canary = self._version(adapter, channel.canary)
        former = self.routes.get(adapter, Route())
        if channel.stable and stable is None:
            if former.stable and former.stable.engine_name in self._ready:
                stable = former.stable  # keep answering with what is there until the new one is ready
            else:
                canary = None  # a version under trial does not stand in for one that is not ready
        report = {
            "generation": channel.generation,
            "stable": channel.stable,
            "stable_ready": stable is not None and stable.digest == channel.stable,
            "canary": channel.canary,
            "canary_ready": canary is not None,
            "weight": channel.weight,
            "errors": errors,
            "unfit": {digest: failure.message for digest, failure in failures.items() if failure and failure.unfit},
        }
        if errors != self._said.get(adapter, []):
            self._said[adapter] = errors
            for message in errors:
                log.warning("%s: %s", adapter, message)
        return Route(stable, canary, channel.weight), report

    def _channel(self, adapter: str, errors: list[str]) -> Channel:
        """The channel; where the store does not say, the one seen last, also by an earlier process."""
        try:
            found = read_channel(self.store, adapter)
        except InfrastructureError as error:
            found = None
            errors.append(f"serving what was seen last: {error}")
        if found is None:
            last = self._channels.get(adapter) or self._recorded(adapter)
            if last and not errors:
                errors.append(f"the channel is gone from bucket {self.store.bucket}; serving what was seen last.")
            return last or Channel(adapter)
        channel = found[0]
        if channel != self._channels.get(adapter):
            self._channels[adapter] = channel
            # Whoever changed the channel may have mended what failed.
            for digest in channel.versions:
                self._failures.pop(engine_name(adapter, digest), None)
            try:
                write_json(self._record(adapter), channel_document(channel), "channel")
            except OSError as error:
                errors.append(f"the channel cannot be kept for a restart without the store: {error}")
        return channel

    def _record(self, adapter: str) -> Path:
        return self.config.state_directory / "channels" / f"{adapter}.json"

    def _recorded(self, adapter: str) -> Channel | None:
        try:
            document = json.loads(self._record(adapter).read_bytes())
        except (OSError, ValueError):
            return None
        return None if schema_problems(document, "channel") else channel_from(document)

    def _make_ready(self, adapter: str, digest: str) -> None:
        """Try, and note the outcome; a failure is tried again after growing pauses, for it can cost a download each time."""
        name = engine_name(adapter, digest)
        former = self._failures.get(name)
        if former and time.monotonic() < former.again_at:
            return
        try:
            self._ready[name] = self._prepare(adapter, digest)
            self._failures.pop(name, None)
            log.info("%s: %s is ready", adapter, digest[:12])
        except Exception as error:
            if not isinstance(error, AdapterOpsError | OSError):
                log.exception("%s: %s could not be made ready", adapter, digest[:12])
            pause = min(former.pause_s * 2, _LONGEST_PAUSE_S) if former else _FIRST_PAUSE_S
            unfit = isinstance(error, RejectedError)
            self._failures[name] = _Failure(str(error), unfit, pause, time.monotonic() + pause)

    def _prepare(self, adapter: str, digest: str) -> Version:
        name = engine_name(adapter, digest)
        directory, manifest = fetch_release(
            self.store, adapter, digest, self.config.state_directory / "releases", base_model=self.config.base_model.name
        )
        load_adapter(self.engine_url, name, directory)
        if (root := served_models(self.engine_url).get(name)) != str(directory):
            raise InfrastructureError(f"the engine lists {name} from {root}, not from {directory}.")
        try:
            self._check_effect(name, manifest)
        except RejectedError:
            unload_adapter(self.engine_url, name)  # never routed, so nobody can be asking it
            raise
        return Version(adapter, digest, manifest["trained_at"])

    def _check_effect(self, name: str, manifest: dict[str, Any]) -> None:
        """VLLM can list an adapter and serve the base model: ask what was asked at evaluation, and expect its answers."""
        probes = manifest["probes"]
        if not probes:
            raise RejectedError("the release has no probes, so that its effect cannot be shown. Evaluate and publish it again.")
        differs = False
        for position, probe in enumerate(probes, 1):
            expected = probe["output"]
            # A token is at least a byte: enough for the expected answer, and no long wait for a wrong one.
            longest = min(self.config.engine.max_model_len, len(expected.encode()) + 8)
            # One at a time, as they were recorded: another batch can flip a near-tie of greedy decoding.
            [answer] = generate(self.engine_url, name, [probe["messages"]], max_tokens=longest, concurrency=1)
            if answer.text != expected:
                raise RejectedError(f"probe {position} is answered with {answer.text[:80]!r}, at evaluation it was {expected[:80]!r}.")
            base_model = self.config.base_model.name
            [base] = generate(self.engine_url, base_model, [probe["messages"]], max_tokens=max(1, answer.tokens), concurrency=1)
            differs = differs or base.text != expected
        if not differs:
            raise RejectedError("the adapter has no effect: its answers to the probes are the base model's.")

    def _directory(self, version: Version) -> Path:
        return self.config.state_directory / "releases" / version.adapter / f"sha256-{version.digest}"

    def _version(self, adapter: str, digest: str | None) -> Version | None:
        return self._ready.get(engine_name(adapter, digest)) if digest else None
