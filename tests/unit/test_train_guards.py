"""What a training does when something goes wrong, and what it says before it starts."""

import dataclasses
import signal
from typing import ClassVar

import pytest
from rich.console import Console

from adapterops.basemodels import find_base_model
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.schemas import ROOT
from adapterops.train.artifacts import loss_curve
from adapterops.train.checkpoints import Checkpoints
from adapterops.train.ladder import next_rung
from adapterops.train.memory import Shape, estimate
from adapterops.train.preflight import Gpu, throughput
from adapterops.train.recipe import hints, load_recipe
from adapterops.train.watch import EarlyStopping, LossGuard, Watch
from adapterops.yamlfile import load_yaml

LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128, 128256, tie_word_embeddings=False)


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
            (("compute_dtype: bfloat16", "compute_dtype: float16"), "float16 is refused: it overflows"),
            (("  dropout: 0.0", "  dropout: 0.0\n  use_dora: true"), "vLLM does not serve DoRA"),
            (("  dropout: 0.0", "  dropout: 0.0\n  bias: all"), "vLLM does not serve trained biases"),
            (("  dropout: 0.0", "  dropout: 0.0\n  modules_to_save: [lm_head]"), "adapters that carry whole modules"),
            (("  r: 16 ", "  r: 64 "), r"lora.r 64 is more than any configured server .* accepts \(configs/serving.demo.yaml up to 16\)"),
            (("learning_rate:", "learning_rat:"), "Did you mean `learning_rate`?"),
        ],
    )
    def test_what_could_not_be_served_or_trained_is_refused_with_the_reason(self, recipe, change, reason):
        with pytest.raises(UsageError, match=reason):
            recipe(change)

    def test_all_errors_come_at_once(self, recipe):
        with pytest.raises(UsageError, match="has 2 problems"):
            recipe(("type: nf4", "type: fp4"), ("logging_steps: 5", "logging_steps: 0"))


def test_unusual_settings_are_advised_against_and_not_refused(recipe):
    assert hints(recipe(), 560) == []
    text = "\n".join(hints(recipe(("alpha: 32", "alpha: 64"), ("num_train_epochs: 2 ", "num_train_epochs: 9 ")), 560))
    assert "lora.alpha 64 is outside 1–2 × r (16–32)" in text
    assert "num_train_epochs 9 is outside 3–5, usual for 560 rows" in text


class TestLossGuard:
    def test_a_loss_that_is_no_number_stops_the_training(self):
        with pytest.raises(RejectedError, match=r"loss nan at step 3\. In r.yaml: lower training.learning_rate 0.1"):
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
    watch = Watch(Console(quiet=True), 1, LossGuard("r.yaml", 0.1))
    with pytest.raises(InfrastructureError, match=r"interrupted by SIGTERM before the first step\. The same command starts again"), watch:
        try:
            signal.raise_signal(signal.SIGTERM)
        except InfrastructureError as error:
            raise RuntimeError("We encountered some issues during automatic conversion of the weights.") from error


def test_early_stopping_waits_for_its_patience_and_knows_the_best_step():
    stopping = EarlyStopping(patience=2)
    assert [stopping.see(step, loss) for step, loss in enumerate([3.0, 2.0, 2.1, 1.9, 2.0, 2.2])] == [False] * 5 + [True]
    assert (stopping.best, stopping.best_step) == (1.9, 3)


