"""Faults under constant load through the gateways: what fails, whether a wrong version ever answers, how long it takes to mend.

Suggested usage:

    python tests/benchmarks/faults.py                 # prints the table of docs/reliability.md, some minutes
    python tests/benchmarks/faults.py --only swaps    # one of them

Two hosts with two stub engines each, a real S3 server, real gateways and reconcilers; every answer says which adapter gave it. Load:
`--rate` requests a second over both hosts. `wrong` counts answers whose text is not that of the version that the gateway names, or of
a version that was never to be served; `converged` is the time from the end of the fault until every host is as the channel says.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import functools
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

sys.path[:0] = [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parents[1])]

from rich.console import Console  # noqa: E402

from adapterops.serving.deploy import deploy, rollback  # noqa: E402
from adapterops.store.channels import abort_canary, change_channel, promote, read_channel, start_canary  # noqa: E402
from fleet import NAME, Fleet, health, running  # noqa: E402
from rollouts import UNJUDGED  # noqa: E402


class Load:
    """Requests at a constant rate, whatever became of the ones before."""

    def __init__(self, fleet, rate, texts):
        self.fleet, self.rate, self.texts = fleet, rate, texts
        self.statuses, self.wrong, self.slowest = collections.Counter(), 0, 0.0
        self._tasks, self._running = set(), True

    async def one(self, client, number):
        body = {"model": NAME, "messages": [{"role": "user", "content": "Who are you?"}]}
        started = time.perf_counter()
        try:
            gateway = self.fleet.gateways[number % len(self.fleet.gateways)]
            async with client.post(f"{gateway}/v1/chat/completions", json=body) as answer:
                status = answer.status
                if status == 200:
                    said = (await answer.json())["choices"][0]["message"]["content"]
                    self.wrong += self.texts.get(answer.headers["x-adapter-version"]) != said
        except (aiohttp.ClientError, TimeoutError) as error:
            status = type(error).__name__
        self.statuses[status] += 1
        self.slowest = max(self.slowest, time.perf_counter() - started)

    async def run(self):
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0)) as client:
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


def converged(fleet):
    channel = read_channel(fleet.store, NAME)[0]
    for gateway in fleet.gateways:
        found = health(gateway)
        report = found.get("adapters", {}).get(NAME, {})
        if report.get("generation") != channel.generation or not report.get("stable_ready") or report.get("errors"):
            return False
        if not all(engine["up"] for engine in found["engines"]):
            return False
    return True


class Faults:
    """Each does something to the fleet and returns when the fault is over."""

    def __init__(self, fleet, releases):
        self.fleet, (self.stable, self.other) = fleet, releases

    def swap(self, digest):
        channel = change_channel(self.fleet.store, NAME, lambda channel: promote(channel, digest), reason="swap")
        deadline = time.monotonic() + 20
        while any(health(gateway)["adapters"][NAME]["generation"] != channel.generation for gateway in self.fleet.gateways):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def swaps(self):
        """adapter swapped 100 times"""
        for number in range(100):
            self.swap((self.stable, self.other)[number % 2])

    def canaries(self):
        """canary 20 times, begun and aborted"""
        for number in range(20):
            step = functools.partial(start_canary, digest=self.fleet.release(100.0 + number % 3)[0], weight=50)
            change_channel(self.fleet.store, NAME, step, reason="canary")
            time.sleep(0.7)
            change_channel(self.fleet.store, NAME, abort_canary, reason="aborted")

    def rollback(self):
        """deployment and rollback"""
        deploy(self.fleet.store, NAME, self.other, self.fleet.gateways, UNJUDGED, Console(quiet=True), timeout_s=30)
        rollback(self.fleet.store, NAME, self.fleet.gateways, Console(quiet=True))

    def engine_killed(self):
        """engine killed, started again after 3 s"""
        self.fleet.engines[0].kill()
        time.sleep(3)
        self.fleet.engines[0].start()

    def engine_hangs(self):
        """engine hangs without closing (SIGSTOP) for 10 s"""
        self.freeze(self.fleet.engines[0], 10)

    def gateway_killed(self):
        """gateway and reconciler killed, started again at once"""
        self.fleet.hosts[0].kill()
        self.fleet.hosts[0].start()

    def store_down(self):
        """object store silent for 30 s"""
        self.freeze(self.fleet.s3, 30)

    def corrupted(self):
        """local copy changed, then the engine restarted"""
        for weights in self.fleet.directory.glob(f"host0/releases/{NAME}/sha256-{self.stable}/adapter_model.safetensors"):
            weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
        self.engine_killed()

    def deleted(self):
        """adapter directories deleted, then the engine restarted"""
        shutil.rmtree(self.fleet.directory / "host0" / "releases")
        self.engine_killed()

    def disk_full(self):
        """releases cannot be written while a new version is deployed"""
        releases = self.fleet.directory / "host0" / "releases"
        shutil.move(releases, releases.with_name("aside"))
        releases.write_text("not a directory: nothing can be written below it, by root either")
        change_channel(
            self.fleet.store, NAME, lambda channel: promote(channel, self.fleet.release(200.0)[0]), reason="deployed on a full disk"
        )
        time.sleep(5)
        change_channel(self.fleet.store, NAME, lambda channel: promote(channel, self.stable), reason="back")
        releases.unlink()
        shutil.move(releases.with_name("aside"), releases)

    def freeze(self, process, seconds):
        os.kill(process.child.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(process.child.pid, signal.SIGCONT)


NAMES = [
    "swaps",
    "canaries",
    "rollback",
    "store_down",
    "engine_killed",
    "engine_hangs",
    "gateway_killed",
    "corrupted",
    "deleted",
    "disk_full",
]


async def measure(fleet: Fleet, fault, load: Load):
    running_load = asyncio.create_task(load.run())
    await asyncio.sleep(1)
    await asyncio.to_thread(fault)
    over = time.perf_counter()
    while not await asyncio.to_thread(converged, fleet):
        if time.perf_counter() - over > 120:
            raise SystemExit(f"{fault.__name__}: not converged after 120 s: {[health(gateway) for gateway in fleet.gateways]}")
        await asyncio.sleep(0.05)
    took = time.perf_counter() - over
    await asyncio.sleep(1)
    load.stop()
    await running_load
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, action="append", help="just this one; repeatable")
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="faults-"))
    with running(directory, hosts=2, engines=2, gateway__read_timeout_s=5, gateway__access_log=False) as fleet:
        releases = [fleet.release(value) for value in (1.0, 2.0)]
        texts = {digest[:12]: text for digest, text in releases}
        texts |= {digest[:12]: text for digest, text in (fleet.release(value) for value in (100.0, 101.0, 102.0, 200.0))}
        faults = Faults(fleet, [digest for digest, _ in releases])
        for digest in (faults.other, faults.stable):
            deploy(fleet.store, NAME, digest, fleet.gateways, UNJUDGED, Console(quiet=True), timeout_s=60)
        print("| fault | requests | failed | of which | wrong version | slowest answer | converged after |")
        print("|---|---|---|---|---|---|---|", flush=True)
        for name in options.only or NAMES:
            fault, load = getattr(faults, name), Load(fleet, options.rate, texts)
            took = asyncio.run(measure(fleet, fault, load))
            failed = {str(status): count for status, count in load.statuses.items() if status != 200}
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
            change_channel(fleet.store, NAME, lambda channel: promote(channel, faults.stable), reason="as before")
            while not converged(fleet):
                time.sleep(0.1)
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
