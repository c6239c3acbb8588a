"""Text that nobody vouches for, as text: in Markdown, HTML, a terminal, a log, a workflow command.

Nothing else in the project escapes; a test goes over the tree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import jinja2

# What is not seen, or turns the direction of reading, or ends a line where nobody expects it; and
# half surrogate pairs, which no encoding takes. The two joiners (U+200C, U+200D) are not here:
# Persian, Hindi and families of emoji are written with them.
_UNSEEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180b-\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f"
)
_IN_LINES = re.compile(f"[{_UNSEEN}]")
_IN_LINE = re.compile(f"[{_UNSEEN}\t\n]")

_ZERO_WIDTH = "\u200b"
_MARKUP = str.maketrans({character: f"&#{ord(character)};" for character in "&<>\\`*[]|~$#@!"})
_UNDERSCORE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # within a word it is none but itself
# Found by GitHub in what is rendered, where an entity would not hide them: mentions, references,
# bare links, emoji.
_LIVE = re.compile(
    r"@(?=\S)|#(?=\S)|\bgh-(?=\d)|(?:https?|ftp):/(?=/)|www(?=\.)|:(?=[\w+-]+:)", re.IGNORECASE
)
# A commit's name becomes a link from seven digits on where it is known, from forty in any case.
_COMMIT = re.compile(r"(?i)\b[0-9a-f]{40}\b")
# Begins a list, or is a rule, the underline of a heading or of a table.
_BLOCK = re.compile(r"[0-9]{1,9}[.)](?=\s|$)|[-+](?=\s|$)|[-=:](?=[-=:\s]|$)")

# The runner reads commands at the beginning of a line, and those of the older form anywhere in it.
_COMMAND = re.compile(r"(^|[\r\n])(\s*)::")


def visible(text: str) -> str:
    """Several lines; what is not seen in them stands as its escape: `\\x1b`, `\\u202e`."""
    return _IN_LINES.sub(_escape, text)


def line(text: str, longest: int | None = None) -> str:
    """One line of a log; line ends and what is not seen stand as escapes.

    GitHub's runner does not take it for a command.
    """
    return no_commands(_cut(_IN_LINE.sub(_escape, text), longest))


def no_commands(text: str) -> str:
    """Output in which GitHub's runner finds no workflow command."""
    return _COMMAND.sub(r"\1\2\\::", text).replace("##[", "## [")


def terminal(text: str) -> str:
    """Several lines for rich, which reads `[bold]`; none of it is read."""
    from rich import markup

    return markup.escape(visible(text))


def inline(text: object, longest: int | None = 2_000) -> str:
    """One line of Markdown, or a cell of a table, that renders as the text.

    No markup, HTML, link, mention or reference comes of it.
    """
    shown = _cut(_IN_LINES.sub(_escape, " ".join(str(text).split())), longest)
    shown = _LIVE.sub(lambda found: found.group() + _ZERO_WIDTH, shown)
    shown = _COMMIT.sub(lambda found: _ZERO_WIDTH.join(re.findall(".{1,6}", found.group())), shown)
    shown = _UNDERSCORE.sub("&#95;", shown.translate(_MARKUP))
    if block := _BLOCK.match(shown):
        last = block.end() - 1
        shown = f"{shown[:last]}&#{ord(shown[last])};{shown[last + 1 :]}"
    return shown


def fenced(text: str, longest: int = 1_500) -> str:
    """A Markdown code block whose fence is longer than any in the text.

    Mentions and links are dead there.
    """
    text = visible(text)
    shown = (
        text
        if len(text) <= longest
        else text[:longest] + f"\n… {len(text) - longest} more characters"
    )
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", shown)), 3)
    return f"{fence}text\n{shown or '(empty)'}\n{fence}"


def html_template(source: str, **filters: Callable[..., object]) -> jinja2.Template:
    """A page that escapes whatever is put into it, and knows every name that it uses."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(filters)
    return environment.from_string(source)


def workflow_command(name: str, message: str, **properties: object) -> str:
    """A command to GitHub's runner, such as `::error file=a.jsonl,line=3::message`.

    The message may have several lines.
    """
    settings = ",".join(f"{key}={_property(str(value))}" for key, value in properties.items())
    return f"::{name}{' ' * bool(settings)}{settings}::{_message(visible(message))}"


def _message(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _message(_IN_LINE.sub(_escape, text)).replace(":", "%3A").replace(",", "%2C")


def _escape(found: re.Match[str]) -> str:
    return found.group().encode("unicode_escape").decode()


def _cut(text: str, longest: int | None) -> str:
    return text if longest is None or len(text) <= longest else text[:longest] + "…"
