"""The pull-request comment: Markdown within GitHub's limit, in which no data becomes markup."""

from __future__ import annotations

from adapterops.escape import fenced, inline
from adapterops.report import view
from adapterops.report.collect import Report
from adapterops.report.words import (
    adjudicated_line,
    belief_lines,
    forgetting_lines,
    remedies,
    speed_line,
)

LIMIT = 65_536  # characters, of a comment on GitHub
_SYMBOLS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "🟡", "ERROR": "⛔"}
_FLAGS = {"better": " ▲", "worse": " ▼", "same": ""}
SUPERSEDED = "SUPERSEDED"  # in the place of a verdict


def comment(
    report: Report, *, html_url: str | None = None, run_url: str | None = None, limit: int = LIMIT
) -> str:
    """The comment, below its marker.

    What does not fit is left out by whole sections, the least needed first, and that is said.

    Args:
        report: what to say.
        html_url: where the HTML report is.
        run_url: the run of GitHub Actions among whose artifacts it is, where it has no address of
            its own.
        limit: characters.
    """
    head, sections = _sections(report, _link(html_url, run_url))
    limit -= len(marker(report.name, report.gate["verdict"])) + 2
    kept = dict(sections)
    for name in (
        "gains",
        "to_judge",
        "data",
        "training",
        "regressions",
        "warnings",
        "merging",
        "provenance",
    ):
        body = _joined(head, kept, len(sections) - len(kept))
        if len(body) <= limit:
            return body
        kept.pop(name, None)
    return _joined(head, kept, len(sections) - len(kept))[:limit]


def family(adapter: str) -> str:
    """What the markers of an adapter's comments begin with."""
    return f"<!-- adapter-report adapter={adapter} verdict="


def marker(adapter: str, verdict: str) -> str:
    """The first line of a comment of ours, which says what it is on; data stands below it."""
    return f"{family(adapter)}{verdict} -->"


def superseded(body: str, adapter: str, url: str) -> str:
    """An earlier comment, folded, with a link to the one that holds now."""
    text = f"{marker(adapter, SUPERSEDED)}\nIn its place: [the report that holds now]({url}).\n\n"
    text += "<details><summary>the report before</summary>\n\n"
    former = body.partition("\n")[2]
    return (
        text
        + (former if len(former) <= LIMIT - len(text) - 20 else "(too long to keep)")
        + "\n\n</details>\n"
    )


def _link(html_url: str | None, run_url: str | None) -> str:
    if html_url:
        return f"[Every answer side by side]({html_url})"
    return (
        f"Every answer side by side: `report.html` among [the artifacts of this run]({run_url})"
        if run_url
        else ""
    )


def _sections(report: Report, link: str) -> tuple[str, dict[str, str]]:
    gate = report.gate
    head = f"### {_SYMBOLS[gate['verdict']]} {gate['verdict']}: {inline(report.name)}\n\n"
    head += f"{inline(gate['reason'])}\n\n"
    if said := view.by_main(report):
        head += f"⚠️ {inline(said)}\n\n"
    if former := gate["former_verdicts"]:
        head += f"Judged {len(former) + 1} times by force; before: {', '.join(former)}.\n\n"
    head += f"**Now:** {view.next_step(report)}\n\n"
    if todo := remedies(gate):
        head += "".join(f"- {inline(metric)}: {inline(to_do)}\n" for metric, to_do in todo) + "\n"
    head += _table(report)
    sections = {}
    if gate["warnings"]:
        sections["warnings"] = "\n" + "".join(
            f"<sub>⚠️ {inline(warning)}</sub><br>\n" for warning in gate["warnings"]
        )
    if lines := view.data_lines(report):
        sections["data"] = "\n**Data**\n\n" + "".join(f"- {inline(line)}\n" for line in lines)
    worst, best = view.changes(report)
    if worst:
        sections["regressions"] = _changes(
            f"Worst regressions against {view.against(report)}", worst
        )
    if best:
        sections["gains"] = _changes(f"Best gains against {view.against(report)}", best)
    if to_judge := view.to_judge(report):
        sections["to_judge"] = _to_judge(to_judge, len(report.gate["adjudicated"]["open"]))
    if link:
        sections["link"] = f"\n{link}\n"
    training, costs = view.training_line(report), view.cost_lines(report)
    if training or costs:
        lines = [f"**Training:** {inline(training)}"] if training else []
        sections["training"] = (
            "\n" + "\n\n".join([*lines, *(inline(line) for line in costs)]) + "\n"
        )
    sections["merging"] = f"\n**Merging:** {view.merging(report)}\n"
    sections["provenance"] = _provenance(report)
    return head, sections


