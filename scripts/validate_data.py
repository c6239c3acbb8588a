"""Validate training data."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import OUTPUT_PATH, command, console, to_runner
from adapterops.errors import UsageError

if TYPE_CHECKING:
    from adapterops.data.validate import Validation
    from adapterops.specs.base_model import BaseModel
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
    if write_error_page:
        return _write_error_page()
    if in_place and not fixing:
        raise UsageError("--in-place says where --fix writes. Give both, or neither.")
    if revision and changed_since:
        raise UsageError("--base and --changed-since both name a revision. Give one of them.")
    wanted = _wanted(inputs, eval_data, adapter, base_model, max_length)
    _check_labels(adjudicated, adapter)
    if adjudicated and not wanted.inputs:
        console.print(f"{len(adjudicated)} files of labels are as they should be", soft_wrap=True)
        return 0
    if not wanted.inputs:
        raise UsageError(
            "nothing to validate. Name a file with --input or an adapter with --adapter."
        )
    limits = _policy(policy)
    if fixing:
        return _fix([*wanted.inputs, *wanted.eval_data], limits, in_place)
    report = _validate(wanted, limits, revision, changed_since, quiet=style != "text")
    _show(report, output, style)
    return 0 if report.passed else 1


@dataclass(frozen=True)
class _Wanted:
    """What is validated: by the options, else by the adapter's specification."""

    inputs: list[Path]
    eval_data: tuple[Path, ...]
    base_model: BaseModel | None
    max_length: int | None


def _wanted(
    inputs: tuple[Path, ...],
    eval_data: tuple[Path, ...],
    adapter: str | None,
    base_model: str | None,
    max_length: int | None,
) -> _Wanted:
    from adapterops.specs.adapter import load_adapter
    from adapterops.specs.base_model import find_base_model
    from adapterops.specs.recipe import load_recipe

    model = find_base_model(base_model, "--base-model") if base_model else None
    if not adapter:
        return _Wanted(list(inputs), eval_data, model, max_length)
    spec = load_adapter(adapter)
    recipe = load_recipe(spec.recipe)
    return _Wanted(
        list(inputs or spec.training_data),
        eval_data or spec.judged_on,
        model or recipe.base_model,
        max_length or recipe.training["max_length"],
    )


def _policy(path: Path | None) -> Policy:
    from adapterops.specs.policy import POLICY, load_policy

    return load_policy(path or POLICY)


def _validate(
    wanted: _Wanted, policy: Policy, revision: str | None, changed_since: str | None, *, quiet: bool
) -> Validation:
    from adapterops.data.distribution_drift import Base
    from adapterops.data.validate import validate

    since = revision or changed_since
    with Base(since) if since else contextlib.nullcontext() as base:
        return validate(
            wanted.inputs,
            wanted.eval_data,
            base_model=wanted.base_model,
            policy=policy,
            max_length=wanted.max_length,
            base=base,
            changed_only=bool(changed_since),
            console=None if quiet else console,
        )


def _show(report: Validation, output: Path | None, style: str) -> None:
    import json

    from adapterops.data.report_text import print_annotations, print_report
    from adapterops.data.validate import write_report

    if output:
        write_report(output, report)
    if style == "json":
        click.echo(json.dumps(report.document, indent=2, ensure_ascii=False))
    elif style == "github":
        print_annotations(report, to_runner)
    else:
        print_report(report, console)


def _write_error_page() -> int:
    from adapterops.data.codes import error_page
    from adapterops.documents import write_bytes
    from adapterops.schemas import ROOT

    write_bytes(ROOT / "docs" / "errors.md", error_page().encode())
    return 0


def _check_labels(named: tuple[Path, ...], adapter: str | None) -> None:
    """Raises RejectedError with every line that is at fault."""
    from adapterops.data.adjudicated import labels_path, load_labels
    from adapterops.errors import RejectedError

    if missing := [str(path) for path in named if not path.is_file()]:
        raise UsageError(
            f"--adjudicated {missing[0]} does not exist. scripts/adjudicate.py writes such files."
        )
    files = [*named, *([labels_path(adapter)] if adapter else [])]
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
