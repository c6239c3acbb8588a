"""The reader and the checks of the validate stage: what must and what must not be reported, and
where."""

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterops.data.codes import CODES, error_page
from adapterops.data.reader import MAX_ROW_BYTES, Row, load_rows, read_rows
from adapterops.data.rows import answer, prompt_messages, training_messages
from adapterops.data.validate import validate
from adapterops.diagnostics import Finding
from adapterops.errors import RejectedError, UsageError
from adapterops.schemas import ROOT, schema_problems
from adapterops.specs.policy import load_policy

ROW = {
    "id": "r1",
    "instruction": "May I return a lamp that I have used for a week?",
    "output": "Yes, within thirty days.",
    "language": "en",
    "license": "CC0-1.0",
    "source": "test",
}
GOOD = json.dumps(ROW).encode()
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "rows.jsonl"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def findings(path):
    return [(item.line, item.code) for item in read_rows(path) if isinstance(item, Finding)]


class TestReader:
    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", [(1, "E108")]),
            (b" \n\n", [(1, "E108")]),
            (b"[]", [(1, "E108")]),
            (GOOD + b'\n{"id": "r2", "instr', [(2, "E103")]),
            (b"[" + GOOD + b",\n" + GOOD[:40], [(2, "E103")]),
            (b"[" + GOOD + b"\n" + GOOD + b"]", [(2, "E103")]),
            (b"[" + GOOD + b"]\nx", [(2, "E103")]),
            (b"[" + GOOD + b",]", [(1, "E103")]),
            (GOOD + b'\n"a string"\n', [(2, "E104")]),
            (b"[" + GOOD + b",\n null,\n 3, [1]]", [(2, "E104"), (3, "E104"), (3, "E104")]),
            (b'{"id": "a", "id": "b"}', [(1, "E105")]),
            (b'{"id": "a", "messages": [{"role": "user", "role": "user"}]}', [(1, "E105")]),
            (b'{"id": NaN}\n{"id": -Infinity}', [(1, "E106"), (2, "E106")]),
            (b"\xef\xbb\xbf" + GOOD, [(1, "E102")]),
            (GOOD + b"\r\n" + GOOD + b"\r\n", [(1, "E112")]),
            (GOOD + b"\n\n\xff\xfe\n", [(3, "E101")]),
            (b'{"id": "\\ud83d"}', [(1, "E109")]),
            (b"[" * 100_000, [(1, "E103")]),
            (b'{"a":' * 100_000, [(1, "E103")]),
            (b'{"id": ' + b"9" * 10_000 + b"}", [(1, "E103")]),
            ('{"id": "e\u0301"}'.encode(), [(1, "H102")]),
            (b"\x00\x01\x02", [(1, "E103")]),
        ],
    )
    def test_every_kind_of_broken_file_is_reported_at_its_line(self, file, content, expected):
        assert findings(file(content)) == expected

    @pytest.mark.parametrize("suffix", [".json", ".jsonl"])
    def test_arrays_and_lines_are_told_apart_by_content(self, tmp_path, suffix):
        for content, lines in [
            (b"[\n" + GOOD + b",\n\n" + GOOD + b"\n]", [2, 4]),
            (GOOD + b"\n\n" + GOOD, [1, 3]),
        ]:
            path = tmp_path / f"rows{suffix}"
            path.write_bytes(content)
            assert [row.line for row in load_rows(path, "training")] == lines

    def test_a_line_of_100_mb_is_refused_without_being_kept(self, file):
        import tracemalloc

        path = file(GOOD + b"\n" + b'{"id": "' + b"x" * 100_000_000 + b'"}\n' + GOOD + b"\n")
        tracemalloc.start()
        items = list(read_rows(path))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert [type(item).__name__ for item in items] == ["Row", "Finding", "Row"]
        assert (items[1].line, items[1].code, items[2].line) == (2, "E107", 3)
        assert peak < 8 * MAX_ROW_BYTES

    @pytest.mark.parametrize("path", ["nowhere.jsonl", "."])
    def test_what_cannot_be_opened_is_misuse(self, path, tmp_path):
        with pytest.raises(UsageError):
            load_rows(tmp_path / path, "training")

    def test_all_bad_rows_of_a_file_are_named_at_once(self, file):
        bad = {**ROW, "lisence": "MIT"}
        del bad["license"]
        with pytest.raises(RejectedError) as caught:
            load_rows(
                file(json.dumps(bad) + "\n" + json.dumps({**ROW, "output": " "}) + "\n"), "training"
            )
        assert "rows.jsonl:1: E110 unknown key `lisence`. Did you mean `license`?" in str(
            caught.value
        )
        assert "rows.jsonl:2: E110 `output`" in str(caught.value)

    @settings(
        max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
    )
    @given(
        st.one_of(
            st.binary(max_size=300),
            st.text().map(str.encode),
            JSON.map(lambda value: json.dumps(value).encode()),
        )
    )
    def test_no_bytes_end_in_a_traceback(self, tmp_path, content):
        path = tmp_path / "fuzz"
        path.write_bytes(content)
        lines = content.count(b"\n") + 1
        for item in read_rows(path):
            assert isinstance(item, Row | Finding)
            assert 1 <= item.line <= lines
        with contextlib.suppress(RejectedError):
            load_rows(path, "training")


