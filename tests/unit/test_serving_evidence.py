"""The statistics of a rollout: what decides, what does not, and how often that is wrong."""

import random
from dataclasses import replace

import pytest

from adapterops.deploy.counters import (
    Accumulated,
    Answers,
    Counts,
    Seen,
    difference,
    judge_latency,
    judge_rate,
    judge_saturation,
    quantile_bounds,
    wilson,
)
from adapterops.deploy.rollout import judge, overall
from adapterops.serving.gateway_metrics import FINE_BUCKETS
from rollouts import ROLLOUT

A, B = "a" * 64, "b" * 64
Z = 1.6448536269514722


def histogram(values):
    return tuple(
        (bound, sum(value <= bound for value in values)) for bound in (*FINE_BUCKETS, float("inf"))
    )


def answers(values, errors=0):
    return Answers(len(values), errors, histogram(values))


def counts(values, errors=0, **thumbs):
    """What a version did for the users of one key."""
    return Counts({"shop": Seen(answers(values, errors), **thumbs)})


def of_keys(**seen):
    """What a version did for the users of several keys: `shop=([0.1] * 300, 5)` is 300 good answers
    and 5 errors."""
    return Counts(
        {
            name: Seen(answers(values, errors), *thumbs)
            for name, (values, errors, *thumbs) in seen.items()
        }
    )


def test_intervals_are_those_of_the_papers():
    """Newcombe 1998, Statistics in Medicine 17:857 and 17:873: tables' first rows, two-sided 95
    %."""
    z = 1.959963984540054
    assert wilson(81, 263, z) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20, z) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert difference(56, 70, 48, 80, z) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference(0, 10, 0, 20, z) == pytest.approx((-0.1611, 0.2775), abs=1e-4)


def test_intervals_miss_the_truth_no_more_often_than_promised():
    generator, missed = random.Random(1), 0
    for _ in range(2000):
        canary = sum(generator.random() < 0.06 for _ in range(300))
        stable = sum(generator.random() < 0.04 for _ in range(1500))
        missed += difference(canary, 300, stable, 1500, Z)[1] < 0.02
    assert missed / 2000 < 0.065  # 5 % promised


def test_a_bad_version_passes_no_more_often_than_promised_and_an_equal_one_is_not_failed():
    generator, passed, failed = random.Random(2), 0, 0
    for _ in range(300):
        stable = counts([generator.lognormvariate(-1, 0.4) for _ in range(600)])
        slow = counts([1.5 * generator.lognormvariate(-1, 0.4) for _ in range(300)])
        same = counts([generator.lognormvariate(-1, 0.4) for _ in range(300)])
        passed += judge_latency(slow, stable, 1.5, 0.95).verdict == "PASS"
        failed += judge_latency(same, stable, 1.5, 0.95).verdict == "FAIL"
    assert passed / 300 <= 0.05
    assert failed == 0


def test_a_p95_needs_59_answers_to_be_bounded():
    """0.95^59 < 0.05: the first number of answers of which the largest is above the p95 with 95 %
    confidence."""
    assert quantile_bounds(histogram([0.1] * 58), 0.95, 0.95)[1] == float("inf")
    assert quantile_bounds(histogram([0.1] * 59), 0.95, 0.95)[1] < 0.12
    assert quantile_bounds(histogram([]), 0.95, 0.95) == (0.0, float("inf"))


def test_the_quantile_lies_between_its_bounds():
    generator, inside = random.Random(3), 0
    truth = 0.1 * 20**0.95  # of a log-uniform distribution from 0.1 to 2
    for _ in range(300):
        low, high = quantile_bounds(
            histogram([0.1 * 20 ** generator.random() for _ in range(400)]), 0.95, 0.95
        )
        inside += low <= truth <= high
    assert inside / 300 > 0.87  # 90 % of two one-sided 95 % bounds, less the width of a bucket


