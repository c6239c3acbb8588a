"""The required check: what may be merged, and what merely looks green."""

import pytest

from adapterops.gitops.required import decide

OUTPUTS = {"validate": '["support"]', "train": '["support"]', "code": "false"}


def needs(outputs=OUTPUTS, **results):
    jobs = {
        "plan": "success",
        "validate": "success",
        "train": "success",
        "code": "skipped",
        "report": "success",
    } | results
    found = {job: {"result": result, "outputs": {}} for job, result in jobs.items() if result}
    found["plan"]["outputs"] = outputs
    return found


def plan(verdict="PASS", action="reuse", problems=(), name="support"):
    return {
        "problems": list(problems),
        "adapters": [{"name": name, "action": action, "verdict": verdict}],
    }


NOTHING = {"problems": [], "adapters": []}
QUIET = {"validate": "[]", "train": "[]", "code": "false"}


def test_all_ran_and_the_store_has_the_verdict():
    assert decide(needs(), plan()) == []


def test_skipped_is_accepted_where_the_plan_said_so():
    assert decide(needs(QUIET, validate="skipped", train="skipped"), NOTHING) == []


@pytest.mark.parametrize("job", ["validate", "train"])
@pytest.mark.parametrize("result", ["skipped", "cancelled", "failure", None])
def test_a_job_that_should_have_run_and_did_not_end_well_blocks(job, result):
    assert any(f"`{job}`" in problem for problem in decide(needs(**{job: result}), plan()))


def test_a_job_that_ran_though_the_plan_said_no_blocks():
    assert (
        "although the plan switched it off" in decide(needs(QUIET, validate="skipped"), NOTHING)[0]
    )


def test_code_must_pass_its_tests():
    outputs = {**QUIET, "code": "true"}
    assert (
        decide(needs(outputs, validate="skipped", train="skipped", code="success"), NOTHING) == []
    )
    assert (
        "`code` ended with failure"
        in decide(needs(outputs, validate="skipped", train="skipped", code="failure"), NOTHING)[0]
    )


def test_a_green_training_job_without_a_verdict_in_the_store_blocks():
    assert decide(needs(), plan(None, "train")) == [
        "support: there is no verdict for its keys. Comment `/retrain` once the cause is mended."
    ]


@pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
def test_a_verdict_that_is_not_pass_blocks_though_every_job_is_green(verdict):
    assert f"the gate says {verdict}" in decide(needs(), plan(verdict))[0]


def test_a_base_that_moved_blocks():
    """What a merge would train now is not what this run trained."""
    (problem,) = decide(needs(QUIET, validate="skipped", train="skipped"), plan(None, "train"))
    assert "the default branch moved" in problem


def test_what_the_plan_refuses_now_blocks():
    assert decide(needs(), plan(problems=["too dear"])) == ["too dear"]


@pytest.mark.parametrize("result", ["failure", "cancelled", "skipped"])
def test_without_a_plan_nothing_is_merged(result):
    assert decide(needs(plan=result), plan(problems=["Split it."])) == ["Split it."]
    assert f"The plan job ended with {result}" in decide(needs(plan=result), NOTHING)[0]
    assert decide({}, NOTHING) != []


def test_a_comment_that_was_not_posted_blocks_nobody():
    assert decide(needs(report="failure"), plan()) == []


def test_a_job_that_the_plan_knows_nothing_of_blocks():
    assert (
        "the plan does not say whether it runs"
        in decide({**needs(), "extra": {"result": "success"}}, plan())[0]
    )
    assert decide(needs({}), plan()) != []