def _joined(head: str, sections: dict[str, str], left_out: int) -> str:
    which = "1 section" if left_out == 1 else f"{left_out} sections"
    where = (
        "the page with every answer has them"
        if "link" in sections
        else "`report.py` renders the page that has them"
    )
    note = f"\n_{which} did not fit; {where}._\n" if left_out else ""
    return head + "".join(sections.values()) + note + "\n"


def _table(report: Report) -> str:
    lines = [
        (
            f"| metric | production | this PR | Δ {view.against(report)} [interval] | interval |"
            " threshold | n | verdict |"
        ),
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in view.metric_rows(report):
        verdict = f"{_SYMBOLS[row.verdict]} {row.verdict}" if row.verdict else ""
        floor = f" (shuffled {row.floor})" if row.floor else ""
        change = row.change + _FLAGS[row.superiority]
        measured = f"{row.production} | **{row.candidate}**{floor} | {change} | {row.interval}"
        lines.append(
            f"| {inline(row.title)} | {measured} | {row.threshold} | {row.n} | {verdict} |"
        )
    notes = [report.gate["production"]["note"], adjudicated_line(report.gate)]
    if report.results:
        notes += [*belief_lines(report.results), speed_line(report.results)]
    lost = "".join(f"- {inline(line)}\n" for line in forgetting_lines(report.gate))
    lost = f"\n**What it lost of the base model:**\n\n{lost}" if lost else ""
    return (
        "\n".join(lines)
        + f"\n{lost}\n<sub>{' '.join(inline(note) for note in notes if note)}</sub>\n"
    )


def _changes(title: str, changes: list[view.Change]) -> str:
    parts = [f"\n<details><summary>{title}: {len(changes)}</summary>\n"]
    for item in changes:
        marks = f"{item.before_mark} → {item.after_mark}"
        parts += [
            f"\n**{inline(item.id, 200)}** ({item.delta:+.2f}; {marks})\n",
            f"\n{fenced(item.prompt)}\n",
            f"\nexpected\n{fenced(item.expected)}\n",
            f"\nbefore\n{fenced(item.before)}\n",
            f"\nafter\n{fenced(item.after)}\n",
        ]
    return "".join(parts) + "\n</details>\n"


def _to_judge(answers: list[view.ToJudge], count: int) -> str:
    parts = [f"\n<details><summary>Answers that a reviewer may judge: {count}</summary>\n\n"]
    parts.append(
        "Counted by the detector alone. `scripts/adjudicate.py` lists and labels them; no GPU is"
        " needed.\n"
    )
    for item in answers:
        parts += [
            f"\n**{inline(item.id, 200)}** ({item.kind})\n",
            f"\n{fenced(item.prompt)}\n",
            f"\nanswer\n{fenced(item.answer)}\n",
        ]
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
        engine = report.results["engine"]
        facts["engine"] = f"{engine['version']} {engine['dtype']} {engine['device']}"
    lines = "".join(f"{name}: {value}\n" for name, value in facts.items())
    shown = fenced(lines.rstrip(), 4_000)
    return f"\n<details><summary>Provenance</summary>\n\n{shown}\n\n</details>\n"