@pytest.mark.parametrize(
    ("canary", "stable", "verdict"),
    [
        ((0, 300), (0, 1000), "PASS"),
        ((30, 300), (0, 1000), "FAIL"),
        ((5, 300), (0, 1000), "INCONCLUSIVE"),
        ((0, 0), (0, 1000), "INCONCLUSIVE"),
        ((0, 300), None, "PASS"),
        ((30, 300), None, "FAIL"),
        ((0, 300), (0, 0), "INCONCLUSIVE"),
        ((30, 300), (0, 0), "INCONCLUSIVE"),
        ((30, 300), (100, 1000), "INCONCLUSIVE"),
        ((30, 3000), (300, 3000), "PASS"),
    ],
)
def test_a_rate_is_met_missed_or_undecided(canary, stable, verdict):
    assert judge_rate("error_rate", canary, stable, 0.02, 0.95).verdict == verdict


def test_one_error_at_the_start_is_not_beyond_doubt():
    assert judge_rate("error_rate", (1, 1), None, 0.02, 0.999).verdict == "INCONCLUSIVE"


def test_no_data_is_never_success():
    nothing = Counts()
    assert overall(judge(ROLLOUT, nothing, nothing, {}, 0.95)) == "INCONCLUSIVE"
    assert (
        overall(judge(ROLLOUT, nothing, counts([0.1] * 500), {"g": [0.1]}, 0.95)) == "INCONCLUSIVE"
    )
    assert judge_saturation({}, 0.9).verdict == "INCONCLUSIVE"


def test_a_stable_version_that_answered_nothing_is_not_the_same_as_none():
    """At 100 % it gets no users."""
    slow, idle = counts([20 + number % 40 for number in range(3000)]), {"g": [0.1]}
    assert overall(judge(ROLLOUT, slow, None, idle, 0.95)) == "PASS"
    assert {
        finding.metric: finding.verdict for finding in judge(ROLLOUT, slow, Counts(), idle, 0.95)
    }["latency_p95"] == "INCONCLUSIVE"
    # But it need not be known to give traffic back.
    assert overall(judge(ROLLOUT, counts([0.1] * 270, errors=30), Counts(), idle, 0.95)) == "FAIL"


def test_the_latency_of_users_answers_is_not_compared_with_that_of_probes():
    stable = Counts(probes=answers([0.2] * 300))
    users = {"shop": Seen(answers([4.0] * 3000))}  # they ask longer things
    assert judge_latency(Counts(users, answers([0.2] * 300)), stable, 1.5, 0.95).verdict == "PASS"
    assert judge_latency(Counts(users, answers([0.4] * 300)), stable, 1.5, 0.95).verdict == "FAIL"
    assert judge_latency(Counts(users), stable, 1.5, 0.95).verdict == "INCONCLUSIVE"


def test_a_few_readings_of_a_full_host_decide_nothing():
    """1.0 is also what a host says while its engine is being restarted."""
    assert judge_saturation({"g": [1.0]}, 0.9).verdict == "INCONCLUSIVE"
    assert judge_saturation({"g": [1.0] * 40 + [0.2] * 260}, 0.9).verdict == "PASS"
    assert judge_saturation({"g": [1.0] * 60}, 0.9).verdict == "FAIL"


def test_each_limit_can_fail_alone():
    stable, good = counts([0.1] * 1000), counts([0.1] * 300)
    idle = {"g": [0.1, 0.2]}
    assert overall(judge(ROLLOUT, good, stable, idle, 0.95)) == "PASS"
    for canary, saturation, metric in (
        (counts([0.1] * 270, errors=30), idle, "error_rate"),
        (counts([0.4] * 300), idle, "latency_p95"),
        (good, {"g": [0.1] * 60, "h": [1.0, 1.1] * 30}, "saturation"),
    ):
        assert [
            finding.metric
            for finding in judge(ROLLOUT, canary, stable, saturation, 0.95)
            if finding.verdict == "FAIL"
        ] == [metric]


