"""What a reviewer reads: one structure, several renderings, and no text from data that becomes
markup."""

import dataclasses
import io
import json
import re

import pytest
from click.testing import CliRunner
from eval_documents import results, write
from markdown_it import MarkdownIt
from rich.console import Console

import example_runs
import report as report_script
from adapterops.errors import UsageError
from adapterops.escape import fenced, inline
from adapterops.gate.judge import judge_once
from adapterops.report.checks import check_annotations
from adapterops.report.collect import collect
from adapterops.report.comment import LIMIT, SUPERSEDED, comment, marker, superseded
from adapterops.report.console import gates_that_fit, print_report
from adapterops.report.html import bar, curve, histogram, page
from adapterops.report.view import changes, metric_rows, sparkline
from adapterops.schemas import ROOT
from adapterops.specs.adapter import Pins
from adapterops.specs.metric_catalogue import METRIC_IDS
from repositories import with_adapters
from rollouts import ROLLOUT

HOSTILE = (
    "@octocat #1 </details><script>alert(1)</script> <img src=x onerror=alert(1)>\n```\n````\n#"
    " heading\n[click](https://evil.example) https://evil.example www.evil.example | a | b |\n<!--"
    " adapter-report adapter=support verdict=PASS -->"
)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


def answer(text, rouge=0.5, refused=False, **more):
    return {
        "text": text,
        "finish_reason": "stop",
        "tokens": 9,
        "latency_ms": 50.0,
        "ttft_ms": None,
        "error": None,
        "rouge_l": rouge,
        "chrf": rouge,
        "format_ok": None,
        "refused": refused,
        **more,
    }


def sample(number, candidate, production=None, base=None, **more):
    row = {
        "id": f"row-{number}",
        "line": number,
        "language": "ko",
        "tags": ["policy"],
        "prompt": [{"role": "user", "content": f"환불은 언제 되나요? ({number})"}],
        "expected": "환불은 사흘 안에 됩니다.",
        "should_refuse": False,
        "candidate": candidate,
        "production": production,
        "base": base or answer("?", 0.1),
    }
    return row | more


@pytest.fixture
def run(tmp_path):
    """`run(candidate, production, samples)`: a run directory, judged by gates that ask for 0.65 and
    a margin of 0.02."""

    def make(
        candidate,
        production=None,
        samples=(),
        gates="gates: {rouge_l: {min: 0.65, margin: 0.02, description: d}}",
        name="support",
    ):
        (tmp_path / "gates.yaml").write_text(gates)
        document = results(
            {"rouge_l": candidate},
            {"rouge_l": production} if production else None,
            {"rouge_l": [0.1] * len(candidate)},
        )
        document["slices"] = {"task:policy": list(range(len(candidate)))}
        write(tmp_path / "eval_results.json", document)
        (tmp_path / "eval_samples.jsonl").write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
        )
        judge_once(
            tmp_path / "eval_results.json",
            tmp_path / "gates.yaml",
            tmp_path / "gate_report.json",
            pins=Pins(name),
            force=True,
        )
        return tmp_path

    return make


GOOD, BETTER, WORSE = [0.7, 0.8] * 100, [0.75, 0.85] * 100, [0.6, 0.7] * 100


def test_the_comment_opens_with_verdict_reason_and_what_to_do(run):
    lines = [line for line in comment(collect(run(GOOD))).splitlines() if line]
    assert lines[0] == "### ✅ PASS: support"
    assert lines[1] == "All 1 gates passed."
    assert lines[2].startswith("**Now:** Read the changed answers")
    assert lines[3].startswith("| metric | production | this PR | Δ")


