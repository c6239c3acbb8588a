"""From the change of a channel to a version that answers, and what running streams notice of it.

    python tests/benchmarks/hot_load.py                                   # SmolLM2 on two CPU cores
    python tests/benchmarks/hot_load.py --serving configs/serving.yaml --engine-url http://127.0.0.1:8100

Signed random adapters of the largest rank that is served lie in an S3 server on this machine. A
serving host (scripts/serve.py) follows the channel and the engine; streams ask for the adapter
through its gateway without pause. Then the channel names one version after the other. Noted, by
asking every few milliseconds: the host knows the new generation; the release lies on its disk,
fetched and verified; the engine lists it; `/health` says that it is ready, after the effect check.
Probes are recorded with the engine beforehand, alone and in a batch, as an evaluation does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import boto3
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from random_adapter import make_adapter  # noqa: E402

from adapterops.basemodels.materialize import base_model_directory  # noqa: E402
from adapterops.engine.client import load_adapter, served_models, unload_adapter  # noqa: E402
from adapterops.engine.generate import generate  # noqa: E402
from adapterops.engine.server import start_engine  # noqa: E402
from adapterops.evaluate.evaluation import device_name, engine_version  # noqa: E402
from adapterops.signing import Signer, make_key_pair  # noqa: E402
from adapterops.specs.serving import ServingConfig, load_serving_config  # noqa: E402
from adapterops.store.channels import change_channel, promote  # noqa: E402
from adapterops.store.objects import ObjectStore, open_store  # noqa: E402
from adapterops.store.releases import adapter_digest, publish  # noqa: E402
from processes import AWS, free_port, s3_server  # noqa: E402
from release_documents import QUESTIONS, gate_report  # noqa: E402

ADAPTER, BUCKET = "support", "hot-load-benchmark"
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@dataclass
class Streams:
    """Streams that ask again as soon as they ended; every gap between two of their chunks, with
    when it ended."""

    url: str
    count: int
    max_tokens: int
    gaps: list[tuple[float, float]] = field(default_factory=list)
    answers: int = 0
    failed: list[str] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Streams:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread
        self._thread.join(60)

    async def _run(self) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(self._one(session, number) for number in range(self.count)))

    async def _one(self, session: aiohttp.ClientSession, number: int) -> None:
        while not self._stop.is_set():
            number += 1
            request = {
                "model": ADAPTER,
                "messages": PROMPTS[number % len(PROMPTS)],
                "max_tokens": self.max_tokens,
                "temperature": 0,
            }
            try:
                # Of full length, whatever the adapter says: a stream that ends has no gap to show.
                async with session.post(
                    f"{self.url}/v1/chat/completions",
                    json=request | {"stream": True, "min_tokens": self.max_tokens},
                ) as answer:
                    if answer.status != 200:
                        self.failed.append(f"{answer.status}: {(await answer.text())[:200]}")
                        await asyncio.sleep(0.2)
                        continue
                    self.versions.add(answer.headers.get("x-adapter-version", ""))
                    last, ended = None, False
                    async for line in answer.content:
                        if not line.startswith(b"data: {"):
                            ended = ended or line.startswith(b"data: [DONE]")
                            continue
                        now = time.perf_counter()
                        if last is not None:
                            self.gaps.append((now, now - last))
                        last = now
                    if not ended:
                        self.failed.append("a stream ended early")
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failed.append(repr(error))
                await asyncio.sleep(0.2)
            self.answers += 1

    def between(self, start: float, end: float) -> list[float]:
        """Milliseconds of every gap that ended in that time."""
        return [gap * 1000 for when, gap in list(self.gaps) if start <= when <= end]


def probes(url: str, base_model: str, directory: Path) -> list[dict[str, Any]]:
    """Up to two answers that end by themselves, are the same alone and in a batch, and are not the
    base model's."""
    name = f"record-{adapter_digest(directory)[:12]}"
    load_adapter(url, name, directory.resolve())
    found: list[dict[str, Any]] = []
    try:
        for prompt in PROMPTS:
            [answer] = generate(url, name, [prompt], max_tokens=32, concurrency=1)
            if answer.finish_reason == "stop" and answer.text:
                [other] = generate(
                    url, base_model, [prompt], max_tokens=max(1, answer.tokens), concurrency=1
                )
                if (
                    answer.text != other.text
                    and answer.text
                    == generate(url, name, [prompt, *PROMPTS], max_tokens=32)[0].text
                ):
                    found.append({"messages": prompt, "output": answer.text})
            if len(found) == 2:
                break
    finally:
        unload_adapter(url, name)
    return found


