"""Personal data that must not be trained on: e-mail addresses, Korean phone numbers, resident registration numbers.

`\\b` is useless beside Hangul, where a particle is glued on (`hong@example.com으로`), so the borders are written out.
"""

from __future__ import annotations

import datetime
import re
import unicodedata
from collections.abc import Iterator

_EMAIL = re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![A-Za-z0-9@-])")
# Mobile, regional and internet numbers, with or without the country code; nationwide 15xx/16xx/18xx numbers.
_PHONE = re.compile(
    r"(?<![\d-])(?:"
    r"(?:\+?82[-. ]?\(?0?\)?|\(?0)(?:1[016789]|2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|50\d)\)?[-. ]?\d{3,4}[-. ]?\d{4}"
    r"|1[568]\d{2}[-. ]\d{4}"
    r")(?![\d-])"
)
# Six digits of a date, a separator or none, a seventh digit that names century and sex, six more.
_RRN = re.compile(r"(?<![\d-])(\d{2})(\d{2})(\d{2})([-–— ]?)([0-9])\d{6}(?![\d-])")
_CENTURY = {"9": 1800, "0": 1800, "1": 1900, "2": 1900, "5": 1900, "6": 1900, "3": 2000, "4": 2000, "7": 2000, "8": 2000}


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Code and matched text of every finding; full-width digits are read as digits."""
    text = unicodedata.normalize("NFKC", text)
    for match in _EMAIL.finditer(text):
        yield "E301", match.group()
    numbers = [match for match in _RRN.finditer(text) if _is_date(*match.groups())]
    for match in numbers:
        yield "E303", match.group()
    for match in _PHONE.finditer(text):
        if not any(number.start() < match.end() and match.start() < number.end() for number in numbers):
            yield "E302", match.group()


def masked(found: str) -> str:
    """The first two characters, so that a message does not repeat what must not be spread."""
    return found[:2] + "…"


def _is_date(year: str, month: str, day: str, separator: str, seventh: str) -> bool:
    """Numbers issued since October 2020 have no valid checksum, so the date is what can be checked.

    Thirteen digits in one run are often milliseconds since 1970: there, only the seventh digits of citizens count.
    """
    if not separator and seventh not in "1234":
        return False
    try:
        datetime.date(_CENTURY[seventh] + int(year), int(month), int(day))
    except ValueError:
        return False
    return True
