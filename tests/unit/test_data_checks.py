"""Every code of the data gate: the rows that bring it about, at which line, and what comes near and
must not."""

from __future__ import annotations

import gzip
import json
import subprocess
import tracemalloc
from dataclasses import dataclass, field
from typing import Any

import pytest
from data_rows import (
    BYTES_TEMPLATE,
    KOREAN,
    ROW,
    byte_model,
    codes,
    conversation,
    english,
    evaluation,
    jsonl,
    judge,
    places,
    rows,
    write,
)

from adapterops.data.codes import CODES
from adapterops.data.distribution_drift import Base
from adapterops.data.reader import MAX_ROW_BYTES
from adapterops.schemas import schema_problems

GOOD = json.dumps(ROW).encode() + b"\n"


@dataclass
class Case:
    """A file, and where in it the code must stand; no line: it must not.

    `template` brings in the base model of bytes; `former` is the file on the base branch.
    """

    code: str
    training: Any
    line: int | None = None
    why: str = ""
    evaluation: Any = None
    limits: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    max_length: int | None = None
    former: Any = None
    blames: str = "training.jsonl"

    def __str__(self) -> str:
        return f"{self.code}-{self.why or self.line}".replace(" ", "-")


TOKEN = "gh" + "p_" + "EXAMPLEfake" + "0123456789" * 3
NO_BOS = BYTES_TEMPLATE.removeprefix("{{ bos_token }}")
TWO_BOS = "{{ bos_token }}" + BYTES_TEMPLATE
OPEN = BYTES_TEMPLATE.replace("<end>", "")
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{%"
    " endif %}" + BYTES_TEMPLATE
)
TALK = {
    "instruction": "What does it cost to have the armchair brought upstairs?",
    "output": "Nothing.",
}
DUPLICATE = {"license": "MIT", "source": "elsewhere"}


def prose(number, count):
    """The beginning of an evaluation prompt: `What would it cost to send` and five things; eleven
    words."""
    return evaluation(number)["instruction"][:count]


