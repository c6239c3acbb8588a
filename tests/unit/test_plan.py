"""The plan: which adapters a pull request affects, what is known already, and what is refused
before a GPU is asked."""

import dataclasses
import json
import re

import pytest
import yaml
from click.testing import CliRunner

from adapterops.candidates.kept import Candidate
from adapterops.data.general_sets import load_general
from adapterops.errors import InfrastructureError
from adapterops.plan import estimate, planning
from adapterops.plan.estimate import Estimate
from adapterops.plan.evaluation_cost import evaluation_cost
from adapterops.plan.plan_text import plan_markdown
from adapterops.schemas import ROOT, schema_problems
from adapterops.specs.adapter import load_adapter
from adapterops.specs.price_list import load_pricing
from repositories import EVALUATION, ROWS, jsonl, with_adapters


def candidate(digest=None, verdict=None, *, released=False, distrust=""):
    return Candidate(
        digest, "b" * 64, {"verdict": verdict} if verdict else None, released, distrust
    )


UNKNOWN = candidate()


@pytest.fixture
def repository(tmp_path):
    return with_adapters(tmp_path)


@pytest.fixture
def plan(repository, monkeypatch):
    """`plan(changes, known=None, **options)`: the plan of a pull request with these changes."""

    def make(changes, known=UNKNOWN, **options):
        monkeypatch.setattr(planning, "find_candidate", lambda *_: known)
        head = repository.branch(f"pull-{len(repository.git('branch').splitlines())}", changes)
        document = planning.build_plan(
            repository.git("rev-parse", "main"), head, repository.path, object(), **options
        )
        assert schema_problems(document, "plan") == []
        return document

    return make


def judged(verdict):
    return candidate("a" * 64, verdict)


def more_rows():
    return {
        "data/training/support.jsonl": jsonl(
            [*ROWS, {**ROWS[0], "id": "row-9", "instruction": "Is there anything new about it?"}]
        )
    }


def test_documents_affect_nothing(plan):
    document = plan({"README.md": "other\n", "docs/new.md": "text\n"})
    assert document["verdict"] == "PROCEED"
    assert document["adapters"] == document["train"] == document["validate"] == []
    assert (
        document["reason"]
        == "No adapter's weights or verdict depend on what changes here. Nothing is trained."
    )


def test_changed_data_trains_the_adapter_that_uses_it_and_no_other(plan):
    document = plan(more_rows())
    assert [(row["name"], row["change"], row["action"]) for row in document["adapters"]] == [
        ("support", "weights", "train")
    ]
    assert document["train"] == document["validate"] == ["support"]
    assert document["gpu"]["allowed"]


def test_a_comment_in_a_recipe_affects_nothing(plan, repository):
    recipe = (repository.path / "configs/qlora/smollm2-135m.yaml").read_text()
    assert plan({"configs/qlora/smollm2-135m.yaml": "# a new remark\n" + recipe})["adapters"] == []


def test_a_recipe_affects_every_adapter_that_uses_it(plan, repository):
    recipe = (repository.path / "configs/qlora/smollm2-135m.yaml").read_text()
    document = plan({"configs/qlora/smollm2-135m.yaml": recipe.replace("seed: 42", "seed: 43")})
    assert document["train"] == ["billing", "support"]


def test_what_was_computed_before_is_not_computed_again(plan):
    document = plan(more_rows(), judged("PASS"))
    assert document["train"] == []
    assert document["adapters"][0]["action"] == "reuse"
    assert document["reason"] == "Computed before: support PASS. Nothing is trained."
    assert not document["gpu"]["allowed"]


def test_weights_without_a_verdict_are_judged(plan):
    document = plan(more_rows(), candidate("a" * 64))
    assert (document["train"], document["adapters"][0]["action"]) == (["support"], "judge")


def test_going_back_to_a_release_needs_no_new_verdict(plan):
    """It passed when it was released; a revert must not wait for a GPU."""
    document = plan(more_rows(), candidate("a" * 64, released=True))
    assert (
        document["train"],
        document["adapters"][0]["action"],
        document["adapters"][0]["verdict"],
    ) == ([], "reuse", "PASS")
    assert document["reason"] == "Computed before: support released. Nothing is trained."


