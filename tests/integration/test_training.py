"""Training on the real small model: masks, determinism, cached keys, and no half-written adapter."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from adapterops.basemodels import base_model_directory, find_base_model, load_tokenizer
from adapterops.errors import RejectedError
from adapterops.schemas import ROOT
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
            ("Is the oak table heavy for one person to lift?", "It weighs forty kilos, so ask someone to help."),
        ]
    )
]


@pytest.fixture(scope="module")
def base_model():
    return find_base_model("smollm2-135m-instruct", "test")


@pytest.fixture(scope="module")
def tokenizer(base_model):
    return load_tokenizer(base_model)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def recipe(tmp_path):
    """The demo recipe with a single epoch of two steps."""
    text = (ROOT / "configs/qlora/smollm2-135m.yaml").read_text()
    lines = []
    for line in text.splitlines():
        for setting, value in {"num_train_epochs": "1", "per_device_train_batch_size": "2", "logging_steps": "1"}.items():
            if line.strip().startswith(f"{setting}:"):
                line = f"  {setting}: {value}"
        lines.append(line)
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines))
    return path


def train(recipe, data, output, *options):
    command = [sys.executable, "scripts/train_qlora.py", "--config", recipe, "--data", data, "--output", output, *options]
    return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_only_the_answer_and_its_end_of_turn_are_trained(tokenizer, base_model):
    ids, labels = encode_messages(
        [{"role": "user", "content": "환불 되나요?"}, {"role": "assistant", "content": "네, 됩니다."}], tokenizer, base_model
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


def test_a_row_over_max_length_is_an_error_unless_the_recipe_allows_the_loss(tokenizer, base_model, data):
    with pytest.raises(RejectedError, match=r"rows\.jsonl:1: \d+ tokens\. Expected at most max_length 33"):
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
    assert (copy / "model.safetensors").read_bytes() == (directory / "model.safetensors").read_bytes()


def test_equal_inputs_give_equal_bits_and_are_trained_once(recipe, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    result = train(recipe, data, first)
    assert result.returncode == 0, result.stderr
    assert "step 1/2 | loss" in result.stdout
    assert train(recipe, data, second).returncode == 0
    one, two = (json.loads((path / "train_manifest.json").read_text()) for path in (first, second))
    assert one["adapter"]["digest"] == two["adapter"]["digest"]
    assert one["training"]["lora_step0_sha256"] == two["training"]["lora_step0_sha256"]
    assert sorted(file.name for file in first.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "loss.svg",
        "train_manifest.json",
    ]
    again = train(recipe, data, first)
    assert "already trained, nothing to do" in again.stdout
    config = json.loads((first / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2-135m-instruct"
    assert not any(str(tmp_path) in str(value) or "/" in str(value) for value in config.values() if value)


def test_the_adapter_is_stored_in_bf16(recipe, data, tmp_path):
    import torch
    from safetensors.torch import load_file

    assert train(recipe, data, tmp_path / "adapter").returncode == 0
    weights = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)


def test_killed_while_training_leaves_no_adapter_and_the_same_command_works(recipe, data, tmp_path):
    output = tmp_path / "models" / "adapter"
    command = [sys.executable, "scripts/train_qlora.py", "--config", recipe, "--data", data, "--output", output]
    process = subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )
    for line in process.stdout:
        if line.startswith("step 1/"):
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    time.sleep(0.1)
    assert [path for path in output.parent.iterdir() if not path.name.startswith(".")] == []
    assert train(recipe, data, output).returncode == 0
    assert (output / "train_manifest.json").is_file()


@pytest.mark.parametrize("seen", [2, 3])
def test_terminated_it_exits_with_3_and_the_same_command_ends_with_the_same_adapter(recipe, data, tmp_path, seen):
    """A spot instance that goes: SIGTERM in the middle of an epoch and at the end of one (of four steps), then the command again."""
    text = recipe.read_text().replace("num_train_epochs: 1", "num_train_epochs: 2")
    recipe.write_text(text.replace("per_device_train_batch_size: 2", "per_device_train_batch_size: 1"))
    whole, output = tmp_path / "whole", tmp_path / "models" / "adapter"
    assert train(recipe, data, whole).returncode == 0
    command = [sys.executable, "scripts/train_qlora.py", "--config", recipe, "--data", data, "--output", output]
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
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
    one, two = (json.loads((path / "train_manifest.json").read_text()) for path in (whole, output))
    assert two["run"]["resumed_from_step"] > 0
    # On a CPU the tolerance is nothing: the same losses, step by step, and the same bits.
    assert [entry["loss"] for entry in two["training"]["loss_history"]] == [entry["loss"] for entry in one["training"]["loss_history"]]
    assert two["adapter"]["digest"] == one["adapter"]["digest"]
    assert not list(output.parent.glob(".*checkpoints*"))


def test_a_merged_model_is_written_only_if_it_speaks_as_adapter_on_base_does(recipe, data, tmp_path):
    from safetensors.torch import load_file

    assert train(recipe, data, tmp_path / "adapter").returncode == 0

    def merge(*options):
        command = [sys.executable, "scripts/merge_adapter.py", "--adapter", tmp_path / "adapter", "--output", tmp_path / "merged", *options]
        return subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)

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
    result = subprocess.run([sys.executable, "scripts/train_qlora.py", *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
