"""Validate training data."""

from __future__ import annotations

from pathlib import Path

import click

from adapterops.command import OUTPUT_PATH, command, console
from adapterops.errors import UsageError


@command()
@click.option("--input", "inputs", type=OUTPUT_PATH, multiple=True, help="Training file, JSON array or JSONL; may be given several times.")
@click.option("--eval-data", type=OUTPUT_PATH, help="Evaluation rows: checked too, and that none of them is trained on.")
@click.option("--adapter", help="Take files, base model and max_length from this adapter of adapters/.")
@click.option("--base-model", help="A base model of configs/base_models.yaml, to count tokens with.")
@click.option("--max-length", type=click.IntRange(1), help="Longest rendered row in tokens.")
@click.option("--policy", type=OUTPUT_PATH, help="Limits. Default: configs/data_policy.yaml.")
@click.option("--output", type=OUTPUT_PATH, help="Write the report (JSON) here.")
@click.option("--format", "style", type=click.Choice(["text", "github", "json"]), default="text", show_default=True)
@click.option("--write-error-page", is_flag=True, help="Refresh docs/errors.md and do nothing else.")
def main(
    inputs: tuple[Path, ...],
    eval_data: Path | None,
    adapter: str | None,
    base_model: str | None,
    max_length: int | None,
    policy: Path | None,
    output: Path | None,
    style: str,
    write_error_page: bool,
) -> int:
    """Validate training data: exit 0 if it may be trained on, 1 if not.

    Every finding names file and line, a code of docs/errors.md, the fact and what was expected.

    \b
    Example:
      python scripts/validate_data.py --input data/training/support.jsonl --eval-data data/eval/support.jsonl \\
        --base-model smollm2-135m-instruct
    """
    import json

    from adapterops.adapters import load_adapter
    from adapterops.basemodels import find_base_model
    from adapterops.data.codes import error_page
    from adapterops.data.policy import POLICY, load_policy
    from adapterops.data.validate import print_report, validate, write_report
    from adapterops.documents import write_bytes
    from adapterops.schemas import ROOT
    from adapterops.train.recipe import load_recipe

    if write_error_page:
        write_bytes(ROOT / "docs" / "errors.md", error_page().encode())
        return 0
    model = find_base_model(base_model, "--base-model") if base_model else None
    files = list(inputs)
    if adapter:
        spec = load_adapter(adapter)
        recipe = load_recipe(spec.recipe)
        files = files or list(spec.training_data)
        eval_data = eval_data or spec.evaluation_data
        model = model or recipe.base_model
        max_length = max_length or recipe.training["max_length"]
    if not files:
        raise UsageError("nothing to validate. Name a file with --input or an adapter with --adapter.")
    report = validate(files, eval_data, base_model=model, policy=load_policy(policy or POLICY), max_length=max_length)
    if output:
        write_report(output, report)
    if style == "json":
        click.echo(json.dumps(report.document, indent=2, ensure_ascii=False))
    else:
        print_report(report, console, github=style == "github")
    return 0 if report.passed else 1


if __name__ == "__main__":
    main()
