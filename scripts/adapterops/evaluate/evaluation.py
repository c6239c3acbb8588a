"""Evaluate an adapter through a real vLLM server, as it will be served, beside the one in
production and the base model.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from adapterops.data.formats import format_problem, shared_checker
from adapterops.data.general_sets import described, load_general
from adapterops.data.reader import Row, load_rows
from adapterops.data.rows import prompt_messages, prompt_text
from adapterops.data.slices import slices
from adapterops.documents import read_json, sha256_file, sha256_json, write_bytes, write_json
from adapterops.engine.client import await_engine, served_version
from adapterops.engine.installed import engine_version
from adapterops.engine.server import start_engine
from adapterops.errors import RejectedError, UsageError
from adapterops.evaluate import record
from adapterops.evaluate.detector import Judge, detector_figures, judge_model, parse_judge, refusals
from adapterops.evaluate.phases import Phases, Side
from adapterops.evaluate.production import NONE, Production
from adapterops.evaluate.responses import Responses
from adapterops.evaluate.scores import Score, columns, row_metrics, score
from adapterops.evaluate.winrate import win_rate
from adapterops.schemas import ROOT, repository_path
from adapterops.shapes.eval_results import EvalResults
from adapterops.shapes.eval_row import EvalRow
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.specs.adapter import General
from adapterops.specs.base_model import find_base_model
from adapterops.specs.metric_catalogue import METRIC_IDS
from adapterops.specs.serving import ServingConfig, load_serving_config
from adapterops.store.releases import adapter_digest

NO_GENERAL = General()  # a gate that asks for a general metric is an ERROR then


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Args:
        max_tokens: longest answer in tokens.
        latency_requests: counted requests of the speed phase.
        latency_concurrency: requests in flight in the speed phase.
        refusal_judge: who is asked about answers that the refusal rules leave open: `base`, `none`
            or `URL#MODEL`.
        win_rate_judge: who says which of two answers is better, named likewise.
    """

    max_tokens: int = 512
    latency_requests: int = 200
    latency_concurrency: int = 1
    refusal_judge: str = "base"
    win_rate_judge: str = "none"


@dataclass(frozen=True)
class Data:
    """The evaluation rows.

    Args:
        path: the evaluation file.
        extension: more rows of the same kind, registered beforehand for a gate that the first rows
            leave open; None is none.
        draw: whether they are drawn now.
        general: rows and texts outside of the adapter's domain, which say what it has lost.
    """

    path: Path
    extension: Path | None = None
    draw: bool = False
    general: General = NO_GENERAL


