"""Several processes: accelerate's own classes read its configurations, and what cannot be cut into
pieces is refused."""

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.constants import (
    FSDP_AUTO_WRAP_POLICY,
    FSDP_BACKWARD_PREFETCH,
    FSDP_SHARDING_STRATEGY,
    FSDP_STATE_DICT_TYPE,
)
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.distributed.fsdp import BackwardPrefetch, ShardingStrategy
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from adapterops.errors import UsageError
from adapterops.schemas import ROOT
from adapterops.shapes.recipe import Recipe
from adapterops.specs.recipe import load_recipe
from adapterops.train import trainer
from adapterops.train.build import _refuse_in_pieces
from adapterops.train.labels import IGNORED
from adapterops.train.network import apply_kernels, lora_config, nf4
from adapterops.train.packing import Collator, packed_rows
from adapterops.train.processes import divided
from adapterops.train.trainer import AnswerTrainer, training_arguments
from adapterops.yamlfile import load_yaml

CONFIGURATIONS = sorted((ROOT / "configs/accelerate").glob("*.yaml"))
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "zero2": DistributedType.DEEPSPEED,
    "zero3": DistributedType.DEEPSPEED,
}

# Value by value: DeepSpeed itself, which would check them, is not among the pinned requirements.
_EITHER_STAGE = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "offload_optimizer_device": "none",
    "offload_param_device": "none",
}
DEEPSPEED = {
    "zero2": {"zero_stage": 2, **_EITHER_STAGE},
    "zero3": {
        "zero_stage": 3,
        "zero3_init_flag": False,
        "zero3_save_16bit_model": True,
        **_EITHER_STAGE,
    },
}
FSDP = {
    "fsdp_version": [1],
    "fsdp_auto_wrap_policy": FSDP_AUTO_WRAP_POLICY,
    "fsdp_backward_prefetch": FSDP_BACKWARD_PREFETCH,
    "fsdp_reshard_after_forward": FSDP_SHARDING_STRATEGY,
    "fsdp_state_dict_type": FSDP_STATE_DICT_TYPE,
}


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_reads_the_configuration_and_knows_every_key(path):
    config = load_config_from_file(str(path))
    assert config.distributed_type == KINDS[path.stem]
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(config.fsdp_config) | set(config.deepspeed_config) <= known
    assert f"configs/accelerate/{path.name}" in path.read_text()
    if config.distributed_type == DistributedType.DEEPSPEED:
        assert config.deepspeed_config == DEEPSPEED[path.stem]
    if config.distributed_type == DistributedType.FSDP:
        for setting, allowed in FSDP.items():
            assert config.fsdp_config[setting] in allowed


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_trainer_and_configuration_name_the_same_type(path, monkeypatch):
    """Or DeepSpeed refuses to begin: `ds bf16.enabled=True vs hf bf16|bf16_full_eval=False`."""
    config = load_config_from_file(str(path))
    if config.distributed_type == DistributedType.DEEPSPEED:
        monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")  # as `accelerate launch` does
    monkeypatch.setattr(trainer, "SFTConfig", dict)  # the real one asks for an installed DeepSpeed
    training = load_recipe(ROOT / "configs/qlora/llama3-70b-sharded.yaml").training
    assert training_arguments(training, 1, path)["bf16"] is (config.mixed_precision == "bf16")


def test_fsdp_is_told_what_the_configuration_says(monkeypatch):
    for name, value in load_config_from_file(
        str(ROOT / "configs/accelerate/fsdp.yaml")
    ).fsdp_config.items():
        monkeypatch.setenv(
            name.upper(), str(value).lower() if isinstance(value, bool) else str(value)
        )
    # It asks for the GPU that weights are sent to, which no test has.
    monkeypatch.setattr("accelerate.utils.dataclasses.is_cuda_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 1
    assert plugin.sharding_strategy == ShardingStrategy.FULL_SHARD
    assert plugin.backward_prefetch == BackwardPrefetch.BACKWARD_PRE
    assert plugin.sync_module_states
    assert plugin.use_orig_params is False


def test_nf4_is_stored_in_the_type_that_fsdp_cuts():
    recipe = load_recipe(ROOT / "configs/qlora/llama3-70b-sharded.yaml")
    assert (
        nf4(recipe.quantization, torch.bfloat16, sharded=True).bnb_4bit_quant_storage
        == torch.bfloat16
    )
    assert nf4(recipe.quantization).bnb_4bit_quant_storage == torch.uint8


def test_what_does_not_go_in_pieces_is_refused_and_the_sharded_recipe_is_not():
    recipe = load_recipe(ROOT / "configs/qlora/llama3-70b-sharded.yaml")
    _refuse_in_pieces(recipe, recipe.training)
    recipe = load_recipe(ROOT / "configs/qlora/llama3-70b.yaml")
    with pytest.raises(UsageError) as refusal:
        _refuse_in_pieces(recipe, recipe.training)
    for setting in ("fused_lora true", "attn_implementation varlen", "optim paged_adamw_8bit"):
        assert f"llama3-70b.yaml: under FSDP and ZeRO stage 3: training.{setting}" in str(
            refusal.value
        )


@pytest.mark.parametrize("packing", [False, True])
def test_the_loss_that_trl_takes_of_pieces_is_ours(packing, tmp_path):
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
    rows = Dataset.from_list(
        [
            {
                "input_ids": list(range(3, 3 + n)),
                "labels": [IGNORED] * (n // 2) + list(range(3 + n // 2, 3 + n)),
            }
            for n in (9, 17, 12)
        ]
    )
    training = load_yaml(ROOT / "configs/qlora/smollm2-135m.yaml", Recipe)["training"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")), pad_token="-", eos_token="-"
    )
    collate = Collator(0, 40 if packing else None)
    trainer = AnswerTrainer(
        model=network,
        peft_config=lora_config(
            {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}, 2
        ),
        args=training_arguments(training, 0, tmp_path, use_cpu=True),
        train_dataset=packed_rows(rows, 40) if packing else rows,
        data_collator=collate,
        processing_class=tokenizer,
    )
    apply_kernels(trainer.model, liger=False, fused_lora=False)
    batch = collate(list(trainer.train_dataset))
    ours = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(20))
    trainer.sharded = True
    theirs = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(20))
    assert float(theirs.detach()) == pytest.approx(float(ours.detach()), rel=1e-4)
    assert theirs.requires_grad


@pytest.mark.parametrize(
    ("micro", "accumulation", "processes", "each"),
    [
        (4, 8, 1, (4, 8)),
        (4, 8, 2, (4, 4)),
        (4, 8, 8, (4, 1)),
        (8, 1, 2, (4, 1)),
        (4, 2, 8, (1, 1)),
        (6, 4, 12, (2, 1)),
    ],
)
def test_the_effective_batch_is_the_recipes_on_however_many_processes(
    micro, accumulation, processes, each
):
    assert divided(micro, accumulation, processes, "r.yaml") == each
    assert each[0] * each[1] * processes == micro * accumulation


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(
        UsageError,
        match=(
            r"r.yaml: training.per_device_train_batch_size 1 × gradient_accumulation_steps 2 cannot"
            r" .* 4 proc"
        ),
    ):
        divided(1, 2, 4, "r.yaml")
