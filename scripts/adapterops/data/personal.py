"""Personal data and credentials that must not be trained on.

Korean glues particles to what stands before (`hong@example.com으로`, `010-1234-5678로`), so `\\b`
finds no border there and the borders are written out. Every pattern is linear: no repetition stands
inside another one that could match the same text.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

KINDS = {
    "email": "E301",
    "phone": "E302",
    "rrn": "E303",
    "passport": "E304",
    "driver_licence": "E305",
    "card": "E306",
    "ip": "E307",
    "secret": "E309",
}
# What stands in for a finding in a masked copy.
MASKS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "rrn": "[RRN]",
    "passport": "[PASSPORT]",
    "driver_licence": "[DRIVER_LICENCE]",
    "card": "[CARD]",
    "ip": "[IP]",
    "secret": "[SECRET]",
}


@dataclass(frozen=True)
class Detected:
    """One finding in a text.

    Args:
        kind: a key of `KINDS`.
        start: where it begins in the text.
        end: one past its end.
        certain: a checksum confirms it; without one it is likely.
    """

    kind: str
    start: int
    end: int
    certain: bool = False


# Zero-width characters and soft hyphens, which come along when text is copied from web pages.
_INVISIBLE = re.compile("[\u00ad\u180e\u200b-\u200f\u2060\ufeff]")
MOST = 100  # findings in one text that are worth a report; a row with more is refused all the same

_DASH = "-‐‑‒–—―−ㅡ\u1173"  # the last is what NFKC makes of the one before
_GAP = rf"(?:\s?[{_DASH}.·/]\s?|\s|)"  # between groups of digits: a dash, dot or blank, or nothing

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_](?:[A-Za-z0-9._%+'-]{0,62}[A-Za-z0-9_+-])?@"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,5}([A-Za-z]{2,24})"
    r"(?![A-Za-z0-9@]|[-.][A-Za-z0-9])"
)
# Package specifications and file names have the shape of an address.
_NOT_TOP_LEVEL = {
    "js",
    "py",
    "png",
    "jpg",
    "jpeg",
    "gif",
    "svg",
    "webp",
    "css",
    "json",
    "md",
    "txt",
    "local",
    "internal",
    "localhost",
}

_AREA = r"0(?:1[016789]|2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|80|50\d)"
_NAMED = "|".join(
    f"(?<={name})" for word in ("TEL", "Tel", "tel", "HP", "hp") for name in (word, f"{word}-")
)
_PHONE = re.compile(
    rf"(?:{_NAMED}|(?<![\dA-Za-z])(?<![A-Za-z][-_]))"  # `TEL-02-…` is named, `SKU-02-…` is none
    r"(?:(?<=\d{4}/)|(?<!\d[-.:/_]))(?:"  # one number may stand behind another: `…-5678/010-…`
    # Country code, then mobile, regional or internet number.
    rf"(?:\+|00)?82\)?{_GAP}(?:\(?0\)?\s?)?"
    r"(?:1[016789]|2|3[1-3]|4[1-4]|5[1-5]|6[1-4]|70|50\d)"
    rf"\)?{_GAP}\d{{3,4}}{_GAP}\d{{4}}"
    rf"|(?:\({_AREA}\)|{_AREA}\)?){_GAP}\d{{3,4}}{_GAP}\d{{4}}"
    # Nationwide numbers, which are eight digits and never written in one run.
    r"|1(?:5(?:22|33|44|55|66|77|88|99)"
    r"|6(?:00|44|61|66|68|70|77|88|99)"
    r"|8(?:00|11|33|44|55|60|66|77|88|99))"
    rf"(?:\s?[{_DASH}.]\s?|\s)\d{{4}}"
    r")(?![\dA-Za-z])(?![-.:_]\d|/(?!0\d|1[568]\d\d|\+)\d)(?![-_][A-Za-z])"
)
# `1588-1600` is a range and `1600 - 1544` a sum unless something speaks of a telephone; `1588-1234`
# is neither.
_YEAR = re.compile(r"(?:1\d|20)\d\d$")
# Words of context are no masks: `[PHONE]` says nothing of the number beside it.
_PHONE_CONTEXT = re.compile(
    r"전화|번호|센터|콜|문의|연락|대표|상담|통화|걸|☎|call|(?<!\[)phone|dial|tel|hotline|reach|contact|line|ring",
    re.IGNORECASE,
)

_RRN = re.compile(
    r"(?<![\dA-Za-z])(?<!\d[-.:/_])(\d{2})(\d{2})(\d{2})"
    rf"(\s?[{_DASH}._/~·:*|,]\s?|\s|)"
    r"(\d)(\d{6})(?![\dA-Za-z])(?![-.:/_]\d)"
)
_CENTURY = {
    "9": 1800,
    "0": 1800,
    "1": 1900,
    "2": 1900,
    "5": 1900,
    "6": 1900,
    "3": 2000,
    "4": 2000,
    "7": 2000,
    "8": 2000,
}
_RRN_CONTEXT = re.compile(
    r"주민|등록\s?번호|거소|외국인|resident|registration|(?<!\[)RRN|ARC|ID number|주번",
    re.IGNORECASE,
)

_PASSPORT = re.compile(
    r"(?<![0-9A-Za-z-])(?:[MSRODG]\d{8}|M\d{3}[A-Z]\d{4})(?![0-9A-Za-z]|-\d)", re.IGNORECASE
)
_PASSPORT_CONTEXT = re.compile(
    r"여권|(?<!\[)passport|탑승|승객|출국|입국|비자|visa|travell?er|passenger|항공|체크인|check-?in|국적",
    re.IGNORECASE,
)
_DRIVER_LICENCE = re.compile(
    r"(?<![\dA-Za-z])(?<!\d[-.])(?:1[1-9]|2[0-8])"
    rf"[{_DASH} ]?\d{{2}}[{_DASH} ]?\d{{6}}[{_DASH} ]?\d{{2}}"
    r"(?![\dA-Za-z])(?!-\d)"
)
# Must speak for one that is written without dashes.
_DRIVER_LICENCE_CONTEXT = re.compile(r"면허|licen[cs]e", re.IGNORECASE)
_CARD = re.compile(
    r"(?<![\dA-Za-z])(?<!\d[-.:/_])"
    rf"[2-69]\d{{3}}(?:[ {_DASH}]?\d){{9,15}}"
    r"(?![\dA-Za-z])(?![-.:/_]\d)"
)
_IPV4 = re.compile(r"(?<![\dA-Za-z.])(?<!v )(?:\d{1,3}\.){3}\d{1,3}(?![\dA-Za-z])(?!\.\d)")
_IPV6 = re.compile(
    r"(?<![\dA-Za-z.])(?<!::)"
    r"(?:[0-9A-Fa-f]{1,4}:|:(?=:))(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}"
    r"(?![\dA-Za-z:])"
)
_UNICAST = ipaddress.ip_network("2000::/3")  # all public addresses of RFC 4291; `ab::cd` is code
# `IP:` or `source:` before an address is not a part of it.
_LABEL = re.compile(r"(?:^|[^\w.:])(?![0-9A-Fa-f]{1,4}:)\w+:$")
# `약관 3.2.1.4항`
_CLAUSE = re.compile(r"\s?(?:[조항절호장]|번\s?항목)(?![가-힣]*\s?(?:서버|접속))")
_MAYBE_IPV4 = re.compile(r"\d\.\d{1,3}\.\d")
_VERSION = re.compile(
    r"(?:버전|빌드|펌웨어|드라이버|릴리[스즈]|업데이트|패치"
    r"|version|build|firmware|driver|release|update|patch|Windows|Chrome|Edge|macOS|iOS|Android"
    r"|\bv|\brev|버젼|assembly|package|dll|section|chapter|clause|§|\boid|extension"
    r"|조항|장|절|항목|표준)"
    r"[\s:=.-]*(?:은|는|이|가|을|를|to|is|from|에서|number|번호)?[\s:=]*$",
    re.IGNORECASE,
)

# Published token formats: GitHub, GitLab, Slack, AWS, Google, Stripe, OpenAI, Anthropic, Hugging
# Face, npm, PyPI, JWT (RFC 7519), PEM.
_SECRET = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{40,255}|glpat-[A-Za-z0-9_-]{18,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}|xapp-\d-[A-Za-z0-9-]{20,250}"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,250}"
    r"|[sr]k_live_[A-Za-z0-9]{16,250}|whsec_[A-Za-z0-9]{24,250}"
    r"|sk-ant-[A-Za-z0-9_-]{20,250}|sk-(?:proj-|svcacct-)?[A-Za-z0-9_-]{32,250}"
    r"|hf_[A-Za-z0-9]{30,60}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}"
    r"|SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}"
    r"|(?<![_-])eyJ[A-Za-z0-9_-]{10,2000}+\.eyJ[A-Za-z0-9_-]{10,4000}+\.[A-Za-z0-9_-]{10,2000}"
    r")(?![A-Za-z0-9])"
    r"|-----BEGIN (?:[A-Z0-9]{2,12} ){0,2}PRIVATE KEY(?: BLOCK)?-----"
)
# AWS secret keys have no prefix; the name before them tells.
_NAMED_SECRET = re.compile(
    r"(?i:aws.{0,12}secret.{0,20}?[\s:=\"'`]{1,5}"
    r"|secret.?access.?key[\s:=\"'`]{1,5}(?:는|은|is)?[\s:=\"'`]{0,4})"
    r"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"
)
# One of these stands in every secret that the patterns know.
_HINT_OF_SECRET = re.compile(
    r"A[KS]IA|gh[pousr]_|github_pat|glpat|xox|xapp|AIza|ya29|k_live|whsec|sk-|hf_|npm_|pypi-"
    r"|SG\.|eyJ|PRIVATE KEY"
)
_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}-----")
# Of a key whose end is missing.
_KEY_BODY = re.compile(r"(?:(?:\s|\\n|\\r){1,4}[A-Za-z0-9+/=]{16,}+)*")
_DIGIT = re.compile(r"\d")
_DIGITS = re.compile(r"\d(?:[^\d\n]{0,4}\d){6}")


def detect(
    text: str, kinds: frozenset[str] | None = None, most: int | None = MOST
) -> list[Detected]:
    """Findings in order of place, none overlapping another. Full-width letters and digits are read
    as ordinary ones.

    Args:
        text: any text.
        kinds: which kinds to look for; None looks for all.
        most: stop after so many findings; None for none.
    """
    if text.isascii() or (unicodedata.is_normalized("NFKC", text) and not _INVISIBLE.search(text)):
        return _detect(text, kinds, most)
    folded, origin = _fold(text)
    found = [
        Detected(item.kind, origin[item.start], origin[item.end - 1] + 1, item.certain)
        for item in _detect(folded, kinds, most)
    ]
    # One character can stand for several (`⒈` for `1.`): the end of one finding and the beginning
    # of the next.
    return [
        item for place, item in enumerate(found) if place == 0 or found[place - 1].end <= item.start
    ]


def masked(found: str) -> str:
    """The first two characters, so that a message does not repeat what must not be spread."""
    return found[:2] + "…"


def mask(text: str, found: list[Detected]) -> str:
    """The text with every finding replaced by the name of its kind; of a private key not only its
    first line, but all of it.
    """
    parts, done, closed = [], 0, True
    for item in sorted(found, key=lambda item: item.start):
        if item.start < done:  # inside a private key
            continue
        parts += [text[done : item.start], MASKS[item.kind]]
        done = item.end
        if item.kind == "secret" and text.startswith("-----BEGIN", item.start):
            closing = _KEY_END.search(text, done) if closed else None
            closed = closing is not None
            body = closing or _KEY_BODY.match(text, done)
            done = body.end() if body else done
    return "".join([*parts, text[done:]])


def _fold(text: str) -> tuple[str, list[int]]:
    """NFKC by character without the invisible ones, and each character's place in `text`."""
    parts, origin = [], []
    for place, character in enumerate(text):
        if _INVISIBLE.match(character):
            continue
        folded = unicodedata.normalize("NFKC", character)
        parts.append(folded)
        origin.extend([place] * len(folded))
    return "".join(parts), origin