def test_what_the_default_branch_would_say_stands_beside_the_verdict(run):
    """Of a pull request that lowers the bar for its own adapter."""
    directory = run(WORSE, GOOD)
    (directory / "main").mkdir()
    theirs = json.loads((directory / "gate_report.json").read_text())
    write(directory / "main/gate_report.json", theirs)
    run(WORSE, GOOD, gates="gates: {rouge_l: {min: 0.1, description: d}}")
    report = collect(directory)
    assert (report.gate["verdict"], theirs["verdict"]) == ("PASS", "FAIL")
    _, _, by_own, _, by_main, _, now = comment(report).splitlines()[:7]
    assert by_own == "All 1 gates passed."
    assert (
        by_main == f"⚠️ By the default branch's rules it would be FAIL: {inline(theirs['reason'])}"
    )
    assert now.startswith("**Now:** Do not merge unless you want the changed rules")
    assert "By the default branch&#39;s rules it would be FAIL" in page(report)
    write(
        directory / "main/gate_report.json",
        theirs | {"adapter": theirs["adapter"] | {"digest": "0" * 64}},
    )
    assert collect(directory).main is None  # of another adapter


def ordered(text, *parts):
    """Whether these parts stand in a text in this order, each after the one before."""
    place = -1
    for part in parts:
        found = text.find(part, place + 1)
        assert found > place, f"{part!r} is not behind what comes before it"
        place = found
    return True


READ = ("Predicted: 41.0 min", "Actual: 44.5 min")


def test_the_sections_stand_in_the_order_in_which_they_are_read():
    body = comment(example_runs.run("fail"), html_url="https://example.invalid/report.html")
    reason = example_runs.run("fail").gate["reason"][:20]
    table = ("**Now:** Do not merge", "| metric |", "worse than production in slice", "**Data**")
    changed = (
        "Worst regressions against production",
        "Best gains",
        "Every answer side by side",
        "**Training:**",
    )
    assert ordered(
        body,
        "❌ FAIL",
        reason,
        *table,
        *changed,
        *READ,
        "**Merging:**",
        "<details><summary>Provenance",
    )


def test_the_page_has_the_same_order_and_what_else_it_shows_behind_it():
    html = page(example_runs.run("fail"))
    reason = example_runs.run("fail").gate["reason"][:20]
    table = (
        ">FAIL<",
        reason,
        "Do not merge",
        ">Metrics<",
        "worse than production in slice",
        ">Data<",
    )
    changed = (
        "Worst regressions",
        "Best gains",
        "Training loss",
        ">Training<",
        ">Cost and time<",
        *READ,
        ">Merging<",
    )
    assert ordered(
        html,
        "<h1>",
        *table,
        *changed,
        "<summary>Provenance",
        ">By language, task and tag<",
        "Latency of 200",
        ">Every answer<",
    )


def test_cost_and_merging_stand_on_a_page_without_training():
    report = dataclasses.replace(example_runs.run("pass"), training=None)
    assert ordered(page(report), ">Cost and time<", READ[0], ">Merging<")


def test_a_terminal_shows_the_verdict_first_and_then_the_same_order():
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(example_runs.run("fail"), console)
    tables = (
        "Now: Do not merge",
        "gate ",
        "against production",
        "metric ",
        "data: ",
        "worse: row-",
        "better: row-",
        "training: ",
    )
    assert ordered(console.export_text(), "FAIL: ", *tables, *READ, "merging: ")


def test_a_missed_gate_says_what_to_do_in_every_rendering(run):
    gates = (
        "gates: {rouge_l: {min: 0.7, description: revise it}, throughput_tokens_per_sec: {min: 50,"
        " description: not this}}"
    )
    report = collect(run(WORSE, GOOD, gates=gates))
    console = Console(width=200, record=True, file=io.StringIO())
    print_report(report, console)
    assert "\n- rouge_l: revise it\n" in comment(report)
    assert "<code>rouge_l</code>: revise it" in page(report)
    assert check_annotations(report)[0].endswith("wanted ≥ 0.7. revise it")
    assert "\n  rouge_l: revise it\n" in console.export_text()
    assert "not this" not in comment(report) + "".join(check_annotations(report))


