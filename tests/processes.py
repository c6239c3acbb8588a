"""Ports, environments and servers that tests start."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def free_port_range(count):
    """The first of `count` ports in a row that nobody listens on."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except (OSError, OverflowError):
                continue
        return first


def environment(**changes):
    """The environment of a child process with some variables changed; None removes one."""
    merged = {
        **os.environ,
        **{name: str(value) for name, value in changes.items() if value is not None},
    }
    return {name: value for name, value in merged.items() if changes.get(name, "") is not None}


def answers(url):
    """True if something speaks HTTP there, whatever it says."""
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def wait_for_http(url, seconds=60, process=None):
    """Until something answers at `url`; fails if `process`, which should, ends."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        assert process is None or process.poll() is None
        assert time.monotonic() < deadline, url
        time.sleep(0.1)


def s3_command(server, port):
    """Command and environment of an S3 server: moto, or ministack, which verifies checksums as S3
    does."""
    if server == "moto":
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], {}
    return [sys.executable, "-m", "ministack"], {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "SERVICES": "s3",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
    }


@contextlib.contextmanager
def s3_server(log, server="moto"):
    """An S3 server that answers; yields its port."""
    port = free_port()
    command, settings = s3_command(server, port)
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | settings
        )
        try:
            wait_for_http(f"http://127.0.0.1:{port}", process=process)
            yield port
        finally:
            process.terminate()
            process.wait(30)
