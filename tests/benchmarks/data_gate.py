"""Speed, memory and yield of the data gate; the tables of docs/data-gate.md.

# against the guide's script
python tests/benchmarks/data_gate.py --rows 200000
# and against datatrove, installed there
python tests/benchmarks/data_gate.py --rows 200000 --peer PYTHON
# 10,000, 100,000 and 1,000,000 rows
python tests/benchmarks/data_gate.py --growth
# defects put in and found
python tests/benchmarks/data_gate.py --yield

A peer: python -m venv /tmp/peer && /tmp/peer/bin/pip install datatrove==0.10.1 xxhash==3.5.0 regex
nltk tldextract spacy tokenizers orjson

Start-up (processes and the base model's tokenizer) is left out of the gate's and the peer's rows
per second, and shown.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import synthetic_rows  # noqa: E402

from adapterops.basemodels.materialize import base_model_directory  # noqa: E402
from adapterops.specs.base_model import find_base_model  # noqa: E402

_BASE_MODEL = "smollm2-135m-instruct"
_MAX_LENGTH = "2048"
# Codes that a defect must raise on its row.
_EXPECTED = {
    "exact copy": "H205",
    "near duplicate": "H206",
    "conflict": "H207",
    "e-mail": "E301",
    "phone": "E302",
    "registration number": "E303",
    "secret": "E309",
    "licence": "E501",
    "schema": "E110",
    "too short": "E202",
    "special token": "E204",
    "other language": "H601",
}


def gate(directory: Path) -> dict[str, Any]:
    """Run the command as a user would: its report, wall seconds, and the peak memory (RSS) of its
    processes together in bytes."""
    command = [
        sys.executable,
        str(ROOT / "scripts" / "validate_data.py"),
        "--format",
        "json",
        "--eval-data",
        str(directory / "eval.jsonl"),
    ]
    command += ["--base-model", _BASE_MODEL, "--max-length", _MAX_LENGTH]
    for name in ("en.jsonl", "ko.jsonl"):
        command += ["--input", str(directory / name)]
    peak, started = 0, time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = psutil.Popen(command, stdout=output)
        while process.poll() is None:
            peak = max(peak, _memory(process))
            time.sleep(0.05)
        seconds = time.monotonic() - started
        output.seek(0)
        return {"report": json.load(output), "seconds": seconds, "peak": peak}


def _memory(process: psutil.Process) -> int:
    total = 0
    for member in (process, *process.children(recursive=True)):
        try:
            total += member.memory_info().rss
        except psutil.Error:  # it has just ended
            continue
    return total


def guide(directory: Path) -> dict[str, Any]:
    """What the guide's script checks, in one pass of plain Python: copies by SHA-256, lengths in
    characters, three patterns."""
    patterns = [
        re.compile(p)
        for p in (
            r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b",
            r"\b\d{3}[-.]?\d{4}[-.]?\d{4}\b",
            r"\b\d{6}-\d{7}\b",
        )
    ]
    started = time.monotonic()
    rows = flagged = 0
    seen: set[str] = set()
    for path in (directory / "en.jsonl", directory / "ko.jsonl"):
        with path.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                rows += 1
                asked, said = row["instruction"], row["output"]
                key = hashlib.sha256((asked + said).encode()).hexdigest()
                copy = key in seen
                seen.add(key)
                short = len(asked.strip()) < 10 or len(said.strip()) < 5
                personal = any(
                    pattern.search(text) for pattern in patterns for text in (asked, said)
                )
                flagged += copy or short or personal
    return {"rows": rows, "seconds": time.monotonic() - started, "flagged": flagged}


def peer(python: str, directory: Path) -> dict[str, Any]:
    """Datatrove: near duplicates, e-mail and IP addresses, token counts; on as many processes."""
    tokenizer = (
        base_model_directory(find_base_model(_BASE_MODEL, "--base-model")) / "tokenizer.json"
    )
    command = [
        python,
        str(Path(__file__).with_name("data_gate_peer.py")),
        str(directory),
        str(tokenizer),
    ]
    result = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    values: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return values


def compare(directory: Path, python: str | None) -> None:
    """Print one row a tool."""
    ours, theirs = gate(directory), guide(directory)
    document, timing = ours["report"], ours["report"]["timing"]
    rows = theirs["rows"]
    print("| tool | checks | rows/s | start-up, s | whole, s |\n|---|---|---|---|---|")
    print(
        f"| data gate | all of docs/errors.md, {sum(document['counts'].values()):,} findings |"
        f" {timing['rows_per_second']:,} | {timing['startup_s']:.1f} | {ours['seconds']:.1f} |"
    )
    checks = (
        f"copies by SHA-256, length in characters, e-mail, phone, RRN; {theirs['flagged']:,} rows"
        " flagged"
    )
    print(
        f"| the guide's script | {checks} | {rows / theirs['seconds']:,.0f} | - |"
        f" {theirs['seconds']:.1f} |"
    )
    if python:
        with tempfile.TemporaryDirectory() as few:
            synthetic_rows.write(200, Path(few))
            startup = peer(python, Path(few))["seconds"]
        result = peer(python, directory)
        checks = (
            f"near duplicates (words), e-mail, IP, tokens; {rows - result['kept']:,} rows removed"
        )
        speed = rows / (result["seconds"] - startup)
        print(
            f"| datatrove 0.10.1 | {checks} | {speed:,.0f} | {startup:.1f} |"
            f" {result['seconds']:.1f} |"
        )


def growth(scratch: Path, sizes: list[int]) -> None:
    """Print time and memory by rows."""
    print(
        "| rows | MB | checks, s | rows/s | start-up, s | peak memory, MB"
        " |\n|---|---|---|---|---|---|"
    )
    for rows in sizes:
        about = synthetic_rows.write(rows, scratch)
        result = gate(scratch)
        timing = result["report"]["timing"]
        print(
            f"| {rows:,} | {about['bytes'] / 1e6:.0f} | {timing['checks_s']:.1f} |"
            f" {timing['rows_per_second']:,} | {timing['startup_s']:.1f} |"
            f" {result['peak'] / 1e6:,.0f} |"
        )


def found(scratch: Path, rows: int) -> None:
    """Print how many rows of each defect the gate names."""
    synthetic_rows.write(rows, scratch)
    findings = gate(scratch)["report"]["findings"]
    evaluation = synthetic_rows.evaluation_rows()
    named = {(finding["row_id"], finding["code"]) for finding in findings}
    put_in: collections.Counter[str] = collections.Counter()
    hit: collections.Counter[str] = collections.Counter()
    for korean in (False, True):
        for row, defect in synthetic_rows.training_rows(rows // 2, evaluation, korean=korean):
            if defect in _EXPECTED:
                put_in[defect] += 1
                hit[defect] += (row["id"], _EXPECTED[defect]) in named
    print("| defect | code | put in | found |\n|---|---|---|---|")
    for defect, code in _EXPECTED.items():
        print(f"| {defect} | {code} | {put_in[defect]} | {hit[defect]} |")


def main() -> None:
    """Print the table that was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has datatrove")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--yield", dest="found", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.growth:
            growth(Path(scratch), [10_000, 100_000, 1_000_000])
        elif options.found:
            found(Path(scratch), 20_000)
        else:
            about = synthetic_rows.write(options.rows, Path(scratch))
            print(
                f"{about['rows']:,} rows, mean {about['characters']} characters,"
                f" {about['bytes'] / 1e6:.0f} MB\n"
            )
            compare(Path(scratch), options.peer)


if __name__ == "__main__":
    main()
