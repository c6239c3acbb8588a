"""A cleaned copy of a file: what a machine can mend without knowing what the author meant."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adapterops.data.normal import exact_form, fingerprint, nfc
from adapterops.data.personal import Detected, detect, mask
from adapterops.data.reader import HIDE_NO_ROW, Block, Entry, Row, parse_row, read_blocks
from adapterops.data.rows import answer, has_texts, prompt_text
from adapterops.diagnostics import Finding
from adapterops.documents import write_bytes
from adapterops.errors import RejectedError
from adapterops.specs.policy import Limits

_BOM = b"\xef\xbb\xbf"
# A mask can bring to light what stood beside it; so many times is more than was ever seen.
_ROUNDS = 5

_Finder = Callable[[str], list[Detected]]
_Part = tuple[dict[str, str], str]  # an object and the key of a text in it


@dataclass
class Fixed:
    """What was done: counts of rows; and the lines that a person has to mend."""

    masked: int = 0
    normalised: int = 0
    dropped: int = 0
    kept: int = 0
    left: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"{self.masked} rows masked, {self.normalised} normalised, {self.dropped} exact copies"
            f" dropped, {self.kept} rows written"
        )
        shown = ", ".join(map(str, self.left[:10])) + ("…" if len(self.left) > 10 else "")
        return text + (
            f"; left as they are, for a person to mend: lines {shown}" if self.left else ""
        )


def fix(source: Path, target: Path, limits: Limits) -> Fixed:
    """Write `target`: personal data and secrets masked, text in NFC, exact copies dropped, no
    byte-order mark, LF line ends.

    Rows that need nothing keep their bytes, so that a diff shows what was done. A row that cannot
    be read stays as it is.

    Raises:
        UsageError: `source` cannot be opened.
        RejectedError: `source` is a JSON array that cannot be read to its end; what follows the
            fault would be lost.
    """
    done = Fixed()
    seen: set[int] = set()
    find = _finder(limits)
    array = _is_array(source)
    lines: list[bytes] = []
    for item in _array_entries(source) if array else _line_entries(source, done):
        text = _mended(source, item, find, seen, done) if isinstance(item, Entry) else item
        if text is not None:
            # Of a row over several lines; in JSON's strings there is none.
            lines.append(text.replace(b"\r\n", b"\n"))
    done.kept = len(lines)
    body = (
        b"".join(line + b"\n" for line in lines)
        if not array
        else b"[\n" + b",\n".join(lines) + b"\n]\n"
        if lines
        else b"[]\n"
    )
    write_bytes(target.resolve(), body)
    return done


def _is_array(source: Path) -> bool:
    for item in read_blocks(source):  # says what is wrong with a file that cannot be opened
        # Of the whole file: an archive, or one object over many lines.
        if isinstance(item, Finding) and item.code in {"E101", "E103"}:
            raise RejectedError(
                f"{source}:{item.line}: {item.code} {item.message} Rows would be lost: the file"
                " stays as it is."
            )
        if not isinstance(item, Finding) or item.code not in HIDE_NO_ROW:
            break
    with source.open("rb") as file:
        return file.read(64 * 1024).removeprefix(_BOM).lstrip(b" \t\r\n").startswith(b"[")


def _array_entries(source: Path) -> Iterator[Entry]:
    for item in read_blocks(source):
        if isinstance(item, Block):
            yield from item.rows
        elif item.code not in {"E108", *HIDE_NO_ROW}:
            raise RejectedError(
                f"{source}:{item.line}: {item.code} {item.message} What follows it would be lost."
                " Mend this place first."
            )


def _line_entries(source: Path, done: Fixed) -> Iterator[Entry | bytes]:
    """The rows of a JSONL file, and the bytes of those that cannot be read."""
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            for item in Block(number, 0, line).entries(source):
                if isinstance(item, Entry):
                    yield item
                else:
                    done.left.append(number)
                    yield (line.removeprefix(_BOM) if number == 1 else line).rstrip(b"\r\n")


def _mended(source: Path, entry: Entry, find: _Finder, seen: set[int], done: Fixed) -> bytes | None:
    """The row's new bytes; None for an exact copy of an earlier one."""
    row = next(
        (item for item in parse_row(source, entry.line, entry.text) if isinstance(item, Row)), None
    )
    if row is None or not has_texts(row.value):
        done.left.append(entry.line)
        return entry.text.encode()
    original = json.dumps(row.value, ensure_ascii=False)
    value = _normalised(row.value)
    normal = json.dumps(value, ensure_ascii=False)
    prompt, said = _parts(value)
    _mask(prompt, find)
    _mask(said, find)
    mended = json.dumps(value, ensure_ascii=False)
    done.normalised += normal != original
    done.masked += mended != normal
    key = fingerprint(exact_form(prompt_text(value)) + "\0" + exact_form(answer(value)))
    if key in seen:
        done.dropped += 1
        return None
    seen.add(key)
    return (mended if mended != original else entry.text).encode()


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return nfc(value)
    if isinstance(value, list):
        return [_normalised(item) for item in value]
    if isinstance(value, dict):
        changed = {nfc(key): _normalised(item) for key, item in value.items()}
        return changed if len(changed) == len(value) else value
    return value


def _parts(value: Any) -> tuple[list[_Part], list[_Part]]:
    """The texts of a row (JSON that `has_texts`): of the prompt, in order, and of the answer."""
    if "messages" in value:
        messages = [(message, "content") for message in value["messages"]]
        return messages[:-1], messages[-1:]
    asked = [(value, key) for key in ("system", "instruction", "input") if value.get(key)]
    return asked, [(value, "output" if "output" in value else "expected_output")]


def _finder(limits: Limits) -> _Finder:
    kinds = frozenset(limits.personal_data)

    def find(text: str) -> list[Detected]:
        return sorted(detect(text, kinds, most=None), key=lambda item: item.start)

    return find


def _mask(parts: list[_Part], find: _Finder) -> None:
    """Mask the texts as the gate reads them: together, because a word in one tells what a number in
    the next one is.
    """
    for _ in range(_ROUNDS):
        found = find("\n\n".join(part[key] for part, key in parts))
        if not found:
            return
        start = 0
        for part, key in parts:
            end = start + len(part[key])
            inside = [
                replace(item, start=item.start - start, end=min(item.end, end) - start)
                for item in found
                if start <= item.start < end
            ]
            part[key], start = mask(part[key], inside), end + 2
