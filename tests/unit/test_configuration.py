"""Configuration files: every error at once, at its line, with the remedy."""

import shutil

import pytest
from rich.console import Console

from adapterops import pipeline
from adapterops.errors import RejectedError, UsageError
from adapterops.pipeline import run_pipeline
from adapterops.schemas import ROOT
from adapterops.shapes.recipe import Recipe
from adapterops.specs.adapter import load_adapter, run_directory
from adapterops.specs.base_model import find_base_model, load_base_models
from adapterops.specs.gate import load_gates
from adapterops.specs.policy import load_policy
from adapterops.specs.recipe import load_recipe, training_key
from adapterops.specs.serving import load_serving_config
from adapterops.yamlfile import load_yaml

RECIPE = (ROOT / "configs/qlora/smollm2-135m.yaml").read_text()


@pytest.fixture
def recipe(tmp_path):
    def write(*changes):
        text = RECIPE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/qlora/*.yaml")), ids=lambda path: path.name
)
def test_shipped_recipes_load(path):
    assert load_recipe(path).base_model.name in load_base_models()


@pytest.mark.parametrize("path", sorted(ROOT.glob("adapters/*.yaml")), ids=lambda path: path.name)
def test_shipped_adapters_load(path):
    assert load_adapter(path.stem).name == path.stem


def test_all_errors_of_a_file_are_reported_at_once_with_their_lines(recipe):
    path = recipe(("  r: 16", "  rank: 16"), ("type: nf4", "type: fp4"), ("seed: 42", "seed: -1"))
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    message = str(caught.value)
    lines = path.read_text().splitlines()
    for text, line in [
        ("rank: 16", "unknown key `rank`"),
        ("type: fp4", '"fp4" is not one of nf4'),
        ("seed: -1", "-1 is out of"),
    ]:
        number = next(index for index, content in enumerate(lines, 1) if text in content)
        assert f"{path}:{number}: " in message
        assert line in message
    assert "missing key `r`" in message


def test_a_misspelt_key_is_answered_with_the_right_one(recipe):
    with pytest.raises(
        UsageError, match=r"unknown key `learning_rte`\. Did you mean `learning_rate`\?"
    ):
        load_recipe(recipe(("learning_rate:", "learning_rte:")))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2\n", "key `a` stands twice; the first is on line 1"),
        ("a: {b: [1, .nan]}\n", ":1: .nan is no number to go by"),
        ("a: -.inf\n", ":1: -.inf is no number to go by"),
        ("a: 1.0e+999\n", ":1: 1.0e.999 is no number to go by"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases are not supported"),
        ("2024-01-01: x\n", "unknown key `2024-01-01`"),
        (
            "seed: 2024-02-30\n",
            "day is out of range for month. Put what is no date or number in quotes",
        ),
        ("seed: " + "9" * 5000 + "\n", "a number of 5,000 characters"),
        ("a: [1\n", "not valid YAML"),
        ("a: !!python/object/apply:os.system [id]\n", "tags are not supported"),
        ("", "null is not a mapping"),
        ("- 1\n", "is not a mapping"),
    ],
)
def test_dangerous_or_broken_yaml_is_refused(tmp_path, text, reason):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason):
        load_yaml(path, Recipe)


def test_a_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(UsageError, match="not UTF-8 at byte 3"):
        load_yaml(path, Recipe)


def test_a_base_model_off_the_list_is_refused(recipe):
    with pytest.raises(
        UsageError,
        match=r"`smollm2-135m` is not on the allow-list.*Did you mean `smollm2-135m-instruct`",
    ):
        load_recipe(recipe(("base_model: smollm2-135m-instruct", "base_model: smollm2-135m")))


def test_kernels_that_do_not_go_together_are_refused(recipe):
    with pytest.raises(UsageError, match="varlen takes packed rows only"):
        load_recipe(
            recipe(
                ("attn_implementation: eager", "attn_implementation: varlen"),
                ("packing: true ", "packing: false "),
            )
        )
    with pytest.raises(UsageError, match="selective is done by the fused MLP"):
        load_recipe(
            recipe(
                ("gradient_checkpointing: false", "gradient_checkpointing: selective"),
                ("fused_lora: true", "fused_lora: false"),
            )
        )
    with pytest.raises(UsageError, match="it is the fused layers that keep them"):
        load_recipe(recipe(("fused_lora: true", "fused_lora: false")))


def refused(load, *arguments):
    with pytest.raises(UsageError) as caught:
        load(*arguments)
    return str(caught.value)


def test_all_problems_of_a_file_are_named_at_once_also_where_a_schema_cannot_see_them(tmp_path):
    """Each with its line: nobody mends a file in rounds."""
    (tmp_path / "adapters").mkdir()
    text = (ROOT / "adapters/support-demo.yaml").read_text()
    for old, new in (
        ("recipe: configs", "recipe: nowhere"),
        ("strategy:", "strategie:"),
        ("steps: [50]", "steps: [50, 20]"),
    ):
        text = text.replace(old, new)
    (tmp_path / "adapters/support-demo.yaml").write_text(text)
    said = refused(load_adapter, "support-demo", tmp_path / "adapters")
    for reason in (
        'yaml:4: `recipe`: "nowhere/qlora',
        "Did you mean `strategy`?",
        "`rollout.steps`: [50, 20] does not grow",
    ):
        assert reason in said

    (tmp_path / "gates.yaml").write_text(
        "gates:\n  rouge_1: {min: 0.5, description: d}\n  rouge_l: {min: 0.9, max: 0.1,"
        " description: d}\n  format_compliance: {min: high, max: 1, description: d}\n"
    )
    said = refused(load_gates, tmp_path / "gates.yaml")
    for reason in (
        "yaml:2: ",
        "Did you mean `rouge_l`?",
        "yaml:3: `gates.rouge_l`: min 0.9 exceeds max 0.1",
        "yaml:4: `gates.format_compliance.min`",
    ):
        assert reason in said

    text = (ROOT / "configs/serving.demo.yaml").read_text()
    for old, new in (
        ("base_model: smollm2", "base_model: smolm2"),
        ("max_loras: 3", "max_loras: 5"),
        ("interval_s:", "intervall_s:"),
    ):
        text = text.replace(old, new)
    (tmp_path / "serving.yaml").write_text(text)
    said = refused(load_serving_config, tmp_path / "serving.yaml")
    for reason in (
        "is not on the allow-list",
        "`engine.max_cpu_loras`: 4 is below max_loras 5",
        "Did you mean `interval_s`?",
    ):
        assert reason in said

    text = (ROOT / "configs/data_policy.yaml").read_text()
    text = text.replace("{min: 10, max: 2048}", "{min: 10, max: 2}").replace(
        "{min: 5, max: 4096}", "{min: 5, max: 4}"
    )
    (tmp_path / "policy.yaml").write_text(text)
    said = refused(load_policy, tmp_path / "policy.yaml")
    for reason in (
        "yaml:3: `limits.instruction_tokens`: min 10 exceeds max 2",
        "yaml:4: `limits.output_tokens`: min 5 exceeds max 4",
    ):
        assert reason in said


def test_an_unknown_adapter_is_answered_with_the_known_ones():
    with pytest.raises(
        UsageError, match=r"there is no adapter `support-dmo`.*Did you mean `support-demo`\?"
    ):
        load_adapter("support-dmo")


@pytest.mark.parametrize(
    "path", ["../outside.yaml", "/etc/passwd", "configs/../../x", "data/no such.jsonl"]
)
def test_adapter_paths_stay_inside_the_repository(tmp_path, path):
    (tmp_path / "adapters").mkdir()
    text = (
        (ROOT / "adapters/support-demo.yaml")
        .read_text()
        .replace("configs/qlora/smollm2-135m.yaml", path)
    )
    (tmp_path / "adapters/support-demo.yaml").write_text(text)
    with pytest.raises(UsageError, match="Expected configs/qlora/NAME"):
        load_adapter("support-demo", tmp_path / "adapters")


def test_a_link_out_of_the_repository_is_refused(tmp_path):
    outside = tmp_path / "outside.jsonl"
    outside.write_text("{}")
    root = tmp_path / "repository"
    for folder in ("adapters", "configs/qlora", "data/training", "data/eval"):
        (root / folder).mkdir(parents=True)
    shutil.copy(ROOT / "adapters/support-demo.yaml", root / "adapters")
    for file in (
        "configs/qlora/smollm2-135m.yaml",
        "configs/quality_gate.demo.yaml",
        "configs/serving.demo.yaml",
    ):
        (root / file).write_text("")
    (root / "data/eval/support.jsonl").write_text("")
    (root / "data/training/support.jsonl").symlink_to(outside)
    with pytest.raises(UsageError, match="leads out of the repository"):
        load_adapter("support-demo", root / "adapters")


def test_a_changed_chat_template_is_refused(monkeypatch, tmp_path):
    model = find_base_model("smollm2-135m-instruct", "test")
    (tmp_path / model.chat_template_path).parent.mkdir(parents=True)
    (tmp_path / model.chat_template_path).write_text("{{ messages }}")
    monkeypatch.setattr("adapterops.specs.base_model.ROOT", tmp_path)
    with pytest.raises(UsageError, match="restore the file, or pin the new hash"):
        model.chat_template()


class TestTrainingKey:
    """The key decides, not the commit: what determines weights is in it, and nothing else is."""

    @pytest.fixture
    def data(self, tmp_path):
        path = tmp_path / "rows.jsonl"
        path.write_text('{"instruction": "…"}\n')
        return path

    def test_comments_spelling_and_logging_do_not_matter(self, recipe, data):
        plain = training_key(load_recipe(recipe()), [data])
        respelt = recipe(
            ("num_train_epochs: 1.59 ", "num_train_epochs: 1.590 "),
            ("[q_proj, k_proj,", "[k_proj, q_proj,"),
            ("logging_steps: 5", "logging_steps: 1"),
        )
        assert training_key(load_recipe(respelt), [data]) == plain

    @pytest.mark.parametrize(
        ("old", "new"), [("seed: 42", "seed: 43"), ("r: 16 ", "r: 8 "), ("1.5e-3", "1.0e-3")]
    )
    def test_what_changes_weights_changes_the_key(self, recipe, data, old, new):
        assert training_key(load_recipe(recipe((old, new))), [data]) != training_key(
            load_recipe(recipe()), [data]
        )

    def test_a_changed_row_changes_the_key(self, recipe, data):
        before = training_key(load_recipe(recipe()), [data])
        data.write_text('{"instruction": "..."}\n')
        assert training_key(load_recipe(recipe()), [data]) != before


class TestStagesFromTheMiddle:
    """`pipeline.py --from`: only what an earlier call accepted is gone on with."""

    @staticmethod
    def go(runs, begin, until="gate"):
        run_pipeline("support-demo", runs, Console(quiet=True), begin=begin, until=until)

    def test_the_order_stays(self, tmp_path):
        with pytest.raises(UsageError, match="--from evaluate comes after --until train"):
            self.go(tmp_path, "evaluate", "train")

    def test_what_the_evaluation_leaves_in_memory_is_not_begun_after(self, tmp_path):
        with pytest.raises(UsageError, match="--from gate: expected one of validate, train, eval"):
            self.go(tmp_path, "gate")

    def test_data_that_was_never_judged_is_not_trained_on(self, tmp_path):
        with pytest.raises(
            UsageError, match=r"data_report\.json is missing: these stages have not run"
        ):
            self.go(tmp_path, "train")

    def test_data_that_was_refused_is_not_trained_on(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pipeline, "read_json", lambda *_: {"verdict": "FAIL"})
        spec = load_adapter("support-demo")
        report = (
            run_directory(
                tmp_path, spec, training_key(load_recipe(spec.recipe), list(spec.training_data))
            )
            / "data_report.json"
        )
        report.parent.mkdir(parents=True)
        report.touch()
        with pytest.raises(RejectedError, match="the data was refused"):
            self.go(tmp_path, "train")
