"""What a training does when it is interrupted, runs out of memory or goes wrong: the whole of
`train`, on a Llama of two layers."""

import functools
import json
import re
import signal

import boto3
import pytest
import torch
from moto import mock_aws
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from adapterops.basemodels.materialize import load_tokenizer
from adapterops.candidates.checkpoints import Remote
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import ROOT
from adapterops.signing import Signer, Trust, make_key_pair
from adapterops.specs.base_model import find_base_model
from adapterops.specs.recipe import load_recipe
from adapterops.store.objects import ObjectStore
from adapterops.train import build, quantisation, watch
from adapterops.train import training as run_module
from adapterops.train.cached import train_once
from adapterops.train.merge import merge
from adapterops.train.trainer import AnswerTrainer
from adapterops.train.training import train

pytestmark = pytest.mark.integration

ROWS = [
    {
        "id": f"row-{number}",
        "instruction": ask,
        "output": say,
        "language": "en",
        "license": "CC0-1.0",
        "source": "test",
    }
    for number, (ask, say) in enumerate(
        [
            ("What colour is the new kettle in your catalogue?", "The new kettle is sea green."),
            ("How long do I have to send the chair back?", "You have thirty days to send it back."),
            ("Can I pay with two gift cards at once?", "Yes, up to three gift cards per order."),
            (
                "Is the oak table heavy for one person to lift?",
                "It weighs forty kilos, so ask someone to help.",
            ),
        ]
    )
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A base model with the demo's tokenizer and two small layers."""
    tokenizer = load_tokenizer(find_base_model("smollm2-135m-instruct", "test"))
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny")
    AutoModelForCausalLM.from_config(
        LlamaConfig(**sizes, vocab_size=len(tokenizer), initializer_range=0.2)
    ).save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def tiny_base_model(tiny, monkeypatch):
    for module in (build, run_module):
        monkeypatch.setattr(module, "base_model_directory", lambda *_, **__: tiny)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def recipe(tmp_path):
    """`make(name, setting=value)`: the demo recipe, all layers, two epochs of single rows, no limit
    for quantisation; other settings."""

    def make(name="recipe", early_stopping=None, **settings):
        padded = {
            "packing": "false",
            "train_sampling_strategy": "group_by_length",
            "per_device_train_batch_size": 1,
        }
        settings = {
            "num_train_epochs": 2,
            "report_to": "none",
            "max_loss_increase": 10,
            **padded,
            **settings,
        }
        text, count = re.subn(
            r"(?m)^  last_layers:.*\n", "", (ROOT / "configs/qlora/smollm2-135m.yaml").read_text()
        )  # `tiny` has two
        assert count == 1
        for setting, value in settings.items():
            text, count = re.subn(rf"(?m)^  {setting}:.*$", f"  {setting}: {value}", text)
            assert count == 1
        path = tmp_path / f"{name}.yaml"
        path.write_text(
            text + (f"  early_stopping: {json.dumps(early_stopping)}\n" if early_stopping else "")
        )
        return load_recipe(path)

    return make


@pytest.fixture
def run(data, tmp_path):
    """`go(recipe, name)`: train into a directory of that name, return the manifest."""

    def go(recipe, name="adapter", remote=None):
        return train(recipe, [data], tmp_path / name / "model", Console(quiet=True), remote=remote)

    return go


@pytest.fixture
def at_micro_batch(monkeypatch):
    """`call(number, action)`: have `action(inputs)` called as the trainer comes to the micro-batch
    of that number; None: to each."""

    def call(number, action):
        original, seen = AnswerTrainer.training_step, []

        def step(self, model, inputs, *rest):
            seen.append(1)
            if number is None or len(seen) == number:
                action(inputs)
            return original(self, model, inputs, *rest)

        monkeypatch.setattr(AnswerTrainer, "training_step", step)
        return seen

    return call


@pytest.fixture
def checkpoint_every_step(monkeypatch):
    monkeypatch.setattr(watch, "Watch", functools.partial(watch.Watch, checkpoint_seconds=0))


@pytest.fixture
def bucket(monkeypatch):
    """An empty S3 bucket."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="checkpoints")
        yield ObjectStore("checkpoints")


LOSSES = {"adapter_nf4": 1.0, "adapter_bf16": 1.5, "base_nf4": 2.0, "base_bf16": 2.0}


def signalled(number):
    return lambda *_, **__: signal.raise_signal(number)


def out_of_memory(inputs):
    if len(inputs["input_ids"]) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


class TestLosses:
    def test_the_last_step_is_in_the_history_however_seldom_it_is_logged(self, recipe, run):
        manifest = run(recipe(num_train_epochs=1, logging_steps=10))
        history = manifest["training"]["loss_history"]
        assert [entry["step"] for entry in history] == [1, 4]
        assert manifest["training"]["final_loss"] == history[-1]["loss"]
        each = run(recipe("each", num_train_epochs=1, logging_steps=1), "each")["training"][
            "loss_history"
        ]
        assert history[-1]["loss"] == pytest.approx(
            sum(entry["loss"] for entry in each[1:]) / 3, abs=1e-4
        )

    def test_the_guard_sees_every_step(self, recipe, run, monkeypatch):
        original, steps = AnswerTrainer.compute_loss, []

        def diverges(self, *arguments, **options):
            steps.append(1)
            loss = original(self, *arguments, **options)
            return loss + 30 if len(steps) > 6 else loss

        monkeypatch.setattr(AnswerTrainer, "compute_loss", diverges)
        with pytest.raises(RejectedError, match="training diverges"):
            run(recipe(num_train_epochs=9, logging_steps=100))
        assert len(steps) < 20


class TestInterruptions:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
    def test_whatever_the_signal_a_checkpoint_is_written_and_the_same_call_gives_the_same_adapter(
        self, recipe, run, at_micro_batch, monkeypatch, number
    ):
        settings = recipe(logging_steps=3)
        whole = run(settings, "whole")
        with monkeypatch.context():
            at_micro_batch(3, signalled(number))
            with pytest.raises(
                InfrastructureError,
                match=rf"by {number.name} at step 3 of 8\..*the same command resumes, here\.",
            ):
                run(settings)
        resumed = run(settings)
        assert resumed["run"]["resumed_from_step"] == 3
        assert resumed["training"]["loss_history"] == whole["training"]["loss_history"]
        assert resumed["adapter"]["digest"] == whole["adapter"]["digest"]

    def test_after_the_last_step_nothing_is_trained_again(
        self, recipe, run, monkeypatch, at_micro_batch
    ):
        settings = recipe()
        whole = run(settings, "whole")
        with monkeypatch.context() as patch:
            patch.setattr(quantisation, "compare", signalled(signal.SIGTERM))
            with pytest.raises(
                InfrastructureError,
                match=r"interrupted by SIGTERM after the last step\. Its checkpoint is in",
            ):
                run(settings)
        steps = at_micro_batch(None, lambda _: None)
        assert run(settings)["adapter"]["digest"] == whole["adapter"]["digest"]
        assert steps == []

    def test_signals_are_heard_before_the_first_step_as_well(self, recipe, run, monkeypatch):
        monkeypatch.setattr(run_module, "encode_files", signalled(signal.SIGINT))
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(
            InfrastructureError, match="interrupted by SIGINT before the first step"
        ):
            run(recipe())
        assert signal.getsignal(signal.SIGINT) is before

    def test_a_refused_adapter_is_judged_anew_under_a_higher_limit_and_not_trained_again(
        self, recipe, run, at_micro_batch, monkeypatch
    ):
        monkeypatch.setattr(quantisation, "compare", lambda *_: LOSSES)
        with pytest.raises(
            RejectedError, match="raise max_loss_increase, which trains nothing anew"
        ):
            run(recipe(max_loss_increase=0.4))
        steps = at_micro_batch(None, lambda _: None)
        assert run(recipe("higher", max_loss_increase=0.6))["run"]["resumed_from_step"] == 8
        assert steps == []


class TestCheckpointsInS3:
    def keys(self, bucket):
        return list(bucket.keys("checkpoints/"))

    def test_another_machine_resumes_and_leaves_none_behind(
        self, recipe, run, at_micro_batch, monkeypatch, bucket, tmp_path
    ):
        settings = recipe()
        whole = run(settings, "whole")
        make_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
        signed = Remote(bucket, Signer(tmp_path / "key.pem"), Trust(tmp_path / "key.pub.pem"))
        with monkeypatch.context():
            at_micro_batch(5, signalled(signal.SIGTERM))
            with pytest.raises(
                InfrastructureError, match="the same command resumes, here or on another machine"
            ):
                run(settings, "one", signed)
        resumed = run(settings, "another", signed)
        assert resumed["run"]["resumed_from_step"] == 5
        assert resumed["adapter"]["digest"] == whole["adapter"]["digest"]
        assert self.keys(bucket) == []

    def test_what_others_put_there_is_not_gone_on_from(
        self, recipe, run, at_micro_batch, monkeypatch, bucket, tmp_path, capsys
    ):
        settings = recipe()
        with monkeypatch.context():
            at_micro_batch(5, signalled(signal.SIGTERM))
            with pytest.raises(InfrastructureError):
                run(settings, "one", Remote(bucket))
        make_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
        trusting = Remote(bucket, None, Trust(tmp_path / "key.pub.pem"), until_kept=True)
        assert run(settings, "another", trusting)["run"]["resumed_from_step"] == 0
        assert "is not used: it is not signed" in capsys.readouterr().err
        assert self.keys(bucket)  # until the candidate is kept

    @pytest.mark.usefixtures("checkpoint_every_step")
    def test_two_are_kept_and_a_damaged_one_is_passed_over(
        self, recipe, run, at_micro_batch, monkeypatch, bucket, capsys
    ):
        with monkeypatch.context():
            at_micro_batch(5, signalled(signal.SIGTERM))
            with pytest.raises(InfrastructureError):
                run(recipe(), remote=Remote(bucket))
        steps = {int(re.search(r"/rung-0/(\d+)-", key).group(1)) for key in self.keys(bucket)}
        assert steps == {4, 5}
        (weights,) = [
            key
            for key in self.keys(bucket)
            if "/00000005-" in key and key.endswith("/adapter_model.safetensors")
        ]
        boto3.client("s3").put_object(Bucket=bucket.bucket, Key=weights, Body=b"noise")
        assert run(recipe(), "another", Remote(bucket))["run"]["resumed_from_step"] == 4
        assert "adapter_model.safetensors: got 5 bytes" in capsys.readouterr().err

    def test_one_that_cannot_be_uploaded_stays_here(
        self, recipe, run, at_micro_batch, monkeypatch, bucket, capsys
    ):
        settings = recipe()
        with monkeypatch.context() as patch:
            patch.setattr(
                ObjectStore,
                "put_new",
                lambda *_: (_ for _ in ()).throw(InfrastructureError("S3 is down")),
            )
            at_micro_batch(3, signalled(signal.SIGTERM))
            with pytest.raises(
                InfrastructureError,
                match=r"A checkpoint is in .*; the same command resumes, here\.",
            ):
                run(settings, remote=Remote(bucket))
        assert "could not be uploaded: S3 is down" in capsys.readouterr().err
        assert run(settings)["run"]["resumed_from_step"] == 3

    @pytest.mark.usefixtures("checkpoint_every_step")
    def test_the_third_failure_in_a_row_ends_the_training(self, recipe, run, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(
            InfrastructureError,
            match=r"3 checkpoints in a row failed \(checkpoint of step 3 failed: .*No space left",
        ):
            run(recipe())


class TestOutOfMemory:
    RUNG = "per_device_train_batch_size 2 → 1, gradient_accumulation_steps 1 → 2"

    def settings(self, recipe):
        return recipe(per_device_train_batch_size=2, train_sampling_strategy="random")

    @pytest.mark.usefixtures("checkpoint_every_step")
    def test_it_trains_again_with_smaller_micro_batches_and_not_from_a_checkpoint_of_larger_ones(
        self, recipe, run, at_micro_batch, bucket
    ):
        at_micro_batch(3, out_of_memory)
        manifest = run(self.settings(recipe), remote=Remote(bucket))
        assert manifest["run"]["out_of_memory"] == [self.RUNG]
        assert manifest["run"]["resumed_from_step"] == 0
        assert manifest["training"]["steps"] == 4

    def test_the_rung_outlives_an_interruption_here_and_elsewhere(
        self, recipe, run, at_micro_batch, monkeypatch, bucket
    ):
        settings = self.settings(recipe)
        with monkeypatch.context():
            at_micro_batch(None, out_of_memory)
            at_micro_batch(6, signalled(signal.SIGTERM))  # one that ran out, then two to a step
            with pytest.raises(InfrastructureError, match="by SIGTERM at step 3 of 4"):
                run(settings, remote=Remote(bucket))
        for name, remote in (("elsewhere", Remote(bucket, until_kept=True)), ("adapter", None)):
            manifest = run(settings, name, remote)
            assert manifest["run"]["out_of_memory"] == [self.RUNG]
            assert manifest["run"]["resumed_from_step"] == 3

    def test_while_the_model_loads_it_says_so_at_once(self, recipe, run, monkeypatch):
        loaded = []

        def load(*_, **__):
            loaded.append(1)
            raise RuntimeError("CUDA error: out of memory")

        monkeypatch.setattr(build, "load_base", load)
        with pytest.raises(
            InfrastructureError, match=r"CUDA error: out of memory\) before the first step\."
        ):
            run(self.settings(recipe))
        assert len(loaded) == 1

    def test_at_the_end_of_the_ladder_it_says_what_was_tried(self, recipe, run, at_micro_batch):
        def always(_):
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
            )

        at_micro_batch(None, always)
        rungs = (
            f"{self.RUNG}; gradient_checkpointing false → selective; gradient_checkpointing"
            " selective → true"
        )
        with pytest.raises(InfrastructureError, match=rf"Tried: {rungs}\."):
            run(self.settings(recipe))


class TestEarlyStopping:
    STOPPING = {"share": 0.5, "every_steps": 1, "patience": 3}  # noqa: RUF012

    def settings(self, recipe):
        # Two rows and a rate far too high: the held-back loss falls, and soon rises.
        return recipe(
            early_stopping=self.STOPPING,
            learning_rate="1.0e-2",
            num_train_epochs=20,
            warmup_ratio=0.0,
        )

    def test_it_stops_when_the_held_back_loss_rises_and_keeps_the_best_weights(self, recipe, run):
        manifest = run(self.settings(recipe))
        looks = manifest["run"]["held_back"]
        best = min(looks, key=lambda look: look["loss"])
        assert manifest["training"]["steps"] == best["step"] + 3 < 40
        assert "held-back loss has not fallen for 3 looks" in manifest["run"]["stopped"]
        assert manifest["run"]["quantisation"]["from"] == "held_back"
        assert manifest["run"]["quantisation"]["adapter_nf4"] == pytest.approx(
            best["loss"], abs=2e-5
        )
        assert looks[-1]["loss"] > best["loss"] + 1e-3

    @pytest.mark.parametrize("before_the_end", [1, 2])
    def test_an_interruption_changes_nothing(
        self, recipe, run, at_micro_batch, monkeypatch, before_the_end
    ):
        whole = run(self.settings(recipe), "whole")
        with monkeypatch.context():
            at_micro_batch(whole["training"]["steps"] - before_the_end, signalled(signal.SIGTERM))
            with pytest.raises(InfrastructureError):
                run(self.settings(recipe))
        resumed = run(self.settings(recipe))
        assert resumed["run"]["resumed_from_step"] > 0
        assert resumed["run"]["held_back"] == whole["run"]["held_back"]
        assert resumed["run"]["stopped"] == whole["run"]["stopped"]
        assert resumed["adapter"]["digest"] == whole["adapter"]["digest"]

    def test_interrupted_after_it_stopped_it_stays_so(
        self, recipe, run, at_micro_batch, monkeypatch
    ):
        whole = run(self.settings(recipe), "whole")
        with monkeypatch.context() as patch:
            patch.setattr(quantisation, "compare", signalled(signal.SIGTERM))
            with pytest.raises(InfrastructureError):
                run(self.settings(recipe))
        steps = at_micro_batch(None, lambda _: None)
        resumed = run(self.settings(recipe))
        assert steps == []
        assert resumed["adapter"]["digest"] == whole["adapter"]["digest"]
        assert resumed["training"]["steps"] == whole["training"]["steps"]


def test_an_adapter_that_is_there_is_held_to_the_recipe_of_today(
    recipe, run, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(quantisation, "compare", lambda *_: LOSSES)
    run(recipe())
    model = tmp_path / "adapter/model"

    def again(recipe):
        return train_once(recipe, [data], model, Console(quiet=True))

    assert again(recipe(max_loss_increase=0.6))[1]
    with pytest.raises(RejectedError, match=r"where quantization\.max_loss_increase allows"):
        again(recipe(max_loss_increase=0.4))
    manifest = json.loads((model / "train_manifest.json").read_text())
    manifest["tokens"]["truncated_rows"] = 2
    (model / "train_manifest.json").write_text(json.dumps(manifest))
    assert again(recipe(on_truncation="allow"))[1]
    with pytest.raises(
        RejectedError,
        match=r"trained with 2 rows cut at max_length, and .* has training\.on_truncation error",
    ):
        again(recipe(on_truncation="error"))


def test_an_adapter_of_another_revision_of_the_base_model_is_not_merged(recipe, run, tmp_path):
    run(recipe(num_train_epochs=1))
    path = tmp_path / "adapter/model/train_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["base_model"]["revision"] = "another"
    path.write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="at revision another, and configs"):
        merge(path.parent, tmp_path / "merged", 0.05)
