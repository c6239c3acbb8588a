"""The pull-request comment: Markdown of at most 65,536 characters, in which nothing that comes from data can become markup."""

from __future__ import annotations

import re

from adapterops.report import view
from adapterops.report.collect import Report
from adapterops.report.words import belief_lines, forgetting_lines, remedies, speed_line, visible

LIMIT = 65_536  # characters, of a comment on GitHub
_LONGEST_TEXT = 1_500
_LONGEST_LINE = 2_000
_SYMBOLS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "🟡", "ERROR": "⛔"}
_FLAGS = {"better": " ▲", "worse": " ▼", "same": ""}
_MARKER = re.compile(r"<!-- adapter-report adapter=([a-z0-9-]+) verdict=([A-Z]+) -->\s*\Z")


def comment(report: Report, *, html_url: str | None = None, run_url: str | None = None, limit: int = LIMIT) -> str:
    """The comment. What does not fit is left out by whole sections, the least needed first, and that is said.

    Args:
        report: what to say.
        html_url: where the HTML report is.
        run_url: the run of GitHub Actions among whose artifacts it is, where it has no address of its own.
        limit: characters.
    """
    head, sections = _sections(report, _link(html_url, run_url))
    marker = f"<!-- adapter-report adapter={report.name} verdict={report.gate['verdict']} -->\n"
    kept = dict(sections)
    for name in ("gains", "data", "training", "regressions", "warnings", "merging", "provenance"):
        body = _joined(head, kept, len(sections) - len(kept))
        if len(body) + len(marker) <= limit:
            return body + marker
        kept.pop(name, None)
    return _joined(head, kept, len(sections) - len(kept))[: limit - len(marker)] + marker


def marker_of(body: str) -> tuple[str, str] | None:
    """Adapter and verdict of a comment of ours; the marker is its last line, where no text from data can stand."""
    found = _MARKER.search(body)
    return (found.group(1), found.group(2)) if found else None


def superseded(body: str, adapter: str, url: str) -> str:
    """An earlier comment, folded, with a link to the one that holds now."""
    marker = f"<!-- adapter-report adapter={adapter} verdict=SUPERSEDED -->\n"
    text = f"In its place: [the report that holds now]({url}).\n\n<details><summary>the report before</summary>\n\n"
    room = LIMIT - len(text) - len(marker) - 20
    former = _MARKER.sub("", body)
    return text + (former if len(former) <= room else "(too long to keep)") + "\n\n</details>\n\n" + marker


def plain(text: str, longest: int = _LONGEST_LINE) -> str:
    """One line of text that renders as itself: no markup, HTML, link, mention or reference comes of it."""
    line = visible(" ".join(text.split()))
    line = line if len(line) <= longest else line[:longest] + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_{}\[\]|~$])", r"\\\1", line)
    # Mentions, references, emoji and bare links are found in what is rendered, so that an entity would not stop them.
    line = re.sub(r"(@|#|GH-|://|www\.)(?=\S)", lambda match: match.group(1)[:-1] + "\u200b" + match.group(1)[-1] + "\u200b", line)
    line = re.sub(r":(?=[\w+\\-]+:)", ":\u200b", line)
    # A commit's name becomes a link from seven digits on where it is known, from forty in any case.
    return re.sub(r"(?i)\b[0-9a-f]{40}\b", lambda match: re.sub(r".{6}", "\\g<0>\u200b", match.group()), line)


def fenced(text: str, longest: int = _LONGEST_TEXT) -> str:
    """Text in a code block whose fence is longer than any in it; mentions and links are dead there."""
    text = visible(text)
    shown = text if len(text) <= longest else text[:longest] + f"\n… {len(text) - longest} more characters"
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", shown)), 3)
    return f"{fence}text\n{shown or '(empty)'}\n{fence}"


def _link(html_url: str | None, run_url: str | None) -> str:
    if html_url:
        return f"[Every answer side by side]({html_url})"
    return f"Every answer side by side: `report.html` among [the artifacts of this run]({run_url})" if run_url else ""


