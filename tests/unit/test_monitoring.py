"""The rules as promtool tests them; each alert has a severity and a runbook that exists."""

import json
import re
import runpy
import subprocess

import pytest
import yaml

from adapterops.schemas import ROOT
from needs import program

MONITORING = ROOT / "configs" / "monitoring"
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
]


@pytest.mark.parametrize(
    "command", ["check rules rules.yml", "test rules rules_test.yml", "check config prometheus.yml"]
)
def test_promtool_is_content(command):
    result = subprocess.run(
        [program("promtool", "prometheus"), *command.split()],
        cwd=MONITORING,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule):
    assert rule["labels"]["severity"] in ("page", "ticket")
    page = RUNBOOKS / rule["annotations"]["runbook_url"].rpartition("/")[2]
    text = page.read_text()
    assert rule["alert"] in text
    for heading in ("## Symptom", "## Check", "## Act", "## Escalate"):
        assert heading in text, page


def test_every_alert_is_seen_to_fire_and_to_be_silent():
    cases = [
        case
        for test in yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
        for case in test["alert_rule_test"]
    ]
    alerts = sorted(rule["alert"] for rule in ALERTS)
    assert sorted({case["alertname"] for case in cases if case["exp_alerts"]}) == alerts
    assert sorted({case["alertname"] for case in cases if not case["exp_alerts"]}) == alerts


def commands_in(text):
    """Script and options of every command in a page: those in backticks, and the lines of
    blocks."""
    for code in re.findall(r"`([^`\n]+)`|^(python .*)$", text, re.MULTILINE):
        for script, arguments in re.findall(r"\b(\w+\.py)\b(.*)", "".join(code)):
            yield script, re.findall(r"(?<!\S)--[a-z][a-z-]*", arguments)


def test_a_command_is_found_wherever_a_page_has_it():
    text = (
        "`serve.py --engine-url`, `python scripts/plan.py x --json` and\n```\npython"
        " scripts/report.py --run-dir X --output=Y\n```\n"
    )
    assert list(commands_in(text)) == [
        ("serve.py", ["--engine-url"]),
        ("plan.py", ["--json"]),
        ("report.py", ["--run-dir", "--output"]),
    ]


@pytest.mark.parametrize("page", sorted(RUNBOOKS.glob("*.md")), ids=lambda page: page.stem)
def test_commands_in_runbooks_exist(page):
    """Every script that a runbook names is there, and takes the options that it is given."""
    for script, options in commands_in(page.read_text()):
        command = runpy.run_path(str(ROOT / "scripts" / script))["main"]
        known = {name for parameter in command.params for name in parameter.opts}
        assert set(options) <= known, script


def test_metrics_and_links_in_runbooks_exist():
    sources = "\n".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    for page in RUNBOOKS.glob("*.md"):
        text = page.read_text()
        for metric in re.findall(r"\bllm_[a-z_]+", text):
            name = re.sub(r"_(total|bucket|count|sum)$", "", metric)
            assert name in sources or name in (MONITORING / "rules.yml").read_text(), (page, metric)
        for link in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (page.parent / link).exists(), (page, link)


def test_the_dashboard_is_whole():
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) >= 16
    titles = " ".join(panel["title"] for panel in dashboard["panels"])
    for wanted in (
        "p50, p95, p99",
        "Throughput",
        "Error rate by adapter",
        "GPU utilization and memory",
        "version timeline",
    ):
        assert wanted in titles
