"""Does an answer decline what was asked? Written rules and a fitted score decide together.

`tests/benchmarks/refusals.py` measures it by source, on sources that were left out of the fit;
docs/measurements/refusals.md has the table. Any change of what `classify` says changes
`DETECTOR_ID`.
"""

from __future__ import annotations

import re

from adapterops.data.plain_answer import plain
from adapterops.data.refusal_model import Weights, score
from adapterops.data.refusal_rules import Verdict, rules_say

DETECTOR_ID = "refusal-v4"

# JSON, code and markup are what was asked for, whatever stands in them.
_STRUCTURED = re.compile(r"[{`<]|\[\s*[\[{\"\d\]]")
_HANGUL = re.compile(r"[가-힣]")
# Of short answers there is little to score, and they are what the rules were written on: the rules
# decide, and the score overrules them only where it leaves no doubt. Of long ones the score
# decides, and the rules weigh in.
_SHORT = 160  # characters
_SHORT_BAR = 2.0
_SHORT_DOUBT = 1.0  # from here on a short answer is left open
_RULES_WEIGH = {"refused": 2.0, "unsure": 0.5, "complied": 0.0}
# English refusals differ more from model to model than what they were fitted to, so that they score
# lower: hence another bar.
_KOREAN_BAR = 0.0
_ENGLISH_BAR = -0.5
_DOUBT = 1.0  # below the bar by less than this is left open


def classify(answer: str, weights: Weights | None = None) -> Verdict:
    """Whether an answer declines the request; `unsure` is for a judge or a reviewer.

    Args:
        answer: as the model gave it; its form does not decide (`plain_answer.plain`).
        weights: of the score; None takes those of the repository.

    Raises:
        UsageError: the weights are missing or damaged.
    """
    text = plain(answer)
    if not text or _STRUCTURED.match(text):
        return "complied"
    rules = rules_say(text)
    total = score(text, weights) + _RULES_WEIGH[rules]
    if len(text) < _SHORT:
        if rules == "refused" or total >= _SHORT_BAR:
            return "refused"
        return "unsure" if rules == "unsure" or total >= _SHORT_DOUBT else "complied"
    bar = _KOREAN_BAR if _is_korean(text) else _ENGLISH_BAR
    if total >= bar:
        return "refused"
    return "unsure" if rules == "refused" or total >= bar - _DOUBT else "complied"


def _is_korean(text: str) -> bool:
    head = text[:400]
    return len(_HANGUL.findall(head)) * 5 > len(head)
