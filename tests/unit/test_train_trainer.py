"""The trainer on a Llama of two layers: TRL's loop, our loss."""

import json

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast
from trl import SFTTrainer

from adapterops.schemas import ROOT
from adapterops.shapes.recipe import Recipe
from adapterops.train.labels import IGNORED
from adapterops.train.network import apply_kernels, lora_config
from adapterops.train.packing import Collator
from adapterops.train.trainer import AnswerTrainer, training_arguments
from adapterops.yamlfile import load_yaml

ROWS = [
    {"input_ids": list(range(3, 3 + n)), "labels": [IGNORED] * 2 + list(range(5, 3 + n))}
    for n in (9, 30, 5, 12, 17, 21, 8, 14)
]


@pytest.fixture
def trainer(tmp_path):
    """`make(batch, accumulation)`: a trainer of three steps over eight rows of unequal length."""

    def make(batch, accumulation):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(
            LlamaConfig(
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=128,
            )
        )
        training = load_yaml(ROOT / "configs/qlora/smollm2-135m.yaml", Recipe)["training"]
        training = {
            **training,
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": accumulation,
            "logging_steps": 1,
        }
        training |= {"train_sampling_strategy": "random", "warmup_ratio": 0.0}
        made = AnswerTrainer(
            model=network,
            peft_config=lora_config(
                {
                    "r": 4,
                    "alpha": 8,
                    "dropout": 0.0,
                    "target_modules": ["q_proj", "v_proj", "down_proj"],
                },
                2,
            ),
            args=training_arguments(training, 0, tmp_path, use_cpu=True, max_steps=3),
            train_dataset=Dataset.from_list(ROWS),
            data_collator=Collator(0),
            processing_class=PreTrainedTokenizerFast(
                tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")),
                pad_token="-",
                eos_token="-",
            ),
        )
        apply_kernels(made.model, liger=False, fused_lora=False)
        return made

    return make


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_one_row_eight_times_is_eight_rows_once(trainer):
    one, eight = trainer(1, 8), trainer(8, 1)
    assert losses(one) == pytest.approx(losses(eight), abs=2e-3)
    for (name, first), (_, second) in zip(
        sorted(one.adapter_weights().items()), sorted(eight.adapter_weights().items()), strict=True
    ):
        torch.testing.assert_close(first, second, rtol=0, atol=2e-3, msg=name)


def test_trl_trains_and_writes_neither_cards_nor_telemetry(trainer, monkeypatch, tmp_path):
    monkeypatch.setattr(
        "trl.trainer.base_trainer.send_telemetry",
        lambda *_, **__: pytest.fail("telemetry was sent"),
    )
    monkeypatch.delenv("CI", raising=False)
    made = trainer(8, 1)
    assert isinstance(made, SFTTrainer)
    made.train()
    made._save_checkpoint(made.model, None)
    assert not (tmp_path / "README.md").exists()
    assert (
        json.loads((tmp_path / "checkpoint-3/trainer_state.json").read_text())["global_step"] == 3
    )
