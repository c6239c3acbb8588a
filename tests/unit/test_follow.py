"""What a host remembers of the channels, for a restart without the store."""

import pytest
from candidate_runs import empty_store

from adapterops.errors import InfrastructureError
from adapterops.serving import channel_follower
from adapterops.serving.channel_follower import Follower
from adapterops.store.channels import change_channel, promote, roll_back

A, B = "a" * 64, "b" * 64


@pytest.fixture
def store(monkeypatch):
    with empty_store(monkeypatch) as store:
        yield store


def test_a_rollback_that_a_full_disk_did_not_let_it_keep_is_kept_as_soon_as_there_is_space(
    store, monkeypatch, tmp_path
):
    """Else the version that was rolled back would be served again after a restart without the
    store."""
    follower = Follower(store, tmp_path)
    for digest in (A, B):
        change_channel(
            store,
            "support",
            lambda channel, digest=digest: promote(channel, digest),
            reason="deployed",
        )
    assert follower.look("support").channel.stable == B
    roll_back(store, "support")
    with monkeypatch.context() as patch:
        patch.setattr(
            channel_follower,
            "write_json",
            lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
        )
        seen = follower.look("support")
        assert (seen.channel.stable, "cannot be kept for a restart" in seen.errors[0]) == (A, True)
    assert follower.look("support").errors == ()

    def away(*_):
        raise InfrastructureError("the store is away")

    monkeypatch.setattr(channel_follower, "read_channel", away)
    assert Follower(store, tmp_path).look("support").channel.stable == A
