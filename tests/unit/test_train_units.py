"""An adapter in FSDP's units, of one process on the CPU: names are as on many GPUs."""

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from peft.tuners import tuners_utils
from peft.utils.other import fsdp_auto_wrap_policy
from safetensors.torch import load_file, save_file
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType
from transformers import AutoModelForCausalLM, LlamaConfig

from adapterops.train.network import lora_config
from adapterops.train.units import keep_buffers_exact, let_peft_see_units, load_adapter

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


def adapter_of(model, state=None):
    return get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)


@pytest.fixture
def in_units(tmp_path, monkeypatch):
    """A network in units, and its adapter as it was before."""
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "LlamaDecoderLayer")
    monkeypatch.setattr(
        tuners_utils,
        "_get_tuner_state_dict_key_prefixes",
        tuners_utils._get_tuner_state_dict_key_prefixes,
    )  # put back
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(LlamaConfig(**SIZES, vocab_size=128))
    model = get_peft_model(
        network,
        lora_config(
            {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "down_proj"]}, 2
        ),
    )
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
    from accelerate import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    keep_buffers_exact(plugin)
    plugin.set_mixed_precision("bf16", override=True)
    assert (
        plugin.mixed_precision_policy.param_dtype,
        plugin.mixed_precision_policy.buffer_dtype,
    ) == (torch.bfloat16, torch.float32)
