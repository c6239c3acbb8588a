"""What a stranger's pull request must not reach, whatever its data, policies, adapters and names
say: docs and tests call it data."""

import fnmatch
import json
import re
from typing import ClassVar

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

import validate_data
from adapterops.errors import UsageError
from adapterops.git_tree import take
from adapterops.gitops.plan_comment import comment
from adapterops.plan import planning
from adapterops.plan.plan_text import print_plan
from adapterops.schemas import ROOT
from adapterops.specs.adapter import load_adapter
from repositories import ROWS, jsonl, with_adapters


@pytest.fixture
def repository(tmp_path):
    return with_adapters(tmp_path)


@pytest.fixture
def planned(repository):
    """`planned(changes)`: the plan of a pull request with these changes, no store."""

    def make(changes):
        head = repository.branch(f"pull-{len(repository.git('branch').splitlines())}", changes)
        return planning.build_plan(repository.git("rev-parse", "main"), head, repository.path, None)

    return make


class TestAPolicyNamesNoCode:
    """Data and policy alone ran commands: `os:popen` was called with the text of each row."""

    PLACES: ClassVar = {
        "in a list": (
            "datasets:\n",
            'datasets:\n  - {files: "*", reason: x, name_plugin: "os:popen"}\n',
        ),
        "in the limits": ("limits:\n", 'limits:\n  name_plugin: "os:popen"\n'),
        "at the top": ("limits:\n", 'name_plugin: "os:popen"\nlimits:\n'),
    }

    @pytest.mark.parametrize("place", PLACES)
    def test_nothing_runs(self, repository, planned, tmp_path, place):
        ran = tmp_path / "ran"
        policy = (repository.path / "configs/data_policy.yaml").read_text()
        hostile = policy.replace(*self.PLACES[place], 1)
        rows = jsonl([*ROWS, {**ROWS[0], "id": "row-9", "instruction": f"touch {ran}"}])
        document = planned(
            {"data/training/support.jsonl": rows, "configs/data_policy.yaml": hostile}
        )
        assert document["verdict"] == "REFUSED"
        assert "unknown key `name_plugin`" in document["problems"][0]
        assert (document["train"], document["validate"]) == ([], [])
        data, file = tmp_path / "rows.jsonl", tmp_path / "policy.yaml"
        data.write_text(rows)
        file.write_text(hostile)
        result = CliRunner().invoke(
            validate_data.main, ["--input", str(data), "--policy", str(file)]
        )
        assert result.exit_code == 2, result.output
        assert not ran.exists()


# The last lines of two overrides of the policy.
ENGLISH = "does not know Korean.\n    language: en"
KOREAN = "Korean customer support.\n    language: ko\n"


