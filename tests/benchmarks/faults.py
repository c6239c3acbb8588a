"""Faults under constant load through the gateways: what fails, whether a wrong version ever
answers, how long it takes to mend.

Suggested usage:

    # prints the table of docs/reliability.md, some ten minutes
    python tests/benchmarks/faults.py
    python tests/benchmarks/faults.py --only swaps    # one of them
    # on a real vLLM: two engines of one host, on two CPU cores some twenty minutes
    python tests/benchmarks/faults.py --real

Two hosts with two stub engines each, a real S3 server, real gateways and reconcilers; every answer
says which adapter gave it. Load: `--rate` requests a second over both hosts, every second one a
stream, which fails if it ends without `[DONE]`. `wrong` counts answers whose text is not that of
the version that the gateway names, or of a version that was never to be served; `converged` is the
time from the end of the fault until every host is as the channel says.

With `--nginx` the requests go through configs/hosts/nginx.conf, which has both hosts behind it
(Debian: apt-get install nginx). With `--real` the adapters are random, and what each of them says
greedily is recorded from the engine before the load begins.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import boto3
import psutil

sys.path[:0] = [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parents[1])]

from rich.console import Console  # noqa: E402

from adapterops.deploy.deploy import deploy, rollback  # noqa: E402
from adapterops.engine.client import greedy_answer, load_adapter, unload_adapter  # noqa: E402
from adapterops.engine.generate import generate  # noqa: E402
from adapterops.schemas import ROOT  # noqa: E402
from adapterops.specs.base_model import find_base_model  # noqa: E402
from adapterops.store.channels import (  # noqa: E402
    abort_canary,
    change_channel,
    promote,
    read_channel,
    start_canary,
)
from fleet import BASE, BUCKET, NAME, Fleet, health, running, wait_for  # noqa: E402
from processes import answers, free_port  # noqa: E402
from random_adapters import RandomAdapters  # noqa: E402
from rollouts import UNJUDGED  # noqa: E402

QUESTION, TOKENS = [{"role": "user", "content": "Write one word."}], 16


class Load:
    """Requests at a constant rate, whatever became of the ones before."""

    def __init__(self, doors, rate, texts):
        self.doors, self.rate, self.texts = doors, rate, texts
        self.statuses, self.wrong, self.slowest = collections.Counter(), 0, 0.0
        self.examples = collections.Counter()
        self._tasks, self._running = set(), True

    async def one(self, client, number):
        body = {
            "model": NAME,
            "messages": QUESTION,
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": number % 2 == 1,
        }
        started = time.perf_counter()
        try:
            door = self.doors[number % len(self.doors)]
            async with client.post(f"{door}/v1/chat/completions", json=body) as answer:
                status = answer.status
                if status == 200:
                    version = answer.headers["x-adapter-version"]
                    said = (
                        streamed(await answer.text())
                        if body["stream"]
                        else answered(await answer.json())
                    )
                    if said is None:
                        status = "stream cut"
                    elif (
                        self.texts.get(version, "").strip() != said.strip()
                    ):  # the stub's words end in a space when they come singly
                        self.wrong += 1
                        self.examples[f"{version} said {said!r}"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        self.statuses[status] += 1
        self.slowest = max(self.slowest, time.perf_counter() - started)

    async def run(self):
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)
        ) as client:
            begin, number = time.perf_counter(), 0
            while self._running:
                task = asyncio.create_task(self.one(client, number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                number += 1
                await asyncio.sleep(max(0, begin + number / self.rate - time.perf_counter()))
            await asyncio.gather(*self._tasks)

    def stop(self):
        self._running = False


def answered(document):
    return document["choices"][0]["message"]["content"]


def streamed(events):
    """What a stream of server-sent events said; None if it was cut."""
    lines = [
        line.removeprefix("data: ") for line in events.splitlines() if line.startswith("data: ")
    ]
    if lines[-1:] != ["[DONE]"]:
        return None
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


def converged(fleet):
    channel = read_channel(fleet.store, NAME)[0]
    for gateway in fleet.gateways:
        found = health(gateway)
        report = found.get("adapters", {}).get(NAME, {})
        if (
            report.get("generation") != channel.generation
            or not report.get("stable_ready")
            or report.get("errors")
        ):
            return False
        if not all(engine["up"] for engine in found["engines"]):
            return False
    return True


class Faults:
    """Each does something to the fleet and returns when the fault is over.

    Args:
        fleet: the hosts.
        digests: of releases: what is stable, another one, three canaries, and those that nothing
            has loaded yet.
    """

    def __init__(self, fleet, digests):
        self.fleet, self.stable, self.other, self.trials, self.fresh = (
            fleet,
            *digests[:2],
            digests[2:5],
            digests[5:],
        )

    def swap(self, digest):
        channel = change_channel(
            self.fleet.store, NAME, lambda channel: promote(channel, digest), reason="swap"
        )
        deadline = time.monotonic() + 20
        while any(
            health(gateway)["adapters"][NAME]["generation"] != channel.generation
            for gateway in self.fleet.gateways
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def swaps(self):
        """adapter swapped 100 times"""
        for number in range(100):
            self.swap((self.stable, self.other)[number % 2])

    def canaries(self):
        """canary 20 times, begun and aborted"""
        for number in range(20):
            step = functools.partial(
                start_canary, digest=self.trials[number % len(self.trials)], weight=50
            )
            change_channel(self.fleet.store, NAME, step, reason="canary")
            time.sleep(0.7)
            change_channel(self.fleet.store, NAME, abort_canary, reason="aborted")

    def rollback(self):
        """deployment and rollback"""
        deploy(
            self.fleet.store,
            NAME,
            self.other,
            self.fleet.gateways,
            UNJUDGED,
            Console(quiet=True),
            timeout_s=30,
        )
        rollback(self.fleet.store, NAME, self.fleet.gateways, Console(quiet=True))

    def engine_killed(self):
        """engine killed, started again after 3 s (vLLM: by the host)"""
        if self.fleet.real:
            for process in self.vllm():
                process.kill()
            wait_for(lambda: not health(self.fleet.gateways[0])["engines"][0]["up"])
            return
        self.fleet.engines[0].kill()
        time.sleep(3)
        self.fleet.engines[0].start()

    def engine_hangs(self):
        """engine hangs without closing (SIGSTOP) for 10 s"""
        self.freeze(self.vllm()[0].pid if self.fleet.real else self.fleet.engines[0].child.pid, 10)

    def gateway_killed(self):
        """gateway and reconciler killed, started again at once"""
        self.fleet.hosts[0].kill()
        self.fleet.hosts[0].start()

    def reconciler_killed(self):
        """reconciler killed while it loads a new version, started again at once"""
        digest = self.fresh.pop()
        self.promote(digest, "deployed")
        wait_for(lambda: health(self.fleet.gateways[0])["adapters"][NAME]["stable"] == digest)
        self.gateway_killed()

    def store_down(self):
        """object store silent for 3 minutes"""
        self.freeze(self.fleet.s3.child.pid, 180)

    def corrupted_download(self):
        """a new version whose weights arrive with a flipped bit for 10 s"""
        digest = self.fresh.pop()
        client, key = (
            boto3.client("s3"),
            f"adapters/{NAME}/sha256-{digest}/adapter_model.safetensors",
        )
        good = client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        client.put_object(Bucket=BUCKET, Key=key, Body=good[:-1] + bytes([good[-1] ^ 1]))
        self.promote(digest, "deployed, and damaged on the way")
        time.sleep(10)
        client.put_object(Bucket=BUCKET, Key=key, Body=good)
        assert not list(self.fleet.directory.glob(f"host*/releases/{NAME}/sha256-{digest}")), (
            "damaged bytes were kept"
        )

    def corrupted(self):
        """local copy changed, then the engine restarted"""
        for weights in self.fleet.directory.glob(
            f"host0/releases/{NAME}/sha256-{self.stable}/adapter_model.safetensors"
        ):
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        self.engine_killed()

    def deleted(self):
        """adapter directories deleted while engines serve from them"""
        releases = self.fleet.directory / "host0" / "releases"
        shutil.rmtree(releases)
        wait_for(
            lambda: (
                releases / NAME / f"sha256-{self.stable}" / "adapter_model.safetensors"
            ).is_file(),
            120,
        )

    def deleted_and_restarted(self):
        """adapter directories deleted, and the engine killed"""
        shutil.rmtree(self.fleet.directory / "host0" / "releases")
        self.engine_killed()

    def disk_full(self):
        """disk of a host full for 10 s while a new version is deployed"""
        releases = self.fleet.directory / "host0" / "releases"
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", releases], check=True)
        try:
            with contextlib.suppress(OSError), (releases / "filler").open("wb") as filler:
                filler.write(bytes(1 << 17))
            self.promote(self.fresh.pop(), "deployed on a full disk")
            time.sleep(10)
            message = "; ".join(health(self.fleet.gateways[0])["adapters"][NAME]["errors"])
            assert "No space left on device" in message, message
        finally:
            subprocess.run(["umount", releases], check=True)

    def promote(self, digest, reason):
        change_channel(
            self.fleet.store, NAME, lambda channel: promote(channel, digest), reason=reason
        )

    def freeze(self, pid, seconds):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    def vllm(self):
        """The server of the first real engine, and the processes below it."""
        port = self.fleet.engine_urls[0].rpartition(":")[2]
        for process in psutil.Process(self.fleet.hosts[0].child.pid).children(recursive=True):
            command = process.cmdline()
            if (
                command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
                and command[command.index("--port") + 1] == port
            ):
                return [process, *process.children(recursive=True)]
        raise SystemExit("the host has no first engine")


NAMES = [
    "swaps",
    "canaries",
    "rollback",
    "store_down",
    "corrupted_download",
    "engine_killed",
    "engine_hangs",
    "gateway_killed",
    "reconciler_killed",
    "corrupted",
    "deleted",
    "deleted_and_restarted",
    "disk_full",
]


async def measure(fleet: Fleet, fault, load: Load):
    running_load = asyncio.create_task(load.run())
    await asyncio.sleep(1)
    await asyncio.to_thread(fault)
    over = time.perf_counter()
    while not await asyncio.to_thread(converged, fleet):
        if time.perf_counter() - over > 300:
            raise SystemExit(
                f"{fault.__name__}: not converged after 300 s:"
                f" {[health(gateway) for gateway in fleet.gateways]}"
            )
        await asyncio.sleep(0.05)
    took = time.perf_counter() - over
    await asyncio.sleep(1)
    load.stop()
    await running_load
    return took


def stub_releases(fleet):
    """Versions, and what each of them says by its first digits."""
    releases = [fleet.release(float(value)) for value in range(5)] + [
        fleet.release(100.0 + value, load_s=1) for value in range(3)
    ]
    return [digest for digest, _ in releases], {digest[:12]: text for digest, text in releases}


def real_releases(fleet):
    """As `stub_releases`; what each says is asked of the engine itself, alone.

    Of the random adapters those whose answers were decided by the widest margins, as an evaluation
    chooses probes: the engine under load puts other requests into the batch, which turns near-ties.
    """
    adapters, engine, found = (
        RandomAdapters(find_base_model(BASE, "faults.py")),
        fleet.engine_urls[0],
        {},
    )
    said_by_base = greedy_answer(engine, BASE, QUESTION, TOKENS).text
    for seed in range(1, 101):
        directory, name = adapters.make(fleet.directory / f"adapter-{seed}", seed), f"record-{seed}"
        load_adapter(engine, name, directory)
        text, [whole] = (
            greedy_answer(engine, name, QUESTION, TOKENS).text,
            generate(engine, name, [QUESTION], max_tokens=64, margins=True),
        )
        unload_adapter(engine, name)
        if (
            whole.finish_reason == "stop"
            and text != said_by_base
            and whole.margin > found.get(text, (0.0,))[0]
        ):
            found[text] = (whole.margin, whole.text, directory)
    widest = sorted(found.items(), key=lambda item: -item[1][0])[:8]
    if len(widest) < 8:
        raise SystemExit("too few random adapters say something of their own")
    published = [
        (fleet.publish(directory, [{"messages": QUESTION, "output": whole}]), text)
        for text, (_, whole, directory) in widest
    ]
    return [digest for digest, _ in published], {digest[:12]: text for digest, text in published}


@contextlib.contextmanager
def balancer(fleet, directory):
    """The shipped nginx configuration in front of the fleet; yields its root."""
    port, text = free_port(), (ROOT / "configs" / "hosts" / "nginx.conf").read_text()
    hosts = "".join(
        f"    server {gateway.removeprefix('http://')} max_fails=1 fail_timeout=2s;\n"
        for gateway in fleet.gateways
    )
    text = re.sub(r"(    server 10\.0\.0\..*\n)+", hosts, text).replace(
        "listen 8443", f"listen 127.0.0.1:{port}"
    )
    (directory / "nginx.conf").write_text(
        text.replace("/run/nginx.pid", str(directory / "nginx.pid"))
    )
    command = [
        "nginx",
        "-e",
        str(directory / "nginx.log"),
        "-c",
        str(directory / "nginx.conf"),
        "-g",
        "daemon off;",
    ]
    process = subprocess.Popen(command)
    try:
        wait_for(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=NAMES, action="append", help="just this one; repeatable")
    parser.add_argument("--rate", type=float, help="requests a second; 50, with --real 2")
    parser.add_argument("--real", action="store_true", help="on vLLM instead of stub engines")
    parser.add_argument("--nginx", action="store_true", help="through a load balancer")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="faults-"))
    changes = {"gateway__read_timeout_s": 60 if options.real else 5, "gateway__access_log": False}
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(
            running(
                directory, hosts=1 if options.real else 2, engines=2, real=options.real, **changes
            )
        )
        doors = (
            [stack.enter_context(balancer(fleet, directory))] if options.nginx else fleet.gateways
        )
        digests, texts = (real_releases if options.real else stub_releases)(fleet)
        faults = Faults(fleet, digests)
        for digest in (faults.other, faults.stable):
            deploy(
                fleet.store,
                NAME,
                digest,
                fleet.gateways,
                UNJUDGED,
                Console(quiet=True),
                timeout_s=300,
            )
        print(
            "| fault | requests | failed | of which | wrong version | slowest answer | converged"
            " after |"
        )
        print("|---|---|---|---|---|---|---|", flush=True)
        for name in options.only or NAMES:
            fault, load = (
                getattr(faults, name),
                Load(doors, options.rate or (2 if options.real else 50), texts),
            )
            took = asyncio.run(measure(fleet, fault, load))
            failed = {
                str(status): count for status, count in load.statuses.items() if status != 200
            }
            kinds = ", ".join(f"{count} × {status}" for status, count in failed.items()) or "-"
            cells = [
                fault.__doc__,
                load.statuses.total(),
                sum(failed.values()),
                kinds,
                load.wrong,
                f"{load.slowest:.1f} s",
                f"{took:.1f} s",
            ]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
            for example, count in load.examples.most_common(3):
                print(f"  wrong: {count} × {example}, expected one of {texts}", flush=True)
            faults.promote(faults.stable, "as before")
            while not converged(fleet):
                time.sleep(0.1)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
