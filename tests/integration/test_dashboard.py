"""A real Prometheus scrapes a real gateway: every query of the dashboard and every rule gives
something."""

import contextlib
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from rich.console import Console

from adapterops.deploy.deploy import deploy
from adapterops.schemas import ROOT
from adapterops.store.channels import change_channel, start_canary
from fleet import NAME, ask, running, wait_for
from needs import program
from processes import free_port
from rollouts import UNJUDGED

pytestmark = pytest.mark.integration
MONITORING = ROOT / "configs" / "monitoring"
PANELS = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
IN_FLIGHT = 2
QUESTION = {"role": "user", "content": "Where is my parcel?"}
QUERIES = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """The root of a Prometheus that has watched traffic: good answers, errors, streams, a canary,
    thumbs, refusals."""
    server, directory = program("prometheus", "prometheus"), tmp_path_factory.mktemp("prometheus")
    with running(
        directory,
        hosts=1,
        engines=2,
        gateway__max_in_flight=IN_FLIGHT,
        gateway__limits__thumbs_per_minute=10_000,
    ) as fleet:
        gateway = fleet.gateways[0]
        values = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
        values["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        values["scrape_configs"][0]["static_configs"] = [
            {"targets": [gateway.removeprefix("http://")]}
        ]
        rules = yaml.safe_load((MONITORING / "rules.yml").read_text())
        (directory / "rules.yml").write_text(
            yaml.safe_dump({"groups": [{**group, "interval": "1s"} for group in rules["groups"]]})
        )
        (directory / "prometheus.yml").write_text(yaml.safe_dump(values))
        port = free_port()
        command = [
            server,
            f"--config.file={directory}/prometheus.yml",
            f"--storage.tsdb.path={directory}/data",
        ]
        command += [f"--web.listen-address=127.0.0.1:{port}"]
        with (directory / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            stable, canary = fleet.release(1.0)[0], fleet.release(2.0, fail_share=0.3)[0]
            deploy(
                fleet.store, NAME, stable, [gateway], UNJUDGED, Console(quiet=True), timeout_s=30
            )
            change_channel(
                fleet.store,
                NAME,
                lambda channel: start_canary(channel, canary, 50),
                reason="canary",
            )
            until = time.monotonic() + 12
            while time.monotonic() < until:
                post(
                    f"{gateway}/v1/chat/completions",
                    {"model": NAME, "messages": [QUESTION], "stream": True},
                )
                ask(gateway)
                ask(gateway, model="nobody")
                post(f"{gateway}/v1/feedback", {"id": rated(gateway), "rating": "down"})
                with occupied(gateway):
                    ask(gateway)
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def occupied(gateway):
    """As many requests under way as the gateway takes: each has said that it will send a body, and
    does not."""
    address, _, port = gateway.removeprefix("http://").rpartition(":")
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2\r\nExpect:"
        " 100-continue\r\n\r\n"
    )
    with contextlib.ExitStack() as stack:
        for _ in range(IN_FLIGHT):
            connection = stack.enter_context(
                socket.create_connection((address, int(port)), timeout=10)
            )
            connection.sendall(head.encode())
            assert connection.recv(100).startswith(b"HTTP/1.1 100"), "the gateway did not take it"
        yield


def post(url, document):
    request = urllib.request.Request(
        url, json.dumps(document).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.headers, error.read()


def rated(gateway):
    """The id of a response, as a client sees it."""
    _, content = post(f"{gateway}/v1/chat/completions", {"model": NAME, "messages": [QUESTION]})
    return json.loads(content).get("id", "none")


def query(prometheus, expression):
    for variable, value in {"$__rate_interval": "10s", "$__range": "1m", "$adapter": ".*"}.items():
        expression = expression.replace(variable, value)
    url = f"{prometheus}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=[title for title, _ in QUERIES])
def test_every_panel_has_something_to_show(prometheus, title, expression):
    result = query(prometheus, expression)
    assert result, title
    assert any(sample["value"][1] != "NaN" for sample in result), result


def test_an_overloaded_gateway_is_seen_to_refuse(prometheus):
    [refused] = query(prometheus, 'llm_gateway_rejected_total{reason="overload"}')
    assert float(refused["value"][1]) > 1


def test_every_recording_rule_records(prometheus):
    # Rules of a group are evaluated one after the other: the last one's series is there when all
    # are.
    wait_for(
        lambda: query(
            prometheus, f'adapter_version:llm_duration_seconds:p95_5m{{adapter="{NAME}"}}'
        ),
        20,
    )
    # What the canary failed to answer the stable version answered: users saw no error.
    [errors] = wait_for(
        lambda: query(prometheus, f'adapter:llm_errors:ratio_rate5m{{adapter="{NAME}"}}'), 20
    )
    assert float(errors["value"][1]) == 0
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=10) as answer:
        groups = json.load(answer)["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}, [
        rule["name"] for rule in rules if rule["health"] != "ok"
    ]


def test_the_errors_of_the_canary_are_the_canarys(prometheus):
    found = query(prometheus, 'sum by (version) (llm_version_request_total{status="500"})')
    assert len(found) == 1
    versions = {
        sample["metric"]["version"] for sample in query(prometheus, "llm_adapter_version_info")
    }
    assert len(versions) == 2
    assert found[0]["metric"]["version"] in versions
