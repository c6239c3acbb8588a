"""Documents are written whole or not at all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adapterops.documents import canonical_json, new_directory, read_json, write_bytes, write_json
from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.shapes.gate_report import GateReport


def test_equal_values_have_equal_bytes():
    assert (
        canonical_json({"b": 1, "a": "환불"})
        == canonical_json({"a": "환불", "b": 1})
        == '{"a":"환불","b":1}'.encode()
    )


def test_nan_is_not_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"value": float("nan")})


def test_a_document_that_breaks_its_schema_is_never_written(tmp_path):
    with pytest.raises(RuntimeError, match="gate_report"):
        write_json(tmp_path / "x.json", {"schema": "gate_report/v1"}, GateReport)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_bytes(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "not JSON"), (b'{"a": ', "not JSON"), (b"\xff", "not JSON"), (b"{}", "missing key")],
)
def test_a_damaged_document_is_named_with_the_way_out(tmp_path, content, reason):
    path = tmp_path / "gate_report.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason):
        read_json(path, GateReport)


def test_a_missing_document_names_its_stage(tmp_path):
    with pytest.raises(UsageError, match="The stage that writes it has not run"):
        read_json(tmp_path / "gate_report.json", GateReport)


def test_a_directory_appears_only_when_its_block_ends_well(tmp_path):
    target = tmp_path / "adapter"
    with pytest.raises(ZeroDivisionError), new_directory(target) as staging:
        (staging / "weights").write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with new_directory(target) as staging:
        (staging / "weights").write_text("first")
    with new_directory(target) as staging:
        (staging / "other").write_text("second")
    assert [file.name for file in target.iterdir()] == ["other"]
    assert [file.name for file in tmp_path.iterdir()] == ["adapter"]


def test_documents_are_readable_json(tmp_path):
    write_bytes(tmp_path / "x", json.dumps({"a": 1}).encode())
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_what_a_killed_process_left_is_removed_and_what_another_one_writes_is_not(tmp_path):
    target = tmp_path / "adapter"
    code = (
        "import sys, time; from pathlib import Path; from adapterops.documents import"
        " new_directory\n"
    )
    code += (
        f"with new_directory(Path({str(target)!r})) as staging:\n    print(staging, flush=True)\n  "
        "  time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    killed, alive = (Path(process.stdout.readline().strip()) for process in processes)
    processes[0].kill()
    processes[0].wait()
    for staging in (killed, alive):
        os.utime(staging, (0, 0))
    with new_directory(target) as staging:
        (staging / "file").write_text("new")
    assert (killed.exists(), alive.exists(), (target / "file").read_text()) == (False, True, "new")
    processes[1].kill()
    processes[1].wait()


def test_a_document_does_not_take_the_place_of_a_device(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is no regular file"):
        write_bytes(tmp_path / "pipe", b"x")
    assert not (tmp_path / "pipe").is_file()


def test_a_document_that_is_nested_too_deep_is_misuse(tmp_path):
    (tmp_path / "deep.json").write_text("[" * 200_000)
    with pytest.raises(UsageError, match="nested too deep"):
        read_json(tmp_path / "deep.json", GateReport)
