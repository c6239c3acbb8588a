"""Hostile text stays text wherever it is shown, and one module alone sees to that."""

import ast
import html
import io
import logging
import re
import subprocess
import sys

import pytest
from markdown_it import MarkdownIt

from adapterops import escape
from adapterops.command import console, log_in_lines
from adapterops.gitops.notes import notes
from adapterops.schemas import ROOT

MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
HOSTILE = [
    "`````\n```\n~~~\n# out of the fence",
    "@octocat and @org/team",
    "<!-- qlora-gitops plan -->",
    "--> <script>alert(1)</script> <img src=x onerror=alert(1)>",
    "[click](https://evil.example) ![](https://evil.example/x.png)",
    "]() [x]: https://evil.example",
    "<https://evil.example> https://evil.example www.evil.example mail@evil.example",
    "a | b \\| c \\\\| d",
    "::error file=x::forged",
    "a\n::add-mask::e\r::stop-commands::x\n ##[error]y",
    "\x1b[2J\x1b[31mred\x1b]8;;https://evil.example\x07link\x9b31m",
    "gpj.\u202eexe \u2066isolated\u2069 \u200bzero\u2060width\ufeff",
    "nul\x00 bell\x07 back\x08 delete\x7f",
    "half \ud800 pair",
    "tag \U000e0061\U000e007f soft\u00adhyphen \u3164filler",
    "# heading", "- item", "1. one", "7) seven", "+ plus", "> quote", "===", "---", ":-", "    "
    "code", "\ttab", "* star", "***",
    "$x$ $$y$$ :tada: #12 GH-12 o/r#12 o/r@0e9e39f249a16976918f6564b8830bc894c89659",
    "&lt;b&gt; &#64;octocat &amp;",
    "*a* **b** _c_ __d__ ~~e~~ `f`",
    "ends with a backslash \\",
]  # fmt: skip
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200e\u200f\u202a-\u202e\u2060-\u2069\u3164\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def shown(text):
    """What a reader is to see of a text in one line."""
    collapsed = " ".join(text.split())
    return "".join(
        (
            character
            if not UNSEEN.match(character) and character != "\u200b"
            else character.encode("unicode_escape").decode()
        )
        for character in collapsed
    )