def _detect(text: str, kinds: frozenset[str] | None, most: int | None) -> list[Detected]:
    finders: list[tuple[str, Callable[[str], Iterator[Detected]]]] = []
    if _HINT_OF_SECRET.search(text) or "secret" in text.lower():
        finders.append(("secret", _secrets))
    if "@" in text:
        finders.append(("email", _emails))
    digit = _DIGIT.search(text)
    if digit and _DIGITS.search(text, digit.start()):
        finders += [
            ("card", _cards),
            ("driver_licence", _driver_licences),
            ("rrn", _registration_numbers),
            ("passport", _passports),
            ("phone", _phones),
        ]
    if (digit and _MAYBE_IPV4.search(text, digit.start())) or "::" in text or text.count(":") > 6:
        finders.append(("ip", _addresses))
    if not finders:
        return []
    found: list[Detected] = []
    for kind, finder in finders:
        if kinds is None or kind in kinds:
            left = None if most is None else most - len(found)
            found = _joined(found, list(itertools.islice(finder(text), left)))
    return found


def _joined(first: list[Detected], second: list[Detected]) -> list[Detected]:
    """Both in order of place; of the second none that overlaps an earlier one. Linear."""
    if not second:
        return first
    taken: list[Detected] = []
    place = end = 0
    for item in sorted(second, key=lambda item: item.start):
        while place < len(first) and first[place].end <= item.start:
            place += 1
        free = place == len(first) or item.end <= first[place].start
        if free and item.start >= end:
            taken.append(item)
            end = item.end
    return sorted([*first, *taken], key=lambda item: item.start)


