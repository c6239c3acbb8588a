"""What the gateway, the reconcilers and the supervisor of one host share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from adapterops.serving.routes import Route, Version, engine_name
from adapterops.store.channels import Channel, without
from adapterops.store.host_report import HostReport


@dataclass
class Engine:
    """One engine of the host. The event loop is the only writer; mappings are replaced, not
    changed.

    Args:
        url: root, without `/v1`.
        up: it answers its health check.
        settled: since it came up, every channel was read, and every stable version made ready or
            found not to be possible.
        ready: by name in the engine, the versions that it has loaded and that were checked; while
            it is down, those that it had.
        failures: by adapter and digest, why a version is not ready.
        unfit: those of the failures that trying again does not mend.
        unknown: what it serves beside the base model and this host's versions.
        in_flight: requests under way.
        starts: how often it was seen to come up.
    """

    url: str
    up: bool = False
    settled: bool = False
    ready: dict[str, Version] = field(default_factory=dict)
    failures: dict[tuple[str, str], str] = field(default_factory=dict)
    unfit: frozenset[tuple[str, str]] = frozenset()
    unknown: tuple[str, ...] = ()
    in_flight: int = 0
    starts: int = 0

    def has(self, version: Version | None) -> bool:
        """True if it can answer as this version now; None is the base model."""
        return self.up and (version is None or version.engine_name in self.ready)


@dataclass(frozen=True)
class Followed:
    """An adapter's channel as it was last seen.

    Args:
        channel: as it is written.
        errors: what stood in the way of reading it.
        notes: what of it is withdrawn, and what is served instead.
        withdrawn: digests that are never loaded or asked.
        refused: the store has a former generation, which does not count.
    """

    channel: Channel
    errors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    withdrawn: frozenset[str] = frozenset()
    refused: bool = False

    @property
    def served(self) -> Channel:
        """What is served by it: the channel without what is withdrawn."""
        left = without(self.channel, self.withdrawn)
        return replace(left, stable=None) if left.stable in self.withdrawn else left

    @property
    def known(self) -> bool:
        """True if the store said what the channel holds, or that there is none, now or to an
        earlier process.
        """
        return self.channel.generation > 0 or not self.errors


@dataclass
class HostState:
    """The state of one serving host.

    Args:
        base_model: name that the base model is served under.
        engines: at least one.
        channels: by adapter; what should be served.
        routes: by adapter; where requests go. Made by `refresh`.
        report: by adapter; what `/health` tells. Made by `refresh`.
        draining: the host is about to stop.
    """

    base_model: str
    engines: list[Engine]
    channels: dict[str, Followed]
    routes: dict[str, Route] = field(default_factory=dict)
    report: dict[str, HostReport] = field(default_factory=dict)
    draining: bool = False

    @property
    def up(self) -> list[Engine]:
        """Engines that answer."""
        return [engine for engine in self.engines if engine.up]

    def refresh(self) -> None:
        """Make routes and reports say what channels and engines say now; takes microseconds and no
        engine.
        """
        self.routes = {
            adapter: self._route(adapter, followed) for adapter, followed in self.channels.items()
        }
        self.report = {
            adapter: self._report(adapter, followed) for adapter, followed in self.channels.items()
        }

    def _find(self, adapter: str, digest: str | None) -> Version | None:
        """The version, if an engine that answers has it; while none answers, one that did.

        So its requests meanwhile, which fail, are counted as this version's.
        """
        if digest in self.channels[adapter].withdrawn:
            return None
        name = engine_name(adapter, digest or "")
        return next(
            (
                engine.ready[name]
                for engine in self.up or self.engines
                if digest and name in engine.ready
            ),
            None,
        )

    def _route(self, adapter: str, followed: Followed) -> Route:
        channel = followed.served
        stable, canary = self._find(adapter, channel.stable), self._find(adapter, channel.canary)
        if followed.channel.stable and stable is None:
            former = self.routes.get(adapter, Route()).stable
            stable = (
                self._find(adapter, former.digest) if former else None
            )  # keep answering until the new one is ready
            if stable is None:
                canary = None  # a version under trial does not stand in for one that is not ready
        return Route(stable, canary, channel.weight)

    def _report(self, adapter: str, followed: Followed) -> HostReport:
        channel = followed.channel
        errors = [*followed.errors, *followed.notes]
        unfit = {
            digest: "it is withdrawn" for digest in channel.versions if digest in followed.withdrawn
        }
        for engine in self.engines:
            for digest in channel.versions:
                if message := engine.failures.get((adapter, digest)):
                    errors.append(f"{digest[:12]}: {message}")
                    if (adapter, digest) in engine.unfit:
                        unfit[digest] = message
        return {
            "generation": channel.generation,
            "stable": channel.stable,
            "stable_ready": self._everywhere(adapter, channel.stable),
            "canary": channel.canary,
            "canary_ready": self._everywhere(adapter, channel.canary),
            "weight": channel.weight,
            "previous": channel.previous,
            "previous_ready": self._everywhere(adapter, channel.previous),
            "errors": list(dict.fromkeys(errors)),
            "unfit": unfit,
        }

    def _everywhere(self, adapter: str, digest: str | None) -> bool:
        """True if every engine that answers has the version, and one does."""
        if digest in self.channels[adapter].withdrawn:
            return False
        return bool(digest and self.up) and all(
            engine_name(adapter, str(digest)) in engine.ready for engine in self.up
        )
