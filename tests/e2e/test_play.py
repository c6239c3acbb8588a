"""The story of pull requests, played with the workflow files as they are: `make play`. Scenes that
train nothing are in `make test` too."""

import hashlib
import html
import json
import threading
import time

import openai
import pytest

from adapterops.schemas import ROOT
from play.stage import ADAPTER, SETTINGS, Stage, rows

DATA = "data/training/support.jsonl"
GATES = "configs/quality_gate.demo.yaml"
PLAN = "<!-- qlora-gitops plan -->"
EVERY_JOB_SUCCEEDED = dict.fromkeys(
    ("plan", f"validate {ADAPTER}", ADAPTER, "report", "required"), "succeeded"
)
play = pytest.mark.play
pytestmark = pytest.mark.timeout(3000)  # a busy machine is no failure


@pytest.fixture(scope="module")
def stage(tmp_path_factory, request):
    stage = Stage(tmp_path_factory.mktemp("play"))
    stage.start()
    if any(
        item.get_closest_marker("play") and not item.get_closest_marker("e2e")
        for item in request.session.items
    ):
        stage.serve()  # its engine starts while the first scenes are played
    yield stage
    stage.stop()
    print("\n".join(f"{seconds:6.0f} s  {name}: {jobs}" for name, jobs, seconds in stage.timeline))
    assert stage.github.refused == []  # no request broke GitHub's description of its API


@pytest.fixture(scope="module")
def story():
    """What earlier scenes left: pull requests by name, digests by version."""
    return {}


def training(lines):
    return {DATA: "\n".join(lines) + "\n"}


def lowered():
    """The gate file with bars that nothing misses."""
    return {
        GATES: SETTINGS[GATES].replace("min: 0.3", "min: 0.0").replace("margin: 0.1", "margin: 0.9")
    }


def opening(comment):
    """The lines that a plan's comment opens with, as people see them: without the marker and
    without entities."""
    lines = html.unescape(comment).splitlines()
    assert lines[0] == PLAN
    return lines[1:]


OLD_TO_NEW = [
    "### ⚠️ This pull request changes the rules that it is judged by",
    "",
    "| file | setting | old → new | |",
    "|---|---|---|---|",
    f"| {GATES} | gates.format_compliance.margin | 0.1 → 0.9 | **lower bar** |",
    f"| {GATES} | gates.format_compliance.min | 0.3 → 0.0 | **lower bar** |",
    f"| {GATES} | gates.rouge_l.margin | 0.1 → 0.9 | **lower bar** |",
]


def corrupt(line):
    row = json.loads(line)
    return json.dumps({**row, "output": ""})


def objects(stage, prefix=""):
    return {
        item["Key"]: item["Size"]
        for item in stage.s3.list_objects_v2(Bucket="qlora-adapters", Prefix=prefix).get(
            "Contents", []
        )
    }


def document(stage, key):
    return json.loads(stage.s3.get_object(Bucket="qlora-adapters", Key=key)["Body"].read())


def judgement_of(stage, number):
    """The one verdict that a pull request's run has left in the store."""
    found = [
        document(stage, key)
        for key in objects(stage, "candidates/")
        if key.endswith("/judgement.json")
    ]
    (judgement,) = [judgement for judgement in found if judgement["source"]["pr"] == str(number)]
    return judgement


def served(stage):
    """The digest that the gateway answers with."""
    client = openai.OpenAI(base_url=f"{stage.gateway}/v1", api_key="unused")
    answer = client.chat.completions.with_raw_response.create(
        model=ADAPTER,
        messages=[{"role": "user", "content": "Where is my parcel?"}],
        max_tokens=4,
        temperature=0,
    )
    return answer.headers["x-adapter-version"]


@play
@pytest.mark.e2e
def test_1_documents_train_nothing_and_the_check_is_green(stage):
    number = stage.open("docs", {"README.md": "# Other words\n"})
    run = stage.run_pull_request(number)
    assert run.jobs == {"plan": "succeeded", "report": "succeeded", "required": "succeeded"}
    assert stage.github.comments_on(number) == []  # nobody is told what does not concern them


@play
@pytest.mark.e2e
def test_2_a_bad_row_is_blocked_at_its_line_with_what_to_do(stage, story):
    lines = rows("training", 28)
    number = story["data"] = stage.open(
        "data", training([*lines[:20], corrupt(lines[20]), *lines[21:]])
    )
    run = stage.run_pull_request(number)
    assert run.jobs == {
        "plan": "succeeded",
        f"validate {ADAPTER}": "failed",
        "report": "succeeded",
        "required": "failed",
    }
    assert f"::error file={DATA},line=21,title=E110" in run.output
    (comment,) = stage.github.comments_on(number)
    assert "The data is not accepted yet" in comment
    assert f"{DATA}:21" in comment
    assert "validate_data.py --input FILE --fix" in comment
    assert objects(stage, "candidates/") == {}


