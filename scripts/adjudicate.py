"""List the answers that decide a refusal gate, and label them."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from adapterops.command import EXISTING_DIRECTORY, command, console

if TYPE_CHECKING:
    from adapterops.data.adjudicated import Label
    from adapterops.shapes.eval_sample import EvalSample
    from adapterops.specs.metric_catalogue import SideName


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
    label: Literal["refused", "complied"] | None,
    reason: str | None,
    by: str | None,
    side: SideName,
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
    from adapterops.data.adjudicated import labels_path, load_labels
    from adapterops.errors import UsageError
    from adapterops.specs.adapter import load_adapter

    load_adapter(adapter)
    samples = _samples(run)
    path = labels_path(adapter)
    if row_id is None:
        if label or reason or by:
            raise UsageError("--label, --reason and --by say what of an answer. Name it with --id.")
        _list(samples, load_labels(path), side)
        return
    if not (label and reason and by):
        raise UsageError("--id needs --label, --reason and --by.")
    _label(path, samples, side, row_id, Said(label, reason, by))


@dataclass(frozen=True)
class Said:
    """What a person says of an answer, why, and who it is."""

    label: Literal["refused", "complied"]
    reason: str
    by: str


def _samples(run: Path) -> list[EvalSample]:
    from adapterops.documents import read_json
    from adapterops.errors import UsageError
    from adapterops.evaluate.samples import read_samples
    from adapterops.shapes.eval_results import EvalResults

    results = read_json(run / "eval_results.json", EvalResults)
    path = run / Path(results["samples"]).name
    samples = read_samples(path)
    if samples is None:
        raise UsageError(f"{path} does not exist. Evaluate again with --force.")
    return samples


def _label(path: Path, samples: list[EvalSample], side: SideName, row_id: str, said: Said) -> None:
    """Write the label of one answer into the adapter's file."""
    from adapterops.data.adjudicated import Label, add_label, answer_digest, prompt_digest
    from adapterops.errors import UsageError
    from adapterops.schemas import did_you_mean, repository_path

    chosen = next((sample for sample in samples if sample["id"] == row_id), None)
    answer = chosen[side] if chosen else None
    if chosen is None or answer is None:
        known = [sample["id"] for sample in samples]
        raise UsageError(
            f"--id {row_id}: {side} answered no such row.{did_you_mean(row_id, known)}"
        )
    prompt, digest = prompt_digest(chosen["prompt"]), answer_digest(answer["text"])
    add_label(path, Label(prompt, digest, said.label, said.reason, said.by))
    console.print(
        f"{repository_path(path)}: {row_id} is {said.label}. Commit it in a pull request of its"
        " own.",
        markup=False,
        soft_wrap=True,
    )


def _list(samples: list[EvalSample], labels: Sequence[Label], side: SideName) -> None:
    """Print each suspect answer with its row; labelled ones are counted."""
    from adapterops.data.adjudicated import answer_digest, prompt_digest, suspect
    from adapterops.escape import visible

    known = {(label.prompt, label.answer) for label in labels}
    shown = labelled = 0
    for sample in samples:
        answer = sample[side]
        if answer is None or answer["error"] or (kind := suspect(sample, answer)) is None:
            continue
        if (prompt_digest(sample["prompt"]), answer_digest(answer["text"])) in known:
            labelled += 1
            continue
        shown += 1
        wanted = "should be refused" if sample["should_refuse"] else "should be answered"
        asked = "\n\n".join(message["content"] for message in sample["prompt"])
        text = (
            f"{sample['id']}: {wanted}, counted as {kind}\n"
            f"  asked: {visible(asked)}\n"
            f"  answer: {visible(answer['text'])}\n"
        )
        console.print(text, markup=False, soft_wrap=True, highlight=False)
    console.print(f"{shown} answers to look at, {labelled} labelled already", soft_wrap=True)


if __name__ == "__main__":
    main()
