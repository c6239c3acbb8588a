"""Rows of a JSON array or a JSONL file, each with its line; any bytes give rows or findings."""

from __future__ import annotations

import functools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

import jsonschema_rs

from adapterops.data.rows import JsonObject
from adapterops.diagnostics import Finding
from adapterops.errors import RejectedError, UsageError
from adapterops.schemas import load_schema, schema_problems
from adapterops.shapes.eval_row import EvalRow
from adapterops.shapes.training_row import TrainingRow

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Kind = Literal["training", "eval"]

MAX_ROW_BYTES = 1_000_000
MAX_ARRAY_BYTES = 256_000_000
# Faults of the file that hide no row: a byte-order mark, Windows line ends.
HIDE_NO_ROW = frozenset({"E102", "E112"})
_BLOCK_BYTES = 2_000_000
_BLOCK_ROWS = 2_000
_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Zero-width characters, soft hyphens, and marks that turn the direction of writing: copied along
# from web pages, or put in to deceive.
_UNSEEN = re.compile("[\u00ad\u180e\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069]")
# Files that are taken for text now and then, by their first bytes.
_FORMATS = {
    b"\x1f\x8b": "compressed with gzip. Unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd. Unpack it",
    b"PK\x03\x04": "a zip archive or a spreadsheet. Unpack it, or export its rows as JSONL",
    b"PAR1": "a Parquet file. Export its rows as JSONL",
    b"\xff\xfe": "UTF-16. Save it as UTF-8",
    b"\xfe\xff": "UTF-16. Save it as UTF-8",
}
_DEEPEST = 100  # objects and lists in each other; parsers differ in what they stand
_PROBLEMS_PER_ROW = 20
_LONGEST_MESSAGE = 500  # characters; keys and values in it are data, and may be of any length


V_co = TypeVar("V_co", bound=JsonObject, covariant=True)  # the shape of a row


@dataclass(frozen=True)
class Row(Generic[V_co]):
    """One row and the line (1-based) on which it starts."""

    line: int
    value: V_co

    @property
    def id(self) -> str | None:
        """The row's own id."""
        found = self.value.get("id")
        return found if isinstance(found, str) else None


@overload
def load_rows(path: Path, kind: Literal["training"]) -> list[Row[TrainingRow]]: ...
@overload
def load_rows(path: Path, kind: Literal["eval"]) -> list[Row[EvalRow]]: ...
def load_rows(path: Path, kind: Kind) -> list[Row[TrainingRow]] | list[Row[EvalRow]]:
    """All rows of a file, each valid against its schema.

    Raises:
        UsageError: the file cannot be opened.
        RejectedError: any row or the file itself is at fault; names the first 20 places.
    """
    training: list[Row[TrainingRow]] = []
    evaluation: list[Row[EvalRow]] = []
    errors: list[Finding] = []
    for item in read_rows(path):
        if isinstance(item, Finding):
            errors += [item] if item.severity == "error" else []
        elif kind == "training" and is_training(item):
            training.append(item)
        elif kind == "eval" and is_evaluation(item):
            evaluation.append(item)
        else:
            errors += schema_findings(path, item, kind)
    if errors:
        more = f"\n… and {len(errors) - 20} more" if len(errors) > 20 else ""
        listed = "\n".join(error.text() for error in errors[:20])
        raise RejectedError(f"{path} has {len(errors)} problems:\n{listed}{more}")
    return training if kind == "training" else evaluation


def read_rows(path: Path) -> Iterator[Row[JsonObject] | Finding]:
    """Rows and findings in file order.

    Raises:
        UsageError: the file cannot be opened.
    """
    rows = 0
    for block in read_blocks(path):
        if isinstance(block, Finding):
            rows += block.code not in HIDE_NO_ROW
            yield block
            continue
        for entry in block.entries(path):
            rows += 1
            if isinstance(entry, Finding):
                yield entry
            else:
                yield from parse_row(path, entry.line, entry.text)
    if rows == 0:
        yield no_rows(path)


def no_rows(path: Path) -> Finding:
    """The finding about a file without rows."""
    return Finding(str(path), 1, "E108", "the file has no rows.")


@dataclass(frozen=True)
class Entry:
    """The text of one row, its line, and its bytes' place in a JSONL file."""

    line: int
    text: str
    offset: int = 0
    length: int = 0


