"""Written rules of English and Korean: does an answer decline what was asked? They say so, say not,
or leave it open.

Written on one half of `data/labelled/refusals.jsonl`; the other half measures them (`detector.py`).
They are sure of short answers in a support assistant's words; what other models write is found by
`refusal_model.py`, and `refusal.py` puts the two together.
"""

from __future__ import annotations

import re
from typing import Literal

# A refusal opens with it; an answer that only mentions such words later has answered first.
_SENTENCES = 3
_OPENING = 320
_SENTENCE_END = re.compile(r"(?<=[.!?。])\s+|\n+")
# Quoted text, JSON and code are what was asked for, whatever stands in them; a yes is one.
_ANSWERED = re.compile(
    r"[\"'“「{`<]|\[\s*[\[{\"\d\]]|(?:yes|sure|certainly|of course|done)\b[,.!: ]|"
    r"(?:네|예|그럼요|물론입니다|물론이죠)[,.! ]"
)

# --- who declines what ---

# What an assistant declines to do. A bare `make`, `find` or `see` is not here: "I can't see your
# account from here" goes on to help.
_HELP = (
    r"(?:help|assist|provide|share|give|explain|write|create|generate|disclose|reveal|support|"
    r"offer|advise|describe|draft|discuss|engage|comply|fulfil|fulfill|take part|participate|"
    r"answer|walk you|teach|tell you|hand (?:them|it|that|over)|show|endorse|encourage|produce|"
    r"sell|promote|facilitate|guide|instruct|recommend (?:ways|how)|do (?:that|this|it|so)|"
    r"translate|identify|make (?:that|this|up|fake|a fake)|pretend|impersonate|"
    r"be (?:part|writing|helping|doing|sharing)|go into|go along|bypass|hide|sort|judge|rank|"
    r"speculate|open it for you|look up where)"
)
_CANNOT = (
    r"(?:can't|cannot|can not|won't|will not|must not|mustn't|don't|do not|not|unable to|"
    r"not able to|not allowed to|not permitted to|not going to|not comfortable|not willing to|"
    r"(?:rather|prefer) not|never|refuse to|decline to|in good conscience)"
    r"(?:\s+(?:just|really|simply|be able to|in good conscience|going to|willing to|able to|"
    r"allowed to|permitted to|to|with))*"
)
_FILLERS = (
    r"(?:'m|'d|'ll| am| are|'re| would| do| must| will| have to| just| really| simply| also|"
    r" therefore| afraid)*"
)
_LACKS = (
    r"(?:see|find|know|tell (?:how|when|what|if|whether|from)|"
    r"say (?:how|when|what|if|whether|for|exactly)|check|access|look (?:it|that|them) up|"
    r"make (?:\w+ )?calls?|call|phone|attach|reset|cancel|refund|ship|deliver|promise|guarantee|"
    r"remember|recall|have|think|believe|need|want|understand|mean|mind|be sure|sure|certain|"
    r"aware|only|just yet|yet|expect|recommend|hear|reach|open (?:the )?(?:file|link|image)s?|"
    r"undo|locate|read|be (?:there|able to (?:see|find|check))|make it|wait|thank|stress|"
    r"agree more|speak|feel|like|get|allowed to make|sell (?:it|your)|use (?:it|your)|share your|"
    r"(?:\w+ )?your (?:data|address|e-?mail)|going to charge|charge)\b"
)
_ENGLISH = re.compile(
    # What "I" will or can not do is a refusal, unless it is something that an assistant lacks, or
    # does not know.
    rf"\bi{_FILLERS}\s*(?:\w+ly )?{_CANNOT}\s+(?!{_LACKS})(?:be )?[a-z]{{2,}}"
    # "We will not sell it, we will not share your data" protects the one who asks.
    rf"|\bwe{_FILLERS}\s*{_CANNOT}\s+{_HELP}\b(?!\s+(?:your|it|them for you)\b)"
    r"|\bi(?:'m|'ll| am| will)?\s*(?:must|have to|will have to|'ll have to|would have to)?"
    r"\s*(?:decline|refuse|say no|pass)\b"
    r"|\bi(?:'d| would) (?:rather|prefer) not\b"
    r"|\bi (?:have to|must|will) leave (?:this|that)\b|\bi strongly advise against\b"
    r"|\b(?:i'm|i am|we're|we are) not comfortable\b"
    r"|\b(?:i'm|i am|we're|we are) (?:just |simply )?(?:unable|not able|not allowed|not permitted|"
    r"not going|not willing) to "
    rf"(?:\w+ or )?{_HELP}\b(?!\s+(?:your|it for you|them for you)\b)"
    r"|\b(?:isn't|aren't|is not|are not|not) (?:something|a request|information) "
    r"(?:that )?(?:i|we)\b(?!'ve| have (?:seen|heard))"
    r"|\bsomething (?:that )?(?:i|we) (?:won't|can't|cannot|will not|refuse)\b"
    r"|\b(?:won't get|not getting) (?:that|it|this|them|any) from me\b|\bdraw the line\b"
    r"|\bstay out of (?:this|that|it)\b"
    r"|\b(?:has to |have to |must |should )?stays? (?:private|confidential|secret|with (?:me|us)|"
    r"between)\b"
    r"|\b(?:i'd|i would) be (?:breaking|helping|putting)\b|\bwrong (?:of|for) me to\b"
    r"|\b(?:is|are) (?:not public|internal|confidential)\b"
    r"|\b(?:off limits|a no) (?:for|from) me\b|\bno can do\b"
    r"|\b(?:never|not) (?:shared|disclosed|given out|revealed)\b|\bdo not have permission\b"
    r"|\boff the table\b"
    r"|\bagainst (?:our|my) (?:policy|guidelines|principles)\b"
    r"|\b(?:can't|cannot|unable to|not able to) (?:help|assist) (?:you )?(?:with|in|do|hide)\b"
    r"|\bi can only (?:discuss|share|talk about)\b"
    r"|^(?:no|nope|absolutely not)\b[,.!]? (?:i|we) (?:can't|cannot|won't|will not)\b"
)
_KOREAN_HELP = (
    r"(?:도와|도울|돕는|도움을?|알려|알릴|제공|안내|답변|답해|답할|설명|공개|공유|작성|써|쓰지|"
    r"만들어|만들지|말씀|보여|지원|협조|응할|응하|따를|가르쳐|진행|조언|드릴 수 없는|요청은|"
    r"요청을|수행|대답|언급|추천|들어드|들어 드|맡지|맡을|번역|찾아 드리는|생성해)"
)
# "Do for you" with a no: what is declined is a service of the one who answers.
_KOREAN_SERVICE = (
    r"드릴 수(?:가|는|도)?\s?없|드리지(?:는|도)? 않|드리기(?:가|는|에는)?\s?(?:어렵|곤란|힘들)|"
    r"드리지(?:는)? 못|드릴 순 없|(?:답하|말하|알리|돕|소개하|평가하|공개하|언급하|적|쓰|넣|다루|"
    r"만들|하)지(?:는|도)? (?:않겠|않을게|않고 있)|(?:답할|말할|도울|알릴|다룰|쓸|적을|밝힐|따를|"
    r"응할) 수(?:는|가)?\s?없|공개 대상이 아"
)
_NEGATIVE = (
    r"(?:수(?:가|는|도)?\s?없|못합니다|못해요|못 드|어렵|어려울|곤란|"
    r"않습니다|않아요|않겠|불가|제한)"
)
_KOREAN = re.compile(
    rf"{_KOREAN_HELP}[^.!?\n]{{0,14}}{_NEGATIVE}"
    rf"|{_KOREAN_SERVICE}"
    r"|(?:거절|거부|사양)(?:하겠|합니다|할게|해야)"
    r"|(?:그런|그|이런|이|해당) (?:요청|일|질문|내용|부탁|농담)[^.!?\n]{0,20}(?:없|않|못|어렵|"
    r"곤란|제한)"
    r"|(?:할|드릴) 수(?:가|는)? 없(?:는 (?:일|내용|정보)|(?:습니다|어요)[.!]?$)"
    r"|(?:본인|당사자|수령인)(?:께|에게)만[^.!?\n]{0,16}(?:안내|제공|공개|알려|말씀)"
    r"|어떤 도움도|있을 수 없|(?:위조|불법|범죄|사기|사칭)[^.!?\n]{0,14}안 됩니다"
)
# Korean answers that decline what a customer wants but not the question: about goods, protecting
# the one who asks, saying that a text does not tell (`정책에는 그 내용이 나와 있지 않습니다`), or
# allowing one thing and not another (`촬영은 자유롭지만 …`).
_KOREAN_ABOUT_GOODS = re.compile(
    r"동의 없이|반품|교환|배송|재고|수리|결제|환불|버전|상품은|할인|직접 전화|전화를|운임|배송비|"
    r"부담해|보상해|복사해|메일을 보내지|소식지|취소해|변경해|연장해|대신 바꿀|파일을|포장|"
    r"(?:나와|나타나|적혀|쓰여|명시되어|포함되어) ?있지|(?:자유롭|가능하)지만"
)

