"""What publishing and evaluating ask of an adapter's gate report and training manifest."""

import json

from adapterops.store.releases import adapter_digest

# Short ones: among a few answers there is one that ends by itself, which a probe must.
QUESTIONS = [
    "Is water wet? Answer yes or no.",
    "Is the sky blue?",
    "Write one word.",
    "Say hello in one short sentence.",
    "Name a colour.",
    "How many legs has a dog?",
    "Hello!",
    "What is the capital of France?",
]


def gate_report(name, digest, probes):
    return {
        "verdict": "PASS",
        "reason": "made up",
        "adapter": {"name": name, "digest": digest},
        "gate_key": "0" * 64,
        "gates": [{"metric": "rouge_l", "value": 0.9, "verdict": "PASS", "blocking": True}],
        "comparisons": [],
        "probes": probes,
    }


def train_manifest(digest, rank, base_model):
    """`base_model`: name, where it comes from, revision."""
    return {
        "training_key": "1" * 64,
        "base_model": dict(zip(("name", "source_id", "revision"), base_model, strict=True)),
        "adapter": {"digest": digest, "rank": rank},
        "finished_at": "2026-11-23T12:00:00+00:00",
    }


def trained(directory, base_model):
    """Make an adapter directory one that training left: with a whole manifest. Returns it."""
    rank = json.loads((directory / "adapter_config.json").read_text())["r"]
    manifest = whole_manifest(
        adapter_digest(directory),
        rank,
        (base_model.name, base_model.source_id, base_model.revision),
    )
    (directory / "train_manifest.json").write_text(json.dumps(manifest))
    return directory


def whole_manifest(digest, rank, base_model, files=()):
    """A `train_manifest.json` as its schema has it; `base_model`: name, where it comes from,
    revision."""
    return {
        "schema": "train_manifest/v1",
        "training_key": "1" * 64,
        "key_inputs": {},
        "recipe": "configs/qlora/smollm2-135m.yaml",
        "base_model": {
            **dict(zip(("name", "source_id", "revision"), base_model, strict=True)),
            "license": "Apache-2.0",
        },
        "data": [{"path": "data/training/support.jsonl", "sha256": "2" * 64}],
        "tokens": {
            "rows": 1,
            "total": 1,
            "supervised": 1,
            "longest_row": 1,
            "truncated_rows": 0,
            "truncated_tokens": 0,
            "mask_sample": "",
        },
        "training": {
            "steps": 1,
            "final_loss": 1.0,
            "loss_history": [],
            "seconds": 1.0,
            "tokens_per_second": 1.0,
            "peak_memory_gib": 0.0,
            "lora_step0_sha256": "3" * 64,
        },
        "prediction": {"loading_gib": 0.0, "training_gib": 0.0, "evaluation_gib": 0.0},
        "run": {
            "processes": 1,
            "resumed_from_step": 0,
            "out_of_memory": [],
            "stopped": None,
            "held_back": [],
            "hints": [],
        },
        "adapter": {"digest": digest, "rank": rank, "dtype": "bfloat16", "files": list(files)},
        "environment": {"device": "cpu", "python": "3.11", "packages": {}},
        "total_seconds": 1.0,
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
