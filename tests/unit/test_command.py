"""What every command line shares."""

import signal
import subprocess
import sys
import time

from adapterops.schemas import ROOT

CHILD = """
import pathlib, signal, sys, time
def wind_up(*_):
    time.sleep(2)  # a checkpoint is written, traffic is taken back
    pathlib.Path(sys.argv[1], "ended well").touch()
    sys.exit(3)
signal.signal(signal.SIGINT, wind_up)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(60)
"""
PARENT = f"""
import signal, sys
# a shell has what it starts in the background ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(ROOT / "scripts")!r})
from adapterops.command import command, run_child

@command()
def main():
    return run_child([sys.executable, "-c", {CHILD!r}, DIRECTORY])

main()
"""


def interrupted(tmp_path, interrupts):
    """The exit code of a command that runs another program and is interrupted, as CI does it: the
    command alone gets the signals."""
    script = PARENT.replace("DIRECTORY", repr(str(tmp_path)))
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, **streams
    ) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for _ in range(interrupts):
            process.send_signal(signal.SIGINT)
            time.sleep(0.6)  # Popen.wait itself waits a quarter of a second
        return process.wait(30)


def test_an_interrupted_command_waits_for_the_program_that_it_runs(tmp_path):
    assert interrupted(tmp_path, 1) == 130
    assert (tmp_path / "ended well").exists()


def test_a_second_interrupt_ends_it(tmp_path):
    assert interrupted(tmp_path, 2) == 130
    assert not (tmp_path / "ended well").exists()