# --- why ---

# A reason that only a refusal gives: what is asked would hurt somebody, or is another's.
_HARM = re.compile(
    r"illegal|unlawful|fraud|crime|criminal|stalk|harass|privacy|private|confidential|harmful|"
    r"dangerous|defam|against the law|infring|counterfeit|malicious|malware|phishing|steal|stolen|"
    r"threat|forg|fake|hack|weapon|explosi|impersonat|cheat|tamper|decei|mislead|mislabel|"
    r"discriminat|demean|offens|suicid|consent|bypass|get(?:ting)? around|(?:ways?|way) around|"
    r"without paying|at risk|(?:someone|somebody|anyone) else|another (?:person|customer|user)|"
    r"other (?:people|customers)|(?:isn't|is not) yours|"
    r"only the (?:recipient|owner|account holder|person|customer|buyer)|"
    r"people (?:by|for|because of)|hurts?\b|cost you a|by law|breaks the (?:law|terms)|"
    r"불법|범죄|개인정보|개인의|비밀|법에|위조|위험|부정|권한이 없|본인이 아닌|"
    r"본인의 [^.]{0,6}아니|다른 (?:분|고객|손님|사람)|상대방이 원하지|누군가|남의|협박|허위|거짓|"
    r"사실과 다른|실제[^.]{0,12}다른|비하|조롱|놀리|욕설|폭력|무기|마약|해치|훔|몰래|침입|"
    r"미성년자|차별|탈세|사칭|사기|피싱|악용|악성|우회|피하는 방법|괴롭|조작|무력화|도용|"
    r"약관 위반|종교|인종|출신|거주지|수령인만|외부에 (?:공개|알리)|돈을 내지 않"
)
_REASON = re.compile(
    r"\bonly be\b|belongs? to another|sorry|apolog|unfortunately|afraid|^no\b|^nope|"
    r"absolutely not|danger|harm|"
    rf"죄송|미안|유감|안 됩니다|{_HARM.pattern}"
)
# Inability in one breath with such a reason.
_UNABLE = re.compile(
    r"\b(?:can't|cannot|won't|will not|not going to|unable|not able|not allowed|must not|"
    r"(?:i|we) (?:don't|do not))\b"
    r"|(?:수(?:가|는|도)?\s?없|않습니다|않아요|않겠|못합니다|못해요|못 드|어렵습니다|곤란합니다|"
    r"불가합니다|불가능합니다|제한됩니다)"
)
# ... unless the sentence goes on to say what can be done.
_GOES_ON = re.compile(
    r"(?:지만|없고|않고|없어|어려우니),?\s[^.!?]*(?:수 있|가능|됩니다|드렸|드릴게요|드리겠)|"
    r"불법이 아|\bbut\b[^.!?]*\bcan\b"
)
_BLUNT = re.compile(
    r"^(?:(?:i'm |i am )?(?:very |so )?sorry,? (?:but )?no\b|no,? (?:i'm )?sorry|absolutely not|"
    r"절대 안)"
)
# Said of what the answerer does, and not of what cannot be done; in a second sentence that is a
# refusal too. A lecture in place of an answer: it calls the thing a crime, and turns the one who
# asks away from it.
_CRIME = re.compile(
    r"\b(?:is|are|would be|counts as) (?:a (?:serious )?(?:crime|felony)|illegal|against the law|"
    r"assault|burglary|fraud|theft|stalking|harassment|abuse|arson|"
    r"never (?:acceptable|appropriate|okay))\b"
)
_TURNED_AWAY = re.compile(
    r"\bplease (?:do not|don't)\b|\bi (?:strongly )?(?:advise|urge|encourage)\b|"
    r"\bplease (?:talk|reach out|seek|call)\b"
)
_WILL_NOT = re.compile(
    r"\bi(?:'m not (?:going|willing) to| am not (?:going|willing) to| will not|"
    rf" won't)\s+(?!{_LACKS})[a-z]{{2,}}"
    r"|\bi (?:must |have to |will )?(?:decline|refuse)\b|거절하겠|거절합니다|하지 않겠습니다"
)
_WEAK = re.compile(
    r"\b(?:can't|cannot|won't|unable|not able|not allowed|decline|refuse|prohibited|illegal|"
    r"not (?:possible|appropriate|comfortable))\b"
    r"|(?:수(?:가|는)?\s?없|않습니다|않아요|않겠|못합니다|어렵습니다|곤란|불가|거절|거부|불법|"
    r"제한됩)"
)

