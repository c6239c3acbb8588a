"""Rules that every workflow file keeps, and that neither act nor a linter looks at."""

import re
import shutil
import subprocess

import pytest
import yaml

from adapterops.schemas import ROOT
from processes import environment

FILES = sorted((ROOT / ".github/workflows").glob("*.yaml"))
BIN = ROOT / ".venv/bin"
# Who may have which right; everything else reads.
GRANTS = {
    ("pull-request", "report", "pull-requests: write"),
    ("release", "promote", "contents: write"),
    *(("release", "deploy", right) for right in ("deployments: write", "issues: write")),
    ("deploy", "deploy", "deployments: write"),
    ("deploy", "revert", "issues: write"),
    *(
        ("retrain", "command", right)
        for right in ("actions: write", "issues: write", "pull-requests: write")
    ),
    ("reconcile", "reconcile", "issues: write"),
    ("weekly", "review", "issues: write"),
}
# Where a workflow's code is that of the pull request: the repository's own tests, without any
# right.
TESTS_CODE = {"ci"}


def load(path):
    workflow = yaml.safe_load(path.read_text())
    return {**workflow, "on": workflow.pop(True)}


WORKFLOWS = {path.stem: load(path) for path in FILES}
JOBS = [
    pytest.param(name, job_name, job, id=f"{name}/{job_name}")
    for name, flow in WORKFLOWS.items()
    for job_name, job in flow["jobs"].items()
]
STEPS = [
    pytest.param(name, job_name, step, id=f"{name}/{job_name}/{step['name']}")
    for name, flow in WORKFLOWS.items()
    for job_name, job in flow["jobs"].items()
    for step in job.get("steps", [])
]


