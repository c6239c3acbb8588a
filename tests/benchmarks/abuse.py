"""What honest clients notice of a hostile one: one attack after another on a real gateway, while
clients with keys of their own ask on.

Suggested usage:

    # stub engines: the gateway alone, some eight minutes
    python tests/benchmarks/abuse.py
    # vLLM on the CPU, which the host starts itself
    python tests/benchmarks/abuse.py --real
    python tests/benchmarks/abuse.py --only bomb --only half_heads --seconds 5

The host runs as in production: a process of its own, uvloop, keys, an S3 server, and 1,024 file
descriptors, a common limit. Honest clients ask the base model for four tokens, each from an address
of its own, again as soon as they have an answer and thought about it for `--think` seconds. An
attacker is one or two processes at another address; what needs a key has one like everybody else's.
He goes on for `--seconds`, is killed, and the honest clients are watched for as long again.

Of each phase the table has the median and the 99th percentile of the times of honest answers, in
ms, and how many questions were not answered with 200, of how many. A question that is not answered
within 30 s failed. `Cores` are those that the gateway, which has one at most, and the attacker took
meanwhile: on a small machine the latter are what honest clients miss. The last column is taken 5 s
after the attacker left: requests in the engine that are not the honest clients' (vLLM alone tells),
and the CPU time of engine processes per second.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

sys.path[:0] = [str(Path(__file__).parents[2] / "scripts"), str(Path(__file__).parents[1])]

from adapterops.schemas import ROOT  # noqa: E402
from fleet import BASE, running  # noqa: E402

DESCRIPTORS, PATIENCE_S, ATTACKER = 1024, 30, "127.0.0.66"
IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; socket has it from Python 3.12 on
WRONG = "authorization: Bearer qlg-wrong"
MESSAGES = [{"role": "user", "content": "Write one word."}]
QUESTION = {"model": BASE, "messages": MESSAGES, "max_tokens": 4, "temperature": 0}


# Attacks: each is a coroutine that goes on until its process is killed. `Target` says where to.


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    key: str

    async def socket(self, receive_buffer=None):
        plain = socket.socket()
        plain.setblocking(False)
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        # Else ports of closed connections are missing for a minute, which bounds a flood.
        plain.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        plain.bind((ATTACKER, 0))
        await asyncio.get_running_loop().sock_connect(plain, (self.host, self.port))
        return plain

    async def connect(self, sent=b"", **options):
        reader, writer = await asyncio.open_connection(sock=await self.socket(), **options)
        writer.write(sent)
        await writer.drain()
        return reader, writer

    def head(self, *headers, length, path="/v1/chat/completions", key=True):
        lines = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {length}", *headers]
        return "\r\n".join(
            [*lines, *([f"authorization: Bearer {self.key}"] if key else []), "", ""]
        ).encode()

    def request(self, body):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.head("content-type: application/json", length=len(raw)) + raw


async def many(count, one):
    """`count` at once, each begun again when it ends."""

    async def again():
        while True:
            with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
                await one()
            await asyncio.sleep(0.02)

    await asyncio.gather(*(again() for _ in range(count)))


async def asking(target, count, body, **extra):
    """The same question from `count` connections."""
    sent = target.request(body if isinstance(body, bytes) else {**QUESTION, **body} | extra)

    async def one():
        reader, writer = await target.connect(sent)
        await reader.read(1 << 16)
        writer.close()

    await many(count, one)


async def bomb(target):
    """compressed bomb, one anonymous connection"""
    squeeze = zlib.compressobj(wbits=31)
    first = squeeze.compress(bytes(1 << 26)) + squeeze.flush(zlib.Z_FULL_FLUSH)
    more = squeeze.compress(bytes(1 << 26)) + squeeze.flush(
        zlib.Z_FULL_FLUSH
    )  # begins anew: can be sent again and again

    async def one():
        reader, writer = await target.connect(
            target.head("content-encoding: gzip", length=10**9, key=False) + first
        )
        while not reader.at_eof():
            writer.write(more)
            await writer.drain()

    await many(1, one)


async def half_heads(target):
    """half heads, as many as can be opened, anonymous"""

    async def one():
        reader, _ = await target.connect(b"POST /v1/chat/completions HTTP/1.1\r\nx-", limit=64)
        await reader.read()

    await many(950, one)


async def idle(target):
    """idle connections after one request, as many as can be opened, anonymous"""

    async def one():
        reader, _ = await target.connect(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", limit=1 << 12)
        while await reader.read(1 << 12):
            pass

    await many(950, one)


async def unwanted_bodies(target):
    """bodies that trickle in behind a 401, 400 anonymous connections"""
    await trickling(target, target.head(length=10**6, key=False))


async def trickled_bodies(target):
    """bodies that trickle in, 400 connections of one key"""
    await trickling(target, target.head(length=10**6))


async def trickling(target, head):
    async def one():
        reader, writer = await target.connect(head, limit=1 << 12)
        while not reader.at_eof():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.5)

    await many(400, one)


async def malformed(target):
    """requests that are none, 50 anonymous connections"""

    async def one():
        reader, writer = await target.connect(b"GET /health HTTP/1.1\r\n\x00bad header\r\n\r\n")
        await reader.read()
        writer.close()

    await many(50, one)


async def refused_keys(target):
    """flood of wrong keys, 50 connections"""
    await pushing(target, target.head(WRONG, length=2, key=False) + b"{}")


async def refused_keys_anew(target):
    """flood of wrong keys, 50 at a time, each on a connection that does not wait for its answer"""
    sent = target.head(WRONG, length=2, key=False) + b"{}"

    async def again():
        while True:
            with contextlib.suppress(OSError):
                _, writer = await target.connect(sent, limit=1 << 12)
                writer.close()

    await asyncio.gather(*(again() for _ in range(50)))


async def refused_paths(target):
    """flood of paths that do not exist, 50 connections of one key"""
    await pushing(target, target.head(length=2, path="/v1/nowhere") + b"{}")


async def health_checks(target):
    """flood of health checks, 50 anonymous connections"""
    await pushing(target, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")


async def pushing(target, sent):
    """Again as soon as there is an answer."""

    async def one():
        reader, writer = await target.connect(sent, limit=1 << 12)
        while await reader.read(1 << 12):
            writer.write(sent)
            await writer.drain()

    await many(50, one)


async def many_answers(target):
    """`n: 16384`, one connection"""
    await asking(target, 1, {"n": 16384, "max_tokens": 64, "temperature": 1})


async def grammar(target):
    """grammar of 24 kB, two connections"""
    rules = " | ".join(f'"{number:04d}" root "{number:04d}"' for number in range(1000))
    await asking(
        target,
        2,
        {"structured_outputs": {"grammar": f"root ::= {rules}"[:24_000].rpartition(" | ")[0]}},
    )


async def regex(target):
    """regular expression of 24 kB, two connections"""
    await asking(target, 2, {"structured_outputs": {"regex": "(a?){200}[b-y]{1,500}" * 1142}})


async def json_schema(target):
    """JSON schema of 300 kB, two connections"""
    properties = {
        f"property{number}": {"type": "array", "items": {"enum": list(range(50))}}
        for number in range(1000)
    }
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    await asking(
        target,
        2,
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": schema},
            }
        },
    )


async def unread_streams(target):
    """streams that nobody reads, 300 connections of one key"""
    sent = target.request({**QUESTION, "stream": True, "max_tokens": 900, "ignore_eos": True})

    async def one():
        plain = await target.socket(receive_buffer=2048)
        await asyncio.get_running_loop().sock_sendall(plain, sent)
        await asyncio.sleep(3600)

    await many(300, one)


async def engine_errors(target):
    """a body that vLLM answers with 500 (`root ::= root`), 4 connections"""
    await asking(target, 4, {"structured_outputs": {"grammar": "root ::= root"}})


async def stop_lists(target):
    """100,000 stop strings, 4 connections"""
    await asking(
        target, 4, {"stop": [f"stop{number}" for number in range(100_000)], "max_tokens": 64}
    )


async def deep_json(target):
    """JSON of 4 MB and 900 levels, 4 connections"""
    deep = "[" * 900 + "]" * 900
    await asking(
        target,
        4,
        json.dumps({**QUESTION, "x": [0]}).replace("[0]", f"[{','.join([deep] * 2000)}]").encode(),
    )


ATTACKS = {
    attack.__name__: attack
    for attack in (
        bomb, half_heads, idle, unwanted_bodies, malformed, refused_keys, refused_keys_anew,
        health_checks, refused_paths, trickled_bodies, many_answers, grammar, regex, json_schema,
        unread_streams, engine_errors, stop_lists, deep_json,
    )
}  # fmt: skip
PROCESSES = {half_heads: 2, idle: 2}  # one has no more descriptors than the host


# Honest clients


@dataclass
class Phase:
    times: list[float] = field(default_factory=list)
    failed: int = 0

    def __str__(self):
        if not self.times and not self.failed:
            return "-"
        if not self.times:
            return f"none of {self.failed} answered"
        times = sorted(self.times)
        p50, p99 = times[len(times) // 2], times[min(len(times) - 1, int(len(times) * 0.99))]
        return f"{p50 * 1000:,.0f} / {p99 * 1000:,.0f}, {self.failed} of {len(times) + self.failed}"


class Honest:
    """Clients that ask on and on; what they see is noted in the phase in which they asked."""

    def __init__(self, gateway, keys, think_s):
        self.gateway, self.keys, self.think_s = gateway, keys, think_s
        self.phase, self.asking, self._tasks = Phase(), 0, []

    async def __aenter__(self):
        self._tasks = [
            asyncio.create_task(self._client(number, key)) for number, key in enumerate(self.keys)
        ]
        return self

    async def __aexit__(self, *_):
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _client(self, number, key):
        connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{30 + number}", 0))
        timeout, headers = (
            aiohttp.ClientTimeout(total=PATIENCE_S),
            {"authorization": f"Bearer {key}"},
        )
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as client:
            while True:
                await self._ask(client)
                await asyncio.sleep(self.think_s)

    async def _ask(self, client):
        phase, started = self.phase, time.perf_counter()
        self.asking += 1
        try:
            async with client.post(f"{self.gateway}/v1/chat/completions", json=QUESTION) as answer:
                await answer.read()
                good = answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            good = False
        finally:
            self.asking -= 1
        if good:
            phase.times.append(time.perf_counter() - started)
        else:
            phase.failed += 1

    async def watch(self, seconds):
        """A phase; it lasts until every client can have had an answer in it."""
        phase = self.phase = Phase()
        await asyncio.sleep(seconds)
        deadline = time.monotonic() + PATIENCE_S
        while len(phase.times) + phase.failed < len(self.keys) and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
        return phase


def engine_processes(fleet):
    if fleet.real:
        return psutil.Process(fleet.hosts[0].child.pid).children(recursive=True)
    return [psutil.Process(engine.child.pid) for engine in fleet.engines]


async def engine_cpu(fleet):
    """CPU seconds that the engine's processes take in a second."""

    def used():
        total = 0.0
        for process in engine_processes(fleet):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
        return total

    before = used()
    await asyncio.sleep(1)
    return used() - before


