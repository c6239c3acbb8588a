"""Rollouts and rollbacks on real hosts and a real S3 server; the engines are stubs, so that
versions can misbehave on demand."""

import contextlib
import datetime
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import urllib.request
from dataclasses import replace

import pytest
from rich.console import Console

from adapterops.deploy import deploy as deploying
from adapterops.deploy.counters import Accumulated
from adapterops.deploy.deploy import PausedError, abort, deploy, rollback
from adapterops.deploy.fleet import open_fleet
from adapterops.deploy.rollout import judge_step, overall
from adapterops.errors import InfrastructureError, RejectedError
from adapterops.schemas import ROOT
from adapterops.store import channels
from adapterops.store.channels import change_channel, history, promote, read_channel, start_canary
from adapterops.store.releases import find_release
from fleet import BUCKET, NAME, ask, health, running, wait_for
from rollouts import QUICK, UNJUDGED

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """Three hosts."""
    with running(tmp_path_factory.mktemp("fleet"), hosts=3, reconciler__interval_s=0.5) as fleet:
        yield fleet


@pytest.fixture
def said():
    return Console(record=True, width=300, file=open("/dev/null", "w"))  # noqa: PTH123


@pytest.fixture
def stable(fleet):
    """A good version that is stable everywhere."""
    digest, text = fleet.release(1.0)
    found = read_channel(fleet.store, NAME)
    if found and found[0].canary:
        abort(fleet.store, NAME, Console(quiet=True))
    deploy(fleet.store, NAME, digest, fleet.gateways, UNJUDGED, Console(quiet=True), timeout_s=30)
    return digest, text


def channel(fleet):
    found = read_channel(fleet.store, NAME)[0]
    return found.stable, found.canary, found.weight


def test_a_good_version_goes_through_its_steps_and_every_host_answers_as_it(fleet, stable, said):
    digest, text = fleet.release(2.0)
    deploy(fleet.store, NAME, digest, fleet.gateways, QUICK, said, timeout_s=30)
    weights = [entry.weight for entry in history(fleet.store, NAME) if entry.canary == digest]
    assert weights == [0, 10, 100]
    assert [ask(gateway)[1:] for gateway in fleet.gateways] == [(digest[:12], text)] * 3
    output = said.export_text()
    assert output.count("PASS") == 6
    assert re.search(r"error_rate 0 of [4-9]\d against 0 of \d+", output)


def test_a_rollback_is_served_on_three_hosts_within_two_seconds_without_touching_an_engine(
    fleet, stable
):
    digest, _ = fleet.release(3.0, load_s=0.5)
    deploy(fleet.store, NAME, digest, fleet.gateways, UNJUDGED, Console(quiet=True), timeout_s=30)
    logs = [process.log.read_text().count("is ready on") for process in fleet.hosts]
    started = time.monotonic()
    rollback(fleet.store, NAME, fleet.gateways, Console(quiet=True))
    seconds = time.monotonic() - started
    assert [ask(gateway)[1:] for gateway in fleet.gateways] == [(stable[0][:12], stable[1])] * 3
    assert [process.log.read_text().count("is ready on") for process in fleet.hosts] == logs
    print(f"rollback on 3 hosts: {seconds:.2f} s")
    assert seconds < 2  # the promise; the hosts look twice a second


