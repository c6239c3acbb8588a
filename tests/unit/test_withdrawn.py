"""What a host never does again: serve a former state of a channel, or a release that was
withdrawn."""

import json
import resource

import boto3
import pytest
from candidate_runs import BUCKET, empty_store
from click.testing import CliRunner

from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.serving import channel_follower
from adapterops.serving.channel_follower import Follower
from adapterops.serving.gateway_metrics import Metrics
from adapterops.serving.routes import Version
from adapterops.serving.state import Engine, HostState
from adapterops.signing import Signer, Trust, make_key_pair
from adapterops.store.channels import change_channel, promote, read_channel, roll_back, start_canary
from adapterops.store.withdrawn import read_withdrawn, refuse_withdrawn, withdraw

A, B, C = "a" * 64, "b" * 64, "c" * 64
CHANNEL, LIST = "channels/support.json", "withdrawn/support.json"


@pytest.fixture
def store(monkeypatch):
    with empty_store(monkeypatch) as store:
        yield store


@pytest.fixture
def pairs(tmp_path):
    for name in ("mine", "theirs"):
        make_key_pair(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem")
    return [
        (Signer(tmp_path / f"{name}.pem"), Trust(tmp_path / f"{name}.pub.pem"))
        for name in ("mine", "theirs")
    ]


@pytest.fixture
def signer(pairs):
    return pairs[0][0]


@pytest.fixture
def trust(pairs):
    return pairs[0][1]


@pytest.fixture
def host(store, trust, tmp_path):
    """`host()`: the follower of a host that was started just now."""
    return lambda: Follower(store, tmp_path / "state", trust)


def deployed(store, *digests):
    for digest in digests:
        change_channel(
            store,
            "support",
            lambda channel, digest=digest: promote(channel, digest),
            reason="deployed",
        )


def put(key, body):
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=body)


def withdrawn_by(store, signer, trust, digest=B, reason="it leaks names"):
    return withdraw(
        store, "support", digest, reason=reason, signer=signer, trust=trust, actor="tester"
    )