@play
@pytest.mark.e2e
def test_9_a_fork_gets_no_gpu_and_no_store(stage):
    number = stage.open("fork", training(rows("training", 27)), fork=True)
    run = stage.run_pull_request(number)
    assert run.jobs == {"plan": "failed", "required": "failed"}
    assert "pull requests from forks get no GPU" in run.output
    assert "AWS_ROLE_ARN" not in run.output


@play
@pytest.mark.e2e
def test_10_a_pull_request_cannot_bring_its_own_judge(stage, tmp_path):
    marker = tmp_path / "the pull request's judge ran"
    judge = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nprint('PASS')\n"
    number = stage.open(
        "judge",
        {
            "scripts/quality_gate.py": judge,
            "scripts/plan.py": judge,
            "scripts/ci/required_check.py": judge,
        },
    )
    run = stage.run_pull_request(number)
    # Code alone: it is tested without a GPU, by nothing but its own tests, and every script that
    # decides is main's.
    assert run.jobs == {
        "plan": "succeeded",
        "test": "succeeded",
        "report": "succeeded",
        "required": "succeeded",
    }
    assert not marker.exists()
    assert "Code changes (3 files): CPU tests, no GPU." in stage.github.comments_on(number)[0]
    number = stage.open(
        "both", {"scripts/quality_gate.py": judge, **training(rows("training", 26))}
    )
    run = stage.run_pull_request(number)
    assert (run.jobs["plan"], run.jobs["required"]) == ("failed", "failed")
    assert "Split it: code in one" in stage.github.comments_on(number)[0]
    assert not marker.exists()


@play
@pytest.mark.e2e
def test_11_a_lowered_bar_is_the_first_thing_that_is_said(stage):
    lines = rows("training", 25)
    number = stage.open("bar", lowered() | training([*lines[:9], corrupt(lines[9]), *lines[10:]]))
    run = stage.run_pull_request(number)
    assert run.jobs == {
        "plan": "succeeded",
        f"validate {ADAPTER}": "failed",
        "report": "succeeded",
        "required": "failed",
    }
    # The data is judged by the policy of main, then by the pull request's own.
    assert run.output.count(f"::error file={DATA},line=10,title=E110") >= 2
    (comment,) = stage.github.comments_on(number)
    assert opening(comment)[: len(OLD_TO_NEW)] == OLD_TO_NEW
    assert comment.index("**lower bar**") < comment.index("The data is not accepted yet")


@play
def test_0_the_first_adapter_is_trained_and_released_by_hand(stage, story):
    """As docs/setup-github.md ends: from then on pull requests have a production adapter to be
    compared with."""
    stage.await_engine()
    assert stage.dispatch("retrain", {"adapter": ADAPTER}).jobs == {ADAPTER: "succeeded"}
    run = stage.dispatch("release", {"adapter": ADAPTER})
    assert run.jobs == {
        "plan": "succeeded",
        f"promote {ADAPTER}": "succeeded",
        ADAPTER: "succeeded",
    }
    story["first"] = document(stage, f"channels/{ADAPTER}.json")["stable"]
    assert served(stage) == story["first"][:12]


@play
def test_3_the_correction_is_trained_judged_and_the_comment_edited(stage, story):
    before = len(stage.github.comments_on(story["data"]))
    stage.push("data", training(rows("training", 28)), "mend the row")
    run = stage.run_pull_request(story["data"])
    assert run.jobs == EVERY_JOB_SUCCEEDED
    plans = [body for body in stage.github.comments_on(story["data"]) if body.startswith(PLAN)]
    assert len(plans) == before == 1
    assert "not accepted" not in plans[0]
    judgement = story["judgement"] = judgement_of(stage, story["data"])
    assert (judgement["verdict"], judgement["production"]) == ("PASS", story["first"])
    (report,) = [
        body
        for body in stage.github.comments_on(story["data"])
        if f"adapter-report adapter={ADAPTER} verdict=PASS" in body
    ]
    assert judgement["digest"] in report
    print(report)


@play
def test_4_the_same_push_again_trains_nothing(stage, story):
    known = objects(stage)
    run = stage.run_pull_request(story["data"])
    assert ADAPTER not in run.jobs
    assert run.jobs["required"] == "succeeded"
    assert "Computed before: support-demo PASS. Nothing is trained." in run.output
    assert objects(stage) == known


