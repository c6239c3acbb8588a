"""The examples for a host: the unit that systemd reads, and the file that an image is built
from."""

import asyncio
import contextlib
import json
import re
import subprocess
import sys

import aiohttp
import pytest
import yaml
from gateway_host import QUESTION, host

from adapterops.schemas import ROOT
from adapterops.specs.serving import load_serving_config
from needs import program

HOSTS = ROOT / "configs" / "hosts"
UNIT = (HOSTS / "qlora-serving.service").read_text()
CONTAINER = (HOSTS / "Containerfile").read_text()


def test_systemd_understands_every_line(tmp_path):
    """With paths and user of this machine, for it looks whether they are there."""
    unit = UNIT.replace("/opt/qlora-gitops/.venv/bin/python", sys.executable).replace(
        "/opt/qlora-gitops", str(ROOT)
    )
    (tmp_path / "qlora-serving.service").write_text(
        re.sub(r"^(User|Group)=.*", r"\1=root", unit, flags=re.MULTILINE)
    )
    command = [
        program("systemd-analyze", "systemd"),
        "verify",
        "--man=no",
        str(tmp_path / "qlora-serving.service"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (
        result.returncode,
        [line for line in result.stderr.splitlines() if "qlora-serving" in line],
    ) == (0, [])


def test_whoever_stops_the_host_waits_for_running_answers():
    config = load_serving_config(ROOT / "configs/serving.yaml")
    graceful = config.gateway.drain_delay_s + config.gateway.drain_s + config.engine.stop_timeout_s
    assert int(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)[1]) > graceful
    assert int(re.search(r"--stop-timeout (\d+)", CONTAINER)[1]) > graceful
    assert "KillMode=mixed" in UNIT  # else systemd ends vLLM under the answers
    assert "STOPSIGNAL SIGTERM" in CONTAINER


@pytest.mark.parametrize("source", re.findall(r"^COPY (.+) \S+$", CONTAINER, re.MULTILINE))
def test_what_an_image_is_built_from_is_there(source):
    assert all((ROOT / name).exists() for name in source.split())


def test_the_image_runs_as_the_user_that_kubernetes_gives_it():
    uid = re.search(r"^USER (\d+)$", CONTAINER, re.MULTILINE)[1]
    assert f"--uid {uid} " in CONTAINER
    hosts = next(
        item
        for item in yaml.safe_load_all((ROOT / "configs/kubernetes/hosts.yaml").read_text())
        if item["kind"] == "StatefulSet"
    )
    assert hosts["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == int(uid)


def test_the_image_is_built_on_a_digest_or_not_at_all():
    [base] = re.findall(r"^FROM (\S+)$", CONTAINER, re.MULTILINE)
    assert base.endswith("@${PYTHON_DIGEST}")
    assert re.search(
        r"^ARG PYTHON_DIGEST$", CONTAINER, re.MULTILINE
    )  # no default: an empty digest is no reference


def test_a_container_is_started_with_a_root_that_cannot_be_written_to():
    for option in (
        "--read-only",
        "--tmpfs /tmp",
        "--cap-drop all",
        "--security-opt no-new-privileges",
    ):
        assert f" {option} " in CONTAINER
    for option in ("ProtectSystem=strict", "PrivateTmp=yes", "NoNewPrivileges=yes"):
        assert f"\n{option}\n" in UNIT


def test_nginx_understands_the_load_balancers_configuration(tmp_path):
    text = (HOSTS / "nginx.conf").read_text()
    (tmp_path / "nginx.conf").write_text(
        text.replace("/run/nginx.pid", str(tmp_path / "nginx.pid"))
    )
    command = [
        program("nginx", "nginx-light"),
        "-t",
        "-q",
        "-e",
        str(tmp_path / "nginx.log"),
        "-c",
        str(tmp_path / "nginx.conf"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    config = load_serving_config(ROOT / "configs/serving.yaml")
    assert f"proxy_read_timeout {config.gateway.read_timeout_s}s;" in text
    assert f"client_max_body_size {config.gateway.max_body_bytes >> 10}k;" in text


def test_behind_the_load_balancer_a_thumb_finds_the_host_that_gave_the_answer(tmp_path):
    # No port that is free now: the hosts, or any other process, could be given it before nginx is.
    listening = f"unix:{tmp_path}/s"

    async def main():
        async with (
            host() as first,
            host() as second,
            aiohttp.ClientSession(
                "http://nginx", connector=aiohttp.UnixConnector(f"{tmp_path}/s")
            ) as client,
        ):
            text = (HOSTS / "nginx.conf").read_text()
            for former, present in (
                ("10.0.0.5:8080", f"127.0.0.1:{first.server.port}"),
                ("10.0.0.6:8080", f"127.0.0.1:{second.server.port}"),
                ("listen 8443", f"listen {listening}"),
                ("worker_rlimit_nofile 65536", "daemon off"),
                ("worker_connections 16384", "worker_connections 512"),
                ("/run/nginx.pid", str(tmp_path / "nginx.pid")),
            ):
                assert former in text
                text = text.replace(former, present)
            (tmp_path / "nginx.conf").write_text(text)
            nginx = [
                program("nginx", "nginx-light"),
                "-e",
                str(tmp_path / "nginx.log"),
                "-c",
                str(tmp_path / "nginx.conf"),
            ]
            process = await asyncio.create_subprocess_exec(*nginx)

            async def ask(path, body):
                async with client.post(path, json=body) as answer:
                    return answer.status, answer.headers.get("x-request-id"), await answer.text()

            try:
                while True:
                    assert process.returncode is None, (tmp_path / "nginx.log").read_text()
                    with contextlib.suppress(aiohttp.ClientConnectorError):
                        assert (await ask("/v1/models", {}))[0] == 405
                        break
                    await asyncio.sleep(0.05)
                answers = [(await ask("/v1/chat/completions", QUESTION))[1] for _ in range(8)]
                assert all(gateway.asked() for gateway in (first, second))
                thumbs = [
                    await ask("/v1/feedback", {"id": answer, "rating": "up"})
                    for answer in reversed(answers)
                ]
                assert [(status, json.loads(text)["counted"]) for status, _, text in thumbs] == [
                    (200, True)
                ] * 8
                assert (await ask("/v1/feedback", {"id": "nobody-gave-it", "rating": "up"}))[
                    0
                ] == 404
                assert (await ask("/v1/chat/completions", QUESTION))[
                    0
                ] == 200  # a host is not down for a 404
            finally:
                process.terminate()
                await process.wait()

    asyncio.run(asyncio.wait_for(main(), 30))
