"""What a training does when something goes wrong, and what it says before it starts."""

import dataclasses
import json
import signal
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file

from adapterops.candidates.checkpoints import Checkpoints
from adapterops.documents import read_json
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import ROOT
from adapterops.shapes.preflight import Preflight
from adapterops.shapes.pricing import Pricing
from adapterops.specs.base_model import find_base_model
from adapterops.specs.recipe import hints, load_recipe
from adapterops.train.artifacts import _check_written, loss_curve, save_adapter
from adapterops.train.encode import EncodedData
from adapterops.train.interruptions import Interruptions
from adapterops.train.ladder import is_out_of_memory, next_rung
from adapterops.train.memory import Shape, estimate
from adapterops.train.network import lora_config
from adapterops.train.preflight import Gpu, cost, gpu_named, predict, throughput
from adapterops.train.watch import EarlyStopping, LossGuard
from adapterops.yamlfile import load_yaml

LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128, 128256, tie_word_embeddings=False)


@pytest.fixture
def prices():
    return load_yaml(ROOT / "configs/pricing.yaml", Pricing)


@pytest.fixture
def recipe(tmp_path):
    """`make((old, new), …)`: a recipe file with words replaced, loaded."""

    def make(*changes, of="smollm2-135m"):
        text = (ROOT / f"configs/qlora/{of}.yaml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return load_recipe(path)

    return make


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (("type: nf4", "type: fp4"), "fp4 is refused"),
            (
                ("compute_dtype: bfloat16", "compute_dtype: float16"),
                "float16 is refused: it overflows",
            ),
            (("  dropout: 0.0", "  dropout: 0.0\n  use_dora: true"), "vLLM does not serve DoRA"),
            (
                ("  dropout: 0.0", "  dropout: 0.0\n  bias: all"),
                "vLLM does not serve trained biases",
            ),
            (
                ("  dropout: 0.0", "  dropout: 0.0\n  modules_to_save: [lm_head]"),
                "adapters that carry whole modules",
            ),
            (
                ("  r: 16 ", "  r: 64 "),
                (
                    r"`lora.r`: 64 is more than any .* server of smollm2.*"
                    r" \(configs/serving.demo.yaml up to 16\)"
                ),
            ),
            (
                ("  r: 16 ", "  r: 24 "),
                "24 is not one of 8, 16, 32, 64, 128, 256. The engine has room for these ranks",
            ),
            (
                ("1.5e-3", "2e-3"),
                r'`training.learning_rate`: "2e-3" is not a number\. Write 2\.0e-3\.',
            ),
            (("1.5e-3", "2.5e3"), r"Write 2\.5e\+3\."),
            (("1.5e-3", '"0.5"'), r"Write 0\.5, without quotes\."),
            (("learning_rate:", "learning_rat:"), "Did you mean `learning_rate`?"),
        ],
    )
    def test_what_could_not_be_served_or_trained_is_refused_with_the_reason(
        self, recipe, change, reason
    ):
        with pytest.raises(UsageError, match=reason):
            recipe(change)

    def test_all_errors_come_at_once(self, recipe):
        with pytest.raises(UsageError, match="has 2 problems"):
            recipe(("type: nf4", "type: fp4"), ("logging_steps: 5", "logging_steps: 0"))

    def test_a_broken_value_hides_nothing_that_does_not_go_together(self, recipe):
        with pytest.raises(UsageError) as refusal:
            recipe(
                ("type: nf4", "type: fp4"),
                ("r: 16 ", "r: 64 "),
                ("max_length: 256", "max_length: 100000"),
                ("implementation: eager", "implementation: varlen"),
                ("packing: true ", "packing: false "),
            )
        lines = str(refusal.value).splitlines()
        assert "has 4 problems" in lines[0]
        for setting, line in {
            "quantization.type": 11,
            "lora.r": 18,
            "training.max_length": 33,
            "training.attn_implementation": 39,
        }.items():
            assert any(f"recipe.yaml:{line}: `{setting}`" in shown for shown in lines), lines
        with pytest.raises(
            UsageError,
            match=r"has 2 problems(?s:.*)`base_model`: base model `gpt-9` is not on the allow-list",
        ):
            recipe(
                ("base_model: smollm2-135m-instruct", "base_model: gpt-9"),
                ("type: nf4", "type: fp4"),
            )

    def test_the_rank_of_a_base_model_that_none_serves_is_held_to_the_highest_limit_there_is(
        self, recipe
    ):
        recipe(of="llama3-70b")
        with pytest.raises(
            UsageError,
            match=(
                r"`lora.r`: 256 is more than any .*configs/serving.yaml up to 64; none serves"
                r" llama-3.1-70b"
            ),
        ):
            recipe(("  r: 64 ", "  r: 256 "), of="llama3-70b")


