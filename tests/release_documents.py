"""What publishing asks of an adapter's gate report and training manifest."""


def gate_report(name, digest, probes):
    return {
        "verdict": "PASS",
        "reason": "made up",
        "adapter": {"name": name, "digest": digest},
        "gate_key": "0" * 64,
        "gates": [{"metric": "rouge_l", "value": 0.9}],
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
