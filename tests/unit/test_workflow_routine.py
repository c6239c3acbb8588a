"""What runs by itself or by a comment beside the pull request: judging by main's rules, drift, the
week, reports, notes."""

import dataclasses
import html
import itertools
import json
from pathlib import Path

import httpx
import pytest
from candidate_runs import copy_tree, empty_store, kept, release
from click.testing import CliRunner

from adapterops.candidates import kept as candidates
from adapterops.candidates.keys import adapter_keys
from adapterops.errors import InfrastructureError, UsageError
from adapterops.gitops import channel_drift
from adapterops.signing import Signer, make_key_pair
from adapterops.specs.adapter import run_directory
from adapterops.store.channels import change_channel, promote
from repositories import EVALUATION, ROWS, jsonl, with_adapters

GATEWAY = "http://10.0.0.7:8080"


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(candidates, "read_json", lambda path, _: json.loads(path.read_text()))
    with empty_store(monkeypatch) as store:
        yield store


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout of main, which the scripts take for theirs."""
    from adapterops import schemas

    repository = with_adapters(tmp_path / "git", ("support",))
    monkeypatch.setattr(schemas, "ROOT", repository.path)
    return repository


@pytest.fixture
def keys(repository):
    return adapter_keys("support", repository.path)


def run(script, *arguments):
    module = __import__(script)
    result = CliRunner().invoke(module.main, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


class TestMainsRules:
    """A pull request that changes rules is judged by its own and by those of main."""

    @pytest.fixture
    def judge(self, repository, tmp_path, monkeypatch):
        """`judge(changes)`: judge_by_main.py in a checkout with these changes; what it called, and
        how it ended."""
        import judge_by_main

        def of(changes, gate_code=0, production=None, wanted=False, spec_of_main=None):
            main = tmp_path / "main"
            copy_tree(repository.path, main)
            if spec_of_main is not None:
                (main / "adapters/support.yaml").write_text(spec_of_main)
            for path, content in changes.items():
                repository.write(path, content)
            run_of_it = run_directory(
                tmp_path / "runs",
                (own := adapter_keys("support", repository.path)).spec,
                own.training,
            )
            (run_of_it / "main").mkdir(parents=True)
            (run_of_it / "main/gate_report.json").write_text("of other rules")
            for name, content in {
                "eval_results": {"production": {"digest": production}},
                "data_report": {},
            }.items():
                (run_of_it / f"{name}.json").write_text(json.dumps(content))
            calls = []

            def call(command, check):
                calls.append([str(part) for part in command])
                report = judge_by_main.Path(command[command.index("--output") + 1])
                if "quality_gate.py" in command[1]:
                    report.parent.mkdir(parents=True, exist_ok=True)
                    open_yet = wanted and not any("--draw-extension" in former for former in calls)
                    verdict = {
                        "verdict": "INCONCLUSIVE" if open_yet else "FAIL",
                        "reason": "rouge_l 0.2 misses 0.55.",
                    }
                    report.write_text(json.dumps(verdict | {"extension": {"wanted": open_yet}}))
                return type(
                    "_", (), {"returncode": gate_code if "quality_gate.py" in command[1] else 0}
                )

            monkeypatch.setattr(
                judge_by_main, "subprocess", type("_", (), {"run": staticmethod(call)})
            )
            monkeypatch.setattr(
                "adapterops.documents.read_json", lambda path, _: json.loads(path.read_text())
            )
            summary = tmp_path / "summary.md"
            monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
            result = run(
                "judge_by_main", "--adapter", "support", "--main", main, "--runs", tmp_path / "runs"
            )
            return calls, result, summary.read_text() if summary.exists() else "", main

        return of

    def test_a_lowered_gate_is_shown_with_what_main_would_say(self, judge, repository):
        gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
        (gate,), result, summary, main = judge(
            {"configs/quality_gate.demo.yaml": gates.replace("min: 0.55", "min: 0.05")}, 1
        )
        assert result.exit_code == 0, (
            result.output
        )  # shown; what follows from it is for reviewers to say
        # What was measured for the pull request's own verdict, production and all: nothing is
        # generated twice.
        results = Path(gate[gate.index("--results") + 1])
        assert (results.name, results.parent.parent.name) == ("eval_results.json", "support")
        assert gate[gate.index("--data-report") + 1] == str(results.with_name("data_report.json"))
        assert gate[gate.index("--gates") + 1] == str(main / "configs/quality_gate.demo.yaml")
        assert gate[gate.index("--output") + 1].endswith("/main/gate_report.json")
        assert "By the default branch's rules support would be FAIL" in summary

    def test_other_evaluation_rows_are_other_rules(self, judge):
        (evaluate, gate), _, _, main = judge(
            {"data/eval/support.jsonl": jsonl(EVALUATION[:1])}, production="9" * 64
        )
        assert evaluate[evaluate.index("--eval-data") + 1] == str(main / "data/eval/support.jsonl")
        # Against the same adapter in production, or main's margins would ask for nothing.
        assert evaluate[evaluate.index("--production") + 1].endswith(
            f"runs/releases/support/sha256-{'9' * 64}"
        )
        assert evaluate[evaluate.index("--responses") + 1].endswith("runs/responses.sqlite")
        assert gate[gate.index("--results") + 1].endswith("/main/eval_results.json")
        checked = Path(
            gate[gate.index("--data-report") + 1]
        )  # not the pull request's own: it is on other rows
        assert (checked.parent.name, checked.name) == ("main", "data_report.json")
        files = {file["path"]: file["kind"] for file in json.loads(checked.read_text())["files"]}
        judged_on = ["support.jsonl", "general-en.jsonl", "general-texts-en.jsonl"]
        assert [Path(path).name for path, kind in files.items() if kind == "eval"] == judged_on
        assert evaluate[evaluate.index("--general-data") + 1] == str(
            main / "data/eval/general-en.jsonl"
        )  # main's too
        assert json.loads(checked.read_text())["counts"].get("E401", 0) == 0

    def test_mains_rows_that_are_trained_on_are_found_though_the_pull_request_evaluates_on_others(
        self, judge
    ):
        stolen = {**ROWS[0], "id": "stolen", "instruction": EVALUATION[1]["instruction"]}
        others = [{**EVALUATION[0], "instruction": "Is the shop open on Sundays, and until when?"}]
        _, gate = judge(
            {
                "data/eval/support.jsonl": jsonl(others),
                "data/training/support.jsonl": jsonl([*ROWS, stolen]),
            }
        )[0]
        checked = json.loads(Path(gate[gate.index("--data-report") + 1]).read_text())
        assert checked["counts"]["E401"] == 1

    @pytest.mark.parametrize("rows", ["its own", "main's"])
    def test_extension_rows_are_drawn_once_where_main_is_left_open(self, judge, repository, rows):
        gates = (
            (repository.path / "configs/quality_gate.demo.yaml")
            .read_text()
            .replace("min: 0.55", "min: 0.05")
        )
        changes = {"configs/quality_gate.demo.yaml": gates}
        if rows == "main's":
            changes["data/eval/support.jsonl"] = jsonl(EVALUATION[:1])
        calls, result, summary, _ = judge(changes, 1, wanted=True)
        assert result.exit_code == 0, result.output
        made = [Path(call[1]).name for call in calls]
        assert made == ["evaluate.py"] * (rows == "main's") + [
            "quality_gate.py",
            "evaluate.py",
            "quality_gate.py",
        ]
        evaluate, gate = calls[-2:]
        assert "--draw-extension" in evaluate
        assert evaluate[evaluate.index("--output") + 1] == gate[gate.index("--results") + 1]
        assert "would be FAIL" in summary

    def test_rules_that_are_broken_on_main_are_named_and_hinder_nobody_who_mends_them(self, judge):
        calls, result, summary, _ = judge({}, spec_of_main="name: 7\n")
        assert (calls, result.exit_code) == ([], 0)
        assert (
            "support cannot be judged by the default branch's rules, which are broken there:"
            " adapters/support.yaml" in summary
        )

    def test_a_pin_is_a_rule_and_main_has_its_own(self, judge, repository):
        spec = (repository.path / "adapters/support.yaml").read_text()
        (gate,), _, _, main = judge(
            {
                "adapters/support.yaml": spec.replace(
                    "\nevaluation:", f"  evaluation_sha256: {'a' * 64}\n\nevaluation:", 1
                )
            }
        )
        assert gate[gate.index("--adapters") + 1] == str(main / "adapters")

    def test_equal_rules_are_judged_once(self, judge):
        calls, result, _, main = judge({"data/training/support.jsonl": jsonl(ROWS[:2])})
        assert calls == []
        assert not list(
            main.parent.glob("runs/**/main/gate_report.json")
        )  # a former one is not taken for today's
        assert "are those of the default branch" in result.output

    def test_a_verdict_that_could_not_be_computed_is_infrastructure(self, judge, repository):
        gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
        _, result, _, _ = judge(
            {"configs/quality_gate.demo.yaml": gates.replace("min: 0.55", "min: 0.05")}, 3
        )
        assert result.exit_code == 3


class TestDrift:
    @pytest.fixture
    def health(self, monkeypatch):
        """What the gateway says; None does not answer."""
        said = {"adapters": {}}

        def get(url, timeout):
            if said["adapters"] is None:
                raise httpx.ConnectError("refused")
            return httpx.Response(200, json=said)

        monkeypatch.setattr(channel_drift.httpx, "get", get)
        monkeypatch.setenv("GATEWAYS", GATEWAY)
        return said

    def ready(self, digest):
        return {"support": {"generation": 1, "stable": digest, "stable_ready": True}}

    def test_nothing_is_said_while_all_agree(self, github, store, keys, health, tmp_path):
        health["adapters"] = self.ready(release(store, keys, tmp_path / "run"))
        result = run("reconcile")
        assert "agree" in result.output
        assert github.issues == {}

    def test_one_issue_is_opened_kept_up_to_date_and_closed(
        self, github, store, keys, health, tmp_path
    ):
        served = release(store, keys, tmp_path / "run")
        health["adapters"] = {
            "support": {"generation": 0, "stable": "e" * 64, "stable_ready": True}
        }
        for _ in range(2):
            assert run("reconcile").exit_code == 0
        (issue,) = github.issues.values()
        assert "stable eeeeeeeeeeee" in issue["body"]
        health["adapters"] = None
        run("reconcile")
        assert "does not answer" in github.issues[issue["number"]]["body"]
        health["adapters"] = self.ready(served)
        run("reconcile")
        assert github.issues[issue["number"]]["state"] == "closed"
        assert github.comments_on(issue["number"]) == ["They agree again."]
        assert len(github.issues) == 1

    def test_a_release_that_main_wants_and_the_channel_does_not_serve(
        self, github, store, keys, health, repository, tmp_path
    ):
        health["adapters"] = self.ready(release(store, keys, tmp_path / "run"))
        repository.write("data/training/support.jsonl", jsonl(ROWS[:2]))
        newer = adapter_keys("support", repository.path)
        digest = kept(
            store,
            newer,
            tmp_path / "newer",
            weights=b"newer",
            production=health["adapters"]["support"]["stable"],
        )["digest"]
        run("reconcile")
        (issue,) = github.issues.values()
        assert f"main wants {digest[:12]}" in issue["body"]
        assert "gh workflow run release.yaml -f adapter=support" in issue["body"]

    def test_somebody_elses_issue_of_that_title_is_left_alone(
        self, github, store, keys, health, tmp_path
    ):
        import reconcile

        github.issues[99] = {
            "number": 99,
            "title": reconcile.TITLE,
            "state": "open",
            "user": {"login": "m", "type": "User"},
            "body": "x",
        }
        github.issues[99] |= {"labels": [], "html_url": "x"}
        health["adapters"] = self.ready(release(store, keys, tmp_path / "run"))
        run("reconcile")
        assert github.issues[99]["state"] == "open"


class TestWeek:
    def waiting(self, monkeypatch, tmp_path):
        monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "out"))
        assert run("weekly", "plan").exit_code == 0
        return json.loads((tmp_path / "out").read_text().splitlines()[-2])

    def test_adapters_whose_data_changed_are_trained(
        self, store, keys, repository, monkeypatch, tmp_path
    ):
        assert self.waiting(monkeypatch, tmp_path) == ["support"]
        release(store, keys, tmp_path / "run")
        assert self.waiting(monkeypatch, tmp_path) == []
        repository.write("data/training/support.jsonl", jsonl(ROWS[:2]))
        assert self.waiting(monkeypatch, tmp_path) == ["support"]

    def test_what_is_released_is_not_judged_again_each_week(
        self, store, keys, monkeypatch, tmp_path
    ):
        """Its verdict was against the adapter that was in production before it."""
        kept(store, keys, tmp_path / "first")
        release(store, keys, tmp_path / "run", production="e" * 64)
        assert self.waiting(monkeypatch, tmp_path) == []

    def test_a_failed_verdict_is_a_verdict(self, store, keys, monkeypatch, tmp_path):
        kept(store, keys, tmp_path / "run", verdict="FAIL")
        assert self.waiting(monkeypatch, tmp_path) == []

    def test_what_is_not_signed_is_named_and_not_trained(
        self, github, store, keys, monkeypatch, tmp_path
    ):
        """The run would refuse it, and what stays must not pass for a verdict."""
        make_key_pair(tmp_path / "mine.pem", tmp_path / "mine.pub.pem")
        kept(store, keys, tmp_path / "run")
        monkeypatch.setenv("CANDIDATE_SIGNED_BY", str(tmp_path / "mine.pub.pem"))
        assert self.waiting(monkeypatch, tmp_path) == []
        said = run("weekly", "plan").output
        assert "support: s3://" in said
        assert (
            f"aws s3 rm --recursive s3://{store.bucket}/candidates/{keys.training}/   # then: gh"
            " workflow run retrain.yaml" in said
        )
        run("weekly", "review")
        (issue,) = github.issues.values()
        assert "candidate.json is not used" in html.unescape(issue["body"])

    def test_one_review_is_opened_a_week_with_what_happened(self, github, store, keys, tmp_path):
        digest = release(store, keys, tmp_path / "run")
        for _ in range(2):
            assert run("weekly", "review").exit_code == 0
        (issue,) = github.issues.values()
        assert issue["title"].startswith("Weekly review 20")
        assert digest[:12] in issue["body"]
        change_channel(
            store, "support", lambda channel: promote(channel, "f" * 64), reason="the *next* @one"
        )
        run("weekly", "review")
        assert "&#64;\u200bone" in github.issues[issue["number"]]["body"]

    @pytest.mark.usefixtures("repository")
    def test_every_adapters_data_is_reported_and_the_worst_decides(self, monkeypatch, tmp_path):
        import weekly

        calls = []

        def validate(command, check):
            calls.append(command)
            return type("_", (), {"returncode": 1})

        monkeypatch.setattr(weekly, "subprocess", type("_", (), {"run": staticmethod(validate)}))
        assert run("weekly", "data", "--output", tmp_path).exit_code == 1
        assert [command[command.index("--adapter") + 1] for command in calls] == ["support"]


def named(keys, name):
    """Keys of a twin: another name, the same trained bytes, a verdict of its own."""
    return dataclasses.replace(keys, spec=dataclasses.replace(keys.spec, name=name))


@pytest.fixture
def post_reports(keys, monkeypatch, tmp_path):
    """`post_reports(*adapters)`: how it ended, what it had `report.py` post, and what it had judged
    by today's rules."""
    import post_reports

    posted, judged = [], []

    def post(command, check):
        posted.extend(
            Path(path) for option, path in itertools.pairwise(command) if option == "--report"
        )
        return type("_", (), {"returncode": 0})

    def judge(run, name):
        judged.append((run, name))

    monkeypatch.setattr(post_reports, "subprocess", type("_", (), {"run": staticmethod(post)}))
    monkeypatch.setattr(
        "adapterops.documents.read_json", lambda path, _: json.loads(path.read_text())
    )
    monkeypatch.setattr("adapterops.gate.todays_rules.judge_by_todays_rules", judge)

    def of(*names):
        of_each = [named(keys, name) for name in names]
        rows = [
            {
                "name": one.spec.name,
                "training_key": one.training,
                "judgement_key": one.judgement(None),
            }
            for one in of_each
        ]
        (tmp_path / "plan.json").write_text(json.dumps({"adapters": rows}))
        options = [
            "--pull-request",
            7,
            "--repository",
            "your-org/qlora-gitops",
            "--output",
            tmp_path / "reports",
        ]
        return run("post_reports", "--plan", tmp_path / "plan.json", *options), posted, judged

    return of


