"""GitHub's API, as the scripts reach it in Actions."""

import os

import pytest

from play.github_api import NAME, GitHub

# Several workers share the cores: a thread that spins while it waits takes one from that very
# thread. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def github(monkeypatch):
    """A fake that checks every request against GitHub's description, and in the end that none was
    refused."""
    with GitHub() as github:
        for name, value in {
            "GITHUB_API_URL": github.url,
            "GITHUB_TOKEN": "token",
            "GITHUB_REPOSITORY": NAME,
        }.items():
            monkeypatch.setenv(name, value)
        yield github
        assert github.refused == []
