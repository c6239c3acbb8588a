"""Judge a candidate by the default branch's rules."""

from __future__ import annotations

import start  # noqa: F401  first: it enters .venv

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterops.command import EXISTING_DIRECTORY, OUTPUT_PATH, command, console

if TYPE_CHECKING:
    from adapterops.specs.adapter import AdapterSpec
    from adapterops.specs.policy import Policy


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
    from adapterops.errors import UsageError
    from adapterops.schemas import ROOT
    from adapterops.specs.adapter import run_directory

    own = adapter_keys(adapter, ROOT)
    run = run_directory(runs, own.spec, own.training)
    report = run / "main" / "gate_report.json"
    report.unlink(missing_ok=True)  # that of other rules says nothing today
    root = main_copy.resolve()
    if not (root / "adapters" / f"{adapter}.yaml").is_file():
        console.print(f"{adapter} is not on the default branch: it has no rules to judge by")
        return 0
    try:
        rules = _rules(adapter, root)
    except UsageError as error:  # a pull request may mend it; the comment has it as an ERROR
        _say(
            f"{adapter} cannot be judged by the default branch's rules, which are broken there:"
            f" {error}"
        )
        return 0
    otherwise = _measured_otherwise(run, rules.spec)
    if not otherwise and _bars(own.spec) == _bars(rules.spec):
        console.print(f"{adapter}: gates and evaluation rows are those of the default branch")
        return 0
    asked = rules.spec if otherwise else own.spec
    evaluate = _evaluation(asked, run, runs, server_url, beside=bool(otherwise))
    if otherwise:
        _check_contamination(own.spec, rules, run / "main" / "data_report.json")
        if _call(evaluate) != 0:
            return 3
    measured = run / "main" if otherwise else run
    return _judge(rules.spec, root, measured, report, evaluate)


@dataclass(frozen=True)
class Rules:
    """What the default branch asks of an adapter and of its data."""

    spec: AdapterSpec
    policy: Policy


def _rules(adapter: str, root: Path) -> Rules:
    """The default branch's rules, all of them read.

    Raises:
        UsageError: one is broken there.
    """
    from adapterops.candidates.keys import adapter_keys
    from adapterops.specs.gate import load_gates
    from adapterops.specs.policy import load_policy

    spec = adapter_keys(adapter, root).spec
    policy = load_policy(root / "configs" / "data_policy.yaml")
    load_gates(spec.evaluation.gate)
    return Rules(spec, policy)


def _measured_otherwise(run: Path, spec: AdapterSpec) -> list[str]:
    """What of the pull request's own evaluation is not as the default branch asks."""
    from adapterops.documents import read_json
    from adapterops.gate.measurement import measured_otherwise
    from adapterops.shapes.eval_results import EvalResults

    return measured_otherwise(read_json(run / "eval_results.json", EvalResults), spec)


def _check_contamination(own: AdapterSpec, rules: Rules, output: Path) -> None:
    """Whether the pull request trains on rows of the default branch's, which would show memory.

    It may have put others in their place in its own evaluation.
    """
    from adapterops.data.validate import validate, write_report

    judged_on = rules.spec.judged_on
    found = validate(list(own.training_data), judged_on, base_model=None, policy=rules.policy)
    write_report(output, found)


def _judge(
    spec: AdapterSpec, root: Path, measured: Path, report: Path, evaluate: list[object]
) -> int:
    """Judge what was measured, with the extension rows where the first ones decide nothing."""
    from adapterops.documents import read_json
    from adapterops.shapes.gate_report import GateReport

    gate: list[object] = ["quality_gate.py", "--results", measured / "eval_results.json"]
    gate += ["--gates", spec.evaluation.gate, "--output", report]
    # The specification of main too: it pins the rows.
    gate += ["--adapter", spec.name, "--adapters", root / "adapters"]
    gate += ["--data-report", measured / "data_report.json"]
    judged = _call(gate)
    if judged in (0, 1) and read_json(report, GateReport)["extension"]["wanted"]:
        console.print("The first rows do not decide; the extension rows are drawn, once.")
        if _call([*evaluate, "--draw-extension"]) != 0:
            return 3
        judged = _call(gate)
    if judged not in (0, 1):
        return 3
    verdict = read_json(report, GateReport)
    _say(
        f"By the default branch's rules {spec.name} would be {verdict['verdict']}:"
        f" {verdict['reason']}"
    )
    return 0


def _say(line: str) -> None:
    from adapterops.escape import inline
    from adapterops.gitops.outputs import summarize

    console.print(line, markup=False, soft_wrap=True)
    summarize(f"- {inline(line)}")


def _call(arguments: list[object]) -> int:
    """Run a script of this checkout; its exit code."""
    from adapterops.schemas import ROOT

    command_line = [sys.executable, ROOT / "scripts" / str(arguments[0]), *arguments[1:]]
    return subprocess.run([str(part) for part in command_line], check=False).returncode


def _evaluation(
    spec: AdapterSpec, run: Path, runs: Path, server_url: str | None, *, beside: bool
) -> list[object]:
    """The call of evaluate.py as a specification asks; answers that are known are not asked again.

    Against the same adapter in production as the pull request's own evaluation.

    Args:
        spec: the adapter's.
        run: the run's directory.
        runs: where runs are kept.
        server_url: the engine, if one is running.
        beside: whether the results go beside the pull request's own, or in their place.
    """
    from adapterops.documents import read_json
    from adapterops.shapes.eval_results import EvalResults

    how, output = spec.evaluation, run / "main" if beside else run
    call: list[object] = ["evaluate.py", "--model", run / "model"]
    call += ["--eval-data", spec.evaluation_data, "--output", output / "eval_results.json"]
    call += ["--max-tokens", how.max_tokens, "--latency-requests", how.latency_requests]
    call += ["--latency-concurrency", how.latency_concurrency, "--serving", spec.serving]
    call += ["--win-rate-judge", how.win_rate_judge, "--responses", runs / "responses.sqlite"]
    if digest := read_json(run / "eval_results.json", EvalResults)["production"]["digest"]:
        call += ["--production", runs / "releases" / spec.name / f"sha256-{digest}"]
    if spec.extension_data:
        call += ["--extension-data", spec.extension_data]
    call += spec.general.options()
    if server_url:
        call += ["--server-url", server_url, "--server-wait", 300]
    return call


def _bars(spec: AdapterSpec) -> list[object]:
    """What is asked of the measurements."""
    from adapterops.documents import sha256_file

    return [sha256_file(spec.evaluation.gate), spec.pins]


if __name__ == "__main__":
    main()
