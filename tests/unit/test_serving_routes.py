"""Which version answers: by weight, the same for a session, and never one that is not ready."""

import pytest

from adapterops.serving.routes import Route, Version, choose, session_of

STABLE = Version("support", "a" * 64, "2026-11-01T00:00:00+00:00")
CANARY = Version("support", "b" * 64, "2026-11-02T00:00:00+00:00")
SESSIONS = [f"session-{number}" for number in range(4000)]


def test_each_version_has_its_own_name_in_the_engine():
    assert STABLE.engine_name == "support-aaaaaaaaaaaa"


@pytest.mark.parametrize("weight", [1, 10, 50, 90])
def test_sessions_are_shared_by_weight(weight):
    route = Route(STABLE, CANARY, weight)
    share = sum(choose(route, session) is CANARY for session in SESSIONS) / len(SESSIONS)
    assert share == pytest.approx(weight / 100, abs=0.02)


def test_requests_without_a_session_are_shared_by_weight():
    route = Route(STABLE, CANARY, 30)
    assert sum(choose(route, None) is CANARY for _ in range(4000)) / 4000 == pytest.approx(
        0.3, abs=0.04
    )


def test_a_session_keeps_its_version_and_a_growing_weight_only_moves_it_to_the_canary():
    former = set()
    for weight in (10, 50, 100):
        with_canary = {
            session
            for session in SESSIONS
            if choose(Route(STABLE, CANARY, weight), session) is CANARY
        }
        assert with_canary == {
            session
            for session in SESSIONS
            if choose(Route(STABLE, CANARY, weight), session) is CANARY
        }
        assert former <= with_canary
        former = with_canary
    assert former == set(SESSIONS)


def test_the_next_canary_tries_other_sessions():
    other = Version("support", "c" * 64, "2026-11-03T00:00:00+00:00")
    first = {
        session for session in SESSIONS if choose(Route(STABLE, CANARY, 10), session) is CANARY
    }
    second = {session for session in SESSIONS if choose(Route(STABLE, other, 10), session) is other}
    assert len(first & second) < len(first) / 2


def test_weight_0_is_0():
    assert all(choose(Route(STABLE, CANARY, 0), session) is STABLE for session in [None, *SESSIONS])


def test_the_first_version_ever_answers_all():
    assert choose(Route(None, CANARY, 10), None) is CANARY
    assert choose(Route(None, CANARY, 0), None) is None
    assert choose(Route(), "someone") is None


@pytest.mark.parametrize(
    ("headers", "body", "session"),
    [
        ({"x-session-id": "s1"}, {"user": "u1"}, "shop\0s1"),
        ({}, {"user": "u1"}, "shop\0u1"),
        ({}, {"user": ["not", "a", "string"]}, None),
        ({"x-session-id": ""}, {}, None),
    ],
)
def test_a_session_is_the_header_or_the_user(headers, body, session):
    assert session_of("shop", headers, body) == session


def test_a_session_that_meets_the_canary_does_so_for_one_key_alone():
    route = Route(STABLE, CANARY, 50)
    found = [
        name
        for name in SESSIONS
        if choose(route, session_of("shop", {"x-session-id": name}, {})) is CANARY
    ]
    others = sum(
        choose(route, session_of("search", {"x-session-id": name}, {})) is CANARY for name in found
    )
    assert 0.4 < others / len(found) < 0.6


@pytest.mark.parametrize("session", ["\u00e9", "a\x7f", "a\tb", "\udcff", "x" * 257])
def test_a_session_is_printable(session):
    with pytest.raises(ValueError, match="`x-session-id`"):
        session_of("shop", {"x-session-id": session}, {})