FIRES = [
    Case("E101", GOOD + b'{"id": "\xff"}\n', 2),
    Case("E101", b"[" + GOOD + b',{"id": "\xff"}]', 2, "array"),
    Case("E101", gzip.compress(GOOD), 1, "compressed"),
    Case("E101", GOOD.decode().encode("utf-16"), 1, "UTF-16"),
    Case("E102", b"\xef\xbb\xbf" + GOOD, 1),
    Case("E103", GOOD + GOOD[:50] + b"\n" + GOOD, 2, "truncated"),
    Case("E103", GOOD.strip() + b",\n", 1, "comma behind a row"),
    Case("E103", GOOD + b'{"id": ' + b"[" * 101 + b"]" * 101 + b"}\n", 2, "nested too deeply"),
    Case("E103", GOOD + b"\xef\xbb\xbf" + GOOD, 2, "files joined with their marks"),
    Case("E103", json.dumps(english(1), indent=2).encode(), 1, "a row over several lines"),
    Case("E103", json.dumps({"data": rows(3)}, indent=2).encode(), 1, "rows inside an object"),
    Case("E104", GOOD + b"[1]\n", 2),
    Case("E105", GOOD + b'{"id": "a", "id": "b"}\n', 2),
    Case(
        "E105", b'{"expected_format": {"enum": [[[{"a": 1, "a": 2}]]]}}\n', 1, "in lists of lists"
    ),
    Case("E105", b'{"": 1, "": 2}\n', 1, "empty key"),
    Case("E106", b'{"id": NaN}\n', 1),
    Case("E106", b'{"id": 1e999}\n', 1, "number beyond floats"),
    Case("E107", GOOD + b'{"id": "' + b"x" * MAX_ROW_BYTES + b'"}\n' + GOOD, 2),
    Case("E108", b"\n \n", 1),
    Case("E109", b'{"id": "\\ud83d"}\n', 1),
    Case("E109", b'{"\\ud83d": 1, "\\ud83d": 2}\n', 1, "in a key that stands twice"),
    Case("E110", [english(1), english(2, output=" ")], 2, "empty output"),
    Case(
        "E110", [english(1), english(2, output="\u200b\u200b")], 2, "output of nothing that is seen"
    ),
    Case("E110", [english(1, source=None)], 1, "no source"),
    Case("E110", [english(1, source=" ")], 1, "blank source"),
    Case(
        "E110",
        [
            conversation("Hi there, you", "Hello"),
            {**conversation("Hi", "Hello"), "instruction": "Hi"},
        ],
        2,
        "messages and instruction",
    ),
    Case(
        "E110", [conversation("Hi", "Hello", roles=("assistant", "user"))], 1, "roles out of turn"
    ),
    Case("E111", [english(1), english(2), english(3, id="r1")], 3),
    Case("E201", [english(1, instruction="x" * 9, output="x" * 5)], 1, template=BYTES_TEMPLATE),
    Case(
        "E201",
        [english(1, instruction="x" * 2049, output="x" * 5)],
        1,
        "too long",
        template=BYTES_TEMPLATE,
    ),
    Case("E202", [english(1, instruction="x" * 10, output="x" * 4)], 1, template=BYTES_TEMPLATE),
    Case(
        "E202",
        [english(1, instruction="x" * 10, output="x" * 4097)],
        1,
        "too long",
        template=BYTES_TEMPLATE,
    ),
    Case(
        "E203",
        [english(1, instruction="x" * 10, output="x" * 20)],
        1,
        template=BYTES_TEMPLATE,
        max_length=47,
    ),
    Case(
        "E204",
        [english(1), english(2, output="The end is <end> here.")],
        2,
        template=BYTES_TEMPLATE,
    ),
    Case("E205", [*rows(19), english(0, id="copy")], 1, "exactly at the limit"),
    Case("E206", [english(1)], 1, "no BOS", template=NO_BOS),
    Case("E206", [english(1)], 1, "two BOS", template=TWO_BOS),
    Case("E206", [english(1)], 1, "turns are not closed", template=OPEN),
    Case(
        "E206",
        [english(1), english(2, system="Be brief.")],
        2,
        "template refuses the role",
        template=NO_SYSTEM,
    ),
    Case("E206", [english(1)], 1, "template fails", template="{{ 1 / 0 }}"),
    Case("E301", [english(1, output="hong@example.com으로 보내 주세요")], 1),
    Case("E302", [english(1, output="전화는 010-1234-5678로 주세요")], 1),
    Case("E303", [english(1, output="제 번호는 900101-1234567입니다")], 1),
    Case("E304", [english(1, output="여권 번호는 M12345678입니다")], 1),
    Case(
        "E304",
        [english(1, instruction="내 여권 번호가 맞나요?", input="M12345678")],
        1,
        "the word is in another field",
    ),
    Case("E305", [english(1, output="면허는 11-12-345678-90입니다")], 1),
    Case("E306", [english(1, output="Card 4111 1111 1111 1111.")], 1),
    Case("E307", [english(1, output="Connected from 8.8.8.8 today.")], 1),
    Case("E309", [english(1, output=f"Use {TOKEN} for it.")], 1),
    Case(
        "E309",
        [conversation(f"Is {TOKEN} mine?", "Yes, it is.", "And now?", "Revoke it.")],
        1,
        "in an earlier turn",
    ),
    Case(
        "E401",
        rows(5),
        2,
        evaluation=[evaluation(0), evaluation(1, instruction=english(3)["instruction"].upper())],
        blames="eval.jsonl",
    ),
    Case("E501", [english(1), english(2, license="GPL-3.0-only")], 2),
    Case(
        "E601",
        [
            *rows(18),
            {**KOREAN, "id": "a"},
            {**KOREAN, "id": "b", "instruction": "언제 오나요? 어제 오신다고 들었습니다."},
        ],
        1,
    ),
    Case("E112", GOOD.replace(b"\n", b"\r\n"), 1),
    Case("H102", [english(1), english(2, output="Cafe\u0301 is open, and it is free.")], 2),
    Case(
        "H102",
        json.dumps(english(1, output="Cafe\u0301 is open.")).encode(),
        1,
        "written as an escape",
    ),
    Case(
        "H103",
        [english(1), english(2, instruction="What would a ket\u200btle cost, and who brings it?")],
        2,
        "zero width",
    ),
    Case(
        "H103",
        json.dumps(english(1, output="It is \u202eeerf\u202c for you and me.")).encode(),
        1,
        "direction turned, as an escape",
    ),
    Case("H205", [*rows(30), english(3, id="copy", **DUPLICATE)], 31),
    Case(
        "H205",
        [*rows(30), english(3, id="copy", instruction=" " + english(3)["instruction"].upper())],
        31,
        "case and blanks",
    ),
    Case(
        "H205",
        [*rows(30), conversation(english(3)["instruction"], english(3)["output"], id="copy")],
        31,
        "as messages",
    ),
    Case("H206", [*rows(30), english(3, id="near", output=english(3)["output"] + " Yes")], 31),
    Case(
        "H207",
        [*rows(30), english(3, id="other", output="Ask a person in the shop near you, please.")],
        31,
    ),
    Case(
        "H402",
        [english(1), english(2, instruction=f"Hello! {prose(0, -8)}, please")],
        1,
        evaluation=[evaluation(0)],
        blames="eval.jsonl",
    ),
    Case("H601", [*rows(30), KOREAN], 31),
    Case(
        "H701",
        rows(20),
        1,
        "shorter",
        former=[english(n, output=english(n)["output"] * 2) for n in range(20)],
    ),
    Case(
        "H701",
        [english(n, tags=["returns"]) for n in range(20)],
        1,
        "other tasks",
        former=[english(n, tags=["delivery"]) for n in range(20)],
    ),
    Case(
        "H701",
        [
            english(n, output="I am sorry, I cannot help with that request today.")
            for n in range(20)
        ],
        1,
        "refusals",
        former=rows(20),
    ),
]

