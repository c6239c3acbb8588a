"""What the workflows say to GitHub: comments, commands, deployments, rules; every request is held
to GitHub's own description."""

import json

import pytest
from candidate_runs import sigstore_is_unreachable
from click.testing import CliRunner

from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.gitops import commands
from adapterops.gitops.commands import Command, carry_out, parse
from adapterops.gitops.github import approved_since_push, repository, upsert_comment
from adapterops.gitops.plan_comment import MARKER, comment
from adapterops.gitops.revert import (
    app_token,
    ask_for_revert,
    open_revert,
    push_revert,
    releasing_commit,
)
from adapterops.plan.planning import BUDGET_LABEL
from play.github_api import NAME, GitHub
from repositories import ROWS, jsonl, with_adapters


def plan(**changes):
    empty = {kind: [] for kind in ("data", "rules", "settings", "code", "documents")}
    return {
        "base": "b" * 40, "head": "a" * 40, "verdict": "PROCEED",
        "reason": "support gets a GPU job.", "problems": [], "rules": [],
        "changes": empty, "adapters": [], "train": [], **changes,
    }  # fmt: skip


class TestFake:
    def test_a_request_that_breaks_the_description_is_refused(self):
        with GitHub() as github:
            assert (
                github.handle(
                    "POST",
                    f"/repos/{NAME}/issues",
                    b'{"body": "no title"}',
                    {"authorization": "token x"},
                )[0]
                == 422
            )
            status, answer = github.handle(
                "POST", f"/repos/{NAME}/deployments", b'{"ref": 5}', {"authorization": "token x"}
            )
            assert (status, "5 is not of type" in answer["message"]) == (422, True)
            assert (
                github.handle("GET", f"/repos/{NAME}/nothing", b"", {"authorization": "token x"})[0]
                == 422
            )
            assert github.handle("GET", f"/repos/{NAME}", b"", {})[0] == 401
            assert len(github.refused) == 3


class TestComment:
    def test_it_is_made_once_and_edited_in_place(self, github):
        number = github.pull_request("data", "a" * 40)
        for body in ("first", "second", "second"):
            with repository() as repo:
                upsert_comment(repo.get_issue(number), MARKER, body)
        assert github.comments_on(number) == [f"{MARKER}\nsecond"]
        assert [
            method for method, path, _ in github.requests if "comments" in path and method != "GET"
        ] == ["POST", "PATCH"]

    def test_it_is_tried_again_after_a_server_error(self, github, monkeypatch):
        number = github.pull_request("data", "a" * 40)
        failures, asked, handle = [], [], github.handle

        def failing(method, path, body, headers):
            asked.append(method)
            return (
                (502, {"message": "injected"})
                if failures and method != "GET" and failures.pop()
                else handle(method, path, body, headers)
            )

        monkeypatch.setattr(github, "handle", failing)
        for body in ("first", "second"):
            failures.append(body)
            with repository() as repo:
                upsert_comment(repo.get_issue(number), MARKER, body)
        assert [method for method in asked if method != "GET"] == ["POST", "POST", "PATCH", "PATCH"]
        assert github.comments_on(number) == [f"{MARKER}\nsecond"]

    @pytest.mark.parametrize(
        "user", [{"login": "mallory", "type": "User"}, {"login": "other-app[bot]", "type": "Bot"}]
    )
    def test_somebody_elses_comment_with_the_marker_is_left_alone(self, github, user):
        number = github.pull_request("data", "a" * 40)
        github.add_comment(number, f"{MARKER}\nmine", user)
        with repository() as repo:
            upsert_comment(repo.get_issue(number), MARKER, "ours")
        assert github.comments_on(number) == [f"{MARKER}\nmine", f"{MARKER}\nours"]

    def test_nothing_is_said_where_there_is_nothing_to_say(self):
        assert comment(plan(), [], {}) is None

    def test_changed_rules_come_before_everything(self):
        rule = {
            "file": "configs/quality_gate.yaml",
            "setting": "gates.rouge_l.min",
            "old": "0.65",
            "new": "0.1",
            "weaker": True,
        }
        finding = {
            "file": "data/training/a.jsonl",
            "line": 3,
            "code": "E104",
            "message": "output is @everyone",
            "severity": "error",
        }
        body = comment(plan(rules=[rule]), [{"verdict": "FAIL", "findings": [finding]}], {})
        assert body.index("0.65 → 0.1") < body.index("The data is not accepted yet")
        assert "@everyone" not in body

    def test_it_fits_into_a_comment(self):
        finding = {
            "file": "data/training/a.jsonl",
            "line": 3,
            "code": "E104",
            "message": "&" * 5000,
            "severity": "error",
        }
        reports = [{"verdict": "FAIL", "findings": [finding] * 50}] * 40
        body = comment(plan(), reports, {})
        assert len(f"{MARKER}\n{body}\n") <= 65_536
        assert "`/retrain`" in body

    @pytest.mark.parametrize("status", [401, 403, 404])
    def test_a_refusal_names_the_permissions(self, github, status):
        github.failures.append(status)
        with pytest.raises(InfrastructureError, match="Check the job's permissions"):
            approved_since_push(1, "a" * 40, BUDGET_LABEL)

    def test_without_a_token_it_says_so(self, monkeypatch):
        monkeypatch.delenv("GITHUB_TOKEN", raising=False)
        with pytest.raises(UsageError, match="GITHUB_TOKEN is not set"), repository(NAME):
            pass