def cpu_of(children):
    """CPU seconds that these processes have taken so far, without what they started."""
    return sum(sum(psutil.Process(child.pid).cpu_times()[:2]) for child in children)


async def others_requests(fleet, honest):
    """Requests in vLLM that are not the honest clients'."""
    if not fleet.real:
        return "-"
    try:
        timeout = aiohttp.ClientTimeout(total=5)
        async with (
            aiohttp.ClientSession(timeout=timeout) as client,
            client.get(f"{fleet.engine_urls[0]}/metrics") as answer,
        ):
            lines = (await answer.text()).splitlines()
    except (aiohttp.ClientError, TimeoutError):
        return "no answer"
    counts = [
        line.rpartition(" ")[2]
        for line in lines
        if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
    ]
    return str(max(0, round(sum(map(float, counts))) - honest.asking))


async def measure(fleet, name, honest, key, seconds):
    """One row of the table."""
    attack = ATTACKS[name]
    host, _, port = fleet.gateways[0].removeprefix("http://").partition(":")
    before = await honest.watch(seconds)
    quiet = await engine_cpu(fleet)
    command = [sys.executable, __file__, "--attack", name, "--target", host, port, key]
    attackers = [
        subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(PROCESSES.get(attack, 1))
    ]
    try:
        for attacker in attackers:
            await asyncio.to_thread(attacker.stdout.readline)  # it is about to begin
        workers, started = ([fleet.hosts[0].child], attackers), time.monotonic()
        used = [cpu_of(children) for children in workers]
        during = await honest.watch(seconds)
        lasted = time.monotonic() - started
        cores = " / ".join(
            f"{(cpu_of(children) - before) / lasted:.2f}"
            for children, before in zip(workers, used, strict=True)
        )
    finally:
        for attacker in attackers:
            attacker.kill()
            attacker.wait()
    after = asyncio.create_task(honest.watch(seconds))
    await asyncio.sleep(5)
    left = (
        f"{await others_requests(fleet, honest)}; {await engine_cpu(fleet):.1f} s (before"
        f" {quiet:.1f})"
    )
    after = await after
    print(f"| {attack.__doc__} | {before} | {during} | {cores} | {after} | {left} |", flush=True)


