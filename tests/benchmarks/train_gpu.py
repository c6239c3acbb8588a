"""Training speed and memory of QLoRA on the shape of Llama-3.1-8B: real tokens a second, one fresh
process a configuration.

Weights are random (speed does not depend on them) and made in NF4 on the GPU; rows have lognormal
lengths (mean ≈ 480, max 4,096).

    python tests/benchmarks/train_gpu.py    # the table of docs/measurements/training.md
    python tests/benchmarks/train_gpu.py --only fused-2 guide   # some of it
    # a smoke test on the CPU, in a minute
    python tests/benchmarks/train_gpu.py --tiny
    # fused layers against peft's on this machine
    python tests/benchmarks/train_gpu.py --check

It needs torch, transformers, trl, peft, bitsandbytes, accelerate, and for the configurations that
name it liger_kernel.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import importlib.metadata
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from train_seeds import digest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

PACK = 4096
GPU_SHAPE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 128256, "tie_word_embeddings": False,
}  # fmt: skip
SHAPE_70B = {
    **GPU_SHAPE, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64,
}  # fmt: skip
TINY_SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32, "vocab_size": 1024, "tie_word_embeddings": False,
}  # fmt: skip
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# Eight packs, or 32 rows, a step. Every configuration is the one it starts from with what it names
# changed.
PACKED: dict[str, Any] = {
    "packing": True, "attn_implementation": "flex_attention", "liger": True, "fused_lora": False,
    "gradient_checkpointing": True,
    "micro_batch": 2, "pack": PACK, "dropout": 0.05, "optim": "paged_adamw_8bit", "loss": None,
    "keep_dequantized": False, "compile": False,
}  # fmt: skip
FAST = {
    **PACKED,
    "attn_implementation": "varlen",
    "fused_lora": True,
    "gradient_checkpointing": False,
    "micro_batch": 4,
}
LEAST = {**FAST, "gradient_checkpointing": True}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    # the guide's settings
    "guide": {
        **PACKED,
        "packing": False,
        "attn_implementation": "sdpa",
        "liger": False,
        "micro_batch": 4,
        "guide": True,
    },
    # what is public knowledge, piece by piece
    "packed-sdpa": {**PACKED, "attn_implementation": "sdpa"},
    "packed-flex": PACKED,
    "packed-flex-4": {**PACKED, "micro_batch": 4},
    "flex-no-checkpointing-1": {**PACKED, "gradient_checkpointing": False, "micro_batch": 1},
    "flex-no-checkpointing-2": {**PACKED, "gradient_checkpointing": False},
    # one idea at a time, from the line above
    "varlen-2": {**PACKED, "gradient_checkpointing": False, "attn_implementation": "varlen"},
    "varlen-2-no-dropout": {
        **PACKED,
        "gradient_checkpointing": False,
        "attn_implementation": "varlen",
        "dropout": 0.0,
    },
    "varlen-2-chunked-loss": {
        **PACKED,
        "gradient_checkpointing": False,
        "attn_implementation": "varlen",
        "loss": "chunked",
    },
    "varlen-2-compiled": {
        **PACKED,
        "gradient_checkpointing": False,
        "attn_implementation": "varlen",
        "liger": False,
        "compile": True,
    },
    # fused LoRA layers
    "fused-1": {**FAST, "micro_batch": 1},
    "fused-2": {**FAST, "micro_batch": 2},
    "fused-4": FAST,
    "fused-4-chunked-loss": {**FAST, "loss": "chunked"},
    "fused-4-adamw": {**FAST, "optim": "adamw_torch_fused"},
    "fused-4-no-dropout": {**FAST, "dropout": 0.0},
    "fused-2-keep-dequantized": {**FAST, "micro_batch": 2, "keep_dequantized": True},
    "fused-2-pack-8192": {**FAST, "micro_batch": 2, "pack": 2 * PACK},
    "fused-selective-4": {**FAST, "gradient_checkpointing": "selective"},
    "fused-selective-8": {**FAST, "gradient_checkpointing": "selective", "micro_batch": 8},
    # under 24 GB
    "fused-selective-1": {**FAST, "gradient_checkpointing": "selective", "micro_batch": 1},
    "fused-selective-2": {**FAST, "gradient_checkpointing": "selective", "micro_batch": 2},
    "fused-selective-2-no-dropout": {
        **FAST,
        "gradient_checkpointing": "selective",
        "micro_batch": 2,
        "dropout": 0.0,
    },
    "fused-checkpointing-4": {**FAST, "gradient_checkpointing": True},
    # as little as it takes; full checkpointing
    "least-4096": {**LEAST, "micro_batch": 1},
    "least-2048": {**LEAST, "micro_batch": 1, "pack": 2048},
    "least-1024": {**LEAST, "micro_batch": 1, "pack": 1024},
    # one row a step
    **{
        f"row-{size}k": {**LEAST, "micro_batch": 1, "pack": size * 1024, "whole": True}
        for size in (8, 16, 32, 64, 128)
    },
    **{
        f"row-{size}k-selective": {
            **LEAST,
            "micro_batch": 1,
            "pack": size * 1024,
            "whole": True,
            "gradient_checkpointing": "selective",
        }
        for size in (8, 16, 32)
    },
    # Llama-3.1-70B's shape
    "70b-least-4096": {**LEAST, "micro_batch": 1, "shape": SHAPE_70B, "packs_a_step": 2},
    "70b-least-2048": {
        **LEAST,
        "micro_batch": 1,
        "shape": SHAPE_70B,
        "packs_a_step": 4,
        "pack": 2048,
    },
    "70b-selective-1": {
        **LEAST,
        "micro_batch": 1,
        "shape": SHAPE_70B,
        "packs_a_step": 2,
        "gradient_checkpointing": "selective",
    },
}


def rows(
    count: int, vocabulary: int, longest: int, *, whole: bool = False
) -> list[dict[str, list[int]]]:
    """Rows of random tokens, all supervised but the first; lengths lognormal with mean 480 of
    4,096, or all of the longest.
    """
    lengths, tokens = random.Random(0), random.Random(1)
    mu, sigma = 5.77, 0.9  # exp(mu + sigma² / 2) ≈ 480
    made = []
    for _ in range(count):
        length = min(PACK, max(16, round(lengths.lognormvariate(mu, sigma)))) * longest // PACK
        if whole:
            length = longest
        ids = [tokens.randrange(3, vocabulary) for _ in range(max(4, length))]
        made.append({"input_ids": ids, "labels": [-100, *ids[1:]]})
    return made


def random_network(shape: dict[str, Any], attention: str, device: Any) -> Any:
    """A Llama of that shape with random weights, its projections in NF4 with double quantisation,
    made on `device`."""
    import bitsandbytes
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from adapterops.train.kernels.attention import register

    register()
    config = LlamaConfig(
        **shape, max_position_embeddings=131072, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        )
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, torch.nn.Linear) and name in PROJECTIONS:
                weight = torch.randn(child.weight.shape, dtype=torch.bfloat16, device=device) * 0.02
                linear = bitsandbytes.nn.Linear4bit(
                    child.in_features,
                    child.out_features,
                    bias=False,
                    compute_dtype=torch.bfloat16,
                    quant_type="nf4",
                    device="meta",
                )
                linear.weight = bitsandbytes.nn.Params4bit(
                    weight, requires_grad=False, quant_type="nf4", module=linear
                ).to(device)
                setattr(parent, name, linear)
            elif isinstance(child, torch.nn.Linear | torch.nn.Embedding):
                child.weight = torch.nn.Parameter(
                    torch.randn(child.weight.shape, dtype=torch.bfloat16, device=device) * 0.02,
                    requires_grad=False,
                )
            elif "Norm" in type(child).__name__:
                child.weight = torch.nn.Parameter(
                    torch.ones(child.weight.shape, dtype=torch.bfloat16, device=device),
                    requires_grad=False,
                )
    network.model.rotary_emb = type(network.model.rotary_emb)(config).to(device)
    network.is_loaded_in_4bit = True
    return network


def no_tokenizer() -> Any:
    """What TRL asks for and rows of tokens do not need."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")), pad_token="-", eos_token="-"
    )


