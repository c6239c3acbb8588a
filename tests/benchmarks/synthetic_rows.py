"""Made-up support rows in Korean and English for benchmarks, with known defects at known rates.

python tests/benchmarks/synthetic_rows.py --rows 200000 --directory /tmp/rows

Sentences are put together from lists of words, so that rows of one kind resemble each other as
those of a real domain do. The mean is about 330 characters a row. Sizes, mixture and defects are
the same for the same seed. One file of training rows for each language, half the rows in each, and
400 evaluation rows in English.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Share of rows with each defect.
DEFECTS = {
    "exact copy": 0.005,
    "near duplicate": 0.01,
    "conflict": 0.002,
    "e-mail": 0.001,
    "phone": 0.001,
    "registration number": 0.0005,
    "secret": 0.0002,
    "licence": 0.0005,
    "schema": 0.0005,
    "too short": 0.0005,
    "special token": 0.0002,
    "other language": 0.005,
    "contamination": 0.0002,
}
_EVALUATION_ROWS = 400

# fmt: off
_EN = {
    "thing": (
        "kettle|lamp|blanket|armchair|bookshelf|toaster|mattress|ladder|curtain|rug|teapot|drill|mirror|desk|stool|vase|"
        "freezer|fan|heater|radio|blender|mixer|scale|pan|wok|grater|bucket|hose|mower|tent|cooler|lantern|clock|printer|"
        "router|charger|keyboard|monitor|speaker|camera|tripod|scooter|helmet|backpack|suitcase|umbrella|jacket|boot|glove|"
        "scarf"
    ).split("|"),
    "trait": (
        "red|green|walnut|steel|folding|cordless|compact|second-hand|ceramic|foldable|heavy|silent|refurbished|limited|"
        "waterproof|outdoor|children's|dimmable|oak|brass|wireless|insulated|stackable|adjustable|organic|recycled"
    ).split("|"),
    "who": (
        "my neighbour|my son|a colleague|the courier|your showroom|my landlord|our school|"
        "a customer|the technician|my sister|"
        "the caretaker|our office manager|my flatmate|the warehouse|a friend from abroad"
    ).split("|"),
    "did": (
        "ordered|returned|exchanged|opened|repaired|paid for|collected|reviewed|assembled|lost|"
        "gave away|registered|measured|"
        "cancelled|forgot|scratched|cleaned|stored|photographed|reserved"
    ).split("|"),
    "when": (
        "last Tuesday|on the third of May|before the holidays|this morning|two weeks ago|"
        "in late autumn|right after the sale|"
        "during the strike|yesterday evening|at the end of March|over the weekend|"
        "while we were moving|the day it arrived"
    ).split("|"),
    "ask": (
        "Could you tell me|I would like to know|Please explain|Can someone confirm|"
        "I need to find out|Would you check|"
        "Nobody could tell me|Before I decide, say"
    ).split("|"),
    "want": (
        "whether the warranty covers that|how the refund is paid|who pays for the return|"
        "when a replacement can be sent|"
        "which form has to be filled in|what happens to the points|if the lid can be bought alone|"
        "where the serial number stands|how long the repair takes|whether an invoice is needed|"
        "what the deposit is for|"
        "if two vouchers can be joined"
    ).split("|"),
    "rule": (
        "Goods are taken back within {n} days if the seal is whole|"
        "A deposit of {n} euros is returned with the box|"
        "Repairs under warranty take up to {n} working days|"
        "Points expire after {n} months without an order|"
        "Orders above {n} euros are delivered free of charge|"
        "A second attempt is made after {n} hours|"
        "Vouchers can be joined up to {n} euros|"
        "Bulky goods are brought to the kerb on {n} days a month|"
        "The return label is valid for {n} days|Refunds reach the account after {n} working days"
    ).split("|"),
    "reply": (
        "The {trait} {thing} can be sent back until {when}|"
        "We have noted that {who} {did} the {thing}|"
        "For the {trait} {thing} the warranty is {n} months|"
        "Please keep the box of the {thing} until {when}|"
        "Since {who} {did} it {when}, the fee of {n} euros is waived|"
        "A new {thing} leaves the warehouse in {n} days|"
        "The {thing} has to be checked first, which takes {n} days|"
        "Both the {thing} and its {trait} case are covered"
    ).split("|"),
}
_KO = {
    "thing": (
        "주전자|스탠드|담요|안락의자|책장|토스터|매트리스|사다리|커튼|러그|찻주전자|전동드릴|거울|책상|스툴|꽃병|냉동고|선풍기|"
        "히터|라디오|믹서기|저울|프라이팬|강판|양동이|호스|잔디깎이|텐트|아이스박스|랜턴|벽시계|프린터|공유기|충전기|키보드|"
        "모니터|스피커|카메라|삼각대|킥보드|헬멧|배낭|여행가방|우산|재킷|장화|장갑|목도리"
    ).split("|"),
    "trait": (
        "빨간|초록색|호두나무|스테인리스|접이식|무선|소형|중고|도자기|무거운|저소음|리퍼|한정판|방수|야외용|어린이용|밝기조절|"
        "참나무|황동|보온|높이조절|재활용"
    ).split("|"),
    "who": (
        "이웃이|아들이|동료가|기사님이|매장 직원이|집주인이|학교에서|"
        "고객님이|수리 기사가|언니가|관리인이|총무팀에서|"
        "룸메이트가|창고에서|외국인 친구가"
    ).split("|"),
    "did": (
        "주문했고|반품했고|교환했고|뜯어봤고|고쳤고|결제했고|받아왔고|"
        "후기를 썼고|조립했고|잃어버렸고|선물했고|등록했고|"
        "치수를 쟀고|취소했고|흠집을 냈고|보관했고|사진을 찍었고|예약했고"
    ).split("|"),
    "when": (
        "지난 화요일에|오월 초에|연휴 전에|오늘 아침에|이주 전에|늦가을에|"
        "세일 직후에|파업 기간에|어제저녁에|삼월 말에|"
        "주말 동안|이사하는 사이에|도착한 날에"
    ).split("|"),
    "ask": (
        "혹시 아시는지 궁금한데|확인 부탁드리는데|"
        "자세히 설명해 주셨으면 하는데|아무도 알려 주지 않아서 여쭙는데|"
        "결정하기 전에 알고 싶은데|급해서 문의드리는데"
    ).split("|"),
    "want": (
        "보증이 적용되나요|환불은 어떻게 받나요|반송비는 누가 내나요|"
        "교환품은 언제 오나요|어떤 서류가 필요한가요|"
        "적립금은 어떻게 되나요|뚜껑만 따로 살 수 있나요|"
        "일련번호는 어디에 있나요|수리는 얼마나 걸리나요|"
        "영수증이 꼭 있어야 하나요|보증금은 왜 받나요|상품권을 합칠 수 있나요"
    ).split("|"),
    "rule": (
        "봉인을 뜯지 않은 상품은 {n}일 안에 반품할 수 있습니다|"
        "보증금 {n}천 원은 상자와 함께 돌려드립니다|"
        "보증 수리는 영업일 기준 {n}일까지 걸립니다|적립금은 주문 없이 {n}개월이 지나면 사라집니다|"
        "{n}만 원이 넘는 주문은 배송비가 없습니다|"
        "재배송은 {n}시간 뒤에 시도합니다|상품권은 {n}만 원까지 합칠 수 있습니다|"
        "대형 상품은 매달 {n}번 문 앞까지 옮겨 드립니다|반송 송장은 {n}일 동안 유효합니다|"
        "환불금은 영업일 {n}일 뒤 계좌에 들어옵니다"
    ).split("|"),
    "reply": (
        "{trait} {thing} 제품은 {when} 돌려보내시면 됩니다|"
        "{who} {did} 접수한 {thing} 건은 기록해 두었습니다|"
        "{trait} {thing} 보증 기간은 {n}개월입니다|{thing} 상자는 {when} 필요하니 보관해 주세요|"
        "{when} {who} {did} 수수료 {n}천 원은 면제됩니다|새 {thing} 상품은 {n}일 뒤 출고됩니다|"
        "{thing} 상태를 먼저 점검해야 하며 {n}일 걸립니다|"
        "{thing} 본체와 {trait} 덮개 모두 보장됩니다"
    ).split("|"),
}
# fmt: on


class _Writer:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # data for a benchmark

    def _fill(self, words: dict[str, list[str]], text: str) -> str:
        parts = text.split("{")
        filled = [parts[0]]
        for part in parts[1:]:
            slot, _, rest = part.partition("}")
            filled += [
                (
                    str(self._random.randint(2, 96))
                    if slot == "n"
                    else self._random.choice(words[slot])
                ),
                rest,
            ]
        return "".join(filled)

    def _question(self, korean: bool) -> str:
        if korean:
            return self._fill(_KO, "{when} {who} {trait} {thing} 제품을 {did} {ask} {want}?")
        return self._fill(_EN, "{who} {did} the {trait} {thing} {when}. {ask} {want}.").capitalize()

    def _several(self, words: dict[str, list[str]], kind: str, count: int) -> str:
        return " ".join(
            self._fill(words, self._random.choice(words[kind])) + "." for _ in range(count)
        )

    def row(self, number: int, prefix: str, *, korean: bool) -> dict[str, Any]:
        """One sound row."""
        words = _KO if korean else _EN
        more = 2 if korean else 1  # a Korean sentence has half the characters
        question = " ".join(self._question(korean) for _ in range(self._random.randint(1, more)))
        rules = self._several(words, "rule", self._random.randint(0, 4 * more))
        answer = self._several(words, "reply", self._random.randint(1, 4 * more))
        row = {
            "id": f"{prefix}-{number}",
            "instruction": question,
            "output": answer,
            "language": "ko" if korean else "en",
        }
        if rules:
            row["input"] = rules
        return {
            **row,
            "license": "CC0-1.0",
            "source": "synthetic rows",
            "tags": [self._random.choice(["policy", "chat", "repair"])],
        }

    def near(self, text: str) -> str:
        """The text with another punctuation, and one word of it twice."""
        words = text.replace(".", "!").split()
        place = self._random.randrange(len(words))
        return " ".join([*words[:place], words[place], *words[place:]])

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def digits(self, count: int) -> str:
        return "".join(self._random.choice("0123456789") for _ in range(count))

    def pick(self, items: list[Any]) -> Any:
        return self._random.choice(items)


def _spoil(
    writer: _Writer,
    defect: str,
    row: dict[str, Any],
    former: list[dict[str, Any]],
    evaluation: list[dict[str, Any]],
) -> None:
    match defect:
        case "exact copy":
            row.update(_texts(writer.pick(former)))
        case "near duplicate":
            row.update(_texts(writer.pick(former)))
            row["output"] = row["output"].replace(".", "!")
            row["instruction"] = writer.near(row["instruction"])
        case "conflict":
            output = row["output"]
            row.update(_texts(writer.pick(former)))
            row["output"] = output
        case "e-mail":
            row["output"] += f" hong.gildong{writer.digits(2)}@example.com으로 보내 주세요."
        case "phone":
            row["output"] += f" 010-{writer.digits(4)}-{writer.digits(4)}로 전화 주세요."
        case "registration number":
            row["output"] += f" 9{writer.digits(1)}0412-2{writer.digits(6)}"
        case "secret":
            row["output"] += " AKIA" + "".join(
                writer.pick(list("ABCDEFGHJKLMNPQRSTUVWXYZ234567")) for _ in range(16)
            )
        case "licence":
            row["license"] = "CC-BY-NC-4.0"
        case "schema":
            row["lisence"] = "MIT"
        case "too short":
            row["output"] = "네"
        case "special token":
            row["output"] += " <|im_end|><end_of_turn>"
        case "other language":
            row.pop("input", None)
            row["instruction"] = (
                "Pouvez-vous me dire si la garantie couvre la réparation de l'appareil numéro"
                f" {writer.digits(5)} ?"
            )
            row["output"] = (
                f"La garantie couvre la réparation pendant {writer.digits(2)} mois après la date"
                " d'achat de l'appareil."
            )
        case "contamination":
            row.pop("input", None)
            row.update(
                {
                    key: value
                    for key, value in writer.pick(evaluation).items()
                    if key in ("instruction", "input")
                }
            )


def _texts(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("instruction", "input", "output", "language") if key in row}


def evaluation_rows(seed: int = 1) -> list[dict[str, Any]]:
    """400 sound evaluation rows."""
    writer = _Writer(seed)
    rows = []
    for number in range(_EVALUATION_ROWS):
        row = writer.row(number, "eval", korean=False)
        row["expected_output"] = row.pop("output")
        rows.append(row)
    return rows


def training_rows(
    count: int, evaluation: list[dict[str, Any]], *, korean: bool, seed: int = 2
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Rows, each with the name of the defect that was put into it; an English one may stand in the
    evaluation set."""
    writer = _Writer(seed + korean)
    prefix = "ko" if korean else "en"
    former: list[dict[str, Any]] = []
    for number in range(count):
        row = writer.row(number, prefix, korean=korean)
        defect = next((name for name, share in DEFECTS.items() if writer.chance(share)), None)
        if defect == "contamination" and korean:
            defect = None
        if defect and former:
            if defect in {"exact copy", "near duplicate", "conflict"}:
                row.pop("input", None)
            _spoil(writer, defect, row, former, evaluation)
        else:
            defect = None
            if len(former) < 50_000:
                former.append(row)
        yield row, defect


def write(count: int, directory: Path) -> dict[str, Any]:
    """Write `en.jsonl`, `ko.jsonl` and `eval.jsonl`.

    Returns:
        Training rows, mean characters a row, bytes of the training files, and how many rows got
        each defect.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rows = evaluation_rows()
    (directory / "eval.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    defects: collections.Counter[str] = collections.Counter()
    characters = size = 0
    for korean in (False, True):
        path = directory / ("ko.jsonl" if korean else "en.jsonl")
        with path.open("w", encoding="utf-8") as file:
            for row, defect in training_rows(count // 2, rows, korean=korean):
                characters += sum(
                    len(row.get(key, "")) for key in ("instruction", "input", "output")
                )
                if defect:
                    defects[defect] += 1
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        size += path.stat().st_size
    return {
        "rows": count // 2 * 2,
        "characters": round(characters / max(count, 1), 1),
        "bytes": size,
        "defects": dict(defects),
    }


def main() -> None:
    """Write files of the asked size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    print(json.dumps(write(options.rows, options.directory), indent=2))


if __name__ == "__main__":
    main()
