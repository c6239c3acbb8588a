"""What LoRA costs the engine: tokens a second of 1, 3 and 8 adapters, as a share of the base's.

    python tests/benchmarks/lora_serving.py --model /tmp/8b --max-lora-rank 64
    python tests/benchmarks/lora_serving.py --model /tmp/8b --max-lora-rank 16

The engine lays room for `max_lora_rank` out, whatever an adapter's own rank is: each largest rank
is an engine of its own. `--model` is a folder that `peers.py model` made. Requests are spread over
the adapters evenly, all in flight at once; the first batch of each kind, which compiles kernels, is
not counted.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

from peers import alone  # noqa: E402
from random_adapter import make_adapter  # noqa: E402

from adapterops.engine.client import load_adapter  # noqa: E402
from adapterops.engine.generate import generate  # noqa: E402
from adapterops.engine.installed import engine_version  # noqa: E402
from adapterops.engine.server import start_engine  # noqa: E402
from adapterops.evaluate.evaluation import device_name  # noqa: E402
from adapterops.specs.serving import load_serving_config  # noqa: E402
from processes import free_port  # noqa: E402


def batch(url: str, names: list[str], count: int, tokens: int, salt: str) -> dict[str, Any]:
    """`count` requests in flight at once over the names: tokens a second, and latency."""
    asked = [names[number % len(names)] for number in range(count)]
    prompts = [
        [{"role": "user", "content": f"{salt} {number}: " + "tell me of the weather. " * 20}]
        for number in range(count)
    ]
    began = time.perf_counter()
    answers = generate(url, asked, prompts, max_tokens=tokens)
    seconds = time.perf_counter() - began
    return {
        "tokens": sum(answer.tokens for answer in answers),
        "failed": sum(bool(answer.error) for answer in answers),
        "tokens_per_second": round(sum(answer.tokens for answer in answers) / seconds, 1),
    }


def main() -> None:
    """Start an engine, load eight adapters, ask."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, required=True, help="folder that peers.py made")
    parser.add_argument("--serving", type=Path, default=ROOT / "configs/serving.yaml")
    parser.add_argument("--max-lora-rank", type=int, default=64)
    parser.add_argument("--ranks", type=int, nargs="+", help="of adapters; default: the largest")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 3, 8])
    parser.add_argument("--requests", type=int, nargs="+", default=[16, 256])
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=2, help="counted batches of each kind")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.9)
    parser.add_argument("--lock", type=Path, help="taken when the engine is up, before it is asked")
    parser.add_argument("--output", type=Path, help="append lines of JSON here too")
    options = parser.parse_args()
    config = load_serving_config(options.serving)
    source = {"type": "directory", "path": str(options.model.absolute())}
    most = max(options.adapters)
    config = dataclasses.replace(
        config,
        base_model=dataclasses.replace(
            config.base_model, source=source, stop_tokens=("<|im_end|>",)
        ),
        engine=dataclasses.replace(
            config.engine,
            max_lora_rank=options.max_lora_rank,
            max_loras=most,
            max_cpu_loras=max(most, config.engine.max_cpu_loras),
            gpu_memory_utilization=options.gpu_memory_utilization,
        ),
    )

    def say(line: dict[str, Any]) -> None:
        text = json.dumps({"max_lora_rank": options.max_lora_rank, **line})
        print(text, flush=True)
        if options.output:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(text + "\n")

    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        ranks = options.ranks or [options.max_lora_rank]
        log = (
            options.output.with_suffix(f".{options.max_lora_rank}.log") if options.output else None
        )
        began = time.monotonic()
        with start_engine(config, port=free_port(), log=log or directory / "engine.log") as engine:
            while engine.starting():
                time.sleep(0.5)
            say(
                {
                    "started_s": round(time.monotonic() - began, 1),
                    "device": device_name(),
                    "engine": engine_version(),
                }
            )
            for rank in ranks:
                for number in range(most):
                    path = make_adapter(
                        directory / f"r{rank}-{number}", config.base_model,
                        options.model / "config.json", rank, seed=number, scale=0.01,
                    )  # fmt: skip
                    load_adapter(engine.url, path.name, path)
            with alone(options.lock):
                base = config.base_model.name
                kinds = [(0, 0, [base])] + [
                    (rank, count, [f"r{rank}-{n}" for n in range(count)])
                    for rank in ranks
                    for count in options.adapters
                ]
                for rank, count, names in kinds:
                    for requests in options.requests:
                        batch(engine.url, names, requests, 16, "warm")
                        for turn in range(options.repeat):
                            said = batch(
                                engine.url, names, requests, options.max_tokens, f"turn {turn}"
                            )
                            say({"rank": rank, "adapters": count, "requests": requests, **said})


if __name__ == "__main__":
    main()
