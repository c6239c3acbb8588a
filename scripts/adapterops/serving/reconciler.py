"""Bring one engine to what the channels name: fetch, verify, load, check for effect; only then is a
version routable.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from adapterops.engine.client import load_adapter, served_models, unload_adapter
from adapterops.engine.generate import generate
from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.serving.routes import Version, engine_name
from adapterops.shapes.release_manifest import ReleaseManifest
from adapterops.specs.serving import ServingConfig
from adapterops.store.channels import Channel
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import fetch_release

log = logging.getLogger("reconciler")
_FIRST_PAUSE_S = 2.0
_LONGEST_PAUSE_S = 300.0


@dataclass(frozen=True)
class _Failure:
    """Why a version is not ready, whether trying again can help, and when that is done."""

    message: str
    unfit: bool
    pause_s: float
    again_at: float
    generation: int


@dataclass
class Reconciler:
    """Holds what has been checked in this life of one engine; `run_once` does one round.

    Args:
        config: the serving configuration.
        store: where releases lie.
        engine_url: root of the engine.
        on_ready: called after each version that became ready, and not only at the end of the round:
            a rollback or the stable version must not wait for another adapter's download.
    """

    config: ServingConfig
    store: ObjectStore
    engine_url: str
    on_ready: Callable[[], None] = lambda: None
    ready: dict[str, Version] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    settled: bool = False
    _failures: dict[tuple[str, str], _Failure] = field(default_factory=dict)
    _wanted_at: dict[str, float] = field(default_factory=dict)

    @property
    def failures(self) -> dict[tuple[str, str], str]:
        """By adapter and digest, why a version is not ready."""
        return {version: failure.message for version, failure in self._failures.items()}

    @property
    def unfit(self) -> frozenset[tuple[str, str]]:
        """The failures that trying again does not mend."""
        return frozenset(version for version, failure in self._failures.items() if failure.unfit)

    def run_once(
        self,
        channels: Iterable[Channel],
        *,
        known: bool = True,
        withdrawn: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        """Make ready what the channels name, the stable versions first, and let go of what none has
        named for a while.

        Args:
            channels: of all adapters.
            known: False while one of them was never read: nobody can say yet that what is stable is
                there.
            withdrawn: versions by adapter and digest, which no channel here names, and which the
                engine forgets before all else.

        Raises:
            InfrastructureError: the engine does not answer.
        """
        wanted = [(channel, digest) for channel in channels for digest in channel.versions]
        wanted.sort(key=lambda item: item[0].stable != item[1])
        served = served_models(self.engine_url)
        self._forget_lost(served)
        for name in [
            name
            for name, version in self.ready.items()
            if (version.adapter, version.digest) in withdrawn
        ]:
            self._forget(name, "is withdrawn")
        now = time.monotonic()
        names = {engine_name(channel.adapter, digest) for channel, digest in wanted}
        self._wanted_at |= dict.fromkeys(names, now)
        current = {(channel.adapter, digest) for channel, digest in wanted}
        self._failures = {
            version: failure for version, failure in self._failures.items() if version in current
        }
        self.unknown = tuple(
            sorted(set(served) - {self.config.base_model.name} - names - set(self.ready))
        )
        self.on_ready()
        for channel, digest in wanted:
            if digest != channel.stable and known and not self.settled:
                self.settled = True  # nobody has to wait for what is left
                self.on_ready()
            if engine_name(channel.adapter, digest) in self.ready and self._is_on_disk(
                channel.adapter, digest
            ):
                self._failures.pop((channel.adapter, digest), None)
            else:
                self._make_ready(channel, digest)
                self.on_ready()
        tried = self._failures.keys() | {
            (version.adapter, version.digest) for version in self.ready.values()
        }
        self.settled = self.settled or (known and current <= tried)
        self._let_go(names, now)

    def _forget_lost(self, served: dict[str, str]) -> None:
        """An engine that was restarted has forgotten its adapters: they are loaded and checked
        anew.
        """
        kept = {
            name: item
            for name, item in self.ready.items()
            if served.get(name) == str(self._directory(item.adapter, item.digest))
        }
        if self.ready and not kept:
            self.settled = False
        self.ready = kept

    def _let_go(self, names: set[str], now: float) -> None:
        """Unload versions that no channel has named for `keep_warm_s`; requests under way are
        answered to their end.
        """
        for name in [name for name in self.ready if name not in names]:
            if now - self._wanted_at.setdefault(name, now) > self.config.keep_warm_s:
                self._forget(name, f"is let go after {self.config.keep_warm_s:.0f} s")

    def _forget(self, name: str, why: str) -> None:
        version = self.ready.pop(name)
        self.on_ready()  # no request may choose it any more before the engine forgets it
        unload_adapter(self.engine_url, name)
        log.info("%s: %s %s", version.adapter, version.digest[:12], why)

    def _make_ready(self, channel: Channel, digest: str) -> None:
        """Try, and note the outcome; a failure is tried again after growing pauses, for it can cost
        a download each time.
        """
        adapter, name = channel.adapter, engine_name(channel.adapter, digest)
        former = self._failures.get((adapter, digest))
        # Whoever changed the channel may have mended what failed.
        if former and former.generation != channel.generation:
            former = None
        if former and time.monotonic() < former.again_at:
            return
        try:
            if name in self.ready:
                log.warning(
                    "%s: the local files of %s are gone; they are fetched again",
                    adapter,
                    digest[:12],
                )
                self._fetch(adapter, digest)
            else:
                self.ready[name] = self._prepare(adapter, digest)
                log.info("%s: %s is ready on %s", adapter, digest[:12], self.engine_url)
            self._failures.pop((adapter, digest), None)
        except Exception as error:
            if not isinstance(error, AdapterOpsError | OSError):
                log.exception("%s: %s could not be made ready", adapter, digest[:12])
            pause = min(former.pause_s * 2, _LONGEST_PAUSE_S) if former else _FIRST_PAUSE_S
            failure = _Failure(
                str(error),
                isinstance(error, RejectedError),
                pause,
                time.monotonic() + pause,
                channel.generation,
            )
            if former is None or former.message != failure.message:
                log.warning("%s: %s: %s", adapter, digest[:12], failure.message)
            self._failures[adapter, digest] = failure

    def _prepare(self, adapter: str, digest: str) -> Version:
        name = engine_name(adapter, digest)
        directory, manifest = self._fetch(adapter, digest)
        load_adapter(self.engine_url, name, directory)
        served = served_models(self.engine_url)
        self._forget_lost(served)  # it may have been restarted since this round began
        if (root := served.get(name)) != str(directory):
            raise InfrastructureError(f"the engine lists {name} from {root}, not from {directory}.")
        try:
            self._check_effect(name, manifest)
        except RejectedError:
            unload_adapter(self.engine_url, name)  # never routed, so nobody can be asking it
            raise
        return Version(adapter, digest, manifest["trained_at"])

    def _fetch(self, adapter: str, digest: str) -> tuple[Path, ReleaseManifest]:
        base_model, trust = self.config.base_model.name, self.config.trust
        return fetch_release(
            self.store, adapter, digest, self.config.releases, base_model=base_model, trust=trust
        )

    def _is_on_disk(self, adapter: str, digest: str) -> bool:
        """Are a loaded version's files there? VLLM reads them again after evicting it, and dies
        without them (vllm-project/vllm#5105).
        """
        directory = self._directory(adapter, digest)
        return all(
            (directory / name).is_file()
            for name in ("adapter_config.json", "adapter_model.safetensors")
        )

    def _check_effect(self, name: str, manifest: ReleaseManifest) -> None:
        """VLLM can list an adapter and serve the base model: ask what was asked at evaluation, and
        expect its answers.
        """
        probes = manifest["probes"]
        if not probes:
            raise RejectedError(
                "the release has no probes, so that its effect cannot be shown. Evaluate and"
                " publish it again."
            )
        differs = False
        for position, probe in enumerate(probes, 1):
            expected = probe["output"]
            # A token is at least a byte: enough for the expected answer, and no long wait for a
            # wrong one.
            longest = min(self.config.engine.max_model_len, len(expected.encode()) + 8)
            # Other requests may be in the same batch, which can turn a near-tie: evaluation chose
            # probes that were decided by wide margins.
            [answer] = generate(
                self.engine_url, name, [probe["messages"]], max_tokens=longest, concurrency=1
            )
            if answer.text != expected:
                pairs = enumerate(zip(answer.text, expected, strict=False))
                at = next(
                    (at for at, (one, other) in pairs if one != other),
                    min(len(answer.text), len(expected)),
                )
                begin = max(0, at - 40)
                raise RejectedError(
                    f"probe {position} is answered with {answer.text[begin : at + 40]!r}, at"
                    f" evaluation it was {expected[begin : at + 40]!r} (from character {begin})."
                )
            if not differs:
                base_model = self.config.base_model.name
                [base] = generate(
                    self.engine_url,
                    base_model,
                    [probe["messages"]],
                    max_tokens=max(1, answer.tokens),
                    concurrency=1,
                )
                differs = base.text != expected
        if not differs:
            raise RejectedError(
                "the adapter has no effect: its answers to the probes are the base model's."
            )

    def _directory(self, adapter: str, digest: str) -> Path:
        return self.config.releases / adapter / f"sha256-{digest}"
