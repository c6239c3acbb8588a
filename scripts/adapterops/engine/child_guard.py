"""Runs a server as a child and leaves none of its processes behind, whoever dies first.

vLLM's EngineCore and workers outlive an API server that was killed, and all of them outlive a
parent that was killed. The guard holds the server's process group: it ends the group when its
standard input closes (the parent is gone, or asks for it) and when the server's first process ends.
If the guard itself is killed, the kernel ends the server (PR_SET_PDEATHSIG, prctl(2)).

    python child_guard.py GRACE_SECONDS COMMAND...
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time

_PR_SET_PDEATHSIG = 1


def main(grace: float, command: list[str]) -> int:
    """Run `command` in a process group of its own; `grace` seconds lie between SIGTERM and SIGKILL.

    Returns:
        The command's exit status, 128 + signal number if a signal ended it.
    """
    libc = ctypes.CDLL(None)
    # Both may come from a terminal or a service manager; the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stopping = False

    def stop(*_: object) -> None:
        nonlocal stopping
        stopping = True

    def child_setup() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=child_setup,  # noqa: PLW1509
    )
    signal.signal(signal.SIGTERM, stop)
    while server.poll() is None and not stopping:
        readable, _, _ = select.select([0], [], [], 0.2)
        if readable and not os.read(0, 1):
            break
    _send(server.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while (server.poll() is None or _alive(server.pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    _send(server.pid, signal.SIGKILL)
    status = server.wait()
    return status if status >= 0 else 128 - status


def _send(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
