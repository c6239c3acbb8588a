"""Precision and recall of the detectors of personal data and secrets on the labelled set; the table
of docs/data-gate.md.

python tests/benchmarks/detectors.py [--errors]
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from adapterops.data.personal import KINDS, detect  # noqa: E402

LABELLED = ROOT / "tests" / "labelled" / "personal_data.jsonl"


def load(path: Path = LABELLED) -> list[dict[str, object]]:
    """The rows; secrets are stored in pieces, so that code hosts do not take them for real ones."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row["text"] = "".join(row["text"])
        for label in row["found"]:
            label["text"] = "".join(label["text"])
        rows.append(row)
    return rows


def measure(
    rows: list[dict[str, object]], *, show_errors: bool = False
) -> dict[str, dict[str, int]]:
    """Found, missed and wrongly found by kind. A finding is right if kind and text are the labelled
    ones."""
    counts = {kind: collections.Counter(found=0, missed=0, wrong=0) for kind in KINDS}
    for row in rows:
        text = str(row["text"])
        labels = collections.Counter((label["kind"], label["text"]) for label in row["found"])  # type: ignore[attr-defined]
        found = collections.Counter(
            (item.kind, text[item.start : item.end]) for item in detect(text)
        )
        for kind, _ in (labels & found).elements():
            counts[kind]["found"] += 1
        for kind, part in (labels - found).elements():
            counts[kind]["missed"] += 1
            if show_errors:
                print(f"missed {kind} {part!r} in {row['id']}: {text!r}")
        for kind, part in (found - labels).elements():
            counts[kind]["wrong"] += 1
            if show_errors:
                print(f"wrong  {kind} {part!r} in {row['id']}: {text!r}")
    return {kind: dict(counter) for kind, counter in counts.items()}


def main() -> None:
    """Print the table for the half that the rules were tuned on and for the half that was held
    back."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--errors", action="store_true", help="show every miss and false alarm of the first half"
    )
    options = parser.parse_args()
    rows = load()
    halves = {"tuned on": rows[0::2], "held back": rows[1::2]}
    print("| kind | half | labelled | recall | precision |\n|---|---|---|---|---|")
    for half, members in halves.items():
        for kind, count in measure(
            members, show_errors=options.errors and half == "tuned on"
        ).items():
            labelled, alarms = count["found"] + count["missed"], count["found"] + count["wrong"]
            if labelled or alarms:
                recall = f"{count['found'] / labelled:.3f}" if labelled else "-"
                precision = f"{count['found'] / alarms:.3f}" if alarms else "-"
                print(f"| {kind} | {half} | {labelled} | {recall} | {precision} |")
    negatives = sum(not row["found"] for row in rows)
    print(f"\n{len(rows)} rows, {negatives} of them without any personal data")


if __name__ == "__main__":
    main()
