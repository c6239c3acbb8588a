"""Prometheus metrics of one serving host. A label is never taken from a request unchecked, and
versions that are gone are forgotten.
"""

from __future__ import annotations

import itertools

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.metrics import MetricWrapperBase

from adapterops.serving.devices import DeviceCollector
from adapterops.serving.routes import Version
from adapterops.serving.state import HostState

# Quantiles are read from these: 15 % wide from 5 ms to 10 minutes, so that a p95 is known within 15
# %.
FINE_BUCKETS = tuple(
    itertools.takewhile(
        lambda bound: bound < 700, (round(0.005 * 1.15**step, 6) for step in itertools.count())
    )
)


class Metrics:
    """The registry and its metrics; the first three are named as in the operations guide and count
    users' requests, not probes.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.registry.register(DeviceCollector())
        self._of_requests(self.registry)
        self._of_channels(self.registry)
        self._of_the_host(self.registry)
        self._by_version: tuple[MetricWrapperBase, ...] = (
            self.version_requests,
            self.version_duration,
            self.first_token,
            self.tokens,
            self.feedback,
        )
        self._seen: set[tuple[str, str]] = set()

    def _of_requests(self, registry: CollectorRegistry) -> None:
        self.duration = Histogram(
            "llm_inference_duration_seconds",
            "From the last byte of a request to that of its answer, less what the client takes to"
            " read it",
            ["model", "adapter", "request_type"],
            buckets=[0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            registry=registry,
        )
        self.requests = Counter(
            "llm_request_total", "Requests answered", ["adapter", "status"], registry=registry
        )
        self.version = Gauge(
            "llm_adapter_version_info",
            "1 for each version being served",
            ["adapter", "version", "train_date"],
            registry=registry,
        )
        # With the key, for no key alone decides on a version (`rollout.py`); keys are those of a
        # file.
        version = ["adapter", "version", "origin", "key"]
        self.version_requests = Counter(
            "llm_version_request_total",
            "Requests that count for a version, by status, origin (user or probe) and API key; 504"
            " is also a probe given up after 30 s without a byte, and both is an error that the"
            " stable version and the canary give alike, or one within a stream",
            [*version, "status"],
            registry=registry,
        )
        self.version_duration = Histogram(
            "llm_version_duration_seconds",
            "From the last byte of a request to the last byte of a good answer, less what the"
            " client takes to read it",
            version,
            buckets=FINE_BUCKETS,
            registry=registry,
        )
        self.first_token = Histogram(
            "llm_time_to_first_token_seconds",
            "From the last byte of a streaming request to the first byte of its answer",
            ["adapter", "version"],
            buckets=[0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0],
            registry=registry,
        )
        self.tokens = Counter(
            "llm_generated_tokens_total",
            "Tokens generated: as the engine counts them, else chunks of a stream",
            ["adapter", "version"],
            registry=registry,
        )
        self.feedback = Counter(
            "llm_feedback_total",
            "Thumbs",
            ["adapter", "version", "key", "rating"],
            registry=registry,
        )

    def _of_channels(self, registry: CollectorRegistry) -> None:
        self.weight = Gauge(
            "llm_canary_weight_percent",
            "Share of requests for the canary",
            ["adapter"],
            registry=registry,
        )
        self.generation = Gauge(
            "llm_channel_generation",
            "Generation of the channel that is followed",
            ["adapter"],
            registry=registry,
        )
        self.canary = Gauge(
            "llm_canary_present",
            "1 if the channel names a canary, also at weight 0",
            ["adapter"],
            registry=registry,
        )
        self.ready = Gauge(
            "llm_reconcile_ready",
            "1 if every engine has the channel's version in this role (stable, canary, previous);"
            " stable is 0 while the channel is unread",
            ["adapter", "role"],
            registry=registry,
        )
        self.read_at = Gauge(
            "llm_channel_read_timestamp_seconds",
            "When the channel was last read; 0 for never",
            ["adapter"],
            registry=registry,
        )
        self.refused = Gauge(
            "llm_channel_refused",
            "1 while the store has a former generation of the channel, which is not followed",
            ["adapter"],
            registry=registry,
        )

    def _of_the_host(self, registry: CollectorRegistry) -> None:
        self.unknown = Gauge(
            "llm_engine_unknown_adapters",
            "Adapters that no channel names",
            ["engine"],
            registry=registry,
        )
        self.engine_up = Gauge(
            "llm_engine_up", "1 if the engine answers", ["engine"], registry=registry
        )
        self.engine_starts = Counter(
            "llm_engine_starts_total", "How often an engine came up", ["engine"], registry=registry
        )
        self.in_flight = Gauge(
            "llm_gateway_in_flight_requests", "Requests under way", registry=registry
        )
        self.saturation = Gauge(
            "llm_gateway_saturation_ratio",
            "Requests under way by what the engines that are up can batch",
            registry=registry,
        )
        self.retries = Counter(
            "llm_gateway_retries_total",
            "Requests given to another engine before their first byte",
            registry=registry,
        )
        self.rejected = Counter(
            "llm_gateway_rejected_total",
            "Requests refused by the gateway itself",
            ["reason"],
            registry=registry,
        )

    def labels_of(self, version: Version) -> tuple[str, str]:
        """Labels `adapter` and `version`; the series that get them are forgotten with the version,
        also those that come late.
        """
        labels = version.adapter, version.digest[:12]
        self._seen.add(labels)
        return labels

    def show(self, state: HostState) -> None:
        """Make the gauges say what the host's state says, and forget versions that no channel names
        and no engine holds any more.

        A version that brings its engine down must not take its errors with it: a rollout judges
        them.
        """
        self.version.clear()
        self.ready.clear()
        for adapter, route in state.routes.items():
            for version in filter(None, {route.stable, route.canary}):
                self.version.labels(adapter, version.digest[:12], version.trained_at[:10]).set(1)
            self.weight.labels(adapter).set(route.weight if route.canary else 0)
        for adapter, report in state.report.items():
            self.generation.labels(adapter).set(report["generation"])
            self.refused.labels(adapter).set(state.channels[adapter].refused)
            self.canary.labels(adapter).set(report["canary"] is not None)
            self.ready.labels(adapter, "stable").set(
                state.channels[adapter].known and (report["stable_ready"] or not report["stable"])
            )
            for role, digest, ready in (
                ("canary", report["canary"], report["canary_ready"]),
                ("previous", report["previous"], report["previous_ready"]),
            ):
                if digest:
                    self.ready.labels(adapter, role).set(ready)
        for number, engine in enumerate(state.engines):
            self.engine_up.labels(str(number)).set(engine.up)
            self.unknown.labels(str(number)).set(len(engine.unknown))
        known = {
            (version.adapter, version.digest[:12])
            for engine in state.engines
            for version in engine.ready.values()
        }
        known |= {
            (adapter, digest[:12])
            for adapter, followed in state.channels.items()
            for digest in followed.channel.versions
        }
        for adapter, digits in self._seen - known:
            for metric in self._by_version:
                metric.remove_by_labels({"adapter": adapter, "version": digits})
        self._seen &= known