class TestApprovalOfABudget:
    """A label speaks of what was pushed before it was set, and of nothing that came later."""

    HEAD, OTHER = "a" * 40, "b" * 40

    @pytest.fixture
    def number(self, github):
        number = github.pull_request("data", self.HEAD)
        github.pushes[-1]["timestamp"] = "2026-01-01T10:00:00Z"
        return number

    def approved(self, number, head=HEAD):
        return approved_since_push(number, head, BUDGET_LABEL)

    def test_no_label_no_approval(self, github, number):
        assert not self.approved(number)
        github.labelled(number, "data", "2026-01-01T11:00:00Z")
        assert not self.approved(number)
        assert not approved_since_push(None, self.HEAD, BUDGET_LABEL)

    def test_a_label_after_the_push_counts(self, github, number):
        github.labelled(number, BUDGET_LABEL, "2026-01-01T11:00:00Z")
        assert self.approved(number)
        assert github.refused == []  # every request is one of the published description

    @pytest.mark.parametrize(
        ("by", "kind"), [("curator", "User"), ("author", "User"), ("github-actions[bot]", "Bot")]
    )
    def test_nobody_approves_what_is_their_own(self, github, number, by, kind):
        github.pulls[number]["user"] = {"login": "author"}
        github.labelled(
            number, BUDGET_LABEL, "2026-01-01T11:00:00Z", by=by, kind=kind
        )  # `curator` has pushed it
        assert not self.approved(number)
        github.labelled(number, BUDGET_LABEL, "2026-01-01T11:00:01Z")
        assert self.approved(number)

    def test_a_label_from_before_the_newest_push_does_not(self, github, number):
        github.labelled(number, BUDGET_LABEL, "2026-01-01T11:00:00Z")
        github.pushed("data", self.OTHER, "2026-01-01T12:00:00Z")
        assert not self.approved(number, self.OTHER)
        assert not self.approved(number, self.HEAD)  # the branch is not there any more

    def test_going_back_to_what_was_approved_once_asks_again(self, github, number):
        github.labelled(number, BUDGET_LABEL, "2026-01-01T11:00:00Z")
        github.pushed("data", self.OTHER, "2026-01-01T12:00:00Z")
        github.pushed("data", self.HEAD, "2026-01-01T13:00:00Z", kind="force_push")
        assert not self.approved(number)

    def test_taken_off_and_set_again_it_counts(self, github, number):
        github.labelled(number, BUDGET_LABEL, "2026-01-01T09:00:00Z")
        assert not self.approved(number)
        github.issues[number]["labels"] = []
        assert not self.approved(number)
        github.labelled(number, BUDGET_LABEL, "2026-01-01T10:00:01Z")
        assert self.approved(number)

    def test_a_label_taken_off_does_not_count(self, github, number):
        github.labelled(number, BUDGET_LABEL, "2026-01-01T11:00:00Z")
        github.issues[number]["labels"] = []
        assert not self.approved(number)

    @pytest.mark.parametrize("labelled", ["2026-01-01T10:00:00Z", "2026-01-01T09:59:59Z"])
    def test_the_same_second_is_not_after(self, github, number, labelled):
        github.labelled(number, BUDGET_LABEL, labelled)
        assert not self.approved(number)

    def test_pushes_to_other_branches_change_nothing(self, github, number):
        github.labelled(number, BUDGET_LABEL, "2026-01-01T11:00:00Z")
        github.pushed("other", self.OTHER, "2026-01-01T12:00:00Z")
        assert self.approved(number)

    def test_a_push_that_github_does_not_list_is_approved_by_nobody(self, github, number):
        github.labelled(number, BUDGET_LABEL, "2026-01-01T11:00:00Z")
        github.pushes.clear()
        assert not self.approved(number)


