"""One comment for each adapter and pull request, whatever GitHub does meanwhile."""

import json
import time

import pytest
from click.testing import CliRunner
from eval_documents import results, write
from github_fake import GitHubFake

import report as report_script
from adapterops.errors import InfrastructureError
from adapterops.gate.judge import judge_once
from adapterops.gitops.comments import PullRequest, post
from adapterops.report.comment import SUPERSEDED, marker
from adapterops.specs.adapter import Pins


@pytest.fixture
def github():
    fake = GitHubFake()
    yield fake
    fake.close()
    assert fake.invalid == []  # every request was one that GitHub describes


def where(github, **changes):
    return PullRequest(
        **{"repository": "o/r", "number": 7, "token": "t", "api_url": github.url, "retries": 2}
        | changes
    )


def body(verdict, adapter="support", text=""):
    return f"{verdict} {adapter} {text}"


def test_the_same_verdict_edits_the_comment_and_another_one_is_a_new_comment(github):
    assert post(where(github), "support", "FAIL", body("FAIL")).done == "created"
    assert post(where(github), "support", "FAIL", body("FAIL", text="again")).done == "edited"
    assert post(where(github), "support", "FAIL", body("FAIL", text="again")).done == "unchanged"
    assert len(github.comments) == 1
    posted = post(where(github), "support", "PASS", body("PASS"))
    assert (posted.done, posted.unfolded, len(github.comments)) == ("created", "", 2)
    assert (
        posted.address in github.comments[0]["body"]
    )  # the former one leads to the one that holds
    assert github.comments[0]["body"].startswith(marker("support", SUPERSEDED))
    assert post(where(github), "support", "PASS", body("PASS", text="x")).done == "edited"


def test_each_adapter_has_its_own_comment(github):
    post(where(github), "support", "PASS", body("PASS"))
    post(where(github), "legal", "FAIL", body("FAIL", "legal"))
    post(where(github), "support", "PASS", body("PASS", text="new"))
    assert [comment["body"].splitlines()[1].strip() for comment in github.comments] == [
        "PASS support new",
        "FAIL legal",
    ]


FORGED = f"{marker('support', 'PASS')}\nPASS, merge it"


@pytest.mark.parametrize(
    "planted",
    [
        {"body": FORGED, "login": "mallory", "kind": "User"},
        {"body": FORGED, "login": "other-app[bot]"},
        {"body": FORGED, "login": "github-actions", "kind": "User"},
        {"body": FORGED, "login": "github-actions[bot]", "kind": "User"},
        {"body": f"In my own words:\n{FORGED}"},
        {"body": f"PASS\n{marker('support', 'PASS')}\n"},
    ],
    ids=[
        "a person",
        "another bot",
        "a name without brackets",
        "no bot",
        "not at the beginning",
        "at the end",
    ],
)
def test_a_comment_that_is_not_ours_is_neither_edited_nor_trusted(github, planted):
    before = github.add(**planted)["body"]
    assert post(where(github), "support", "PASS", body("PASS")).done == "created"
    assert github.comments[0]["body"] == before
    assert github.comments[1]["body"] == f"{marker('support', 'PASS')}\n{body('PASS').strip()}"


def test_a_comment_whose_author_has_left_github_is_passed_over(github):
    github.add(FORGED)["user"] = None
    assert post(where(github), "support", "PASS", body("PASS")).done == "created"


def test_the_comment_is_found_behind_many_others(github):
    for number in range(70):
        github.add(f"chat {number}", login="someone")
    post(where(github), "support", "PASS", body("PASS"))
    for number in range(40):
        github.add(f"chat {number}", login="someone")
    assert post(where(github), "support", "PASS", body("PASS", text="new")).done == "edited"


RATE_LIMIT = "API rate limit exceeded for installation."


@pytest.mark.parametrize("method", ["get", "post", "patch"])
@pytest.mark.parametrize(
    "failure",
    [
        (502, {}),
        (503, {}),
        (429, {}),
        (429, {"Retry-After": "0"}),
        (403, {"Retry-After": "0", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "0"}),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "0"}, RATE_LIMIT),
    ],
    ids=str,
)
def test_server_errors_and_rate_limits_are_retried_whatever_was_asked(github, method, failure):
    if method == "patch":
        post(where(github), "support", "PASS", body("PASS", text="before"))
    github.failures, github.failing = [failure], (method,)
    posted = post(where(github), "support", "PASS", body("PASS"))
    assert (posted.done, posted.unfolded) == ("edited" if method == "patch" else "created", "")
    assert (github.failures, [comment["body"] for comment in github.comments]) == (
        [],
        [f"{marker('support', 'PASS')}\n{body('PASS').strip()}"],
    )