def make_keys(path, names):
    """A file of keys as `api_key.py` makes its entries; returns the keys."""
    keys, entries = [], ["keys:"]
    for name in names:
        command = [sys.executable, str(ROOT / "scripts" / "api_key.py"), name]
        key, _, entry = subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.partition("\n\n")
        keys.append(key)
        entries.append(entry)
    path.write_text("\n".join(entries))
    return keys


async def measure_all(fleet, options, keys):
    async with Honest(fleet.gateways[0], keys[1:], options.think) as honest:
        print("| attack | before | during | cores | after | engine, 5 s after |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in options.only or ATTACKS:
            await measure(fleet, name, honest, keys[0], options.seconds)
            if fleet.hosts[0].child.poll() is not None:
                raise SystemExit(
                    f"{name} ended the host:\n{fleet.hosts[0].log.read_text()[-3000:]}"
                )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", choices=ATTACKS, action="append", help="just this attack; repeatable"
    )
    parser.add_argument("--real", action="store_true", help="on vLLM instead of a stub engine")
    parser.add_argument("--seconds", type=float, default=10, help="of each of the three phases")
    parser.add_argument(
        "--think", type=float, default=0.1, help="seconds between an answer and the next question"
    )
    parser.add_argument("--clients", type=int, default=4, help="honest ones")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--target", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.attack:
        host, port, key = options.target
        print("beginning", flush=True)
        asyncio.run(ATTACKS[options.attack](Target(host, int(port), key)))
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    directory = Path(tempfile.mkdtemp(prefix="abuse-"))
    keys = make_keys(
        directory / "keys.yaml",
        ["attacker", *(f"honest-{number}" for number in range(options.clients))],
    )
    changes = {"gateway__api_keys": str(directory / "keys.yaml"), "gateway__access_log": False}
    with running(directory, real=options.real, **changes) as fleet:
        asyncio.run(measure_all(fleet, options, keys))
    shutil.rmtree(directory)


if __name__ == "__main__":
    main()