class TestGenerations:
    def test_a_former_generation_is_refused_and_what_was_seen_last_is_served(self, store, host):
        deployed(store, A)
        former = store.get(CHANNEL).content
        deployed(store, B)
        follower = host()
        assert follower.look("support").channel.stable == B
        put(CHANNEL, former)
        for one in (follower, host()):  # also after a restart
            for _ in range(2):
                seen = one.look("support")
                assert (seen.channel.stable, seen.refused) == (B, True)
                assert (
                    "has a former generation 1 of the channel, and this host has seen 2"
                    in seen.errors[0]
                )

    @pytest.mark.parametrize("restarted", [True, False])
    def test_an_equal_generation_with_other_content_is_refused(self, store, host, restarted):
        deployed(store, A)
        follower = host()
        follower.look("support")
        put(CHANNEL, store.get(CHANNEL).content.replace(A.encode(), B.encode()))
        seen = (host() if restarted else follower).look("support")
        assert (seen.channel.stable, "has another generation 1" in seen.errors[0]) == (A, True)

    def test_it_is_on_disk_before_it_counts(self, store, host, tmp_path):
        deployed(store, A)
        follower = host()
        assert follower.look("support").errors == ()
        assert json.loads((tmp_path / "state/support.json").read_bytes())["generation"] == 1

    def test_a_restored_bucket_is_followed_again_by_a_generation_above(self, store, host):
        import adapters

        deployed(store, A)
        former = store.get(CHANNEL).content
        deployed(store, B, A, B)
        follower = host()
        follower.look("support")
        put(CHANNEL, former)
        for number in range(2, 5):  # the audit log of that day
            store.delete(f"audit/support/{number:09d}.json")
        assert follower.look("support").refused
        result = CliRunner().invoke(
            adapters.main, ["renumber", "support", "--above", "4", "--reason", "bucket restored"]
        )
        assert (result.exit_code, "generation 5, stable is aaaaaaaaaaaa" in result.output) == (
            0,
            True,
        ), result.output
        seen = follower.look("support")
        assert (seen.channel.stable, seen.channel.generation, seen.errors) == (A, 5, ())

    def test_the_refusal_is_in_health_and_metrics(self, store, host):
        deployed(store, A)
        former = store.get(CHANNEL).content
        deployed(store, B)
        follower = host()
        follower.look("support")
        put(CHANNEL, former)
        state, metrics = (
            HostState(
                "base", [Engine("http://127.0.0.1:9")], {"support": follower.look("support")}
            ),
            Metrics(),
        )
        state.refresh()
        metrics.show(state)
        assert "has a former generation 1" in state.report["support"]["errors"][0]
        assert metrics.registry.get_sample_value("llm_channel_refused", {"adapter": "support"}) == 1

    @pytest.mark.parametrize("size", [65 * 1024, 150 * 2**20])
    def test_a_channel_of_150_mib_costs_nothing_and_is_one_line(self, store, host, size):
        deployed(store, A)
        follower = host()
        follower.look("support")
        put(CHANNEL, bytes(size))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(3):
            seen = follower.look("support")
            assert (seen.channel.stable, len(seen.errors)) == (A, 1)
            assert f"has {size} bytes, and at most 65536 are read" in seen.errors[0]
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024  # KiB

    @pytest.mark.parametrize("where", ["reason", "updated_by", "updated_at", "a\nERROR forged"])
    @pytest.mark.parametrize("mark", ["\n", "\r", "\x1b[2K", "\u2028", "\u202e", "\x85"])
    def test_no_word_of_a_channel_forges_a_line_of_the_log(self, store, host, where, mark):
        deployed(store, A)
        document = json.loads(store.get(CHANNEL).content)
        put(
            CHANNEL,
            json.dumps({**document, "generation": 2, where: f"x{mark}ERROR forged"}).encode(),
        )
        (said,) = host().look("support").errors
        assert said.isprintable()

    @pytest.mark.parametrize("mark", ["\n", "\x1b", "\u2028", "\u202e"])
    def test_the_writer_refuses_them_too(self, store, mark):
        with pytest.raises(UsageError, match="Expected one line of text"):
            change_channel(
                store, "support", lambda channel: promote(channel, A), reason=f"x{mark}forged"
            )
        assert store.get(CHANNEL) is None

    @pytest.mark.parametrize("generation", [0, -1, 10**9, 1e300, True, "2", None, 1.5])
    def test_a_generation_is_a_whole_number_that_leaves_room(self, store, host, generation):
        deployed(store, A)
        put(
            CHANNEL,
            json.dumps(
                {**json.loads(store.get(CHANNEL).content), "generation": generation}
            ).encode(),
        )
        assert "is not a valid channel" in host().look("support").errors[0]

    def test_a_generation_with_a_point_is_a_whole_number(self, store, host):
        deployed(store, A)
        put(
            CHANNEL,
            json.dumps({**json.loads(store.get(CHANNEL).content), "generation": 2.0}).encode(),
        )
        assert str(host().look("support").channel.generation) == "2"
        deployed(store, B)
        assert read_channel(store, "support")[0].generation == 3

    def test_a_name_that_ends_with_a_line_feed_is_none(self, store, host):
        """Python's `$` stands before a last line feed too."""
        deployed(store, A)
        put(
            CHANNEL,
            json.dumps(
                {**json.loads(store.get(CHANNEL).content), "stable": A + "\n", "generation": 2}
            ).encode(),
        )
        assert "is not a valid channel" in host().look("support").errors[0]