@pytest.mark.parametrize("signed", [True, False])
def test_a_verdict_is_reported_if_its_signature_holds(
    store, keys, post_reports, monkeypatch, tmp_path, signed
):
    make_key_pair(tmp_path / "mine.pem", tmp_path / "mine.pub.pem")
    kept(store, keys, tmp_path / "run", Signer(tmp_path / "mine.pem") if signed else None)
    monkeypatch.setenv("CANDIDATE_SIGNED_BY", str(tmp_path / "mine.pub.pem"))
    result, posted, judged = post_reports("support")
    assert result.exit_code == 0, result.output
    assert len(posted) == len(judged) == signed
    for (run_of_it, name), report in zip(judged, posted, strict=True):
        assert (name, report) == ("support", run_of_it / "gate_report.json")
        assert report.is_file()  # it stays when the command has ended
        assert [file.name for file in (run_of_it / "model").iterdir()] == [
            "train_manifest.json"
        ]  # no weights in an artifact
    assert ("candidate.json is not used" in result.output) is not signed


def test_one_adapters_trouble_keeps_no_comment_back(
    store, keys, post_reports, monkeypatch, tmp_path
):
    def judge(run, name):
        if name == "support":
            raise UsageError("main's rules are broken")

    for name in ("support", "legal"):
        kept(store, named(keys, name), tmp_path / name)
    monkeypatch.setattr("adapterops.gate.todays_rules.judge_by_todays_rules", judge)
    result, posted, _ = post_reports("support", "legal")
    assert (result.exit_code, "support: main's rules are broken" in result.output) == (2, True)
    assert [report.parent.parent.name for report in posted] == ["support", "legal"]
    said = [report.with_name("main") / "problem.txt" for report in posted]
    assert [path.read_text() if path.is_file() else None for path in said] == [
        "main's rules are broken",
        None,
    ]