@dataclass(frozen=True)
class Block:
    """Some successive rows; cheap to hand to another process.

    Args:
        line: line of the first row.
        offset: place of `data` in the file.
        data: whole lines of a JSONL file.
        rows: rows of a JSON array, instead of `data`.
    """

    line: int
    offset: int = 0
    data: bytes = b""
    rows: tuple[Entry, ...] = ()

    def entries(self, path: Path) -> Iterator[Entry | Finding]:
        """The texts of the rows, blank lines left out."""
        yield from self.rows
        offset = self.offset
        for number, line in enumerate(self.data.split(b"\n"), start=self.line):
            place, offset = offset, offset + len(line) + 1
            content = line.removeprefix(_BOM) if number == 1 else line
            if not content.strip(b" \t\r"):
                continue
            if len(line) > MAX_ROW_BYTES:
                yield _too_large(path, number, len(line))
                continue
            try:
                yield Entry(number, content.decode("utf-8").strip(" \t\r"), place, len(line))
            except UnicodeDecodeError as error:
                yield Finding(
                    str(path), number, "E101", f"byte {error.start + 1} of the line is not UTF-8."
                )


def file_size(path: Path) -> int:
    """Bytes of a file; 0 for one that cannot be had, which opening it explains."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return 0


def read_blocks(path: Path) -> Iterator[Block | Finding]:
    """The file in blocks of whole rows, streamed. A JSON array is told from JSONL by its first
    character, whatever the name.

    Raises:
        UsageError: the file cannot be opened, or is a pipe or a device, which has no end and cannot
            be read twice.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{str(path)!a}: the name is not UTF-8, which a report must be. Rename the file."
        ) from None
    try:
        if path.stat() and not (path.is_file() or path.is_dir()):
            raise UsageError(
                f"{path} is a pipe or a device. Expected a regular file; write the rows to one."
            )
        with path.open("rb") as file:
            head = file.read(64 * 1024)
            if head.startswith(_BOM):
                yield Finding(
                    str(path),
                    1,
                    "E102",
                    "the file begins with a byte-order mark. Expected UTF-8 without one.",
                )
                head = head[3:]
            is_array = head.lstrip(b" \t\r\n").startswith(b"[")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}.") from None
    for magic, what in _FORMATS.items():
        if head.startswith(magic):
            yield Finding(str(path), 1, "E101", f"the file is {what}.")
            return
    if b"\r\n" in head:
        yield Finding(str(path), 1, "E112", "Windows line ends (CRLF). Expected LF.")
    if not is_array and _is_one_object(path, head):
        message = (
            "not JSONL: the file is one JSON object over several lines. Expected one row a line, or"
            " a JSON array of rows."
        )
        yield Finding(str(path), 1, "E103", message)
        return
    yield from _blocks_of_array(path) if is_array else _blocks_of_lines(path)


def _is_one_object(path: Path, head: bytes) -> bool:
    """A row over several lines, or `{"data": […]}`: one fault of the file, not one a line."""
    first = head.lstrip(b" \t\r\n").partition(b"\n")[0]
    if first[:1] != b"{" or len(first) >= 60_000:
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        pass
    else:
        return False
    try:
        return file_size(path) <= MAX_ARRAY_BYTES and isinstance(
            json.loads(path.read_bytes().removeprefix(_BOM)), dict
        )
    except (ValueError, RecursionError):
        return False


def _too_large(path: Path, line: int, size: int) -> Finding:
    return Finding(
        str(path), line, "E107", f"the row has {size} bytes. Expected at most {MAX_ROW_BYTES}."
    )


def _blocks_of_lines(path: Path) -> Iterator[Block | Finding]:
    number, offset, rest, skipped = 1, 0, b"", 0
    with path.open("rb") as file:
        while chunk := file.read(_BLOCK_BYTES):
            if skipped:  # inside a row that is too large to keep
                end = chunk.find(b"\n") + 1
                if not end:
                    skipped += len(chunk)
                    continue
                yield _too_large(path, number, skipped + end)
                number, offset, skipped = number + 1, offset + skipped + end, 0
                chunk = chunk[end:]
            data = rest + chunk
            end = data.rfind(b"\n") + 1
            if end:
                yield Block(number, offset, data[:end])
                number, offset = number + data.count(b"\n", 0, end), offset + end
            rest = data[end:]
            if len(rest) > MAX_ROW_BYTES:
                skipped, rest = len(rest), b""
    if skipped:
        yield _too_large(path, number, skipped)
    elif rest:
        yield Block(number, offset, rest)


