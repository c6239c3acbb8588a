"""One comment for each adapter and pull request, whatever GitHub does meanwhile."""

import pytest
from click.testing import CliRunner
from eval_documents import results, write
from github_fake import GitHubFake

import report as report_script
from adapterops.adapters import Pins
from adapterops.errors import InfrastructureError
from adapterops.gate.judge import judge_once
from adapterops.report.post import PullRequest, post


@pytest.fixture
def github():
    fake = GitHubFake()
    yield fake
    fake.close()
    assert fake.invalid == []  # every request was one that GitHub describes


def where(github, **changes):
    return PullRequest(**{"repository": "o/r", "number": 7, "token": "t", "api_url": github.url, "retries": 2} | changes)


def body(verdict, adapter="support", text=""):
    return f"{verdict} {text}\n<!-- adapter-report adapter={adapter} verdict={verdict} -->\n"


def test_the_same_verdict_edits_the_comment_and_another_one_is_a_new_comment(github):
    assert post(where(github), "support", "FAIL", body("FAIL"))[0] == "created"
    assert post(where(github), "support", "FAIL", body("FAIL", text="again"))[0] == "edited"
    assert post(where(github), "support", "FAIL", body("FAIL", text="again"))[0] == "unchanged"
    assert len(github.comments) == 1
    done, address = post(where(github), "support", "PASS", body("PASS"))
    assert (done, len(github.comments)) == ("created", 2)
    assert address in github.comments[0]["body"]  # the former one leads to the one that holds
    assert "verdict=SUPERSEDED" in github.comments[0]["body"]
    assert post(where(github), "support", "PASS", body("PASS", text="x"))[0] == "edited"


def test_each_adapter_has_its_own_comment(github):
    post(where(github), "support", "PASS", body("PASS"))
    post(where(github), "legal", "FAIL", body("FAIL", "legal"))
    post(where(github), "support", "PASS", body("PASS", text="new"))
    assert [comment["body"].split()[0] for comment in github.comments] == ["PASS", "FAIL"]


def test_a_strangers_comment_with_our_marker_is_never_touched(github):
    planted = github.add(body("PASS"), login="mallory")["body"]
    assert post(where(github), "support", "PASS", body("PASS"))[0] == "created"
    assert github.comments[0]["body"] == planted


def test_the_comment_is_found_behind_many_others(github):
    for number in range(70):
        github.add(f"chat {number}", login="someone")
    post(where(github), "support", "PASS", body("PASS"))
    for number in range(40):
        github.add(f"chat {number}", login="someone")
    assert post(where(github), "support", "PASS", body("PASS", text="new"))[0] == "edited"


@pytest.mark.parametrize(
    "failure", [(502, {}), (503, {}), (403, {"Retry-After": "0", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "0"})]
)
def test_server_errors_and_rate_limits_are_retried(github, failure):
    github.failures = [failure]
    assert post(where(github), "support", "PASS", body("PASS"))[0] == "created"
    assert len(github.comments) == 1


def test_a_refusal_names_the_permission_that_is_missing(github):
    github.failures = [(404, {})]
    with pytest.raises(InfrastructureError, match=r"o/r#7: .*404.*pull-requests: write"):
        post(where(github), "support", "PASS", body("PASS"))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "gates.yaml").write_text("gates: {rouge_l: {min: 0.65, description: d}}")
    write(tmp_path / "eval_results.json", results({"rouge_l": [0.7] * 20}))
    judge_once(tmp_path / "eval_results.json", tmp_path / "gates.yaml", tmp_path / "gate_report.json", pins=Pins("support"))
    return tmp_path


def command(run, url, monkeypatch, token="t"):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_TOKEN", token)
    arguments = ["post", "--report", str(run / "gate_report.json"), "--repository", "o/r", "--pull-request", "7", "--api-url", url]
    return CliRunner().invoke(report_script.main, arguments)


def test_the_command_posts_what_it_keeps(github, run, monkeypatch):
    result = command(run, github.url, monkeypatch)
    assert (result.exit_code, "created" in result.output) == (0, True)
    assert github.comments[0]["body"] == (run / "comment.md").read_text()


def test_a_failed_post_fails_nothing_and_loses_nothing(github, run, monkeypatch):
    github.failures = [(404, {})]
    for result in (command(run, github.url, monkeypatch), command(run, github.url, monkeypatch, token="")):
        assert result.exit_code == 0
        assert "::warning title=report not posted::" in result.output
    assert github.comments == []
    assert "PASS" in (run / "comment.md").read_text()


def test_the_fake_refuses_what_github_does_not_describe():
    import urllib.error
    import urllib.request

    fake = GitHubFake()
    request = urllib.request.Request(f"{fake.url}/repos/o/r/issues/7/comments", b'{"text": "x"}', {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="422"):
        urllib.request.urlopen(request)
    assert len(fake.invalid) == 1
    fake.close()