def seen(markup):
    """The text of rendered Markdown."""
    return html.unescape(re.sub("<[^>]*>", "", markup)).replace("\u200b", "").strip()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_of_markdown_renders_as_the_text_and_as_nothing_else(text):
    rendered = MARKDOWN.render(escape.inline(text))
    assert re.findall("<[^>]*>", rendered) == ["<p>", "</p>"]
    assert seen(rendered) == shown(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_is_one_cell_and_its_table_ends_where_it_should(text):
    rendered = MARKDOWN.render(f"| a | b |\n|---|---|\n| {escape.inline(text)} | last |\n")
    assert re.findall("<td>", rendered) == ["<td>"] * 2
    assert not re.search("<(?!/?(table|thead|tbody|tr|th|td)>)", rendered)
    assert seen(rendered[rendered.index("<td>") : rendered.index("</td>")]) == shown(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_that_github_looks_for_in_what_is_rendered_is_found(text):
    rendered = html.unescape(MARKDOWN.render(escape.inline(text)))
    live = r"@[A-Za-z0-9]|#[0-9]|\bGH-[0-9]|https?://|ftp://|www\.|:[\w+-]+:|\b[0-9a-f]{40}\b|\$\w"
    assert re.findall(live, rendered.replace("$x", "").replace("$y", "")) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_a_block_is_one_block_whatever_fences_are_in_it(text):
    rendered = MARKDOWN.render(f"before\n\n{escape.fenced(text)}\n\nafter")
    assert (rendered.count("<pre>"), rendered.count("</pre>"), rendered.count("<p>")) == (1, 1, 2)
    assert not UNSEEN.search(rendered)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_shows_the_text(text):
    page = escape.html_template("<p>{{ text }}</p><a title='{{ text }}'></a>").render(text=text)
    assert re.findall("<[a-z!/]+", page) == ["<p", "</p", "<a", "</a"]
    assert page.count("'") == 2


@pytest.mark.parametrize("text", HOSTILE)
def test_a_line_of_a_log_is_one_line_of_what_can_be_seen(text):
    line = escape.line(text)
    assert line.splitlines() == [line]
    assert not UNSEEN.search(line)
    assert not line.lstrip().startswith("::")
    assert "##[" not in line
    line.encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_workflow_command_is_one_command(text):
    command = escape.workflow_command("error", text, file=text, line=3)
    assert command.splitlines() == [command]
    head, _, message = command.removeprefix("::error ").partition("::")
    assert [part.partition("=")[0] for part in head.split(",")] == ["file", "line"]
    assert not UNSEEN.search(message)


def test_a_command_without_properties():
    assert escape.workflow_command("add-mask", "100 %\n,:") == "::add-mask::100 %25%0A,:"


def test_long_text_is_cut_and_says_so():
    assert escape.inline("x" * 30, 10) == "x" * 10 + "…"
    assert escape.line("x" * 30, 10) == "x" * 10 + "…"
    assert "20 more characters" in escape.fenced("x" * 30, 10)


def test_scripts_that_need_joiners_keep_them():
    for text in ("می\u200cخواهم", "क्\u200dष", "\U0001f468\u200d\U0001f467", "고마워요", "e\u0301"):
        assert (escape.line(text), escape.visible(text)) == (text, text)


@pytest.mark.parametrize(
    "text",
    [
        "::error::x",
        "a\n::error::x",
        "a\r  ::error::x",
        "x ##[error]y",
        "\n\n\t::set-output name=a::b",
    ],
)
def test_what_a_command_line_prints_gives_the_runner_no_command(text, capsys):
    console.print(text, markup=False, soft_wrap=True)
    console.out(text, highlight=False)
    out = capsys.readouterr().out
    assert "error" in out or "set-output" in out
    assert [
        line for line in re.split("[\r\n]", out) if line.lstrip().startswith("::") or "##[" in line
    ] == []


def test_a_line_that_the_terminal_wraps_gives_none_either(capsys):
    console.print("x" * (console.width - 1) + " ::error::forged", markup=False)
    assert not re.search(r"(?m)^\s*::", capsys.readouterr().out)


BROKEN = """
import sys
sys.path.insert(0, {scripts!r})
from adapterops.command import command
from adapterops.errors import UsageError

@command()
def main():
    raise {error}

main()
"""


@pytest.mark.parametrize(
    "error",
    [
        r"UsageError('key `x\n::error::forged\x1b[2J` is unknown')",
        r"KeyError('a'), 1/0",
        r"ValueError('\n::error::forged')",
    ],
)
def test_an_error_forges_no_command_and_moves_no_cursor(error):
    code = BROKEN.format(scripts=str(ROOT / "scripts"), error=error.partition(",")[0])
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode in (2, 3)
    assert result.stderr
    assert not re.search(r"(?m)^\s*::|\x1b", result.stderr)


def test_a_record_is_a_line_of_the_log_whatever_it_says(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(sys, "stderr", out)
    log_in_lines()
    log = logging.getLogger("reconciler")
    log.error("channel: %s", "bad\n2026-12-01 00:00:00,000 INFO host: all is well \x1b[1A")
    try:
        raise ValueError("first\n2026-12-01 00:00:00,000 INFO host: forged")
    except ValueError:
        log.exception("failed")
    lines = out.getvalue().splitlines()
    assert [line for line in lines if re.match(r"\d{4}-", line)] == [lines[0], lines[1]]
    assert all(line.startswith("  ") for line in lines[2:])
    assert "\\x1b[1A" in lines[0]


# What a second escaping would be made of, and the places where the same signs serve another end.
SIGNS = re.compile(
    r"&amp;|&lt;|&#|%0A|%0D|\\u202|\\x9f|unicode_escape|autoescape|markupsafe|(html|markup|saxutils|cgi)\.(un)?escape|"
    r"from (?!adapterops\b)\S+ import"
    r" .*\b(un)?escape\b|str\.maketrans|^\s*[fr]*[\"']::|\bprint\([fr]*[\"']::"
)
ALLOWED = {
    "scripts/adapterops/escape.py": None,
    "scripts/adapterops/data/reader.py": {"\\u202"},  # which characters a row is told off for
    "scripts/adapterops/data/plain_answer.py": {
        "str.maketrans"
    },  # apostrophes, of an answer that is read and not shown
    "scripts/adapterops/evaluate/rouge.py": {"\\u202"},  # what splits no word
}


def test_nothing_else_escapes():
    found = []
    for path in sorted([*(ROOT / "scripts").rglob("*.py"), *(ROOT / "scripts").rglob("*.j2")]):
        name = str(path.relative_to(ROOT))
        if name in ALLOWED and ALLOWED[name] is None:
            continue
        for number, text in enumerate(path.read_text().splitlines(), 1):
            for sign in SIGNS.finditer(text):
                if sign.group() not in ALLOWED.get(name, ()) and not text.lstrip().startswith(
                    ("#", '"""')
                ):
                    found.append(f"{name}:{number}: {text.strip()}")
    assert found == []


def test_no_function_elsewhere_is_an_escaping():
    named = []
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        if path.name != "escape.py":
            tree = ast.parse(path.read_text())
            functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
            named += [
                f"{path.name}: {name}"
                for name in functions
                if re.search(r"escape|sanit|quote|neutrali", name)
            ]
    assert named == []


def test_notes_of_a_release_are_text_whoever_wrote_its_manifest():
    manifest = {
        "source": {"pr": "7 and ![x](https://evil.example/x) @your-org/all"},
        "base_model": {"name": "m` @your-org/all `"},
        "rank": 8,
        "metrics": {},
        **dict.fromkeys(("adapter", "digest", "training_key", "gate_key"), "a" * 12),
    }
    shown = notes(manifest, "bucket")
    assert "@your-org" not in shown
    assert "](https" not in shown
    assert notes({**manifest, "source": {"pr": "7"}}, "bucket").startswith("Judged in #7.")