SILENT = [
    Case("E101", [{**KOREAN, "output": "café 😀 네, 그렇습니다"}], why="any valid UTF-8"),
    Case(
        "E102", [english(1, output="A mark \ufeff inside is another thing.")], why="inside the file"
    ),
    Case("E103", b"\n" + GOOD + b"\n  \n", why="blank lines"),
    Case("E103", GOOD.strip(), why="no line end"),
    Case("E103", b"[" + GOOD + b"]", why="array"),
    Case("E103", [english(1, output="[" * 200)], why="brackets in a text"),
    Case("E104", GOOD),
    Case(
        "E105",
        b'{"a": {"id": 1}, "b": {"id": 2}, "c": [{"id": 1}, {"id": 1}]}\n',
        why="the same key in two objects",
    ),
    Case("E106", [english(1, output="NaN, Infinity and 1e999 are words here.")], why="in a text"),
    Case("E107", [english(1, output="x" * 900_000)], why="just below"),
    Case("E108", GOOD),
    Case("E108", b'{"id": 1}\n', why="a broken row is a row"),
    Case(
        "E109", json.dumps(english(1, output="A whole \U0001f600 as a pair of escapes.")).encode()
    ),
    Case(
        "E109",
        [english(1, output="The text \\ud83d is about escapes.")],
        why="an escaped backslash",
    ),
    Case(
        "E110",
        [
            english(1, input="", system="", tags=[]),
            conversation("Hi", "Hello", "Yes?", "No.", number=2),
        ],
        why="all that may be left out",
    ),
    Case(
        "E110",
        [conversation("Be brief.", "Hi", "Hello", roles=("system", "user", "assistant"))],
        why="system first",
    ),
    Case(
        "E111", [english(1, id="a"), english(2, id="A"), english(3, id="a ")], why="ids that differ"
    ),
    Case(
        "E201",
        [english(1, instruction="x" * 10), english(2, instruction="y" * 2048)],
        why="both ends",
        template=BYTES_TEMPLATE,
    ),
    Case(
        "E201",
        [english(1, instruction="x" * 5, input="y" * 5)],
        why="the input counts",
        template=BYTES_TEMPLATE,
    ),
    Case(
        "E202",
        [english(1, output="x" * 5), english(2, output="y" * 4096)],
        why="both ends",
        template=BYTES_TEMPLATE,
    ),
    Case(
        "E203",
        [english(1, instruction="x" * 10, output="x" * 20)],
        why="just fits",
        template=BYTES_TEMPLATE,
        max_length=48,
    ),
    Case(
        "E204",
        [english(1, output="Write < end > or <END> or <ends.")],
        why="much like one",
        template=BYTES_TEMPLATE,
    ),
    Case("E205", [*rows(20), english(0, id="copy")], why="just below the limit"),
    Case(
        "E205",
        [*rows(19), english(0, id="other", output="Ask a person in the shop near you, please.")],
        why="another answer",
    ),
    Case("E206", [english(1), english(2, system="Be brief.")], template=BYTES_TEMPLATE),
    Case(
        "E206",
        [conversation("Hi there, you", "Hello", "Yes?", "Nothing.")],
        why="many turns",
        template=BYTES_TEMPLATE,
    ),
    Case(
        "E301",
        [english(1, output="Write to [EMAIL], ask @hong, or see icon@2x.png and react@18.2.0.")],
    ),
    Case(
        "E302", [english(1, output="Order 2024-0101-5678, part 010-12-345, 1588-1600 years ago.")]
    ),
    Case(
        "E303",
        [english(1, output="Order 991301-1234567 and 900101-9234567.")],
        why="no such month, no such century",
    ),
    Case("E304", [english(1, output="Model M12345678 is in stock.")], why="a product"),
    Case("E305", [english(1, output="Take 31-12-345678-90.")], why="no such region"),
    Case("E306", [english(1, output="Order 4111 1111 1111 1112.")], why="Luhn fails"),
    Case(
        "E307", [english(1, output="Use 192.168.0.1, 127.0.0.1, 203.0.113.7 or version 1.2.3.4.")]
    ),
    Case(
        "E309",
        [
            english(
                1, output="A token begins with gh" + "p_ and AKI" + "A; a sk-learn model has none."
            )
        ],
    ),
    Case("E401", rows(5), evaluation=[evaluation(0)]),
    Case(
        "E401",
        [english(1, **TALK)],
        evaluation=[evaluation(0, instruction=TALK["instruction"] + " Now")],
        why="one more word",
    ),
    Case("E501", [english(n, license=name) for n, name in enumerate(["CC0-1.0", "MIT", "KOGL-1"])]),
    Case("E601", [*rows(19), KOREAN], why="exactly at the limit"),
    Case("E112", GOOD),
    Case("H102", [english(1, output="Café is open, 네, 그렇습니다.")]),
    Case(
        "H102",
        [english(1, output="Sum:\n\u0303 is a tilde on nothing.")],
        why="a mark behind an escape",
    ),
    Case(
        "H103",
        [
            english(
                1, output="A family 👨\u200d👩\u200d👧 and می\u200cخواهم are written with joiners."
            )
        ],
        why="joiners",
    ),
    Case(
        "H205",
        [*rows(30), english(3, id="near", output=english(3)["output"] + "!")],
        why="punctuation: nearly",
    ),
    Case("H206", [*rows(30), english(3, id="copy")], why="exactly"),
    Case("H206", rows(200), why="rows of one kind"),
    Case("H207", [*rows(30), english(3, id="copy")], why="the same output"),
    Case(
        "H207",
        [*rows(30), english(3, id="near", output=english(3)["output"] + "!")],
        why="nearly the same output",
    ),
    Case(
        "H402",
        [english(1, instruction=f"Hello! {prose(0, 20)} is not all that there is to say")],
        evaluation=[evaluation(0)],
        why="a part",
    ),
    Case(
        "H402",
        rows(50),
        evaluation=[evaluation(n) for n in range(20)],
        why="shared wording of the task",
    ),
    Case(
        "H402",
        rows(5),
        evaluation=[evaluation(0, instruction=english(3)["instruction"])],
        why="E401 says it already",
    ),
    Case("H601", [*rows(5), english(6, instruction="12 * 30 =", output="360")], why="numbers"),
    Case(
        "H601",
        [*rows(5), english(6, instruction='{"a": 1}', output="SELECT * FROM t;")],
        why="code",
    ),
    Case(
        "H601",
        [
            {
                **KOREAN,
                "output": (
                    "Docker Compose 파일에서 GPU 옵션을 활성화하세요. NVIDIA Container Toolkit이"
                    " 필요합니다."
                ),
            }
        ],
        why="Latin words",
    ),
    Case("H701", rows(22), former=rows(20), why="an ordinary week"),
    Case("H701", rows(20), former=b"\n", why="no rows before"),
]