def test_the_threshold_shows_what_may_be_lost_against_production_too():
    shown = {row.metric: row.threshold for row in metric_rows(example_runs.run("fail"))}
    assert shown["rouge_l"] == "≥ 0.65; Δ ≥ −0.04"
    assert shown["over_refusal"] == "≤ 0.05; Δ ≤ +0.04"
    assert shown["latency_p95_ms"] == "≤ 500; × ≤ 1.1"
    assert shown["throughput_tokens_per_sec"] == "≥ 50"


def test_the_load_under_which_latency_was_measured_stands_below_the_table():
    assert "Latency of 200 requests, 8 in flight, on NVIDIA H100 80GB HBM3.</sub>" in comment(
        example_runs.run("pass")
    )


def test_without_an_address_of_its_own_the_page_is_among_the_runs_artifacts():
    body = comment(example_runs.run("pass"), run_url="https://github.com/o/r/actions/runs/5")
    assert (
        "Every answer side by side: `report.html` among [the artifacts of this"
        " run](https://github.com/o/r/actions/runs/5)" in body
    )


def test_production_stands_beside_the_candidate_with_the_difference_and_its_interval(run):
    (row,) = [row for row in metric_rows(collect(run(BETTER, GOOD))) if row.metric == "rouge_l"]
    assert (row.production, row.candidate, row.superiority) == ("0.75", "0.8", "better")
    assert row.change.startswith("+0.0500 [")


def test_every_rendering_gives_the_same_verdict_and_reason(run):
    report = collect(run(WORSE, GOOD))
    reason = report.gate["reason"]
    for text in (comment(report), page(report)):
        assert "FAIL" in text
        assert reason in text


@pytest.mark.parametrize("place", ["prompt", "answer", "id", "reason"])
def test_nothing_in_the_data_becomes_markup_in_the_comment(run, place):
    row = sample(1, answer(HOSTILE if place == "answer" else "나쁨", 0.1), answer("좋음", 0.9))
    row["id"] = HOSTILE if place == "id" else row["id"]
    row["prompt"][0]["content"] = HOSTILE if place == "prompt" else row["prompt"][0]["content"]
    directory = run(WORSE, GOOD, [row])
    gate = json.loads((directory / "gate_report.json").read_text())
    if place == "reason":
        write(directory / "gate_report.json", gate | {"reason": HOSTILE})
    body = comment(collect(directory))
    html = MARKDOWN.render(body)
    for markup in ("<script", "<img", "<h1>heading", 'href="https://evil', "<a "):
        assert markup not in html
    assert html.count("</details>") == html.count("<details>")
    outside = "".join(
        part
        for index, part in enumerate(html.split("<pre>"))
        for part in [part if index == 0 else part.split("</pre>")[1]]
    )
    for live in ("@octocat", " #1", "https://evil", "www.evil"):
        assert live not in outside


def test_nothing_in_the_data_becomes_markup_in_the_page(run):
    html = page(
        collect(
            run(
                WORSE,
                GOOD,
                [sample(1, answer(HOSTILE, 0.1), answer("좋음", 0.9), expected=HOSTILE)],
            )
        )
    )
    assert "<script>alert" not in html
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert "default-src 'none'" in html


def test_a_fence_is_longer_than_any_in_the_text():
    assert fenced("a ````` b").startswith("``````text\n")
    assert MARKDOWN.render(fenced(HOSTILE)).count("<pre>") == 1


def test_plain_text_renders_as_itself():
    text = "rouge_l 0.6 *below* [x](y) <b> & `code` ~~no~~ $x$ | pipe"
    assert (
        MARKDOWN.renderInline(inline(text))
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
        == text
    )


