"""Render or post the report of a run."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import os
from pathlib import Path

import click

from adapterops.command import (
    EXISTING_DIRECTORY,
    EXISTING_FILE,
    OUTPUT_PATH,
    command,
    console,
    error_console,
    to_runner,
)

_FILES = {"html": "report.html", "comment": "comment.md", "summary": "summary.md"}


@command()
@click.argument("action", type=click.Choice(["render", "post"]), default="render")
@click.option(
    "--run", type=EXISTING_DIRECTORY, help="Run directory of pipeline.py: runs/<adapter>/<key>."
)
@click.option(
    "--report",
    "reports",
    type=EXISTING_FILE,
    multiple=True,
    help="Gate report, its run's documents beside it; several to post.",
)
@click.option(
    "--format",
    "styles",
    type=click.Choice(["html", "comment", "summary", "annotations", "console"]),
    multiple=True,
    default=("html",),
    show_default=True,
    help="May be given several times.",
)
@click.option(
    "--output",
    type=OUTPUT_PATH,
    help="File to write. Default: report.html, comment.md or summary.md in the run directory.",
)
@click.option(
    "--html-url",
    help=(
        "Where the HTML report can be read, for the comment. Default in Actions: the run with its"
        " artifacts."
    ),
)
@click.option("--repository", help="owner/name. Default: $GITHUB_REPOSITORY.")
@click.option("--pull-request", type=int, help="Number of the pull request to comment on.")
@click.option("--api-url", help="Default: $GITHUB_API_URL, else GitHub's.")
@click.option(
    "--author",
    default="github-actions[bot]",
    show_default=True,
    help="Login that the comments are by.",
)
def main(
    action: str,
    run: Path | None,
    reports: tuple[Path, ...],
    styles: tuple[str, ...],
    output: Path | None,
    html_url: str | None,
    repository: str | None,
    pull_request: int | None,
    api_url: str | None,
    author: str,
) -> int:
    """Render the report of a run from its documents, or post it as a comment; nothing is judged
    anew.

    A comment that cannot be posted (token in $GITHUB_TOKEN) is a warning, not a failure: the
    verdict is the gate's, and comment.md and report.html stay beside it. The summary goes to
    $GITHUB_STEP_SUMMARY too.

    \b
    Example:
      python scripts/report.py --run runs/support-demo/1a2b3c4d5e6f
      python scripts/report.py --run runs/support-demo/1a2b3c4d5e6f --format comment
      python scripts/report.py post --run runs/support-demo/1a2b3c4d5e6f \\
          --repository owner/name --pull-request 7
    """
    paths = [*reports, *([run / "gate_report.json"] if run else [])]
    if not paths:
        raise click.UsageError("give --run or --report.")
    if action == "post":
        return _post(paths, html_url, repository, pull_request, api_url, author)
    if len(paths) > 1:
        raise click.UsageError("one report is rendered at a time.")
    if output and len(set(styles) & set(_FILES)) > 1:
        raise click.UsageError("--output takes one format.")
    _render(paths[0], styles, output, html_url)
    return 0


def _render(path: Path, styles: tuple[str, ...], output: Path | None, html_url: str | None) -> None:
    from adapterops.documents import write_bytes
    from adapterops.gitops.outputs import run_url, summarize
    from adapterops.report.checks import check_annotations
    from adapterops.report.collect import collect
    from adapterops.report.comment import comment
    from adapterops.report.console import print_report
    from adapterops.report.html import page

    report = collect(path.parent, path)
    for style in styles:
        if style == "console":
            print_report(report, console)
        elif style == "annotations":
            for line in check_annotations(report):
                to_runner.out(line, highlight=False)
        else:
            target = output or path.with_name(_FILES[style])
            text = (
                page(report)
                if style == "html"
                else comment(report, html_url=html_url, run_url=run_url())
            )
            write_bytes(target, text.encode())
            if style == "summary":
                summarize(text)
            console.print(str(target), soft_wrap=True)


def _post(
    paths: list[Path],
    html_url: str | None,
    repository: str | None,
    pull_request: int | None,
    api_url: str | None,
    author: str,
) -> int:
    from adapterops.documents import write_bytes
    from adapterops.errors import AdapterOpsError, InfrastructureError
    from adapterops.gitops.comments import PullRequest, post
    from adapterops.gitops.outputs import run_url
    from adapterops.report.collect import collect
    from adapterops.report.comment import comment
    from adapterops.report.html import page

    name, token = repository or os.environ.get("GITHUB_REPOSITORY"), os.environ.get("GITHUB_TOKEN")
    if not name or name.count("/") != 1 or pull_request is None:
        raise click.UsageError(
            "post needs --repository owner/name (or $GITHUB_REPOSITORY) and --pull-request."
        )
    url = api_url or os.environ.get("GITHUB_API_URL") or "https://api.github.com"
    code = 0
    for path in paths:
        kept = path.with_name("comment.md")
        try:
            report = collect(path.parent, path)
            body = comment(report, html_url=html_url, run_url=run_url())
            write_bytes(kept, body.encode())
            write_bytes(path.with_name("report.html"), page(report).encode())
        except AdapterOpsError as error:  # which keeps no other adapter's comment back
            _warn("report not made", str(error))
            code = max(code, error.exit_code)
            continue
        try:
            if not token:
                raise InfrastructureError("GITHUB_TOKEN is not set")
            posted = post(
                PullRequest(name, pull_request, token, url, author),
                report.name,
                report.gate["verdict"],
                body,
            )
            console.print(f"{report.name}: {posted.done} {posted.address}", soft_wrap=True)
            if posted.unfolded:
                said = (
                    f"{report.name}: an earlier comment was not folded: {posted.unfolded} The next"
                    " post folds it."
                )
                _warn("earlier report still stands", said)
        except InfrastructureError as error:
            _warn(
                "report not posted",
                f"{error} The report is kept in {kept}; `report.py post` posts it again.",
            )
    return code


def _warn(title: str, message: str) -> None:
    from adapterops.gitops.outputs import annotate

    error_console.print(message, markup=False, soft_wrap=True)
    annotate("warning", title, message)


if __name__ == "__main__":
    main()
