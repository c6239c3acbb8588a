"""A fleet for tests and benchmarks: a real S3 server and real serving hosts, each with stub
engines; and adapters that are made up."""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import boto3
import numpy
import yaml
from safetensors.numpy import save_file

from adapterops.schemas import ROOT
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import adapter_digest, publish
from processes import AWS, answers, free_port, free_port_range, s3_command
from release_documents import gate_report, train_manifest
from stub_engine import answer_of

NAME, BASE, BUCKET = "support-demo", "smollm2-135m-instruct", "fleet"


def wait_for(what, seconds=30):
    """The first truthy result of `what()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := what():
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s")


class Process:
    """A child that can be killed, frozen and started again with the same command."""

    def __init__(self, command, log, address, **variables):
        self.command, self.log, self.address, self.variables = command, log, address, variables
        self.start()

    def start(self):
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | self.variables
            )
        return self

    def ready(self, seconds=60):
        wait_for(lambda: self.child.poll() is not None or answers(self.address), seconds)
        assert self.child.poll() is None, self.log.read_text()[-3000:]
        return self

    def kill(self, number=signal.SIGKILL):
        if self.child.poll() is None:
            self.child.send_signal(number)
            self.child.send_signal(signal.SIGCONT)
        return self.child.wait(60)


class Link:
    """A way to a server that can be cut: then nothing comes through in either direction and nobody
    is told, as if a cable were pulled."""

    def __init__(self, port):
        self.whole, self._to = threading.Event(), ("127.0.0.1", port)
        self.whole.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(self._to)
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.whole.wait()
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def close(self):
        self.whole.set()
        self._listener.close()


class Fleet:
    """An S3 server, and hosts of `engines` stub engines each, on loopback addresses of their own.

    Args:
        directory: for logs and state.
        hosts: how many.
        engines: for each host.
        real: the hosts start and supervise vLLM; there is no stub.
        changes: of the serving configuration, `section.key`.
    """

    def __init__(self, directory: Path, hosts=1, engines=1, *, real=False, **changes):
        self.directory, self.changes, self.real = directory, changes, real
        port = free_port()
        os.environ |= AWS | {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}"}
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "ADAPTER_BUCKET"):
            os.environ.pop(name, None)
        command, _ = s3_command("moto", port)
        self.s3 = Process(command, directory / "s3.log", f"http://127.0.0.1:{port}")
        self.engines, self.hosts, self.gateways, self.engine_urls, self.links = [], [], [], [], []
        try:
            self._open(hosts, engines)
        except BaseException:
            self.close()
            raise

    def _open(self, hosts, engines):
        self.s3.ready()
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        self.store = ObjectStore(BUCKET, timeout_s=3)
        for number in range(hosts):
            self._add_host(number, engines)
        for process in [*self.engines, *self.hosts]:
            process.ready()
        for gateway in self.gateways:
            wait_for(
                lambda gateway=gateway: health(gateway).get("status") == "ok",
                400 if self.real else 30,
            )

    def _add_host(self, number, engines):
        address = f"127.0.0.{2 + number}"
        engine_urls = []
        for engine in range(0 if self.real else engines):
            port = free_port()
            command = [
                sys.executable,
                str(ROOT / "tests" / "stub_engine.py"),
                str(port),
                BASE,
                address,
            ]
            self.engines.append(
                Process(
                    command,
                    self.directory / f"engine{number}-{engine}.log",
                    f"http://{address}:{port}/health",
                )
            )
            engine_urls += ["--engine-url", f"http://{address}:{port}"]
        values = yaml.safe_load((ROOT / "configs/serving.demo.yaml").read_text())
        values["store"] = {"bucket": BUCKET, "signed_by": None}
        values["state_directory"] = str(self.directory / f"host{number}")
        values["adapters"] = [NAME]
        if self.real:
            values["engine"] |= {"port": free_port_range(engines), "replicas": engines}
            self.engine_urls += [
                f"http://127.0.0.1:{values['engine']['port'] + engine}" for engine in range(engines)
            ]
        values["gateway"] |= {"host": address, "port": free_port()}
        for key, value in self.changes.items():
            *sections, name = key.split("__")
            functools.reduce(dict.__getitem__, sections, values)[name] = value
        path = self.directory / f"serving{number}.yaml"
        path.write_text(yaml.safe_dump(values))
        gateway = f"http://{address}:{values['gateway']['port']}"
        self.links.append(Link(int(self.s3.address.rpartition(":")[2])))
        command = [
            sys.executable,
            str(ROOT / "scripts" / "serve.py"),
            "--config",
            str(path),
            *engine_urls,
        ]
        self.gateways.append(gateway)
        self.hosts.append(
            Process(
                command,
                self.directory / f"host{number}.log",
                f"{gateway}/health",
                AWS_ENDPOINT_URL_S3=self.links[-1].url,
            )
        )

    def release(self, value, name=NAME, **stub):
        """Publish a made-up adapter; `stub` says how it behaves. Returns its digest and what it
        answers."""
        directory = (
            self.directory
            / f"adapter-{value}-{hashlib.sha256(json.dumps(stub).encode()).hexdigest()[:6]}"
        )
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        (directory / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": 2, "stub": stub})
        )
        save_file(
            {"layer.lora_A": numpy.full((2, 4), value, dtype=numpy.float32)},
            directory / "adapter_model.safetensors",
        )
        (directory / "chat_template.jinja").write_text("{{ messages[0].content }}\n")
        text = stub.get("said_at_evaluation") or stub.get("text") or answer_of(directory)
        probes = [
            {"messages": [{"role": "user", "content": f"Who are you? {number}"}], "output": text}
            for number in range(2)
        ]
        return self.publish(directory, probes, name), text

    def publish(self, directory, probes, name=NAME):
        """Publish an adapter directory with a verdict of PASS; returns its digest."""
        digest = adapter_digest(directory)
        report, manifest = (
            gate_report(name, digest, probes),
            train_manifest(digest, 2, (BASE, "test/base", "main")),
        )
        publish(
            self.store,
            name,
            directory,
            report,
            manifest,
            source={"commit": "c" * 40, "pr": 7, "actor": "tester"},
        )
        return digest

    def close(self):
        for process in [*self.hosts, *self.engines, self.s3]:
            process.kill(signal.SIGTERM if process in self.hosts else signal.SIGKILL)
        for link in self.links:
            link.close()


@contextlib.contextmanager
def running(directory, **options):
    former = dict(os.environ)
    fleet = Fleet(directory, **options)
    try:
        yield fleet
    finally:
        fleet.close()
        os.environ.clear()
        os.environ.update(former)


def health(gateway):
    """The document; {} while nothing listens."""
    try:
        with urllib.request.urlopen(f"{gateway}/health", timeout=5) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return json.load(error)
    except OSError:
        return {}


def ask(gateway, model=NAME, timeout=10, stream=False):
    """Status, version that the gateway names, and what was said."""
    body = json.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Who are you?"}],
            "stream": stream,
        }
    ).encode()
    request = urllib.request.Request(
        f"{gateway}/v1/chat/completions", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return (
                answer.status,
                answer.headers.get("x-adapter-version"),
                json.load(answer)["choices"][0]["message"]["content"],
            )
    except urllib.error.HTTPError as error:
        return error.code, None, error.read().decode()