class TestRows:
    def test_the_input_follows_the_instruction_after_an_empty_line(self):
        row = {**ROW, "system": "Be brief.", "input": "Policy: thirty days."}
        assert prompt_messages(row) == [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": (
                    "May I return a lamp that I have used for a week?\n\nPolicy: thirty days."
                ),
            },
        ]
        assert training_messages(row)[-1] == {
            "role": "assistant",
            "content": "Yes, within thirty days.",
        }

    def test_conversations_are_trained_as_they_stand(self):
        row = {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ]
        }
        assert training_messages(row) == row["messages"]
        assert answer(row) == "Hello"


class TestValidate:
    def run(self, tmp_path, rows, evaluation=None):
        training = tmp_path / "training.jsonl"
        training.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        path = None
        if evaluation is not None:
            path = tmp_path / "eval.jsonl"
            path.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in evaluation)
            )
        report = validate([training], path, base_model=None, policy=load_policy())
        assert schema_problems(report.document, "data_report") == []
        return report

    def rows(self, count):
        nouns = [
            "kettle",
            "blanket",
            "lamp",
            "armchair",
            "toolbox",
            "plant pot",
            "bread knife",
            "coffee mill",
            "pillow",
            "puzzle",
        ]
        asks = [
            "What colours does the {} come in",
            "Is the {} safe for a child of two",
            "My {} arrived broken, who pays for a new one",
        ]
        pairs = [(noun, ask) for ask in asks for noun in nouns]
        return [
            {
                **ROW,
                "id": f"r{number}",
                "instruction": ask.format(noun) + "?",
                "output": f"That is on page {number} about {noun}.",
            }
            for number, (noun, ask) in enumerate(pairs[:count])
        ]

    def test_good_rows_pass(self, tmp_path):
        report = self.run(tmp_path, self.rows(30))
        assert report.passed
        assert report.findings == ()

    def test_a_few_duplicates_are_hints_and_many_are_an_error(self, tmp_path):
        rows = self.rows(30)
        once = {**rows[0], "id": "copy", "instruction": "  WHAT colours  does the kettle come in? "}
        report = self.run(tmp_path, [*rows, once])
        assert report.passed
        assert [(finding.line, finding.code) for finding in report.findings] == [(31, "H205")]
        report = self.run(tmp_path, [*rows, once, {**once, "id": "copy2"}])
        assert not report.passed
        assert report.document["counts"] == {"E205": 1, "H205": 2}

    def test_ids_are_unique_across_files(self, tmp_path):
        evaluation = {**ROW, "instruction": "Something else?", "expected_output": "Yes."}
        del evaluation["output"]
        report = self.run(tmp_path, [ROW], [evaluation])
        assert [finding.code for finding in report.findings] == ["E111"]

    def test_an_evaluation_row_that_is_trained_on_is_an_error_that_names_both_places(
        self, tmp_path
    ):
        evaluation = {
            **ROW,
            "id": "e1",
            "instruction": "What colours does the   ARMCHAIR come in?",
            "expected_output": "Yes.",
        }
        del evaluation["output"]
        report = self.run(tmp_path, self.rows(5), [evaluation])
        (finding,) = report.findings
        assert (finding.line, finding.code) == (1, "E401")
        assert "training.jsonl:4" in finding.message

    def test_rows_of_an_extension_are_looked_for_too_and_named_by_their_own_file_and_line(
        self, tmp_path
    ):
        trained_on = "What colours does the armchair come in?"
        for name, asked in (
            ("first", ["Is the shop open on Sundays?"]),
            ("more", ["Is it open today?", trained_on]),
        ):
            rows = [
                {**ROW, "id": f"{name}{i}", "instruction": text, "expected_output": "Yes."}
                for i, text in enumerate(asked)
            ]
            for row in rows:
                del row["output"]
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "training.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in self.rows(5))
        )
        evaluation = [tmp_path / "first.jsonl", tmp_path / "more.jsonl"]
        report = validate(
            [tmp_path / "training.jsonl"], evaluation, base_model=None, policy=load_policy()
        )
        assert [(found.file, found.line) for found in report.findings if found.code == "E401"] == [
            (str(evaluation[1]), 2)
        ]
        assert [file["kind"] for file in report.document["files"]] == ["training", "eval", "eval"]

    def test_personal_data_is_an_error_that_does_not_repeat_it(self, tmp_path):
        report = self.run(tmp_path, [{**ROW, "output": "Write to hong@example.com, please."}])
        (finding,) = report.findings
        assert finding.code == "E301"
        assert "hong@example.com" not in finding.message

    def test_an_expected_answer_that_breaks_its_own_format_is_an_error(self, tmp_path):
        evaluation = {
            **ROW,
            "id": "e1",
            "expected_output": '{"a": 1}',
            "expected_format": {"type": "object", "required": ["b"]},
        }
        evaluation["instruction"] = "Something else entirely?"
        del evaluation["output"]
        report = self.run(tmp_path, [ROW], [evaluation])
        assert (
            'breaks its own `expected_format`: "b" is a required property'
            in report.findings[0].message
        )

    def test_roles_of_a_conversation_take_turns(self, tmp_path):
        row = {key: value for key, value in ROW.items() if key not in ("instruction", "output")}
        row["messages"] = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hello?"}]
        assert "user and assistant in turns" in self.run(tmp_path, [row]).findings[0].message


def test_annotations_escape_what_github_would_read_as_a_command():
    finding = Finding("data/a,b:c.jsonl", 7, "E110", "100 %\n::error::x")
    assert (
        finding.annotation()
        == "::error file=data/a%2Cb%3Ac.jsonl,line=7,title=E110::100 %25%0A::error::x"
    )


def test_the_error_page_is_up_to_date():
    assert (ROOT / "docs/errors.md").read_text() == error_page()
    assert all(f"## {code}" in error_page() for code in CODES)