def test_a_verdict_that_cannot_be_fetched_keeps_no_other_ones_comment_back(
    store, keys, post_reports, monkeypatch, tmp_path
):
    fetch = candidates.fetch_judgement

    def failing(store, judgement, run):
        if run.parent.name == "support":
            raise InfrastructureError("the store does not answer")
        fetch(store, judgement, run)

    for name in ("support", "legal"):
        kept(store, named(keys, name), tmp_path / name)
    monkeypatch.setattr(candidates, "fetch_judgement", failing)
    result, posted, _ = post_reports("support", "legal")
    assert (result.exit_code, "support: the store does not answer" in result.output) == (3, True)
    assert [report.parent.parent.name for report in posted] == ["legal"]


def test_notes_of_a_release_say_how_to_come_back_to_it_and_are_made_once(
    github, store, keys, tmp_path
):
    digest = release(store, keys, tmp_path / "run")
    for _ in range(2):
        assert run("release_notes", "--adapter", "support", "--version", digest).exit_code == 0
    (made,) = github.releases.values()
    assert made["tag_name"] == f"support-{digest[:12]}"
    assert f"-f adapter=support -f version={digest[:12]}" in made["body"]


def test_the_plans_comment_is_kept_up_to_date(github, repository, monkeypatch, tmp_path):
    from adapterops.documents import write_json
    from adapterops.plan import planning
    from adapterops.plan.estimate import Estimate

    monkeypatch.setattr(planning, "estimate", lambda *_: Estimate(60.0, 8.0, "measured"))
    number = github.pull_request("data", "a" * 40)
    gates = (repository.path / "configs/quality_gate.demo.yaml").read_text()
    head = repository.branch(
        "lower", {"configs/quality_gate.demo.yaml": gates.replace("min: 0.80", "min: 0.10")}
    )
    plan = planning.build_plan(repository.git("rev-parse", "main"), head, repository.path, None)
    write_json(tmp_path / "plan.json", plan, "plan")
    for _ in range(2):
        assert (
            run(
                "comment_plan", "--plan", tmp_path / "plan.json", "--pull-request", number
            ).exit_code
            == 0
        )
    (said,) = github.comments_on(number)
    assert said.splitlines()[1] == "### ⚠️ This pull request changes the rules that it is judged by"
    assert "0.8 → 0.1 | **lower bar**" in said
