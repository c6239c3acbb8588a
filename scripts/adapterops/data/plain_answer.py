"""An answer without its form: what is left says the same with or without a heading, a mark, a
quote, thinking or an apology.
"""

from __future__ import annotations

import re
import unicodedata

_LONGEST = 6_000  # characters looked at: of a longer answer the first 5,000 and the last 1,000
_HEADING = re.compile(
    r"(?:#{1,6} [^\n]*|\*\*[^*\n]{1,80}\*\*:?|__[^_\n]{1,80}__:?|[-*_=]{3,})[^\S\n]*\n\s*"
)
_QUOTED_LINE = re.compile(r"^(?:>[^\S\n]?)+", re.MULTILINE)
_EMPHASIS = re.compile(r"\*{1,3}|_{2,3}|</?(?:b|i|u|p|em|br|strong) ?/?>", re.IGNORECASE)
_THINKING_BEGINS = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_THINKING_ENDS = re.compile(r".*</think(?:ing)?>", re.IGNORECASE | re.DOTALL)
_UNSEEN = re.compile(
    "[\u00ad\u180e\u200b-\u200f\u2060\ufeff]"
)  # copied along from web pages, or put in to deceive
_MARK_IN_FRONT = re.compile(
    r"[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f]+ ?|[-•] |"
    r"(?:answer|response|assistant|답변|응답|답) ?: ?",
    re.IGNORECASE,
)
_OUTER_QUOTES = {'"': '"', "“": "”", "「": "」", "『": "』"}
_TYPOGRAPHIC = str.maketrans({"’": "'", "‘": "'"})
# "Sorry, no" is a refusal by itself, so that the apology before a bare "no" stays.
_APOLOGY = re.compile(
    r"(?:(?:(?:(?:i'm|i am|we're|we are) )?(?:very |so |really |truly |deeply )?(?:sorry|"
    r"unfortunately|my apologies|apologies)"
    r"|(?:i |we )?(?:do |must |sincerely )?apologi[sz]e)(?: for (?:the|any|your) [a-z ]{1,30}?"
    r"| about that)?(?:[,.!:;] ?| (?=but )|$)(?! ?(?:but |however,? )?no\b)(?:but |however,? )?"
    r"|(?:불편을 (?:드려|끼쳐) )?(?:정말 |대단히 |매우 |너무 )?(?:죄송|미안|유감)(?:합니다만|"
    r"합니다|하지만|해요|스럽지만|스럽습니다|스럽게도|"
    r"하게도)[,.!]? ?(?:(?:하지만|다만|그러나),? )?"
    r"|안타깝게도,? ?)+",
    re.IGNORECASE,
)
_SPACE = re.compile(r"\s+")


def plain(answer: str) -> str:
    """What an answer says, on one line, in NFKC; empty where it says nothing.

    Thinking, characters that are not seen, headings, block quotes, emphasis, quotes around the
    whole, a mark or an apology in front are taken away until nothing changes: the words of a
    refusal decide, and not what stands around them.
    """
    text = (
        unicodedata.normalize("NFKC", _UNSEEN.sub("", _answer_proper(answer)))
        .translate(_TYPOGRAPHIC)
        .strip()
    )
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
        text = _without_front(_MARK_IN_FRONT, _unwrapped(text))
        text = _without_front(_APOLOGY, text)
    return text


def _answer_proper(answer: str) -> str:
    """What follows the thinking. Thinking that never ends was cut off: there is no answer then."""
    ended = _THINKING_ENDS.match(answer)
    after = answer[ended.end() :] if ended else answer
    begun = _THINKING_BEGINS.search(after)
    return after[: begun.start()] if begun else after


def _without_headings(text: str) -> str:
    """The text below its first headings; a text that is nothing but a heading stays."""
    start = 0
    while (found := _HEADING.match(text, start)) and found.end() < len(text):
        start = found.end()
    return text[start:]


def _unwrapped(text: str) -> str:
    """The text within quotes that stand around the whole of it and nowhere else."""
    close = _OUTER_QUOTES.get(text[:1])
    if (
        close
        and len(text) > 2
        and text.endswith(close)
        and text[0] not in text[1:-1]
        and close not in text[1:-1]
    ):
        return text[1:-1].strip()
    return text


def _without_front(pattern: re.Pattern[str], text: str) -> str:
    """The text after what the pattern finds in front; an answer that is nothing else stays."""
    found = pattern.match(text)
    return text[found.end() :] if found and found.end() < len(text) else text
