"""No process of an engine outlives it, whoever dies first. The engine here is a program with a
child, as vLLM's is."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from adapterops.engine import child_guard

# Says its child's number, then sleeps; {stubborn} makes both ignore SIGTERM.
ENGINE = """
import signal, subprocess, sys, time
if {stubborn}: signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; {ignore}; print('up', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
{then}
"""
SLEEP = "time.sleep(600)"


def start(grace=5.0, stubborn=False, then=SLEEP):
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else "pass"
    engine = [sys.executable, "-c", ENGINE.format(stubborn=stubborn, ignore=ignore, then=then)]
    process = subprocess.Popen(
        [sys.executable, child_guard.__file__, str(grace), *engine],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    child = psutil.Process(int(process.stdout.readline()))
    return process, child


def gone(process, within=5.0):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


def test_closing_its_input_stops_the_engine_and_its_child():
    process, child = start()
    process.stdin.close()
    assert process.wait(5) == 128 + signal.SIGTERM
    assert gone(child)


def test_what_ignores_sigterm_is_killed_after_the_grace():
    process, child = start(grace=0.5, stubborn=True)
    started = time.monotonic()
    process.stdin.close()
    assert process.wait(5) == 128 + signal.SIGKILL
    assert 0.4 < time.monotonic() - started < 3
    assert gone(child)


def test_a_killed_parent_takes_the_engine_with_it():
    parent_code = (
        "import subprocess, sys; guard = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE);"
        " guard.wait()"
    )
    engine = [sys.executable, "-c", ENGINE.format(stubborn=False, ignore="pass", then=SLEEP)]
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code, sys.executable, child_guard.__file__, "5", *engine],
        stdout=subprocess.PIPE,
        text=True,
    )
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    assert gone(child)


def test_a_child_does_not_outlive_an_engine_that_was_killed():
    process, child = start()
    os.kill(child.ppid(), signal.SIGKILL)
    assert process.wait(10) == 128 + signal.SIGKILL
    assert gone(child)


def test_a_killed_guard_takes_the_engine_with_it():
    process, child = start()
    engine = psutil.Process(child.ppid())
    process.kill()
    assert gone(engine)
    child.kill()


def test_the_status_of_the_engine_is_passed_on():
    process, child = start(then="sys.exit(7)")
    assert process.wait(10) == 7
    assert gone(child)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_the_guard(number):
    process, child = start()
    process.send_signal(number)
    if number == signal.SIGINT:  # Ctrl-C in a terminal reaches everybody; the parent decides
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
    process.wait(10)
    assert gone(child)