def publish_versions(
    store: ObjectStore,
    url: str,
    config: ServingConfig,
    options: argparse.Namespace,
    directory: Path,
    signer: Signer,
) -> list[str]:
    """Publish the versions; their digests."""
    digests = []
    given = list(options.adapter)
    shape = base_model_directory(config.base_model) / "config.json"
    for seed in range(1, 10 * (options.versions + 1)):
        if len(digests) > options.versions or (options.adapter and not given):
            break
        rank = options.rank or config.engine.max_lora_rank
        adapter = (
            given.pop(0)
            if given
            else make_adapter(
                directory / f"a{seed}", config.base_model, shape, rank, seed, options.scale
            )
        )
        recorded = probes(url, config.base_model.name, adapter)
        if not recorded:
            print(
                f"adapter {seed}: no answer that ends, is stable and is not the base model's; the"
                " next one",
                flush=True,
            )
            continue
        digest = adapter_digest(adapter)
        manifest = json.loads((adapter / "train_manifest.json").read_text())
        source = {"commit": None, "pr": None, "actor": None}
        publish(
            store,
            ADAPTER,
            adapter,
            gate_report(ADAPTER, digest, recorded),
            manifest,
            source=source,
            signer=signer,
        )
        digests.append(digest)
    if len(digests) < 2:
        raise SystemExit("Too few adapters with probes: try another --scale.")
    return digests


def health(gateway: str) -> dict[str, Any]:
    """What the host says of the adapter; empty while it says nothing."""
    try:
        with urllib.request.urlopen(f"{gateway}/health", timeout=5) as answer:
            return dict(json.load(answer)["adapters"].get(ADAPTER, {}))
    except urllib.error.HTTPError as error:
        return dict(json.load(error)["adapters"].get(ADAPTER, {}))
    except (OSError, KeyError):
        return {}


def change(
    store: ObjectStore, digest: str, gateway: str, engine: str, releases: Path, limit_s: float
) -> dict[str, float]:
    """Name a version in the channel and note when each step was seen, in `time.perf_counter`
    seconds."""
    directory, name = releases / ADAPTER / f"sha256-{digest}", f"{ADAPTER}-{digest[:12]}"
    seen = {"asked": time.perf_counter()}
    change_channel(store, ADAPTER, lambda channel: promote(channel, digest), reason="benchmark")
    seen["changed"] = time.perf_counter()
    while "ready" not in seen:
        if "known" not in seen and health(gateway).get("stable") == digest:
            seen["known"] = time.perf_counter()
        if "fetched" not in seen and directory.is_dir():
            seen["fetched"] = time.perf_counter()
        if "fetched" in seen and "loaded" not in seen and name in served_models(engine):
            seen["loaded"] = time.perf_counter()
        if (
            "loaded" in seen
            and (report := health(gateway)).get("stable") == digest
            and report.get("stable_ready")
        ):
            seen["ready"] = time.perf_counter()
        if time.perf_counter() - seen["asked"] > limit_s:
            raise SystemExit(f"{digest[:12]} was not ready within {limit_s} s: {health(gateway)}")
        time.sleep(0.005)
    return seen


def spread(gaps: list[float]) -> dict[str, float]:
    """Median, 99th percentile and largest gap in milliseconds."""
    gaps = sorted(gaps) or [0.0]
    return {
        "chunks": len(gaps), "median": round(statistics.median(gaps), 1),
        "p99": round(gaps[int(len(gaps) * 0.99)], 1),
        "largest": round(gaps[-1], 1),
    }  # fmt: skip


def host_config(config_path: Path, directory: Path) -> tuple[Path, str]:
    """The serving configuration with this benchmark's bucket, key, port and state directory; and
    the gateway's URL."""
    values = yaml.safe_load(config_path.read_text())
    values["adapters"] = [ADAPTER]
    values["store"] = {
        "bucket": BUCKET,
        "signed_by": {"public_key": str(directory / "signing.pub.pem")},
    }
    values["gateway"] |= {
        "host": "127.0.0.1",
        "port": free_port(),
        "api_keys": None,
        "drain_delay_s": 0,
        "drain_s": 5,
    }
    values["state_directory"] = str(directory / "state")
    path = directory / "serving.yaml"
    path.write_text(yaml.safe_dump(values))
    return path, f"http://127.0.0.1:{values['gateway']['port']}"


