"""The typed shapes of documents are those of their schemas, and the type checker goes by them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from generate_shapes import SHAPES, write

ROOT = Path(__file__).resolve().parents[2]


def test_shapes_are_as_make_types_writes_them(tmp_path):
    """Mended by `make types`."""
    write(tmp_path)
    kept = {path.name: path.read_text() for path in SHAPES.glob("*.py")}
    assert kept.pop("__init__.py")
    assert kept == {path.name: path.read_text() for path in tmp_path.glob("*.py")}


@pytest.mark.integration
def test_a_field_renamed_in_a_schema_fails_the_type_checker(tmp_path):
    """With `dict[str, Any]` between the stages, `mypy --strict` saw nothing there."""
    for folder in ("scripts", "configs", ".mypy_cache"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shape = tmp_path / "scripts/adapterops/shapes/gate_report.py"
    text = shape.read_text()
    assert "    judged_at: str" in text
    shape.write_text(text.replace("    judged_at: str", "    judged_on: str"))
    result = subprocess.run(
        [sys.executable, "-m", "mypy"], cwd=tmp_path, capture_output=True, text=True, env=os.environ
    )
    assert 'TypedDict "GateReport" has no key "judged_at"' in result.stdout
