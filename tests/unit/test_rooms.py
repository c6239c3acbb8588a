"""The map of rooms in CONTRIBUTING.md holds: each imports what stands above it, nothing below."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "scripts" / "adapterops"
# From the first to the last. What lies directly in the library comes before all, `pipeline` last.
ROOMS = (
    "foundation",
    "shapes",
    "specs",
    "statistics",
    "store",
    "basemodels",
    "engine",
    "data",
    "candidates",
    "train",
    "evaluate",
    "gate",
    "report",
    "plan",
    "deploy",
    "serving",
    "gitops",
    "retrospective",
    "pipeline",
)


def room_of(module: str) -> str:
    """Of `specs.gate` it is `specs`."""
    first = module.split(".", maxsplit=1)[0]
    return first if first in ROOMS else "foundation"


def imports(path: Path) -> set[str]:
    """Every module of the library that a file names, at its head or inside of a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {
            name.removeprefix("adapterops.") for name in names if name.startswith("adapterops.")
        }
    return found


FILES = sorted(LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(LIBRARY)))
def test_a_room_imports_only_what_comes_before_it(path):
    own = room_of(".".join(path.relative_to(LIBRARY).with_suffix("").parts))
    later = {module for module in imports(path) if ROOMS.index(room_of(module)) > ROOMS.index(own)}
    assert not later, f"{path.relative_to(ROOT)} is in {own} and imports {sorted(later)}"


def test_every_folder_is_a_room_and_the_map_names_them_in_this_order():
    folders = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert folders == set(ROOMS) - {"foundation", "pipeline"}
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `([a-z]+)/` \|", text, flags=re.MULTILINE)
    assert named == [room for room in ROOMS if room not in {"foundation", "pipeline"}]


def test_no_two_files_have_one_name():
    # A shape has its schema's name.
    names = [
        path.name for path in FILES if path.name != "__init__.py" and path.parent.name != "shapes"
    ]
    assert len(names) == len(set(names))


def test_what_runs_on_a_host_and_what_runs_in_ci_are_apart():
    """The gateway's process loads nothing that deploys, and a deployment nothing that serves."""
    for room, other in (("serving", "deploy"), ("deploy", "serving")):
        for path in (LIBRARY / room).glob("*.py"):
            assert not {name for name in imports(path) if room_of(name) == other}, path