def _emails(text: str) -> Iterator[Detected]:
    for match in _EMAIL.finditer(text):
        if match.group(1).lower() not in _NOT_TOP_LEVEL:
            yield Detected("email", *match.span())


def _phones(text: str) -> Iterator[Detected]:
    for match in _PHONE.finditer(text):
        part = match.group()
        is_range = (
            part[0] == "1"
            and _YEAR.search(part) is not None
            and (part[:4] < part[-4:] or len(part) > 9)
        )
        if is_range and not _PHONE_CONTEXT.search(
            text, max(0, match.start() - 25), match.end() + 15
        ):
            continue
        yield Detected("phone", *match.span())


def _registration_numbers(text: str) -> Iterator[Detected]:
    """Resident and foreigner registration numbers with a real date of birth.

    Numbers issued since October 2020 have no checksum, so a valid one raises confidence and a wrong
    one says nothing; only in thirteen digits without a separator, which are often milliseconds
    since 1970, checksum or context must speak for it; and where the separator is one that file
    names and versions have (`240115_1234567`).
    """
    for match in _RRN.finditer(text):
        year, month, day, separator, seventh, rest = match.groups()
        try:
            born = datetime.date(_CENTURY[seventh] + int(year), int(month), int(day))
        except ValueError:
            continue
        if born > datetime.datetime.now(datetime.UTC).date() or born.year < 1900:
            continue
        digits = year + month + day + seventh + rest
        certain = _has_checksum(digits)
        if not separator and not _RRN_CONTEXT.search(
            text, max(0, match.start() - 30), match.end() + 15
        ):
            if digits.startswith("880") and _is_ean13(digits):
                continue  # the bar code of a Korean product
            if digits[0] == "1" and digits[1] in "3456789" and not certain:
                continue  # 1300000000000 to 1999999999999: milliseconds of the years 2011 to 2033
        if "\n" in separator:
            continue
        unusual = separator.strip() and separator.strip() not in _DASH
        if (
            unusual
            and not certain
            and not _RRN_CONTEXT.search(text, max(0, match.start() - 30), match.end() + 15)
        ):
            continue
        yield Detected("rrn", *match.span(), certain=certain)