class TestEveryPlaceOfThePolicyIsCompared:
    @pytest.fixture
    def changed(self, repository, planned):
        """`changed(old, new)`: rules of a pull request that replaces text in the policy, as
        (setting, old, new, weaker)."""

        def make(*replacements):
            policy = (repository.path / "configs/data_policy.yaml").read_text()
            for old, new in replacements:
                assert old in policy
                policy = policy.replace(old, new, 1)
            document = planned({"configs/data_policy.yaml": policy})
            assert document["verdict"] == "PROCEED", document["problems"]
            return [
                (row["setting"], row["old"], row["new"], row["weaker"]) for row in document["rules"]
            ]

        return make

    @pytest.mark.parametrize(
        ("old", "new", "setting", "weaker"),
        [
            ("{min: 10, max: 2048}", "{min: 1, max: 2048}", "limits.instruction_tokens.min", True),
            ("{min: 5, max: 4096}", "{min: 5, max: 4000}", "limits.output_tokens.max", False),
            ("duplicate_rate: 0.05", "duplicate_rate: 0.5", "limits.duplicate_rate", True),
            ("near_duplicate: 0.8", "near_duplicate: 0.9", "limits.near_duplicate", True),
            (
                "contamination_hint: 0.7",
                "contamination_hint: 0.9",
                "limits.contamination_hint",
                True,
            ),
            ("language_share: 0.95", "language_share: 0.5", "limits.language_share", True),
            ("language: null", "language: en", "limits.language", None),
            ("[CC0-1.0,", "[Proprietary, CC0-1.0,", "limits.licenses", True),
            ("[CC0-1.0, CC-BY-4.0,", "[CC0-1.0,", "limits.licenses", False),
            ("[email, phone,", "[phone,", "limits.personal_data", True),
        ],
    )
    def test_a_limit_says_which_way_it_goes(self, changed, old, new, setting, weaker):
        assert [(name, effect) for name, _, _, effect in changed((old, new))] == [(setting, weaker)]

    def test_a_loosening_of_an_override_is_named_with_its_whole_value(self, changed):
        licences = ", ".join(f"Licence-{number}" for number in range(40))
        rows = changed((ENGLISH, f"{ENGLISH}\n    duplicate_rate: 0.9\n    licenses: [{licences}]"))
        override = "datasets[data/*/support.jsonl]"
        assert (f"{override}.duplicate_rate", None, "0.9", True) in rows
        (shown,) = [
            new for setting, _, new, weaker in rows if setting == f"{override}.licenses" and weaker
        ]
        assert shown.endswith('"Licence-39"]')

    def test_an_override_that_shadows_a_stricter_one_is_a_lower_bar_for_the_files_it_takes(
        self, repository, changed
    ):
        policy = (repository.path / "configs/data_policy.yaml").read_text()
        repository.commit(
            {
                "configs/data_policy.yaml": policy.replace(
                    ENGLISH, f"{ENGLISH}\n    language_share: 0.99"
                )
            }
        )
        rows = changed(("datasets:\n", "datasets:\n  - {files: 'data/*', reason: tidier}\n"))
        files = "data/eval/support.jsonl, data/training/support.jsonl"
        assert (f"language_share in effect for {files}", "0.99", "0.95", True) in rows

    def test_another_order_is_another_policy(self, repository, changed):
        policy = (repository.path / "configs/data_policy.yaml").read_text()
        first = "  - {files: 'data/*', reason: strict, duplicate_rate: 0.01}\n"
        repository.commit(
            {"configs/data_policy.yaml": policy.replace("datasets:\n", f"datasets:\n{first}")}
        )
        rows = changed((first, ""), (KOREAN, KOREAN + first))
        assert rows[0][0] == "datasets, in this order"
        ((setting, *effect),) = [
            row for row in rows if row[0].startswith("duplicate_rate in effect for ")
        ]
        assert effect == ["0.01", "0.05", True]
        assert "data/eval/support.jsonl" in setting
        assert "data/training/support.jsonl" in setting

    def test_a_null_that_appears_is_no_absence(self, changed):
        assert ("datasets[data/*/support.jsonl].language", '"en"', "null", None) in changed(
            (ENGLISH, ENGLISH.replace("en", "null"))
        )

    def test_bars_inside_recipes_and_rollouts_are_rules_too(self, repository, planned):
        recipe = (repository.path / "configs/qlora/smollm2-135m.yaml").read_text()
        spec = (repository.path / "adapters/support.yaml").read_text()
        document = planned({
            "configs/qlora/smollm2-135m.yaml": recipe.replace("max_loss_increase: 0.1",
            "max_loss_increase: 9.0"),
            "adapters/support.yaml": spec.replace("error_rate: 0.1",
            "error_rate: 1.0").replace("strategy: canary", "strategy: immediate"),
        })  # fmt: skip
        assert {(row["setting"], row["weaker"]) for row in document["rules"]} == {
            ("quantization.max_loss_increase", True),
            ("rollout.limits.error_rate", True),
            ("rollout.strategy", True),
        }


