"""What is mended in other libraries, and that these versions still need it.

Where a test says `when this fails`, the piece that it names can go.
"""

import inspect

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from bitsandbytes.nn import Linear4bit
from datasets import Dataset
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners import tuners_utils
from peft.utils.other import fsdp_auto_wrap_policy
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl import SFTConfig, SFTTrainer

from adapterops.train.network import apply_kernels, lora_config
from adapterops.train.packing import Collator
from adapterops.train.patches.accelerate import keep_buffers_exact
from adapterops.train.patches.peft import let_peft_see_units, load_adapter, same_precision
from adapterops.train.patches.transformers import RepeatableOrder, order_state
from adapterops.train.patches.trl import QuietTrainer, adapter_in_compute_type

pytestmark = pytest.mark.filterwarnings(
    "ignore:FSDP.state_dict_type",
    "ignore:When using ``NO_SHARD``",
    "ignore:FSDP is switching to use",
)

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}


def adapter_of(model, state=None):
    return get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)


@pytest.fixture
def in_units(tmp_path, monkeypatch):
    """A network in FSDP's units, of one process on the CPU, and its adapter as it was before.

    Names are as on many GPUs.
    """
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer")
    monkeypatch.setattr(
        tuners_utils,
        "_get_tuner_state_dict_key_prefixes",
        tuners_utils._get_tuner_state_dict_key_prefixes,
    )  # put back
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, vocab_size=128))
    model = get_peft_model(network, lora_config(LORA, 2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: tensor.detach().clone() for name, tensor in adapter_of(model).items()}
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )
    try:
        policy = fsdp_auto_wrap_policy(model)
        yield (
            FullyShardedDataParallel(
                model, auto_wrap_policy=policy, use_orig_params=False, device_id=torch.device("cpu")
            ),
            before,
        )
    finally:
        distributed.destroy_process_group()


def whole_state(network):
    with FullyShardedDataParallel.state_dict_type(network, StateDictType.FULL_STATE_DICT):
        return network.state_dict()


def test_peft_finds_the_adapter_in_units_only_when_it_is_shown(in_units):
    network, before = in_units
    assert (
        adapter_of(network.module, whole_state(network)) == {}
    )  # when this fails, `let_peft_see_units` can go
    let_peft_see_units()
    let_peft_see_units()
    found = adapter_of(network.module, whole_state(network))
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before)


def test_a_checkpoint_puts_the_adapter_back(in_units, tmp_path):
    network, before = in_units
    let_peft_see_units()
    save_file(before, tmp_path / "adapter_model.safetensors")
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert not any(
        tensor.any() for tensor in adapter_of(network.module, whole_state(network)).values()
    )
    load_adapter(network, tmp_path)
    found = adapter_of(network.module, whole_state(network))
    assert all(torch.equal(found[name], before[name]) for name in before)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop(next(iter(state))),
        lambda state: state.update({"other.weight": torch.ones(1)}),
    ],
)
def test_a_checkpoint_of_another_adapter_is_refused(in_units, tmp_path, change):
    network, before = in_units
    change(before)
    save_file(before, tmp_path / "adapter_model.safetensors")
    assert load_file(tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="does not fit the network"):
        load_adapter(network, tmp_path)


def test_buffers_stay_in_float32():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    plugin.set_mixed_precision("bf16", override=True)
    # When this fails, `keep_buffers_exact` can go.
    assert plugin.mixed_precision_policy.buffer_dtype == torch.bfloat16
    keep_buffers_exact(plugin)
    plugin.set_mixed_precision("bf16", override=True)
    assert plugin.mixed_precision_policy.param_dtype == torch.bfloat16
    assert plugin.mixed_precision_policy.buffer_dtype == torch.float32


@pytest.fixture
def tiny(tmp_path):
    """`make(**options)`: a base model of two layers from a file."""
    torch.manual_seed(0)
    path = tmp_path / "base"
    AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, vocab_size=128)).save_pretrained(path)
    return lambda **options: AutoModelForCausalLM.from_pretrained(path, **options)


def types_of_adapter(model):
    return {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}


