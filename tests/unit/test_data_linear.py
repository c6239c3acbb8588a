"""A line of a megabyte that was made to hurt takes twice as long as half of it, and not four
times."""

from __future__ import annotations

import time

import pytest

from adapterops.data.language import is_json, language_of
from adapterops.data.normal import exact_form, loose_form, nfc
from adapterops.data.personal import detect, mask
from adapterops.data.reader import read_rows

SIZE = 1_000_000
# What repetition, borders and look-behinds of the patterns feed on.
PATTERNS = {
    "a@": "a@",
    "one word before @": "a",
    "a.b@c.": "a.b@c.",
    "a'": "a'",
    "a@b-": "a@b-",
    "addresses": "ab@example.com ",
    "1-": "1-",
    "010-": "010-",
    "phones": "010-1234-5678 ",
    "digits": "1",
    "digits and blanks": "4 ",
    "fours": "4111 ",
    "cards": "4111111111111111 ",
    "rrn": "900101-1234567 ",
    "dots": ".",
    "1.": "1.",
    "addresses of hosts": "8.8.8.8 ",
    "colons": ":",
    "a:": "a:",
    "::": "1::",
    "eyJ": "ey" + "J",
    "eyJ in parts": "ey" + "Jaaaaaaaaaaaa.",
    "sk-": "sk-",
    "xoxb-": "xo" + "xb-",
    "SG.": "SG." + "a" * 20 + ".",
    "aws secret": "aws secret ",
    "aws": "aws",
    "private keys": "-----BEGIN " + "PRIVATE KEY-----",
    "passports": "M12345678 ",
    "버전": "버전 1.2.3.4 ",
    "backticks": "`",
    "three backticks": "``` ",
    "quotes": '"',
    '"a" ': '"a"    ',
    "<": "<",
    "<a": "<a ",
    "identifiers": "a_",
    "underscores": "_",
    "slashes": "a/",
    "blanks": " ",
    "line ends": "\n",
    "for ": "for (",
    "code lines": "return x\n",
    "braces": "{",
    "Hangul": "가",
    "Hangul and Latin": "가a",
    "full-width": "１",
    "ligatures": "ﷺ",
    "emoji": "😀",
    "jamo": "\u1112\u1161\u11ab",
    "marks": "\u0301\u0327",
    "marks that decompose": "\u0f73\u0f71",
    "Thai": "ที่",
}
FUNCTIONS = {
    "detect": lambda text: mask(text, detect(text, most=None)),
    "language_of": language_of,
    "is_json": lambda text: is_json("[" + text),
    "exact_form": exact_form,
    "loose_form": loose_form,
    "nfc": nfc,
}


def seconds(function, text):
    """Of this process' own work: others use the machine too."""
    started = time.process_time()
    function(text)
    return max(time.process_time() - started, 0.005)  # below that the clock decides


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_time_grows_with_length_and_not_with_its_square(function, pattern):
    call, piece = FUNCTIONS[function], PATTERNS[pattern]
    call(piece)  # loads what is loaded once
    eighth = piece * (SIZE // 8 // len(piece.encode()))
    base = seconds(call, eighth)
    # A quadratic one fails at half a megabyte already: 16 times an eighth. A second try, because
    # caches are shared.
    for times, most in ((4, 10), (8, 20)):
        now = seconds(call, eighth * times)
        if now >= most * base:
            base, now = seconds(call, eighth), seconds(call, eighth * times)
        assert now < most * base, (
            f"{times}/8 of a megabyte take {now:.3f} s, an eighth {base:.3f} s"
        )


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content",
    [
        '{"a":' * 166_000,
        "[" * 990_000,
        '{"id":"' + "\\u0301\\u0327" * 80_000 + '"}',
        '{"a":1,' * 140_000,
        "\\" * 990_000,
    ],
)
def test_the_reader_does_not_hang_on_a_line_of_a_megabyte(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    assert list(read_rows(path))
