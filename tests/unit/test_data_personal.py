"""Personal data and secrets: what is found, to the character, and what only looks like it."""

from __future__ import annotations

import datetime
import ipaddress
import re
import sys
from pathlib import Path

import pytest
from data_rows import codes, english, judge
from hypothesis import example, given, settings
from hypothesis import strategies as st

from adapterops.data.personal import KINDS, MASKS, detect, mask, masked

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from detectors import load, measure


def wide(text):
    """Full-width letters and digits."""
    return "".join(
        chr(ord(character) + 0xFEE0) if "!" <= character <= "~" else character for character in text
    )


# Secrets are made of pieces, so that scanners of code hosts do not take them for real ones.
FILL = "EXAMPLEfake0123456789"
SECRETS = {
    "AWS key id": "AKI" + "A" + "EXAMPLEFAKE01234"[:16],
    "AWS session": "ASI" + "A" + "EXAMPLEFAKE01234"[:16],
    "GitHub": "gh" + "p_" + FILL * 2,
    "GitHub app": "gh" + "s_" + FILL * 2,
    "GitHub fine-grained": "github" + "_pat_" + FILL * 3,
    "GitLab": "gl" + "pat-" + FILL,
    "Slack": "xo" + "xb-" + "123456789012-" + FILL,
    "Google": "AI" + "za" + (FILL * 2)[:35],
    "Stripe": "sk" + "_live_" + FILL,
    "OpenAI": "sk" + "-proj-" + FILL * 2,
    "Anthropic": "sk" + "-ant-" + "api03-" + FILL * 2,
    "Hugging Face": "h" + "f_" + (FILL * 2)[:34],
    "npm": "np" + "m_" + (FILL * 2)[:36],
    "PyPI": "py" + "pi-" + FILL * 3,
    "JWT": "ey" + "J" + FILL + ".ey" + "J" + FILL + "." + FILL,
}
PEM = "-----BEGIN " + "RSA PRIVATE KEY-----"
AWS_SECRET = (FILL * 2)[:40]

FOUND = {
    "email": [
        "hong@example.com",
        "hong.gil-dong+shop@mail.example.co.kr",
        "HONG@EXAMPLE.COM",
        "h@example.io",
        "o'neil@example.com",
        "hong_1@sub-domain.example.org",
        "1004@example.net",
        wide("hong@example.com"),
    ],
    "phone": [
        "010-1234-5678",
        "01012345678",
        "010 1234 5678",
        "010.1234.5678",
        "010–1234–5678",
        "010ㅡ1234ㅡ5678",
        "(010) 1234-5678",
        "011-234-5678",
        "+82-10-1234-5678",
        "+82 10 1234 5678",
        "+821012345678",
        "+82 (0)10-1234-5678",
        "82-10-1234-5678",
        "0082 10 1234 5678",
        "+82)10-1234-5678",
        "010-12\u200b34-5678",
        "02-123-4567",
        "02-1234-5678",
        "02)1234-5678",
        "(02)123-4567",
        "031-123-4567",
        "064-1234-5678",
        "+82-2-1234-5678",
        "070-1234-5678",
        "0505-123-4567",
        "080-123-4567",
        "1588-1234",
        "1577 1234",
        "1899.1234",
        wide("010-1234-5678"),
        "０１０－１２３４－５６７８",
        "０１０１２３４５６７８",
    ],
    "rrn": [
        "900101-1234567",
        "900101 - 1234567",
        "900101–2234567",
        "900101 1234567",
        "9001011234567",
        "040229-3234567",
        "040229-4234567",
        "201231-3123456",
        "850615-5234567",
        "850615-6234567",
        "010101-7234567",
        "010101-8234567",
        "900101.1234568",
        wide("900101-1234567"),
    ],
    "passport": ["M12345678", "S12345678", "M123A4567", "R12345678"],
    "driver_licence": ["11-12-345678-90", "28-99-123456-01", "13–20–123456–78"],
    "card": [
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111-1111-1111-1111",
        "5555 5555 5555 4444",
        "2223003122003222",
        "378282246310005",
        "3782 822463 10005",
        "6011111111111117",
        "3530111333300000",
        "30569309025904",
        wide("4111111111111111"),
    ],
    "ip": [
        "8.8.8.8",
        "1.1.1.1",
        "211.115.106.1",
        "2001:4860:4860::8888",
        "2606:4700:4700:0:0:0:0:1111",
    ],
    "secret": [*SECRETS.values(), PEM],
}
CONTEXT = {"passport": "여권 번호는 {}"}

