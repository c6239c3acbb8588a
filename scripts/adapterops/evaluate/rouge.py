"""ROUGE-L that is right for Korean (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries")."""

from __future__ import annotations

import re
import unicodedata

from rouge_score import rouge_scorer
from rouge_score.tokenizers import Tokenizer

TOKENIZER_ID = "ko-syl-v1"

# One token for each Hangul syllable or jamo and each CJK character; otherwise one for each run of letters and digits.
_SINGLE = "\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
_TOKEN = re.compile(f"[{_SINGLE}]|[^\\W_{_SINGLE}]+")


class SyllableTokenizer(Tokenizer):  # type: ignore[misc]  # rouge-score ships no types
    """`ko-syl-v1`: NFKC, lower case, Hangul by syllable, CJK by character, all else by runs of letters and digits.

    On ASCII text its tokens are those of rouge-score's default, which throws Hangul away: there, two identical Korean
    sentences score 0.0, and unrelated ones 1.0 when only their digits match.
    """

    def tokenize(self, text: str) -> list[str]:
        """Tokens of `text`."""
        return _TOKEN.findall(unicodedata.normalize("NFKC", text).lower())


_SCORER = rouge_scorer.RougeScorer(["rougeL"], tokenizer=SyllableTokenizer())


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F1 of one answer, 0 to 1."""
    return float(_SCORER.score(reference, answer)["rougeL"].fmeasure)
