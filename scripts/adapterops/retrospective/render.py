"""The same sections as Markdown and as a page; text from the store is escaped in both."""

from __future__ import annotations

from adapterops.escape import html_template, inline
from adapterops.retrospective.section import Section

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{{ title }}</title><style>
:root { color-scheme: light dark }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; display: block; overflow-x: auto }
th, td { text-align: left; padding: .3rem .8rem; border-bottom: 1px solid #8886 }
</style></head><body><h1>{{ title }}</h1>
{% for section in sections %}<h2>{{ section.title }}</h2>
{% if section.rows %}<table><tr>
{% for column in section.columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in section.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}{% if section.note %}<p>{{ section.note }}</p>{% endif %}
{% endfor %}</body></html>
"""


def markdown(title: str, sections: list[Section]) -> str:
    """GitHub-flavoured; mentions, pipes and HTML in the cells are made harmless."""
    parts = [f"# {title}"]
    for section in sections:
        parts.append(f"## {section.title}")
        if section.rows:
            lines = [
                section.columns,
                tuple("---" for _ in section.columns),
                *(tuple(map(inline, row)) for row in section.rows),
            ]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if section.note:
            parts.append(section.note)
    return "\n\n".join(parts) + "\n"


def page(title: str, sections: list[Section]) -> str:
    """HTML without anything from elsewhere."""
    return html_template(_PAGE).render(title=title, sections=sections)
