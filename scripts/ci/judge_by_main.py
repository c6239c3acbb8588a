"""Judge a candidate by the default branch's rules."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import EXISTING_DIRECTORY, OUTPUT_PATH, command, console

if TYPE_CHECKING:
    from adapterops.specs.adapter import AdapterSpec


@command()
@click.option("--adapter", required=True, help="An adapter of adapters/, by name.")
@click.option(
    "--main",
    "main_copy",
    type=EXISTING_DIRECTORY,
    required=True,
    help="The default branch's data, configs and adapters.",
)
@click.option(
    "--runs",
    type=OUTPUT_PATH,
    default=Path("runs"),
    show_default=True,
    help="Where runs are kept, by training key.",
)
@click.option(
    "--server-url",
    envvar="EVALUATION_SERVER_URL",
    help="Evaluate through this running vLLM. Default: $EVALUATION_SERVER_URL.",
)
def main(adapter: str, main_copy: Path, runs: Path, server_url: str | None) -> int:
    """Judge a pull request's adapter by the gates and evaluation rows of the default branch too,
    where these differ.

    The documents go to main/ in the run directory. Where gates alone differ, what was measured for
    the pull request's own verdict is judged; else the rows are evaluated anew, against the same
    adapter in production, and it is checked that none of them is trained on. Extension rows are
    drawn once, as for the pull request's own verdict. The verdict is shown, and does not decide:
    what a pull request does to the rules is for its reviewers to say. Exit 3 if it could not be
    computed.

    \b
    Example:
      python scripts/ci/take_pull_request.py --head SHA --main-copy .main
      python scripts/ci/judge_by_main.py --adapter support-demo --main .main
    """
    from adapterops.candidates.keys import adapter_keys
    from adapterops.data.validate import validate, write_report
    from adapterops.documents import read_json
    from adapterops.errors import UsageError
    from adapterops.escape import inline
    from adapterops.gitops.outputs import summarize
    from adapterops.schemas import ROOT
    from adapterops.specs.adapter import run_directory
    from adapterops.specs.gate import load_gates
    from adapterops.specs.policy import load_policy

    own = adapter_keys(adapter, ROOT)
    run = run_directory(runs, own.spec, own.training)
    results, report, data_report = (
        run / "eval_results.json",
        run / "main" / "gate_report.json",
        run / "data_report.json",
    )
    report.unlink(missing_ok=True)  # that of other rules says nothing today
    root = main_copy.resolve()
    if not (root / "adapters" / f"{adapter}.yaml").is_file():
        console.print(f"{adapter} is not on the default branch: it has no rules to judge by")
        return 0
    try:
        theirs = adapter_keys(adapter, root)
        policy = load_policy(root / "configs" / "data_policy.yaml")
        load_gates(theirs.spec.evaluation.gate)
    except (
        UsageError
    ) as error:  # which a pull request may be about to mend; the comment has it as an ERROR
        said = (
            f"{adapter} cannot be judged by the default branch's rules, which are broken there:"
            f" {error}"
        )
        console.print(said, markup=False, soft_wrap=True)
        summarize(f"- {inline(said)}")
        return 0
    evidence = _evidence(own.spec, ROOT) == _evidence(theirs.spec, root)
    if evidence and _bars(own.spec) == _bars(theirs.spec):
        console.print(f"{adapter}: gates and evaluation rows are those of the default branch")
        return 0
    production = read_json(results, "eval_results")["production"]["digest"]
    compared = runs / "releases" / adapter / f"sha256-{production}" if production else None
    if not evidence:
        results, data_report = run / "main" / "eval_results.json", run / "main" / "data_report.json"
        # Rows of main that the pull request trains on would show memory; it may have put others in
        # their place in its own evaluation.
        write_report(
            data_report,
            validate(
                list(own.spec.training_data), theirs.spec.judged_on, base_model=None, policy=policy
            ),
        )
    evaluate = _evaluation(
        own.spec if evidence else theirs.spec,
        run / "model",
        results,
        runs / "responses.sqlite",
        compared,
        server_url,
    )
    if not evidence and _call(evaluate) != 0:
        return 3
    # The specification of main too: it pins the rows.
    gate = [
        "quality_gate.py",
        "--results",
        results,
        "--gates",
        theirs.spec.evaluation.gate,
        "--output",
        report,
        "--adapter",
        adapter,
    ]
    gate += ["--adapters", root / "adapters", "--data-report", data_report]
    judged = _call(gate)
    if judged in (0, 1) and read_json(report, "gate_report")["extension"]["wanted"]:
        console.print("The first rows do not decide; the extension rows are drawn, once.")
        if _call([*evaluate, "--draw-extension"]) != 0:
            return 3
        judged = _call(gate)
    if judged not in (0, 1):
        return 3
    verdict = read_json(report, "gate_report")
    said = (
        f"By the default branch's rules {adapter} would be {verdict['verdict']}:"
        f" {verdict['reason']}"
    )
    console.print(said, markup=False, soft_wrap=True)
    summarize(f"- {inline(said)}")
    return 0


def _call(arguments: list[object]) -> int:
    """Run a script of this checkout; its exit code."""
    from adapterops.schemas import ROOT

    command_line = [sys.executable, ROOT / "scripts" / str(arguments[0]), *arguments[1:]]
    return subprocess.run([str(part) for part in command_line], check=False).returncode


def _evaluation(
    spec: AdapterSpec,
    model: Path,
    output: Path,
    responses: Path,
    production: Path | None,
    server_url: str | None,
) -> list[object]:
    """The call of evaluate.py for an adapter's specification; answers that the pull request's own
    evaluation got are known already.
    """
    how = spec.evaluation
    call: list[object] = [
        "evaluate.py",
        "--model",
        model,
        "--eval-data",
        spec.evaluation_data,
        "--output",
        output,
    ]
    call += ["--max-tokens", how.max_tokens, "--latency-requests", how.latency_requests]
    call += ["--latency-concurrency", how.latency_concurrency, "--serving", spec.serving]
    call += ["--win-rate-judge", how.win_rate_judge, "--responses", responses]
    if production:
        call += ["--production", production]
    if spec.extension_data:
        call += ["--extension-data", spec.extension_data]
    call += spec.general.options()
    if server_url:
        call += ["--server-url", server_url, "--server-wait", 300]
    return call


def _evidence(spec: AdapterSpec, root: Path) -> list[str | None]:
    """What determines the measurements, as digests and names; `root` is that of the adapter's
    tree.
    """
    from dataclasses import asdict

    from adapterops.documents import sha256_file, sha256_json
    from adapterops.specs.serving import load_serving_config

    how = {key: str(value) for key, value in asdict(spec.evaluation).items() if key != "gate"}
    extension = sha256_file(spec.extension_data) if spec.extension_data else None
    dtype = load_serving_config(spec.serving).engine.dtype
    general = [sha256_file(path) for path in (*spec.general.rows, *spec.general.texts)]
    serving = str(spec.serving.relative_to(root))
    return [
        sha256_file(spec.evaluation_data),
        extension,
        *general,
        sha256_json(how),
        serving,
        dtype,
    ]


def _bars(spec: AdapterSpec) -> list[object]:
    """What is asked of the measurements."""
    from adapterops.documents import sha256_file

    return [sha256_file(spec.evaluation.gate), spec.pins]


if __name__ == "__main__":
    main()
