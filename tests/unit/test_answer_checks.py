"""What a general row may ask of an answer's form, and that no answer gets around it."""

import json
import time

import data_rows
import pytest

from adapterops.data.answer_checks import broken_checks
from adapterops.data.reader import Row, load_rows, schema_findings
from adapterops.data.validate import validate
from adapterops.schemas import ROOT
from adapterops.specs.policy import load_policy

SETS = [ROOT / f"data/eval/general-{language}.jsonl" for language in ("en", "ko")]


def holds(check, answer, *, ended=True):
    return not broken_checks([check], answer, ended=ended)


@pytest.mark.parametrize(
    ("check", "answer", "expected"),
    [
        ({"check": "words", "max": 3}, "one two three", True),
        ({"check": "words", "max": 3}, "one, two - three: four", False),
        ({"check": "words", "min": 1}, "- … !", False),
        ({"check": "sentences", "min": 1, "max": 1}, "Mr. Kim left at 3.30 for St. Ives.", True),
        ({"check": "sentences", "max": 1}, "It rained. It poured", False),
        ({"check": "sentences", "max": 1}, "It rained\nIt poured", False),
        ({"check": "sentences", "min": 2, "max": 2}, "비가 왔다. 그리고 그쳤다.", True),
        (
            {"check": "sentences", "min": 2, "max": 2},
            '"Stop!" he said. Nobody did.',
            False,
        ),  # three marks: it cannot tell
        ({"check": "lines", "min": 2, "max": 2}, "a\n\nb\n", True),
        ({"check": "bullets", "min": 2, "max": 2}, "- a\n* b", True),
        ({"check": "bullets", "min": 2}, "-a\n--\n1. b", False),
        ({"check": "contains", "any": ["12"]}, "There are 12.", True),
        ({"check": "contains", "any": ["12"]}, "There are 120.", False),
        ({"check": "contains", "any": ["12"]}, "It is 1.12 or 12.5 or 12,000.", False),
        ({"check": "contains", "any": ["30000"]}, "30,000원입니다", True),
        ({"check": "contains", "any": ["cat"]}, "a catalogue", False),
        ({"check": "contains", "any": ["서울"]}, "서울입니다.", True),
        ({"check": "contains", "any": ["kill"]}, "kill을 쓰세요", True),
        ({"check": "not_contains", "any": ["water"]}, "Water!", False),
        ({"check": "not_contains", "any": ["water"]}, "", False),  # silence keeps no instruction
        ({"check": "starts_with", "text": "Yesterday"}, "yesterday I", True),
        ({"check": "ends_with", "text": "?"}, "Have you finished?", True),
        ({"check": "answer", "any": ["no"]}, "**No.**", True),
        ({"check": "answer", "any": ["no"]}, "No, it is not.", False),
        ({"check": "json"}, '{"a": 1}', True),
        ({"check": "json"}, '{"a": 1, "a": 2}', False),
        ({"check": "json"}, '{"a": NaN}', False),
        ({"check": "json"}, '```json\n{"a": 1}\n```', False),
        ({"check": "json"}, "[" * 100_000, False),
        ({"check": "json", "keys": ["a"]}, '{"a": 1, "b": 2}', False),
        ({"check": "json", "keys": ["a"]}, '["a"]', False),
        ({"check": "language", "language": "ko"}, "파이썬의 print() 함수입니다.", True),
        ({"check": "language", "language": "ko"}, "It prints 글자.", False),
        ({"check": "language", "language": "ko"}, "12", False),
        ({"check": "upper_case"}, "THUNDER!", True),
        ({"check": "upper_case"}, "Thunder", False),
        ({"check": "lower_case"}, "123", False),
    ],
)
def test_each_check_says_yes_and_no(check, answer, expected):
    assert holds(check, answer) is expected


def test_what_was_thought_before_the_answer_is_not_the_answer():
    for thought in ("<think>\n\n</think>\n", "<think>No. Or yes? The word is long.</think>"):
        assert holds({"check": "answer", "any": ["yes"]}, f"{thought}yes")
        assert holds({"check": "sentences", "max": 1}, f"{thought}Yes.")


def test_decomposed_hangul_is_the_same_text():
    import unicodedata

    for check in (
        {"check": "contains", "any": ["서울"]},
        {"check": "language", "language": "ko"},
        {"check": "answer", "any": ["서울"]},
    ):
        assert holds(check, unicodedata.normalize("NFD", "서울"))


