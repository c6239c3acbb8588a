"""Validate training data."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import OUTPUT_PATH, command, console, to_runner
from adapterops.errors import UsageError

if TYPE_CHECKING:
    from adapterops.specs.policy import Policy


@command()
@click.option(
    "--input",
    "inputs",
    type=OUTPUT_PATH,
    multiple=True,
    help="Training file, JSON array or JSONL; may be given several times.",
)
@click.option(
    "--eval-data",
    type=OUTPUT_PATH,
    multiple=True,
    help="Evaluation rows, and those of an extension: checked too, and that none is trained on.",
)
@click.option(
    "--adapter", help="Take files, base model and max_length from this adapter of adapters/."
)
@click.option(
    "--adjudicated",
    type=OUTPUT_PATH,
    multiple=True,
    help="Labels of answers to check; of --adapter they always are.",
)
@click.option(
    "--base-model",
    help="A base model of configs/base_models.yaml, to count tokens and render rows with.",
)
@click.option("--max-length", type=click.IntRange(1), help="Longest rendered row in tokens.")
@click.option("--policy", type=OUTPUT_PATH, help="Limits. Default: configs/data_policy.yaml.")
@click.option(
    "--base",
    "revision",
    help="Compare with this git revision: changed rows come first, and drift is shown.",
)
@click.option(
    "--changed-since",
    help="As --base, and only changed rows are judged; checks over the whole file stay.",
)
@click.option("--output", type=OUTPUT_PATH, help="Write the report (JSON) here.")
@click.option(
    "--format",
    "style",
    type=click.Choice(["text", "github", "json"]),
    default="text",
    show_default=True,
)
@click.option(
    "--fix",
    "fixing",
    is_flag=True,
    help="Write a cleaned copy <name>.fixed.<suffix> of each file, and say what was done.",
)
@click.option("--in-place", is_flag=True, help="With --fix: replace the file itself.")
@click.option(
    "--write-error-page", is_flag=True, help="Refresh docs/errors.md and do nothing else."
)
def main(
    inputs: tuple[Path, ...],
    eval_data: tuple[Path, ...],
    adapter: str | None,
    adjudicated: tuple[Path, ...],
    base_model: str | None,
    max_length: int | None,
    policy: Path | None,
    revision: str | None,
    changed_since: str | None,
    output: Path | None,
    style: str,
    fixing: bool,
    in_place: bool,
    write_error_page: bool,
) -> int:
    """Validate training data: exit 0 if it may be trained on, 1 if not.

    Every finding names file and line, a code of docs/errors.md, the fact and what was expected.

    \b
    Example:
      python scripts/validate_data.py --input data/training/support.jsonl \\
        --eval-data data/eval/support.jsonl --base-model smollm2-135m-instruct
      python scripts/validate_data.py --adapter support-demo --changed-since origin/main \\
          --format github
      python scripts/validate_data.py --input data/training/support.jsonl --fix
    """
    import json

    from adapterops.data.adjudicated import labels_path
    from adapterops.data.codes import error_page
    from adapterops.data.distribution_drift import Base
    from adapterops.data.report_text import print_annotations, print_report
    from adapterops.data.validate import validate, write_report
    from adapterops.documents import write_bytes
    from adapterops.schemas import ROOT
    from adapterops.specs.adapter import load_adapter
    from adapterops.specs.base_model import find_base_model
    from adapterops.specs.policy import POLICY, load_policy
    from adapterops.specs.recipe import load_recipe

    if write_error_page:
        write_bytes(ROOT / "docs" / "errors.md", error_page().encode())
        return 0
    if in_place and not fixing:
        raise UsageError("--in-place says where --fix writes. Give both, or neither.")
    if revision and changed_since:
        raise UsageError("--base and --changed-since both name a revision. Give one of them.")
    model = find_base_model(base_model, "--base-model") if base_model else None
    files = list(inputs)
    if adapter:
        spec = load_adapter(adapter)
        recipe = load_recipe(spec.recipe)
        files = files or list(spec.training_data)
        eval_data = eval_data or spec.judged_on
        model = model or recipe.base_model
        max_length = max_length or recipe.training["max_length"]
    if missing := [str(path) for path in adjudicated if not path.is_file()]:
        raise UsageError(
            f"--adjudicated {missing[0]} does not exist. scripts/adjudicate.py writes such files."
        )
    _check_labels([*adjudicated, *([labels_path(adapter)] if adapter else [])])
    if adjudicated and not files:
        console.print(f"{len(adjudicated)} files of labels are as they should be", soft_wrap=True)
        return 0
    if not files:
        raise UsageError(
            "nothing to validate. Name a file with --input or an adapter with --adapter."
        )
    limits = load_policy(policy or POLICY)
    if fixing:
        return _fix([*files, *eval_data], limits, in_place)
    with (
        Base(revision or changed_since or "")
        if revision or changed_since
        else contextlib.nullcontext()
    ) as base:
        report = validate(
            files,
            eval_data,
            base_model=model,
            policy=limits,
            max_length=max_length,
            base=base,
            changed_only=bool(changed_since),
            console=console if style == "text" else None,
        )
    if output:
        write_report(output, report)
    if style == "json":
        click.echo(json.dumps(report.document, indent=2, ensure_ascii=False))
    elif style == "github":
        print_annotations(report, to_runner)
    else:
        print_report(report, console)
    return 0 if report.passed else 1


def _check_labels(files: list[Path]) -> None:
    """Raises RejectedError with every line that is at fault."""
    from adapterops.data.adjudicated import load_labels
    from adapterops.errors import RejectedError

    for path in files:
        try:
            load_labels(path)
        except UsageError as error:
            raise RejectedError(str(error)) from None


def _fix(files: list[Path], policy: Policy, in_place: bool) -> int:
    from adapterops.data.fix import fix

    for path in files:
        if not path.is_file():
            raise UsageError(f"{path} does not exist or is not a file.")
    for path in files:
        target = path if in_place else path.with_name(f"{path.stem}.fixed{path.suffix}")
        console.print(
            f"{path} → {target}: {fix(path, target, policy.limits_for(path))}", soft_wrap=True
        )
    return 0


if __name__ == "__main__":
    main()