class TestTheComment:
    @staticmethod
    def change(setting, old, new, weaker):
        return {
            "file": "configs/data_policy.yaml",
            "setting": setting,
            "old": old,
            "new": new,
            "weaker": weaker,
        }

    @staticmethod
    def comment(rules):
        plan = {
            "problems": [],
            "verdict": "PROCEED",
            "reason": "",
            "rules": rules,
            "changes": {"code": []},
            "adapters": [],
        }
        return comment({**plan, "head": "a" * 40, "base": "b" * 40}, [], {})

    def test_a_long_value_is_folded_and_never_cut(self):
        long = json.dumps([f"Licence-{number}" for number in range(300)])
        said = self.comment([self.change("limits.licenses", '["MIT"]', long, True)])
        assert "<details><summary>1. configs/data_policy.yaml: limits.licenses</summary>" in said
        assert "Licence-299" in said

    def test_a_loosening_comes_before_a_thousand_others_and_what_is_left_out_is_counted(self):
        noise = [
            self.change(f"datasets[{number}].reason", '"a"', json.dumps("b" * 200), None)
            for number in range(1000)
        ]
        said = self.comment([*noise, self.change("limits.duplicate_rate", "0.05", "0.9", True)])
        assert len(said) < 65_536
        table = said[said.index("|---|") :].splitlines()
        assert "**lower bar**" in table[1]
        left = re.search(
            r"\*\*(\d+) of 1001 changes do not fit here, 0 of them a lower bar\.\*\*", said
        )
        assert int(left[1]) + said.count("<details>") + 1 == 1001

    def test_a_value_that_no_comment_can_hold_is_said_to_be_left_out(self):
        said = self.comment(
            [self.change("limits.licenses", '["MIT"]', json.dumps("x" * 70_000), True)]
        )
        assert "**1 of 1 changes do not fit here, 1 of them a lower bar.**" in said
        assert len(said) < 65_536


