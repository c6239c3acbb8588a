"""Evaluate an adapter through a real vLLM server, beside the one in production and its base model.

`evaluate_once` reads downward: read and check, ask every side, score, write.
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
from adapterops.evaluate.detector import (
    Judge,
    Told,
    detector_figures,
    judge_model,
    parse_judge,
    refusals,
)
from adapterops.evaluate.phases import Phases, Side
from adapterops.evaluate.production import NONE, Production
from adapterops.evaluate.responses import Responses
from adapterops.evaluate.samples import sample
from adapterops.evaluate.scores import Score, columns, row_metrics, score
from adapterops.evaluate.winrate import win_rate
from adapterops.schemas import ROOT, repository_path
from adapterops.shapes.eval_results import (
    Columns,
    EvalResults,
    EvaluationData,
    Extension,
    GeneralSets,
    KeyInputs,
    Metrics,
    WinRate,
)
from adapterops.shapes.eval_row import EvalRow
from adapterops.shapes.train_manifest import TrainManifest
from adapterops.specs.adapter import General
from adapterops.specs.base_model import find_base_model
from adapterops.specs.metric_catalogue import METRIC_IDS, Reference, SideName
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
) -> tuple[EvalResults, bool]:
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
        The results, and whether they were there already.

    Raises:
        UsageError: `model` is not an adapter directory, or no serving configuration fits.
        RejectedError: the evaluation rows are invalid.
        InfrastructureError: the engine does not start or does not answer.
    """
    asked = _asked(model, data, settings, production, serving)
    samples_path = _samples_path(output)
    if not force and (known := _already_known(asked, output, samples_path)):
        return known, True
    started = time.monotonic()
    with (
        _engine(asked.config, server_url, server_wait_s, output, console) as url,
        Responses(responses or output.with_name("responses.sqlite"), fresh=force) as answers,
    ):
        sides = _ask_every_side(asked, url, answers, console)
        judge = parse_judge(settings.refusal_judge, url, asked.base_model)
        scores, told = _scores(asked.drawn, sides, judge, asked.general)
        _say_slow(asked.drawn, scores, console)
        judge = parse_judge(settings.win_rate_judge, url, asked.base_model)
        wins, judged = _wins(asked, sides, judge, answers) if judge else (None, None)
    found = Found(sides, scores, told, wins, judged, time.monotonic() - started)
    results = _results(asked, found, samples_path.name)
    write_bytes(samples_path, _sample_lines(asked, found).encode())
    write_json(output, results, EvalResults)
    return results, False


@dataclass(frozen=True)
class Asked:
    """What is evaluated, on what and how: read and checked before anything is generated.

    Args:
        model: the adapter's directory.
        manifest: of its training.
        data: where the rows come from.
        settings: how to evaluate.
        production: the adapter to compare with.
        config: with which the engine is started.
        rows: of the adapter's own domain.
        extension: further ones.
        general_rows: outside of its domain.
        texts: likewise.
        general_sets: the files of both.
        key_inputs: what determines the measurements.
    """

    model: Path
    manifest: TrainManifest
    data: Data
    settings: Settings
    production: Production
    config: ServingConfig
    rows: list[Row[EvalRow]]
    extension: list[Row[EvalRow]]
    general_rows: list[Row[EvalRow]]
    texts: list[Row[EvalRow]]
    general_sets: GeneralSets
    key_inputs: KeyInputs

    @property
    def key(self) -> str:
        """Equal keys mean equal measurements."""
        return sha256_json(self.key_inputs)

    @property
    def base_model(self) -> str:
        """Its name."""
        return self.config.base_model.name

    @property
    def drawn(self) -> list[Row[EvalRow]]:
        """All rows that are asked, in order."""
        return [*self.rows, *self.general_rows, *(self.extension if self.data.draw else [])]

    @property
    def general(self) -> range:
        """Places of the general rows among all."""
        return range(len(self.rows), len(self.rows) + len(self.general_rows))


@dataclass(frozen=True)
class Found:
    """What the sides answered, and what it is worth.

    Args:
        sides: answers by side.
        scores: scores by side, one a row.
        told: what detector and judge of refusals did.
        wins: of the candidate, one a row; None without a judge.
        judged: what that judge did.
        seconds: of all of it.
    """

    sides: dict[SideName, Side]
    scores: dict[SideName, list[Score | None]]
    told: Told
    wins: list[float | None] | None
    judged: WinRate | None
    seconds: float


