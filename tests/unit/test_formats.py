"""`expected_format`: what a stranger's JSON Schema may cost, in validation and in scoring."""

import json
import time
from pathlib import Path

import pytest
from data_rows import codes, evaluation, judge, rows

from adapterops.data import formats
from adapterops.data.formats import FormatChecker, SlowFormatError, format_problem
from adapterops.data.reader import Row
from adapterops.engine.answers import Answer
from adapterops.evaluate import evaluation as evaluating
from adapterops.evaluate.phases import Side
from adapterops.evaluate.scores import score


def doubled(levels):
    """A short schema that is 2^levels as large once its references are replaced."""
    names = {
        f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]}
        for n in range(levels)
    }
    return {"$defs": {**names, f"a{levels}": {"type": "object"}}, "$ref": "#/$defs/a0"}


def nested(levels, of="properties"):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {of: {"a": schema}}
    return schema


OUT_OF_BOUNDS = {
    "doubled references": doubled(25),
    "ten to the tenth": {
        "$defs": {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 6} for n in range(10)}
        | {"a10": {}},
        "$ref": "#/$defs/a0",
    },
    "another name for a circle": {
        "$defs": {
            "a%62": {},
            "ab": {"allOf": [{"$ref": "#/$defs/a%62"}, {"$ref": "#/$defs/a%62"}]},
        },
        "$ref": "#/$defs/a%62",
    },
    "another name, by the pointer's own rule": {
        "$defs": {"a~0": {}, "a~": {"$ref": "#/$defs/a~0"}},
        "$ref": "#/$defs/a~0",
    },
    "a reference to itself": {
        "$defs": {"a": {"properties": {"b": {"$ref": "#/$defs/a"}}}},
        "$ref": "#/$defs/a",
    },
    "a circle": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        "$ref": "#/$defs/a",
    },
    "the root": {"properties": {"a": {"$ref": "#"}}},
    "a pointer elsewhere": {"properties": {"a": {}}, "items": {"$ref": "#/properties/a"}},
    "another host": {"$ref": "http://127.0.0.1:9/schema"},
    "a file": {"$ref": "file:///etc/passwd"},
    "no such definition": {"$ref": "#/$defs/a"},
    "definitions that are a list": {"$defs": [1], "$ref": "#/$defs/0"},
    "a reference that is no text": {"$ref": {"a": 1}},
    "another base": {"$id": "http://127.0.0.1:9/", "type": "object"},
    "a dynamic reference": {"$dynamicAnchor": "a", "items": {"$dynamicRef": "#a"}},
    "deep": nested(40),
    "wide": {"enum": list(range(3000))},
    "large": {"const": "x" * 20_000},
    "a long pattern": {"pattern": "a" * 201},
    "a long name of a pattern": {"patternProperties": {"a" * 201: {}}},
}


@pytest.mark.parametrize("why", OUT_OF_BOUNDS)
def test_a_schema_out_of_bounds_is_refused_at_once_and_the_row_is_named(tmp_path, why):
    started = time.monotonic()
    assert format_problem(OUT_OF_BOUNDS[why])
    assert time.monotonic() - started < 5
    report = judge(
        tmp_path,
        rows(2),
        [
            evaluation(0),
            evaluation(1, expected_output='{"a": 1}', expected_format=OUT_OF_BOUNDS[why]),
        ],
    )
    (finding,) = [finding for finding in report.findings if finding.code == "E110"]
    assert (finding.line, finding.row_id) == (2, evaluation(1)["id"])
    assert "`expected_format` is not applied" in finding.message


def test_what_people_write_is_within_bounds():
    person = {
        "type": "object",
        "properties": {"name": {"type": "string", "pattern": "^[A-Z]"}},
        "required": ["name"],
    }
    assert (
        format_problem(
            {"$defs": {"person": person}, "type": "array", "items": {"$ref": "#/$defs/person"}}
        )
        is None
    )


@pytest.fixture
def checker():
    checker = FormatChecker(seconds=0.5)
    yield checker
    checker.close()