NOT_FOUND = {
    "email": [
        "hong@example", "@hong", "hong at example.com", "icon@2x.png", "react@18.2.0",
        "lodash@4.17.js", "user@localhost",
        "hong@@example.com", "[EMAIL]", "git@host:path", "price@1000",
    ],
    "phone": [
        "010-123-456", "010-1234-56789", "2010-1234-5678", "009-1234-5678", "010-1234-5678-9012",
        "A010-1234-5678", "1588", "15881234",
        "1.010.1234.5678", "0101234", "20240101-1234", "0.1012345678", "1700000000",
        "010_1234_5678", "+1-202-555-0123", "[PHONE]",
    ],
    "rrn": [
        "901301-1234567", "900230-1234567", "900132-1234567", "900101-9234567", "900101-0234567",
        "990101-3234567", "900101-123456",
        "900101-12345678", "1900101-1234567", "1700000000000", "1699999999999", "900101-1******",
        "900101/1234567", "[RRN]",
    ],
    "passport": ["M1234567", "A12345678", "XM12345678", "M12345678-1", "M 12345678"],
    "driver_licence": ["10-12-345678-90", "29-12-345678-90", "11-12-345678-9", "11-12-34567-890",
    "2011-12-345678-90", "111234567890"],
    "card": [
        "4111 1111 1111 1112", "4111 1111 1111", "1234 5678 9012 3456", "0000 0000 0000 0000",
        "41111111111111111111",
        "7111111111111116",
    ],
    "ip": [
        "10.0.0.1", "192.168.1.1", "172.16.0.1", "127.0.0.1", "169.254.1.1", "203.0.113.7",
        "100.64.0.1", "224.0.0.1", "0.0.0.0", "::1",
        "fe80::1", "2001:db8::1", "256.1.1.1", "v8.8.8.8", "version 8.8.8.8", "버전 8.8.8.8",
        "8.8.8", "8.8.8.8.8", "12:30:45",
        "std::vector", "ab::cd", "fee::add", "제3.2.1.4항", "3.2.1.4조",
    ],
    "secret": [
        "AKI" + "A" + "short", "xAKI" + "A" + "EXAMPLEFAKE01234", "gh" + "p_" + "short",
        "sk-learn", "sk" + "_test_" + FILL,
        "ey" + "J" + FILL,
        "-----BEGIN " + "PUBLIC KEY-----", "-----BEGIN " + "CERTIFICATE-----", "[SECRET]",
        "hf_transfer", "npm_config_registry",
    ],
}  # fmt: skip
PARTICLES = ["", "로", "으로 보내", "은", "입니다.", "에서", ", ok", ")", " x"]


def spans(text):
    return [(item.kind, text[item.start : item.end]) for item in detect(text)]


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in FOUND.items() for text in texts]
)
def test_every_writing_is_found_to_the_character_whatever_is_glued_to_it(kind, text):
    for particle in PARTICLES:
        if kind in {"passport", "secret"} and particle == " x":
            continue
        for before in ("", "제 것은 ", "값:", *([] if ")" in text else ["("])):
            sentence = CONTEXT.get(kind, "{}").format(f"{before}{text}{particle}")
            assert spans(sentence) == [(kind, text)], sentence


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in NOT_FOUND.items() for text in texts]
)
def test_what_only_looks_like_it_is_not_found(kind, text):
    for sentence in (text, f"보세요: {text} 입니다", f"See {text}, please."):
        assert kind not in [found for found, _ in spans(sentence)], sentence


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("연락처 010-1234-5678/02-123-4567", ["010-1234-5678", "02-123-4567"]),
        ("TEL-02-123-4567, HP010-1234-5678", ["02-123-4567", "010-1234-5678"]),
        ("주민번호 900101/1234567", ["900101/1234567"]),
        ("면허 11 23 456789 01번", ["11 23 456789 01"]),
        ("여권번호 m12345678", ["m12345678"]),
        ("hong@exam\u200bple.com으로", ["hong@exam\u200bple.com"]),
    ],
)
def test_writings_that_words_beside_them_make_clear(text, found):
    assert [part for _, part in spans(text)] == found


def test_every_kind_has_its_cases():
    assert set(FOUND) == set(NOT_FOUND) == set(KINDS) - {"name"} == set(MASKS) - {"name"}


class TestRegistrationNumbers:
    def test_the_checksum_only_raises_confidence(self):
        numbers = [f"900101-123456{digit}" for digit in range(10)]
        assert [detect(number)[0].kind for number in numbers] == ["rrn"] * 10
        assert sum(detect(number)[0].certain for number in numbers) == 1

    def test_a_birthday_in_the_future_is_none(self):
        tomorrow = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=2)
        assert detect(f"{tomorrow:%y%m%d}-3123456") == []
        assert [
            item.kind for item in detect(f"{tomorrow - datetime.timedelta(days=4):%y%m%d}-3123456")
        ] == ["rrn"]

    def test_milliseconds_are_none_unless_the_text_says_so(self):
        assert detect("1509101234567") == []
        assert [item.kind for item in detect("주민등록번호 1509101234567")] == ["rrn"]


class TestNamedSecrets:
    @pytest.mark.parametrize(
        "name",
        [
            "aws_secret_access_key = ",
            "AWS_SECRET_ACCESS_KEY=",
            'SecretAccessKey": "',
            "secret access key: ",
        ],
    )
    def test_an_aws_secret_is_known_by_its_name(self, name):
        assert spans(name + AWS_SECRET) == [("secret", AWS_SECRET)]

    def test_forty_characters_without_a_name_are_a_digest(self):
        assert spans("commit " + "0123456789abcdef" * 2 + "01234567") == []