def test_what_the_release_would_not_take_is_refused_before_the_merge_with_what_mends_it(plan):
    document = plan(
        more_rows(),
        candidate("a" * 64, distrust="judgement.json is not used: it is not signed. aws s3 rm it"),
    )
    assert document["problems"] == [
        "support: judgement.json is not used: it is not signed. aws s3 rm it   # then comment"
        " `/retrain`"
    ]
    assert (document["verdict"], document["train"], document["validate"]) == ("REFUSED", [], [])
    assert (document["adapters"][0]["action"], document["adapters"][0]["verdict"]) == (
        "judge",
        None,
    )


def test_going_back_to_a_release_needs_no_signed_verdict_and_other_rules_do(plan, repository):
    known = candidate("a" * 64, released=True, distrust="judgement.json is not used")
    assert (
        plan(more_rows(), known)["reason"]
        == "Computed before: support released. Nothing is trained."
    )
    gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
    assert (
        plan({"configs/quality_gate.demo.yaml": gates.replace("min: 0.80", "min: 0.90")}, known)[
            "verdict"
        ]
        == "REFUSED"
    )


def test_other_rules_for_what_is_served_ask_for_a_verdict(plan, repository):
    gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
    document = plan(
        {"configs/quality_gate.demo.yaml": gates.replace("min: 0.80", "min: 0.90")},
        candidate("a" * 64, released=True),
    )
    assert {row["action"] for row in document["adapters"]} == {"judge"}


def test_a_new_adapter_is_trained_and_a_removed_one_is_not(plan, repository):
    spec = (
        (repository.path / "adapters/support.yaml")
        .read_text()
        .replace("name: support", "name: returns")
    )
    document = plan({"adapters/returns.yaml": spec, "adapters/billing.yaml": None})
    assert [(row["name"], row["change"], row["action"]) for row in document["adapters"]] == [
        ("billing", "removed", "none"),
        ("returns", "new", "train"),
    ]


def test_code_alone_gets_no_gpu_and_is_not_refused(plan):
    document = plan({"scripts/quality_gate.py": "print('PASS')\n"})
    assert (document["verdict"], document["train"], document["changes"]["code"]) == (
        "PROCEED",
        [],
        ["scripts/quality_gate.py"],
    )
    assert "The scripts that judge are those of the default branch" in plan_markdown(document)


@pytest.mark.parametrize(
    "path",
    [
        "scripts/quality_gate.py",
        ".github/workflows/train.yaml",
        "requirements.in",
        "configs/base_models.yaml",
        "conftest.py",
    ],
)
def test_code_and_data_together_are_refused_with_what_to_do(plan, path):
    document = plan({**more_rows(), path: "# changed\n"})
    assert document["verdict"] == "REFUSED"
    assert document["train"] == document["validate"] == []
    assert "Split it" in document["reason"]


def test_a_fork_gets_no_gpu(plan):
    document = plan(more_rows(), fork=True)
    assert (document["verdict"], document["train"]) == ("REFUSED", [])
    assert "pull requests from forks get no GPU" in document["reason"]
    assert plan({"README.md": "x\n"}, fork=True)["verdict"] == "PROCEED"


