"""A script started by any Python goes on in `.venv`, or says in one line how to make it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [
    path
    for path in sorted([*ROOT.glob("scripts/*.py"), *ROOT.glob("scripts/ci/*.py")])
    if path.name not in {"bootstrap.py", "in_venv.py", "start.py"}
]


def bare_python() -> str:
    """The interpreter below the virtual environment, which has none of its packages."""
    return str(Path(sys.base_prefix) / "bin" / "python3")


def run(script: Path, *, python: str) -> subprocess.CompletedProcess[str]:
    # -S: no packages, as on a machine where nothing was installed.
    return subprocess.run(
        [python, "-S", str(script), "--help"], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("script", ["plan.py", "ci/promote.py"])
def test_another_python_goes_on_in_the_virtual_environment(script):
    result = run(ROOT / "scripts" / script, python=bare_python())
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: {Path(script).name}")


@pytest.mark.parametrize("script", ["plan.py", "ci/promote.py"])
def test_where_nothing_is_installed_it_says_what_to_do(script, tmp_path):
    """`ModuleNotFoundError: No module named 'click'` was all that a newcomer read."""
    shutil.copytree(
        ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__")
    )
    result = run(tmp_path / "scripts" / script, python=bare_python())
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "Run `make setup` first." in result.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_script_enters_it_before_it_imports_anything_else(script):
    wanted = "start" if script.parent.name == "ci" else "in_venv"
    imports = [
        line
        for line in script.read_text(encoding="utf-8").splitlines()
        if line.startswith(("import ", "from ")) and "__future__" not in line
    ]
    assert imports[0].startswith(f"import {wanted} ")