def test_the_command_shows_how_long_a_rollback_took(fleet, stable):
    digest, _ = fleet.release(3.5)
    deploy(fleet.store, NAME, digest, fleet.gateways, UNJUDGED, Console(quiet=True), timeout_s=30)
    command = [
        sys.executable,
        str(ROOT / "scripts/deploy_adapter.py"),
        "--adapter",
        NAME,
        "--rollback",
        "--bucket",
        BUCKET,
    ]
    command += [part for gateway in fleet.gateways for part in ("--gateway", gateway)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert (
        float(
            re.search(r"serving on 3 hosts (\d+\.\d+) s after the channel changed", result.stdout)[
                1
            ]
        )
        < 2
    )


@pytest.mark.parametrize(
    ("stub", "reason"),
    [({"fail_share": 1.0}, "error_rate"), ({"delay_s": 1.0}, "latency_p95")],
    ids=["answers 500", "is slow"],
)
def test_a_version_that_misses_a_limit_is_aborted_with_weight_0(fleet, stable, said, stub, reason):
    digest, _ = fleet.release(4.0, **stub)
    with pytest.raises(RejectedError, match=rf"failed at 10 %: {reason}"):
        deploy(fleet.store, NAME, digest, fleet.gateways, QUICK, said, timeout_s=30)
    assert channel(fleet) == (stable[0], None, 0)
    wait_for(
        lambda: all(health(gateway)["adapters"][NAME]["weight"] == 0 for gateway in fleet.gateways),
        3,
    )
    assert "canary aborted" in said.export_text()


@pytest.mark.parametrize(
    ("stub", "reason"),
    [
        (
            {"refuse": "LoRA rank 128 is greater than max_lora_rank 16."},
            r"the engine refused adapter .*LoRA rank 128 is greater",
        ),
        ({"text": "I am the base model."}, "the adapter has no effect"),
        (
            {"said_at_evaluation": "I was another one."},
            "probe 1 is answered with 'I am .*at evaluation it was 'I was another one",
        ),
    ],
    ids=["the engine refuses", "without effect", "other weights than were judged"],
)
def test_a_version_that_is_unfit_never_gets_a_request(fleet, stable, said, stub, reason):
    digest, _ = fleet.release(4.5, **stub)
    with pytest.raises(RejectedError, match=reason):
        deploy(fleet.store, NAME, digest, fleet.gateways, QUICK, said, timeout_s=30)
    assert channel(fleet) == (stable[0], None, 0)
    assert {entry.weight for entry in history(fleet.store, NAME) if entry.canary == digest} == {0}
    assert [ask(gateway)[1:] for gateway in fleet.gateways] == [(stable[0][:12], stable[1])] * 3
    for gateway in fleet.gateways:
        with urllib.request.urlopen(f"{gateway}/metrics", timeout=5) as answer:
            assert digest[:12] not in answer.read().decode()


def test_without_traffic_and_probes_nothing_is_decided_and_the_rollout_pauses_and_goes_on(
    fleet, stable
):
    digest, _ = fleet.release(5.0)
    silent = replace(QUICK, probes_per_s=0, max_duration_s=2)
    with pytest.raises(PausedError, match=r"paused at 10 %.*requests, wanted 40"):
        deploy(fleet.store, NAME, digest, fleet.gateways, silent, Console(quiet=True), timeout_s=30)
    assert channel(fleet) == (stable[0], digest, 10)
    other, _ = fleet.release(6.0)
    with pytest.raises(RejectedError, match="is under way"):
        deploy(fleet.store, NAME, other, fleet.gateways, QUICK, Console(quiet=True), timeout_s=30)
    with pytest.raises(
        PausedError, match="paused at 10 %"
    ):  # today's rollout ends below it, and it is judged all the same
        deploy(
            fleet.store,
            NAME,
            digest,
            fleet.gateways,
            replace(silent, steps=(5,)),
            Console(quiet=True),
            timeout_s=30,
        )
    assert channel(fleet) == (stable[0], digest, 10)
    deploy(fleet.store, NAME, digest, fleet.gateways, QUICK, Console(quiet=True), timeout_s=30)
    assert channel(fleet) == (digest, None, 0)


def test_blue_green_gives_all_traffic_at_once_and_takes_it_back(fleet, stable):
    digest, _ = fleet.release(7.0, fail_share=1.0)
    with pytest.raises(RejectedError, match="failed at 100 %"):
        deploy(
            fleet.store,
            NAME,
            digest,
            fleet.gateways,
            replace(QUICK, strategy="blue-green"),
            Console(quiet=True),
            timeout_s=30,
        )
    assert channel(fleet) == (stable[0], None, 0)
    assert [entry.weight for entry in history(fleet.store, NAME) if entry.canary == digest] == [
        0,
        100,
    ]


@contextlib.contextmanager
def users(fleet, count, timeout=30):
    """So many who ask again and again."""
    over = threading.Event()

    def one(number):
        while not over.is_set():
            with contextlib.suppress(OSError):
                ask(fleet.gateways[number % len(fleet.gateways)], timeout=timeout)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_blue_green_takes_traffic_back_from_a_slow_version_though_users_ask_no_other(fleet, stable):
    digest, _ = fleet.release(7.1, delay_s=1.0)
    change_channel(
        fleet.store,
        NAME,
        lambda channel: start_canary(channel, digest, 100),
        reason="a rollout that died at 100 %",
    )
    for gateway in fleet.gateways:
        wait_for(lambda gateway=gateway: ask(gateway)[1] == digest[:12])
    rollout = replace(QUICK, strategy="blue-green", min_duration_s=4)
    with (
        users(fleet, 30),
        pytest.raises(RejectedError, match=r"failed at 100 %: latency_p95 .*\(probes\)"),
    ):
        deploy(
            fleet.store, NAME, digest, fleet.gateways, rollout, Console(quiet=True), timeout_s=30
        )
    assert channel(fleet) == (stable[0], None, 0)


def test_a_version_that_answers_no_more_is_aborted_by_probes_that_gave_up(
    fleet, stable, monkeypatch
):
    """Users give up too, but that they can do to any version."""
    monkeypatch.setattr("adapterops.deploy.fleet._ASK_TIMEOUT_S", 31)
    digest, _ = fleet.release(7.2, hang_after=10)
    rollout = replace(QUICK, strategy="blue-green", max_duration_s=150)
    with (
        users(fleet, 30, timeout=31),
        pytest.raises(RejectedError, match="failed at 100 %: error_rate"),
    ):
        deploy(
            fleet.store, NAME, digest, fleet.gateways, rollout, Console(quiet=True), timeout_s=30
        )
    assert channel(fleet) == (stable[0], None, 0)


def test_an_engine_that_is_restarted_at_the_start_of_a_step_fails_no_version(fleet, stable):
    digest, _ = fleet.release(7.3)
    on_trial = change_channel(
        fleet.store, NAME, lambda channel: start_canary(channel, digest, 10), reason="canary"
    )
    probes = find_release(fleet.store, NAME, digest)["probes"]
    with open_fleet(fleet.gateways, 30) as hosts:
        hosts.await_ready(on_trial, "canary")
        fleet.engines[0].kill()
        wait_for(lambda: health(fleet.gateways[0])["status"] == "starting")
        restart = threading.Timer(3, fleet.engines[0].start)
        restart.start()
        evidence = Accumulated(NAME)
        hosts.read(evidence)
        findings = judge_step(
            hosts,
            QUICK,
            evidence,
            stable[0],
            digest,
            probes,
            Console(quiet=True),
            check=lambda: None,
        )
    restart.join()
    fleet.engines[0].ready()
    wait_for(lambda: health(fleet.gateways[0])["status"] == "ok")
    assert overall(findings) == "PASS", findings
    assert evidence.saturation[fleet.gateways[0]][0] == 1.0


def test_two_rollouts_at_once_do_not_mix(fleet, stable):
    digests = [fleet.release(value)[0] for value in (8.0, 9.0)]
    outcomes = {}

    def roll_out(digest):
        try:
            deploy(
                fleet.store, NAME, digest, fleet.gateways, QUICK, Console(quiet=True), timeout_s=30
            )
            outcomes[digest] = "promoted"
        except RejectedError as error:
            outcomes[digest] = str(error)

    threads = [threading.Thread(target=roll_out, args=(digest,)) for digest in digests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [digest for digest, outcome in outcomes.items() if outcome == "promoted"]
    assert len(won) == 1, outcomes
    assert channel(fleet) == (won[0], None, 0)
    assert any("is under way" in outcome for outcome in outcomes.values())


def test_a_host_that_is_restarted_in_the_middle_of_a_rollout_comes_back_and_the_rollout_ends_well(
    fleet, stable
):
    digest, text = fleet.release(10.0)
    slow = replace(QUICK, min_duration_s=4)
    rolling = threading.Thread(
        target=deploy, args=(fleet.store, NAME, digest, fleet.gateways, slow, Console(quiet=True))
    )
    rolling.start()
    wait_for(lambda: channel(fleet)[2] == 10)
    fleet.hosts[0].kill()
    fleet.hosts[0].start().ready()
    rolling.join()
    assert channel(fleet) == (digest, None, 0)
    assert ask(fleet.gateways[0])[1:] == (digest[:12], text)


def test_with_most_hosts_down_a_rollout_is_aborted_and_a_rollback_still_reaches_the_other(
    fleet, stable, monkeypatch
):
    monkeypatch.setattr("adapterops.deploy.fleet._SILENT_S", 2.0)
    newer, _ = fleet.release(11.0)
    deploy(fleet.store, NAME, newer, fleet.gateways, UNJUDGED, Console(quiet=True), timeout_s=30)
    down = fleet.hosts[:2]
    for host in down:
        host.kill()
    try:
        digest, _ = fleet.release(12.0)
        with pytest.raises(
            InfrastructureError,
            match=(
                rf"{fleet.gateways[0]}, {fleet.gateways[1]}: .* is not ready .*1 of 3 hosts have it"
            ),
        ):
            deploy(
                fleet.store, NAME, digest, fleet.gateways, QUICK, Console(quiet=True), timeout_s=10
            )
        assert channel(fleet) == (newer, None, 0)
        with pytest.raises(
            InfrastructureError,
            match="1 of 3 hosts have it; a host that comes back follows by itself",
        ):
            rollback(fleet.store, NAME, fleet.gateways, Console(quiet=True), timeout_s=10)
        assert ask(fleet.gateways[2])[1] == stable[0][:12]
    finally:
        for host in down:
            host.start().ready()
    for gateway in fleet.gateways[:2]:
        wait_for(lambda gateway=gateway: ask(gateway)[1] == stable[0][:12])


def test_a_host_that_is_cut_off_from_the_store_serves_on_and_follows_when_the_cut_is_healed(
    fleet, stable, monkeypatch
):
    monkeypatch.setattr("adapterops.deploy.fleet._SILENT_S", 2.0)
    newer, text = fleet.release(13.0)
    others, lonely = fleet.gateways[:2], fleet.gateways[2]
    fleet.links[2].whole.clear()
    try:
        # A deployment needs all hosts: it is not promoted over the head of one that cannot know.
        with pytest.raises(
            InfrastructureError, match=rf"{lonely}: .* is not ready .*2 of 3 hosts have it"
        ):
            deploy(
                fleet.store, NAME, newer, fleet.gateways, QUICK, Console(quiet=True), timeout_s=5
            )
        assert channel(fleet) == (stable[0], None, 0)
        change_channel(
            fleet.store,
            NAME,
            lambda channel: promote(channel, newer),
            reason="promoted while a host is cut off",
        )
        for gateway in others:
            wait_for(lambda gateway=gateway: ask(gateway)[1:] == (newer[:12], text))
        assert {ask(lonely) for _ in range(20)} == {(200, stable[0][:12], stable[1])}
        wait_for(
            lambda: (
                "serving what was seen last" in "".join(health(lonely)["adapters"][NAME]["errors"])
            )
        )
        assert health(lonely)["status"] == "ok"
    finally:
        fleet.links[2].whole.set()
    wait_for(lambda: ask(lonely)[1:] == (newer[:12], text), 15)
    wait_for(lambda: not health(lonely)["adapters"][NAME]["errors"])


def test_local_files_that_vanish_are_fetched_again_while_their_version_answers(fleet, stable):
    """The engine reads them again some day: when it has evicted the adapter."""
    digest, text = stable
    directory = fleet.directory / "host0" / "releases" / NAME / f"sha256-{digest}"

    def back():
        assert ask(fleet.gateways[0])[::2] == (200, text)
        return (directory / "adapter_model.safetensors").is_file()

    for name in ("adapter_model.safetensors", "."):
        path = directory / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        wait_for(back)
    wait_for(lambda: not health(fleet.gateways[0])["adapters"][NAME]["errors"])


def test_a_host_that_stood_still_follows_when_it_goes_on(fleet, stable):
    newer, text = fleet.release(13.5)
    fleet.hosts[2].child.send_signal(signal.SIGSTOP)
    change_channel(
        fleet.store,
        NAME,
        lambda channel: promote(channel, newer),
        reason="promoted while a host stands still",
    )
    wait_for(lambda: ask(fleet.gateways[0])[1] == newer[:12])
    fleet.hosts[2].child.send_signal(signal.SIGCONT)
    wait_for(lambda: ask(fleet.gateways[2])[1:] == (newer[:12], text), 10)


def test_the_store_may_be_away_in_the_middle_of_a_rollout(fleet, stable, monkeypatch):
    """Last: the S3 server has its objects in memory and forgets them when it ends, so it is frozen
    and not ended."""
    monkeypatch.setattr(deploying, "_STORE_AWAY_S", 60)
    digest, text = fleet.release(14.0)
    slow = replace(QUICK, min_duration_s=3)
    rolling = threading.Thread(
        target=deploy, args=(fleet.store, NAME, digest, fleet.gateways, slow, Console(quiet=True))
    )
    rolling.start()
    wait_for(lambda: channel(fleet)[2] == 10)
    fleet.s3.child.send_signal(signal.SIGSTOP)
    try:
        until = time.monotonic() + 6
        statuses = []
        while time.monotonic() < until:
            statuses.append(ask(fleet.gateways[1])[0])
            time.sleep(0.05)
        assert set(statuses) == {200}
    finally:
        fleet.s3.child.send_signal(signal.SIGCONT)
    rolling.join()
    assert channel(fleet) == (digest, None, 0)
    assert ask(fleet.gateways[0])[1:] == (digest[:12], text)


def test_clocks_that_differ_change_nothing(fleet, stable, monkeypatch):
    """Order is the generation's business: a channel that was written by a clock of the year 2000 is
    newer all the same."""
    newer, _ = fleet.release(15.0)

    class Past(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz).replace(year=2000)

    with monkeypatch.context() as patch:
        patch.setattr(channels, "datetime", types.SimpleNamespace(datetime=Past, UTC=datetime.UTC))
        changed = change_channel(
            fleet.store, NAME, lambda channel: promote(channel, newer), reason="from the past"
        )
    assert changed.updated_at.startswith("2000-")
    wait_for(lambda: ask(fleet.gateways[1])[1] == newer[:12])


def test_sigterm_lets_an_answer_under_way_end(fleet, stable):
    digest, text = fleet.release(16.0, delay_s=2)
    deploy(fleet.store, NAME, digest, fleet.gateways, UNJUDGED, Console(quiet=True), timeout_s=60)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ask(fleet.gateways[0])))
    asking.start()
    time.sleep(0.5)
    status = fleet.hosts[0].kill(signal.SIGTERM)
    asking.join()
    fleet.hosts[0].start().ready()
    assert (status, answers) == (0, [(200, digest[:12], text)])