def run(case, tmp_path, monkeypatch):
    options: dict[str, Any] = {"limits": case.limits, "max_length": case.max_length}
    if case.template is not None:
        options["base_model"] = byte_model(tmp_path / "model", monkeypatch, case.template)
    if case.former is None:
        return judge(tmp_path, case.training, case.evaluation, **options)
    write(tmp_path / "training.jsonl", case.former)
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "former"],
    ):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    with Base("HEAD", tmp_path) as base:
        return judge(tmp_path, case.training, case.evaluation, base=base, **options)


@pytest.mark.parametrize("case", FIRES, ids=str)
def test_what_must_be_found(case, tmp_path, monkeypatch):
    report = run(case, tmp_path, monkeypatch)
    found = [
        (finding.file.rpartition("/")[2], finding.line)
        for finding in report.findings
        if finding.code == case.code
    ]
    assert (case.blames, case.line) in found
    assert len(set(found)) == 1
    assert report.passed is not any(code.startswith("E") for code in codes(report))
    assert schema_problems(report.document, "data_report") == []
    severity = "error" if case.code.startswith("E") else "hint"
    assert {finding.severity for finding in report.findings if finding.code == case.code} == {
        severity
    }


@pytest.mark.parametrize("case", SILENT, ids=str)
def test_what_must_not_be_found(case, tmp_path, monkeypatch):
    assert case.code not in codes(run(case, tmp_path, monkeypatch))


