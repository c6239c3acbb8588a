"""Forms of a text in which equal content compares as equal."""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata

_DROPPED = bytes(code for code in range(128) if not chr(code).isalnum())


# Normalisation sorts successive combining marks in quadratic time: half a megabyte of them takes
# minutes. No writing stacks as many.
_HEAP = 64
_HARMLESS = 2_000  # characters in which a heap costs no more than a few milliseconds


def nfc(text: str) -> str:
    """The text in Unicode normal form C; one with a heap of combining marks stays as it is."""
    return text if _has_heap(text) else unicodedata.normalize("NFC", text)


def exact_form(text: str) -> str:
    """NFKC, case folded, white space collapsed: texts that a reader takes for equal are equal."""
    return " ".join(_folded(text).split())


def loose_form(text: str) -> str:
    """NFKC, case folded, letters and digits only: `환불정책을` equals `환불 정책을`."""
    folded = _folded(text)
    if folded.isascii():
        return folded.encode().translate(None, _DROPPED).decode()
    return "".join(filter(str.isalnum, folded))


def _folded(text: str) -> str:
    if _has_heap(text):
        text = _heap().sub(lambda match: match.group()[:_HEAP], text)
    return unicodedata.normalize("NFKC", text).casefold()


def _has_heap(text: str) -> bool:
    return len(text) > _HARMLESS and not text.isascii() and _heap().search(text) is not None


@functools.cache
def _heap() -> re.Pattern[str]:
    """More than 64 combining marks, or characters that decompose into nothing else, in a row."""
    marks = "".join(filter(unicodedata.combining, map(chr, range(0x300, 0x1F000))))
    return re.compile(f"[{marks}\u0f73\u0f75\u0f81\uff9e\uff9f]{{{_HEAP + 1},}}")


def fingerprint(text: str) -> int:
    """64 bits of a text; among a million texts two share one by chance once in 37 million times."""
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )
