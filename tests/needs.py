"""Programs that some tests run, and that come from the operating system."""

import os
import shutil

import pytest


def program(name, package):
    """Its path. Where it is missing the test is skipped, and fails in CI, where nobody would notice
    that it never ran."""
    if path := shutil.which(name):
        return path
    message = (
        f"{name} is not installed: make test-tools (Debian, Ubuntu: apt-get install {package})"
    )
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
