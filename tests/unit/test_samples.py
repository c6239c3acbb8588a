"""Lines of `eval_samples.jsonl`: what the evaluation records, and how older ones are read."""

import json

import pytest
from eval_documents import results

from adapterops.data.reader import Row
from adapterops.engine.answers import Answer
from adapterops.errors import UsageError
from adapterops.evaluate.phases import Side
from adapterops.evaluate.record import slice_metrics, slice_metrics_of
from adapterops.evaluate.samples import merit, outcome, read_samples, sample
from adapterops.evaluate.scores import score

ROW = Row(
    3,
    {
        "id": "row-3",
        "instruction": "When are returns paid?",
        "expected_output": "Within three days.",
        "language": "en",
        "license": "CC0-1.0",
        "source": "own",
        "tags": ["policy"],
    },
)
GOOD = Answer("Within three days.", "stop", 5, 40.0)
BAD = {
    "failed": (Answer("", "error", 0, 1.0, error="500: broken"), True, 0.0),
    "perhaps refused": (GOOD, None, 0.0),
    "over-refused": (Answer("I'm sorry, I can't.", "stop", 6, 40.0), True, 0.0),
    "cut off": (Answer("Within three days.", "length", 5, 40.0), False, 1.0),
    "unlike the expected": (Answer("Nobody knows.", "stop", 3, 40.0), False, 0.0),
}


def recorded(answer, refused=False, row=ROW):
    sides = {
        "candidate": Side([answer], [], 5, 1.0),
        "base": Side([GOOD], [], 5, 1.0),
    }
    scores = {
        "candidate": [score(row, answer, refused=refused)],
        "base": [score(row, GOOD, refused=False)],
    }
    return sample(row, 0, sides, scores, None)


@pytest.fixture
def read(tmp_path):
    """`read(lines)`: what a file of these lines is read as."""

    def of(*lines):
        path = tmp_path / "eval_samples.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return read_samples(path)

    return of


@pytest.mark.parametrize("said", BAD)
def test_what_is_wrong_with_an_answer_is_recorded_where_it_is_scored(read, said):
    answer, refused, worth = BAD[said]
    line = recorded(answer, refused)
    assert (line["candidate"]["outcome"], line["candidate"]["merit"]) == (said, worth)
    assert (line["base"]["outcome"], line["base"]["merit"]) == ("good", 1.0)
    assert read(line) == [line]


def test_a_request_to_refuse_is_good_or_bad_by_that_alone():
    row = Row(1, {**ROW.value, "should_refuse": True})
    answered, declined = recorded(GOOD, False, row), recorded(BAD["over-refused"][0], True, row)
    found = [
        (line["candidate"]["outcome"], line["candidate"]["merit"]) for line in (answered, declined)
    ]
    assert found == [("not refused", 0.0), ("good", 1.0)]


def test_readers_show_what_was_recorded(read):
    """A reader that told outcomes itself would tell them otherwise than the evaluation did, once
    its rules changed."""
    line = recorded(GOOD)
    line["candidate"] |= {"outcome": "of another rule", "merit": 0.25}
    (found,) = read(line)
    assert outcome(found, found["candidate"]) == "of another rule"
    assert merit(found, found["candidate"]) == 0.25


def test_an_older_sample_is_told_as_it_would_be_today(read):
    line = recorded(Answer("Within three days.", "length", 5, 40.0))
    for side in ("candidate", "base"):
        for key in ("outcome", "merit", "checks_ok", "format_error", "margin", "chrf"):
            del line[side][key]
    for key in ("general", "win", "language"):
        del line[key]
    (found,) = read(line)
    assert outcome(found, found["candidate"]) == "cut off"
    assert merit(found, found["candidate"]) == 1.0


@pytest.mark.parametrize(
    "line",
    [
        [],
        {"id": "row-3"},
        *(
            recorded(GOOD) | change
            for change in (
                {"candidate": None},
                {"candidate": {"text": "no more than that"}},
                {"base": {"text": 1}},
                {"prompt": "not a list"},
                {"line": "3"},
                {"tags": None},
            )
        ),
    ],
)
def test_a_line_that_is_no_sample_is_named(read, line):
    with pytest.raises(UsageError, match=r"eval_samples.jsonl:2: not a sample of an evaluation"):
        read(recorded(GOOD), line)


def test_metrics_of_slices_are_those_that_were_recorded():
    document = results({"rouge_l": [0.2, 0.4, 0.9]}, base={"rouge_l": [0.1, None, None]})
    document["slices"] = {"task:policy": [0, 1], "task:other": [2]}
    counted = slice_metrics_of(document)
    assert counted["task:policy"]["candidate"]["rouge_l"]["value"] == pytest.approx(0.3)
    assert counted["task:other"]["base"] == {}
    assert counted["task:other"]["production"] is None
    columns = {side: document["observations"][side] for side in ("candidate", "base")}
    assert slice_metrics(document["slices"], columns) == counted
    document["slice_metrics"] = {"task:policy": counted["task:other"]}
    assert slice_metrics_of(document) == {"task:policy": counted["task:other"]}
