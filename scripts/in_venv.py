"""Runs a script in the repository's `.venv`, whatever Python it was started with.

Every script imports this first: before anything that is installed there.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
# One of each kind of requirement: a Python that has these was set up on purpose.
NEEDED = ("click", "boto3", "jsonschema", "transformers")


def _enter() -> None:
    """Go on in `.venv`, or say how to make it (exit 2).

    A module that is imported, by a test or a child process, stays where it is.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    if script is None or not Path(script).resolve().is_relative_to(ROOT / "scripts"):
        return
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    python = VENV / "bin" / "python"
    if python.is_file():
        os.execv(python, [str(python), *sys.argv])
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"{Path(sys.argv[0]).name} needs {', '.join(missing)}, which {sys.executable} has not,"
            f" and {VENV} does not exist. Run `make setup` first.\n"
        )
        sys.exit(2)


_enter()