@pytest.mark.parametrize("cases", [FIRES, SILENT], ids=["must", "must not"])
def test_every_code_has_its_cases(cases):
    assert {case.code for case in cases} == set(CODES)


def test_good_rows_bring_about_nothing(tmp_path, monkeypatch):
    model = byte_model(tmp_path / "model", monkeypatch)
    report = judge(
        tmp_path, rows(100), [evaluation(n) for n in range(20)], base_model=model, max_length=500
    )
    assert (report.passed, report.findings, report.document["counts"]) == (True, (), {})


def test_a_licence_that_is_nearly_right_is_named(tmp_path):
    (finding,) = judge(tmp_path, [english(1, license="CC-BY-SA-4")]).findings
    assert "Did you mean `CC-BY-SA-4.0`?" in finding.message


def test_a_message_about_the_schema_says_what_to_write_and_does_not_repeat_the_row(tmp_path):
    talk = conversation("Where is it?", "On its way.")
    rows = [{**talk, "instruction": "hong@example.com asks"}, {**talk, "id": "r2", "messages": []}]
    messages = [
        finding.message for finding in judge(tmp_path, rows).findings if finding.code == "E110"
    ]
    assert (
        "`instruction`: this key is not allowed here. Write either `messages`, or `instruction` and"
        " `output`." in messages
    )
    assert "`messages`: it has 0 entries. Expected at least 2." in messages
    assert not any("hong" in message or "{}" in message for message in messages)


def test_secrets_and_personal_data_are_not_repeated(tmp_path):
    text = f"Write to hong.gildong@example.com or 010-1234-5678, with {TOKEN}."
    report = judge(tmp_path, [english(1, output=text)])
    assert codes(report) == ["E301", "E302", "E309"]
    whole = json.dumps(report.document)
    assert all(part not in whole for part in ("gildong", "5678", "EXAMPLEfake"))


def test_excerpts_of_prompts_do_not_repeat_personal_data(tmp_path):
    secret = "hong.gildong@example.com"
    ours, theirs = (
        f"The customer asks {word} at {secret} when the armchair comes to the house."
        for word in ("us", "me")
    )
    report = judge(tmp_path, [english(1, instruction=ours)], [evaluation(0, instruction=theirs)])
    assert "H402" in codes(report)
    assert secret not in json.dumps(report.document)


class TestLanguage:
    def test_the_share_is_of_rows_with_prose(self, tmp_path):
        code = [
            english(n, instruction="```\nprint(1)\n```", output=json.dumps({"total": n}))
            for n in range(100, 200)
        ]
        report = judge(tmp_path, [*rows(18), KOREAN, *code])
        assert {"E601", "H601"} <= set(codes(report))
        assert places(report, "H601") == [19]
        assert "94.7% of 19 rows with prose" in next(
            finding.message for finding in report.findings if finding.code == "E601"
        )

    def test_the_target_is_the_policys_or_what_most_rows_claim(self, tmp_path):
        assert judge(tmp_path, [KOREAN]).document["files"][0]["target_language"] == "ko"
        assert (
            judge(tmp_path, [KOREAN], limits={"language": "en"}).document["files"][0][
                "target_language"
            ]
            == "en"
        )