def test_a_loaded_adapter_has_the_precision_that_it_had(tiny, tmp_path):
    network = tiny(dtype=torch.bfloat16)
    model = get_peft_model(network, lora_config(LORA, 2), autocast_adapter_dtype=False)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert types_of_adapter(model) == {torch.bfloat16}
    with same_precision(model):
        PeftModel.load_adapter(model, tmp_path / "adapter", "default", is_trainable=True)
        # When this fails, `same_precision` can go.
        assert types_of_adapter(model) == {torch.float32}
    assert types_of_adapter(model) == {torch.bfloat16}


NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
)


def test_nf4_weights_are_never_packed_anew(tiny):
    # When this fails, `keep_weights_unpacked` can go, or bitsandbytes has another name for it.
    assert "self.support_avx512bf16_for_cpu" in inspect.getsource(Linear4bit.forward)
    model = get_peft_model(tiny(quantization_config=NF4), lora_config(LORA, 2))
    apply_kernels(model, liger=False, fused_lora=False)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert layers
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    before = [layer.weight.data.clone() for layer in layers]
    with torch.no_grad():
        model(input_ids=torch.tensor([[1, 2, 3]]))
    assert all(
        torch.equal(layer.weight.data, kept) for layer, kept in zip(layers, before, strict=True)
    )


@pytest.fixture
def trainer(tiny, tmp_path):
    """`make(kind, model)`: a trainer of rows of unlike length, none of which is trained on."""

    def make(kind, model=None, **options):
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(WordLevel({"-": 0}, unk_token="-")),
            pad_token="-",
            eos_token="-",
        )
        rows = [{"input_ids": [3] * n, "labels": [3] * n} for n in (9, 30, 5, 12, 17, 21, 8, 14)]
        return kind(
            model=model or tiny(),
            peft_config=lora_config(LORA, 2),
            args=SFTConfig(
                output_dir=str(tmp_path / "out"),
                use_cpu=True,
                bf16=False,
                max_length=None,
                per_device_train_batch_size=2,
                dataset_kwargs={"skip_prepare_dataset": True},
                remove_unused_columns=False,
                **options,
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=Collator(0),
            processing_class=tokenizer,
        )

    return make


def test_the_adapter_of_a_quantised_model_is_in_the_type_that_the_model_computes_in(tiny, trainer):
    model = trainer(SFTTrainer, tiny(quantization_config=NF4, dtype=torch.float32)).model
    # When this fails, `adapter_in_compute_type` can go.
    assert types_of_adapter(model) == {torch.bfloat16}
    adapter_in_compute_type(model)
    assert types_of_adapter(model) == {torch.float32}


def test_only_trl_itself_reports_its_use(trainer, monkeypatch):
    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(
        "trl.trainer.base_trainer.send_telemetry", lambda *_, **__: sent.append(True)
    )
    trainer(QuietTrainer)
    assert not sent
    trainer(SFTTrainer)
    # When this fails, `QuietTrainer._send_telemetry` can go.
    assert sent


def test_trl_itself_writes_a_card_with_every_checkpoint():
    # When this fails, `QuietTrainer.create_model_card` can go.
    assert "self.create_model_card(" in inspect.getsource(SFTTrainer._save_checkpoint)


def test_an_order_of_rows_is_drawn_again_from_the_state_that_was_kept(trainer, tmp_path):
    made = trainer(SFTTrainer, train_sampling_strategy="group_by_length")
    sampler = made._get_train_sampler()
    assert isinstance(sampler, LengthGroupedSampler)

    def drawn_after(seed, order):
        torch.manual_seed(seed)
        return list(order)

    # When this fails, `RepeatableOrder` can go.
    assert drawn_after(1, sampler) != drawn_after(2, sampler)
    order = RepeatableOrder(sampler)
    first = drawn_after(1, order)
    order.write(tmp_path)
    resumed = RepeatableOrder(sampler, order_state(tmp_path))
    assert drawn_after(2, resumed) == first
    assert drawn_after(2, resumed) == drawn_after(2, sampler)


def test_without_an_order_nothing_is_kept(tmp_path):
    RepeatableOrder([1, 2, 3]).write(tmp_path)
    assert order_state(tmp_path) is None
