"""What the gateway costs: against asking the engine directly and against nginx, in one run, on a
stub engine.

Suggested usage:

    python tests/benchmarks/gateway.py                      # a minute or two
    python tests/benchmarks/gateway.py --requests 100000    # and whether memory stays flat

The gateway (and nginx, one worker) is pinned to one core, stub and clients to the others. nginx
passes requests through as they are; the gateway reads the body, picks a version, rewrites `model`,
counts, and writes the access log (to /dev/null).
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import uvloop

sys.path[:0] = [str(Path(__file__).parents[2] / "scripts")]

ANSWER = (
    b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"message":{"content":"ok"}}],'
    b'"usage":{"completion_tokens":1}}'
)
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(ANSWER),
    ANSWER,
)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"word "}}]}\n\n'
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)
EVENTS, GAP_S = 10, 0.005
LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Stub(asyncio.Protocol):
    """An engine that answers at once, or streams ten events 5 ms apart."""

    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""

    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self.buffer, 0, end)
            whole = end + 4 + (int(found.group(1)) if found else 0)
            if len(self.buffer) < whole:
                return
            request, self.buffer = self.buffer[:whole], self.buffer[whole:]
            if b'"stream"' in request:
                self.transport.write(HEAD)
                self.event(EVENTS)
            else:
                self.transport.write(WHOLE)

    def event(self, left):
        if self.transport.is_closing():
            return
        self.transport.write(CHUNK if left else b"0\r\n\r\n")
        if left:
            asyncio.get_running_loop().call_later(GAP_S, self.event, left - 1)


class Client(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered, or when told."""

    def __init__(self, request):
        self.request, self.buffer, self.waiter = request, b"", None

    def connection_made(self, transport):
        self.transport = transport

    def ask(self):
        self.buffer, self.waiter = b"", asyncio.get_running_loop().create_future()
        self.transport.write(self.request)
        return self.waiter

    def data_received(self, data):
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        assert self.buffer.startswith(b"HTTP/1.1 200"), self.buffer[:500]
        found = LENGTH.search(self.buffer, 0, end)
        done = (
            len(self.buffer) >= end + 4 + int(found.group(1))
            if found
            else self.buffer.endswith(b"0\r\n\r\n")
        )
        if done and self.waiter and not self.waiter.done():
            self.waiter.set_result(None)

    def connection_lost(self, _):
        if self.waiter and not self.waiter.done():
            self.waiter.set_exception(ConnectionError("closed"))


def run_stub(port, cores):
    os.sched_setaffinity(0, cores)

    async def main():
        server = await asyncio.get_running_loop().create_server(
            Stub, "127.0.0.1", port, backlog=1024
        )
        await server.serve_forever()

    uvloop.run(main())


def run_gateway(port, engine, cores):
    os.sched_setaffinity(0, cores)
    from adapterops.schemas import ROOT
    from adapterops.serving.connections import listen
    from adapterops.serving.gateway import make_gateway
    from adapterops.serving.gateway_metrics import Metrics
    from adapterops.serving.routes import Version
    from adapterops.serving.state import Engine, Followed, HostState
    from adapterops.specs.serving import load_serving_config
    from adapterops.store.channels import Channel

    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115
    stable, canary = (Version("support", digit * 64, "2026-11-01") for digit in "ab")
    ready = {version.engine_name: version for version in (stable, canary)}
    channel = Channel("support", 1, stable.digest, canary.digest, 10)
    state = HostState(
        "base",
        [Engine(f"http://127.0.0.1:{engine}", up=True, ready=ready)],
        {"support": Followed(channel)},
    )
    state.refresh()
    shipped = load_serving_config(ROOT / "configs/serving.demo.yaml")
    settings = replace(shipped.gateway, port=port, max_in_flight=4096, drain_s=1)

    async def main():
        connections = replace(shipped.connections, max_open=16384)
        await listen(
            make_gateway(state, settings, Metrics()), settings, connections, lambda _: None
        )
        await asyncio.Event().wait()

    uvloop.run(main())


NGINX = """
worker_processes 1; daemon off; worker_rlimit_nofile 8192;
pid {directory}/pid; error_log {directory}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log {directory}/access.log;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s; keepalive_requests 10000000;
  upstream engine {{ server 127.0.0.1:{engine}; keepalive 256; keepalive_requests 10000000; }}
  server {{
    listen 127.0.0.1:{port};
    location = /v1/chat/completions {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection "";
    }}
  }}
}}
"""