@play
def test_5_the_merge_releases_the_very_bits_that_were_judged(stage, story):
    before, after = story["merge"] = stage.merge("data")
    run = stage.run_release(before, after)
    assert run.jobs == {
        "plan": "succeeded",
        f"promote {ADAPTER}": "succeeded",
        ADAPTER: "succeeded",
    }
    digest = story["second"] = story["judgement"]["digest"]
    channel = document(stage, f"channels/{ADAPTER}.json")
    assert (channel["stable"], channel["canary"], channel["previous"]) == (
        digest,
        None,
        story["first"],
    )
    manifest = document(stage, f"adapters/{ADAPTER}/sha256-{digest}/manifest.json")
    assert manifest["training_key"] == story["judgement"]["training_key"]
    assert manifest["source"]["pr"] == str(story["data"])
    judged = "candidates/{training_key}/judgements/{judgement_key}".format_map(story["judgement"])
    content = stage.s3.get_object(Bucket="qlora-adapters", Key=f"{judged}/judgement.json")[
        "Body"
    ].read()
    assert objects(stage, f"{judged}/signatures/{hashlib.sha256(content).hexdigest()}.json")
    assert served(stage) == digest[:12]
    assert [deployment["statuses"] for deployment in stage.github.deployments.values()] == [
        ["in_progress", "success"]
    ] * 2
    assert f"{ADAPTER}-{digest[:12]}" in stage.github.releases


@play
def test_6_a_pull_request_that_is_worse_than_production_is_not_merged(stage, story):
    unlike = [
        json.dumps({**json.loads(line), "output": "I would rather not say."})
        for line in rows("training", 12)
    ]
    number = stage.open("worse", training(unlike))
    run = stage.run_pull_request(number)
    assert run.jobs[ADAPTER] == "failed"
    assert run.jobs["required"] == "failed"
    assert "the gate says FAIL" in run.output
    judgement = judgement_of(stage, number)
    assert (judgement["verdict"], judgement["production"]) == ("FAIL", story["second"])
    again = stage.run_pull_request(number)  # no retry until green
    assert ADAPTER not in again.jobs
    assert again.jobs["required"] == "failed"
    assert served(stage) == story["second"][:12]


@play
def test_12_a_bar_lowered_for_it_does_not_hide_what_main_says_of_it(stage, story):
    """The adapter of scene 6, unchanged, and bars that even this one clears: nothing is trained,
    and nobody is misled."""
    judged = {key for key in objects(stage, "candidates/") if key.endswith("/candidate.json")}
    stage.git("branch", "lowered", "worse")
    number = stage.open("lowered", lowered())
    run = stage.run_pull_request(number)
    assert run.jobs == EVERY_JOB_SUCCEEDED
    assert {
        key for key in objects(stage, "candidates/") if key.endswith("/candidate.json")
    } == judged
    judgement = judgement_of(stage, number)
    assert (judgement["verdict"], judgement["production"]) == ("PASS", story["second"])
    assert "main/gate_report.json" in [kept["name"] for kept in judgement["documents"]]
    by_main = "By the default branch's rules"
    assert f"{by_main} {ADAPTER} would be FAIL" in run.output
    plan, report = stage.github.comments_on(number)
    assert opening(plan)[: len(OLD_TO_NEW)] == OLD_TO_NEW
    assert f"adapter-report adapter={ADAPTER} verdict=PASS" in report
    # Its reviewers decide, and this is what they read first.
    said = report.splitlines()[1:]  # below the marker
    assert said[4].startswith(f"⚠️ {by_main} it would be FAIL")
    assert said[6].startswith("**Now:** Do not merge unless you want the changed rules")
    assert served(stage) == story["second"][:12]


@play
def test_7_a_revert_serves_the_former_adapter_without_training(stage, story):
    before, known = stage.git("rev-parse", "main"), objects(stage, "candidates/")
    started = time.monotonic()
    stage.git("revert", "--no-edit", "HEAD")
    stage.git("push", "-q", "origin", "main")
    run = stage.run_release(before, stage.git("rev-parse", "main"))
    assert run.code == 0
    assert served(stage) == story["first"][:12]
    assert objects(stage, "candidates/") == known
    print(f"git revert to former adapter served: {time.monotonic() - started:.0f} s")


@play
def test_8_two_merges_at_once_lose_no_update(stage, story):
    first = stage.git("rev-parse", "main")
    stage.git("revert", "--no-edit", "HEAD")  # the second version again
    second = stage.git("rev-parse", "HEAD")
    third = stage.commit({"README.md": "# merged at the same moment\n"})
    stage.git("push", "-q", "origin", "main")
    runs = {}
    threads = [
        threading.Thread(
            target=lambda name=name, pair=pair: runs.update({name: stage.run_release(*pair)})
        )
        for name, pair in {"adapter": (first, second), "documents": (second, third)}.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: run.code for name, run in runs.items()} == {"adapter": 0, "documents": 0}
    assert served(stage) == story["second"][:12]
    generations = [
        document(stage, key)["generation"]
        for key in objects(stage, f"audit/{ADAPTER}/")
        if key.endswith(".json")
    ]
    assert sorted(generations) == list(range(1, max(generations) + 1))


@play
@pytest.mark.e2e
def test_nothing_of_the_play_is_left_in_the_repository():
    assert not (ROOT / ".main").exists()
    assert not (ROOT / "promoted").exists()