class TestLadder:
    START: ClassVar = {
        "per_device_train_batch_size": 12,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": False,
        "fused_lora": True,
        "on_truncation": "allow",
        "max_length": 2048,
    }

    def rungs(self, **changes):
        settings, taken = {**self.START, **changes}, []
        while rung := next_rung(settings):
            settings = rung[0]
            assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 24
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

    def test_tokens_are_lost_only_where_the_recipe_allows_it(self):
        assert self.rungs(on_truncation="error", fused_lora=False)[-1] == "gradient_checkpointing false → true"


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
        assert sorted(path.name for path in checkpoints.directory.iterdir()) == ["checkpoint-10", "checkpoint-15"]

    def test_one_that_was_cut_off_is_passed_over(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        whole = self.write(checkpoints, 5)
        (self.write(checkpoints, 10) / "weights").write_text("half")
        (checkpoints.directory / "checkpoint-15").mkdir()
        assert checkpoints.newest() == whole

    def test_another_key_has_others(self, tmp_path):
        self.write(Checkpoints(tmp_path, "a" * 64), 5)
        assert Checkpoints(tmp_path, "b" * 64).newest() is None

    def test_the_third_failure_in_a_row_ends_the_training(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, "a" * 64)
        checkpoints.failed(1, "disk full")
        checkpoints.failed(2, "disk full")
        self.write(checkpoints, 3)
        checkpoints.failed(4, "disk full")
        checkpoints.failed(5, "disk full")
        with pytest.raises(InfrastructureError, match=r"3 checkpoints in a row failed \(disk full\)"):
            checkpoints.failed(6, "disk full")


class TestMemory:
    """Against the peaks of docs/performance.md: the shape of Llama-3.1-8B, r 64, dropout 0.05, Liger, packs of 4,096 tokens."""

    GUIDE: ClassVar = {"packing": False, "attn_implementation": "sdpa", "liger": False, "gradient_checkpointing": True}
    LORA: ClassVar = {
        "r": 64,
        "dropout": 0.05,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
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
            ("guide", 11708, {**GUIDE, "float32_copies": True}, 32.3),
            ("packed-sdpa", 8192, {"attn_implementation": "sdpa", "gradient_checkpointing": True}, 10.3),
            ("flex-no-checkpointing-2", 8192, {}, 58.2),
            ("fused-1", 4096, {"fused_lora": True}, 21.1),
            ("fused-2", 8192, {"fused_lora": True}, 36.1),
            ("fused-4", 16384, {"fused_lora": True}, 66.1),
            ("fused-4-adamw", 16384, {"fused_lora": True, "optim": "adamw_torch_fused"}, 66.8),
            ("fused-4-no-dropout", 16384, {"fused_lora": True}, 62.1),
            ("fused-selective-4", 16384, {"fused_lora": True, "gradient_checkpointing": "selective"}, 39.1),
            ("fused-selective-2", 8192, {"fused_lora": True, "gradient_checkpointing": "selective"}, 22.6),
            ("fused-selective-1", 4096, {"fused_lora": True, "gradient_checkpointing": "selective"}, 14.4),
            ("fused-checkpointing-4", 16384, {"fused_lora": True, "gradient_checkpointing": True}, 13.5),
        ],
    )
    def test_every_measured_peak_is_predicted_within_ten_percent(self, name, tokens, changes, measured):
        lora = {**self.LORA, "dropout": 0.0} if name.endswith("no-dropout") else self.LORA
        found = estimate(LLAMA_8B, {"double_quant": False}, lora, {**self.TRAINING, **changes}, tokens).training / 2**30
        assert found == pytest.approx(measured, rel=0.10)

    def test_parameters_are_those_of_the_model(self):
        assert LLAMA_8B.linear_parameters == 6_979_321_856
        assert LLAMA_8B.lora_parameters(64, self.LORA["target_modules"]) == 167_772_160
        assert LLAMA_8B.linear_parameters + LLAMA_8B.embedding_parameters == pytest.approx(8.03e9, rel=0.001)

    def test_each_saving_saves(self):
        def peak(**changes):
            return estimate(LLAMA_8B, {"double_quant": True}, self.LORA, {**self.TRAINING, **changes}, 8192).training

        selective = peak(fused_lora=True, gradient_checkpointing="selective")
        assert peak() > peak(fused_lora=True) > selective > peak(gradient_checkpointing=True)


class TestPreflight:
    def test_a_measured_setting_is_called_measured_and_another_gpu_scaled(self, recipe):
        prices = load_yaml(ROOT / "configs/pricing.yaml", "pricing")
        settings = recipe(of="llama3-8b")
        settings = dataclasses.replace(settings, training={**settings.training, "train_sampling_strategy": "random"})
        h100 = Gpu("h100", **prices["gpus"]["h100"])
        a100 = Gpu("a100-80", **prices["gpus"]["a100-80"])
        measured, basis = throughput(settings, LLAMA_8B, h100, prices)
        assert measured == 1420
        assert basis.startswith("measured h100")
        scaled, basis = throughput(settings, LLAMA_8B, a100, prices)
        assert scaled == pytest.approx(1420 * 312 / 989, rel=0.01)
        assert basis.startswith("scaled from h100")

    def test_prices_are_complete_and_named_gpus_known(self):
        prices = load_yaml(ROOT / "configs/pricing.yaml", "pricing")
        assert {"a100-40", "a100-80", "h100", "h200", "l4", "rtx-4090"} <= set(prices["gpus"])
        assert {row["gpu"] for row in prices["measured"]} <= set(prices["gpus"])
        for row in prices["measured"]:
            find_base_model(row["base_model"], "configs/pricing.yaml")


def test_the_loss_curve_is_an_svg_with_both_lines():
    from xml.etree import ElementTree

    history = [{"step": step, "loss": 2.0 / step} for step in range(1, 9)]
    manifest = {"training": {"loss_history": history}, "run": {"held_back": [{"step": 4, "loss": 1.0}, {"step": 8, "loss": 0.9}]}}
    root = ElementTree.fromstring(loss_curve(manifest))
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    ElementTree.fromstring(loss_curve({"training": {"loss_history": history[:1]}, "run": {"held_back": []}}))
