"""Packing, fused LoRA layers and the loss: faster ways to the very numbers of the plain way."""

import random
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

from adapterops.errors import UsageError
from adapterops.train.kernels.elementwise import add_dropped_, dropout, silu_mul, silu_mul_backward
from adapterops.train.kernels.loss import answer_loss
from adapterops.train.labels import IGNORED
from adapterops.train.network import apply_kernels, lora_config, try_attention
from adapterops.train.packing import Collator, packed_rows

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model(attention="sdpa", dropout=0.0, modules=PROJECTIONS, lora=None, **kernels):
    """A Llama of two layers in float32 with an adapter whose B matrices are not zero."""
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
        ),
        attn_implementation=attention,
    )
    settings = {"r": 4, "alpha": 8, "dropout": dropout, "target_modules": modules, **(lora or {})}
    wrapped = get_peft_model(network, lora_config(settings, 2)).float()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    apply_kernels(wrapped, **{"liger": False, "fused_lora": False, **kernels})
    return wrapped


def made_rows(*lengths):
    source = random.Random(0)
    rows = []
    for length in lengths:
        ids = [source.randrange(3, 128) for _ in range(length)]
        rows.append({"input_ids": ids, "labels": [IGNORED] * (length // 2) + ids[length // 2 :]})
    return rows


def loss_and_gradients(network, batch):
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    network.zero_grad()
    total = network(**inputs)
    total.backward()
    return total.item(), torch.cat(
        [p.grad.flatten() for p in network.parameters() if p.grad is not None]
    )


class TestPacking:
    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.integers(1, 64), min_size=1, max_size=80))
    def test_every_row_is_whole_in_one_pack_and_no_pack_overflows(self, lengths):
        rows = [
            {"input_ids": [number] * length, "labels": [number] * length}
            for number, length in enumerate(lengths)
        ]
        packs = packed_rows(Dataset.from_list(rows), 64)
        found = []
        for members in packs:
            assert len(members["input_ids"]) <= 64
            assert members["labels"] == members["input_ids"]
            start = 0
            for length in members["seq_lengths"]:
                found.append(members["input_ids"][start : start + length])
                start += length
        assert sorted(found) == sorted(row["input_ids"] for row in rows)

    def test_a_row_that_packing_would_cut_is_refused(self):
        with pytest.raises(ValueError, match="a row of 41 tokens does not fit into a pack of 40"):
            packed_rows(Dataset.from_list(made_rows(9, 41)), 40)

    def test_rows_of_usual_lengths_fill_packs_to_99_percent(self):
        source = random.Random(0)
        lengths = [min(4096, max(16, round(source.lognormvariate(5.77, 0.9)))) for _ in range(2000)]
        packs = packed_rows(
            Dataset.from_dict(
                {
                    "input_ids": [[0] * length for length in lengths],
                    "labels": [[0] * length for length in lengths],
                }
            ),
            4096,
        )
        assert sum(lengths) / (4096 * len(packs)) > 0.99

    def test_a_packed_row_has_the_loss_that_it_has_alone(self):
        rows = made_rows(9, 17, 5, 30, 12)
        network = model()
        alone = sum(network(**without_labels(Collator(0)([row]))).item() for row in rows)
        together = network(
            **without_labels(Collator(0, capacity=40)(packed_rows(Dataset.from_list(rows), 40)))
        ).item()
        padded = network(**without_labels(Collator(0)(rows))).item()
        assert together == pytest.approx(alone, rel=1e-5)
        assert padded == pytest.approx(alone, rel=1e-5)

    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_a_row_does_not_see_its_neighbours(self, attention):
        network = model(attention)
        first, second = made_rows(10, 14)
        other = {**first, "input_ids": first["input_ids"][::-1]}
        seen = []
        for neighbour in (first, other):
            (packed,) = packed_rows(
                Dataset.from_list([{**neighbour, "labels": [IGNORED] * 10}, second]), 24
            )
            seen.append(network(**without_labels(Collator(0, 24)([packed]))).item())
        assert seen[0] == pytest.approx(seen[1], rel=1e-6)

    def test_no_row_is_predicted_from_the_one_before_it(self):
        rows = [
            {"input_ids": [5, 6, 7], "labels": [5, 6, 7]},
            {"input_ids": [8, 9], "labels": [8, 9]},
        ]
        batch = Collator(0, 8, variable_length=True)(packed_rows(Dataset.from_list(rows), 8))
        assert batch["targets"].tolist() == [6, 7, 9]
        assert batch["positions"].tolist() == [0, 1, 3]
        assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
        assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 8]
        assert batch["max_length_q"] == 3


