"""The report for people: a terminal, annotations, a job summary; and data that tries to be more
than text."""

from __future__ import annotations

import io
import json
import re

import pytest
from data_rows import english, judge, rows
from rich.console import Console

from adapterops.data.codes import CODES
from adapterops.data.report_text import print_annotations, print_report, summary
from adapterops.data.validate import write_report
from adapterops.diagnostics import Finding
from adapterops.schemas import schema_problems


def printed(printer, report):
    out = io.StringIO()
    printer(report, Console(file=out, width=200, highlight=False))
    return out.getvalue()


@pytest.fixture(autouse=True)
def no_summary(monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


class TestText:
    def test_one_message_says_where_what_and_what_to_do(self, tmp_path):
        text = printed(
            print_report, judge(tmp_path, [english(1), english(2, license="GPL-3.0-only")])
        )
        assert re.search(
            r"^E501 A licence that is not allowed \(1\)\. Use data under a licence"
            r" .*docs/errors.md#e501$",
            text,
            re.MULTILINE,
        )
        assert re.search(
            r"^  \S*training.jsonl:2: licence `GPL-3.0-only` is not on the policy's list",
            text,
            re.MULTILINE,
        )
        assert text.endswith("FAIL: 1 error, 0 hints\n")

    def test_a_good_file_passes_in_two_lines(self, tmp_path):
        text = printed(print_report, judge(tmp_path, rows(3)))
        assert re.fullmatch(
            r"\S+training.jsonl: 3 rows; untagged 3\nPASS: 0 errors, 0 hints\n", text
        )

    def test_of_each_code_twenty_are_shown_and_errors_stand_first(self, tmp_path):
        values = [
            *(english(n, license="X", output="Write to hong@example.com.") for n in range(50)),
            english(0, id="copy", license="X", output="Write to hong@example.com."),
        ]
        text = printed(print_report, judge(tmp_path, values))
        assert text.count("licence `X`") == 20
        assert "… and 31 more; --output REPORT lists them" in text
        assert text.index("E301") < text.index("E501") < text.index("H205")
        assert len(text.splitlines()) < 80

    @pytest.mark.parametrize(
        "text",
        [
            "\x1b[2J\x1b[31m",
            "a\n::error::b",
            "a\r::stop-commands::x",
            "x ##[add-mask]y",
            "\u202eabc",
            "\x9b31m",
        ],
    )
    def test_data_moves_neither_cursor_nor_colours_nor_the_runner(self, tmp_path, text):
        values = [
            english(1, license=text, tags=[text], id=text),
            english(2, id=text),
            english(3, **{text: 1}),
        ]
        report = judge(tmp_path, values)
        for out in (printed(print_report, report), printed(print_annotations, report)):
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", out)
            commands = [line for line in out.splitlines() if line.lstrip().startswith("::")]
            assert all(re.match("::(error|notice) file=", line) for line in commands)
            assert not any("##[" in line for line in out.splitlines() if line not in commands)

    def test_markup_of_the_terminal_library_is_shown_as_it_is(self, tmp_path):
        assert "licence `[bold]a[/]` is not" in printed(
            print_report, judge(tmp_path, [english(1, license="[bold]a[/]")])
        )


class TestAnnotations:
    def many(self, tmp_path):
        values = [
            english(n, license="X", output=f"Write to u{n}@example.com, u.") for n in range(30)
        ]
        values += [
            english(n, id=f"copy{n}", output="I do not know it, ask in the shop.")
            for n in range(15)
        ]
        return judge(
            tmp_path, [*values, english(99, id="r1"), english(98, output="It is at 8.8.8.8 today.")]
        )

    def test_ten_of_each_level_and_no_code_hides_another(self, tmp_path):
        report = self.many(tmp_path)
        lines = printed(print_annotations, report).splitlines()
        levels = [re.match("::(error|notice|warning) ", line) for line in lines]
        errors = [
            line for line, level in zip(lines, levels, strict=True) if level and level[1] == "error"
        ]
        notices = [
            line for line, level in zip(lines, levels, strict=True) if level and level[1] != "error"
        ]
        assert (len(errors), len(notices)) == (10, 10)
        found = {finding.code for finding in report.findings}
        assert {re.search("title=(....)", line)[1] for line in errors} == {
            code for code in found if code.startswith("E")
        }
        assert lines[-1].startswith("FAIL: ")

    def test_the_summary_has_the_rest(self, tmp_path, monkeypatch):
        monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
        report = self.many(tmp_path)
        printed(print_annotations, report)
        text = (tmp_path / "summary.md").read_text()
        assert text.startswith("## Data: FAIL\n")
        assert text.count("\n|") == len(report.findings) + 2
        printed(print_annotations, report)
        assert (tmp_path / "summary.md").read_text() == text * 2  # appended, as the runner wants it

    def test_what_github_reads_as_syntax_is_escaped(self):
        finding = Finding("a,b:c%d.jsonl", 7, "E110", "100 % of `a::b`,\r\nnext\n::error::x")
        assert (
            finding.annotation() == "::error file=a%2Cb%3Ac%25d.jsonl,line=7,title=E110::100 %25 of"
            " `a::b`,\\r%0Anext%0A::error::x"
        )


class TestSummary:
    @pytest.mark.parametrize(
        "text",
        [
            "<img src=x onerror=alert(1)>",
            "[a](https://evil.example)",
            "**b** _c_ `d`",
            "a | b",
            "@everyone #1",
            "https://evil.example",
            "\\| &lt;b&gt;",
        ],
    )
    def test_data_is_text_and_shown_as_it_is(self, tmp_path, text):
        import html

        out = summary(judge(tmp_path, [english(1, license=text, tags=[text])]))
        (row,) = [line for line in out.splitlines() if "E501" in line]
        cells = row.removeprefix("| ").removesuffix(" |").split(" | ")
        assert len(cells) == 3
        assert not re.search(r"[<>\[\]`*_@\\!~]|://", cells[2])
        assert html.unescape(cells[2]).replace("\u200b", "").startswith(f"licence `{text}` is not")

    def test_a_place_reads_as_it_is_written(self, tmp_path):
        import html

        out = summary(judge(tmp_path, [english(1, license="X")], name="my_rows-1.jsonl"))
        assert "my_rows-1.jsonl:1 |" in html.unescape(out)

    def test_two_hundred_rows_below_the_limit_of_a_mebibyte(self, tmp_path):
        values = [english(n, license="&" * 3000, tags=["<" * 3000]) for n in range(300)]
        out = summary(judge(tmp_path, values))
        assert len(out.encode()) < 1_000_000
        assert "… and 100 more in the report." in out

    def test_good_rows(self, tmp_path):
        assert summary(judge(tmp_path, rows(3))).startswith(
            "## Data: PASS\n\n0 errors, 0 hints.\n\n- "
        )


class TestDocument:
    def test_what_is_written_satisfies_its_schema(self, tmp_path):
        report = judge(tmp_path, [*rows(5), english(5, license="X"), english(1, id="copy")])
        write_report(tmp_path / "report.json", report)
        document = json.loads((tmp_path / "report.json").read_text())
        assert schema_problems(document, "data_report") == []
        assert document["verdict"] == "FAIL"
        assert document["files"][0]["rows"] == 7
        assert set(document["counts"]) <= set(CODES)