# Within every bound: what a library makes of a schema and a text is not foreseen by their sizes.
SLOW_TEXT = json.dumps(["a" * 50] * 400_000)
SLOW = {"items": {"allOf": [{"pattern": f"(a?){{25}}b{n}"} for n in range(60)]}}


def test_what_takes_too_long_is_ended_and_the_next_row_is_checked(checker):
    with pytest.raises(SlowFormatError, match=r"takes longer than 0\.5 s"):
        checker.check(SLOW, SLOW_TEXT)
    assert checker.check({"type": "object"}, "{}") == ("ok", "")


def test_a_file_of_slow_rows_is_not_waited_for(checker):
    started = time.monotonic()
    for _ in range(200):
        with pytest.raises(SlowFormatError):
            checker.check(SLOW, SLOW_TEXT)
    assert time.monotonic() - started < 120
    with pytest.raises(SlowFormatError, match="not checked: 3 others"):
        checker.check({}, "{}")


def test_one_process_checks_all_rows(checker):
    checker.check({"type": "object"}, "{}")
    first = checker._process.pid
    assert [checker.check({"required": [f"k{n}"]}, "{}")[0] for n in range(200)] == ["value"] * 200
    assert checker._process.pid == first


def test_the_child_has_no_environment_and_no_secret(checker, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "do-not-hand-on")
    checker.check({}, "{}")
    assert Path(f"/proc/{checker._process.pid}/environ").read_bytes() == b""


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ({"type": "array"}, "[1]", "ok"),
        ({"type": "array"}, "{}", "value"),
        ({"type": "number"}, "NaN", "value"),
        ({"type": "object"}, "{", "value"),
        ({"type": "array"}, "[" * 50_000, "value"),
        ({"type": "number"}, "9" * 5000, "value"),
        ({"pattern": "("}, '"a"', "schema"),
        ({"pattern": "(a{1000}){1000}"}, '"a"', "schema"),
        ({"pattern": "(?=a)a"}, '"a"', "schema"),
        ({"type": "nonsense"}, "{}", "schema"),
        ({"pattern": "^(a+)+$"}, json.dumps("a" * 60_000 + "b"), "value"),
    ],
)
def test_verdicts(checker, schema, text, expected):
    assert checker.check(schema, text)[0] == expected


def test_a_slow_answer_is_a_miss_that_says_why(monkeypatch):
    checker = FormatChecker(seconds=0)
    monkeypatch.setattr("adapterops.evaluate.scores.shared_checker", lambda: checker)
    row = {"expected_output": "[]", "expected_format": SLOW}
    found = score(
        row, Answer(json.dumps(["a" * 50] * 2000), "stop", tokens=1, latency_ms=1.0), refused=False
    )
    checker.close()
    assert found.format_ok is False
    assert "takes longer than" in found.format_error


def test_slow_answers_of_one_model_make_no_other_one_miss(monkeypatch):
    """The candidate is scored first: whoever taught it to be slow would make production look
    worse."""
    checker = FormatChecker(seconds=0.5)
    for module in ("scores", "evaluation"):
        monkeypatch.setattr(
            f"adapterops.evaluate.{module}.shared_checker", lambda: checker, raising=False
        )
    row = Row(
        1,
        {
            "instruction": "Count.",
            "expected_output": "[]",
            "expected_format": {"items": {"enum": list(range(1500))}},
        },
    )

    def side(*texts):
        return Side([Answer(text, "stop", tokens=1, latency_ms=1.0) for text in texts], [], 1, 1.0)

    slow = json.dumps([2000] * 60_000)
    sides = {
        "candidate": side("[1]", slow, slow, slow),
        "production": side("[1]", "[1]", "[1]", "[2000]"),
    }
    scores, _ = evaluating._scores(
        [row] * 4, sides, evaluating.Settings(refusal_judge="none"), "", "", range(0)
    )
    checker.close()
    assert [score.format_ok for score in scores["candidate"]] == [True, False, False, False]
    assert [score.format_ok for score in scores["production"]] == [True, True, True, False]


def test_rows_without_a_schema_start_no_process(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_WORKER", tmp_path / "absent.py")
    assert (
        codes(
            judge(tmp_path, rows(2), [evaluation(0, expected_output="[1]", expected_format="json")])
        )
        == []
    )
