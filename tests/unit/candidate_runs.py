"""Candidates as a pull request's run leaves them, in a store that is an S3 server in this
process."""

import contextlib
import json
import shutil

import boto3
import numpy as np
from moto import mock_aws
from safetensors.numpy import save_file

from adapterops.candidates.kept import keep_adapter, keep_judgement
from adapterops.store.channels import change_channel, promote
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import adapter_digest, publish

BUCKET = "candidates-test"
SOURCE = {"commit": "c" * 40, "pr": "7", "run": None}


@contextlib.contextmanager
def empty_store(monkeypatch):
    """An empty bucket, with the environment that reaches it."""
    known = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in {**known, "ADAPTER_BUCKET": BUCKET}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield ObjectStore(BUCKET)


GATE = {"metric": "rouge_l", "value": 0.9, "verdict": "PASS", "blocking": True}


def run_of(keys, directory, *, weights=b"weights", verdict="PASS", production=None, wanted=False):
    """A run directory as train, evaluate and gate leave it."""
    model = directory / "model"
    model.mkdir(parents=True)
    save_file({"lora": np.frombuffer(weights, np.uint8)}, model / "adapter_model.safetensors")
    (model / "adapter_config.json").write_text("{}")
    (model / "chat_template.jinja").write_text("t")
    digest = adapter_digest(model)
    manifest = {
        "training_key": keys.training,
        "adapter": {"digest": digest, "rank": 16},
        "base_model": {"name": "smollm2-135m-instruct", "source_id": "x", "revision": "y"},
        "finished_at": "2026-01-01T00:00:00+00:00",
    }
    (model / "train_manifest.json").write_text(json.dumps(manifest))
    judged = {
        "name": keys.spec.name,
        "digest": digest,
        "training_key": keys.training,
        "base_model": "smollm2-135m-instruct",
    }
    report = {
        "verdict": verdict,
        "reason": "because",
        "gate_key": "b" * 64,
        "adapter": judged,
        "gates": [GATE],
        "comparisons": [],
        "probes": [],
    }
    report["production"] = {"name": None, "digest": production, "note": ""}
    report["extension"] = {"registered": wanted, "drawn": False, "wanted": wanted}
    (directory / "gate_report.json").write_text(json.dumps(report))
    (directory / "eval_results.json").write_text("{}")
    (directory / "eval_samples.jsonl").write_text("{}\n")
    (directory / "main").mkdir()
    (directory / "main/gate_report.json").write_text("{}")
    return directory


def kept(store, keys, directory, signer=None, **options):
    run = run_of(keys, directory, **options)
    keep_adapter(store, keys.training, run / "model", signer)
    return keep_judgement(store, keys, run, SOURCE, signer)


def release(store, keys, run, release_signer=None, **options):
    """Publish a candidate and serve it; returns its digest."""
    digest = kept(store, keys, run, **options)["digest"]
    report, manifest = read(run / "gate_report.json"), read(run / "model/train_manifest.json")
    publish(
        store,
        "support",
        run / "model",
        report,
        manifest,
        source={"commit": None, "pr": None, "actor": None},
        signer=release_signer,
    )
    change_channel(store, "support", lambda channel: promote(channel, digest), reason="test")
    return digest


def read(path):
    return json.loads(path.read_text())


def sigstore_is_unreachable(monkeypatch):
    from sigstore.errors import TUFError
    from sigstore.models import ClientTrustConfig

    def refresh():
        raise TUFError("Failed to refresh TUF metadata")

    monkeypatch.setattr(ClientTrustConfig, "production", staticmethod(refresh))


def copy_tree(source, target):
    """Data, configs and adapters, as take_pull_request.py --main-copy writes them."""
    for name in ("data", "configs", "adapters"):
        shutil.copytree(source / name, target / name)