def _asked(
    model: Path, data: Data, settings: Settings, production: Production, serving: Path | None
) -> Asked:
    """Read what the evaluation is of, and refuse what cannot be evaluated."""
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
    for name in (settings.refusal_judge, settings.win_rate_judge):
        parse_judge(name, "", "")  # one that cannot be meant is said now, not after the answers
    rows = load_rows(data.path, "eval")
    extension = load_rows(data.extension, "eval") if data.extension else []
    general_rows, texts = load_general(data.general)
    general_sets = described(data.general)
    _refuse_formats(data.path, rows)
    if data.extension:
        _refuse_formats(data.extension, extension)
    config = _serving_config(manifest, model, serving)
    return Asked(
        model,
        manifest,
        data,
        settings,
        production,
        config,
        rows,
        extension,
        general_rows,
        texts,
        general_sets,
        _key_inputs(digest, data, settings, production, config, general_sets),
    )


def _key_inputs(
    digest: str,
    data: Data,
    settings: Settings,
    production: Production,
    config: ServingConfig,
    general_sets: GeneralSets,
) -> KeyInputs:
    return {
        **_scope(config, settings),
        "adapter": digest,
        "production": production.digest,
        "data": sha256_file(data.path),
        "extension": (
            {"sha256": sha256_file(data.extension), "drawn": data.draw} if data.extension else None
        ),
        "general": {
            "rows": [[file["sha256"], file["asked"]] for file in general_sets["rows"]],
            "texts": [[file["sha256"], file["asked"]] for file in general_sets["texts"]],
        },
        "speed": {
            "requests": settings.latency_requests,
            "concurrency": settings.latency_concurrency,
        },
        "metrics": METRIC_IDS,
        "refusal_judge": settings.refusal_judge,
        "win_rate_judge": judge_model(settings.win_rate_judge),
    }


def _scope(config: ServingConfig, settings: Settings) -> KeyInputs:
    """What determines an answer besides adapter and prompt."""
    return {
        "base_model": config.base_model.key_inputs(),
        "decoding": {"temperature": 0, "max_tokens": settings.max_tokens},
        "engine": {"version": engine_version(), "dtype": config.engine.dtype},
    }


def _samples_path(output: Path) -> Path:
    """Beside the results: `eval_results.json` has `eval_samples.jsonl`."""
    path = output.with_name(output.stem.replace("results", "samples") + ".jsonl")
    return output.with_name(f"{output.stem}_samples.jsonl") if path.stem == output.stem else path


def _already_known(asked: Asked, output: Path, samples: Path) -> EvalResults | None:
    """The results of this very evaluation, if they are there.

    One with the extension rows answers what one without them asks: they are drawn once.
    """
    enough = {asked.key}
    if registered := asked.key_inputs["extension"]:
        drawn: KeyInputs = {**asked.key_inputs, "extension": {**registered, "drawn": True}}
        enough.add(sha256_json(drawn))
    if samples.is_file():
        with contextlib.suppress(UsageError):
            results = read_json(output, EvalResults)
            if results["eval_key"] in enough:
                return results
    return None


def _ask_every_side(
    asked: Asked, url: str, known: Responses, console: Console
) -> dict[SideName, Side]:
    settings, production = asked.settings, asked.production
    phases = Phases(
        url,
        [prompt_messages(row.value) for row in asked.drawn],
        _scope(asked.config, settings),
        settings.max_tokens,
        settings.latency_requests,
        settings.latency_concurrency,
        known,
        console,
        timed=len(asked.rows),
        texts=[row.value["expected_output"] for row in asked.texts],
    )
    base = phases.base(asked.base_model)  # first: a probe is an answer that is not its
    loading: dict[SideName, tuple[str, Path]] = {
        "candidate": (asked.manifest["adapter"]["digest"], asked.model)
    }
    if production.directory and production.digest:
        loading["production"] = (production.digest, production.directory)
    return {**phases.adapters(loading, base), "base": base}


def _results(asked: Asked, found: Found, samples: str) -> EvalResults:
    """The document, from what was asked and what was found."""
    sides, rows = found.sides, asked.drawn
    columns_of = _columns(found)
    metrics = _metrics(asked, sides, columns_of)
    concurrency, row_slices = asked.settings.latency_concurrency, slices(rows, asked.general)
    theirs = sides.get("production")
    return {
        "schema": "eval_results/v1",
        "eval_key": asked.key,
        "key_inputs": asked.key_inputs,
        "adapter": {
            "digest": asked.manifest["adapter"]["digest"],
            "training_key": asked.manifest["training_key"],
            "base_model": asked.base_model,
        },
        "production": {
            "name": asked.production.digest[:12] if asked.production.digest else None,
            "digest": asked.production.digest,
            "note": asked.production.note,
        },
        "evaluation_data": _evaluation_data(asked),
        "metrics": metrics["candidate"],
        "production_metrics": metrics.get("production"),
        "base_metrics": metrics["base"],
        "slices": row_slices,
        "slice_metrics": record.slice_metrics(row_slices, columns_of),
        "observations": {
            "groups": record.groups(rows),
            "texts": record.texts(asked.texts, sides),
            "candidate": columns_of["candidate"],
            "production": columns_of.get("production"),
            "base": columns_of["base"],
            "speed": {
                "candidate": record.speed(sides["candidate"], concurrency),
                "production": record.speed(theirs, concurrency) if theirs else None,
            },
        },
        "failed": {
            name: sum(answer.error is not None for answer in side.answers)
            for name, side in sides.items()
        },
        "refusal_detector": {**detector_figures(), **found.told},
        "win_rate": found.judged,
        "engine": {
            "version": engine_version(),
            "dtype": asked.config.engine.dtype,
            "device": device_name(),
        },
        "probes": record.probes(rows, sides),
        "samples": samples,
        "seconds": {
            **{name: round(side.seconds, 2) for name, side in sides.items()},
            "total": round(found.seconds, 2),
        },
    }