class TestParse:
    def test_what_is_answered_mentions_nobody(self):
        """The answer is the workflow's, whoever wrote the comment."""
        with pytest.raises(RejectedError, match="is not a command") as error:
            parse("/retrain`@bob")
        assert "@bob" not in str(error.value)
        with pytest.raises(RejectedError, match=r"^/retrian is not a command"):
            parse("/retrian")

    @pytest.mark.parametrize(
        ("body", "expected"),
        [
            ("/retrain", Command("/retrain")),
            ("  /rerun-gate  \nbecause of the runner", Command("/rerun-gate")),
            ("/rollback support-demo", Command("/rollback", "support-demo")),
            ("please /retrain", None),
            ("/usr/bin/env is missing", None),
            ("", None),
        ],
    )
    def test_the_first_line_is_the_command(self, body, expected):
        assert parse(body) == expected

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("/retrian", "Did you mean `/retrain`?"),
            ("/rollback", "takes one adapter"),
            ("/rollback ../x", "takes one adapter"),
            ("/rollback a b", "takes one adapter"),
            ("/retrain --force", "takes nothing after it"),
        ],
    )
    def test_what_is_nearly_a_command_is_answered(self, body, said):
        with pytest.raises(RejectedError, match=said.replace("?", "\\?")):
            parse(body)


