"""This trainer beside those that people would use instead: same GPU, base model, rows, rank.

    python tests/benchmarks/peers.py model --shape 8b --tokenizer DIR --to /tmp/8b
    python tests/benchmarks/peers.py train --peer ours --model /tmp/8b --setting fast
    PYTHONPATH=UNSLOTH python tests/benchmarks/peers.py train --peer unsloth --model /tmp/8b …

`model` writes a Llama of that shape with random weights, as a hub would give it. `train` is one
training in this process, from the files to a saved adapter, and prints one line of JSON: real
tokens a second after the warm-up, peak of allocated and of reserved memory, seconds from the start
of the process to the first step and from the last step to the adapter.

Every peer is set up as its documentation says for packed QLoRA, and all alike in what decides the
work: NF4 with double quantisation, rank 64 on seven projections, no dropout (Unsloth and Axolotl
are fast without alone), packs of 4,096 tokens, eight packs a step, all tokens supervised. Peers
need versions of their own: each is called with its own packages on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import importlib.metadata
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STARTED = time.time()
ROOT = Path(__file__).resolve().parents[2]
PACK, PACKS_A_STEP, RANK = 4096, 8, 64
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": 49152, "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "tie_word_embeddings": True,
    },
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
# What a name of --setting means: packs a micro-batch, and what is recomputed.
SETTINGS: dict[str, dict[str, Any]] = {
    "fast": {"micro_batch": 4, "checkpointing": False},
    "fast-2": {"micro_batch": 2, "checkpointing": False},
    "fast-1": {"micro_batch": 1, "checkpointing": False},
    "selective": {"micro_batch": 2, "checkpointing": "selective"},
    "small": {"micro_batch": 2, "checkpointing": True},
    "small-4": {"micro_batch": 4, "checkpointing": True},
    "small-1": {"micro_batch": 1, "checkpointing": True},
}


def make_model(shape: dict[str, Any], tokenizer: Path, to: Path) -> None:
    """A folder as a hub would give it: bf16 shards of one layer each, configuration, tokenizer."""
    import shutil

    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    to.mkdir(parents=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = LlamaConfig(
        **shape, max_position_embeddings=131072, rms_norm_eps=1e-5, dtype="bfloat16",
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=1, eos_token_id=2, pad_token_id=0, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(to)
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    query = shape["num_attention_heads"] * shape["head_dim"]
    key = shape["num_key_value_heads"] * shape["head_dim"]
    torch.manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return (torch.randn(size, dtype=torch.bfloat16, device=device) * 0.02).cpu()

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    index: dict[str, str] = {}
    size = 0

    def write(number: int, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal size
        name = f"model-{number:05d}.safetensors"
        save_file(tensors, to / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
        size += sum(tensor.nbytes for tensor in tensors.values())

    ends = {"model.embed_tokens.weight": normal(shape["vocab_size"], hidden)}
    ends["model.norm.weight"] = ones()
    if not shape["tie_word_embeddings"]:
        ends["lm_head.weight"] = normal(shape["vocab_size"], hidden)
    write(0, ends)
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        write(
            layer + 1,
            {
                f"{at}.input_layernorm.weight": ones(),
                f"{at}.post_attention_layernorm.weight": ones(),
                f"{at}.self_attn.q_proj.weight": normal(query, hidden),
                f"{at}.self_attn.k_proj.weight": normal(key, hidden),
                f"{at}.self_attn.v_proj.weight": normal(key, hidden),
                f"{at}.self_attn.o_proj.weight": normal(hidden, query),
                f"{at}.mlp.gate_proj.weight": normal(inner, hidden),
                f"{at}.mlp.up_proj.weight": normal(inner, hidden),
                f"{at}.mlp.down_proj.weight": normal(hidden, inner),
            },
        )
    found = {"metadata": {"total_size": size}, "weight_map": index}
    (to / "model.safetensors.index.json").write_text(json.dumps(found))
    for file in tokenizer.iterdir():
        if file.name.startswith(("tokenizer", "special_tokens", "vocab", "merges")):
            shutil.copy(file, to)


def texts(tokenizer: Any, count: int, longest: int) -> list[str]:
    """Rows of random words of one token each; lengths lognormal, mean 480 of 4,096 (as
    `train_gpu.rows`), so that text and tokens are the same rows.
    """
    vocabulary = tokenizer.get_vocab()
    words = sorted(word[1:] for word in vocabulary if word[:1] == "Ġ" and word[1:].isalpha())
    words = [word for word in words if word.isascii()]
    lengths, chosen = random.Random(0), random.Random(1)
    made = []
    for _ in range(count):
        length = min(PACK - 1, max(16, round(lengths.lognormvariate(5.77, 0.9))))
        length = max(4, length * longest // PACK)
        made.append("".join(f" {word}" for word in chosen.choices(words, k=length)))
    return made


class Clock:
    """Ends of steps, tokens of micro-batches: the same for every trainer of transformers' kind."""

    def __init__(self) -> None:
        self.first = 0.0
        self.ends: list[float] = []
        self.tokens: list[int] = []
        self.padded: list[int] = []
        self.losses: list[float] = []

    def callback(self) -> Any:
        import torch
        from transformers import TrainerCallback

        clock = self

        class Ends(TrainerCallback):  # type: ignore[misc]
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.first = clock.first or time.time()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                if on_gpu():
                    torch.cuda.synchronize()
                clock.ends.append(time.time())

            def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
                if logs and "loss" in logs:
                    clock.losses.append(float(logs["loss"]))

        return Ends()

    def counting(self, collate: Callable[..., Any]) -> Callable[..., Any]:
        """`collate`, with the real tokens of what it is given noted."""

        def count(rows: Any) -> int:
            if isinstance(rows, dict) or hasattr(rows, "keys"):
                return len(rows["input_ids"])
            return sum(map(count, rows))

        def counted(rows: Any, *arguments: Any, **options: Any) -> Any:
            self.tokens.append(count(rows))
            batch = collate(rows, *arguments, **options)
            self.padded.append(batch["input_ids"].numel())
            return batch

        return counted

    def count_losses(self, trainer: Any) -> None:
        """Note tokens where the loss is computed: here all real ones are supervised."""
        compute, counts = trainer.compute_loss, self.tokens

        def counted(model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
            counts.append((inputs["labels"] != -100).sum())  # stays on the GPU: nothing waits
            self.padded.append(inputs["labels"].numel())
            return compute(model, inputs, *arguments, **options)

        trainer.compute_loss = counted


@contextlib.contextmanager
def alone(path: Path | None) -> Iterator[float]:
    """Hold the lock that keeps trainings apart; gives the seconds that were waited for it."""
    if path is None:
        yield 0.0
        return
    with path.open("w") as file:
        began = time.time()
        fcntl.flock(file, fcntl.LOCK_EX)
        yield time.time() - began


def on_gpu() -> bool:
    """Whether there is one; without, all but the speed can be tried."""
    import torch

    return torch.cuda.is_available()


Job = tuple[Any, Callable[[Path], None]]  # a trainer, and what saves its adapter


def ours(model: Path, setting: dict[str, Any], steps: int, scratch: Path) -> Job:
    """`configs/qlora/llama3-8b-fast.yaml` through what `train_qlora.py` calls."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import dataclasses

    from transformers import AutoTokenizer

    from adapterops.specs.recipe import load_recipe
    from adapterops.train.artifacts import save_adapter
    from adapterops.train.build import build_trainer

    recipe = load_recipe(ROOT / "configs/qlora/llama3-8b-fast.yaml")
    source = {"type": "directory", "path": str(model)}
    recipe = dataclasses.replace(
        recipe,
        base_model=dataclasses.replace(recipe.base_model, source=source),
        lora={**recipe.lora, "dropout": 0.0},
    )
    training = {
        **recipe.training,
        "per_device_train_batch_size": setting["micro_batch"],
        "gradient_accumulation_steps": PACKS_A_STEP // setting["micro_batch"],
        "gradient_checkpointing": setting["checkpointing"],
        "max_length": setting["pack"],
        "report_to": "none",
    }
    if not on_gpu():
        training |= {"liger": False, "attn_implementation": "sdpa", "optim": "adamw_torch"}
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token_id = 0
    ids = tokenizer(texts(tokenizer, 100 * steps, setting["pack"]), add_special_tokens=False)[
        "input_ids"
    ]
    rows = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids]
    trainer = build_trainer(recipe, training, rows, tokenizer, scratch)
    trainer.args.max_steps = steps

    def save(to: Path) -> None:
        to.mkdir()
        lora = trainer.model.peft_config["default"]
        save_adapter(trainer.adapter_weights(), lora, recipe, to)

    return trainer, save


def sft_arguments(setting: dict[str, Any], steps: int, scratch: Path) -> dict[str, Any]:
    """What TRL and Unsloth are told alike."""
    return {
        "output_dir": str(scratch / "out"), "max_steps": steps, "packing": True,
        "max_length": setting["pack"], "per_device_train_batch_size": setting["micro_batch"],
        "gradient_accumulation_steps": PACKS_A_STEP // setting["micro_batch"],
        "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 0.03,
        "max_grad_norm": 0.3, "bf16": on_gpu(), "use_cpu": not on_gpu(),
        "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "seed": 42, "dataset_text_field": "text",
    }  # fmt: skip


def trl(model: Path, setting: dict[str, Any], steps: int, scratch: Path) -> Job:
    """SFTTrainer as its guides on reducing memory and speeding up say: packed, Liger, NF4.

    They name flash-attention kernels of the Hub, which a machine without a network cannot fetch;
    flex attention is what is left that keeps packed rows apart without a mask. Packs are padded to
    their full size: it is compiled for each size that it meets.
    """
    import datasets
    import torch
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token_id = 0
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    arguments = SFTConfig(
        **sft_arguments(setting, steps, scratch),
        gradient_checkpointing=bool(setting["checkpointing"]),
        use_liger_kernel=on_gpu(),
        optim="paged_adamw_8bit" if on_gpu() else "adamw_torch",
        pad_to_multiple_of=setting["pack"],
        model_init_kwargs={
            "dtype": torch.bfloat16,
            "attn_implementation": setting.get("attention", "flex_attention"),
            "quantization_config": quantization,
        },
    )
    trainer = SFTTrainer(
        model=str(model),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(
            {"text": texts(tokenizer, 100 * steps, setting["pack"])}
        ),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=RANK, lora_alpha=128, lora_dropout=0.0, bias="none", target_modules=PROJECTIONS,
            task_type="CAUSAL_LM",
        ),
    )  # fmt: skip
    return trainer, lambda to: trainer.save_model(str(to))


def unsloth(model: Path, setting: dict[str, Any], steps: int, scratch: Path) -> Job:
    """As Unsloth's notebooks: FastLanguageModel, its checkpointing, packed SFTTrainer."""
    os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
    import datasets
    import torch
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel

    recomputed = "unsloth" if setting["checkpointing"] else False
    network, tokenizer = FastLanguageModel.from_pretrained(
        model_name=str(model),
        max_seq_length=setting["pack"],
        load_in_4bit=True,
        dtype=torch.bfloat16,
    )
    network = FastLanguageModel.get_peft_model(
        network, r=RANK, lora_alpha=128, lora_dropout=0, bias="none", random_state=42,
        target_modules=PROJECTIONS,
        use_gradient_checkpointing=recomputed,
    )  # fmt: skip
    arguments = SFTConfig(
        **sft_arguments(setting, steps, scratch), optim="adamw_8bit" if on_gpu() else "adamw_torch"
    )
    trainer = SFTTrainer(
        model=network,
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(
            {"text": texts(tokenizer, 100 * steps, setting["pack"])}
        ),
        processing_class=tokenizer,
    )
    return trainer, lambda to: network.save_pretrained(str(to))


def axolotl(model: Path, setting: dict[str, Any], steps: int, scratch: Path) -> Job:
    """As `examples/llama-3/lora-1b-kernels.yml`, with NF4, Liger, and flex attention in place of
    flash-attn, which is not installed.
    """
    os.environ["AXOLOTL_DO_NOT_TRACK"] = "1"
    import yaml
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(texts(tokenizer, 100 * steps, setting["pack"]), add_special_tokens=False)[
        "input_ids"
    ]
    with (scratch / "rows.jsonl").open("w") as file:
        for row in ids:
            line = {"input_ids": row, "attention_mask": [1] * len(row), "labels": row}
            file.write(json.dumps(line) + "\n")
    config: dict[str, Any] = {
        "base_model": str(model), "load_in_4bit": True, "adapter": "qlora",
        "datasets": [{"path": str(scratch / "rows.jsonl"), "ds_type": "json"}],
        "dataset_prepared_path": str(scratch / "prepared"), "output_dir": str(scratch / "out"),
        "sequence_len": setting["pack"], "sample_packing": True, "pad_to_sequence_len": True,
        "lora_r": RANK, "lora_alpha": 128, "lora_target_modules": PROJECTIONS,
        "lora_mlp_kernel": True, "lora_qkv_kernel": True, "lora_o_kernel": True,
        "plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rope": True,
        "liger_rms_norm": True, "liger_fused_linear_cross_entropy": True,
        "micro_batch_size": setting["micro_batch"],
        "gradient_accumulation_steps": PACKS_A_STEP // setting["micro_batch"],
        "max_steps": steps, "num_epochs": 1, "optimizer": "adamw_8bit", "lr_scheduler": "cosine",
        "learning_rate": 2e-4, "warmup_ratio": 0.03, "max_grad_norm": 0.3, "bf16": on_gpu(),
        "gradient_checkpointing": bool(setting["checkpointing"]), "val_set_size": 0,
        "attn_implementation": setting.get("attention", "flex_attention"), "logging_steps": 1,
        "save_strategy": "no", "special_tokens": {"pad_token": "<|endoftext|>"}, "seed": 42,
    }  # fmt: skip
    (scratch / "axolotl.yaml").write_text(yaml.safe_dump(config))
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import setup_model_and_trainer

    cfg = load_cfg(str(scratch / "axolotl.yaml"))
    trainer, *_ = setup_model_and_trainer(cfg, load_datasets(cfg=cfg))
    return trainer, lambda to: trainer.model.save_pretrained(str(to))


PEERS: dict[str, Callable[..., Job]] = {
    "ours": ours,
    "trl": trl,
    "unsloth": unsloth,
    "axolotl": axolotl,
}


def versions() -> dict[str, str]:
    """Of what a speed depends on."""
    found = {}
    names = ["torch", "transformers", "trl", "peft", "bitsandbytes", "liger-kernel", "triton"]
    for name in [*names, "unsloth", "axolotl"]:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def train(options: argparse.Namespace) -> dict[str, Any]:
    """One training; see the module's text."""
    setting = {**SETTINGS[options.setting], "pack": options.pack}
    if options.attention:
        setting["attention"] = options.attention
    steps, clock = options.warm + options.steps, Clock()
    if options.peer == "unsloth":  # it patches what others import
        import unsloth as _  # noqa: F401
    import torch
    import transformers  # noqa: F401

    with tempfile.TemporaryDirectory() as scratch, alone(options.lock) as waited:
        os.chdir(scratch)  # Unsloth leaves compiled code where it runs
        if on_gpu():
            torch.cuda.reset_peak_memory_stats()
        trainer, save = PEERS[options.peer](options.model, setting, steps, Path(scratch))
        trainer.data_collator = clock.counting(trainer.data_collator)
        if options.peer == "axolotl":  # it makes its own loader, with a collator of its own
            clock.count_losses(trainer)
        trainer.add_callback(clock.callback())
        trainer.train()
        save(Path(scratch) / "adapter")
        saved = time.time()
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    seconds = clock.ends[-1] - clock.ends[options.warm - 1]
    per_step = PACKS_A_STEP // setting["micro_batch"]
    timed = slice(options.warm * per_step, steps * per_step)
    tokens, padded = int(sum(clock.tokens[timed])), sum(clock.padded[timed])
    result = {
        "peer": options.peer,
        "setting": options.setting,
        "model": options.model.name,
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds_per_step": round(seconds / options.steps, 3),
        "real_share": round(tokens / padded, 4),
        "tokens_a_micro_batch": max(clock.padded),
        "to_first_step_s": round(clock.first - STARTED - waited, 1),
        "first_step_s": round(clock.ends[0] - clock.first, 1),
        "to_adapter_s": round(saved - clock.ends[-1], 1),
        "trained_parameters": trained,
        "losses": [round(loss, 3) for loss in clock.losses],
        "versions": versions(),
        "command": " ".join(["peers.py", *sys.argv[1:]]),
    }
    if on_gpu():
        result |= {
            "device": torch.cuda.get_device_name(),
            # Axolotl resets it in every step to log it: of it, only what is reserved counts.
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        }
    return result


def main() -> None:
    """Make a model, or train one and print what was seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("model", help="write a base model with random weights")
    making.add_argument("--shape", choices=SHAPES, required=True)
    making.add_argument("--tokenizer", type=Path, required=True, help="folder that has one")
    making.add_argument("--to", type=Path, required=True, help="folder to make")
    training = commands.add_parser("train", help="train, and print one line of JSON")
    training.add_argument("--peer", choices=PEERS, required=True)
    training.add_argument("--model", type=Path, required=True, help="folder that `model` made")
    training.add_argument("--setting", choices=SETTINGS, default="fast")
    training.add_argument("--pack", type=int, default=PACK, help="tokens; less is a smoke test")
    training.add_argument("--attention", help="another attn_implementation for trl and axolotl")
    training.add_argument("--warm", type=int, default=2, help="steps before the clock starts")
    training.add_argument("--steps", type=int, default=4, help="timed steps")
    training.add_argument("--lock", type=Path, help="file whose lock keeps trainings apart")
    training.add_argument("--output", type=Path, help="append the line here too")
    options = parser.parse_args()
    if options.command == "model":
        make_model(SHAPES[options.shape], options.tokenizer, options.to)
        return
    options.model = options.model.absolute()
    if options.output:
        options.output = options.output.absolute()
    line = json.dumps(train(options))
    print(line)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