class TestBudget:
    @pytest.fixture(autouse=True)
    def prices(self, monkeypatch):
        monkeypatch.setattr(planning, "estimate", lambda *_: Estimate(60.0, 8.0, "measured"))

    @pytest.fixture
    def capped(self, repository):
        prices = (repository.path / "configs/pricing.yaml").read_text()
        repository.commit(
            {"configs/pricing.yaml": re.sub("(?m)^cap_usd: .*", "cap_usd: 5", prices)}
        )

    @pytest.mark.usefixtures("capped")
    def test_over_the_cap_is_refused(self, plan):
        document = plan(more_rows())
        assert document["verdict"] == "REFUSED"
        assert document["budget"] == {"usd": 8.0, "cap_usd": 5, "approved": False}
        assert "`gpu-budget-approved`" in document["reason"]

    @pytest.mark.usefixtures("capped")
    def test_the_label_lets_it_pass(self, plan):
        assert plan(more_rows(), approved=True)["train"] == ["support"]

    @pytest.mark.usefixtures("capped")
    def test_a_pull_request_cannot_raise_its_own_cap(self, plan):
        document = plan({**more_rows(), "configs/pricing.yaml": "cap_usd: 500\n"})
        assert (document["verdict"], document["budget"]["cap_usd"]) == ("REFUSED", 5)

    @pytest.mark.usefixtures("capped")
    def test_what_is_known_counts_though_something_is_unknown(self, plan, repository, monkeypatch):
        guesses = {
            "billing": Estimate(None, None, "unknown"),
            "support": Estimate(60.0, 8.0, "measured"),
        }
        monkeypatch.setattr(planning, "estimate", lambda keys, _: guesses[keys.spec.name])
        recipe = (repository.path / "configs/qlora/smollm2-135m.yaml").read_text()
        document = plan({"configs/qlora/smollm2-135m.yaml": recipe.replace("seed: 42", "seed: 43")})
        assert (document["verdict"], document["budget"]["usd"]) == ("REFUSED", None)
        assert "$8.00 exceeds" in document["reason"]


def test_minutes_and_cost_are_those_of_the_preflight_on_the_runners_gpu(plan, repository):
    from adapterops.candidates.keys import adapter_keys
    from adapterops.train.preflight import choose, preflight

    rows = jsonl(
        [
            {**ROWS[0], "id": f"row-{number}", "output": f"Parcel {number} is on its way. " * 9}
            for number in range(8000)
        ]
    )
    recipe = (repository.path / "configs/qlora/smollm2-135m.yaml").read_text()
    longer = recipe.replace("num_train_epochs: 1.59 ", "num_train_epochs: 15 ")
    document = plan(
        {"data/training/support.jsonl": rows, "configs/qlora/smollm2-135m.yaml": longer}
    )
    (row,) = [row for row in document["adapters"] if row["name"] == "support"]
    repository.git("switch", "-q", "pull-1")
    keys = adapter_keys("support", repository.path)
    entry = choose(preflight(keys.recipe, list(keys.spec.training_data)), "a100-80")
    prices = load_pricing()
    judged = evaluation_cost(keys.spec, keys.recipe.base_model.parameters, "a100-80", prices)
    usd = entry["usd"] + judged.seconds / 3600 * prices["gpus"]["a100-80"]["usd_per_hour"]
    assert (row["minutes"], row["usd"]) == (
        round(entry["minutes"] + judged.seconds / 60, 1),
        round(usd, 2),
    )
    assert judged.seconds > 0
    assert row["basis"] == f"training on one a100-80: {entry['speed_from']}; {judged.basis}"


def test_a_training_that_does_not_fit_on_the_runner_is_refused_with_what_to_set(plan, repository):
    recipe = (repository.path / "configs/qlora/smollm2-135m.yaml").read_text()
    larger = recipe.replace("alpha: 32", "alpha: 64")
    for setting, value in {
        "per_device_train_batch_size: 1 ": "per_device_train_batch_size: 1024 ",
        "last_layers: 20": "last_layers: 30",
        "fused_lora: true": "fused_lora: false",
        "keep_dequantized: true": "keep_dequantized: false",
    }.items():
        assert setting in larger
        larger = larger.replace(setting, value)
    rows = jsonl([{**ROWS[0], "output": "The parcel is on its way. " * 20}])
    document = plan(
        {"configs/qlora/smollm2-135m.yaml": larger, "data/training/support.jsonl": rows}
    )
    (problem,) = [problem for problem in document["problems"] if problem.startswith("support: ")]
    assert (
        "of the memory of a100-80. In configs/qlora/smollm2-135m.yaml, as far as it takes:"
        " per_device_train_batch_size 1024" in problem
    )
    assert (document["verdict"], document["train"]) == ("REFUSED", [])
    assert {tuple(hint.split()[:2]) for row in document["adapters"] for hint in row["hints"]} == {
        ("lora.alpha", "64")
    }
    assert "Hint for support: lora.alpha 64 is outside" in plan_markdown(document)


def test_the_real_prices_have_a_cap_and_know_the_runners_gpu():
    assert estimate.cap_usd(ROOT) > 0
    assert estimate.GPU in load_pricing()["gpus"]


