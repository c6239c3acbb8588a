"""`scripts/validate_data.py` as a user meets it, also one who means ill: exit codes, files that are
none, bytes that are no rows."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner
from data_rows import codes, english, evaluation, jsonl, judge, places, rows, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import validate_data
from adapterops.errors import UsageError
from adapterops.schemas import ROOT, schema_problems
from adapterops.specs.policy import load_policy


def run(*arguments):
    return CliRunner().invoke(validate_data.main, [str(argument) for argument in arguments])


def real(*arguments, **options):
    command = [sys.executable, ROOT / "scripts" / "validate_data.py", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, check=False, **options
    )


@pytest.fixture
def good(tmp_path):
    return write(tmp_path / "good.jsonl", rows(10))


@pytest.fixture
def bad(tmp_path):
    return write(tmp_path / "bad.jsonl", [english(1), english(2, license="X")])


class TestExitCodes:
    def test_0_may_be_trained_on_1_may_not_2_is_misuse(self, good, bad):
        assert [real("--input", path).returncode for path in (good, bad, "absent.jsonl")] == [
            0,
            1,
            2,
        ]

    @pytest.mark.parametrize("output", ["", "good.jsonl/report.json", "x" * 300])
    def test_a_report_that_cannot_be_written_there_is_misuse(self, good, tmp_path, output):
        result = real("--input", good, "--output", tmp_path / output)
        assert (result.returncode, "Traceback" in result.stderr, "error: " in result.stderr) == (
            2,
            False,
            True,
        )

    def test_hints_do_not_block(self, tmp_path):
        result = run("--input", write(tmp_path / "rows.jsonl", [*rows(30), english(3, id="copy")]))
        assert (result.exit_code, "H205" in result.output) == (0, True)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "nothing to validate"),
            (["--input", "GOOD", "--in-place"], "--in-place says where --fix writes"),
            (
                ["--input", "GOOD", "--base", "HEAD", "--changed-since", "HEAD"],
                "both name a revision",
            ),
            (
                ["--input", "GOOD", "--base-model", "smollm2-135m"],
                "Did you mean `smollm2-135m-instruct`?",
            ),
            (["--input", "GOOD", "--base", "nowhere"], "git knows no such commit"),
            (["--input", "GOOD", "--changed-since=-n1"], "git knows no such commit"),
            (["--input", "GOOD", "--max-length", "0"], "0 is not in the range"),
            (["--input", "GOOD", "--format", "xml"], "'xml' is not one of"),
            (["--input", "GOOD", "--policy", "nowhere.yaml"], "nowhere.yaml does not exist"),
            (["--input", "GOOD", "--eval-data", "nowhere.jsonl"], "nowhere.jsonl"),
            (["--adapter", "nowhere"], "nowhere"),
            (["--input", "nowhere.jsonl", "--fix"], "does not exist or is not a file"),
        ],
        ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else None,
    )
    def test_misuse_says_what_is_wrong(self, good, arguments, words):
        result = run(*(good if argument == "GOOD" else argument for argument in arguments))
        assert result.exit_code == 2
        assert words in " ".join(result.output.split())
        assert "Traceback" not in result.output

    def test_the_projects_own_data_is_good(self):
        data = ROOT / "data"
        result = run(
            "--input",
            data / "training" / "support.jsonl",
            "--eval-data",
            data / "eval" / "support.jsonl",
        )
        assert result.exit_code == 0, result.output


class TestFormats:
    def test_json_is_the_report_and_nothing_else(self, bad):
        result = real("--input", bad, "--format", "json")
        assert schema_problems(json.loads(result.stdout), "data_report") == []
        assert result.returncode == 1

    def test_output_writes_the_same(self, bad, tmp_path):
        result = run("--input", bad, "--format", "json", "--output", tmp_path / "report.json")
        assert json.loads((tmp_path / "report.json").read_text()) == json.loads(result.output)

    def test_github(self, bad, tmp_path, monkeypatch):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
        result = run("--input", bad, "--format", "github")
        assert f"::error file={bad},line=2,title=E501::licence `X`" in result.output
        assert (tmp_path / "summary.md").read_text().startswith("## Data: FAIL")

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_on_a_terminal_of_any_encoding(self, tmp_path, encoding):
        path = write(tmp_path / "rows.jsonl", [english(1, license="한국어 😀 é")])
        for style in ("text", "json", "github"):
            result = real(
                "--input", path, "--format", style, env={**os.environ, "PYTHONIOENCODING": encoding}
            )
            assert (result.returncode, "Traceback" in result.stderr) == (
                1,
                False,
            ) or encoding != "utf-8"


class TestFix:
    def test_a_copy_is_written_and_the_file_is_left(self, tmp_path):
        path = write(
            tmp_path / "rows.jsonl",
            [
                english(1, output="Write to hong@example.com."),
                english(1, id="b", output="Write to hong@example.com."),
            ],
        )
        before = path.read_bytes()
        result = run("--input", path, "--fix")
        assert result.exit_code == 0
        assert (
            "2 rows masked, 0 normalised, 1 exact copies dropped, 1 rows written" in result.output
        )
        assert path.read_bytes() == before
        assert b"[EMAIL]" in (tmp_path / "rows.fixed.jsonl").read_bytes()

    def test_in_place_then_the_gate_passes(self, tmp_path):
        path = write(
            tmp_path / "rows.jsonl",
            b"\xef\xbb\xbf" + jsonl([english(1, output="Write to hong@example.com."), english(2)]),
        )
        assert run("--input", path).exit_code == 1
        assert run("--input", path, "--fix", "--in-place").exit_code == 0
        result = run("--input", path)
        assert (result.exit_code, "0 errors, 0 hints" in result.output) == (0, True)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.jsonl"]

    def test_an_array_that_breaks_off_is_refused_and_left(self, tmp_path):
        path = write(tmp_path / "rows.json", b"[" + jsonl(rows(1)) + b', {"id": ')
        result = run("--input", path, "--fix", "--in-place")
        assert (result.exit_code, "would be lost" in result.output) == (1, True)
        assert path.read_bytes().endswith(b', {"id": ')


class TestFilesThatAreNone:
    @pytest.fixture(
        params=[
            "directory",
            "loop",
            "pipe",
            "/dev/zero",
            "/dev/null",
            "socket",
            "below a file",
            "not UTF-8",
            "empty name",
        ]
    )
    def odd(self, request, tmp_path):
        path = tmp_path / "odd.jsonl"
        match request.param:
            case "directory":
                path.mkdir()
            case "loop":
                path.symlink_to("odd.jsonl")
            case "pipe":
                os.mkfifo(path)
            case "socket":
                import socket

                with contextlib.chdir(tmp_path), socket.socket(socket.AF_UNIX) as server:
                    server.bind("odd.jsonl")
            case "below a file":
                path = write(tmp_path / "file", b"") / "rows.jsonl"
            case "not UTF-8":
                path = tmp_path / "odd\udcff.jsonl"
                write(path, rows(1))
            case "empty name":
                return ""
            case device:
                return device
        return path

    @pytest.mark.parametrize("option", ["--input", "--eval-data"])
    def test_they_are_refused_at_once(self, odd, good, option):
        result = run("--input", good, option, odd)
        assert result.exit_code == 2, result.output
        assert "error:" in result.output

    @pytest.mark.parametrize("device", ["/dev/zero", "PIPE"])
    def test_no_command_hangs_on_them(self, tmp_path, device):
        if device == "PIPE":
            os.mkfifo(device := tmp_path / "pipe")
        for arguments in (["--input", device], ["--input", device, "--fix"]):
            assert real(*arguments).returncode == 2

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_file_that_may_not_be_read_is_misuse(self, good):
        good.chmod(0)
        assert run("--input", good).exit_code == 2

    def test_a_name_that_is_too_long_is_misuse(self, tmp_path):
        assert run("--input", tmp_path / ("x" * 300)).exit_code == 2

    def test_a_file_given_twice_is_read_once_or_refused(self, good):
        assert run("--input", good, "--input", good.parent / "." / good.name).exit_code in {0, 2}


class TestPolicy:
    def policy(self, tmp_path, old, new):
        text = (ROOT / "configs" / "data_policy.yaml").read_text()
        assert old in text
        path = tmp_path / "policy.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            (
                "  duplicate_rate:",
                "  duplicate_rates:",
                "unknown key `duplicate_rates`. Did you mean `duplicate_rate`?",
            ),
            (
                "{min: 10, max: 2048}",
                "{min: 2049, max: 2048}",
                "min 2049 exceeds max 2048; no row could pass",
            ),
            (
                "duplicate_rate: 0.05",
                "duplicate_rate: 5",
                "`limits.duplicate_rate`: 5 is out of range",
            ),
            ("language: null", "language: korean", "Expected a two-letter code"),
            ("[email, phone,", "[emails, phone,", "Did you mean `email`?"),
            (
                "  near_duplicate: 0.8 ",
                '  name_plugin: "os:popen"\n  near_duplicate: 0.8 ',
                "unknown key `name_plugin`",
            ),
            (
                "    language: en",
                '    language: en\n    name_plugin: "os:popen"',
                "unknown key `name_plugin`",
            ),
            ("licenses: [", "licenses: [] #", "licenses"),
            ("limits:", "limits: &a\n  <<: *a\n  x:", "policy.yaml"),
            ("reason: Korean customer support.", "reason: ''", "reason"),
        ],
    )
    def test_a_wrong_policy_is_misuse(self, tmp_path, good, old, new, words):
        result = run("--input", good, "--policy", self.policy(tmp_path, old, new))
        assert result.exit_code == 2, result.output
        assert words in " ".join(result.output.split())

    def test_the_first_pattern_that_matches_wins(self, tmp_path):
        override = (
            "datasets:\n  - {files: '*/rows.jsonl', reason: a test, licenses: [X]}\n  - {files:"
            " '*', reason: a test, licenses: [Y]}\n"
        )
        path = self.policy(tmp_path, "datasets:\n", override)
        first, second = (
            write(tmp_path / "rows.jsonl", [english(1, license="X")]),
            write(tmp_path / "other.jsonl", [english(2, license="Y")]),
        )
        assert run("--input", first, "--input", second, "--policy", path).exit_code == 0
        limits = load_policy(path)
        assert limits.limits_for(first).duplicate_rate == limits.limits.duplicate_rate

    def test_limits_of_a_loop_of_links_are_the_general_ones(self, tmp_path):
        (tmp_path / "a").symlink_to("a")
        policy = load_policy()
        assert policy.limits_for(tmp_path / "a") is policy.limits


class TestEvaluationFormats:
    """An evaluation row brings its own JSON Schema, which is data too."""

    def judge(self, tmp_path, schema, output='{"a": "x"}'):
        return judge(
            tmp_path, rows(2), [evaluation(0, expected_output=output, expected_format=schema)]
        )

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "array"},
            {"type": "nonsense"},
            {"required": ["b"]},
            {"properties": {"a": {"maxLength": 0}}},
        ],
    )
    def test_what_does_not_fit_is_found(self, tmp_path, schema):
        assert codes(self.judge(tmp_path, schema)) == ["E110"]

    @pytest.mark.parametrize(
        "schema",
        [
            {"properties": {"a": {"pattern": "("}}},
            {"$ref": "#/nowhere"},
            {"$ref": "http://localhost:9/x"},
        ],
    )
    def test_a_schema_that_cannot_be_applied_is_a_finding(self, tmp_path, schema):
        assert codes(self.judge(tmp_path, schema)) == ["E110"]

    def test_a_pattern_that_would_run_away_is_answered(self, tmp_path):
        schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
        assert codes(self.judge(tmp_path, schema, json.dumps({"a": "a" * 5000 + "b"}))) == ["E110"]

    def test_an_output_that_is_nested_too_deeply_is_a_finding(self, tmp_path):
        assert codes(self.judge(tmp_path, {"type": "array"}, "[" * 100_000)) == ["E110"]


CHUNKS = st.sampled_from(
    [
        *(json.dumps(english(n), ensure_ascii=False).encode() for n in range(3)),
        json.dumps(english(1, output="hong@example.com")).encode(),
        json.dumps(evaluation(0)).encode(),
        b"{}", b"[", b"]", b",", b"null", b"1e999", b"NaN", b'{"id": 1}', b'{"id": "\\ud800"}',
        b'"', b"\\", b"\xff", b"\xef\xbb\xbf",
        b"\r", b" ",
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        b"\xe2\x80\xa8", b"\x00", b"\x0c",
    ]
)  # fmt: skip
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(CHUNKS, st.just(b"\n")), max_size=12).map(b"".join),
    st.lists(CHUNKS, max_size=8).map(b"\n".join),
)


@settings(
    max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(CONTENT, st.one_of(st.none(), CONTENT))
def test_any_bytes_give_a_report_that_satisfies_its_schema_and_lines_within_the_file(
    tmp_path, training, asked
):
    report = judge(tmp_path, training, asked)
    assert schema_problems(report.document, "data_report") == []
    json.dumps(report.document, allow_nan=False).encode()
    lines = {
        "training.jsonl": training.count(b"\n") + 1,
        "eval.jsonl": (asked or b"").count(b"\n") + 1,
    }
    for finding in report.findings:
        assert 1 <= finding.line <= lines[finding.file.rpartition("/")[2]]
        assert "\n" not in finding.message
    assert report.passed is not any(code.startswith("E") for code in report.document["counts"])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_values_in_the_fields_of_a_row_give_a_report(tmp_path_factory, data):
    anything = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=30),
        st.lists(st.text(max_size=5), max_size=3),
    )
    texts = st.text(max_size=60)
    row = english(1)
    for key in data.draw(
        st.lists(st.sampled_from([*row, "input", "system", "tags", "messages", "x"]), max_size=3)
    ):
        row[key] = data.draw(anything if data.draw(st.booleans()) else texts)
    report = judge(tmp_path_factory.mktemp("rows"), json.dumps(row).encode())
    assert schema_problems(report.document, "data_report") == []


def test_a_reader_of_rows_gets_the_same_refusal(tmp_path):
    from adapterops.data.reader import load_rows

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a pipe or a device"):
        load_rows(tmp_path / "pipe", "training")


@given(
    garbage=st.lists(
        st.one_of(
            CHUNKS, st.binary(max_size=40).map(lambda text: text.replace(b"\n", b"")), st.none()
        ),
        max_size=20,
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_stands_between_rows_their_line_is_right(tmp_path_factory, garbage):
    ours = json.dumps(english(9, id="ours", output="Write to hong@example.com, please.")).encode()
    lines = [
        ours,
        *(ours if line is None else line.replace(b"hong@", b"hong at ") for line in garbage),
    ]
    report = judge(tmp_path_factory.mktemp("lines"), b"\n".join(lines))
    assert places(report, "E301") == [
        number for number, line in enumerate(lines, start=1) if line == ours
    ]