def test_feedback_and_win_rate_decide_where_they_are_asked_for():
    stable = counts([0.1] * 1000, up=900, down=100)
    limits = {**ROLLOUT.limits, "negative_feedback": 0.1, "win_rate": 0.45}
    asked = ROLLOUT.__class__(**{**ROLLOUT.__dict__, "limits": limits})
    for thumbs, verdict in (
        ({"up": 270, "down": 30}, "PASS"),
        ({"up": 150, "down": 150}, "FAIL"),
        ({}, "INCONCLUSIVE"),
    ):
        assert (
            overall(judge(asked, counts([0.1] * 300, **thumbs), stable, {"g": [0.1]}, 0.95))
            == verdict
        )
    # A stable version that nobody voted on is not one that everybody likes.
    findings = judge(
        asked, counts([0.1] * 300, up=70, down=30), counts([0.1] * 1000), {"g": [0.1]}, 0.95
    )
    assert [finding.metric for finding in findings if finding.verdict != "PASS"] == [
        "negative_feedback",
        "win_rate",
    ]
    assert overall(findings) == "INCONCLUSIVE"


def text(good, errors=0, saturation=0.5, version=B, key="shop"):
    labels = f'adapter="support",version="{version[:12]}",origin="user",key="{key}"'
    return (
        f'llm_version_request_total{{{labels},status="200"}} {good}\n'
        f'llm_version_request_total{{{labels},status="500"}} {errors}\n'
        f'llm_version_request_total{{{labels},status="400"}} 7\n'
        f'llm_version_duration_seconds_bucket{{{labels},le="0.1"}} {good}\n'
        f'llm_version_duration_seconds_bucket{{{labels},le="+Inf"}} {good}\n'
        f"llm_gateway_saturation_ratio {saturation}\n"
        f'llm_version_request_total{{adapter="other",version="{version[:12]}",origin="user",'
        'status="500"} 99\n'
    )


def test_counting_begins_with_the_rollout_and_survives_a_restart_of_a_gateway():
    evidence = Accumulated("support")
    evidence.add("one", text(1000, 50))
    evidence.add("one", text(1010, 51))
    evidence.add("one", text(3, 0))  # it was restarted
    evidence.add("one", text(5, 1))
    evidence.add("two", text(100))
    evidence.add("two", text(120))
    found = evidence.counts(B)
    assert found.users == Answers(10 + 3 + 2 + 20, 1 + 0 + 1, ((0.1, 35), (float("inf"), 35)))
    assert found.probes == Answers()
    mark = evidence.mark()
    evidence.add("two", text(125))
    assert (
        evidence.counts(B, mark).requests,
        evidence.counts(B).requests,
        evidence.counts(A).requests,
    ) == (5, 42, 0)
    assert evidence.saturation["two"] == [0.5] * 3


THUMBS = {**ROLLOUT.limits, "negative_feedback": 0.1, "win_rate": 0.45}
WITH_THUMBS = replace(ROLLOUT, limits=THUMBS)
IDLE = {"g": [0.1]}
FAST, SLOW = [0.1] * 300, [2.0] * 300
STABLE = of_keys(
    one=([0.1] * 1000, 0, 300, 10), two=([0.1] * 1000, 0, 300, 10), three=([0.1] * 1000, 0, 300, 10)
)


def verdicts(canary, stable=STABLE, rollout=WITH_THUMBS, confidence=0.95):
    return {
        finding.metric: finding.verdict
        for finding in judge(rollout, canary, stable, IDLE, confidence)
    }