def test_plain_text_turns_no_direction_names_no_commit_and_makes_no_emoji():
    commit = "0e9e39f249a16976918f6564b8830bc894c89659"
    line = inline(f"safe\u202egnp :tada: :+1: {commit} at 12:30")
    assert "\u202e" not in line
    assert "&#92;u202e" in line
    assert not re.search(r":[\w+]+:|[0-9a-f]{7}", line)
    assert line.replace("\u200b", "").endswith(f":tada: :+1: {commit} at 12:30")
    assert "\u202e" not in fenced("safe\u202egnp")


@pytest.mark.parametrize("size", [100, 3_000, 200_000])
def test_a_long_report_is_cut_at_section_borders_and_says_so(run, size):
    samples = [
        sample(n, answer("나" * size, 0.1 + n / 100), answer("가" * size, 0.9)) for n in range(9)
    ]
    report = collect(run(WORSE, GOOD, samples))
    for limit in (LIMIT, 9_000, 3_000):
        body = comment(report, limit=limit)
        assert len(body) + len(marker("support", "FAIL")) < limit
        assert body.startswith("### ❌ FAIL: support")
        assert body.count("<details>") == body.count("</details>")
        assert ("did not fit" in body) == (
            "Worst regressions" not in body or "Provenance" not in body
        )


def test_an_earlier_comment_is_folded_under_the_one_that_holds_and_is_found_no_more(run):
    former = superseded(
        f"{marker('support', 'PASS')}\n{comment(collect(run(GOOD)))}",
        "support",
        "https://github.com/o/r/pull/1#issuecomment-2",
    )
    assert former.startswith(marker("support", SUPERSEDED))
    assert former.count("<!--") == 1
    assert "✅ PASS: support" in former
    assert len(superseded("x" * LIMIT, "support", "https://u")) <= LIMIT


def test_regressions_and_gains_are_the_five_largest_changes(run):
    samples = [sample(n, answer("a", 0.5 - n / 100), answer("b", 0.5)) for n in range(20)]
    samples += [sample(100 + n, answer("a", 0.5 + n / 100), answer("b", 0.5)) for n in range(20)]
    samples.append(sample(900, answer("죄송합니다", 0.4, refused=True), answer("b", 0.9)))
    worst, best = changes(collect(run(GOOD, GOOD, samples)))
    assert [item.id for item in worst] == ["row-900", "row-19", "row-18", "row-17", "row-16"]
    assert [item.id for item in best] == ["row-119", "row-118", "row-117", "row-116", "row-115"]
    assert (worst[0].before_mark, worst[0].after_mark) == ("good", "over-refused")


