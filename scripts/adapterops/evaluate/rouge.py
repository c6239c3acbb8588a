"""ROUGE-L that is right for Korean, and what goes with it.

Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
"""

from __future__ import annotations

import functools
import random
import re
import statistics
import unicodedata
from typing import Any

TOKENIZER_ID = "ko-syl-v2"

# One token for each Hangul syllable or jamo and each CJK character; otherwise one for each run of
# letters and digits.
_SINGLE = (
    "\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
)
_TOKEN = re.compile(f"[{_SINGLE}]|[^\\W_{_SINGLE}]+")
# What nobody sees splits no word: soft hyphen, zero-width characters, marks of direction, variants
# of a glyph.
_UNSEEN = re.compile(
    "[\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe00-\ufe0f\ufeff]"
)
# So many marks without a word between them are no punctuation: an answer that does not end.
_MARKS = re.compile(r"(?:[^\w\s]|_)(?:\s*(?:[^\w\s]|_)){19,}")
_GRAM = 4


def tokenize(text: str) -> list[str]:
    """`ko-syl-v2`: NFKC, lower case; Hangul by syllable, CJK by character, other text by runs.

    A run is of letters and digits. On ASCII text these are the tokens of rouge-score's default,
    which throws Hangul away: there, two identical Korean sentences score 0.0, and unrelated ones
    1.0 when only their digits match.
    """
    return _TOKEN.findall(_UNSEEN.sub("", unicodedata.normalize("NFKC", text)).lower())


@functools.cache
def _scorer() -> Any:
    # Here, as rouge-score imports nltk and that scipy, which takes seconds; who shows scores needs
    # neither.
    from rouge_score import rouge_scorer
    from rouge_score.tokenizers import Tokenizer

    class Syllables(Tokenizer):  # type: ignore[misc]  # rouge-score ships no types
        def tokenize(self, text: str) -> list[str]:
            return tokenize(text)

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=Syllables())


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F1 of one answer, 0 to 1."""
    return float(_scorer().score(reference, answer)["rougeL"].fmeasure)


def shuffled_floor(pairs: list[tuple[str, str]], seed: int) -> float | None:
    """Mean ROUGE-L of answers against the references of other rows.

    It is what answers of this kind score without being right.

    Args:
        pairs: reference and answer of each row.
        seed: of the shuffling.

    Returns:
        The floor, or None below two rows.
    """
    if len(pairs) < 2:
        return None
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)  # not a secret  # noqa: S311
    # Each row gets the reference of the next one in shuffled order, so none keeps its own.
    return statistics.fmean(
        rouge_l(pairs[other][0], pairs[row][1])
        for row, other in zip(order, order[1:] + order[:1], strict=True)
    )


def repetition(answer: str) -> float:
    """Share of repeated 4-grams, 0 to 1; 0 below five tokens.

    It is seq-rep-4 of Welleck et al. 2020 (arXiv:1908.04319). Punctuation and emoji are tokens
    where twenty or more of them follow each other.
    """
    tokens: list[str] = []
    end = 0
    for marks in _MARKS.finditer(answer):
        tokens += tokenize(answer[end : marks.start()])
        tokens += "".join(marks[0].split())
        end = marks.end()
    tokens += tokenize(answer[end:])
    grams = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