def _has_checksum(digits: str) -> bool:
    total = sum(
        int(digit) * weight
        for digit, weight in zip(digits, (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), strict=False)
    )
    expected = (11 - total % 11) % 10
    foreign = (13 - total % 11) % 10
    return int(digits[12]) == (foreign if digits[6] in "5678" else expected)


def _is_ean13(digits: str) -> bool:
    """The check digit of GS1 General Specifications, section 7.9."""
    return (
        sum(int(digit) * (3 if position % 2 else 1) for position, digit in enumerate(digits)) % 10
        == 0
    )


def _passports(text: str) -> Iterator[Detected]:
    for match in _PASSPORT.finditer(text):
        if _PASSPORT_CONTEXT.search(text, max(0, match.start() - 80), match.end() + 80):
            yield Detected("passport", *match.span())


def _driver_licences(text: str) -> Iterator[Detected]:
    for match in _DRIVER_LICENCE.finditer(text):
        dashed = sum(match.group().count(dash) for dash in _DASH) == 3
        if dashed or _DRIVER_LICENCE_CONTEXT.search(
            text, max(0, match.start() - 20), match.end() + 20
        ):
            yield Detected("driver_licence", *match.span())


def _cards(text: str) -> Iterator[Detected]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"\D", "", match.group())
        if (
            len(digits) in {13, 14, 15, 16, 19}
            and _is_card_prefix(digits)
            and len(set(digits)) > 1
            and _luhn(digits)
        ):
            yield Detected("card", *match.span(), certain=True)