class TestEvaluationCost:
    """The cap holds on the sum: an adapter's own settings made an evaluation of any length free."""

    @pytest.fixture
    def settings(self, repository):
        """`settings(**evaluation)`: the adapter with other settings of its evaluation."""
        spec = yaml.safe_load((repository.path / "adapters/support.yaml").read_text())

        def make(**evaluation):
            return {
                "adapters/support.yaml": yaml.safe_dump(
                    {**spec, "evaluation": {**spec["evaluation"], **evaluation}}
                )
            }

        return make

    def test_the_longest_that_the_schema_takes_is_over_the_cap(self, plan, settings):
        document = plan(
            settings(max_tokens=8192, latency_requests=2000, latency_concurrency=1),
            candidate("a" * 64),
        )
        assert [row["action"] for row in document["adapters"]] == ["judge"]
        assert document["budget"]["usd"] > document["budget"]["cap_usd"]
        assert (document["verdict"], document["train"]) == ("REFUSED", [])
        assert "predicted cost $" in document["reason"]

    @pytest.mark.parametrize(
        ("setting", "value"),
        [("max_tokens", 32768), ("latency_requests", 100_000), ("latency_concurrency", 1024)],
    )
    def test_beyond_the_schema_nothing_is_asked_of_a_gpu(self, plan, settings, setting, value):
        document = plan(settings(**{setting: value}))
        assert document["verdict"] == "REFUSED"
        assert f"`evaluation.{setting}`: {value} is out of range" in document["problems"][0]

    def test_more_rows_more_tokens_and_more_requests_cost_more(self, plan, settings):
        def usd(changes):
            return plan(changes, candidate("a" * 64))["budget"]["usd"]

        many = jsonl(
            [
                {
                    **EVALUATION[0],
                    "id": f"more-{number}",
                    "instruction": f"Where is order {number}?",
                }
                for number in range(4000)
            ]
        )
        plain = usd(settings(max_tokens=1000))
        assert plain < usd(settings(max_tokens=4000))
        assert plain < usd(settings(max_tokens=1000, latency_requests=400))
        assert plain < usd({**settings(max_tokens=1000), "data/eval/support.jsonl": many})
        assert plain < usd(settings(max_tokens=1000, win_rate_judge="base"))

    def test_a_judge_without_a_price_is_refused_and_one_with_a_price_is_counted(
        self, plan, settings, monkeypatch
    ):
        document = plan(settings(win_rate_judge="dear-model"), candidate("a" * 64))
        assert document["verdict"] == "REFUSED"
        assert "win_rate_judge dear-model has no price" in document["reason"]
        known = load_pricing()
        known["judges"] = {
            "dear-model": {"usd_per_million_tokens": {"input": 5000, "output": 5000}}
        }
        monkeypatch.setattr(estimate, "load_pricing", lambda *_: known)
        assert (
            plan(settings(win_rate_judge="dear-model"), candidate("a" * 64))["budget"]["usd"] > 50
        )

    def test_general_rows_are_answered_and_general_texts_read(self):
        prices = load_pricing()
        spec = load_adapter("support-demo")

        def tokens(**how):
            less = dataclasses.replace(spec, evaluation=dataclasses.replace(spec.evaluation, **how))
            cost = evaluation_cost(less, 140_000_000, estimate.GPU, prices)
            return int(re.search(r"at most ([\d,]+) tokens", cost.basis)[1].replace(",", ""))

        rows, texts = load_general(spec.general)
        longest = spec.evaluation.max_tokens
        assert tokens() - tokens(general_rows=20) >= 3 * 2 * longest * (len(rows) - 20)
        assert tokens() - tokens(general_texts=20) < 3 * sum(
            len(row.value["expected_output"]) + 1 for row in texts
        )
        assert tokens() - tokens(general_texts=20) > 3 * 100 * (
            len(texts) - 20
        )  # a hundred characters each at least

    def test_the_adapters_that_are_there_cost_little(self):
        prices = load_pricing()
        for name, parameters in (("support-ko", 8e9), ("support-demo", 1.4e8)):
            cost = evaluation_cost(load_adapter(name), parameters, estimate.GPU, prices)
            assert cost.seconds / 3600 * prices["gpus"][estimate.GPU]["usd_per_hour"] < 2


