"""A cleaned copy of a file: what a machine can mend without knowing what the author meant."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterops.data.normal import exact_form, fingerprint
from adapterops.data.personal import detect, mask
from adapterops.data.policy import Limits
from adapterops.data.reader import Entry, Row, parse_row, read_blocks
from adapterops.data.rows import answer, prompt_text
from adapterops.diagnostics import Finding
from adapterops.documents import write_bytes

_TEXTS = ("instruction", "input", "system", "output", "expected_output")


@dataclass
class Fixed:
    """What was done: counts of rows; and the lines that a person has to mend."""

    masked: int = 0
    normalised: int = 0
    dropped: int = 0
    kept: int = 0
    left: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.masked} rows masked, {self.normalised} normalised, {self.dropped} exact copies dropped, {self.kept} rows written"
        shown = ", ".join(map(str, self.left[:10])) + ("…" if len(self.left) > 10 else "")
        return text + (f"; left as they are, for a person to mend: lines {shown}" if self.left else "")


def fix(source: Path, target: Path, limits: Limits) -> Fixed:
    """Write `target`: personal data and secrets masked, text in NFC, exact copies dropped, no byte-order mark, LF line ends.

    Rows that need nothing keep their bytes, so that a diff shows what was done. A row that cannot be read stays as it is.

    Raises:
        UsageError: `source` cannot be opened.
    """
    done = Fixed()
    with source.open("rb") as file:
        array = file.read(64 * 1024).removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n").startswith(b"[")
    seen: set[int] = set()
    lines = [text for entry in _entries(source, done) if (text := _mended(source, entry, limits, seen, done)) is not None]
    done.kept = len(lines)
    body = "[\n" + ",\n".join(lines) + "\n]\n" if array else "".join(f"{line}\n" for line in lines)
    write_bytes(target, body.encode())
    return done


def _entries(source: Path, done: Fixed) -> Iterator[Entry]:
    for block in read_blocks(source):
        for item in [block] if isinstance(block, Finding) else block.entries(source):
            if isinstance(item, Entry):
                yield item
            elif item.code not in {"E102", "H101"}:
                done.left.append(item.line)


def _mended(source: Path, entry: Entry, limits: Limits, seen: set[int], done: Fixed) -> str | None:
    row = next((item for item in parse_row(source, entry.line, entry.text) if isinstance(item, Row)), None)
    if row is None or not _has_texts(row.value):
        done.left.append(entry.line)
        return entry.text
    value = json.loads(entry.text)
    original = json.dumps(value, ensure_ascii=False)
    _each_text(value, lambda text: unicodedata.normalize("NFC", text))
    normal = json.dumps(value, ensure_ascii=False)
    _each_text(value, lambda text: mask(text, detect(text, frozenset(limits.personal_data))))
    mended = json.dumps(value, ensure_ascii=False)
    done.normalised += normal != original
    done.masked += mended != normal
    key = fingerprint(exact_form(prompt_text(value)) + "\0" + exact_form(answer(value)))
    if key in seen:
        done.dropped += 1
        return None
    seen.add(key)
    return mended if mended != original else entry.text


def _has_texts(value: dict[str, Any]) -> bool:
    """True if the row has the parts that make a prompt and an answer, whatever else is wrong with it."""
    messages = value.get("messages")
    if messages is None:
        return isinstance(value.get("instruction"), str) and isinstance(value.get("output", value.get("expected_output")), str)
    parts = messages if isinstance(messages, list) else []
    return len(parts) > 1 and all(isinstance(part, dict) and isinstance(part.get("content"), str) for part in parts)


def _each_text(value: dict[str, Any], change: Any) -> None:
    for key in _TEXTS:
        if isinstance(value.get(key), str):
            value[key] = change(value[key])
    for message in value.get("messages") or []:
        message["content"] = change(message["content"])
