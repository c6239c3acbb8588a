"""What evaluating with everything in flight gives over the loop that asks one row after another, on
the same engine in the same run.

    # SmolLM2 on two CPU cores
    python tests/benchmarks/evaluation.py --rows 40 --sequential 8 --max-tokens 64
    python tests/benchmarks/evaluation.py --serving configs/serving.yaml --rows 400 \\
        --sequential 24 --max-tokens 256

The loop's figure is of its requests alone, without scoring. The evaluation's are of
`evaluate_once`, which is what `scripts/evaluate.py`
calls: loading the adapter, the adapter's and the base model's answers to every row, all metrics,
documents on the disk. Its speed phase asks one request after another on purpose, to measure
latency, and is a line of its own. Rows of the loop are not those of the evaluation, whose prompts
the engine's prefix cache would otherwise know.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from random_adapter import make_adapter  # noqa: E402
from rich.console import Console  # noqa: E402

from adapterops.basemodels.materialize import base_model_directory  # noqa: E402
from adapterops.data.reader import load_rows  # noqa: E402
from adapterops.data.rows import prompt_messages  # noqa: E402
from adapterops.engine.client import load_adapter, unload_adapter  # noqa: E402
from adapterops.engine.generate import generate  # noqa: E402
from adapterops.engine.server import start_engine  # noqa: E402
from adapterops.evaluate.evaluation import (  # noqa: E402
    Data,
    Settings,
    device_name,
    engine_version,
    evaluate_once,
)
from adapterops.specs.serving import load_serving_config  # noqa: E402
from processes import free_port  # noqa: E402


class Stopwatch(Console):
    """Notes when each line was printed: evaluation prints one after each phase."""

    def __init__(self) -> None:
        super().__init__(width=200)
        self.marks: list[tuple[str, float]] = []

    def print(self, *objects: Any, **options: Any) -> None:
        self.marks.append((str(objects[0]) if objects else "", time.perf_counter()))
        super().print(*objects, **options)


def write_rows(path: Path, source: Path, count: int, offset: int = 0) -> Path:
    """`count` rows made of the source's, each with a number in front, so that no two prompts are
    the same."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    with path.open("w", encoding="utf-8") as out:
        for number in range(offset, offset + count):
            row = rows[number % len(rows)]
            row = {
                **row,
                "id": f"row-{number}",
                "instruction": f"Case {number}. {row['instruction']}",
            }
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def loop(url: str, name: str, rows: Path, max_tokens: int) -> dict[str, Any]:
    """One request after another, as the loop does: tokens and seconds."""
    prompts = [prompt_messages(row.value) for row in load_rows(rows, "eval")]
    generate(url, name, prompts[:1], max_tokens=8, concurrency=1)
    started = time.perf_counter()
    answers = generate(url, name, prompts, max_tokens=max_tokens, concurrency=1)
    seconds = time.perf_counter() - started
    return figure(
        "loop, one request after another",
        len(answers),
        sum(answer.tokens for answer in answers),
        seconds,
    )