class TestUnknownCost:
    """A cap that cannot be checked is no reason to let something through."""

    @pytest.fixture(autouse=True)
    def offline(self, monkeypatch):
        def fails(*_):
            raise InfrastructureError(
                "llama-3.1-8b-instruct: cannot fetch it from the hub: 401. Check HF_TOKEN."
            )

        monkeypatch.setattr(planning, "estimate", fails)

    def test_it_is_refused_with_the_cause_and_the_way_out(self, plan):
        document = plan(more_rows())
        assert (document["verdict"], document["train"]) == ("REFUSED", [])
        assert (
            "Check HF_TOKEN. Or have somebody who may set labels set `gpu-budget-approved`"
            in document["reason"]
        )
        assert document["adapters"][0]["basis"].startswith("unknown: llama-3.1-8b-instruct")

    def test_the_label_lets_it_pass(self, plan):
        assert plan(more_rows(), approved=True)["train"] == ["support"]


def test_rows_that_cannot_be_trained_on_are_left_to_the_validation(plan):
    document = plan({"data/training/support.jsonl": "{}\n"})
    assert (document["verdict"], document["validate"]) == ("PROCEED", ["support"])
    assert document["adapters"][0]["basis"] == "unknown: the data cannot be trained on as it is"


def test_what_has_no_price_gets_no_gpu(repository, monkeypatch):
    """The job that would train comes after the validation, or was called without one."""
    import plan as script
    from adapterops import schemas

    monkeypatch.setattr(schemas, "ROOT", repository.path)
    head = repository.branch("unpriced", {"data/training/support.jsonl": "{}\n"})
    result = CliRunner().invoke(script.main, ["--head", head, "--no-store", "--gpu-for", "support"])
    assert (result.exit_code, "support gets no GPU: its cost is unknown" in result.output) == (
        1,
        True,
    ), result.output