def run_nginx(directory, port, engine, core):
    (directory / "nginx.conf").write_text(
        NGINX.format(directory=directory, port=port, engine=engine)
    )
    return subprocess.Popen(
        ["taskset", "-c", str(core), "nginx", "-c", str(directory / "nginx.conf")],
        stderr=subprocess.DEVNULL,
    )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def await_port(port):
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on {port}")


def request(stream):
    body = b'{"model": "support", "messages": [{"role": "user", "content": "Where is my parcel?"}]'
    body += b', "stream": true}' if stream else b"}"
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type:"
        b" application/json\r\ncontent-length: %d\r\n\r\n"
    )
    return head % len(body) + body


async def connect(port, count, stream):
    loop, what = asyncio.get_running_loop(), request(stream)
    return [
        (await loop.create_connection(lambda: Client(what), "127.0.0.1", port))[1]
        for _ in range(count)
    ]


async def throughput(port, total, connections=32):
    """Requests a second with `connections` of them always under way."""
    clients = await connect(port, connections, stream=False)

    async def work(client):
        for _ in range(total // connections):
            await client.ask()

    await asyncio.gather(*(work(client) for client in clients[:4]))  # warm-up
    started = time.perf_counter()
    await asyncio.gather(*(work(client) for client in clients))
    rate = total / (time.perf_counter() - started)
    for client in clients:
        client.transport.close()
    return rate


async def latencies(port, rate, seconds):
    """Milliseconds to the last byte of streams that begin at a constant rate, whatever became of
    the ones before."""
    clients = await connect(port, 400, stream=True)
    idle, found, tasks = list(clients), [], []

    async def one():
        client = idle.pop()
        started = time.perf_counter()
        await client.ask()
        found.append((time.perf_counter() - started) * 1000)
        idle.append(client)

    begin = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0, begin + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    for client in clients:
        client.transport.close()
    found = sorted(found[rate:])
    return statistics.median(found), found[int(len(found) * 0.99)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--requests", type=int, default=10_000, help="small requests for throughput and memory"
    )
    parser.add_argument("--seconds", type=int, default=15, help="of streaming at --rate, for each")
    parser.add_argument("--rate", type=int, default=100, help="streams that begin in a second")
    options = parser.parse_args()
    core, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, others or [core])
    engine, gateway, nginx = free_port(), free_port(), free_port()
    context = multiprocessing.get_context("spawn")
    stub = context.Process(target=run_stub, args=(engine, others or [core]), daemon=True)
    ours = context.Process(target=run_gateway, args=(gateway, engine, [core]), daemon=True)
    directory = Path(tempfile.mkdtemp(prefix="gateway-benchmark-"))
    theirs = run_nginx(directory, nginx, engine, core) if shutil.which("nginx") else None
    stub.start()
    ours.start()
    targets = {"engine": engine, "gateway": gateway} | ({"nginx": nginx} if theirs else {})
    try:
        for port in targets.values():
            await_port(port)
        print(
            f"streams of {EVENTS} events {GAP_S * 1000:.0f} ms apart, {options.rate}/s for"
            f" {options.seconds} s"
        )
        figures = {
            name: uvloop.run(latencies(port, options.rate, options.seconds))
            for name, port in targets.items()
        }
        memory = psutil.Process(ours.pid).memory_info
        # Memory grows until 65,536 answers are remembered for feedback, and is flat from then on.
        uvloop.run(throughput(gateway, 70_000 if options.requests > 50_000 else 5_000))
        used = [memory().rss]
        rates = {
            name: uvloop.run(throughput(port, options.requests))
            for name, port in targets.items()
            if name != "gateway"
        }
        quarters = []
        for _ in range(4):
            quarters.append(uvloop.run(throughput(gateway, options.requests // 4)))
            used.append(memory().rss)
        rates["gateway"] = statistics.harmonic_mean(quarters)
        print(
            f"{'':10} {'p50 ms':>8} {'p99 ms':>8} {'added p50':>10} {'added p99':>10}"
            f" {'requests/s':>11}"
        )
        for name, (p50, p99) in figures.items():
            added = [
                f"{now - base:10.2f}"
                for now, base in zip((p50, p99), figures["engine"], strict=True)
            ]
            print(f"{name:10} {p50:8.2f} {p99:8.2f} {' '.join(added)} {rates[name]:11.0f}")
        grown = ", ".join(f"{(now - used[0]) / 2**20:+.1f}" for now in used[1:])
        print(
            f"gateway's memory: {used[0] / 2**20:.1f} MiB, {grown} MiB after each quarter of"
            f" {options.requests} requests"
        )
        if not theirs:
            print("nginx is not installed: no comparison (apt-get install nginx)")
    finally:
        for process in (stub, ours):
            process.terminate()
        if theirs:
            theirs.terminate()
            theirs.wait()
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