class TestAttention:
    """`try_attention`: before gigabytes are loaded, two small layers show whether rows see each
    other, and whether it runs here at all."""

    @pytest.fixture(scope="class")
    def directory(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("base")
        LlamaConfig(
            hidden_size=576,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            pad_token_id=2,
        ).save_pretrained(path)
        return path

    @pytest.mark.parametrize("capacity", [None, 256])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_what_keeps_rows_apart_passes_and_draws_no_random_number(
        self, directory, attention, capacity
    ):
        state = torch.get_rng_state()
        try_attention(
            directory, attention, torch.device("cpu"), Collator(7, capacity), Path("r.yaml")
        )
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_lets_packed_rows_see_each_other_is_refused(self, directory):
        def leaks(_module, query, key, value, _mask, scaling=None, **_):
            output = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=True
            )
            return output.transpose(1, 2), None

        AttentionInterface.register("leaks", leaks)
        with pytest.raises(
            UsageError,
            match=r"r\.yaml: training\.attn_implementation leaks lets packed rows see each other",
        ):
            try_attention(directory, "leaks", torch.device("cpu"), Collator(0, 256), Path("r.yaml"))

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has them")
    @pytest.mark.parametrize(
        ("attention", "reason"),
        [
            ("varlen", "CPU"),
            ("flex_attention", "CPU"),
            ("flash_attention_2", "flash_attn|FlashAttention2"),
        ],
    )
    def test_what_is_not_here_is_said_with_what_to_set(self, directory, attention, reason):
        collate = Collator(0, 256, variable_length=attention != "flex_attention")
        with pytest.raises(
            UsageError,
            match=(
                rf"attn_implementation {attention} cannot be used here, on a CPU:"
                rf" .*(?:{reason}).*Set sdpa\."
            ),
        ):
            try_attention(directory, attention, torch.device("cpu"), collate, Path("r.yaml"))


def without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


class TestLastLayers:
    @pytest.mark.parametrize("fused", [False, True])
    def test_only_they_are_trained_and_no_gradient_is_computed_below(self, fused):
        network = model(lora={"last_layers": 1}, fused_lora=fused)
        trained = [
            name for name, parameter in network.named_parameters() if parameter.requires_grad
        ]
        assert len(trained) == 2 * len(PROJECTIONS)
        assert all(".layers.1." in name for name in trained)
        reached = []
        layers = network.get_base_model().model.layers
        layers[0].register_forward_hook(
            lambda *arguments: reached.append(arguments[2].requires_grad)
        )
        layers[1].register_forward_hook(
            lambda *arguments: reached.append(arguments[2].requires_grad)
        )
        _, gradients = loss_and_gradients(network, Collator(0)(made_rows(9, 17)))
        assert reached == [False, True]
        assert gradients.abs().sum() > 0