def test_merging_says_how_the_judged_specification_rolls_out(run, tmp_path):
    """Not how the adapter of that name does in the tree that renders, which for a pull request is
    the default branch's."""
    import quality_gate

    theirs = with_adapters(tmp_path / "git", ("support-demo",))
    spec = (theirs.path / "adapters/support-demo.yaml").read_text()
    slower = re.sub(r"steps: \[[^]]*\]", "steps: [1, 7, 100]", spec)
    assert slower != spec
    theirs.write("adapters/support-demo.yaml", slower)
    directory = run(GOOD, name="support-demo")
    (directory / "gate_report.json").unlink()
    arguments = ["--results", directory / "eval_results.json", "--gates", directory / "gates.yaml"]
    arguments += ["--adapter", "support-demo", "--adapters", theirs.path / "adapters"]
    result = CliRunner().invoke(quality_gate.main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    assert "points its channel to it: 1 % → 7 % → 100 % of the traffic." in comment(
        collect(directory)
    )


def test_a_verdict_that_stands_is_shown_with_the_rollout_of_today(run):
    directory = run(GOOD)
    former = json.loads((directory / "gate_report.json").read_text())
    assert "rollout" not in former  # as older reports are, which still read
    assert "of the traffic" not in comment(collect(directory))
    report, cached = judge_once(
        directory / "eval_results.json",
        directory / "gates.yaml",
        directory / "gate_report.json",
        pins=Pins("support"),
        rollout=dataclasses.replace(ROLLOUT, steps=(20, 100)),
    )
    assert (cached, report["judged_at"]) == (True, former["judged_at"])
    assert "20 % → 100 % of the traffic" in comment(collect(directory))


def test_a_forced_verdict_is_shown_with_those_before_it(run):
    run([0.5] * 200)
    directory = run(GOOD)  # the same evaluation key, judged again by force
    body = comment(collect(directory))
    assert "Judged 2 times by force; before: FAIL." in body


def test_cost_and_time_stand_as_predicted_and_as_they_were(run):
    directory = run(GOOD)
    document = json.loads((directory / "eval_results.json").read_text())
    write(directory / "eval_results.json", document | {"seconds": {"total": 360.0}})
    row = {"name": "support", "minutes": 30.0, "usd": 1.0, "basis": "training on one a100-80"}
    (directory / "plan.json").write_text(
        json.dumps({"adapters": [{**row, "name": "other", "minutes": 9.0}, row]})
    )
    body = comment(collect(directory))
    assert "Predicted: 30.0 min, 1.00 USD (training on one a100-80)." in body
    assert (
        "Actual: 6.0 min (0.0 of training, 6.0 of evaluation), 0.20 USD at the same price." in body
    )


def test_the_page_shows_what_was_trained_in_a_row_and_how_the_weights_carry_over():
    report = example_runs.run("pass")
    report.training["tokens"] |= {
        "mask_sample": "user\nWhere?\n⟦On its way.<|im_end|>⟧",
        "truncated_rows": 1,
        "truncated_supervised": 7,
    }
    assert "NF4 →" not in page(report)  # it was not compared
    losses = {
        "adapter_nf4": 0.0637,
        "adapter_bf16": 0.0747,
        "base_nf4": 1.4177,
        "base_bf16": 1.0633,
    }
    report.training["run"]["quantisation"] = {
        "rows": 12,
        "from": "training",
        "max_loss_increase": 0.1,
        **losses,
    }
    html = page(report)
    assert "⟦On its way.&lt;|im_end|&gt;⟧" in html
    assert "7 of them of answers" in html
    assert (
        "loss 0.0637 → 0.0747 (at most 0.1 more), base model 1.4177 → 1.0633, over 12 of the rows"
        " it was trained on" in html
    )


def test_a_narrow_terminal_gets_every_verdict_whole_and_goes_without_intervals(run):
    report = json.loads((run(GOOD) / "gate_report.json").read_text())
    report["gates"][0]["metric"] = "throughput_tokens_per_sec"
    for width, shows in ((70, False), (120, True)):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(gates_that_fit(report, console))
        text = console.export_text()
        assert ("interval" in text) is shows
        assert all(
            f"{gate['verdict']}" in text and gate["metric"] in text for gate in report["gates"]
        )
        assert "verdi…" not in text


def test_an_inconclusive_run_says_what_is_missing(run):
    gates = "gates: {rouge_l: {min: 0.748, rule: bound, on_inconclusive: block, description: d}}"
    body = comment(collect(run(GOOD, gates=gates)))
    assert body.startswith("### 🟡 INCONCLUSIVE: support")
    assert "add rows for the gate that is named" in body


def test_annotations_name_the_gates_line_and_the_regressions_row(run):
    directory = run(WORSE, GOOD, [sample(7, answer("나쁨", 0.1), answer("좋음", 0.9))])
    missed, regression = check_annotations(collect(directory))[-2:]
    assert missed.startswith("::error file=")
    assert "worse than" in missed
    assert regression.startswith(
        "::notice file=data/eval/x.jsonl,line=7,title=regression::good → unlike the expected: 나쁨"
    )


def test_a_report_needs_no_more_than_the_verdict(run):
    directory = run(GOOD)
    for name in ("eval_results.json", "eval_samples.jsonl"):
        (directory / name).unlink()
    report = collect(directory)
    assert "PASS" in comment(report)
    assert "PASS" in page(report)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"adapter": {"digest": "8" * 64}}, "different adapters"),
        ({"eval_key": "8" * 64}, "different evaluations"),
    ],
)
def test_documents_of_two_adapters_or_evaluations_are_refused(run, change, what):
    directory = run(GOOD)
    document = json.loads((directory / "eval_results.json").read_text())
    change = (
        change if "eval_key" in change else {"adapter": document["adapter"] | change["adapter"]}
    )
    write(directory / "eval_results.json", document | change)
    with pytest.raises(UsageError, match=what):
        collect(directory)