class TestMask:
    def test_each_kind_has_its_word(self):
        for kind, texts in FOUND.items():
            text = CONTEXT.get(kind, "{}").format(f"A {texts[0]} B")
            assert mask(text, detect(text)) == CONTEXT.get(kind, "{}").format(f"A {MASKS[kind]} B")

    @pytest.mark.parametrize("newline", ["\n", "\\n", "\r\n"])
    def test_of_a_private_key_all_is_masked_and_not_its_first_line(self, newline):
        body = newline.join([FILL * 3] * 4)
        text = f"Mine: {PEM}{newline}{body}{newline}-----END RSA PRIVATE KEY-----{newline}Thanks"
        assert mask(text, detect(text)) == f"Mine: [SECRET]{newline}Thanks"

    def test_of_a_private_key_without_an_end_the_body_is_masked(self):
        text = f"{PEM}\n{FILL * 3}\n{FILL * 3}\nThanks a lot"
        assert mask(text, detect(text)) == "[SECRET]\nThanks a lot"

    def test_a_message_shows_two_characters(self):
        assert masked("hong@example.com") == "ho…"

    def test_a_list_of_addresses_is_masked_to_its_end(self):
        text = " ".join(f"user{n}@example.com" for n in range(1000))
        assert len(detect(text)) == 100
        assert mask(text, detect(text, most=None)) == " ".join(["[EMAIL]"] * 1000)


class TestKinds:
    def test_only_the_kinds_of_the_policy_are_looked_for(self, tmp_path):
        rows = [english(1, output="Write to hong@example.com or 010-1234-5678.")]
        assert codes(judge(tmp_path, rows, limits={"personal_data": ("phone",)})) == ["E302"]
        assert codes(judge(tmp_path, rows, limits={"personal_data": ()})) == []


class TestLabelledSet:
    def test_it_is_as_large_and_as_hard_as_it_claims(self):
        labelled = load()
        assert sum(len(row["found"]) for row in labelled) >= 300
        assert sum(not row["found"] for row in labelled) >= 300
        for row in labelled:
            place = 0
            for label in row["found"]:
                place = row["text"].index(label["text"], place) + 1

    def test_recall_and_precision(self):
        measured = measure(load())
        for kind, count in measured.items():
            if kind == "name":
                continue
            recall = count["found"] / (count["found"] + count["missed"])
            precision = count["found"] / (count["found"] + count["wrong"])
            # E-mail, phone and RRN: the gate's promise. The others: what was measured, so that a
            # change cannot lose it unseen.
            least = {
                "email": (0.99, 0.98),
                "phone": (0.99, 0.98),
                "rrn": (0.99, 0.98),
                "ip": (1, 0.96),
            }.get(kind, (1, 1))
            assert recall >= least[0], (kind, "recall", recall)
            assert precision >= least[1], (kind, "precision", precision)

    def test_a_masked_text_holds_none_of_it(self):
        for row in load():
            text = mask(row["text"], detect(row["text"], most=None))
            assert detect(text) == [], row["id"]


PIECES = st.sampled_from(
    [text for texts in FOUND.values() for text in texts]
    + [text for texts in NOT_FOUND.values() for text in texts]
    + [
        *"@-.:/ \n0123456789aZ_'+",
        "여권",
        "전화",
        "주민",
        "⒈",
        "㎏",
        "½",
        "ﬁ",
        "ﷺ",
        "e\u0301",
        "\u0301",
        "😀",
        "ￜ",
        "１",
        "\x00",
    ]
)
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(PIECES, max_size=12).map("".join),
    st.lists(PIECES, max_size=8).map(" ".join),
)


@settings(max_examples=600, deadline=None)
@given(TEXTS)
@example("1.1.1.⒈8.8.8")
@example("ⓗong@example.com⒈")
def test_any_text_gives_findings_inside_it_in_order_and_apart_that_mask_removes(text):
    found = detect(text, most=None)
    assert detect(text) == found[:100]
    place = 0
    for item in found:
        assert item.kind in KINDS
        assert place <= item.start < item.end <= len(text)
        place = item.end
    cleaned = mask(text, found)
    for item in found:
        part = text[item.start : item.end]
        assert cleaned.count(part) < text.count(part) or part in "".join(MASKS.values())
    for kind in KINDS:
        alone = detect(text, frozenset({kind}), most=None)
        assert {item.kind for item in alone} <= {kind}


@settings(max_examples=200, deadline=None)
@given(st.ip_addresses())
def test_addresses_are_found_where_they_are_public(address):
    found = [item.kind for item in detect(f"from {address} today")]
    assert ("ip" in found) is bool(address.is_global and not address.is_multicast) or isinstance(
        address, ipaddress.IPv6Address
    )


@settings(max_examples=200, deadline=None)
@given(
    st.from_regex(re.compile(r"01[016-9][-. ]\d{4}[-. ]\d{4}", re.ASCII), fullmatch=True),
    st.sampled_from(PARTICLES),
)
def test_every_mobile_number_is_found(number, particle):
    assert ("phone", number) in spans(f"연락처 {number}{particle}")