@pytest.mark.parametrize(
    ("check", "answer", "expected"),
    [
        ({"check": "contains", "any": ["Lisbon"]}, "The capital is Lisbon, which", True),
        ({"check": "starts_with", "text": "We"}, "We share", True),
        ({"check": "language", "language": "ko"}, "우리는", True),
        ({"check": "sentences", "max": 1}, "One sentence that", False),
        ({"check": "words", "max": 10}, "A few words", False),
        ({"check": "not_contains", "any": ["water"]}, "A bridge", False),
        ({"check": "answer", "any": ["50"]}, "50", False),
        ({"check": "upper_case"}, "THUN", False),
    ],
)
def test_an_answer_that_was_cut_off_keeps_only_what_its_beginning_shows(check, answer, expected):
    assert holds(check, answer, ended=False) is expected


@pytest.mark.parametrize(
    "text",
    [
        "a" * 300_000,
        "가. " * 100_000,
        "12," * 100_000,
        "`" * 100_000,
        "<think>" * 50_000,
        "- " * 100_000,
    ],
)
def test_no_answer_takes_long_to_check(text):
    checks = [
        {"check": "sentences", "max": 1},
        {"check": "contains", "any": ["aab", "2"]},
        {"check": "language", "language": "ko"},
        {"check": "words", "max": 1},
        {"check": "bullets", "max": 1},
    ]
    started = time.monotonic()
    broken_checks(checks, text)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_the_expected_answers_of_the_general_sets_keep_their_own_checks(path):
    rows = load_rows(path, "eval")
    checked = [row.value for row in rows if "checks" in row.value]
    assert len(rows) >= 150
    assert len(checked) >= 100
    assert {
        row.id: broken
        for row in rows
        if (broken := broken_checks(row.value.get("checks", []), row.value["expected_output"]))
    } == {}
    assert {row.value["tags"][0] for row in rows} == {
        "everyday",
        "instruction",
        "reasoning",
        "code",
        "lookalike",
    }


@pytest.mark.parametrize("language", ["en", "ko"])
def test_the_general_texts_are_many_varied_and_alike_in_length(language):
    rows = load_rows(ROOT / f"data/eval/general-texts-{language}.jsonl", "eval")
    words = [len(row.value["expected_output"].split()) for row in rows]
    assert len(rows) >= 100
    assert len({row.value["tags"][0] for row in rows}) >= 6
    assert 10 <= min(words) <= max(words) <= 120
    assert len({row.value["expected_output"] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "check",
    [
        {"check": "regex", "pattern": "(a+)+$"},
        {"check": "contains", "any": []},
        {"check": "contains", "text": "a"},
        {"check": "words"},
        {"check": "words", "max": -1},
        {"check": "words", "max": 1, "code": "import os"},
        {"check": "language", "language": "tlh"},
        {"check": "answer", "any": ["x" * 201]},
        {"check": "starts_with", "text": "  "},
        {"check": "json", "keys": ["a", "a"]},
        {},
        "words",
    ],
)
def test_a_check_outside_of_the_closed_set_is_refused(tmp_path, check):
    row = {
        "id": "r",
        "instruction": "Say a word.",
        "expected_output": "a",
        "language": "en",
        "license": "CC0-1.0",
        "source": "test",
    }
    assert schema_findings(tmp_path / "x.jsonl", Row(1, {**row, "checks": [check]}), "eval")
    assert schema_findings(
        tmp_path / "x.jsonl", Row(1, {**row, "checks": [check, check] * 5}), "eval"
    )


def test_validation_names_the_row_whose_own_answer_breaks_its_checks(tmp_path):
    path = tmp_path / "eval.jsonl"
    rows = [
        data_rows.evaluation(1, checks=[{"check": "contains", "any": ["Five"]}]),
        data_rows.evaluation(2, checks=[{"check": "words", "max": 2}]),
        data_rows.evaluation(3, checks=[{"check": "words", "max": 99}], should_refuse=True),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "training.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in data_rows.rows(5))
    )
    report = validate([tmp_path / "training.jsonl"], path, base_model=None, policy=load_policy())
    assert [
        (found.row_id, found.code) for found in report.findings if found.severity == "error"
    ] == [("e2", "E110"), ("e3", "E110")]
    assert "`expected_output` breaks its own check: words, max 2" in report.findings[0].message