class TestWithdrawal:
    def test_hosts_serve_the_previous_version_at_once_and_never_the_withdrawn_one(
        self, store, host, signer, trust
    ):
        deployed(store, A, B)
        bad = store.get(CHANNEL).content
        follower = host()
        follower.look("support")
        assert withdrawn_by(store, signer, trust).stable == A
        assert follower.look("support").served.stable == A
        document = {
            **json.loads(bad),
            "generation": 99,
        }  # who writes channels/ puts it back as the newest
        put(CHANNEL, json.dumps(document).encode())
        seen = follower.look("support")
        assert (seen.channel.stable, seen.served.stable, B in seen.served.versions) == (B, A, False)
        assert seen.notes == (
            f"{B[:12]} is withdrawn (it leaks names); instead of it {A[:12]} is served",
        )

    def test_without_a_version_to_go_back_to_nothing_is_served_and_it_is_said(
        self, store, host, signer, trust
    ):
        deployed(store, B)
        assert withdrawn_by(store, signer, trust).stable == B
        version = Version("support", B, "2026-01-01")
        engine = Engine("http://127.0.0.1:9", up=True, ready={version.engine_name: version})
        state = HostState("base", [engine], {"support": host().look("support")})
        state.refresh()
        report = state.report["support"]
        assert (state.routes["support"].stable, report["stable_ready"], report["unfit"]) == (
            None,
            False,
            {B: "it is withdrawn"},
        )
        assert report["errors"] == [
            f"{B[:12]} is withdrawn (it leaks names); instead of it nothing is served"
        ]

    def test_what_still_answers_does_not_stand_in_for_what_is_not_ready(
        self, store, host, signer, trust
    ):
        """The previous version is being loaded; the withdrawn one is loaded still."""
        deployed(store, A, B)
        version = Version("support", B, "2026-01-01")
        engine = Engine("http://127.0.0.1:9", up=True, ready={version.engine_name: version})
        state = HostState("base", [engine], {"support": host().look("support")})
        state.refresh()
        assert state.routes["support"].stable == version
        withdrawn_by(store, signer, trust)
        state.channels = {"support": host().look("support")}
        state.refresh()
        assert state.routes["support"].stable is None

    @pytest.mark.parametrize("attack", ["removed", "former", "emptied", "unsigned", "another's"])
    def test_nothing_that_is_done_to_the_list_brings_a_version_back(
        self, store, host, pairs, attack
    ):
        (signer, trust), (stranger, _) = pairs
        deployed(store, A, B)
        withdrawn_by(store, signer, trust, C)
        former = store.get(LIST).content
        withdrawn_by(store, signer, trust, B)
        newest = json.loads(store.get(LIST).content)
        follower = host()
        follower.look("support")
        if attack == "removed":
            store.delete(LIST)
        elif attack == "another's":
            store.delete(LIST)
            withdraw(store, "support", A, reason="mine now", signer=stranger, trust=None)
        else:
            newest["list"]["releases"] = newest["list"]["releases"][
                : 0 if attack == "emptied" else 2
            ]
            newest["signature"] = None if attack == "unsigned" else newest["signature"]
            put(LIST, former if attack == "former" else json.dumps(newest).encode())
        for one in (follower, host()):
            seen = one.look("support")
            assert seen.withdrawn == {B, C}
            assert len(seen.errors) == 1

    def test_a_list_that_strangers_write_withdraws_nothing(self, store, host, pairs):
        (_, trust), (stranger, _) = pairs
        deployed(store, A)
        for signer in (None, stranger):
            store.delete(LIST)
            withdraw(store, "support", A, reason="out", signer=signer, trust=None)
            seen = host().look("support")
            assert (seen.served.stable, seen.withdrawn) == (A, frozenset())
            assert (
                "Nothing is withdrawn by it" in seen.errors[0]
                or "nothing is withdrawn by it" in seen.errors[0]
            )
        with pytest.raises(
            RejectedError
        ):  # and is not gone on from, or the next signature would cover it
            withdraw(store, "support", B, reason="x", signer=stranger, trust=trust)

    def test_a_list_of_another_adapter_is_none(self, store, host, signer, trust):
        deployed(store, A)
        withdraw(store, "other", A, reason="x", signer=signer, trust=trust)
        put(LIST, store.get("withdrawn/other.json").content)
        seen = host().look("support")
        assert (seen.withdrawn, "it is of another adapter" in seen.errors[0]) == (frozenset(), True)

    @pytest.mark.parametrize(
        "body", [b"", b"null", b"[" * 5000, b"{}", bytes(2**20), b'{"schema": "withdrawn/v1"}']
    )
    def test_a_list_that_is_none_is_said_and_the_channel_is_followed(self, store, host, body):
        deployed(store, A)
        put(LIST, body)
        follower = host()
        for _ in range(2):
            seen = follower.look("support")
            assert (seen.channel.stable, len(seen.errors)) == (A, 1)

    def test_a_list_that_was_removed_grows_again(self, store, host, signer, trust):
        withdrawn_by(store, signer, trust, B)
        follower = host()
        follower.look("support")
        store.delete(LIST)
        withdrawn_by(store, signer, trust, C)
        seen = follower.look("support")
        assert (seen.withdrawn, seen.errors) == ({B, C}, ())

    def test_a_trial_of_it_ends(self, store, signer, trust):
        deployed(store, A)
        change_channel(
            store, "support", lambda channel: start_canary(channel, B, 10), reason="trial"
        )
        left = withdrawn_by(store, signer, trust)
        assert (left.stable, left.canary, left.weight) == (A, None, 0)
        assert withdrawn_by(store, signer, trust) == left  # asked for again, it is done already

    def test_no_rollback_leads_back_to_it(self, store, signer, trust):
        deployed(store, B, A)
        with pytest.raises(RejectedError, match="is withdrawn"):
            roll_back(store, "support", withdrawn={B})
        withdrawn_by(store, signer, trust)
        with pytest.raises(RejectedError, match="no previous version"):
            roll_back(store, "support")

    def test_nothing_releases_it(self, store, signer, trust):
        withdrawn_by(store, signer, trust)
        refuse_withdrawn(store, "support", A)
        with pytest.raises(
            RejectedError, match=rf"version {B[:12]} is withdrawn \(it leaks names\)"
        ):
            refuse_withdrawn(store, "support", B)

    def test_a_host_without_the_store_remembers(self, store, host, signer, trust, monkeypatch):
        deployed(store, A, B)
        bad = store.get(CHANNEL).content
        withdrawn_by(store, signer, trust)
        host().look("support")

        def away(*_):
            raise InfrastructureError("the store is away")

        for name in ("read_channel", "read_list"):
            monkeypatch.setattr(channel_follower, name, away)
        assert host().remembered("support").withdrawn == {B}
        assert host().look("support").served.stable == A
        assert B in bad.decode()

    def test_what_a_full_disk_did_not_keep_is_kept_later(
        self, store, host, signer, trust, monkeypatch
    ):
        deployed(store, A, B)
        follower = host()
        follower.look("support")
        withdrawn_by(store, signer, trust)
        with monkeypatch.context() as patch:
            patch.setattr(
                channel_follower,
                "write_json",
                lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
            )
            assert follower.look("support").withdrawn == {B}
        follower.look("support")
        store.delete(LIST)
        assert host().look("support").withdrawn == {B}

    def test_the_command_signs_and_says_what_is_served(self, store, trust, tmp_path, monkeypatch):
        import adapters
        from adapterops.specs import serving as config

        deployed(store, A, B)
        monkeypatch.setattr(config, "_trust", lambda _: trust)
        serving = str(config.ROOT / "configs/serving.demo.yaml")
        options = ["withdraw", "support", "--version", B, "--config", serving]
        result = CliRunner().invoke(adapters.main, options, env={"SIGNING_KEY": ""})
        assert (result.exit_code, "needs --version and --reason" in result.output) == (2, True), (
            result.output
        )
        options += ["--reason", "it leaks names"]
        result = CliRunner().invoke(adapters.main, options, env={"SIGNING_KEY": ""})
        assert (result.exit_code, "Give --signing-key" in result.output) == (2, True), result.output
        result = CliRunner().invoke(
            adapters.main, options, env={"SIGNING_KEY": str(tmp_path / "mine.pem")}
        )
        assert (
            result.exit_code,
            f"{B[:12]} is withdrawn; generation 3, stable is {A[:12]}" in result.output,
        ) == (0, True), result.output
        assert set(read_withdrawn(store, "support", trust).releases) == {B}
        result = CliRunner().invoke(
            adapters.main,
            [*options[:-1], "a\nforged"],
            env={"SIGNING_KEY": str(tmp_path / "mine.pem")},
        )
        assert result.exit_code == 0  # it is withdrawn already
        result = CliRunner().invoke(
            adapters.main,
            ["withdraw", "support", "--version", C, "--config", serving, "--reason", "a\nb"],
            env={"SIGNING_KEY": str(tmp_path / "mine.pem")},
        )
        assert (result.exit_code, "Expected one line of text" in result.output) == (2, True), (
            result.output
        )


