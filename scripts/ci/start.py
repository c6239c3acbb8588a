"""Lets the scripts of this folder import from `scripts/`, in the repository's `.venv`.

Every script here imports this first.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import in_venv  # noqa: F401
