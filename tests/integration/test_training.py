"""Training on the real small model: masks, determinism, cached keys, and no half-written
adapter."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from adapterops.basemodels.materialize import base_model_directory, load_tokenizer
from adapterops.errors import RejectedError
from adapterops.schemas import ROOT
from adapterops.specs.base_model import find_base_model
from adapterops.train.encode import IGNORED, encode_files, encode_messages

pytestmark = pytest.mark.integration

ROWS = [
    {
        "id": f"row-{number}",
        "instruction": f"{question} Please answer in one short sentence.",
        "output": text,
        "language": "en",
        "license": "CC0-1.0",
        "source": "test",
    }
    for number, (question, text) in enumerate(
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
def base_model():
    return find_base_model("smollm2-135m-instruct", "test")


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return load_tokenizer(base_model)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def write_recipe(path, **settings):
    """The demo recipe with a single epoch of two steps of padded rows, and other settings."""
    padded = {"packing": "false", "train_sampling_strategy": "group_by_length"}
    # On forty supervised tokens the quantisation check measures noise.
    settings = {
        "num_train_epochs": 1,
        "per_device_train_batch_size": 2,
        "logging_steps": 1,
        "max_loss_increase": 10,
        **padded,
        **settings,
    }
    text = (ROOT / "configs/qlora/smollm2-135m.yaml").read_text()
    for setting, value in settings.items():
        text, count = re.subn(rf"(?m)^  {setting}:.*$", f"  {setting}: {value}", text)
        assert count == 1
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe") / "recipe.yaml")


@pytest.fixture(scope="module")
def adapter(recipe, data, tmp_path_factory):
    """What the recipe makes of the data."""
    output = tmp_path_factory.mktemp("trained") / "adapter"
    result = train(recipe, data, output)
    assert result.returncode == 0, result.stderr
    assert "step 1/2 | loss" in result.stdout
    return output


@pytest.fixture(scope="module")
def four_steps(data, tmp_path_factory):
    """A recipe of two epochs of four steps, and the adapter that it makes when nothing interrupts
    it."""
    directory = tmp_path_factory.mktemp("steps")
    recipe = write_recipe(
        directory / "recipe.yaml", num_train_epochs=2, per_device_train_batch_size=1
    )
    assert train(recipe, data, directory / "adapter").returncode == 0
    return recipe, directory / "adapter"


def train(recipe, data, output, *options):
    command = [
        sys.executable,
        "scripts/train_qlora.py",
        "--config",
        recipe,
        "--data",
        data,
        "--output",
        output,
        *options,
    ]
    return subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_only_the_answer_and_its_end_of_turn_are_trained(tokenizer, base_model):
    ids, labels = encode_messages(
        [
            {"role": "user", "content": "환불 되나요?"},
            {"role": "assistant", "content": "네, 됩니다."},
        ],
        tokenizer,
        base_model,
    )
    trained = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(trained) == "네, 됩니다.<|im_end|>"
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_every_assistant_turn_of_a_conversation_is_trained(tokenizer, base_model):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye!"},
        {"role": "assistant", "content": "Goodbye."},
    ]
    ids, labels = encode_messages(messages, tokenizer, base_model)
    trained = [token for token, label in zip(ids, labels, strict=True) if label != IGNORED]
    assert tokenizer.decode(trained) == "Hi.<|im_end|>Goodbye.<|im_end|>"


def test_a_row_over_max_length_is_an_error_unless_the_recipe_allows_the_loss(
    tokenizer, base_model, data
):
    with pytest.raises(
        RejectedError, match=r"rows\.jsonl:1: \d+ tokens\. Expected at most max_length 33"
    ):
        encode_files([data], tokenizer, base_model, 33, "error")
    encoded = encode_files([data], tokenizer, base_model, 32, "allow")
    assert max(map(len, encoded.input_ids)) <= 32
    with pytest.raises(RejectedError, match="Nothing of its answer would be left"):
        encode_files([data], tokenizer, base_model, 20, "allow")


def test_a_base_model_that_was_damaged_is_made_anew(base_model, tmp_path, monkeypatch):
    directory = base_model_directory(base_model)
    monkeypatch.setenv("QLORA_GITOPS_CACHE", str(tmp_path))
    copy = tmp_path / "base_models" / directory.name
    shutil.copytree(directory, copy)
    assert base_model_directory(base_model) == copy
    with (copy / "model.safetensors").open("r+b") as weights:
        weights.seek(100_000_000)
        byte = weights.read(1)
        weights.seek(100_000_000)
        weights.write(bytes([byte[0] ^ 1]))
    assert base_model_directory(base_model) == copy
    assert (copy / "model.safetensors").read_bytes() == (
        directory / "model.safetensors"
    ).read_bytes()


def manifest_of(adapter):
    return json.loads((adapter / "train_manifest.json").read_text())


def test_equal_inputs_give_equal_bits_and_are_trained_once(adapter, recipe, data, tmp_path):
    assert train(recipe, data, tmp_path / "second").returncode == 0
    one, two = manifest_of(adapter), manifest_of(tmp_path / "second")
    assert one["adapter"]["digest"] == two["adapter"]["digest"]
    assert one["training"]["lora_step0_sha256"] == two["training"]["lora_step0_sha256"]
    assert one["run"]["quantisation"] == two["run"]["quantisation"]
    assert sorted(file.name for file in adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "loss.svg",
        "train_manifest.json",
    ]
    again = train(recipe, data, adapter)
    assert "already trained, nothing to do" in again.stdout
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert not any(
        str(adapter.parent) in str(value) or "/" in str(value) for value in config.values() if value
    )


def test_the_losses_go_to_tensorboard_while_it_trains(adapter):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(adapter.with_name(f"{adapter.name}.tensorboard"))).Reload()
    logged = {event.step: event.value for event in events.Scalars("train/loss")}
    history = {
        entry["step"]: entry["loss"] for entry in manifest_of(adapter)["training"]["loss_history"]
    }
    assert logged == pytest.approx(history, rel=1e-3)
    assert list(logged) == [1, 2]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(data, tmp_path):
    result = train(
        write_recipe(tmp_path / "recipe.yaml", report_to="trackio"), data, tmp_path / "adapter"
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert "training.report_to trackio: it is not installed. pip install trackio" in result.stderr


def test_an_adapter_that_is_worse_on_bf16_than_the_recipe_allows_is_not_written(
    adapter, data, tmp_path
):
    losses = manifest_of(adapter)["run"]["quantisation"]
    assert losses["adapter_nf4"] < losses["base_nf4"]
    increase = losses["adapter_bf16"] - losses["adapter_nf4"]
    assert increase > 0.01  # else these rows show nothing here
    result = train(
        write_recipe(tmp_path / "recipe.yaml", max_loss_increase=0.01), data, tmp_path / "adapter"
    )
    assert result.returncode == 1
    assert f"{increase:+.4f} where quantization.max_loss_increase allows 0.01" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "adapter").exists()


def test_the_adapter_is_stored_in_bf16(adapter):
    import torch
    from safetensors.torch import load_file

    weights = load_file(adapter / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def started(command):
    """The process of a training, whose output can be read line by line while it runs."""
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def in_two_processes(recipe, data, output):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "configs/accelerate/ddp.yaml",
        "--num_processes",
        "2",
    ]
    command += ["scripts/train_qlora.py", "--config", recipe, "--data", data, "--output", output]
    return started(command)


@pytest.fixture(scope="module")
def by_two(data, tmp_path_factory):
    """A recipe whose batches of two are divided, and the manifest of what two processes made of it
    through gloo."""
    directory = tmp_path_factory.mktemp("two")
    # Batches by length depend on their size.
    recipe = write_recipe(
        directory / "recipe.yaml", train_sampling_strategy="random", num_train_epochs=2
    )
    process = in_two_processes(recipe, data, directory / "adapter")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.count("step 1/4 | loss") == 1
    return recipe, manifest_of(directory / "adapter")


def tolerance(manifest):
    """Nats by which sums in another order may move a loss: 0.0051 and 0.0124 were seen in bf16, in
    which a CPU computes that has it."""
    return {"float32": 2e-3, "bfloat16": 3e-2}[manifest["environment"]["compute_dtype"]]


def test_two_processes_give_the_loss_curve_of_one(by_two, data, tmp_path):
    """Of the same recipe, a row of each batch in each process; sums in another order are all that
    differs."""
    recipe, two = by_two
    assert train(recipe, data, tmp_path / "one").returncode == 0
    one = manifest_of(tmp_path / "one")
    assert (one["run"]["processes"], two["run"]["processes"]) == (1, 2)
    assert one["training_key"] == two["training_key"]
    curves = [
        [entry["loss"] for entry in manifest["training"]["loss_history"]] for manifest in (one, two)
    ]
    assert len(curves[0]) == 4
    assert curves[1][0] == pytest.approx(
        curves[0][0], abs=2e-3
    )  # of the same rows, before anything was learnt
    assert curves[1] == pytest.approx(curves[0], abs=tolerance(one))


def test_two_processes_agree_on_the_step_at_which_they_are_interrupted_and_resume(
    by_two, data, tmp_path
):
    recipe, two = by_two
    process = in_two_processes(recipe, data, tmp_path / "adapter")
    for line in process.stdout:
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate()
    assert process.returncode == 1, errors  # accelerate's own; docs/training.md
    assert len(set(re.findall(r"interrupted by .* at step (\d) of 4", errors))) == 1, errors
    process = in_two_processes(recipe, data, tmp_path / "adapter")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "resuming from step" in output
    resumed = manifest_of(tmp_path / "adapter")
    losses = [
        [entry["loss"] for entry in manifest["training"]["loss_history"]]
        for manifest in (resumed, two)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=tolerance(two))


def test_killed_while_training_leaves_no_adapter_and_the_same_command_works(recipe, data, tmp_path):
    output = tmp_path / "models" / "adapter"
    command = [
        sys.executable,
        "scripts/train_qlora.py",
        "--config",
        recipe,
        "--data",
        data,
        "--output",
        output,
    ]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in process.stdout:
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    time.sleep(0.1)
    assert [path.name for path in output.parent.iterdir() if not path.name.startswith(".")] == [
        "adapter.tensorboard"
    ]  # losses until then
    assert train(recipe, data, output).returncode == 0
    assert (output / "train_manifest.json").is_file()


@pytest.mark.parametrize("seen", [2, 3])
def test_terminated_it_exits_with_3_and_the_same_command_ends_with_the_same_adapter(
    four_steps, data, tmp_path, seen
):
    """A spot instance that goes: SIGTERM in the middle of an epoch and at the end of one (of four
    steps), then the command again."""
    recipe, whole = four_steps
    output = tmp_path / "models" / "adapter"
    command = [
        sys.executable,
        "scripts/train_qlora.py",
        "--config",
        recipe,
        "--data",
        data,
        "--output",
        output,
    ]
    process = started(command)
    for line in process.stdout:
        if line.startswith(f"step {seen}/"):
            process.send_signal(signal.SIGTERM)
            break
    _, errors = process.communicate()
    assert process.returncode == 3, errors
    assert "the same command resumes" in errors
    assert not output.exists()
    resumed = train(recipe, data, output)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from step" in resumed.stdout
    one, two = manifest_of(whole), manifest_of(output)
    assert two["run"]["resumed_from_step"] > 0
    # On a CPU the tolerance is nothing: the same losses, step by step, and the same bits.
    assert [entry["loss"] for entry in two["training"]["loss_history"]] == [
        entry["loss"] for entry in one["training"]["loss_history"]
    ]
    assert two["adapter"]["digest"] == one["adapter"]["digest"]
    assert not list(output.parent.glob(".*checkpoints*"))


def test_a_merged_model_is_written_only_if_it_speaks_as_adapter_on_base_does(adapter, tmp_path):
    from safetensors.torch import load_file

    def merge(*options):
        command = [
            sys.executable,
            "scripts/merge_adapter.py",
            "--adapter",
            adapter,
            "--output",
            tmp_path / "merged",
            *options,
        ]
        return subprocess.run(
            [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False
        )

    refused = merge("--tolerance", "0")
    assert refused.returncode == 1
    assert "Nothing is written" in refused.stderr
    assert not (tmp_path / "merged").exists()
    assert merge().returncode == 0
    weights = load_file(tmp_path / "merged/model.safetensors")
    assert not any("lora" in name for name in weights)
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.bfloat16"}


def test_an_output_that_is_not_an_adapter_is_not_overwritten(recipe, data, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("…")
    result = train(recipe, data, tmp_path / "precious")
    assert result.returncode == 2
    assert "exists and is not an adapter directory" in result.stderr
    assert (tmp_path / "precious/thesis.txt").exists()


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--config", "nowhere.yaml"], 2, "does not exist"),
        (["--confg", "x"], 2, "--config"),
        ([], 2, "Missing option"),
    ],
)
def test_misuse_ends_with_2_and_without_a_traceback(options, code, reason):
    result = subprocess.run(
        [sys.executable, "scripts/train_qlora.py", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