class TestCommands:
    @pytest.fixture
    def scene(self, github):
        number = github.pull_request("data", "a" * 40)
        github.permissions["reviewer"] = "write"
        github.runs.append(
            {
                "id": 5,
                "head_sha": "a" * 40,
                "created_at": "2026-01-01T10:00:00Z",
                "status": "completed",
                "event": "pull_request",
            }
        )

        def say(body, who="reviewer", at="2026-01-01T11:00:00Z", pull=True):
            made = github.add_comment(number, body, {"login": who, "type": "User"})
            issue = {"number": number} | ({"pull_request": {}} if pull else {})
            event = {
                "issue": issue,
                "comment": {
                    "id": made["id"],
                    "body": body,
                    "user": {"login": who},
                    "created_at": at,
                },
            }
            with repository() as repo:
                return carry_out(event, repo, ["support-demo"])

        return github, number, say

    def test_retrain_runs_the_head_again_and_is_answered_by_a_reaction(self, scene):
        github, _, say = scene
        assert "runs again on aaaaaaaaaaaa" in say("/retrain")
        assert github.dispatches == [("rerun", 5)]
        assert [content for _, content in github.reactions] == ["eyes", "rocket"]

    def test_rerun_gate_runs_the_failed_jobs(self, scene):
        github, _, say = scene
        say("/rerun-gate")
        assert github.dispatches == [("rerun-failed-jobs", 5)]

    def test_rollback_dispatches_the_deployment(self, scene):
        github, _, say = scene
        say("/rollback support-demo", pull=False)
        inputs = {"adapter": "support-demo", "rollback": "true", "version": ""}
        assert github.dispatches == [("deploy.yaml", {"ref": "main", "inputs": inputs})]

    @pytest.mark.parametrize("permission", ["read", "triage", "none"])
    def test_people_without_write_access_are_refused(self, scene, permission):
        github, number, say = scene
        github.permissions["visitor"] = permission
        with pytest.raises(RejectedError, match="for people with write access"):
            say("/retrain", who="visitor")
        assert github.dispatches == []
        assert [content for _, content in github.reactions] == ["-1"]
        assert "for people with write access" in github.comments_on(number)[-1]

    def test_a_head_that_was_pushed_after_the_comment_is_not_trained(self, scene):
        github, _, say = scene
        with pytest.raises(RejectedError, match="was pushed after your comment"):
            say("/retrain", at="2026-01-01T09:59:59Z")
        assert github.dispatches == []

    def test_a_head_that_moves_meanwhile_is_cancelled(self, scene, monkeypatch):
        github, number, say = scene
        restart = GitHub.restart

        def moving(self, identity, how, body, query):
            self.pulls[number]["head"]["sha"] = "b" * 40
            return restart(self, identity, how, body, query)

        monkeypatch.setattr(
            "play.github_api.ROUTES",
            [
                (p, moving if h is restart else h)
                for p, h in __import__("play.github_api").github_api.ROUTES
            ],
        )
        with pytest.raises(RejectedError, match="another commit was pushed meanwhile"):
            say("/retrain")
        assert github.dispatches == [("rerun", 5), ("cancel", 5)]

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"state": "closed"}, "this pull request is closed"),
            (
                {
                    "head": {
                        "ref": "x",
                        "sha": "a" * 40,
                        "repo": {"full_name": "somebody/qlora-gitops"},
                    }
                },
                "forks get no GPU",
            ),
            (
                {"head": {"ref": "x", "sha": "c" * 40, "repo": {"full_name": NAME}}},
                "there is no run",
            ),
        ],
    )
    def test_what_cannot_be_retrained_is_refused(self, scene, change, said):
        github, number, say = scene
        github.pulls[number] |= change
        with pytest.raises(RejectedError, match=said):
            say("/retrain")
        assert github.dispatches == []

    def test_a_run_that_has_not_ended_is_left_alone(self, scene):
        github, _, say = scene
        github.runs[0]["status"] = "in_progress"
        with pytest.raises(RejectedError, match="has not ended yet"):
            say("/retrain")

    def test_an_unknown_adapter_is_not_rolled_back(self, scene):
        _, _, say = scene
        with pytest.raises(RejectedError, match="Did you mean `support-demo`"):
            say("/rollback suport-demo")

    def test_commands_under_an_issue_that_is_no_pull_request(self, scene):
        _, _, say = scene
        with pytest.raises(RejectedError, match="belongs under a pull request"):
            say("/retrain", pull=False)

    def test_the_workflow_that_is_restarted_exists(self):
        from adapterops.schemas import ROOT

        assert (ROOT / ".github/workflows" / commands.WORKFLOW).is_file()


class TestRevert:
    def test_the_commit_that_changed_the_adapter_is_reverted_once(self, github, tmp_path):
        clone = with_adapters(tmp_path, ("support",))
        released = clone.commit({"data/training/support.jsonl": jsonl(ROWS[:2])})
        clone.commit({"README.md": "later\n", "data/README.md": "later\n"})
        assert releasing_commit("support", clone.path) == released
        branch = push_revert("support", released, clone.path)
        clone.git("fetch", "-q", "origin", branch)
        assert clone.git("show", "FETCH_HEAD:data/training/support.jsonl") == jsonl(ROWS).strip()
        assert clone.git("show", "FETCH_HEAD:README.md") == "later"
        assert clone.git("status", "--porcelain") == ""
        for _ in range(2):
            with repository() as repo:
                pull = open_revert("support", released, branch, repo)
        assert (len(github.pulls), pull.head.ref) == (1, branch)

    def test_a_revert_that_conflicts_is_left_to_people(self, tmp_path):
        clone = with_adapters(tmp_path, ("support",))
        released = clone.commit({"data/training/support.jsonl": jsonl(ROWS[:2])})
        clone.commit({"data/training/support.jsonl": jsonl(ROWS[3:])})
        with pytest.raises(RejectedError, match=f"git revert {released}"):
            push_revert("support", released, clone.path)
        assert len(clone.git("worktree", "list").splitlines()) == 1


