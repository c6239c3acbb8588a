"""The plan's comment on a pull request."""

from __future__ import annotations

from adapterops.escape import inline
from adapterops.plan.plan_text import plan_markdown
from adapterops.shapes.data_report import DataReport
from adapterops.shapes.plan import Plan

MARKER = "<!-- qlora-gitops plan -->"
_SHOWN = 20
_LONGEST = 60_000  # GitHub takes 65,536 characters


def comment(plan: Plan, reports: list[DataReport], results: dict[str, str]) -> str | None:
    """Markdown, or None where nothing is affected, nothing refused and no rule changed.

    Args:
        plan: of the pull request.
        reports: data reports of the validate job.
        results: what each job ended with.
    """
    failed = [report for report in reports if report["verdict"] != "PASS"]
    lines = []
    if failed:
        lines += ["### The data is not accepted yet", ""]
        for report in failed:
            lines += _findings(report)
        lines += [
            "The same places are annotated in the files."
            " To see them on your machine: `make validate`. To have what can be mended mended:"
            " `python scripts/validate_data.py --input FILE --fix`. Then push again.",
            "",
        ]
    elif plan["verdict"] == "PROCEED" and results.get("train") in ("failure", "cancelled"):
        lines += [
            "### A training job ended without a PASS",
            "",
            "Its gate's report is in a comment of its own, or its log says where it broke off.",
            "",
        ]
    worth = (
        lines or plan["problems"] or plan["rules"] or plan["adapters"] or plan["changes"]["code"]
    )
    if not worth:
        return None
    body = plan_markdown(plan)
    # Changed rules come before everything else: nobody lowers a bar unseen.
    parts = [body, *lines] if plan["rules"] else [*lines, body]
    provenance = (
        f"<sub>head {plan['head'][:12]} merged into {plan['base'][:12]}; `/retrain` runs it again,"
        " `/rerun-gate` its failed jobs</sub>"
    )
    whole = "\n".join(parts)
    if len(whole) > _LONGEST:
        kept = whole[:_LONGEST].rpartition("\n")[0]
        more = f"**{len(whole) - len(kept):,} characters more do not fit here:**"
        whole = f"{kept}\n\n{more} the run's artifacts have them."
    return f"{whole}\n\n{provenance}"


def _findings(report: DataReport) -> list[str]:
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    lines = ["| place | code | what is wrong, and what is expected |", "|---|---|---|"]
    for finding in errors[:_SHOWN]:
        place = inline(f"{finding['file']}:{finding['line']}")
        code = finding["code"]
        lines.append(
            f"| {place} | [{code}](../blob/HEAD/docs/errors.md#{code.lower()}) |"
            f" {inline(finding['message'], 500)} |"
        )
    if len(errors) > _SHOWN:
        lines.append(f"| … | | {len(errors) - _SHOWN} more in the job's summary |")
    return [*lines, ""]