def _sections(report: Report, link: str) -> tuple[str, dict[str, str]]:
    gate = report.gate
    head = f"### {_SYMBOLS[gate['verdict']]} {gate['verdict']}: {plain(report.name)}\n\n{plain(gate['reason'])}\n\n"
    if said := view.by_main(report):
        head += f"⚠️ {plain(said)}\n\n"
    if gate["former_verdicts"]:
        head += f"Judged {len(gate['former_verdicts']) + 1} times by force; before: {', '.join(gate['former_verdicts'])}.\n\n"
    head += f"**Now:** {view.next_step(report)}\n\n"
    if todo := remedies(gate):
        head += "".join(f"- {plain(metric)}: {plain(to_do)}\n" for metric, to_do in todo) + "\n"
    head += _table(report)
    sections = {}
    if gate["warnings"]:
        sections["warnings"] = "\n" + "".join(f"<sub>⚠️ {plain(warning)}</sub><br>\n" for warning in gate["warnings"])
    if lines := view.data_lines(report):
        sections["data"] = "\n**Data**\n\n" + "".join(f"- {plain(line)}\n" for line in lines)
    worst, best = view.changes(report)
    if worst:
        sections["regressions"] = _changes(f"Worst regressions against {view.against(report)}", worst)
    if best:
        sections["gains"] = _changes(f"Best gains against {view.against(report)}", best)
    if link:
        sections["link"] = f"\n{link}\n"
    training, costs = view.training_line(report), view.cost_lines(report)
    if training or costs:
        lines = [f"**Training:** {plain(training)}"] if training else []
        sections["training"] = "\n" + "\n\n".join([*lines, *(plain(line) for line in costs)]) + "\n"
    sections["merging"] = f"\n**Merging:** {view.merging(report)}\n"
    sections["provenance"] = _provenance(report)
    return head, sections


def _joined(head: str, sections: dict[str, str], left_out: int) -> str:
    which = "1 section" if left_out == 1 else f"{left_out} sections"
    where = "the page with every answer has them" if "link" in sections else "`report.py` renders the page that has them"
    note = f"\n_{which} did not fit; {where}._\n" if left_out else ""
    return head + "".join(sections.values()) + note + "\n"


def _table(report: Report) -> str:
    lines = [
        f"| metric | production | this PR | Δ {view.against(report)} [interval] | interval | threshold | n | verdict |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in view.metric_rows(report):
        verdict = f"{_SYMBOLS[row.verdict]} {row.verdict}" if row.verdict else ""
        floor = f" (shuffled {row.floor})" if row.floor else ""
        change = row.change + _FLAGS[row.superiority]
        measured = f"{row.production} | **{row.candidate}**{floor} | {change} | {row.interval}"
        lines.append(f"| {plain(row.title)} | {measured} | {row.threshold} | {row.n} | {verdict} |")
    notes = [report.gate["production"]["note"]]
    if report.results:
        notes += [*belief_lines(report.results), speed_line(report.results)]
    lost = "".join(f"- {plain(line)}\n" for line in forgetting_lines(report.gate))
    lost = f"\n**What it lost of the base model:**\n\n{lost}" if lost else ""
    return "\n".join(lines) + f"\n{lost}\n<sub>{' '.join(plain(note) for note in notes if note)}</sub>\n"


def _changes(title: str, changes: list[view.Change]) -> str:
    parts = [f"\n<details><summary>{title}: {len(changes)}</summary>\n"]
    for item in changes:
        parts.append(f"\n**{plain(item.id, 200)}** ({item.delta:+.2f}; {item.before_mark} → {item.after_mark})\n\n{fenced(item.prompt)}\n")
        parts.append(f"\nexpected\n{fenced(item.expected)}\n\nbefore\n{fenced(item.before)}\n\nafter\n{fenced(item.after)}\n")
    return "".join(parts) + "\n</details>\n"


def _provenance(report: Report) -> str:
    gate = report.gate
    pinned = ", pinned" if gate["evaluation"]["pinned"] else ""
    facts = {
        "adapter": gate["adapter"]["digest"],
        "production": gate["production"]["digest"] or "none",
        "training key": gate["adapter"]["training_key"],
        "gate key": gate["gate_key"],
        "base model": gate["adapter"]["base_model"],
        "gates": f"{gate['gate_config']['path']} {gate['gate_config']['sha256'][:16]}",
        "evaluation": f"{gate['evaluation']['path']} {gate['evaluation']['sha256'][:16]}{pinned}",
        "judged": gate["judged_at"],
    }
    if report.results:
        facts["engine"] = " ".join(report.results["engine"].values())
    lines = "".join(f"{name}: {value}\n" for name, value in facts.items())
    return f"\n<details><summary>Provenance</summary>\n\n{fenced(lines.rstrip(), 4_000)}\n\n</details>\n"