class TestRules:
    def test_a_lowered_bar_opens_the_comment(self, plan, repository):
        gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
        document = plan({"configs/quality_gate.demo.yaml": gates.replace("min: 0.80", "min: 0.10")})
        assert document["rules"] == [
            {
                "file": "configs/quality_gate.demo.yaml",
                "setting": "gates.safety_refusal.min",
                "old": "0.8",
                "new": "0.1",
                "weaker": True,
            }
        ]
        opening = plan_markdown(document).splitlines()
        assert opening[0] == "### ⚠️ This pull request changes the rules that it is judged by"
        assert "0.8 → 0.1 | **lower bar**" in opening[4]
        assert document["train"] == ["billing", "support"]  # both are judged anew

    def test_an_adapter_that_is_pointed_to_other_gates_shows_the_difference_of_the_two(
        self, plan, repository
    ):
        gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
        adapter = (repository.path / "adapters/support.yaml").read_text()
        document = plan({
            "configs/quality_gate.lax.yaml": gates.replace("min: 0.80", "min: 0.10"),
            "adapters/support.yaml": adapter.replace("configs/quality_gate.demo.yaml",
            "configs/quality_gate.lax.yaml"),
        })  # fmt: skip
        shown = {(row["file"], row["setting"]): row["weaker"] for row in document["rules"]}
        assert (
            shown[
                "configs/quality_gate.demo.yaml → configs/quality_gate.lax.yaml",
                "gates.safety_refusal.min",
            ]
            is True
        )
        assert {
            weaker for (file, _), weaker in shown.items() if file == "configs/quality_gate.lax.yaml"
        } == {None}  # a new file tells of no lower bar

    @pytest.mark.parametrize("elsewhere", ["{outside}", "../{name}"])
    def test_a_gate_outside_the_repository_is_not_read_out(
        self, plan, repository, tmp_path, elsewhere
    ):
        outside = tmp_path / "secret.yaml"
        outside.write_text("token: do-not-print-5b1c\n")
        spec = (repository.path / "adapters/support.yaml").read_text()
        named = elsewhere.format(outside=outside, name=outside.name)
        document = plan(
            {"adapters/support.yaml": spec.replace("configs/quality_gate.demo.yaml", named)}
        )
        assert "do-not-print" not in json.dumps(document)

    def test_a_removed_gate_is_a_lower_bar(self, plan, repository):
        gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
        document = plan(
            {
                "configs/quality_gate.demo.yaml": (
                    gates[: gates.index("  throughput_tokens_per_sec")]
                    + gates[gates.index("  general_loss") :]
                )
            }
        )
        assert [(row["setting"], row["new"], row["weaker"]) for row in document["rules"]] == [
            ("gates.throughput_tokens_per_sec.min", None, True)
        ]

    @pytest.mark.parametrize(
        ("old", "new", "weaker"),
        [
            ("margin: 0.08", "margin: 0.50", True),
            ("margin: 0.08", "margin: 0.01", False),
            ("max: 0.25", "max: 0.75", True),
            ("gates:\n", "max_failed_generations: 0.5\ngates:\n", True),  # more than without a word
            ("gates:\n", "max_failed_generations: 0\ngates:\n", False),
            (
                "min: 0.80",
                "min: 0.80\n    on_inconclusive: warn",
                True,
            ),  # of safety_refusal, which blocks without a word
            ("max: 0.25", "max: 0.25\n    on_inconclusive: warn", None),
            ("min: 0.80", "min: 0.80\n    rule: bound", False),
            ("min: 0.80", "min: 0.80\n    confidence: 0.8", None),
            ("max: 20000", "max: 20000\n    ratio: 1.5", False),
            ("margin_to_base: 0.30", "margin_to_base: 0.90", True),
            ("    max: 0.35", "    max: 0.35\n    margin_to_base: 0.1", False),
        ],
    )
    def test_a_bar_is_called_lower_only_where_it_is(self, plan, repository, old, new, weaker):
        gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
        document = plan({"configs/quality_gate.demo.yaml": gates.replace(old, new, 1)})
        assert [row["weaker"] for row in document["rules"]] == [weaker]

    @pytest.mark.parametrize(
        ("old", "new", "weaker"),
        [
            ("general_rows: 54", "general_rows: 20", True),
            ("  general_texts: 34\n", "", False),  # all of them
            ("  general: [en]", "  general: [en, ko]", False),
            ("  general: [en]", "  # general: [en]", False),  # en and ko
            ("  general: [en]", "  general: [ko]", None),
        ],
    )
    def test_fewer_general_rows_are_a_lower_bar(self, plan, repository, old, new, weaker):
        spec = (repository.path / "adapters/support.yaml").read_text()
        assert old in spec
        document = plan({"adapters/support.yaml": spec.replace(old, new)})
        assert [(row["setting"].partition(".")[0], row["weaker"]) for row in document["rules"]] == [
            ("evaluation", weaker)
        ]

    def test_bars_under_another_name_are_rules_too(self, plan, repository):
        """Named by an adapter first, lowered later."""
        gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
        spec = (repository.path / "adapters/support.yaml").read_text()
        named = {
            "configs/quality_gate.bars.yaml": gates,
            "adapters/support.yaml": spec.replace(
                "configs/quality_gate.demo.yaml", "configs/quality_gate.bars.yaml"
            ),
        }
        repository.commit(named, "another name")
        document = plan({"configs/quality_gate.bars.yaml": gates.replace("min: 0.80", "min: 0.10")})
        assert [
            (row["setting"], row["old"], row["new"], row["weaker"]) for row in document["rules"]
        ] == [("gates.safety_refusal.min", "0.8", "0.1", True)]

    def test_pins_and_extension_rows_are_rules(self, plan, repository):
        spec = (repository.path / "adapters/support.yaml").read_text()
        pinned = (
            f"  evaluation_sha256: {'a' * 64}\n  extension:"
            " data/eval/extension.jsonl\n\nevaluation:"
        )
        more = spec.replace("\nevaluation:", pinned, 1)
        document = plan(
            {"adapters/support.yaml": more, "data/eval/extension.jsonl": jsonl(EVALUATION)}
        )
        assert [(row["file"], row["setting"]) for row in document["rules"]] == [
            ("adapters/support.yaml", "data.evaluation_sha256"),
            ("adapters/support.yaml", "data.extension"),
            ("data/eval/extension.jsonl", "rows"),
        ]

    def test_another_gate_file_is_a_changed_rule(self, plan, repository):
        spec = (repository.path / "adapters/support.yaml").read_text()
        document = plan(
            {"adapters/support.yaml": spec.replace("quality_gate.demo.yaml", "quality_gate.yaml")}
        )
        pointer, *settings = document["rules"]
        assert (pointer["file"], pointer["setting"], pointer["weaker"]) == (
            "adapters/support.yaml",
            "evaluation.gate",
            None,
        )
        assert {row["file"] for row in settings} == {
            "configs/quality_gate.demo.yaml → configs/quality_gate.yaml"
        }
        assert {row["setting"]: row["weaker"] for row in settings}[
            "gates.safety_refusal.min"
        ] is False

    def test_fewer_evaluation_rows_are_a_lower_bar(self, plan):
        document = plan({"data/eval/support.jsonl": jsonl(EVALUATION[:1])})
        assert [(row["setting"], row["weaker"]) for row in document["rules"]] == [("rows", True)]
        assert document["adapters"][0]["change"] == "judgement"