def test_unusual_settings_are_advised_against_and_not_refused(recipe):
    assert hints(recipe(), 560) == []
    text = "\n".join(
        hints(
            recipe(("alpha: 32", "alpha: 64"), ("num_train_epochs: 1.59 ", "num_train_epochs: 9 ")),
            560,
        )
    )
    assert "lora.alpha 64 is outside 1–2 × r (16–32)" in text
    assert "num_train_epochs 9 is outside 3–5, usual for 560 rows: more memorises" in text
    (few,) = hints(
        recipe(("num_train_epochs: 3 ", "num_train_epochs: 1 "), of="llama3-8b-fast"), 560
    )
    assert "num_train_epochs 1 is outside 3–5, usual for 560 rows: fewer leave much unlearnt" in few


class TestLossGuard:
    def test_a_loss_that_is_no_number_stops_the_training(self):
        with pytest.raises(
            RejectedError, match=r"loss nan at step 3\. In r.yaml: lower training.learning_rate 0.1"
        ):
            LossGuard("r.yaml", 0.1).see(3, float("nan"))
        with pytest.raises(RejectedError, match="gradient norm inf"):
            LossGuard("r.yaml", 0.1).see(3, 1.0, float("inf"))

    def test_a_loss_that_stays_far_above_its_minimum_has_diverged(self):
        guard = LossGuard("r.yaml", 0.1)
        for step in range(20):
            guard.see(step, 2.0 / (step + 1))
        with pytest.raises(RejectedError, match="training diverges"):
            for step in range(20, 60):
                guard.see(step, 7.0)

    def test_noise_and_single_spikes_do_not_stop_it(self):
        guard = LossGuard("r.yaml", 0.1)
        for step in range(200):
            guard.see(step, 6.0 if step % 40 == 39 else 1.0 + 0.5 * (step % 3))


def test_a_signal_while_the_model_loads_is_an_interruption_whatever_a_library_makes_of_it():
    again = r"interrupted by SIGTERM before the first step\. The same command starts again"
    with pytest.raises(InfrastructureError, match=again), Interruptions():
        try:
            signal.raise_signal(signal.SIGTERM)
        except InfrastructureError as error:
            raise RuntimeError(
                "We encountered some issues during automatic conversion of the weights."
            ) from error


def test_between_steps_signals_are_only_noted_and_who_insists_is_heard(monkeypatch):
    with Interruptions() as interruptions:
        interruptions.stepping = True
        for number in (
            signal.SIGINT,
            signal.SIGINT,
            signal.SIGTERM,
        ):  # as launchers and GitHub send them
            signal.raise_signal(number)
        assert interruptions.heard == "SIGTERM"
        monkeypatch.setattr("adapterops.train.interruptions._AGAIN_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_early_stopping_waits_for_its_patience_and_knows_the_best_step():
    stopping = EarlyStopping(patience=2)
    assert [
        stopping.see(step, loss) for step, loss in enumerate([3.0, 2.0, 2.1, 1.9, 2.0, 2.2])
    ] == [False] * 5 + [True]
    assert (stopping.best, stopping.best_step) == (1.9, 3)


class TestLadder:
    START: ClassVar = {
        "per_device_train_batch_size": 12,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "fused_lora": True,
        "on_truncation": "allow",
        "max_length": 2048,
        "packing": False,
    }

    def rungs(self, **changes):
        settings, taken = {**self.START, **changes}, []
        while rung := next_rung(settings):
            settings = rung[0]
            assert (
                settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
                == 24
            )
            taken.append(rung[1])
        return taken

    def test_the_effective_batch_stays_on_every_rung(self):
        assert self.rungs() == [
            "per_device_train_batch_size 12 → 6, gradient_accumulation_steps 2 → 4",
            "per_device_train_batch_size 6 → 3, gradient_accumulation_steps 4 → 8",
            "per_device_train_batch_size 3 → 1, gradient_accumulation_steps 8 → 24",
            "gradient_checkpointing false → selective",
            "gradient_checkpointing selective → true",
            "max_length 2048 → 1024",
            "max_length 1024 → 512",
        ]

    def test_packs_of_half_the_length_come_twice_as_many_to_a_step(self):
        settings, tokens = {**self.START, "packing": True}, set()
        while rung := next_rung(settings):
            settings = rung[0]
            tokens.add(
                settings["per_device_train_batch_size"]
                * settings["gradient_accumulation_steps"]
                * settings["max_length"]
            )
        assert settings["max_length"] == 512
        assert tokens == {24 * 2048}

    @pytest.mark.parametrize(
        ("error", "so"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), True),
            (
                RuntimeError(
                    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
                ),
                True,
            ),
            (
                RuntimeError(
                    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
                ),
                True,
            ),
            (
                RuntimeError(
                    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"
                    " allocate 8 bytes"
                ),
                True,
            ),
            (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
            (ValueError("out of memory"), False),
        ],
    )
    def test_memory_runs_out_in_several_words(self, error, so):
        assert is_out_of_memory(error) is so

    def test_tokens_are_lost_only_where_the_recipe_allows_it(self):
        assert (
            self.rungs(on_truncation="error", fused_lora=False)[-1]
            == "gradient_checkpointing false → true"
        )