def test_the_files_are_those_of_the_story():
    assert set(WORKFLOWS) == {
        "pull-request",
        "train",
        "release",
        "deploy",
        "reconcile",
        "weekly",
        "retrain",
        "ci",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_header_says_when_it_runs_and_with_which_rights(path):
    text = path.read_text()
    header = text[: text.index("\nname:")]
    assert header.startswith("# ")
    assert "Rights:" in header
    assert len(text.splitlines()) < 250


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_is_granted_at_the_top_and_runs_do_not_pile_up(name):
    assert WORKFLOWS[name]["permissions"] == {}
    assert "group" in WORKFLOWS[name]["concurrency"]
    if name in (
        "release",
        "deploy",
    ):  # what is half done must be ended, and nothing may fall out of the queue
        assert WORKFLOWS[name]["concurrency"]["cancel-in-progress"] is False
        assert WORKFLOWS[name]["concurrency"]["queue"] == "max"


def test_pull_requests_run_without_path_filters():
    """A filtered workflow leaves its required check waiting for ever."""
    assert WORKFLOWS["pull-request"]["on"] == {
        "pull_request": {"types": ["opened", "synchronize", "reopened"]}
    }


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_trigger_runs_foreign_code_with_rights(name):
    assert not {"pull_request_target", "workflow_run"} & set(WORKFLOWS[name]["on"])


@pytest.mark.parametrize(("name", "job_name", "job"), JOBS)
def test_each_job_has_just_its_rights_and_a_time_limit(name, job_name, job):
    writes = {
        (name, job_name, f"{right}: {value}")
        for right, value in job["permissions"].items()
        if value == "write" and right != "id-token"
    }
    assert writes <= GRANTS
    assert "uses" in job or 0 < job["timeout-minutes"] <= 720


def test_every_grant_is_used():
    granted = {
        (name, job, f"{right}: write")
        for name, flow in WORKFLOWS.items()
        for job, facts in flow["jobs"].items()
        for right, value in facts["permissions"].items()
        if value == "write" and right != "id-token"
    }
    assert granted == GRANTS


EVERY_STEP = pytest.mark.parametrize(("name", "job_name", "step"), STEPS)


@EVERY_STEP
def test_actions_are_pinned(name, job_name, step):
    if "uses" in step:
        assert re.fullmatch(
            r"actions/(checkout|upload-artifact|download-artifact)@[0-9a-f]{40}", step["uses"]
        )


@EVERY_STEP
def test_a_checkout_leaves_no_credentials_and_takes_trusted_code(name, job_name, step):
    if "actions/checkout" in step.get("uses", ""):
        assert step["with"]["persist-credentials"] is False
        if name not in TESTS_CODE:
            assert step["with"]["ref"] == "${{ github.event.repository.default_branch }}"


@EVERY_STEP
def test_expressions_reach_a_shell_only_as_variables(name, job_name, step):
    assert "${{" not in step.get("run", "")


@EVERY_STEP
def test_a_step_is_one_call(name, job_name, step):
    if "run" in step:
        assert len(step["run"].strip().splitlines()) == 1
        assert re.match(
            r"(make|(exec )?\.venv/bin/python scripts/(?:ci/)?[a-z_]+\.py)( |$)", step["run"]
        )
        for script in re.findall(r"scripts/(?:ci/)?[a-z_]+\.py", step["run"]):
            assert (ROOT / script).is_file()


@EVERY_STEP
def test_the_one_secret_goes_to_the_default_branchs_scripts_that_count_tokens(name, job_name, step):
    """Roles and the job's own token are enough elsewhere; a comment's or branch's text never comes
    in as a variable."""
    text = yaml.safe_dump(step)
    if "secrets." in text:
        assert name not in TESTS_CODE
        if (name, job_name) == ("deploy", "revert"):  # the one job that opens reverts
            assert re.findall(r"secrets\.\w+", text) == ["secrets.REVERT_APP_KEY"]
            return
        assert re.findall(r"secrets\.\w+", text) == ["secrets.HF_TOKEN"]
        assert re.match(
            r"\.venv/bin/python scripts/(?:ci/)?(plan|validate_data|required_check|weekly)\.py ",
            step["run"],
        )
    assert not re.search(
        r"github\.(head_ref|event\.(comment\.body|pull_request\.(title|body|head\.(ref|label))|issue\.(title|body)))",
        text,
    )


@EVERY_STEP
def test_whoever_reads_candidates_asks_for_their_signature(name, job_name, step):
    """What the plan takes for done and the release refuses would be found out after the merge."""
    if re.search(
        r"scripts/(?:ci/)?(plan|required_check|post_reports|candidate|promote)\.py|weekly\.py"
        r" (plan|review)",
        step.get("run", ""),
    ):
        environment_of_step = (
            WORKFLOWS[name].get("env", {})
            | WORKFLOWS[name]["jobs"][job_name].get("env", {})
            | step.get("env", {})
        )
        assert (
            environment_of_step["CANDIDATE_SIGNED_BY"]
            == "${{ vars.CANDIDATE_PUBLIC_KEY || 'keyless' }}"
        )


def test_every_pin_carries_its_version():
    for path in FILES:
        for line in path.read_text().splitlines():
            if "uses: actions/" in line:
                assert re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_one_version_of_each_action():
    pins = {
        match
        for path in FILES
        for match in re.findall(r"uses: (actions/[a-z-]+)@(\S+)", path.read_text())
    }
    assert len(pins) == len(dict(pins))


@pytest.mark.parametrize("name", WORKFLOWS)
def test_what_others_could_call_names_this_repository(name):
    """A file called from another repository signs, and takes roles, by its own name."""
    if "workflow_call" in WORKFLOWS[name]["on"] and name not in TESTS_CODE:
        for job_name, job in WORKFLOWS[name]["jobs"].items():
            first = not job.get("needs")
            assert not first or "github.repository == 'your-org/qlora-gitops'" in job["if"], (
                job_name
            )
            checkouts = [
                step for step in job["steps"] if "actions/checkout" in step.get("uses", "")
            ]
            assert [step["with"]["repository"] for step in checkouts] == ["your-org/qlora-gitops"]


def test_the_repositorys_name_holds_whatever_started_the_training():
    condition = " ".join(WORKFLOWS["train"]["jobs"]["train"]["if"].split())
    assert condition.startswith("github.repository == 'your-org/qlora-gitops' && (")
    assert condition.endswith(")")


@EVERY_STEP
def test_development_tools_are_installed_where_code_is_tested_alone(name, job_name, step):
    if step.get("run", "").startswith("make setup"):
        assert step["run"] == "make setup NO_DEV=1"
    if step.get("run", "").startswith("make") and "setup" not in step["run"]:
        assert name in TESTS_CODE


def test_a_token_is_given_to_steps_and_not_to_jobs():
    """A job's environment reaches every step, and every program that one starts."""
    for flow in WORKFLOWS.values():
        for place in (flow, *flow["jobs"].values()):
            assert not re.search(r"github\.token|secrets\.", yaml.safe_dump(place.get("env", {})))


def test_the_set_up_guide_puts_the_names_in_everywhere(tmp_path):
    guide = (ROOT / "docs/setup-github.md").read_text()
    command = re.search(r"^ +(git grep .*sed -i .*)$", guide, re.MULTILINE)[1]
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    subprocess.run("git init -q && git add -A", shell=True, cwd=tmp_path, check=True)
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, check=True)
    left = subprocess.run(
        ["git", "grep", "-n", "your-org"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert left.stdout == ""
    assert r"ACME/YOUR-REPOSITORY/\.github" in (tmp_path / ".pinact.yaml").read_text()
    for stem in ("train", "deploy"):
        assert (
            "github.repository == 'ACME/YOUR-REPOSITORY'"
            in (tmp_path / f".github/workflows/{stem}.yaml").read_text()
        )
    pins = [BIN / "pinact", "run", "--check", "--fix=false", "--no-api"]
    assert subprocess.run(pins, cwd=tmp_path, capture_output=True, check=False).returncode == 0


class TestGpu:
    def test_only_train_asks_for_a_gpu_and_forks_never_get_there(self):
        asking = {
            name
            for name, flow in WORKFLOWS.items()
            for job in flow["jobs"].values()
            if "gpu-a100" in str(job.get("runs-on"))
        }
        assert asking == {"train"}
        condition = WORKFLOWS["train"]["jobs"]["train"]["if"]
        assert "github.event.pull_request.head.repo.full_name == github.repository" in condition
        assert (
            "github.ref == format('refs/heads/{0}', github.event.repository.default_branch)"
            in condition
        )  # no tag of that name
        assert (
            "github.event.pull_request.base.ref == github.event.repository.default_branch"
            in condition
        )  # no other branch's workflows

    def test_pull_requests_call_it_as_main_has_it(self):
        job = WORKFLOWS["pull-request"]["jobs"]["train"]
        assert job["uses"] == "your-org/qlora-gitops/.github/workflows/train.yaml@main"
        assert "github.event.pull_request.head.repo.full_name == github.repository" in job["if"]

    def test_it_believes_nothing_of_its_caller_but_the_adapters_name(self):
        assert list(WORKFLOWS["train"]["on"]["workflow_call"]["inputs"]) == ["adapter"]
        steps = [step.get("run", "") for step in WORKFLOWS["train"]["jobs"]["train"]["steps"]]
        order = [
            next(index for index, run in enumerate(steps) if word in run)
            for word in ("check_setup", "--gpu-for", "take_pull_request", "--until train")
        ]
        assert order == sorted(order)


def test_the_verdict_is_shown_whatever_it_is_and_decides_nothing_by_being_shown():
    steps = {step["name"]: step for step in WORKFLOWS["train"]["jobs"]["train"]["steps"]}
    shown = steps["Show the verdict in summary and annotations"]
    assert "--format summary --format annotations" in shown["run"]
    assert (shown["if"], shown["continue-on-error"]) == (
        "always() && steps.evaluate.outcome == 'success'",
        True,
    )


def test_comments_are_kept_whether_or_not_they_could_be_posted():
    steps = WORKFLOWS["pull-request"]["jobs"]["report"]["steps"]
    post, keep = steps[-2:]
    assert post["run"].endswith("--output reports")
    assert (keep["if"], keep["with"]["path"]) == ("always()", "reports/")


class TestRequired:
    job = WORKFLOWS["pull-request"]["jobs"]["required"]

    def test_it_always_runs_and_sees_every_job(self):
        """Without `always()` it would be skipped when a job fails, and count as green."""
        assert self.job["if"] == "always()"
        assert set(self.job["needs"]) == set(WORKFLOWS["pull-request"]["jobs"]) - {"required"}

    def test_the_ruleset_requires_it_by_this_name(self):
        import json

        (ruleset,) = [
            json.loads(path.read_text()) for path in (ROOT / ".github/rulesets").glob("*.json")
        ]
        (rule,) = [rule for rule in ruleset["rules"] if rule["type"] == "required_status_checks"]
        assert [check["context"] for check in rule["parameters"]["required_status_checks"]] == [
            self.job["name"]
        ]
        assert rule["parameters"]["strict_required_status_checks_policy"] is True


class TestProduction:
    @pytest.mark.parametrize(
        ("name", "job_name"),
        [("release", "promote"), ("release", "withdraw"), ("deploy", "deploy")],
    )
    def test_what_writes_releases_is_bound_to_the_environment(self, name, job_name):
        assert WORKFLOWS[name]["jobs"][job_name]["environment"] == "production"

    def test_a_withdrawal_is_signed_by_the_workflow_that_hosts_trust_and_releases_nothing(self):
        flow = WORKFLOWS["release"]
        assert flow["jobs"]["withdraw"]["if"] == "inputs.withdraw"
        assert flow["jobs"]["plan"]["if"] == "${{ !inputs.withdraw }}"
        assert "inputs.withdraw" in flow["concurrency"]["group"]  # it does not wait for a rollout
        assert "adapters.py withdraw" in flow["jobs"]["withdraw"]["steps"][-1]["run"]

    def test_the_release_role_is_named_nowhere_else(self):
        for name, job_name, job in ((p.values) for p in JOBS):
            if "AWS_RELEASE_ROLE" in yaml.safe_dump(job):
                assert job["environment"] == "production", f"{name}/{job_name}"

    def test_candidates_are_written_by_train_alone(self):
        assert [path.stem for path in FILES if "AWS_CANDIDATE_ROLE" in path.read_text()] == [
            "train"
        ]


@pytest.mark.parametrize(
    "command",
    [
        ["actionlint"],
        [
            "zizmor",
            "--offline",
            "--quiet",
            "--persona=auditor",
            "--strict-collection",
            "--no-progress",
            ".github",
        ],
        [
            "check-jsonschema",
            "--quiet",
            "--builtin-schema",
            "vendor.github-workflows",
            *map(str, FILES),
        ],
        ["pinact", "run", "--check", "--fix=false", "--no-api"],
    ],
    ids=lambda command: command[0],
)
def test_the_linters_have_nothing_to_say(command):
    plain = environment(
        NO_COLOR=1, FORCE_COLOR=None, CLICOLOR_FORCE=None
    )  # a CI asks for colours, and an escape sequence is output too
    result = subprocess.run(
        [BIN / command[0], *command[1:]],
        cwd=ROOT,
        env=plain,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        result.returncode,
        result.stdout.replace("No findings to report. Good job!", "")[:2000].split("(")[0].strip(),
    ) == (0, ""), result.stderr


def test_the_linters_would_find_something(tmp_path):
    bad = tmp_path / ".github/workflows/bad.yaml"
    bad.parent.mkdir(parents=True)
    bad.write_text(
        "on: push\njobs:\n  a:\n    runs-on: nowhere\n    steps:\n"
        "      - uses: actions/checkout@v4\n      - run: echo ${{ github.head_ref }}\n"
    )
    shutil.copy(ROOT / ".pinact.yaml", tmp_path)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for command in (
        ["actionlint", bad],
        ["zizmor", "--offline", "--strict-collection", bad],
        ["pinact", "run", "--check", "--fix=false", "--no-api", bad],
    ):
        assert (
            subprocess.run(
                [BIN / command[0], *command[1:]], cwd=tmp_path, capture_output=True, check=False
            ).returncode
            != 0
        )


def test_owners_cover_what_decides():
    owners = (ROOT / "CODEOWNERS").read_text()
    for path in (
        "/data/",
        "/configs/",
        "/adapters/",
        "/.github/",
        "/scripts/",
        "/CODEOWNERS",
        "/requirements",
        "/.pinact.yaml",
    ):
        assert f"\n{path}" in owners