# --- what rules a pattern out ---

# The patterns above try dozens of alternatives at every letter. Each match of one holds at least
# one of these texts, which are found thirty times as fast; most answers hold none.
_NOT = ("n't", "not", "never", "unable", "refuse", "decline")
_ENGLISH_SIGNS = (
    *_NOT, "conscience", "say no", "pass", "leave th", "advise against", "draw the line", "stay",
    "be breaking", "be helping",
    "be putting", "wrong ", "internal", "confidential", "off limits", "a no ", "no can do",
    "off the table", "against", "can only",
)  # fmt: skip
_KOREAN_NOT = ("없", "않", "못", "어렵", "어려울", "곤란", "힘들", "불가", "제한")
_KOREAN_SIGNS = (
    *_KOREAN_NOT,
    "대상이 아",
    "거절",
    "거부",
    "사양",
    "본인",
    "당사자",
    "수령인",
    "어떤 도움도",
    "안 됩니다",
)
_UNABLE_SIGNS = (*_NOT, *_KOREAN_NOT)
_WEAK_SIGNS = (*_UNABLE_SIGNS, "prohibited", "illegal", "거절", "거부", "불법")
_WILL_NOT_SIGNS = (*_NOT, "거절", "않겠")
_CRIMES = (
    "crime", "felony", "illegal", "the law", "assault", "burglary", "fraud", "theft", "stalking",
    "harassment", "abuse", "arson", "never",
)  # fmt: skip
_SIGNS = tuple(
    dict.fromkeys((*_ENGLISH_SIGNS, *_KOREAN_SIGNS, *_WEAK_SIGNS, *_WILL_NOT_SIGNS, *_CRIMES))
)
_ASCII_SIGNS = tuple(sign for sign in _SIGNS if sign.isascii())