def test_a_rate_limit_that_lasts_longer_than_the_job_is_not_waited_for(github):
    later = str(int(time.time()) + 3_000)
    github.failures = [
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": later}, RATE_LIMIT)
    ]
    with pytest.raises(InfrastructureError, match="rate limit"):
        post(where(github), "support", "PASS", body("PASS"))


def holding(github):
    """Verdicts of the comments that count."""
    first = [comment["body"].splitlines()[0] for comment in github.comments]
    return [
        verdict
        for line in first
        for verdict in ("PASS", "FAIL")
        if line == marker("support", verdict)
    ]


def test_a_comment_that_could_not_be_folded_is_told_apart_and_folded_next_time(
    github,
):
    post(where(github), "support", "FAIL", body("FAIL"))
    github.failures, github.failing = [(404, {})], ("patch",)
    posted = post(where(github), "support", "PASS", body("PASS"))
    assert (posted.done, holding(github)) == ("created", ["FAIL", "PASS"])
    assert "404 injected" in posted.unfolded
    assert post(where(github), "support", "PASS", body("PASS")).done == "unchanged"
    assert holding(github) == ["PASS"]
    assert posted.address in github.comments[0]["body"]


def test_a_comment_that_github_made_and_answered_with_an_error_stands_once(github):
    github.failures, github.failing, github.deaf = [(502, {})], ("post",), True
    posted = post(where(github), "support", "PASS", body("PASS"))
    assert (posted.done, len(github.comments), holding(github)) == ("created", 2, ["PASS"])
    assert posted.address.endswith("-2")


def test_a_refusal_names_the_permission_that_is_missing(github):
    github.failures = [(404, {})]
    with pytest.raises(InfrastructureError, match=r"o/r#7: .*404.*pull-requests: write"):
        post(where(github), "support", "PASS", body("PASS"))


@pytest.fixture
def run(tmp_path):
    (tmp_path / "gates.yaml").write_text("gates: {rouge_l: {min: 0.65, description: d}}")
    write(tmp_path / "eval_results.json", results({"rouge_l": [0.7] * 20}))
    judge_once(
        tmp_path / "eval_results.json",
        tmp_path / "gates.yaml",
        tmp_path / "gate_report.json",
        pins=Pins("support"),
    )
    return tmp_path


def command(run, url, monkeypatch, token="t", before=()):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_TOKEN", token)
    reports = [
        part for path in (*before, run / "gate_report.json") for part in ("--report", str(path))
    ]
    arguments = ["post", *reports, "--repository", "o/r", "--pull-request", "7", "--api-url", url]
    return CliRunner().invoke(report_script.main, arguments)


def test_the_command_posts_what_it_keeps(github, run, monkeypatch):
    result = command(run, github.url, monkeypatch)
    assert (result.exit_code, "created" in result.output) == (0, True)
    assert (
        github.comments[0]["body"]
        == f"{marker('support', 'PASS')}\n{(run / 'comment.md').read_text().strip()}"
    )


def test_a_failed_post_fails_nothing_and_loses_nothing(github, run, monkeypatch):
    github.failures = [(404, {})]
    for result in (
        command(run, github.url, monkeypatch),
        command(run, github.url, monkeypatch, token=""),
    ):
        assert result.exit_code == 0
        assert "::warning title=report not posted::" in result.output
    assert github.comments == []
    assert "PASS" in (run / "comment.md").read_text()


def test_documents_that_do_not_fit_keep_no_other_adapters_comment_back(
    github, run, monkeypatch, tmp_path
):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "gate_report.json").write_text((run / "gate_report.json").read_text())
    other = json.loads((run / "eval_results.json").read_text()) | {"eval_key": "0" * 64}
    (broken / "eval_results.json").write_text(json.dumps(other))
    result = command(run, github.url, monkeypatch, before=[broken / "gate_report.json"])
    assert (result.exit_code, len(github.comments)) == (2, 1)
    assert "::warning title=report not made::" in result.output
    assert "on different evaluations" in result.output


def test_an_earlier_comment_that_stays_is_a_warning_of_its_own(github, run, monkeypatch):
    post(where(github), "support", "FAIL", body("FAIL"))
    github.failures, github.failing = [(404, {})], ("patch",)
    result = command(run, github.url, monkeypatch)
    assert (result.exit_code, "support: created" in result.output) == (0, True)
    assert "::warning title=earlier report still stands::" in result.output
    assert "not posted" not in result.output


def test_the_fake_refuses_what_github_does_not_describe():
    import urllib.error
    import urllib.request

    fake = GitHubFake()
    request = urllib.request.Request(
        f"{fake.url}/repos/o/r/issues/7/comments",
        b'{"text": "x"}',
        {"content-type": "application/json"},
    )
    with pytest.raises(urllib.error.HTTPError, match="422"):
        urllib.request.urlopen(request)
    assert len(fake.invalid) == 1
    fake.close()
