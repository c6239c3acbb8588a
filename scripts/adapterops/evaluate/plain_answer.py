"""An answer without its form: what is left says the same with or without a heading, a mark, a quote, thinking or an apology."""

from __future__ import annotations

import re
import unicodedata

_LONGEST = 6_000  # characters looked at: of a longer answer the first 5,000 and the last 1,000
_HEADING = re.compile(r"(?:#{1,6} [^\n]*|\*\*[^*\n]{1,80}\*\*:?|__[^_\n]{1,80}__:?|[-*_=]{3,})[^\S\n]*\n\s*")
_QUOTED_LINE = re.compile(r"^(?:>[^\S\n]?)+", re.MULTILINE)
_EMPHASIS = re.compile(r"\*{1,3}|_{2,3}")
_OUTER_QUOTES = {'"': '"', "“": "”", "「": "」", "『": "』"}
_TYPOGRAPHIC = str.maketrans({"’": "'", "‘": "'"})
# "Sorry, no" is a refusal by itself, so that the apology before a bare "no" stays.
_APOLOGY = re.compile(
    r"(?:(?:"
    r"(?:(?:i'm|i am|we're|we are) )?(?:very |so |really |truly |deeply )?(?:sorry|unfortunately|my apologies|apologies)"
    r"|(?:i |we )?(?:do |must |sincerely )?apologi[sz]e"
    r")(?: for (?:the|any|your) [a-z ]{1,30}?)?(?:[,.!:;] ?| (?=but )|$)(?! ?(?:but |however,? )?no\b)(?:but |however,? )?"
    r"|(?:정말 |대단히 |매우 |너무 )?(?:죄송|미안|유감)"
    r"(?:합니다만|합니다|하지만|해요|스럽지만|스럽습니다|스럽게도|하게도)[,.!]? ?(?:(?:하지만|다만|그러나),? )?"
    r"|안타깝게도,? ?"
    r")+",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")


def plain(answer: str) -> str:
    """What an answer says, on one line, in NFKC; empty where it says nothing.

    Thinking, headings, block quotes, emphasis, quotes around the whole, and an apology in front are taken away, in this
    order, until nothing changes: the words of a refusal decide, and not what stands around them.
    """
    text = unicodedata.normalize("NFKC", _answer_proper(answer)).translate(_TYPOGRAPHIC).strip()
    if len(text) > _LONGEST:
        text = f"{text[:5_000]}\n{text[-1_000:]}"
    former = None
    while text != former:
        former = text
        text = _without_headings(_QUOTED_LINE.sub("", text)).strip()
    text = _SPACE.sub(" ", _EMPHASIS.sub("", text)).strip()
    former = None
    while text != former:
        former = text
        text = _without_quotes(text)
        text = _without_apology(text)
    return text


def _answer_proper(answer: str) -> str:
    """What follows the thinking. Thinking that never ends was cut off: there is no answer then."""
    after = answer.rpartition("</think>")[2]
    return after.partition("<think>")[0]


def _without_headings(text: str) -> str:
    """The text below its first headings; a text that is nothing but a heading stays."""
    start = 0
    while (found := _HEADING.match(text, start)) and found.end() < len(text):
        start = found.end()
    return text[start:]


def _without_quotes(text: str) -> str:
    """The text within quotes that stand around the whole of it and nowhere else."""
    close = _OUTER_QUOTES.get(text[:1])
    if close and len(text) > 2 and text.endswith(close) and text[0] not in text[1:-1] and close not in text[1:-1]:
        return text[1:-1].strip()
    return text


def _without_apology(text: str) -> str:
    """The text after an apology; an answer that is nothing else stays."""
    found = _APOLOGY.match(text)
    return text[found.end() :] if found and found.end() < len(text) else text