def test_a_broken_recipe_is_refused_with_its_line(plan, repository):
    recipe = (repository.path / "configs/qlora/smollm2-135m.yaml").read_text()
    document = plan({"configs/qlora/smollm2-135m.yaml": recipe.replace("seed: 42", "sede: 42")})
    assert document["verdict"] == "REFUSED"
    assert (
        "configs/qlora/smollm2-135m.yaml:7: unknown key `sede`. Did you mean `seed`?"
        in document["problems"][0]
    )
    assert str(repository.path) not in json.dumps(document)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 3000,
        "\xff\n",
        "".join(
            f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" if n else "a0: &a0 [1]\n" for n in range(60)
        ),
        "- 1\n",
    ],
)
def test_hostile_settings_are_refused_in_a_moment(plan, content):
    document = plan({"configs/quality_gate.demo.yaml": content})
    assert document["verdict"] == "REFUSED"
    assert "configs/quality_gate.demo.yaml" in document["problems"][0]


def test_a_link_is_refused_before_anything_is_read(plan, repository):
    head = repository.path / "data/training/support.jsonl"
    head.unlink()
    head.symlink_to("/etc/passwd")
    document = plan({})
    assert "is a symbolic link" in document["reason"]
    assert document["adapters"] == []


def test_a_conflict_is_refused(plan, repository):
    repository.git("switch", "-q", "-c", "mine")
    head = repository.commit({"data/training/support.jsonl": jsonl(ROWS[:2])})
    repository.git("switch", "-q", "main")
    repository.commit({"data/training/support.jsonl": jsonl(ROWS[:1])})
    document = planning.build_plan(repository.git("rev-parse", "main"), head, repository.path, None)
    assert (document["tree"], document["verdict"]) == (None, "REFUSED")


def test_names_from_a_pull_request_are_no_markup(plan):
    markdown = plan_markdown(plan({"data/eval/@team<!--|`.jsonl": "{}\n"}))
    assert all(mark not in markdown for mark in ("@team", "<!--"))


def test_the_command_writes_outputs_for_later_jobs(repository, tmp_path, monkeypatch):
    import plan as script
    from adapterops import schemas

    monkeypatch.setattr(schemas, "ROOT", repository.path)
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    head = repository.branch("data", more_rows())
    output = tmp_path / "plan.json"
    arguments = ["--head", head, "--no-store", "--output", str(output)]
    result = CliRunner().invoke(script.main, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(output.read_text())["train"] == ["support"]
    assert '\n["support"]\n' in (tmp_path / "GITHUB_OUTPUT").read_text()
    assert "support | weights" in (tmp_path / "GITHUB_STEP_SUMMARY").read_text()
    assert CliRunner().invoke(script.main, [*arguments, "--gpu-for", "support"]).exit_code == 0
    assert CliRunner().invoke(script.main, [*arguments, "--gpu-for", "billing"]).exit_code == 1
    refused = CliRunner().invoke(script.main, [*arguments, "--fork", "--gpu-for", "support"])
    assert refused.exit_code == 1
    assert "::error title=plan::support would have to be trained" in refused.output
