"""The stages in order, on one machine: the same functions that the scripts call."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rich.console import Console

from adapterops.candidates.checkpoints import Remote
from adapterops.candidates.kept import trust_from
from adapterops.data.report_text import print_report
from adapterops.data.validate import validate, write_report
from adapterops.deploy.deploy import deploy
from adapterops.documents import read_json, write_bytes
from adapterops.errors import RejectedError, UsageError
from adapterops.evaluate.evaluation import Data, Settings, evaluate_once
from adapterops.evaluate.production import NONE, Production, production_from_channel
from adapterops.gate.judge import judge_once
from adapterops.gitops.identity import renew_token
from adapterops.report.card import add_losses
from adapterops.report.collect import collect
from adapterops.report.console import print_metrics, print_verdict
from adapterops.report.html import page
from adapterops.shapes.data_report import DataReport
from adapterops.shapes.eval_results import EvalResults
from adapterops.shapes.gate_report import GateReport
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.signing import signer_from
from adapterops.specs.adapter import AdapterSpec, load_adapter, run_directory
from adapterops.specs.policy import load_policy
from adapterops.specs.recipe import Recipe, load_recipe, training_key
from adapterops.specs.serving import load_serving_config
from adapterops.store.objects import ObjectStore, open_store
from adapterops.store.releases import Release, publish
from adapterops.train.cached import train_once

Stage = Literal["validate", "train", "evaluate", "gate", "publish", "deploy"]
# What a later stage needs from memory, the evaluation makes: none after it can be the first.
Begin = Literal["validate", "train", "evaluate"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class _Job:
    """One adapter's way through the stages.

    Args:
        spec: the adapter.
        recipe: its recipe.
        run: directory of this training key's run.
        runs: directory of all runs.
        console: where progress is shown.
        bucket: S3 bucket; None takes `$ADAPTER_BUCKET`, else the serving configuration's.
        server_url: a running engine to evaluate through; None starts one.
    """

    spec: AdapterSpec
    recipe: Recipe
    run: Path
    runs: Path
    console: Console
    bucket: str | None
    server_url: str | None

    @property
    def model(self) -> Path:
        """The adapter directory."""
        return self.run / "model"

    def say(self, line: str) -> None:
        """Show a line, whole."""
        self.console.print(line, soft_wrap=True)

    @contextlib.contextmanager
    def stage(self, title: Stage) -> Iterator[_Outcome]:
        """Announce a stage, and say in the end how long it took."""
        started, outcome = time.monotonic(), _Outcome()
        self.console.rule(f"{STAGES.index(title) + 1}/{len(STAGES)} {title}", align="left")
        yield outcome
        seconds = time.monotonic() - started
        cached = "nothing to do, " if outcome.cached else ""
        self.console.print(f"[dim]{title}: {cached}{seconds:.1f} s[/]")


@dataclass
class _Outcome:
    """Whether a stage found its document there already."""

    cached: bool = False


def run_pipeline(
    name: str,
    runs: Path,
    console: Console,
    *,
    server_url: str | None = None,
    gateways: list[str] | None = None,
    bucket: str | None = None,
    checkpoint_bucket: str | None = None,
    begin: Begin = "validate",
    until: Stage = "deploy",
) -> int:
    """Run the stages of one adapter; each does only what an earlier run has not done.

    Args:
        name: an adapter of `adapters/`.
        runs: where runs are kept.
        console: where progress is shown.
        server_url: a running engine to evaluate through; None starts one.
        gateways: serving hosts to deploy to; with none, the pipeline ends after publishing.
        bucket: S3 bucket; None takes `$ADAPTER_BUCKET`, else the serving configuration's.
        checkpoint_bucket: S3 bucket in which a training's checkpoints lie too, or None.
        begin: the first stage to run; what it needs was made by an earlier call.
        until: the last stage to run.

    Returns:
        0, or 1 where data or gate says no.

    Raises:
        UsageError: `begin` comes after `until`, or what it needs is not there.
        AdapterOpsError: see the stages.
    """
    wanted = _wanted(begin, until)
    spec = load_adapter(name)
    recipe = load_recipe(spec.recipe)
    key = training_key(recipe, list(spec.training_data))
    run = run_directory(runs, spec, key)
    job = _Job(spec, recipe, run, runs, console, bucket, server_url)
    job.say(f"adapter [bold]{name}[/], training key {key[:12]}, run {run}")
    if "validate" not in wanted:
        _require_judged(run / "data_report.json")
    elif not _validate(job):
        return 1
    if "train" in wanted:
        _train(job, checkpoint_bucket)
    if "evaluate" not in wanted:
        return 0
    compared = _evaluate(job, until)
    if "gate" not in wanted:
        return 0
    report = _gate(job, compared)
    if report["verdict"] != "PASS":
        return 1
    if "publish" in wanted:
        store, release = _publish(job, report)
        if gateways and "deploy" in wanted:
            with job.stage("deploy"):
                deploy(store, name, release.digest, gateways, spec.rollout, console)
    return 0


def _wanted(begin: Begin, until: Stage) -> tuple[Stage, ...]:
    """The stages from `begin` to `until`.

    Raises:
        UsageError: there are none, or the pipeline cannot begin there.
    """
    if begin not in get_args(Begin):
        raise UsageError(f"--from {begin}: expected one of {', '.join(get_args(Begin))}.")
    first, last = STAGES.index(begin), STAGES.index(until)
    if first > last:
        order = ", ".join(STAGES)
        raise UsageError(f"--from {begin} comes after --until {until}. The order: {order}.")
    return STAGES[first : last + 1]


def checkpoints_in(bucket: str | None) -> Remote | None:
    """Where a training's checkpoints lie too: signed as candidates are, for they become one."""
    if not bucket:
        return None
    return Remote(
        open_store(bucket),
        signer_from(os.environ.get("CANDIDATE_SIGNING_KEY")),
        trust_from(os.environ.get("CANDIDATE_SIGNED_BY")),
        renew=renew_token,
        until_kept=True,
    )


