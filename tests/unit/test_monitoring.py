"""The rules as promtool tests them; each alert has a severity and a runbook that exists."""

import json
import re
import subprocess

import pytest
import yaml

from adapterops.schemas import ROOT
from needs import program

MONITORING = ROOT / "configs" / "monitoring"
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS = [rule for group in yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"] for rule in group["rules"] if "alert" in rule]


@pytest.mark.parametrize("command", ["check rules rules.yml", "test rules rules_test.yml", "check config prometheus.yml"])
def test_promtool_is_content(command):
    result = subprocess.run(
        [program("promtool", "prometheus"), *command.split()], cwd=MONITORING, capture_output=True, text=True, check=False
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


def test_every_alert_is_tested():
    tested = (MONITORING / "rules_test.yml").read_text()
    assert [rule["alert"] for rule in ALERTS if rule["alert"] not in tested] == []


def test_commands_in_runbooks_exist():
    """Every script, option and metric that a runbook names is there."""
    sources = "\n".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    for page in RUNBOOKS.glob("*.md"):
        text = page.read_text()
        for script in re.findall(r"scripts/\w+\.py", text):
            assert (ROOT / script).is_file(), (page, script)
        for line in re.findall(r"python scripts/.*", text):
            for option in re.findall(r"--[a-z][a-z-]+", line):
                assert f'"{option}"' in sources, (page, option)
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
    for wanted in ("p50, p95, p99", "Throughput", "Error rate by adapter", "GPU utilization and memory", "version timeline"):
        assert wanted in titles