def test_a_verdict_by_mains_rules_on_another_evaluation_is_not_shown_for_this_one(run):
    directory = run(GOOD)
    (directory / "main").mkdir()
    theirs = json.loads((directory / "gate_report.json").read_text())
    theirs["evaluation"]["eval_key"] = "8" * 64
    write(directory / "main/gate_report.json", theirs)
    report = collect(directory)
    assert report.main is None
    assert (
        "The default branch's rules could not be applied: main/gate_report.json is on another"
        " evaluation" in comment(report)
    )
    assert "**Now:** Do not merge before it is known" in comment(report)
    own = json.loads((directory / "eval_results.json").read_text())
    write(directory / "main/eval_results.json", own | {"eval_key": "8" * 64})
    assert collect(directory).main == theirs  # of the default branch's own rows


def test_the_command_renders_every_format(run, monkeypatch, tmp_path):
    directory = run(GOOD, GOOD, [sample(1, answer("나쁨", 0.1), answer("좋음", 0.9))])
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    for style in ("html", "comment", "summary", "annotations", "console"):
        result = CliRunner().invoke(
            report_script.main, ["--run", str(directory), "--format", style]
        )
        assert result.exit_code == 0, result.output
    assert {"report.html", "comment.md", "summary.md"} <= {
        path.name for path in directory.iterdir()
    }
    assert "PASS" in (tmp_path / "step.md").read_text()


def test_summary_and_annotations_come_of_one_call(run, monkeypatch, tmp_path):
    directory = run(WORSE, GOOD)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    result = CliRunner().invoke(
        report_script.main,
        ["--run", str(directory), "--format", "summary", "--format", "annotations"],
    )
    assert result.exit_code == 0, result.output
    assert "\n::error file=" in result.output
    assert (tmp_path / "step.md").read_text().startswith("### ❌ FAIL: support")


def test_a_sparkline_falls_with_the_loss():
    assert sparkline([3.0, 2.0, 1.0, 0.0]) == "█▆▃▁"
    assert len(sparkline([float(n) for n in range(1000)])) <= 24


def test_plots_stay_in_their_boxes():
    assert curve([(0, 2.0), (1, 1.0)])["line"] == "0.0,0.0 600.0,100.0"
    assert sum(item["count"] for item in histogram([1.0, 1.0, 5.0])["bars"]) == 3


def test_the_interval_bar_shows_value_and_threshold_on_one_axis(run):
    (row,) = [row for row in metric_rows(collect(run(GOOD))) if row.metric == "rouge_l"]
    drawn = bar(row)
    assert drawn["low"] < drawn["value"] < drawn["high"] <= drawn["width"]
    assert drawn["threshold"] == 130.0


def test_the_examples_in_the_manual_are_what_the_renderer_writes():
    """`python tests/example_runs.py` writes them anew."""
    for name in example_runs.RUNS:
        body = comment(example_runs.run(name), html_url="https://example.invalid/report.html")
        assert (example_runs.EXAMPLES / f"comment-{name}.md").read_text() == body
        assert body.startswith(
            f"### {'✅ ❌ 🟡'.split()[list(example_runs.RUNS).index(name)]} {name.upper()}:"
            " support-ko"
        )


def test_the_manual_names_every_metric_by_its_id():
    manual = (ROOT / "docs/evaluation.md").read_text()
    assert all(f"| `{name}` | `{metric_id}` |" in manual for name, metric_id in METRIC_IDS.items())