def _is_card_prefix(digits: str) -> bool:
    """Issuer prefixes with the lengths that they are issued in (ISO/IEC 7812; Korean domestic cards
    begin with 9).
    """
    length, two, four = len(digits), int(digits[:2]), int(digits[:4])
    if digits[0] == "4":
        return length in {13, 16, 19}
    if two in {34, 37}:
        return length == 15
    if two in {30, 36, 38, 39}:
        return length == 14
    return length in {16, 19} and (
        51 <= two <= 55
        or 2221 <= four <= 2720
        or two in {35, 60, 62, 64, 65, 94}
        or digits[0] == "9"
    )


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812-1."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _addresses(text: str) -> Iterator[Detected]:
    """Public IP addresses; private, loopback and documentation ranges name nobody."""
    for match in (*_IPV4.finditer(text), *_IPV6.finditer(text)):
        try:
            address = ipaddress.ip_address(match.group())
        except ValueError:
            continue
        if (
            match.start()
            and text[match.start() - 1] == ":"
            and not _LABEL.search(text, max(0, match.start() - 30), match.start())
        ):
            continue
        if isinstance(address, ipaddress.IPv6Address) and address not in _UNICAST:
            continue
        if isinstance(address, ipaddress.IPv4Address) and _CLAUSE.match(text, match.end()):
            continue
        if (
            address.is_global
            and not address.is_multicast
            and not _VERSION.search(text, max(0, match.start() - 24), match.start())
        ):
            yield Detected("ip", *match.span())


def _secrets(text: str) -> Iterator[Detected]:
    for match in _SECRET.finditer(text):
        yield Detected("secret", *match.span())
    for match in _NAMED_SECRET.finditer(text):
        yield Detected("secret", *match.span(1))