class TestRulesets:
    def test_they_are_created_then_replaced_and_checked(self, github):
        import apply_rulesets

        assert CliRunner().invoke(apply_rulesets.main, ["--check"]).exit_code == 1
        for said in ("ruleset main: created", "ruleset main: replaced"):
            result = CliRunner().invoke(apply_rulesets.main, [])
            assert (result.exit_code, said in result.output) == (0, True), result.output
        assert len(github.rulesets) == 1
        assert ("PUT", f"/repos/{NAME}/actions/oidc/customization/sub") in [
            (method, path) for method, path, _ in github.requests
        ]
        assert CliRunner().invoke(apply_rulesets.main, ["--check"]).exit_code == 0
        (rules,) = github.rulesets.values()
        rules["rules"] = [
            rule for rule in rules["rules"] if rule["type"] != "required_status_checks"
        ]
        assert CliRunner().invoke(apply_rulesets.main, ["--check"]).exit_code == 1


class TestDeployment:
    @pytest.mark.parametrize(("code", "state"), [(0, "success"), (1, "failure"), (3, "error")])
    def test_github_learns_how_it_ended(self, github, monkeypatch, code, state):
        import deploy_from_actions

        called = []
        monkeypatch.setenv("GATEWAYS", "http://10.0.0.7:8080 http://10.0.0.8:8080")

        def deploy(command):
            called.append(command)
            return code

        monkeypatch.setattr(deploy_from_actions, "run_child", deploy)
        result = CliRunner().invoke(
            deploy_from_actions.main, ["--adapter", "support-demo", "--version", "a" * 64]
        )
        assert result.exit_code == code
        assert called[0][-4:] == [
            "--gateway",
            "http://10.0.0.7:8080",
            "--gateway",
            "http://10.0.0.8:8080",
        ]
        (deployment,) = github.deployments.values()
        assert deployment["statuses"] == ["in_progress", state]
        assert deployment["environment"] == "production/support-demo"

    def test_without_gateways_nothing_starts(self, github, monkeypatch):
        import deploy_from_actions

        monkeypatch.delenv("GATEWAYS", raising=False)
        result = CliRunner().invoke(
            deploy_from_actions.main, ["--adapter", "support-demo", "--version", "latest"]
        )
        assert result.exit_code == 2
        assert github.deployments == {}