@pytest.mark.parametrize("confidence", [0.95, 0.999])
def test_one_key_of_several_cannot_abort_a_rollout(confidence):
    """It voted down whatever the canary said, asked it for long answers, and saw errors that nobody
    else saw."""
    content = {"one": (FAST, 0, 60, 1), "two": (FAST, 0, 60, 1)}
    for hostile, metrics in (
        (([0.1] * 60, 0, 0, 60), {"negative_feedback", "win_rate"}),
        ((SLOW, 0, 0, 0), {"latency_p95"}),
        (([0.1] * 10, 100, 0, 0), {"error_rate"}),
    ):
        found = verdicts(of_keys(**content, three=hostile), confidence=confidence)
        assert "FAIL" not in found.values()
        assert {metric for metric, verdict in found.items() if verdict == "INCONCLUSIVE"} >= metrics
    # Nor before the others have said much: thumbs and long answers are a client's to give.
    early = of_keys(one=([0.1] * 5, 0, 1, 0), three=(SLOW, 0, 0, 60))
    assert "FAIL" not in verdicts(early, confidence=confidence).values()


def test_what_several_keys_see_aborts_a_rollout():
    for bad, metric in (
        ((FAST, 30, 60, 1), "error_rate"),
        ((SLOW, 0, 60, 1), "latency_p95"),
        ((FAST, 0, 20, 60), "negative_feedback"),
    ):
        assert verdicts(of_keys(one=bad, two=bad, three=bad))[metric] == "FAIL"


def test_one_key_cannot_hide_what_the_others_see():
    flood = ([0.1] * 30_000, 0, 20_000, 0)
    for bad, metric in (
        (([0.1] * 200, 40), "error_rate"),
        (([2.0] * 200, 0), "latency_p95"),
        (([0.1] * 200, 0, 20, 60), "negative_feedback"),
    ):
        assert verdicts(of_keys(one=bad, two=bad, three=flood))[metric] == "INCONCLUSIVE"
    # Nor by making the stable version look as bad.
    worse = of_keys(one=([0.1] * 1000, 0), two=([0.1] * 1000, 0), three=([2.0] * 5000, 2000))
    bad = of_keys(one=([2.0] * 200, 40), two=([2.0] * 200, 40))
    assert {verdicts(bad, worse, ROLLOUT)[metric] for metric in ("error_rate", "latency_p95")} <= {
        "INCONCLUSIVE",
        "FAIL",
    }


def test_the_key_that_a_finding_rests_on_is_named():
    canary = of_keys(one=(FAST, 0, 60, 1), two=(FAST, 0, 60, 1), three=([0.1], 0, 0, 90))
    [reason] = [
        found.reason
        for found in judge(WITH_THUMBS, canary, STABLE, IDLE, 0.95)
        if found.metric == "negative_feedback"
    ]
    assert (
        "which rests on key three alone; without it: negative_feedback 2 of 122 against" in reason
    )


def test_a_service_with_one_client_rolls_out_and_takes_back():
    stable = of_keys(shop=([0.1] * 1000, 0, 300, 10))
    assert set(verdicts(of_keys(shop=([0.1] * 400, 0, 300, 8)), stable).values()) == {"PASS"}
    assert verdicts(of_keys(shop=(FAST, 60)), stable)["error_rate"] == "FAIL"
    assert verdicts(of_keys(shop=(SLOW, 0)), stable)["latency_p95"] == "FAIL"
    # One that has nearly all of the traffic is believed in its errors, for the others know too
    # little to say the contrary.
    assert verdicts(of_keys(shop=(FAST, 60), cron=([0.1] * 3, 0)), stable)["error_rate"] == "FAIL"


def test_probes_have_no_key_and_stay():
    slow = Counts(
        {"one": Seen(answers([0.1] * 20)), "two": Seen(answers([0.1] * 20))}, answers(SLOW)
    )
    stable = Counts(STABLE.keys, answers(FAST))
    assert verdicts(slow, stable)["latency_p95"] == "FAIL"


def test_keys_are_counted_apart_and_what_both_versions_fail_is_nobodys_error():
    evidence = Accumulated("support")
    both = text(0).replace('status="500"} 0', 'status="both"} 50')
    evidence.add("g", both + text(0, key="search"))
    evidence.add("g", both.replace("} 50", "} 90") + text(5, 2, key="search"))
    found = evidence.counts(B)
    assert (found.keys["search"].answers.good, found.users.errors, found.requests) == (5, 2, 7)
    assert found.without("search").requests == 0