class TestCheckpoints:
    def write(self, checkpoints, step, content="x"):
        directory = checkpoints.directory / f"checkpoint-{step}"
        directory.mkdir(parents=True)
        (directory / "weights").write_text(content)
        checkpoints.seal(step)
        return directory

    def test_the_newest_whole_one_is_found_and_two_are_kept(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        assert checkpoints.newest() is None
        for step in (5, 10, 15):
            last = self.write(checkpoints, step)
        assert checkpoints.newest() == last
        assert sorted(path.name for path in checkpoints.directory.iterdir()) == [
            "checkpoint-10",
            "checkpoint-15",
        ]

    def test_one_that_was_cut_off_is_passed_over(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        whole = self.write(checkpoints, 5)
        (self.write(checkpoints, 10) / "weights").write_text("half")
        (checkpoints.directory / "checkpoint-15").mkdir()
        assert checkpoints.newest() == whole

    @pytest.mark.parametrize(
        "seal",
        ["null", "[]", '{"files": []}', '{"files": {"weights": 1}}', '{"files": [{"name": 1}]}'],
    )
    def test_one_whose_seal_is_none_is_passed_over(self, tmp_path, seal):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        whole = self.write(checkpoints, 5)
        (self.write(checkpoints, 10) / "seal.json").write_text(seal)
        assert checkpoints.newest() == whole

    def test_the_one_just_written_is_kept_though_unusable_ones_are_ahead(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        for step in (70, 80):
            (checkpoints.directory / f"checkpoint-{step}").mkdir(parents=True)
        for step in (10, 20, 30):
            last = self.write(checkpoints, step)
        assert checkpoints.newest() == last

    def test_another_key_has_others(self, tmp_path):
        self.write(Checkpoints(tmp_path, "a" * 64), 5)
        assert Checkpoints(tmp_path, "b" * 64).newest() is None

    def test_settings_of_another_rung_and_another_number_of_processes_have_others(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        self.write(checkpoints, 5)
        assert Checkpoints(tmp_path, "a" * 64, processes=2).newest() is None
        checkpoints.take_rung("smaller")
        assert checkpoints.newest() is None
        later = Checkpoints(tmp_path, "a" * 64)
        assert (later.find_rung(), later.newest()) == (1, None)
        assert Checkpoints(tmp_path, "a" * 64, processes=2).find_rung() == 0

    def test_the_third_failure_in_a_row_ends_the_training(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        checkpoints.failed(1, "disk full")
        checkpoints.failed(2, "disk full")
        self.write(checkpoints, 3)
        checkpoints.failed(4, "disk full")
        checkpoints.failed(5, "disk full")
        with pytest.raises(
            InfrastructureError,
            match=r"3 checkpoints in a row failed \(checkpoint of step 6 failed: disk full\)",
        ):
            checkpoints.failed(6, "disk full")


class TestMemory:
    """Against the peaks of docs/measurements/training.md: Llama-3.1-8B, rank 64, dropout 0.05,
    Liger, packs of 4,096 tokens."""

    GUIDE: ClassVar = {
        "packing": False,
        "attn_implementation": "sdpa",
        "liger": False,
        "gradient_checkpointing": True,
    }
    LORA: ClassVar = {
        "r": 64,
        "dropout": 0.05,
        "target_modules": [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
    }
    TRAINING: ClassVar = {
        "packing": True,
        "attn_implementation": "flex_attention",
        "liger": True,
        "fused_lora": False,
        "gradient_checkpointing": False,
        "optim": "paged_adamw_8bit",
    }

    @pytest.mark.parametrize(
        ("name", "tokens", "changes", "measured"),
        [
            ("guide", 11708, GUIDE, 32.3),
            (
                "packed-sdpa",
                8192,
                {"attn_implementation": "sdpa", "gradient_checkpointing": True},
                10.3,
            ),
            ("flex-no-checkpointing-2", 8192, {}, 58.2),
            ("fused-1", 4096, {"fused_lora": True}, 21.1),
            ("fused-2", 8192, {"fused_lora": True}, 36.1),
            ("fused-4", 16384, {"fused_lora": True}, 66.1),
            ("fused-4-adamw", 16384, {"fused_lora": True, "optim": "adamw_torch_fused"}, 66.8),
            ("fused-4-no-dropout", 16384, {"fused_lora": True}, 62.1),
            (
                "fused-selective-4",
                16384,
                {"fused_lora": True, "gradient_checkpointing": "selective"},
                39.1,
            ),
            (
                "fused-selective-2",
                8192,
                {"fused_lora": True, "gradient_checkpointing": "selective"},
                22.6,
            ),
            (
                "fused-selective-1",
                4096,
                {"fused_lora": True, "gradient_checkpointing": "selective"},
                14.4,
            ),
            (
                "fused-checkpointing-4",
                16384,
                {"fused_lora": True, "gradient_checkpointing": True},
                13.5,
            ),
        ],
    )
    def test_every_measured_peak_is_predicted_within_ten_percent(
        self, name, tokens, changes, measured
    ):
        lora = {**self.LORA, "dropout": 0.0} if name.endswith("no-dropout") else self.LORA
        found = estimate(
            LLAMA_8B,
            {"double_quant": False},
            lora,
            {**self.TRAINING, **changes},
            tokens,
            float32_copies=name == "guide",
        )
        assert found.training / 2**30 == pytest.approx(measured, rel=0.10)

    def test_parameters_are_those_of_the_model(self):
        assert LLAMA_8B.linear_parameters == 6_979_321_856
        assert LLAMA_8B.lora_parameters(self.LORA) == 167_772_160
        assert LLAMA_8B.linear_parameters + LLAMA_8B.embedding_parameters == pytest.approx(
            8.03e9, rel=0.001
        )

    def test_each_saving_saves(self):
        def peak(**changes):
            return estimate(
                LLAMA_8B, {"double_quant": True}, self.LORA, {**self.TRAINING, **changes}, 8192
            ).training

        selective = peak(fused_lora=True, gradient_checkpointing="selective")
        assert peak() > peak(fused_lora=True) > selective > peak(gradient_checkpointing=True)

    def test_layers_that_are_not_trained_keep_nothing_for_a_backward_pass(self):
        def made(**lora):
            return estimate(
                LLAMA_8B, {"double_quant": True}, {**self.LORA, **lora}, self.TRAINING, 8192
            )

        half = made(last_layers=16)
        assert half.lora == made().lora / 2
        assert half.activations == pytest.approx(made().activations / 2, rel=0.05)
        assert half.weights == made().weights

    def test_loading_takes_what_is_loaded_and_one_tensor_on_its_way_whatever_the_batch(self):
        few, many = (
            estimate(LLAMA_8B, {"double_quant": True}, self.LORA, self.TRAINING, tokens)
            for tokens in (4096, 16384)
        )
        assert few.loading == many.loading
        held = few.weights + few.quantisation_constants + few.embeddings
        assert few.loading - held == pytest.approx(
            4096 * 14336 * 2, rel=0.04
        )  # the widest projection in bf16
        assert few.loading < few.evaluation < few.training

    def test_an_evaluation_beside_a_training_holds_the_optimisers_state_too(self):
        paged, held = (
            estimate(
                LLAMA_8B, {"double_quant": True}, self.LORA, {**self.TRAINING, "optim": optim}, 4096
            )
            for optim in ("paged_adamw_8bit", "adamw_torch")
        )
        assert held.evaluation - paged.evaluation == held.optimiser > 0

    def test_in_pieces_each_gpu_holds_its_share(self):
        llama_70b = Shape(8192, 28672, 80, 64, 8, 128, 128256, tie_word_embeddings=False)
        checkpointed = {
            **self.TRAINING,
            "gradient_checkpointing": True,
            "optim": "adamw_torch",
            "liger": False,
        }
        whole, quarter = (
            estimate(llama_70b, {"double_quant": True}, self.LORA, checkpointed, 4096, pieces=n)
            for n in (1, 4)
        )
        for part in (
            "weights",
            "quantisation_constants",
            "embeddings",
            "lora",
            "gradients",
            "optimiser",
        ):
            assert getattr(quarter, part) == getattr(whole, part) / 4
        assert quarter.activations == whole.activations
        assert quarter.training < whole.training / 2
        assert quarter.loading == pytest.approx(
            whole.loading
        )  # each process reads the whole, and cuts it then


class TestPreflight:
    @pytest.fixture(scope="class")
    def prices(self):
        return load_yaml(ROOT / "configs/pricing.yaml", Pricing)

    @pytest.fixture
    def speed(self, prices):
        def of(settings, gpu, shape=LLAMA_8B, **changes):
            settings = dataclasses.replace(
                settings, lora={**settings.lora, "r": changes.pop("r", settings.lora["r"])}
            )
            training = {**settings.training, **changes}
            return throughput(settings, training, shape, Gpu(gpu, **prices["gpus"][gpu]), prices)

        return of

    def test_a_measured_setting_is_called_measured_and_another_gpu_scaled(self, recipe, speed):
        settings = recipe(of="llama3-8b")
        measured, basis = speed(settings, "h100")
        assert measured == 2688
        assert basis.startswith("measured h100, llama-3.1-8b-instruct, padded rows of like length")
        scaled, basis = speed(settings, "a100-80")
        assert scaled == pytest.approx(2688 * 312 / 989, rel=0.01)
        assert basis.startswith("scaled from h100")

    @pytest.mark.parametrize(
        "change",
        [
            {"train_sampling_strategy": "random"},
            {"r": 16},
            {"per_device_train_batch_size": 1},
            {"max_length": 2048},
        ],
    )
    def test_what_differs_from_what_was_measured_is_not_called_measured(
        self, recipe, speed, change
    ):
        found, basis = speed(recipe(of="llama3-8b"), "h100", **change)
        if "train_sampling_strategy" in change:  # was measured as well
            assert (found, basis.split()[0]) == (1687, "measured")
        else:
            assert (found, basis.split()[0]) == (2688, "like")

    def test_of_a_small_model_the_tied_head_counts_whole(self, recipe, speed):
        smollm2 = Shape(576, 1536, 30, 9, 3, 64, 49152, tie_word_embeddings=True)
        assert smollm2.passed_parameters == pytest.approx(134.5e6, rel=0.001)
        padded = recipe(
            ("packing: true ", "packing: false "), ("strategy: random", "strategy: group_by_length")
        )
        found, basis = speed(padded, "h100", smollm2)
        assert found == pytest.approx(2688 * 7504658432 / 134.5e6, rel=0.01)
        assert basis.startswith("scaled from h100, llama-3.1-8b-instruct")

    @pytest.mark.parametrize(
        ("device", "name"),
        [
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("NVIDIA A100-SXM4-80GB", "a100-80"),
            ("NVIDIA A100-PCIE-40GB", "a100-40"),
            ("NVIDIA L4", "l4"),
            ("NVIDIA L40S", None),
            ("NVIDIA GeForce RTX 4090", "rtx-4090"),
            ("cpu (x86_64)", None),
        ],
    )
    def test_the_drivers_name_is_that_of_the_price_list(self, prices, device, name):
        found = gpu_named(device, prices)
        assert (found and found.name) == name

    def test_the_manifest_holds_speed_minutes_and_cost_against_what_was_measured(
        self, recipe, prices
    ):
        encoded = EncodedData([[1] * 100] * 50, [[1] * 100] * 50, 0, 0, 0, {})
        settings = recipe()
        found = predict(settings, settings.training, encoded, "NVIDIA H100 80GB HBM3", prices)
        assert found["gpu"] == "h100"
        assert found["minutes"] == pytest.approx(
            50 * 100 * 2 / found["tokens_per_second"] / 60, abs=0.05
        )
        assert cost(7200, "NVIDIA H100 80GB HBM3", prices, 2) == {"usd": 14.0}
        two = predict(
            settings, settings.training, encoded, "NVIDIA H100 80GB HBM3", prices, processes=2
        )
        assert two["tokens_per_second"] == pytest.approx(2 * found["tokens_per_second"], rel=1e-5)
        assert set(predict(settings, settings.training, encoded, "cpu (x86_64)", prices)) == {
            "loading_gib",
            "training_gib",
            "evaluation_gib",
        }
        assert cost(7200, "cpu (x86_64)", prices, 2) == {}

    def test_prices_are_complete_and_named_gpus_known(self):
        prices = load_yaml(ROOT / "configs/pricing.yaml", Pricing)
        assert {"a100-40", "a100-80", "h100", "h200", "l4", "rtx-4090"} <= set(prices["gpus"])
        assert {row["gpu"] for row in prices["measured"]} <= set(prices["gpus"])
        for row in prices["measured"]:
            find_base_model(row["base_model"], "configs/pricing.yaml")


class TestWorkThatFewTokensCanMake:
    """The cap on cost is held against this: a recipe or rows of unusual kind must not cost more
    than is said."""

    @pytest.fixture
    def priced(self, recipe, prices):
        def tokens(lengths, **settings):
            made = recipe()
            training = {
                **made.training,
                "num_train_epochs": 100,
                "train_sampling_strategy": "random",
                "packing": False,
                **settings,
            }
            ids = [[number % 97] * (length - 1) + [number] for number, length in enumerate(lengths)]
            encoded = EncodedData(ids, ids, 0, 0, 0, {})
            found = predict(made, training, encoded, "NVIDIA L4", prices)
            return found["minutes"] * 60 * found["tokens_per_second"]

        return tokens

    def test_usual_rows_cost_their_tokens(self, priced):
        assert priced([1000] * 500, per_device_train_batch_size=4) == pytest.approx(
            500 * 1000 * 100, rel=0.1
        )
        assert priced([600, 1400] * 250, per_device_train_batch_size=4) == pytest.approx(
            500 * 1000 * 100, rel=0.1
        )

    def test_a_look_after_each_step_is_counted(self, priced):
        settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
        often = {"early_stopping": {"share": 0.5, "every_steps": 1, "patience": 1_000_000}}
        assert priced([1000] * 500, **settings, **often) > 40 * priced([1000] * 500, **settings)
        seldom = {"early_stopping": {"share": 0.1, "every_steps": 200, "patience": 3}}
        assert priced([1000] * 500, **settings, **seldom) < 1.2 * priced([1000] * 500, **settings)

    def test_batches_of_padding_are_counted(self, priced):
        mixed = ([4000] + [20] * 31) * 20
        alike = priced(
            mixed, per_device_train_batch_size=32, train_sampling_strategy="group_by_length"
        )
        assert priced(mixed, per_device_train_batch_size=32) > 5 * alike

    def test_steps_of_a_few_tokens_are_counted(self, priced):
        few = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
        assert priced([20] * 2000, **few) > 10 * 2000 * 20 * 100
        assert priced([16] * 2000, **few, packing=True, max_length=16) > 10 * 2000 * 16 * 100


class TestPreflightCommand:
    """`train_qlora.py --preflight`, as a curator runs it."""

    @pytest.fixture
    def run(self, recipe, tmp_path):
        from click.testing import CliRunner

        import train_qlora

        data = tmp_path / "rows.jsonl"
        row = {
            "id": "row-1",
            "instruction": "Where is it?",
            "language": "en",
            "license": "CC0-1.0",
            "source": "tests",
        }
        data.write_text(json.dumps({**row, "output": "On its way to you. " * 30}) + "\n")

        def command(*options, changes=()):
            path = recipe(*changes).path
            return CliRunner().invoke(
                train_qlora.main,
                ["--preflight", "--config", str(path), "--data", str(data), *options],
            )

        return command

    def test_it_says_what_each_gpu_would_need_and_writes_it(self, run, tmp_path):
        result = run("--gpu", "l4", "--report", str(tmp_path / "preflight.json"))
        assert result.exit_code == 0, result.output
        document = read_json(tmp_path / "preflight.json", Preflight)
        assert {entry["gpu"]: entry["verdict"] for entry in document["gpus"]}["l4"] == "fits"
        assert document["rows"] == 1
        for words in (
            "peak GiB: loading",
            "rtx-4090",
            "0 rows would be cut, losing 0 tokens, 0 of them of answers",
        ):
            assert words in result.output

    def test_a_gpu_that_is_too_small_ends_it_with_1_and_what_to_set(self, run):
        larger = ("per_device_train_batch_size: 1 ", "per_device_train_batch_size: 1024 ")
        result = run("--gpu", "h100", changes=[larger])
        assert result.exit_code == 1, result.output
        assert "of the memory of h100. In " in result.output
        assert (
            "per_device_train_batch_size 1024 → 512, gradient_accumulation_steps 1 → 2; then"
            in result.output
        )

    def test_over_several_gpus_each_needs_less(self, run, tmp_path):
        peaks = []
        for pieces in ("1", "4"):
            assert run("--pieces", pieces, "--report", str(tmp_path / pieces)).exit_code == 0
            peaks.append(read_json(tmp_path / pieces, Preflight)["memory_gib"]["peak_training"])
        assert peaks[1] < peaks[0]

    def test_a_gpu_that_has_no_price_is_misuse(self, run):
        result = run("--gpu", "h1000")
        assert result.exit_code == 2
        assert "--gpu h1000 is not in configs/pricing.yaml. Did you mean `h100`?" in result.output


class TestWhatIsWritten:
    """`save_adapter`: LoRA's matrices in bf16, and nothing else."""

    A, B = (
        "base_model.model.layers.0.q_proj.lora_A.weight",
        "base_model.model.layers.0.q_proj.lora_B.weight",
    )

    def save(self, weights, recipe, directory):
        save_adapter(weights, lora_config(recipe.lora, 2), recipe, directory)

    def test_the_file_has_two_bytes_a_number(self, recipe, tmp_path):
        self.save({self.A: torch.ones(16, 64), self.B: torch.ones(64, 16)}, recipe(), tmp_path)
        size = (tmp_path / "adapter_model.safetensors").stat().st_size
        assert 2 * 2 * 16 * 64 < size < 2 * 2 * 16 * 64 + 1000

    def test_a_file_of_another_size_or_type_is_a_defect(self, tmp_path):
        save_file({self.A: torch.ones(16, 64)}, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match=r"bytes of F32\. Expected \d+ of BF16"):
            _check_written(tmp_path / "x.safetensors", {self.A: torch.ones(16, 64)})

    def test_embeddings_do_not_come_along(self, recipe, tmp_path):
        with pytest.raises(
            ValueError, match=r"the adapter would hold base_model\.model\.embed_tokens\.weight"
        ):
            self.save(
                {
                    self.A: torch.ones(16, 64),
                    "base_model.model.embed_tokens.weight": torch.ones(4, 4),
                },
                recipe(),
                tmp_path,
            )

    def test_what_is_no_number_is_named_with_recipe_and_value(self, recipe, tmp_path):
        with pytest.raises(
            RejectedError,
            match=(
                r"q_proj\.lora_A\.weight and 0 more .* In .*recipe\.yaml: lower"
                r" training\.learning_rate 0\.0015"
            ),
        ):
            self.save(
                {self.A: torch.full((16, 64), float("nan")), self.B: torch.ones(64, 16)},
                recipe(),
                tmp_path,
            )


def test_the_loss_curve_is_an_svg_with_both_lines():
    from xml.etree import ElementTree

    history = [{"step": step, "loss": 2.0 / step} for step in range(1, 9)]
    manifest = {
        "training": {"loss_history": history},
        "run": {"held_back": [{"step": 4, "loss": 1.0}, {"step": 8, "loss": 0.9}]},
    }
    root = ElementTree.fromstring(loss_curve(manifest))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    ElementTree.fromstring(
        loss_curve({"training": {"loss_history": history[:1]}, "run": {"held_back": []}})
    )