def measure(
    name: str, options: dict[str, Any], *, tiny: bool, warm: int, timed: int
) -> dict[str, Any]:
    """Train `warm` + `timed` steps in this process and time the latter."""
    import datasets
    import torch
    from transformers import TrainerCallback

    from adapterops.train.memory import Shape, estimate
    from adapterops.train.network import apply_kernels, lora_config
    from adapterops.train.packing import Collator, packed_rows
    from adapterops.train.trainer import AnswerTrainer, training_arguments

    warnings.filterwarnings("ignore")
    on_gpu = torch.cuda.is_available() and not tiny
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    shape = TINY_SHAPE if tiny else options.get("shape", GPU_SHAPE)
    pack = options["pack"] // 32 if tiny else options["pack"]
    if tiny:  # the kernels that a CPU has
        options = {**options, "liger": False, "optim": "adamw_torch", "compile": False}
        options["attn_implementation"] = (
            "sdpa" if options["packing"] else options["attn_implementation"]
        )
    packs_a_step = options.get("packs_a_step", max(1, 8 * PACK // options["pack"]))
    whole = options.get("whole", False)
    accumulation = (packs_a_step if options["packing"] else 32) // options["micro_batch"]
    lora = {
        "r": 8 if tiny else 64,
        "alpha": 128,
        "dropout": options["dropout"],
        "target_modules": PROJECTIONS,
    }
    training = {
        **{key: options[key] for key in ("packing", "attn_implementation", "liger", "fused_lora",
        "gradient_checkpointing", "optim")},
        "keep_dequantized": options["keep_dequantized"], "num_train_epochs": 1,
        "per_device_train_batch_size": options["micro_batch"],
        "gradient_accumulation_steps": accumulation, "learning_rate": 2e-4,
        "lr_scheduler_type": "constant", "warmup_ratio": 0.0,
        "weight_decay": 0.0, "max_grad_norm": 0.3, "train_sampling_strategy": "random",
        "logging_steps": 1000,
    }  # fmt: skip
    steps = warm + timed
    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(
        rows(
            steps * (packs_a_step if whole else 100 if options["packing"] else 32),
            shape["vocab_size"],
            pack if whole else min(pack, PACK // 32 if tiny else PACK),
            whole=whole,
        )
    )
    if options["packing"]:
        data = packed_rows(data, pack)
        data = data.select(range(min(len(data), steps * packs_a_step)))

    started = time.monotonic()
    torch.manual_seed(0)  # equal trainings begin alike
    network = random_network(shape, options["attn_implementation"], device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    if options.get("guide"):
        from peft import get_peft_model, prepare_model_for_kbit_training
        from transformers import Trainer

        network = prepare_model_for_kbit_training(
            network, gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        network = get_peft_model(network, lora_config(lora, network.config.num_hidden_layers))

    collate = Collator(
        0,
        pack if options["packing"] else None,
        variable_length=options["attn_implementation"] == "varlen",
    )
    real: list[int] = []
    padded: list[int] = []

    def collator(batch: list[dict[str, list[int]]]) -> dict[str, Any]:
        real.append(sum(len(row["input_ids"]) for row in batch))
        made = collate(batch)
        padded.append(made["input_ids"].numel())
        if options.get("guide"):
            made = {key: made[key] for key in ("input_ids", "attention_mask", "labels")}
        return made

    ends: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if on_gpu:
                torch.cuda.synchronize()
            ends.append(time.monotonic())

    with tempfile.TemporaryDirectory() as directory:
        guide = options.get("guide", False)
        arguments = training_arguments(
            training,
            0,
            Path(directory),
            max_steps=steps,
            use_cpu=not on_gpu,
            bf16=bool(guide and on_gpu),
        )
        given: dict[str, Any] = {
            "model": network,
            "args": arguments,
            "train_dataset": data,
            "data_collator": collator,
            "callbacks": [Clock()],
        }
        if guide:
            trainer = Trainer(**given)
        else:
            wanted = lora_config(lora, network.config.num_hidden_layers)
            trainer = AnswerTrainer(**given, peft_config=wanted, processing_class=no_tokenizer())
            apply_kernels(
                trainer.model, liger=options["liger"], fused_lora=options["fused_lora"],
                loss=options["loss"],
                selective_checkpointing=options["gradient_checkpointing"] == "selective",
                keep_dequantized=options["keep_dequantized"],
            )  # fmt: skip
        if options["compile"]:
            for layer in trainer.model.get_base_model().model.layers:
                layer.compile()
        loaded = time.monotonic() - started
        began = time.monotonic()
        trainer.train()
        trained = {
            name: value for name, value in trainer.model.named_parameters() if value.requires_grad
        }
    seconds = ends[-1] - (ends[warm - 1] if warm else began)
    first, last = warm * accumulation, steps * accumulation
    tokens = sum(real[first:last])
    predicted = estimate(
        Shape.of(shape),
        {"double_quant": True},
        lora,
        training,
        max(padded),
        float32_copies=bool(options.get("guide")),
    ).training
    result: dict[str, Any] = {
        "name": name,
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_per_step": round(seconds / timed, 3),
        "slowest_step": round(
            max(b - a for a, b in zip([began, *ends][warm:], ends[warm:], strict=False)), 3
        ),
        "real_share": round(tokens / sum(padded[first:last]), 4),
        "tokens_per_micro_batch": max(padded),
        "mean_row": round(statistics.mean(len(row["input_ids"]) for row in data), 1),
        "loss": round(trainer.state.log_history[-1].get("train_loss", float("nan")), 4),
        "load_seconds": round(loaded, 1),
        "predicted_gib": round(predicted / 2**30, 2),
        "weights_sha256": digest(trained)[:16],
    }
    if on_gpu:
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        result["reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
    return result


def check() -> None:
    """Losses and gradients of the fused layers against peft's, on random weights, in bf16."""
    import datasets
    import torch
    from peft import get_peft_model

    from adapterops.train.network import apply_kernels, lora_config
    from adapterops.train.packing import Collator, packed_rows

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = {**TINY_SHAPE, "head_dim": 64, "hidden_size": 256}
    datasets.disable_progress_bars()
    data = packed_rows(
        datasets.Dataset.from_list(rows(40, shape["vocab_size"], 128)), 512
    ).to_list()
    outcomes = {}
    for name, attention, fused, selective, loss, liger in [
        ("peft", "sdpa", False, False, "plain", False),
        ("fused", "sdpa", True, False, "plain", False),
        ("fused, selective", "sdpa", True, True, "plain", False),
        ("chunked loss", "sdpa", False, False, "chunked", False),
        *(
            [("varlen, Liger, fused", "varlen", True, False, None, True)]
            if device.type == "cuda"
            else []
        ),
    ]:
        torch.manual_seed(0)
        lora = lora_config({"r": 8, "alpha": 16, "dropout": 0.0, "target_modules": PROJECTIONS}, 2)
        model = get_peft_model(random_network(shape, attention, device), lora)
        generator = torch.Generator().manual_seed(0)
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
            if "lora_B" in parameter_name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
        apply_kernels(
            model, liger=liger, fused_lora=fused, selective_checkpointing=selective, loss=loss
        )
        batch = Collator(0, 512, variable_length=attention == "varlen")(data[:2])
        batch = {
            key: value.to(device) if hasattr(value, "to") else value
            for key, value in batch.items()
            if key != "labels"
        }
        total = model(**batch)
        total.backward()
        gradients = torch.cat(
            [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
        )
        outcomes[name] = (float(total.detach()), gradients.cpu())
    reference, reference_gradients = outcomes["peft"]
    for name, (value, gradients) in outcomes.items():
        cosine = float(torch.nn.functional.cosine_similarity(gradients, reference_gradients, dim=0))
        print(
            f"{name:24} loss {value:.3f} ({value / reference - 1:+.1e}) |"
            f" gradients: cosine {cosine:.6f},"
            f" norm {float(gradients.norm() / reference_gradients.norm()):.5f} of peft's"
        )


def main() -> None:
    """Run the configurations one after the other and print one JSON line each, then the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help=f"configurations: {', '.join(CONFIGURATIONS)}"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny shape on the CPU")
    parser.add_argument(
        "--check", action="store_true", help="compare the fused layers with peft's and stop"
    )
    parser.add_argument(
        "--warm", type=int, default=2, help="steps before the clock starts (default 2)"
    )
    parser.add_argument("--steps", type=int, default=4, help="timed steps (default 4)")
    parser.add_argument(
        "--timeout", type=float, default=240, help="seconds for one configuration (default 240)"
    )
    parser.add_argument("--lock", type=Path, help="file whose lock keeps trainings apart")
    parser.add_argument("--output", type=Path, help="write the JSON lines here too")
    parser.add_argument(
        "--here", action="store_true", help=argparse.SUPPRESS
    )  # in this process: what the fresh ones are called with
    options = parser.parse_args()
    if options.check:
        check()
        return
    if options.lock:
        held = options.lock.open("w")
        fcntl.flock(held, fcntl.LOCK_EX)
    names = options.only or list(CONFIGURATIONS)
    if unknown := [name for name in names if name not in CONFIGURATIONS]:
        parser.error(f"unknown {', '.join(unknown)}. Known: {', '.join(CONFIGURATIONS)}.")
    if options.here:
        print(
            json.dumps(
                measure(
                    names[0],
                    CONFIGURATIONS[names[0]],
                    tiny=options.tiny,
                    warm=options.warm,
                    timed=options.steps,
                )
            )
        )
        return
    results = []
    for name in names:
        command = [
            sys.executable,
            __file__,
            "--here",
            "--only",
            name,
            "--warm",
            str(options.warm),
            "--steps",
            str(options.steps),
        ]
        command += ["--tiny"] if options.tiny else []
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=options.timeout
            )
            lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
            reason = (done.stderr.strip().splitlines() or ["no output"])[-1][:500]
            result = (
                json.loads(lines[-1])
                if lines and done.returncode == 0
                else {"name": name, "error": reason}
            )
            if "error" in result:
                print(done.stderr[-3000:], file=sys.stderr)
        except subprocess.TimeoutExpired:
            result = {"name": name, "error": f"not done after {options.timeout:.0f} s"}
        results.append(result)
        print(json.dumps(result), flush=True)
        if options.output:
            with options.output.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
    print_table(results, tiny=options.tiny)


def print_table(results: list[dict[str, Any]], *, tiny: bool) -> None:
    """The results as Markdown, with what they were measured on."""
    import torch

    packages = (
        "torch",
        "transformers",
        "trl",
        "peft",
        "bitsandbytes",
        "accelerate",
        "liger_kernel",
    )
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    machine = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available() and not tiny
        else "CPU, tiny shape: no measurement"
    )
    print(f"\n{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {machine}; {', '.join(versions)}\n")
    guide = next(
        (
            result["tokens_per_second"]
            for result in results
            if result["name"] == "guide" and "error" not in result
        ),
        None,
    )
    print(
        "| configuration | real tok/s | × guide | peak GiB | predicted GiB | s/step"
        " |\n|---|---|---|---|---|---|"
    )
    for result in results:
        if "error" in result:
            print(f"| {result['name']} | {result['error']} | | | | |")
            continue
        ratio = f"{result['tokens_per_second'] / guide:.2f}" if guide else "–"
        print(
            f"| {result['name']} | {result['tokens_per_second']:,.0f} | {ratio} |"
            f" {result.get('peak_gib', '–')} | {result['predicted_gib']} |"
            f" {result['seconds_per_step']} |"
        )


if __name__ == "__main__":
    main()