class TestFormats:
    def test_an_array_and_lines_give_the_same_counts(self, tmp_path):
        values = [
            *rows(20),
            english(3, id="copy"),
            english(21, output="Write to hong@example.com."),
            english(22, license="X"),
            KOREAN,
        ]
        lines = judge(tmp_path, values).document
        array = judge(
            tmp_path, json.dumps(values, indent=1).encode(), name="training.json"
        ).document
        assert lines["counts"] == array["counts"]
        different = {"path", "sha256", "bytes"}
        assert [
            {k: v for k, v in file.items() if k not in different} for file in lines["files"]
        ] == [{k: v for k, v in file.items() if k not in different} for file in array["files"]]

    def test_on_all_cores_the_report_is_the_same(self, tmp_path, monkeypatch):
        bad = [
            english(500, license="X"),
            english(501, output="Write to hong@example.com."),
            {**KOREAN, "id": "k"},
            english(7, id="copy"),
        ]
        values = (
            jsonl([*rows(300), *bad, *rows(40, first=600)])
            + b"{\n"
            + jsonl([english(8, id="r5", output="Ask in a shop, please.")])
        )
        serial = judge(
            tmp_path, values, [evaluation(0), evaluation(1, instruction=english(9)["instruction"])]
        )
        monkeypatch.setattr("adapterops.data.scan._PARALLEL_BYTES", 10_000)
        monkeypatch.setattr("adapterops.data.reader._BLOCK_BYTES", 20_000)
        parallel = judge(
            tmp_path, values, [evaluation(0), evaluation(1, instruction=english(9)["instruction"])]
        )
        assert {**serial.document, "timing": None} == {**parallel.document, "timing": None}
        assert {"E103", "E111", "E301", "E401", "E501", "H205", "H207", "H601"} <= set(
            codes(serial)
        )


class TestBounds:
    def test_of_a_hundred_thousand_findings_all_are_counted_and_a_thousand_kept(self, tmp_path):
        report = judge(tmp_path, b"1\n" * 100_000)
        assert report.document["counts"] == {"E104": 100_000}
        assert len(report.findings) == 1000
        assert report.document["files"][0]["rejected_rows"] == 100_000

    def test_bad_rows_do_not_take_memory(self, tmp_path):
        tracemalloc.start()
        try:
            judge(tmp_path, b"1\n" * 100_000)
            assert tracemalloc.get_traced_memory()[1] < 15_000_000
        finally:
            tracemalloc.stop()

    def test_a_row_with_thousands_of_unknown_keys_is_one_rows_worth_of_findings(self, tmp_path):
        report = judge(tmp_path, [{**ROW, **{f"key{n}": 1 for n in range(20_000)}}])
        assert report.document["counts"]["E110"] == 20

    def test_a_key_of_half_a_megabyte_is_not_shown_whole(self, tmp_path):
        report = judge(tmp_path, [{**ROW, "x" * 500_000: 1}])
        assert all(len(finding.message) < 1000 for finding in report.findings)

    @pytest.mark.parametrize(
        "depth", [2, 50, 98, 99, 100, 150, 300, 480, 900, 985, 990, 995, 1000, 5000]
    )
    @pytest.mark.parametrize("opening", ["[", '{"a":'])
    def test_nesting_of_any_depth_is_a_finding(self, tmp_path, depth, opening):
        closing = "]" if opening == "[" else "}"
        content = (
            '{"id": "a", "expected_format": ' + opening * depth + "1" + closing * depth + "}\n"
        )
        assert places(judge(tmp_path, content.encode()), "E103") == ([1] if depth > 99 else [])


def test_what_the_schema_refuses_is_searched_for_personal_data_all_the_same(tmp_path):
    report = judge(
        tmp_path, [english(1, langage="en", output="Write to hong@example.com, please."), *rows(3)]
    )
    assert (places(report, "E110"), places(report, "E301")) == ([1], [1])
    assert report.document["files"][0]["rejected_rows"] == 1