class TestFusedLora:
    @pytest.mark.parametrize("selective", [False, True])
    @pytest.mark.parametrize(
        "modules", [PROJECTIONS, ["q_proj", "v_proj"], ["gate_proj", "o_proj"]]
    )
    def test_loss_and_gradients_are_those_of_peft(self, modules, selective):
        batch = Collator(0, 40)(packed_rows(Dataset.from_list(made_rows(9, 17, 5, 30, 12)), 40))
        plain_loss, plain = loss_and_gradients(model(modules=modules), batch)
        fused_loss, fused = loss_and_gradients(
            model(modules=modules, fused_lora=True, selective_checkpointing=selective), batch
        )
        assert fused_loss == pytest.approx(plain_loss, rel=1e-5)
        torch.testing.assert_close(fused, plain, rtol=1e-3, atol=1e-4)

    def test_full_checkpointing_recomputes_the_same_dropout(self):
        batch = Collator(0, 40)(packed_rows(Dataset.from_list(made_rows(9, 17, 5, 30, 12)), 40))
        gradients = []
        for checkpointing in (False, True):
            network = model(dropout=0.3, fused_lora=True).train()
            if checkpointing:
                network.gradient_checkpointing_enable({"use_reentrant": False})
            torch.manual_seed(1)
            gradients.append(loss_and_gradients(network, batch)[1])
        torch.testing.assert_close(*gradients)

    @pytest.mark.parametrize("selective", [False, True])
    def test_gradients_under_dropout_are_those_of_the_loss_that_was_computed(self, selective):
        """Against finite differences along a direction, with the masks held by the seed."""
        network = (
            model(dropout=0.3, fused_lora=True, selective_checkpointing=selective).train().double()
        )
        batch = without_labels(
            Collator(0, 40)(packed_rows(Dataset.from_list(made_rows(9, 17, 12)), 40))
        )
        trained = [p for p in network.parameters() if p.requires_grad]

        def loss():
            torch.manual_seed(1)
            return network(**batch)

        loss().backward()
        direction = [torch.randn_like(p) for p in trained]
        slope = sum((p.grad * d).sum() for p, d in zip(trained, direction, strict=True)).item()
        values = []
        for step in (
            1e-3,
            -1e-3,
        ):  # the loss is summed in float32: smaller steps drown in its rounding
            with torch.no_grad():
                for p, d in zip(trained, direction, strict=True):
                    p.add_(d, alpha=step)
                values.append(loss().item())
                for p, d in zip(trained, direction, strict=True):
                    p.sub_(d, alpha=step)
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=0.02)

    def test_a_disabled_adapter_gives_the_base_model(self):
        batch = without_labels(Collator(0)(made_rows(9, 17)))
        fused, plain = model(fused_lora=True), model()
        with fused.disable_adapter(), plain.disable_adapter():
            base = fused(**batch).item()
            assert base == pytest.approx(plain(**batch).item())
        assert abs(fused(**batch).item() - base) > 1e-3


class TestKernels:
    def test_dropout_comes_again_from_its_seed_and_keeps_the_mean(self):
        ones = torch.ones(1000, 100)
        dropped = dropout(ones, 0.05, seed=7)
        assert torch.equal(dropped, dropout(ones, 0.05, seed=7))
        assert not torch.equal(dropped, dropout(ones, 0.05, seed=8))
        assert dropped.mean() == pytest.approx(1, abs=0.01)
        assert (dropped == 0).float().mean() == pytest.approx(0.05, abs=0.005)
        assert torch.equal(add_dropped_(torch.ones_like(ones), ones, 0.05, seed=7), ones + dropped)

    def test_swiglu_backward_is_what_autograd_finds(self):
        gate, up = (torch.randn(50, requires_grad=True) for _ in range(2))
        gradient = torch.randn(50)
        silu_mul(gate, up).backward(gradient)
        found = silu_mul_backward(gate.detach(), up.detach(), gradient)
        torch.testing.assert_close(found, (gate.grad, up.grad))

    def test_the_chunked_loss_is_the_plain_one(self, monkeypatch):
        monkeypatch.setattr("adapterops.train.kernels.loss._CHUNK", 128 * 7)
        hidden, weight, targets = (
            torch.randn(20, 16),
            torch.randn(128, 16),
            torch.randint(128, (20,)),
        )
        found = []
        for kernel in ("plain", "chunked"):
            leaf = hidden.clone().requires_grad_()
            total = answer_loss(leaf, weight, targets, kernel)
            (total * 3).backward()
            found.append((total.detach(), leaf.grad))
        torch.testing.assert_close(found[1], found[0])
