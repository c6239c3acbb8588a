"""Judge a candidate by the default branch's rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import EXISTING_DIRECTORY, OUTPUT_PATH, command, console

if TYPE_CHECKING:
    from adapterops.adapters import AdapterSpec


@command()
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option("--main", "main_copy", type=EXISTING_DIRECTORY, required=True, help="The default branch's data, configs and adapters.")
@click.option("--runs", type=OUTPUT_PATH, default=Path("runs"), show_default=True, help="Where runs are kept, by training key.")
@click.option("--server-url", envvar="EVALUATION_SERVER_URL", help="Evaluate through this running vLLM. Default: $EVALUATION_SERVER_URL.")
def main(adapter: str, main_copy: Path, runs: Path, server_url: str | None) -> int:
    """Judge a pull request's adapter by the gates and evaluation rows of the default branch too, where these differ.

    The documents go to main/ in the run directory. The verdict is shown, and does not decide: what a pull request does to the
    rules is for its reviewers to say. Exit 3 if it could not be computed.

    \b
    Example:
      python scripts/take_pull_request.py --head SHA --main-copy .main
      python scripts/judge_by_main.py --adapter support-demo --main .main
    """
    from adapterops.documents import read_json
    from adapterops.errors import UsageError
    from adapterops.gitops.outputs import summarize
    from adapterops.pipeline import run_directory
    from adapterops.plan.keys import adapter_keys
    from adapterops.plan.present import text
    from adapterops.schemas import ROOT

    own = adapter_keys(adapter, ROOT)
    try:
        theirs = adapter_keys(adapter, main_copy.resolve())
    except UsageError:
        console.print(f"{adapter} is not on the default branch, or broken there: it has no rules to judge by")
        return 0
    if _rules(own.spec, ROOT) == _rules(theirs.spec, main_copy.resolve()):
        console.print(f"{adapter}: gates and evaluation rows are those of the default branch")
        return 0
    run = run_directory(runs, own.spec, own.training)
    results, report = run / "main" / "eval_results.json", run / "main" / "gate_report.json"
    how = theirs.spec.evaluation
    evaluate = ["evaluate.py", "--model", run / "model", "--eval-data", theirs.spec.evaluation_data, "--output", results]
    evaluate += ["--max-tokens", how.max_tokens, "--latency-requests", how.latency_requests]
    evaluate += ["--latency-concurrency", how.latency_concurrency, "--serving", theirs.spec.serving]
    evaluate += ["--win-rate-judge", how.win_rate_judge]
    if server_url:
        evaluate += ["--server-url", server_url, "--server-wait", 300]
    gate = ["quality_gate.py", "--results", results, "--gates", how.gate, "--output", report, "--adapter", adapter]
    for arguments, accepted in ((evaluate, (0,)), (gate, (0, 1))):
        command_line = [sys.executable, ROOT / "scripts" / str(arguments[0]), *arguments[1:]]
        code = subprocess.run([str(part) for part in command_line], check=False).returncode
        if code not in accepted:
            return 3
    verdict = read_json(report, "gate_report")
    said = f"By the default branch's rules {adapter} would be {verdict['verdict']}: {verdict['reason']}"
    console.print(said, markup=False, soft_wrap=True)
    summarize(f"- {text(said)}")
    return 0


def _rules(spec: AdapterSpec, root: Path) -> list[str]:
    """What an adapter is judged by, as digests and names; `root` is that of its tree."""
    from dataclasses import asdict

    from adapterops.documents import sha256_file, sha256_json

    how = {key: str(value) for key, value in asdict(spec.evaluation).items() if key != "gate"}
    return [sha256_file(spec.evaluation.gate), sha256_file(spec.evaluation_data), sha256_json(how), str(spec.serving.relative_to(root))]


if __name__ == "__main__":
    main()
