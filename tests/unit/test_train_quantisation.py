"""An adapter is judged on the weights it will be served on."""

import copy
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from adapterops.errors import RejectedError, UsageError
from adapterops.train.judgement import judge
from adapterops.train.labels import IGNORED
from adapterops.train.network import apply_kernels, lora_config
from adapterops.train.packing import Collator
from adapterops.train.quantisation import compare, sample

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BATCH = Collator(0)(
    [{"input_ids": list(range(3, 40)), "labels": [IGNORED] * 9 + list(range(12, 40))}]
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A saved base model of two layers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(
        LlamaConfig(**SIZES, vocab_size=128, initializer_range=0.2)
    ).save_pretrained(path)
    return path


def with_adapter(directory, lora=None, **options):
    """The base model with an adapter whose B matrices are not zero; the same adapter for the same
    kind of weights."""
    network = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, **options)
    settings = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": PROJECTIONS, **(lora or {})}
    model = get_peft_model(network, lora_config(settings, 2)).float().eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(model.named_parameters()):
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return model


def loss_of(model):
    inputs = {name: value for name, value in BATCH.items() if name != "labels"}
    with torch.no_grad():
        return float(model(**inputs)) / len(BATCH["targets"])


@pytest.mark.parametrize(
    "kernels",
    [{}, {"fused_lora": True}, {"fused_lora": True, "keep_dequantized": True}],
    ids=["peft", "fused", "kept"],
)
def test_the_losses_on_bf16_are_those_of_the_unquantised_model(directory, kernels):
    exact = with_adapter(directory)
    apply_kernels(exact, liger=False, fused_lora=False)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    quantised = with_adapter(directory, quantization_config=nf4)
    assert any(isinstance(module, Linear4bit) for module in quantised.modules())
    apply_kernels(quantised, **{"liger": False, "fused_lora": False, **kernels})
    before = loss_of(quantised)
    found = compare(quantised, directory, lambda: loss_of(quantised))
    assert found["adapter_bf16"] == pytest.approx(loss_of(exact), abs=1e-4)
    with exact.disable_adapter():
        assert found["base_bf16"] == pytest.approx(loss_of(exact), abs=1e-4)
    assert found["adapter_nf4"] == pytest.approx(before, abs=1e-4)
    assert abs(found["adapter_nf4"] - found["adapter_bf16"]) > 1e-3
    assert loss_of(quantised) == before  # and all is as it was


@pytest.mark.parametrize("lora", [{}, {"last_layers": 1}], ids=["all layers", "the last one"])
def test_weights_kept_dequantised_give_the_same_to_the_last_bit(directory, lora):
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    losses, gradients = [], []
    for keep in (False, True):
        model = with_adapter(directory, lora, quantization_config=nf4)
        apply_kernels(model, liger=False, fused_lora=True, keep_dequantized=keep)
        total = model(**{name: value for name, value in BATCH.items() if name != "labels"})
        total.backward()
        losses.append(total.item())
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert losses[0] == losses[1]
    assert torch.equal(*gradients)


def test_weights_that_are_not_there_are_named(directory, tmp_path):
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = with_adapter(directory, quantization_config=nf4)
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    with pytest.raises(
        UsageError, match=r"no file holds model\.layers\.0\.self_attn\.q_proj\.weight"
    ):
        compare(model, tmp_path, lambda: 0.0)


class TestJudge:
    LOSSES = {  # noqa: RUF012
        "adapter_nf4": 1.0,
        "adapter_bf16": 1.05,
        "base_nf4": 2.1,
        "base_bf16": 2.0,
    }

    def test_within_the_limit_it_passes_and_beyond_it_the_numbers_are_named(self):
        judge(self.LOSSES, 0.1, Path("r.yaml"))
        judge({**self.LOSSES, "adapter_bf16": 0.9}, 0.0, Path("r.yaml"))
        with pytest.raises(
            RejectedError,
            match=(
                r"1\.0000 nats on the NF4 .* 1\.0500 there, \+0\.0500 .* allows 0\.04 .* In"
                r" r\.yaml: lower"
            ),
        ):
            judge(self.LOSSES, 0.04, Path("r.yaml"))

    def test_a_loss_that_is_no_number_does_not_pass(self):
        with pytest.raises(RejectedError):
            judge({**self.LOSSES, "adapter_bf16": float("nan")}, 0.1, Path("r.yaml"))


def test_the_sample_is_the_same_in_any_order():
    rows = [{"input_ids": [number] * (number + 1), "labels": []} for number in range(60)]
    chosen = sample(rows, 8)
    assert chosen == sample(copy.copy(rows[::-1]), 8)
    assert len(chosen) == 8
    assert [len(row["input_ids"]) for row in chosen] == sorted(
        len(row["input_ids"]) for row in chosen
    )
