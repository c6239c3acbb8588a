"""Forms of a text in which equal content compares as equal."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_DROPPED = re.compile(r"[\W_]+")


def exact_form(text: str) -> str:
    """NFKC, case folded, white space collapsed: texts that differ in nothing that a reader would see are equal."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def loose_form(text: str) -> str:
    """NFKC, case folded, letters and digits only: `환불정책을` equals `환불 정책을`."""
    return _DROPPED.sub("", unicodedata.normalize("NFKC", text).casefold())


def fingerprint(text: str) -> int:
    """64 bits of a text; among a million texts two share one by chance once in 37 million times."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