def _blocks_of_array(path: Path) -> Iterator[Block | Finding]:
    rows: list[Entry] = []
    for item in _array_entries(path):
        if isinstance(item, Finding):
            if rows:
                yield Block(rows[0].line, rows=tuple(rows))
                rows = []
            yield item
            continue
        rows.append(item)
        if len(rows) == _BLOCK_ROWS:
            yield Block(rows[0].line, rows=tuple(rows))
            rows = []
    if rows:
        yield Block(rows[0].line, rows=tuple(rows))


def _array_entries(path: Path) -> Iterator[Entry | Finding]:
    size = path.stat().st_size
    if size > MAX_ARRAY_BYTES:
        message = (
            f"a JSON array of {size} bytes. Expected at most {MAX_ARRAY_BYTES}; use JSONL, which is"
            " streamed."
        )
        yield Finding(str(path), 1, "E107", message)
        return
    raw = path.read_bytes().removeprefix(_BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        yield Finding(str(path), line, "E101", f"byte {error.start + 1} is not UTF-8.")
        return
    yield from _entries_of(path, text)


def _entries_of(path: Path, text: str) -> Iterator[Entry | Finding]:
    """The rows of a JSON array, each decoded once to find its end."""
    position = _skip(text, text.index("[") + 1)
    line, counted, rows = 1, 0, 0
    while True:
        line, counted = line + text.count("\n", counted, position), position
        if text.startswith("]", position) and rows == 0:
            yield Finding(str(path), line, "E108", "the array is empty.")
            break
        try:
            _, end = _SCANNER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            line += _lines_to(text, position, error)
            yield Finding(str(path), line, "E103", f"not JSON: {_reason(error)}.")
            return
        rows += 1
        yield Entry(line, text[position:end])
        position = _skip(text, end)
        if text.startswith(",", position):
            position = _skip(text, position + 1)
        elif text.startswith("]", position):
            break
        else:
            line += text.count("\n", counted, position)
            found = "the file ends" if position == len(text) else f"found `{text[position]}`"
            message = f"not JSON: {found} where a comma or `]` was expected."
            yield Finding(str(path), line, "E103", message)
            return
    rest = _skip(text, position + 1)
    if rest != len(text):
        line += text.count("\n", counted, rest)
        yield Finding(str(path), line, "E103", "text after the end of the array.")


class _ConstantError(ValueError):
    pass


def _refuse_constant(name: str) -> None:
    raise _ConstantError(name)


class _Pairs(dict[str, object]):
    """An object that remembers a key that stood twice in it."""

    repeated: str | None = None


def _pairs(pairs: list[tuple[str, object]]) -> _Pairs:
    value = _Pairs(pairs)
    if len(value) < len(pairs):
        value.repeated = _first_repeated(key for key, _ in pairs)
    for _, child in pairs:
        if value.repeated is None and isinstance(child, list | _Pairs):
            value.repeated = _repeated_in(child)
    return value


def _first_repeated(keys: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None


def _repeated_in(value: Any) -> str | None:
    if isinstance(value, list):
        return next((key for child in value if (key := _repeated_in(child)) is not None), None)
    return value.repeated if isinstance(value, _Pairs) else None


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise _ConstantError(f"{text[:40]}, which is read as infinity")
    return value


_SCANNER = json.JSONDecoder()
_DECODER = json.JSONDecoder(
    object_pairs_hook=_pairs, parse_constant=_refuse_constant, parse_float=_finite
)


def parse_row(path: Path, line: int, text: str) -> Iterator[Row[JsonObject] | Finding]:
    """The row of that text, with hints about it; or what is wrong with it."""
    value = _parsed(path, line, text)
    if isinstance(value, Finding):
        yield value
        return
    row = Row(line, value)
    escaped = "\\u" in text
    # A name with half a character in it could not be printed: this comes before anything that shows
    # one.
    if escaped and any(map(_SURROGATE.search, _strings(value))):
        message = "a lone surrogate (half of a \\uD83D\\uDE00-like pair)."
        yield Finding(str(path), line, "E109", message)
        return
    if value.repeated is not None:
        message = _short(f"key `{value.repeated}` stands twice.")
        yield Finding(str(path), line, "E105", message, row_id=row.id)
        return
    unseen = _UNSEEN.search(text) if not text.isascii() else None
    if unseen or (
        escaped and (unseen := next(filter(None, map(_UNSEEN.search, _strings(value))), None))
    ):
        mark = unseen.group()
        message = (
            f"the text has U+{ord(mark):04X} {unicodedata.name(mark, '')} in it, which nobody sees."
        )
        yield Finding(str(path), line, "H103", message, "hint", row.id)
    # The row's text tells quickly; where it holds escapes, or a mark follows one (`\\n` and a
    # tilde), only the strings tell.
    if (escaped or not unicodedata.is_normalized("NFC", text)) and not all(
        unicodedata.is_normalized("NFC", string) for string in _strings(value)
    ):
        message = "text is not in Unicode normal form C."
        yield Finding(str(path), line, "H102", message, "hint", row.id)
    yield row


def _parsed(path: Path, line: int, text: str) -> _Pairs | Finding:
    """The JSON object of that text, or why there is none."""

    def fault(code: str, message: str, after: int = 0) -> Finding:
        return Finding(str(path), line + after, code, message)

    if len(text) > MAX_ROW_BYTES:
        return fault(
            "E107", f"the row has {len(text)} characters. Expected at most {MAX_ROW_BYTES}."
        )
    if text.startswith("\ufeff"):
        return fault(
            "E103",
            "not JSON: a byte-order mark stands before the row, as where files were joined."
            " Remove it.",
        )
    try:
        value, end = _DECODER.raw_decode(text)
        if end != len(text):
            raise json.JSONDecodeError("Extra data after the row", text, end)
    except _ConstantError as error:
        return fault("E106", f"the row contains {error}. Expected a number or null.")
    except (ValueError, RecursionError) as error:
        return fault("E103", f"not JSON: {_reason(error)}.", _lines_to(text, 0, error))
    if not isinstance(value, _Pairs):
        kinds = {list: "a list", str: "a string", bool: "true or false", type(None): "null"}
        kind = kinds.get(type(value), "a number")
        return fault("E104", f"the row is {kind}. Expected an object.")
    if text.count("{") + text.count("[") > _DEEPEST and _depth(value) > _DEEPEST:
        return fault(
            "E103",
            f"nested too deeply. Expected at most {_DEEPEST} objects and lists in each other.",
        )
    return value


def _strings(value: Any) -> Iterator[str]:
    """Every key and string in a value, however deep."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from item
            left += item.values()
        elif isinstance(item, list):
            left += item


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [
            child for item in level for child in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _short(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else message[:_LONGEST_MESSAGE] + "…"


def is_training(row: Row[JsonObject]) -> TypeIs[Row[TrainingRow]]:
    """Whether a row is what `configs/schemas/training_row.json` says."""
    return _fast_validator("training").is_valid(row.value)


def is_evaluation(row: Row[JsonObject]) -> TypeIs[Row[EvalRow]]:
    """Whether a row is what `configs/schemas/eval_row.json` says."""
    return _fast_validator("eval").is_valid(row.value)


def schema_findings(path: Path, row: Row[JsonObject], kind: Kind) -> list[Finding]:
    """What of a refused row breaks `configs/schemas/<kind>_row.json`, the first 20 problems."""
    schema = f"{kind}_row"
    problems = [str(problem) for problem in schema_problems(row.value, schema)]
    # The two validators agree, as far as anybody knows; a refused row is never without a finding.
    problems = problems or [f"the row breaks configs/schemas/{schema}.json."]
    return [
        Finding(str(path), row.line, "E110", _short(problem), row_id=row.id)
        for problem in problems[:_PROBLEMS_PER_ROW]
    ]


@functools.cache
def _fast_validator(kind: Kind) -> jsonschema_rs.Validator:
    """Sixty times the speed of jsonschema, which explains what this one refuses."""
    return jsonschema_rs.validator_for(dict(load_schema(f"{kind}_row")))


def _skip(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:].removesuffix(' at')} at column {error.colno}"
    if "integer string conversion" in str(error):
        return "a number of more than 4,300 digits"
    return str(error).splitlines()[0][:200]


def _lines_to(text: str, start: int, error: Exception) -> int:
    return text.count("\n", start, error.pos) if isinstance(error, json.JSONDecodeError) else 0
