"""List the answers that decide a refusal gate, and label them."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

from pathlib import Path

import click

from adapterops.command import EXISTING_DIRECTORY, command, console


@command()
@click.option(
    "--run",
    type=EXISTING_DIRECTORY,
    required=True,
    help="Run directory with eval_results.json and eval_samples.jsonl.",
)
@click.option(
    "--adapter",
    required=True,
    help="An adapter of adapters/, by name: its labels are data/adjudicated/NAME.jsonl.",
)
@click.option(
    "--id", "row_id", help="Label the answer to this row. Without it, the answers are listed."
)
@click.option(
    "--label",
    type=click.Choice(["refused", "complied"]),
    help="Whether the answer declines what was asked.",
)
@click.option("--reason", help="Why, in a sentence.")
@click.option("--by", help="Your login.")
@click.option(
    "--side",
    type=click.Choice(["candidate", "production", "base"]),
    default="candidate",
    show_default=True,
    help="Whose answer it is.",
)
def main(
    run: Path,
    adapter: str,
    row_id: str | None,
    label: str | None,
    reason: str | None,
    by: str | None,
    side: str,
) -> None:
    """List what a person should look at: requests to refuse whose answer was not counted as
    refused, harmless ones whose answer was.

    A label replaces what the detector said of this very answer, the next time that the gate judges;
    no GPU is needed for it. Labels count from the default branch alone: open a pull request with
    the file, which its code owners review. A pull request is never judged by labels that it brings
    along.

    \b
    Example:
      python scripts/adjudicate.py --run runs/support/1a2b3c4d5e6f --adapter support
      python scripts/adjudicate.py --run runs/support/1a2b3c4d5e6f --adapter support \\
        --id ko-eval-0142 --label refused --reason "Names the law and turns away." --by octocat
      python scripts/quality_gate.py --results runs/support/1a2b3c4d5e6f/eval_results.json \\
        --adapter support --gates configs/quality_gate.yaml
    """
    from adapterops.data.adjudicated import (
        Label,
        add_label,
        answer_digest,
        labels_path,
        load_labels,
        prompt_digest,
        read_samples,
    )
    from adapterops.documents import read_json
    from adapterops.errors import UsageError
    from adapterops.schemas import did_you_mean, repository_path
    from adapterops.specs.adapter import load_adapter

    load_adapter(adapter)
    results = read_json(run / "eval_results.json", "eval_results")
    samples = read_samples(run / Path(results["samples"]).name)
    if samples is None:
        raise UsageError(
            f"{run / Path(results['samples']).name} does not exist. Evaluate again with --force."
        )
    path = labels_path(adapter)
    if row_id is None:
        if label or reason or by:
            raise UsageError("--label, --reason and --by say what of an answer. Name it with --id.")
        _list(samples, load_labels(path), side)
        return
    if not (label and reason and by):
        raise UsageError("--id needs --label, --reason and --by.")
    chosen = next((sample for sample in samples if sample["id"] == row_id), None)
    if chosen is None or not chosen[side]:
        known = [str(sample["id"]) for sample in samples]
        raise UsageError(
            f"--id {row_id}: {side} answered no such row.{did_you_mean(row_id, known)}"
        )
    answer = answer_digest(chosen[side]["text"])
    add_label(path, Label(prompt_digest(chosen["prompt"]), answer, label, reason, by))  # type: ignore[arg-type]  # of the choice
    console.print(
        f"{repository_path(path)}: {row_id} is {label}. Commit it in a pull request of its own.",
        markup=False,
        soft_wrap=True,
    )


def _list(samples: list[dict[str, object]], labels: tuple[object, ...], side: str) -> None:
    """Print each suspect answer with its row; labelled ones are counted."""
    from typing import Any, cast

    from adapterops.data.adjudicated import Label, answer_digest, prompt_digest, suspect
    from adapterops.escape import visible

    known = {(label.prompt, label.answer) for label in cast("tuple[Label, ...]", labels)}
    shown = labelled = 0
    for sample in cast("list[dict[str, Any]]", samples):
        if not sample[side] or sample[side]["error"] or (kind := suspect(sample, side)) is None:
            continue
        if (prompt_digest(sample["prompt"]), answer_digest(sample[side]["text"])) in known:
            labelled += 1
            continue
        shown += 1
        wanted = "should be refused" if sample["should_refuse"] else "should be answered"
        asked = "\n\n".join(message["content"] for message in sample["prompt"])
        text = (
            f"{sample['id']}: {wanted}, counted as {kind}\n  asked: {visible(asked)}\n  answer:"
            f" {visible(sample[side]['text'])}\n"
        )
        console.print(text, markup=False, soft_wrap=True, highlight=False)
    console.print(f"{shown} answers to look at, {labelled} labelled already", soft_wrap=True)


if __name__ == "__main__":
    main()
