"""The stages in order, on one machine: the same functions that the scripts call."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

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
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.signing import signer_from
from adapterops.specs.adapter import AdapterSpec, load_adapter, run_directory
from adapterops.specs.policy import load_policy
from adapterops.specs.recipe import Recipe, load_recipe, training_key
from adapterops.specs.serving import load_serving_config
from adapterops.store.objects import open_store
from adapterops.store.releases import publish
from adapterops.train.cached import train_once

STAGES = ("validate", "train", "evaluate", "gate", "publish", "deploy")


def run_pipeline(
    name: str,
    runs: Path,
    console: Console,
    *,
    server_url: str | None = None,
    gateways: list[str] | None = None,
    bucket: str | None = None,
    checkpoint_bucket: str | None = None,
    begin: str = "validate",
    until: str = "deploy",
) -> int:
    """Run the stages of one adapter from `begin` to `until`; each finds what an earlier run left
    and does only what is missing.

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
    first, last = STAGES.index(begin), STAGES.index(until)
    if first > last:
        raise UsageError(
            f"--from {begin} comes after --until {until}. The order: {', '.join(STAGES)}."
        )
    spec = load_adapter(name)
    recipe = load_recipe(spec.recipe)
    data = list(spec.training_data)
    key = training_key(recipe, data)
    run = run_directory(runs, spec, key)
    seconds: dict[str, float] = {}
    console.print(f"adapter [bold]{name}[/], training key {key[:12]}, run {run}", soft_wrap=True)

    def stage(title: str) -> bool:
        """Announce a stage; False if it is not among those asked for."""
        position = STAGES.index(title)
        if not first <= position <= last:
            return False
        seconds[title] = time.monotonic()
        console.rule(f"{position + 1}/{len(STAGES)} {title}", align="left")
        return True

    def done(title: str, cached: bool = False) -> None:
        seconds[title] = time.monotonic() - seconds[title]
        console.print(
            f"[dim]{title}: {'nothing to do, ' if cached else ''}{seconds[title]:.1f} s[/]"
        )

    if stage("validate"):
        passed = _validate(spec, recipe, run, console)
        done("validate")
        if not passed:
            return 1
    else:
        _require_judged(run / "data_report.json")

    model = run / "model"
    if stage("train"):
        _, cached = train_once(
            recipe, data, model, console, remote=checkpoints_in(checkpoint_bucket)
        )
        manifest = _trained(model)
        training = manifest["training"]
        console.print(
            f"{training['steps']} steps, final loss {training['final_loss']:.4f},"
            f" {training['tokens_per_second']:.0f} tok/s, peak {training['peak_memory_gib']} GiB,"
            f" adapter sha256-{manifest['adapter']['digest'][:12]}",
            soft_wrap=True,
        )
        done("train", cached)
    if stage("evaluate"):
        manifest = _trained(model)
        digest = manifest["adapter"]["digest"]
        compared = _production(spec, bucket, digest, runs, until)
        console.print(f"production: {compared.note}", soft_wrap=True)
        results, cached = _evaluate(
            spec, model, run, runs, compared, server_url, console, draw=False
        )
        print_metrics(results, console)
        done("evaluate", cached)
    if not stage("gate"):
        return 0
    gate_report, cached = _judge(spec, run)
    if gate_report["extension"]["wanted"]:
        console.print("The first rows do not decide; the extension rows are drawn, once.")
        _evaluate(spec, model, run, runs, compared, server_url, console, draw=True)
        gate_report, cached = _judge(spec, run)
    print_verdict(gate_report, console)
    add_losses(model / "README.md", gate_report)
    good = gate_report["verdict"] == "PASS"
    write_bytes(run / "report.html", page(collect(run)).encode())
    console.print(f"report: {run / 'report.html'}", soft_wrap=True)
    done("gate", cached)
    if not good:
        console.print(
            "Nothing is published. See the report's worst answers, mend data or recipe, and run"
            " again."
        )
        return 1

    if stage("publish"):
        store = open_store(bucket or _bucket(spec))
        source = {"commit": None, "pr": None, "actor": None}
        signer = signer_from(os.environ.get("SIGNING_KEY"))
        release = publish(store, name, model, gate_report, manifest, source=source, signer=signer)
        console.print(f"{release.uri}: {release.outcome}", soft_wrap=True)
        done("publish")
        if gateways and stage("deploy"):
            deploy(store, name, release.digest, gateways, spec.rollout, console)
            done("deploy")
    return 0


def checkpoints_in(bucket: str | None) -> Remote | None:
    """Where a training's checkpoints lie too: signed as candidates are, for the adapter that comes
    of them will be one.
    """
    if not bucket:
        return None
    return Remote(
        open_store(bucket),
        signer_from(os.environ.get("CANDIDATE_SIGNING_KEY")),
        trust_from(os.environ.get("CANDIDATE_SIGNED_BY")),
        renew=renew_token,
        until_kept=True,
    )


def _validate(spec: AdapterSpec, recipe: Recipe, run: Path, console: Console) -> bool:
    report = validate(
        list(spec.training_data),
        spec.judged_on,
        base_model=recipe.base_model,
        policy=load_policy(),
        max_length=recipe.training["max_length"],
        console=console,
    )
    write_report(run / "data_report.json", report)
    print_report(report, console)
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


def _trained(model: Path) -> dict[str, Any]:
    """The manifest of the adapter in `model`.

    Raises:
        UsageError: there is none.
    """
    manifest = model / "train_manifest.json"
    if not manifest.is_file():
        raise UsageError(f"{manifest} is missing: {_NOT_RUN}")
    return read_json(manifest, TrainManifest)


def _production(
    spec: AdapterSpec, bucket: str | None, candidate: str, runs: Path, until: str
) -> Production:
    """The channel's stable version; a run that stops before publishing needs no store, and then
    compares with nothing.
    """
    named = bucket or os.environ.get("ADAPTER_BUCKET")
    if named is None and STAGES.index(until) < STAGES.index("publish"):
        return NONE
    config = load_serving_config(spec.serving)
    store = open_store(named or config.bucket)
    # Where candidates must be signed, so must be what they are compared with, by whom its hosts
    # trust.
    trust = config.trust if os.environ.get("CANDIDATE_SIGNED_BY") else None
    return production_from_channel(
        store, spec.name, config.base_model.name, runs / "releases", candidate, trust
    )


def _evaluate(
    spec: AdapterSpec,
    model: Path,
    run: Path,
    runs: Path,
    compared: Production,
    server_url: str | None,
    console: Console,
    *,
    draw: bool,
) -> tuple[dict[str, Any], bool]:
    asked = spec.evaluation
    return evaluate_once(
        model,
        Data(spec.evaluation_data, spec.extension_data, draw, spec.general),
        Settings(
            asked.max_tokens,
            asked.latency_requests,
            asked.latency_concurrency,
            win_rate_judge=asked.win_rate_judge,
        ),
        run / "eval_results.json",
        console,
        production=compared,
        responses=runs / "responses.sqlite",
        server_url=server_url,
        server_wait_s=load_serving_config(spec.serving).engine.start_timeout_s,
        serving=spec.serving,
    )


def _judge(spec: AdapterSpec, run: Path) -> tuple[dict[str, Any], bool]:
    output = run / "gate_report.json"
    return judge_once(
        run / "eval_results.json",
        spec.evaluation.gate,
        output,
        pins=spec.pins,
        data_report=run / "data_report.json",
    )


def _bucket(spec: AdapterSpec) -> str:
    return load_serving_config(spec.serving).bucket