class TestWhoOwnsTheBar:
    """A curator alone could point an adapter to a gate among the data, or change what hosts trust
    as a document."""

    @pytest.mark.parametrize(
        ("setting", "place"),
        [
            ("gate", "data/gate.json"),
            ("gate", "data/eval/gate.yaml"),
            ("gate", "adapters/gate.yaml"),
            ("gate", "configs/lax.yaml"),
            ("gate", "configs/qlora/gate.yaml"),
            ("gate", "configs/quality_gate.d/../../data/gate.yaml"),
            ("gate", "/etc/passwd"),
            ("recipe", "data/recipe.yaml"),
            ("recipe", "adapters/recipe.yaml"),
            ("recipe", "configs/qlora/../quality_gate.yaml"),
            ("serving", "data/serving.yaml"),
            ("serving", "configs/qlora/serving.yaml"),
            ("training", "data/eval/support.jsonl"),
            ("training", "configs/qlora/rows.jsonl"),
            ("training", "data/training/../eval/support.jsonl"),
            ("evaluation", "data/training/support.jsonl"),
            ("evaluation", "data/rows.jsonl"),
            ("extension", "data/training/support.jsonl"),
        ],
    )
    def test_a_path_of_another_kind_is_refused(self, repository, planned, setting, place):
        spec = yaml.safe_load((repository.path / "adapters/support.yaml").read_text())
        part = {"gate": spec["evaluation"], "recipe": spec, "serving": spec}.get(
            setting, spec["data"]
        )
        part[setting] = [place] if setting == "training" else place
        document = planned({"adapters/support.yaml": yaml.safe_dump(spec)})
        assert document["verdict"] == "REFUSED"
        assert f'"{place}" is not allowed here. Expected' in document["problems"][0]

    @pytest.mark.parametrize(
        ("link", "target"),
        [
            ("configs/quality_gate.x.yaml", "data/gate.yaml"),
            ("data/eval/x.jsonl", "data/training/support.jsonl"),
        ],
    )
    def test_a_link_of_the_right_name_to_another_kind_is_refused(self, repository, link, target):
        repository.write(
            "data/gate.yaml", (repository.path / "configs/quality_gate.demo.yaml").read_text()
        )
        (repository.path / link).symlink_to(repository.path / target)
        spec = (repository.path / "adapters/support.yaml").read_text()
        was = "configs/quality_gate.demo.yaml" if "gate" in link else "data/eval/support.jsonl"
        repository.write("adapters/support.yaml", spec.replace(was, link))
        with pytest.raises(UsageError, match=f"{link} leads to {target}"):
            load_adapter("support", repository.path / "adapters")

    @pytest.mark.parametrize(
        "path",
        [
            "docs/aws/main.tf",
            "configs/serving.yaml",
            "configs/serving.demo.yaml",
            "configs/hosts/nginx.conf",
            "docs/x.sh",
        ],
    )
    def test_what_is_applied_or_trusted_counts_as_code(self, planned, path):
        document = planned({path: "# changed\n"})
        assert (document["changes"]["code"], document["changes"]["documents"]) == ([path], [])
        assert (document["verdict"], document["train"]) == ("PROCEED", [])
        rows = jsonl(
            [*ROWS, {**ROWS[0], "id": "row-9", "instruction": "Is there anything new about it?"}]
        )
        assert (
            "Split it"
            in planned({path: "# changed\n", "data/training/support.jsonl": rows})["reason"]
        )

    def test_a_pull_request_does_not_bring_its_own_trust_root(self, repository):
        serving = (repository.path / "configs/serving.yaml").read_text()
        head = repository.branch(
            "trust",
            {
                "configs/serving.yaml": re.sub(
                    "signed_by:[^e]*?public_key: .*", "signed_by: null", serving
                )
            },
        )
        take(repository.git("rev-parse", "main"), head, repository.path, repository.path)
        assert (repository.path / "configs/serving.yaml").read_text() == serving

    @pytest.mark.parametrize(
        "path",
        [
            "data/eval/support.jsonl",
            "adapters/support-ko.yaml",
            "configs/quality_gate.yaml",
            "configs/data_policy.yaml",
            "configs/serving.yaml",
            "docs/aws/main.tf",
            "data/labelled/refusals.jsonl",
            "CODEOWNERS",
            "scripts/plan.py",
        ],
    )
    def test_no_curator_owns_what_judges_or_is_trusted(self, path):
        assert "data-curators" not in owners(path)

    @pytest.mark.parametrize(
        "path",
        [
            "configs/serving.yaml",
            "docs/aws/main.tf",
            "configs/pricing.yaml",
            "configs/schemas/plan.json",
        ],
    )
    def test_the_platform_owns_what_is_trusted(self, path):
        assert owners(path) == "@your-org/platform"


def owners(path):
    """The teams of the last line of CODEOWNERS that matches; patterns are those that stand
    there."""
    found = ""
    for line in (ROOT / "CODEOWNERS").read_text().splitlines():
        pattern, _, teams = line.partition(" ")
        if pattern and not pattern.startswith("#"):
            rooted = pattern.lstrip("/")
            if (
                fnmatch.fnmatch(path, rooted + "*" if rooted.endswith("/") else rooted)
                or path == rooted
            ):
                found = teams.strip()
    return found


@pytest.mark.parametrize(
    "name",
    [
        "scripts/a\n::error::forged.py",
        "scripts/\x1b[31m.py",
        "scripts/a\u2028b.py",
        "scripts/\udcff.py",
    ],
)
def test_a_name_in_a_pull_request_begins_no_line_of_its_own(repository, planned, name, capsys):
    rows = jsonl(
        [*ROWS, {**ROWS[0], "id": "row-9", "instruction": "Is there anything new about it?"}]
    )
    document = planned({name: "1\n", "data/training/support.jsonl": rows})
    print_plan(document, Console(soft_wrap=True))
    printed = capsys.readouterr().out
    assert "Split it" in printed
    assert not [line for line in printed.splitlines() if line.startswith("::")]
    assert "\x1b[31m.py" not in printed
