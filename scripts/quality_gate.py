"""Judge an evaluation."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import EXISTING_DIRECTORY, EXISTING_FILE, OUTPUT_PATH, command, console

if TYPE_CHECKING:
    from adapterops.specs.adapter import AdapterSpec


@command()
@click.option("--results", type=EXISTING_FILE, help="Results document that evaluate.py wrote.")
@click.option(
    "--gates",
    type=EXISTING_FILE,
    required=True,
    help="Gate file: thresholds and margins by metric.",
)
@click.option(
    "--output",
    type=OUTPUT_PATH,
    help="Gate report to write. Default: gate_report.json beside RESULTS.",
)
@click.option(
    "--adapter",
    "adapter_name",
    help="An adapter of adapters/: its specification pins the evaluation rows.",
)
@click.option(
    "--adapters",
    type=EXISTING_DIRECTORY,
    help="Where specifications are, of another tree than this one. Default: adapters/.",
)
@click.option(
    "--data-report",
    type=EXISTING_FILE,
    help="What validate_data.py wrote on these rows; a contaminated row is an ERROR.",
)
@click.option(
    "--explain",
    "only_explain",
    is_flag=True,
    help="Judge nothing: say what the gates can decide on the rows of --adapter, or of --results.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Judge anew although OUTPUT holds the verdict of this very evaluation; counted and shown.",
)
def main(
    results: Path | None,
    gates: Path,
    output: Path | None,
    adapter_name: str | None,
    adapters: Path | None,
    data_report: Path | None,
    only_explain: bool,
    force: bool,
) -> int:
    """Judge an evaluation: PASS (exit 0), FAIL, INCONCLUSIVE or ERROR (exit 1).

    \b
    PASS          every gate is met, and nothing is worse than production by more than its margin
    FAIL          a gate is missed
    INCONCLUSIVE  the rows are too few to tell, in a gate that blocks on it
    ERROR         there is no evidence: a metric was not measured, or too little; other rows than
                  the pinned ones; rows that were trained on; failed generations

    With --explain nothing is judged, and the exit is 0: for each gate it says how likely an equally
    good candidate passes, how likely a worse one does not, and how many more rows that takes. With
    --results, how much answers change by chance is taken from them.

    \b
    Examples:
      python scripts/quality_gate.py --results results/eval_support.json \\
          --gates configs/quality_gate.yaml
      python scripts/quality_gate.py --explain --adapter support-ko \\
          --gates configs/quality_gate.yaml
    """
    from adapterops.errors import UsageError
    from adapterops.gate.judge import judge_once
    from adapterops.report.console import print_verdict
    from adapterops.specs.adapter import ADAPTERS, load_adapter

    spec = load_adapter(adapter_name, adapters or ADAPTERS) if adapter_name else None
    if only_explain:
        _explain(gates, spec, results)
        return 0
    if results is None:
        raise UsageError("--results is missing: name what evaluate.py wrote, or ask for --explain.")
    pins = spec.pins if spec else None
    report, cached = judge_once(
        results,
        gates,
        output or results.with_name("gate_report.json"),
        pins=pins,
        data_report=data_report,
        force=force,
    )
    print_verdict(report, console)
    if cached:
        console.print(
            f"The verdict of {report['judged_at']} on this very evaluation; --force judges anew,"
            " which is counted."
        )
    return 0 if report["verdict"] == "PASS" else 1


def _explain(gates: Path, spec: AdapterSpec | None, results: Path | None) -> None:
    from adapterops.documents import read_json
    from adapterops.errors import UsageError
    from adapterops.gate.explain import explain, observed, rows_of
    from adapterops.specs.gate import load_gates

    config = load_gates(gates)
    if results:
        document = read_json(results, "eval_results")
        config, counts = observed(config, document)
        registered = bool(document["evaluation_data"]["extension"])
    elif spec:
        counts, registered = rows_of(spec), bool(spec.extension_data)
    else:
        raise UsageError(
            "--explain needs rows: name an adapter with --adapter, or an evaluation with --results."
        )
    for line in explain(config, counts, registered=registered):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
