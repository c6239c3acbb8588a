"""Threads and processes that sleep while they wait against such that spin.

python tests/benchmarks/threads_cpu.py

Training steps of the demo's recipe, alone and beside a busy process, and answers of the demo's
engine, with and without the plug-in that has vLLM's scheduler sleep; each in a fresh process, since
libgomp reads OMP_WAIT_POLICY when it is loaded. Told nothing, as both are here, its threads spin
for some milliseconds.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]
SPIN = "300000"  # libgomp's own count where it is told nothing, which an empty OMP_WAIT_POLICY does


@click.command()
@click.option(
    "--measure",
    type=click.Choice(["train", "engine"]),
    help="Measure here and print tokens a second (what the script starts).",
)
def main(measure: str | None) -> None:
    """Print tokens a second with threads that spin and with threads that sleep, and their ratio."""
    if measure:
        print(json.dumps({"train": train, "engine": engine}[measure]()))
        return
    compare("train", "alone")
    compare("train", "beside a busy process", busy=True)
    compare("engine", "scheduler sleeps")
    compare("engine", "scheduler polls", VLLM_PLUGINS="cpu_lora,cpu_start")


def compare(what: str, circumstances: str, *, busy: bool = False, **environment: str) -> None:
    """Measure with both kinds of threads under the same circumstances, and print a line for each
    figure."""
    spin = measured(what, {**environment, "OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": SPIN}, busy=busy)
    sleep = measured(what, {**environment, "OMP_WAIT_POLICY": "passive"}, busy=busy)
    for name in spin:
        figures = (
            f"spin {spin[name]:6.1f}  sleep {sleep[name]:6.1f} tok/s "
            f" {sleep[name] / spin[name]:.2f} ×"
        )
        print(f"{name:44} {circumstances:22} {figures}", flush=True)


def measured(what: str, environment: dict[str, str], *, busy: bool) -> dict[str, float]:
    """Tokens a second by name, from a fresh process."""
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, __file__, "--measure", what]
        output = subprocess.run(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        ).stdout
    finally:
        if hog:
            hog.kill()
            hog.wait()
    return json.loads(output.splitlines()[-1])  # type: ignore[no-any-return]


def train() -> dict[str, float]:
    """Forward and backward passes of the demo's recipe."""
    from train_cpu import timed_steps

    return {"training": timed_steps(steps=8)[0]}


def engine(max_tokens: int = 32) -> dict[str, float]:
    """Answers of the demo's engine, four at a time and all at once, of an adapter and of its base
    model."""
    from adapterops.engine.client import greedy_answer, load_adapter
    from adapterops.engine.server import start_engine
    from adapterops.specs.serving import load_serving_config
    from processes import free_port
    from random_adapters import RandomAdapters

    config = load_serving_config(ROOT / "configs/serving.demo.yaml")
    prompts = [
        json.loads(line)["instruction"]
        for line in (ROOT / "data/eval/support.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    speeds = {}
    with tempfile.TemporaryDirectory() as scratch:
        adapter = RandomAdapters(config.base_model).make(Path(scratch) / "adapter", seed=1)
        with start_engine(config, port=free_port(), log=Path(scratch) / "engine.log") as running:
            while running.starting():
                time.sleep(0.5)
            load_adapter(running.url, "adapter", adapter)

            def answers(model: str, at_once: int, asked: list[str]) -> float:
                with ThreadPoolExecutor(at_once) as pool:
                    began = time.perf_counter()
                    said = pool.map(
                        lambda text: greedy_answer(
                            running.url, model, [{"role": "user", "content": text}], max_tokens
                        ),
                        asked,
                    )
                    return sum(answer.tokens for answer in said) / (time.perf_counter() - began)

            answers("adapter", 4, prompts[:4])
            for model in ("adapter", config.base_model.name):
                speeds[f"engine, {model}, 4 at once"] = answers(model, 4, prompts[4:20])
                speeds[f"engine, {model}, 64 at once"] = answers(model, 64, prompts[20:84])
    return speeds


if __name__ == "__main__":
    main()