def test_the_engine_forgets_it_before_anything_else_and_is_never_asked_to_load_it(
    store, host, signer, trust, monkeypatch, tmp_path
):
    from test_serving_host import small_host

    from adapterops.serving import reconciler as module
    from adapterops.serving.reconciler import Reconciler

    deployed(store, A, B)
    did = []
    monkeypatch.setattr(module, "unload_adapter", lambda _, name: did.append(("unload", name)))
    monkeypatch.setattr(module, "served_models", lambda _: {})
    reconciler = Reconciler(small_host(tmp_path), store, "http://127.0.0.1:9")
    monkeypatch.setattr(reconciler, "_forget_lost", lambda _: None)
    monkeypatch.setattr(
        reconciler, "_make_ready", lambda _, digest: did.append(("load", digest[:12]))
    )
    bad = Version("support", B, "2026-01-01")
    reconciler.ready = {bad.engine_name: bad}
    withdrawn_by(store, signer, trust)
    put(
        CHANNEL,
        json.dumps(
            {
                **json.loads(store.get(CHANNEL).content),
                "generation": 9,
                "stable": B,
                "canary": B,
                "previous": A,
            }
        ).encode(),
    )
    seen = host().look("support")
    reconciler.run_once(
        [seen.served], withdrawn=frozenset(("support", digest) for digest in seen.withdrawn)
    )
    assert did == [("unload", bad.engine_name), ("load", A[:12])]
    assert reconciler.ready == {}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_store_says_generations_and_withdrawals_only_grow(
    store, host, signer, trust, seed
):
    """Former channels and lists, damaged ones and none, in any order, with restarts in between."""
    import random

    dice = random.Random(seed)
    channels, lists = [], []
    for number, digest in enumerate((A, B, C, A)):
        deployed(store, digest)
        channels.append(store.get(CHANNEL).content)
        if number in (1, 2):
            withdrawn_by(store, signer, trust, digest)
            channels.append(store.get(CHANNEL).content)
            lists.append(store.get(LIST).content)
    follower, generation, withdrawn = host(), 0, frozenset()
    for _ in range(25):
        for key, former in ((CHANNEL, channels), (LIST, lists)):
            content = dice.choice([*former, b"{}", b"", None])
            if content is None:
                store.delete(key)
            else:
                put(key, content)
        if dice.random() < 0.3:
            follower = host()
        seen = follower.look("support")
        assert seen.channel.generation >= generation
        assert seen.withdrawn >= withdrawn
        assert not set(seen.served.versions) & seen.withdrawn
        generation, withdrawn = seen.channel.generation, seen.withdrawn
    assert generation