def evaluate_once(
    model: Path,
    data: Data,
    settings: Settings,
    output: Path,
    console: Console,
    *,
    production: Production = NONE,
    responses: Path | None = None,
    server_url: str | None = None,
    server_wait_s: float = 30,
    serving: Path | None = None,
    force: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Evaluate unless `output` holds the results of this very evaluation.

    Args:
        model: an adapter directory that `train_qlora.py` wrote.
        data: evaluation rows.
        settings: decoding and the speed phase.
        output: results document; the samples go beside it.
        console: where progress is shown.
        production: the adapter to compare with.
        responses: file of answers that were generated before; None keeps one beside `output`.
        server_url: a running engine with runtime LoRA loading, root without `/v1`; None starts one.
        server_wait_s: how long that engine may take to answer at all, for one that is starting.
        serving: the serving configuration to start the engine with; None finds the one for the base
            model.
        force: evaluate although the results are there, and generate every answer anew.

    Returns:
        The results (`configs/schemas/eval_results.json`), and whether they were there already.

    Raises:
        UsageError: `model` is not an adapter directory, or no serving configuration fits.
        RejectedError: the evaluation rows are invalid.
        InfrastructureError: the engine does not start or does not answer.
    """
    manifest = read_json(model / "train_manifest.json", TrainManifest)
    digest = adapter_digest(model)
    if digest != manifest["adapter"]["digest"]:
        raise UsageError(
            f"{model}: the adapter's files were changed after training. Train it again."
        )
    if data.draw and data.extension is None:
        raise UsageError(
            "--draw-extension: no extension rows are registered. Name them with --extension-data."
        )
    for judge_name in (settings.refusal_judge, settings.win_rate_judge):
        parse_judge(
            judge_name, "", ""
        )  # a judge that cannot be meant is said now, and not after the answers
    rows = load_rows(data.path, "eval")
    extension = load_rows(data.extension, "eval") if data.extension else []
    general_rows, texts = load_general(data.general)
    general = range(len(rows), len(rows) + len(general_rows))  # places among all rows
    general_sets = described(data.general)
    _refuse_formats(data.path, rows)
    if data.extension:
        _refuse_formats(data.extension, extension)
    config = _serving_config(manifest, model, serving)
    base_model = config.base_model
    scope = {
        "base_model": base_model.key_inputs(),
        "decoding": {"temperature": 0, "max_tokens": settings.max_tokens},
        "engine": {"version": engine_version(), "dtype": config.engine.dtype},
    }
    registered = (
        {"sha256": sha256_file(data.extension), "drawn": data.draw} if data.extension else None
    )
    key_inputs = {
        **scope,
        "adapter": digest,
        "production": production.digest,
        "data": sha256_file(data.path),
        "extension": registered,
        "general": {
            kind: [[file["sha256"], file["asked"]] for file in files]
            for kind, files in general_sets.items()
        },
        "speed": {
            "requests": settings.latency_requests,
            "concurrency": settings.latency_concurrency,
        },
        "metrics": METRIC_IDS,
        "refusal_judge": settings.refusal_judge,
        "win_rate_judge": judge_model(settings.win_rate_judge),
    }
    key = sha256_json(key_inputs)
    # An evaluation with the extension rows answers what one without them asks: they are drawn once.
    enough = (
        {key, sha256_json({**key_inputs, "extension": {**registered, "drawn": True}})}
        if registered
        else {key}
    )
    samples_path = output.with_name(output.stem.replace("results", "samples") + ".jsonl")
    if samples_path.stem == output.stem:
        samples_path = output.with_name(f"{output.stem}_samples.jsonl")
    if not force and samples_path.is_file():
        with contextlib.suppress(UsageError):
            results = read_json(output, EvalResults)
            if results["eval_key"] in enough:
                return results, True

    drawn = [*rows, *general_rows, *(extension if data.draw else [])]
    prompts = [prompt_messages(row.value) for row in drawn]
    answers_path = responses or output.with_name("responses.sqlite")
    started = time.monotonic()
    with (
        _engine(config, server_url, server_wait_s, output, console) as url,
        Responses(answers_path, fresh=force) as known,
    ):
        phases = Phases(
            url,
            prompts,
            scope,
            settings.max_tokens,
            settings.latency_requests,
            settings.latency_concurrency,
            known,
            console,
            timed=len(rows),
            texts=[row.value["expected_output"] for row in texts],
        )
        base = phases.base(
            base_model.name
        )  # first: a probe is an answer that is not the base model's
        loading = {"candidate": (digest, model)}
        if production.directory and production.digest:
            loading["production"] = (production.digest, production.directory)
        sides: dict[str, Side] = {**phases.adapters(loading, base), "base": base}
        scores, detector = _scores(drawn, sides, settings, url, base_model.name, general)
        _say_slow(drawn, scores, console)
        against = "production" if "production" in sides else "base"
        judge = parse_judge(settings.win_rate_judge, url, base_model.name)
        wins, judged = (
            _wins(drawn, sides["candidate"], sides[against], judge, against, known, general)
            if judge
            else ([], None)
        )

    observed = {
        side: columns(scores[side], {"win_rate": wins} if side == "candidate" else None)
        for side in sides
    }
    metrics = {
        side: {
            **row_metrics(observed[side]),
            **record.loss_metrics(asked, base),
            **record.speed_metrics(asked),
        }
        for side, asked in sides.items()
    }
    for side, asked in sides.items():
        floor = record.floor(drawn, asked.answers, key, general)
        if floor is not None and "rouge_l" in metrics[side]:
            metrics[side]["rouge_l"]["floor"] = floor
    results = {
        "schema": "eval_results/v1",
        "eval_key": key,
        "key_inputs": key_inputs,
        "adapter": {
            "digest": digest,
            "training_key": manifest["training_key"],
            "base_model": base_model.name,
        },
        "production": {
            "name": production.digest[:12] if production.digest else None,
            "digest": production.digest,
            "note": production.note,
        },
        "evaluation_data": {
            "path": repository_path(data.path),
            "sha256": key_inputs["data"],
            "rows": len(rows),
            "extension": (
                {
                    "path": repository_path(data.extension),
                    "sha256": sha256_file(data.extension),
                    "rows": len(extension),
                }
                if data.extension
                else None
            ),
            "general": general_sets,
        },
        "metrics": metrics["candidate"],
        "production_metrics": metrics.get("production"),
        "base_metrics": metrics["base"],
        "slices": slices(drawn, general),
        "observations": {
            "groups": record.groups(drawn),
            "texts": record.texts(texts, sides),
            "candidate": observed["candidate"],
            "production": observed.get("production"),
            "base": observed["base"],
            "speed": {
                name: record.speed(sides.get(name), settings.latency_concurrency)
                for name in ("candidate", "production")
            },
        },
        "failed": {
            side: sum(answer.error is not None for answer in sides[side].answers) for side in sides
        },
        "refusal_detector": {**detector_figures(), **detector},
        "win_rate": judged,
        "engine": {**scope["engine"], "device": device_name()},
        "probes": record.probes(drawn, sides),
        "samples": samples_path.name,
        "seconds": {
            **{side: round(sides[side].seconds, 2) for side in sides},
            "total": round(time.monotonic() - started, 2),
        },
    }
    outcomes = wins or [None] * len(drawn)
    lines = [
        json.dumps(
            record.sample(row, i, sides, scores, outcomes[i], general=i in general),
            ensure_ascii=False,
        )
        for i, row in enumerate(drawn)
    ]
    write_bytes(samples_path, ("\n".join(lines) + "\n").encode())
    write_json(output, results, EvalResults)
    return results, False


def _refuse_formats(path: Path, rows: list[Row[EvalRow]]) -> None:
    """No answer is held to a schema that is out of bounds; said before one is generated."""
    formats = ((row, row.value.get("expected_format")) for row in rows)
    found = [
        (row, problem)
        for row, schema in formats
        if isinstance(schema, dict) and (problem := format_problem(schema))
    ]
    if found:
        listed = "\n".join(
            f"{path}:{row.line}: E110 `expected_format` is not applied: {problem}."
            for row, problem in found[:20]
        )
        raise RejectedError(f"{path} has {len(found)} problems:\n{listed}")


def _say_slow(
    rows: list[Row[EvalRow]], scores: dict[str, list[Score | None]], console: Console
) -> None:
    for side, found in scores.items():
        for row, scored in zip(rows, found, strict=True):
            if scored and scored.format_error:
                name = row.id or f"line {row.line}"
                console.print(
                    f"{name}: expected_format on the {side}'s answer: {scored.format_error}; counts"
                    " as not met",
                    markup=False,
                )


def device_name() -> str:
    """The GPU's name, or `CPU` with the machine's kind; speeds mean nothing without it."""
    if tool := shutil.which("nvidia-smi"):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            query = [tool, "--query-gpu=name", "--format=csv,noheader"]
            names = subprocess.run(
                query, capture_output=True, text=True, timeout=30, check=True
            ).stdout.split("\n")
            return names[0].strip()
    return f"CPU ({platform.machine()})"


@contextlib.contextmanager
def _engine(
    config: ServingConfig,
    server_url: str | None,
    server_wait_s: float,
    output: Path,
    console: Console,
) -> Iterator[str]:
    if server_url:
        url = server_url.rstrip("/").removesuffix("/v1")
        with console.status(f"waiting for {url}"):
            await_engine(url, server_wait_s)
        installed, served = engine_version().split()[1], served_version(url)
        if served is not None and served.partition("+")[0] != installed.partition("+")[0]:
            raise UsageError(
                f"--server-url {url} runs vLLM {served}; {installed} is installed here and would be"
                " recorded. Serve the same version."
            )
        yield url
        return
    log = output.with_name("engine.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with start_engine(config, log=log) as engine:
        with console.status(f"starting vLLM with {config.base_model.name} (log: {log})"):
            while engine.starting():
                time.sleep(0.3)
        yield engine.url


def _serving_config(manifest: dict[str, Any], model: Path, serving: Path | None) -> ServingConfig:
    """The configuration that the adapter is served with; it must fit the adapter."""
    base_model = find_base_model(manifest["base_model"]["name"], f"{model}/train_manifest.json")
    paths = [serving] if serving else sorted((ROOT / "configs").glob("serving*.yaml"))
    configs = [load_serving_config(path) for path in paths]
    config = next((config for config in configs if config.base_model.name == base_model.name), None)
    if config is None and serving:
        raise UsageError(
            f"{serving}: serves {configs[0].base_model.name}, but {model} was trained on"
            f" {base_model.name}."
        )
    if config is None:
        raise UsageError(
            f"no configs/serving*.yaml serves {base_model.name}. Name one with --serving."
        )
    if manifest["adapter"]["rank"] > config.engine.max_lora_rank:
        raise UsageError(
            f"{model}: LoRA rank {manifest['adapter']['rank']} exceeds engine.max_lora_rank"
            f" {config.engine.max_lora_rank} of the serving configuration. Train with a lower"
            " lora.r or raise max_lora_rank there."
        )
    return config


def _wins(
    rows: list[Row[EvalRow]],
    ours: Side,
    theirs: Side,
    judge: Judge,
    against: str,
    known: Responses,
    general: range,
) -> tuple[list[float | None], dict[str, Any]]:
    """Wins on the rows of the adapter's own domain; general rows are not what it was made for, and
    have None.
    """
    own = [i for i in range(len(rows)) if i not in general]
    mine, other = ([side.answers[i] for i in own] for side in (ours, theirs))
    found, about = win_rate([rows[i] for i in own], mine, other, judge, against, known)
    by_place = dict(zip(own, found, strict=True))
    return [by_place.get(i) for i in range(len(rows))], about


def _scores(
    rows: list[Row[EvalRow]],
    sides: dict[str, Side],
    settings: Settings,
    url: str,
    base_model: str,
    general: range,
) -> tuple[dict[str, list[Score | None]], dict[str, Any]]:
    """Scores of every side. A failed answer of the candidate is a miss; one of the others leaves
    the row out of the comparison.
    """
    texts = [prompt_text(row.value) for row in rows]
    cases = [
        (text, answer)
        for side in sides.values()
        for text, answer in zip(texts, side.answers, strict=True)
    ]
    refused, about = refusals(cases, parse_judge(settings.refusal_judge, url, base_model))
    scores: dict[str, list[Score | None]] = {}
    for position, (name, side) in enumerate(sides.items()):
        shared_checker().forget()
        outcomes = refused[position * len(rows) : (position + 1) * len(rows)]
        scores[name] = [
            (
                None
                if answer.error and name != "candidate"
                else score(row.value, answer, refused=outcome, general=i in general)
            )
            for i, (row, answer, outcome) in enumerate(
                zip(rows, side.answers, outcomes, strict=True)
            )
        ]
    return scores, about