@contextlib.contextmanager
def running_host(path: Path, gateway: str, engine: str, log: Path) -> Any:
    with log.open("ab") as out:
        command = [
            sys.executable,
            str(ROOT / "scripts/serve.py"),
            "--config",
            str(path),
            "--engine-url",
            engine,
        ]
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while not health(gateway):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the host did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def measure(
    options: argparse.Namespace,
    config: ServingConfig,
    engine: str,
    directory: Path,
    document: dict[str, Any],
) -> None:
    log = (options.output or directory / "x").with_name("hot_load_host.log")
    with s3_server(directory / "s3.log") as port:
        os.environ |= {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}", **AWS}
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        store = open_store(BUCKET)
        make_key_pair(directory / "signing.pem", directory / "signing.pub.pem")
        started = time.perf_counter()
        first, *others = publish_versions(
            store, engine, config, options, directory, Signer(directory / "signing.pem")
        )
        print(
            f"{1 + len(others)} versions published in {time.perf_counter() - started:.1f} s",
            flush=True,
        )
        path, gateway = host_config(options.serving, directory)
        releases = directory / "state" / "releases"
        with (
            running_host(path, gateway, engine, log),
            Streams(gateway, options.streams, options.stream_tokens) as streams,
        ):
            streams_begin = change(store, first, gateway, engine, releases, options.limit)["ready"]
            streams.failed.clear()  # until here nothing was served
            while not streams.gaps and time.perf_counter() - streams_begin < options.limit:
                time.sleep(0.05)
            time.sleep(options.quiet / 2)
            begin = time.perf_counter()
            time.sleep(options.quiet)
            document["quiet"] = spread(streams.between(begin, time.perf_counter()))
            save(options.output, document)
            for digest in others:
                seen = change(store, digest, gateway, engine, releases, options.limit)
                time.sleep(options.quiet / 2)
                steps = {
                    "total_s": seen["ready"] - seen["asked"],
                    "seen_s": seen.get("known", seen["asked"]) - seen["asked"],
                    "fetch_and_verify_s": seen["fetched"] - seen.get("known", seen["asked"]),
                    "load_s": seen["loaded"] - seen["fetched"],
                    "effect_check_s": seen["ready"] - seen["loaded"],
                }
                found: dict[str, Any] = {name: round(value, 3) for name, value in steps.items()}
                # A stall shows in the gap that ends after it.
                found["gaps_fetch"] = spread(streams.between(seen["asked"], seen["fetched"]))
                found["gaps_load"] = spread(streams.between(seen["fetched"], seen["loaded"] + 0.5))
                found["gaps_all"] = spread(streams.between(seen["asked"], seen["ready"] + 0.5))
                document["changes"].append(found)
                save(options.output, document)
            document["streams"] = {
                "at_once": options.streams, "answers": streams.answers,
                "failed": len(streams.failed), "why": streams.failed[:3],
                "versions_seen": len(streams.versions),
            }  # fmt: skip
    save(options.output, document)


def save(path: Path | None, document: dict[str, Any]) -> None:
    """Written after each change, so that an interrupted run leaves what it found."""
    if path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--serving",
        type=Path,
        default=ROOT / "configs/serving.demo.yaml",
        help="serving configuration",
    )
    parser.add_argument(
        "--engine-url", help="a running vLLM (root, without /v1) instead of one that is started"
    )
    parser.add_argument(
        "--versions",
        type=int,
        default=3,
        help="how often the channel changes, beside the first time",
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        action="append",
        default=[],
        help="adapter directory; repeatable; default: random ones",
    )
    parser.add_argument(
        "--rank", type=int, help="of random adapters; default: the largest that is served"
    )
    parser.add_argument(
        "--scale", type=float, default=0.01, help="of the B matrices of random adapters"
    )
    parser.add_argument("--streams", type=int, default=4, help="at once, all the time")
    parser.add_argument("--stream-tokens", type=int, default=128, help="tokens of each stream")
    parser.add_argument(
        "--quiet",
        type=float,
        default=4.0,
        help="seconds of streaming without a change, to compare with",
    )
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds that a version may take"
    )
    parser.add_argument(
        "--output", type=Path, help="JSON file for the figures; the host's log goes beside it"
    )
    options = parser.parse_args()
    config = load_serving_config(options.serving)
    document: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(), "device": device_name(),
        "engine": engine_version(), "changes": [],
    }  # fmt: skip
    with (
        tempfile.TemporaryDirectory(prefix="hot-load-benchmark-") as scratch,
        contextlib.ExitStack() as stack,
    ):
        url = options.engine_url
        if url is None:
            engine = stack.enter_context(
                start_engine(config, port=free_port(), log=Path(scratch) / "engine.log")
            )
            while engine.starting():
                time.sleep(0.3)
            url = engine.url
        measure(options, config, url, Path(scratch), document)
    print(f"{document['device']}, {document['engine']}, {options.streams} streams")
    head = ("total", "seen", "fetch", "load", "check")
    print(
        f"{'seconds':>10} {' '.join(f'{name:>7}' for name in head)} | largest gap, ms: {'fetch':>7}"
        f" {'load':>7} {'all':>7}"
    )
    for number, line in enumerate(document["changes"], 1):
        steps = [
            line[name]
            for name in ("total_s", "seen_s", "fetch_and_verify_s", "load_s", "effect_check_s")
        ]
        gaps = [line[name]["largest"] for name in ("gaps_fetch", "gaps_load", "gaps_all")]
        print(
            f"{number:>10} {' '.join(f'{step:7.2f}' for step in steps)} | {'':16}"
            f" {' '.join(f'{gap:7.1f}' for gap in gaps)}"
        )
    quiet = document["quiet"]
    print(
        f"without a change: median gap {quiet['median']} ms, p99 {quiet['p99']} ms, largest"
        f" {quiet['largest']} ms"
    )
    print(f"streams: {document['streams']}")


if __name__ == "__main__":
    main()