class TestSetup:
    def test_all_that_is_missing_is_named_at_once(self, monkeypatch):
        from adapterops.gitops import setup

        for name in ("ADAPTER_BUCKET", "GATEWAYS", "GITHUB_TOKEN", "NO_GPU"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(setup.shutil, "which", lambda _: None)
        problems = setup.missing(["bucket", "gpu", "gateways", "github"])
        assert [problem.partition(":")[0] for problem in problems] == [
            "bucket",
            "gpu",
            "gateways",
            "github",
        ]
        assert all(problem.endswith("See docs/setup-github.md.") for problem in problems)

    def test_a_key_that_cannot_sign_candidates_is_named_before_they_are_trained(
        self, monkeypatch, tmp_path
    ):
        from adapterops.gitops.setup import missing
        from adapterops.signing import make_key_pair

        for name in ("mine", "theirs"):
            make_key_pair(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem")
        for key, public_key, said in (
            ("mine.pem", "mine.pub.pem", None),
            ("nowhere.pem", "mine.pub.pem", "nowhere.pem does not exist"),
            ("mine.pem", "nowhere.pub.pem", "nowhere.pub.pem does not exist"),
            ("mine.pub.pem", "mine.pub.pem", "--signing-key"),
            ("mine.pem", "theirs.pub.pem", "the signature does not hold"),
        ):
            monkeypatch.setenv("CANDIDATE_SIGNING_KEY", str(tmp_path / key))
            monkeypatch.setenv("CANDIDATE_SIGNED_BY", str(tmp_path / public_key))
            problems = missing(["candidates-sign"])
            assert bool(problems) is (said is not None), problems
            assert said is None or (said in problems[0] and "CANDIDATE_SIGNING_KEY" in problems[0])
        monkeypatch.setenv("CANDIDATE_SIGNING_KEY", "keyless")
        assert "set both" in missing(["candidates-sign"])[0]

    def test_a_runner_that_cannot_sign_without_a_key_is_named_before_it_trains(self, monkeypatch):
        from adapterops.gitops.setup import missing
        from adapterops.signing import Trust

        known = {
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_REPOSITORY": "your-org/qlora-gitops",
        }
        for name, value in {
            **known,
            "CANDIDATE_SIGNING_KEY": "keyless",
            "CANDIDATE_SIGNED_BY": "keyless",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL", raising=False)
        sigstore_is_unreachable(monkeypatch)
        assert "id-token: write" in missing(["candidates-sign"])[0]
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", "https://pipelines.invalid")
        assert "must reach *.sigstore.dev" in missing(["candidates-sign"])[0]
        monkeypatch.setattr(Trust, "verifier", lambda _: None)
        assert missing(["candidates-sign"]) == []

    def test_an_unknown_need_is_misuse(self):
        from adapterops.gitops.setup import missing

        with pytest.raises(UsageError, match="--need gpus"):
            missing(["gpus"])


class TestRole:
    def test_the_token_goes_to_a_private_file_and_is_masked(self, github, monkeypatch, tmp_path):
        import assume_role

        for name, value in {"ACTIONS_ID_TOKEN_REQUEST_URL": f"{github.url}/oidc",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x", "RUNNER_TEMP": str(tmp_path),
        "GITHUB_ENV": str(tmp_path / "env"), "GITHUB_ACTIONS": "true"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(
            assume_role.main, ["--role", "arn:aws:iam::1:role/x", "--region", "eu-west-1"]
        )
        assert result.exit_code == 0, result.output
        token = tmp_path / "aws-web-identity-token"
        assert token.stat().st_mode & 0o777 == 0o600
        assert result.output.startswith(f"::add-mask::{token.read_text()}")
        assert "arn:aws:iam::1:role/x" in (tmp_path / "env").read_text()
        assert token.read_text() not in (tmp_path / "env").read_text()

    def test_a_training_that_outlasts_the_role_renews_the_token(
        self, github, monkeypatch, tmp_path
    ):
        from adapterops.gitops.identity import renew_token

        renew_token()  # nothing to renew
        token = tmp_path / "token"
        token.write_text("expired")
        for name, value in {"ACTIONS_ID_TOKEN_REQUEST_URL": f"{github.url}/oidc",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(token)}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        renew_token()
        assert token.read_text() not in {"", "expired"}

    def test_without_the_permission_it_says_which(self, monkeypatch):
        import assume_role

        monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_URL", raising=False)
        result = CliRunner().invoke(assume_role.main, ["--role", "arn:aws:iam::1:role/x"])
        assert result.exit_code == 2


def test_an_output_cannot_set_another_variable(monkeypatch, tmp_path):
    from adapterops.gitops.outputs import set_outputs

    monkeypatch.setenv("GITHUB_OUTPUT", str(tmp_path / "out"))
    set_outputs(reason="one\nverdict=PASS\nEOF")
    first, *middle, last = (tmp_path / "out").read_text().splitlines()
    assert first.startswith("reason<<end-")
    assert last == first.removeprefix("reason<<")
    assert middle == ["one", "verdict=PASS", "EOF"]


def test_the_description_is_a_slice_of_githubs_own():
    from play.github_api import DESCRIPTION

    described = json.loads(DESCRIPTION.read_text())
    assert "GitHub's official OpenAPI" in described["info"]["title"]
    assert described["paths"]["/repos/{owner}/{repo}/deployments"]["post"]["requestBody"]


class TestAskForRevert:
    def test_one_issue_says_what_to_run(self, github):
        with repository() as repo:
            first, again = (ask_for_revert("support", "a" * 40, repo) for _ in range(2))
        assert (first.number, len(github.issues)) == (again.number, 1)
        assert f"git revert --no-edit {'a' * 40}" in first.body
        assert "origin/main" in first.body

    def test_an_issue_of_somebody_else_with_the_same_title_is_not_taken_for_it(self, github):
        with repository() as repo:
            ours = ask_for_revert("support", "a" * 40, repo)
            github.issues[ours.number]["user"] = {"login": "mallory[bot]", "type": "Bot", "id": 5}
            assert ask_for_revert("support", "a" * 40, repo).number != ours.number

    @pytest.mark.parametrize(
        ("app_id", "key"), [("12", "no key"), ("twelve", "-----BEGIN RSA PRIVATE KEY-----\nAA==")]
    )
    def test_a_key_that_is_none_is_misuse_and_is_not_shown(self, app_id, key):
        with pytest.raises(UsageError, match="REVERT_APP_KEY are no App's") as caught:
            app_token(app_id, key, NAME)
        assert key not in str(caught.value)