def _validate(job: _Job) -> bool:
    """Judge the data; False if it is refused."""
    with job.stage("validate"):
        report = validate(
            list(job.spec.training_data),
            job.spec.judged_on,
            base_model=job.recipe.base_model,
            policy=load_policy(),
            max_length=job.recipe.training["max_length"],
            console=job.console,
        )
        write_report(job.run / "data_report.json", report)
        print_report(report, job.console)
    return report.passed


_NOT_RUN = "these stages have not run for today's data and recipe. Leave out --from."


def _require_judged(data_report: Path) -> None:
    """The data that is gone on with was accepted.

    Raises:
        UsageError: it was not judged.
        RejectedError: it was refused.
    """
    if not data_report.is_file():
        raise UsageError(f"{data_report} is missing: {_NOT_RUN}")
    if read_json(data_report, DataReport)["verdict"] != "PASS":
        raise RejectedError(f"{data_report}: the data was refused. Mend it, and leave out --from.")


def _train(job: _Job, checkpoint_bucket: str | None) -> None:
    data, remote = list(job.spec.training_data), checkpoints_in(checkpoint_bucket)
    with job.stage("train") as outcome:
        _, outcome.cached = train_once(job.recipe, data, job.model, job.console, remote=remote)
        manifest = _trained(job.model)
        training = manifest["training"]
        job.say(
            f"{training['steps']} steps, final loss {training['final_loss']:.4f},"
            f" {training['tokens_per_second']:.0f} tok/s, peak {training['peak_memory_gib']} GiB,"
            f" adapter sha256-{manifest['adapter']['digest'][:12]}"
        )


def _trained(model: Path) -> TrainManifest:
    """The manifest of the adapter in `model`.

    Raises:
        UsageError: there is none.
    """
    manifest = model / "train_manifest.json"
    if not manifest.is_file():
        raise UsageError(f"{manifest} is missing: {_NOT_RUN}")
    return read_json(manifest, TrainManifest)


def _production(
    spec: AdapterSpec, bucket: str | None, candidate: str, runs: Path, until: Stage
) -> Production:
    """The channel's stable version; without a store, a run that does not publish has none."""
    named = bucket or os.environ.get("ADAPTER_BUCKET")
    if named is None and STAGES.index(until) < STAGES.index("publish"):
        return NONE
    config = load_serving_config(spec.serving)
    store = open_store(named or config.bucket)
    # Where candidates must be signed, so must what they are compared with, by whom hosts trust.
    trust = config.trust if os.environ.get("CANDIDATE_SIGNED_BY") else None
    return production_from_channel(
        store, spec.name, config.base_model.name, runs / "releases", candidate, trust
    )


def _evaluate(job: _Job, until: Stage) -> Production:
    """Measure the adapter; returns what it was compared with."""
    with job.stage("evaluate") as outcome:
        digest = _trained(job.model)["adapter"]["digest"]
        compared = _production(job.spec, job.bucket, digest, job.runs, until)
        job.say(f"production: {compared.note}")
        results, outcome.cached = _measure(job, compared, draw=False)
        print_metrics(results, job.console)
    return compared


def _measure(job: _Job, compared: Production, *, draw: bool) -> tuple[EvalResults, bool]:
    """The results, and whether they were there already; `draw` adds the extension rows."""
    spec, asked = job.spec, job.spec.evaluation
    return evaluate_once(
        job.model,
        Data(spec.evaluation_data, spec.extension_data, draw, spec.general),
        Settings(
            asked.max_tokens,
            asked.latency_requests,
            asked.latency_concurrency,
            win_rate_judge=asked.win_rate_judge,
        ),
        job.run / "eval_results.json",
        job.console,
        production=compared,
        responses=job.runs / "responses.sqlite",
        server_url=job.server_url,
        server_wait_s=load_serving_config(spec.serving).engine.start_timeout_s,
        serving=spec.serving,
    )


def _gate(job: _Job, compared: Production) -> GateReport:
    """Judge the results, on more rows where the first ones do not decide."""
    with job.stage("gate") as outcome:
        report, outcome.cached = _judge(job)
        if report["extension"]["wanted"]:
            job.console.print("The first rows do not decide; the extension rows are drawn, once.")
            _measure(job, compared, draw=True)
            report, outcome.cached = _judge(job)
        print_verdict(report, job.console)
        add_losses(job.model / "README.md", report)
        write_bytes(job.run / "report.html", page(collect(job.run)).encode())
        job.say(f"report: {job.run / 'report.html'}")
    if report["verdict"] != "PASS":
        job.console.print(
            "Nothing is published."
            " See the report's worst answers, mend data or recipe, and run again."
        )
    return report


def _judge(job: _Job) -> tuple[GateReport, bool]:
    return judge_once(
        job.run / "eval_results.json",
        job.spec.evaluation.gate,
        job.run / "gate_report.json",
        pins=job.spec.pins,
        rollout=job.spec.rollout,
        data_report=job.run / "data_report.json",
    )


def _publish(job: _Job, report: GateReport) -> tuple[ObjectStore, Release]:
    with job.stage("publish"):
        store = open_store(job.bucket or load_serving_config(job.spec.serving).bucket)
        release = publish(
            store,
            job.spec.name,
            job.model,
            report,
            _trained(job.model),
            source={"commit": None, "pr": None, "actor": None},
            signer=signer_from(os.environ.get("SIGNING_KEY")),
        )
        job.say(f"{release.uri}: {release.outcome}")
    return store, release