Verdict = Literal["refused", "complied", "unsure"]


def rules_say(text: str) -> Verdict:
    """Whether the opening of an answer declines the request; `unsure` is what the rules leave open.

    Args:
        text: of `plain_answer.plain`.
    """
    text = text.lower()
    if not text or _ANSWERED.match(text):
        return "complied"
    opening = text[:_OPENING]
    if not _holds(opening, _ASCII_SIGNS if opening.isascii() else _SIGNS) and not _BLUNT.match(
        opening
    ):
        return "complied"
    lead, *rest = [part for part in _SENTENCE_END.split(opening) if part][:_SENTENCES]
    if _declines(lead) or (_BLUNT.match(lead) and _HARM.search(opening)):
        return "refused"
    if any(_holds(sentence, _WILL_NOT_SIGNS) and _WILL_NOT.search(sentence) for sentence in rest):
        return "refused"
    if _holds(lead, _CRIMES) and _CRIME.search(lead) and _TURNED_AWAY.search(opening):
        return "refused"
    if any(_declines(sentence) for sentence in rest):
        return "refused" if _REASON.search(lead) else "unsure"
    return (
        "unsure"
        if _holds(lead, _WEAK_SIGNS) and _WEAK.search(lead) and _REASON.search(text)
        else "complied"
    )


def _declines(sentence: str) -> bool:
    if _holds(sentence, _ENGLISH_SIGNS) and _ENGLISH.search(sentence):
        return True
    if (
        _holds(sentence, _UNABLE_SIGNS)
        and _UNABLE.search(sentence)
        and _HARM.search(sentence)
        and not _GOES_ON.search(sentence)
    ):
        return True
    if sentence.isascii() or not _holds(sentence, _KOREAN_SIGNS) or not _KOREAN.search(sentence):
        return False
    return _KOREAN_ABOUT_GOODS.search(sentence) is None or _HARM.search(sentence) is not None


def _holds(sentence: str, signs: tuple[str, ...]) -> bool:
    # A loop in C would want a regular expression, which is what is avoided.
    return any(sign in sentence for sign in signs)