def _evaluation_data(asked: Asked) -> EvaluationData:
    extension: Extension | None = None
    if asked.data.extension:
        extension = {
            "path": repository_path(asked.data.extension),
            "sha256": sha256_file(asked.data.extension),
            "rows": len(asked.extension),
        }
    return {
        "path": repository_path(asked.data.path),
        "sha256": sha256_file(asked.data.path),
        "rows": len(asked.rows),
        "extension": extension,
        "general": asked.general_sets,
    }


def _columns(found: Found) -> dict[SideName, Columns]:
    """What was observed, by side and metric."""
    wins: Columns = {} if found.wins is None else {"win_rate": found.wins}
    return {
        side: columns(scores, wins if side == "candidate" else None)
        for side, scores in found.scores.items()
    }


def _metrics(
    asked: Asked, sides: dict[SideName, Side], observed: dict[SideName, Columns]
) -> dict[SideName, Metrics]:
    found: dict[SideName, Metrics] = {}
    for name, side in sides.items():
        found[name] = {
            **row_metrics(observed[name]),
            **record.loss_metrics(side, sides["base"]),
            **record.speed_metrics(side),
        }
        floor = record.floor(asked.drawn, side.answers, asked.key, asked.general)
        if floor is not None and "rouge_l" in found[name]:
            found[name]["rouge_l"]["floor"] = floor
    return found


def _sample_lines(asked: Asked, found: Found) -> str:
    rows = asked.drawn
    wins = found.wins or [None] * len(rows)
    lines = (
        sample(row, i, found.sides, found.scores, wins[i], general=i in asked.general)
        for i, row in enumerate(rows)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


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
    rows: list[Row[EvalRow]], scores: dict[SideName, list[Score | None]], console: Console
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


def _serving_config(manifest: TrainManifest, model: Path, serving: Path | None) -> ServingConfig:
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
    asked: Asked, sides: dict[SideName, Side], judge: Judge, known: Responses
) -> tuple[list[float | None], WinRate]:
    """Wins on the rows of the adapter's own domain, over production or else the base model.

    General rows are not what it was made for, and have None.
    """
    rows, against = asked.drawn, _against(sides)
    own = [i for i in range(len(rows)) if i not in asked.general]
    mine, other = ([sides[name].answers[i] for i in own] for name in ("candidate", against))
    found, about = win_rate([rows[i] for i in own], mine, other, judge, against, known)
    by_place = dict(zip(own, found, strict=True))
    return [by_place.get(i) for i in range(len(rows))], about


def _against(sides: dict[SideName, Side]) -> Reference:
    return "production" if "production" in sides else "base"


def _scores(
    rows: list[Row[EvalRow]], sides: dict[SideName, Side], judge: Judge | None, general: range
) -> tuple[dict[SideName, list[Score | None]], Told]:
    """Scores of every side, and what was done about refusals.

    A failed answer of the candidate is a miss; one of the others leaves the row out of the
    comparison.
    """
    texts = [prompt_text(row.value) for row in rows]
    cases = [
        (text, answer)
        for side in sides.values()
        for text, answer in zip(texts, side.answers, strict=True)
    ]
    refused, told = refusals(cases, judge)
    scores: dict[SideName, list[Score | None]] = {}
    for position, (name, side) in enumerate(sides.items()):
        shared_checker().forget()  # who was slow before is no reason to hurry this side
        outcomes = refused[position * len(rows) : (position + 1) * len(rows)]
        scores[name] = [
            None
            if answer.error and name != "candidate"
            else score(row, answer, refused=outcome, general=i in general)
            for i, (row, answer, outcome) in enumerate(
                zip(rows, side.answers, outcomes, strict=True)
            )
        ]
    return scores, told