def figure(what: str, answers: int, tokens: int, seconds: float) -> dict[str, Any]:
    return {
        "what": what,
        "answers": answers,
        "tokens": tokens,
        "seconds": round(seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
    }


def evaluation(
    url: str, adapter: Path, options: argparse.Namespace, rows: Path, directory: Path
) -> list[dict[str, Any]]:
    """The whole evaluation and its parts."""
    watch = Stopwatch()
    settings = Settings(
        options.max_tokens,
        options.latency_requests,
        options.latency_concurrency,
        options.refusal_judge,
    )
    started = time.perf_counter()
    results, _ = evaluate_once(
        adapter,
        Data(rows),
        settings,
        directory / "results.json",
        watch,
        server_url=url,
        serving=options.serving,
        server_wait_s=60,
    )
    seconds = time.perf_counter() - started
    at = {text.split(":")[0]: when for text, when in watch.marks}
    speed = at["measuring latency of candidate"] - at["evaluating candidate"]
    lines = [
        json.loads(line)
        for line in (directory / results["samples"]).read_text(encoding="utf-8").splitlines()
    ]
    tokens = {side: sum(line[side]["tokens"] for line in lines) for side in ("candidate", "base")}
    given = len(lines)
    after = seconds - (at["measuring latency of candidate"] - started)
    return [
        figure(
            "evaluation: the adapter's answers",
            given,
            tokens["candidate"],
            results["seconds"]["candidate"],
        ),
        figure(
            "evaluation: the base model's answers",
            given,
            tokens["base"],
            results["seconds"]["base"],
        ),
        {"what": "evaluation: probes, scoring and writing", "seconds": round(after, 2)},
        figure(
            "evaluation, whole but for the speed phase",
            2 * given,
            sum(tokens.values()),
            seconds - speed,
        ),
        {
            "what": f"speed phase, {options.latency_requests} + 2 requests",
            "seconds": round(speed, 2),
        },
        {"what": "evaluation, whole", "seconds": round(seconds, 2), "failed": results["failed"]},
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--serving",
        type=Path,
        default=ROOT / "configs/serving.demo.yaml",
        help="serving configuration",
    )
    parser.add_argument(
        "--server-url", help="a running vLLM (root, without /v1) instead of one that is started"
    )
    parser.add_argument(
        "--adapter",
        type=Path,
        help="adapter directory; default: random weights of the largest rank that is served",
    )
    parser.add_argument(
        "--eval-data",
        type=Path,
        default=ROOT / "data/eval/support.jsonl",
        help="where rows are taken from",
    )
    parser.add_argument("--rows", type=int, default=400, help="of the evaluation")
    parser.add_argument("--sequential", type=int, default=24, help="rows of the loop")
    parser.add_argument("--max-tokens", type=int, default=256, help="longest answer")
    parser.add_argument("--latency-requests", type=int, default=1, help="of the speed phase")
    parser.add_argument("--latency-concurrency", type=int, default=1, help="... of them in flight")
    parser.add_argument("--refusal-judge", default="base", help="as evaluate.py's")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    config = load_serving_config(options.serving)
    with (
        tempfile.TemporaryDirectory(prefix="evaluation-benchmark-") as scratch,
        contextlib.ExitStack() as stack,
    ):
        directory = Path(scratch)
        adapter = options.adapter
        if adapter is None:
            shape = base_model_directory(config.base_model) / "config.json"
            adapter = make_adapter(
                directory / "adapter",
                config.base_model,
                shape,
                config.engine.max_lora_rank,
                seed=1,
                scale=0.01,
            )
        url = options.server_url
        if url is None:
            engine = stack.enter_context(
                start_engine(config, port=free_port(), log=directory / "engine.log")
            )
            while engine.starting():
                time.sleep(0.3)
            url = engine.url
        load_adapter(url, "loop", adapter.resolve())
        found = [
            loop(
                url,
                "loop",
                write_rows(
                    directory / "loop.jsonl", options.eval_data, options.sequential, 100_000
                ),
                options.max_tokens,
            )
        ]
        unload_adapter(url, "loop")
        document = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "device": device_name(),
            "engine": engine_version(),
            "max_tokens": options.max_tokens,
            "figures": found,
        }
        save(options.output, document)
        found += evaluation(
            url,
            adapter,
            options,
            write_rows(directory / "rows.jsonl", options.eval_data, options.rows),
            directory,
        )
    for line in found:
        if "tokens_per_s" in line:
            line["ratio"] = round(line["tokens_per_s"] / found[0]["tokens_per_s"], 1)
    save(options.output, document)
    print(
        f"{document['device']}, {document['engine']}, answers of up to {options.max_tokens} tokens"
    )
    print(f"{'':45} {'answers':>8} {'tokens':>8} {'seconds':>8} {'tok/s':>8} {'x loop':>7}")
    for line in found:
        cells = [
            line.get(name, "") for name in ("answers", "tokens", "seconds", "tokens_per_s", "ratio")
        ]
        print(
            f"{line['what']:45} {cells[0]:>8} {cells[1]:>8} {cells[2]:>8} {cells[3]:>8}"
            f" {cells[4]:>7}"
        )


def save(path: Path | None, document: dict[str, Any]) -> None:
    """Written after each part, so that an interrupted run leaves what it found."""
    if path:
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
