"""Threads that sleep while they wait against threads that spin, alone and beside a busy process.

python tests/benchmarks/threads_cpu.py

Training steps of the demo's recipe, and answers of the demo's engine, each in fresh processes: libgomp reads OMP_WAIT_POLICY when it is
loaded. Told nothing, as a training is, it spins for some milliseconds; an engine is told to let its threads sleep.
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
@click.option("--measure", type=click.Choice(["train", "engine"]), help="Measure here and print tokens a second (what the script starts).")
def main(measure: str | None) -> None:
    """Print tokens a second of both policies and their ratio, quiet and beside a process that takes a core."""
    if measure:
        print(json.dumps({"train": train, "engine": engine}[measure]()))
        return
    for what in ("train", "engine"):
        for busy in (False, True):
            speeds = {policy: measured(what, policy, busy=busy) for policy in ("default", "passive")}
            beside = "beside a busy process" if busy else "alone"
            for name in speeds["default"]:
                spinning, sleeping = speeds["default"][name], speeds["passive"][name]
                print(f"{name:44} {beside:22} spin {spinning:6.1f}  sleep {sleeping:6.1f} tok/s  {sleeping / spinning:.2f} ×", flush=True)


def measured(what: str, policy: str, *, busy: bool) -> dict[str, float]:
    """Tokens a second by name, from a fresh process."""
    environment = os.environ | ({"OMP_WAIT_POLICY": "passive"} if policy == "passive" else {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": SPIN})
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, __file__, "--measure", what]
        output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout
    finally:
        if hog:
            hog.kill()
            hog.wait()
    return json.loads(output.splitlines()[-1])  # type: ignore[no-any-return]


def train() -> dict[str, float]:
    """Forward and backward passes of the demo's recipe."""
    from train_cpu import timed_steps

    return {"training": timed_steps(steps=3, rows=8)[0]}


def engine(max_tokens: int = 32) -> dict[str, float]:
    """Answers of the demo's engine, four at a time and all at once, of an adapter and of its base model."""
    from adapterops.engine.client import greedy_answer, load_adapter
    from adapterops.engine.server import start_engine
    from adapterops.serving.config import load_serving_config
    from processes import free_port
    from random_adapters import RandomAdapters

    config = load_serving_config(ROOT / "configs/serving.demo.yaml")
    prompts = [json.loads(line)["instruction"] for line in (ROOT / "data/eval/support.jsonl").read_text(encoding="utf-8").splitlines()]
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
                    said = pool.map(lambda text: greedy_answer(running.url, model, [{"role": "user", "content": text}], max_tokens), asked)
                    return sum(answer.tokens for answer in said) / (time.perf_counter() - began)

            answers("adapter", 4, prompts[:4])
            for model in ("adapter", config.base_model.name):
                speeds[f"engine, {model}, 4 at once"] = answers(model, 4, prompts[4:20])
                speeds[f"engine, {model}, 64 at once"] = answers(model, 64, prompts[20:84])
    return speeds


if __name__ == "__main__":
    main()
