"""The stage of the play: a bare Git remote, a GitHub API, an S3 server, a serving host, and `act`
that runs the workflow files.

`act` runs each job on this machine, without containers. It does not model path filters,
environments, permissions, concurrency and time limits (tests/unit/test_workflows.py looks at
those), and three things are put in its way's place:
- actions/checkout, upload- and download-artifact by the composite actions of tests/play/actions;
- a job that calls a workflow by that workflow's own job, because act ends the whole run when a
  called workflow fails;
- `queue:`, which its schema does not know yet.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import boto3
import yaml

from adapterops.schemas import ROOT
from adapterops.signing import make_key_pair
from play.aws import ACCOUNT, set_up
from play.github_api import NAME, GitHub
from processes import environment, free_port, wait_for_http
from repositories import Repository

ADAPTER = "support-demo"
ACTIONS = Path(__file__).with_name("actions")
BIN = ROOT / ".venv" / "bin"
CALL = re.compile(rf"(?:\./|{NAME}/)\.github/workflows/([a-z-]+)\.yaml(?:@main)?")
SETTINGS = {
    "adapters/support-demo.yaml": (
        f"""\
name: {ADAPTER}
description: The demo's adapter, small enough for a play.
recipe: configs/qlora/smollm2-135m.yaml
data:
  training: [data/training/support.jsonl]
  evaluation: data/eval/support.jsonl
evaluation:
  gate: configs/quality_gate.demo.yaml
  max_tokens: 40
  latency_requests: 4
  latency_concurrency: 4
  general: [en]
  general_rows: 20
  general_texts: 20
serving: configs/serving.demo.yaml
rollout:
  strategy: canary
  steps: [50]
  min_duration_s: 0
  max_duration_s: 180
  min_requests: 40
  probes_per_s: 8
  confidence: 0.8
  limits:
    error_rate: 0.1
    latency_p95_ratio: 4.0
    saturation: 0.9
"""
    ),
    "configs/quality_gate.demo.yaml": (
        """\
gates:
  format_compliance:
    min: 0.3
    min_n: 10
    margin: 0.1
    description: Share of JSON answers that are valid. Below it, add format examples.
  rouge_l:
    min_n: 10
    margin: 0.1
    description: Likeness to the expected answers. Worse than production, look at the worst answers.
"""
    ),
    # What a code change has to pass: the real tests of what the play's pull requests change, not
    # the hour of all of them.
    "Makefile": (
        "test-tools:\n\t@true  # the test below looks for none\n\nsetup:\n\t@python3"
        " scripts/bootstrap.py\n\ntest: setup\n\t@.venv/bin/python -m pytest -q"
        " tests/unit/test_rouge.py\n"
    ),
}


def rows(kind, count, first=0):
    """JSON rows of the demo's data, as text lines: of two short tasks, so that a minute of training
    learns them."""
    lines = (ROOT / f"data/{kind}/support.jsonl").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if {"stock", "pickup"} & set(json.loads(line)["tags"])][
        first : first + count
    ]


def replaced(path, words):
    """The text of a file of this repository with some words replaced, each of which has to be
    there, once."""
    text = (ROOT / path).read_text(encoding="utf-8")
    for old, new in words.items():
        assert text.count(old) == 1, (
            f"{path}: {old!r} is there {text.count(old)} times; the play wants to make it {new!r}"
        )
        text = text.replace(old, new)
    return text


class Run:
    """What one run of a workflow did: `jobs` by name with their result, and everything that was
    printed."""

    def __init__(self, output, code, seconds):
        self.output, self.code, self.seconds = output, code, seconds
        self.jobs = {}
        for line in output.splitlines():
            if found := re.match(r"\[[^/\]]+/([^\]]+?)\s*\].*🏁\s+Job (succeeded|failed)", line):
                self.jobs[found.group(1).strip()] = found.group(2)

    def __repr__(self):
        return f"{self.jobs}, {self.seconds:.0f} s"


class Stage(Repository):
    """A repository on this machine's GitHub. Use `start` and `stop`, and `with` for neither."""

    def __init__(self, directory):
        super().__init__(directory)
        self.directory, self.github, self.processes = directory, GitHub().__enter__(), []
        self.ports = {name: free_port() for name in ("s3", "engine", "gateway")}
        self.timeline = []
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        )
        for name in filter(None, listing.stdout.decode().split("\0")):
            if (ROOT / name).is_file() and not name.startswith(
                ("adapters/", "data/training/", "data/eval/support")
            ):
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.path / name)
        self.signing_key, public_key = directory / "signing.pem", directory / "signing.pub.pem"
        make_key_pair(self.signing_key, public_key)
        make_key_pair(directory / "candidates.pem", directory / "candidates.pub.pem")
        serving = replaced(
            "configs/serving.demo.yaml",
            {
                "port: 8101": f"port: {self.ports['engine']}",
                "port: 8080": f"port: {self.ports['gateway']}",
                ".demo/signing.pub.pem": str(public_key),
                ".demo/serving": str(directory / "serving"),
                "start_timeout_s: 300": "start_timeout_s: 1200",
            },
        )
        recipe = replaced(
            "configs/qlora/smollm2-135m.yaml",
            {
                "num_train_epochs: 1.59 ": "num_train_epochs: 3 ",
                "batch_size: 1 ": "batch_size: 4 ",
                "packing: true ": "packing: false ",
            },
        )
        first = {
            **SETTINGS,
            "configs/serving.demo.yaml": serving,
            "configs/qlora/smollm2-135m.yaml": recipe,
            "data/training/support.jsonl": "\n".join(rows("training", 24)) + "\n",
            "data/eval/support.jsonl": "\n".join(rows("eval", 12)) + "\n",
        }
        self.commit(first, "The repository as it is set up")
        self.git("push", "-q", "origin", "main")

    @property
    def aws(self):
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports['s3']}",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": "us-east-1",
        }

    def start(self):
        """S3 server, once it answers. It lets each role do what docs/aws/main.tf says."""
        endpoint = self.aws["AWS_ENDPOINT_URL"]
        self.environment = environment(PYTHONPATH=f"{ROOT / 'scripts'}:{ROOT / 'tests'}")
        self._start("s3", [sys.executable, str(ROOT / "tests/play/aws.py"), str(self.ports["s3"])])
        wait_for_http(endpoint)
        keys = set_up(endpoint)
        owner = boto3.Session(*keys["owner"].values(), region_name="us-east-1")
        self.s3 = owner.client("s3", endpoint_url=endpoint)
        self.environment = environment(
            **self.aws,
            **keys["reader"],
            ADAPTER_BUCKET="qlora-adapters",
            AWS_PROFILE=None,
            AWS_SESSION_TOKEN=None,
        )

    def serve(self):
        """A serving host; `await_engine` waits for it."""
        (self.path / ".git/info/exclude").write_text(".venv\n")
        (self.path / ".venv").symlink_to(ROOT / ".venv")
        self._start(
            "serve",
            [
                sys.executable,
                str(self.path / "scripts/serve.py"),
                "--config",
                str(self.path / "configs/serving.demo.yaml"),
            ],
        )

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=60)
        self.github.__exit__()

    def _start(self, name, command):
        log = (self.directory / f"{name}.log").open("wb")
        self.processes.append(
            subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.environment, cwd=self.path
            )
        )

    def await_engine(self):
        wait_for_http(f"http://127.0.0.1:{self.ports['engine']}/health", 1200)

    @property
    def gateway(self):
        return f"http://127.0.0.1:{self.ports['gateway']}"

    def push(self, branch, changes, message="change", start="main"):
        """A curator's push; returns the head commit."""
        known = self.git("branch", "--list", branch)
        self.git("switch", "-q", *([branch] if known else ["-c", branch, start]))
        head = self.commit(changes, message)
        self.git("push", "-q", "-u", "origin", branch)
        self.github.pushed(branch, head)
        self.git("switch", "-q", "main")
        return head

    def open(self, branch, changes, **options):
        """Push a branch and open its pull request; returns its number."""
        return self.github.pull_request(branch, self.push(branch, changes), **options)

    def merge(self, branch):
        """Squash, as the merge button does; returns the commits before and after."""
        before = self.git("rev-parse", "main")
        self.git("merge", "-q", "--squash", branch)
        after = self.commit(message=f"{branch} (squashed)")
        self.git("push", "-q", "origin", "main")
        return before, after

    def run_pull_request(self, number):
        """GitHub runs pull-request.yaml as the pull request has it."""
        pull = self.github.pulls[number]
        pull["head"]["sha"] = self.git("rev-parse", pull["head"]["ref"])
        event = {
            "action": "synchronize",
            "number": number,
            "pull_request": pull,
            "repository": self.github.repository({}, {})[1],
        }
        return self.act("pull-request", "pull_request", event, pull["head"]["ref"])

    def run_release(self, before, after):
        event = {
            "ref": "refs/heads/main",
            "before": before,
            "after": after,
            "repository": self.github.repository({}, {})[1],
        }
        return self.act("release", "push", event, after)

    def dispatch(self, workflow, inputs):
        return self.act(
            workflow,
            "workflow_dispatch",
            {"inputs": inputs, "repository": self.github.repository({}, {})[1]},
            "main",
            inputs,
        )

    def act(self, workflow, event_name, event, revision, inputs=None):
        """Run a workflow file as `revision` has it; the called ones at main where the file says
        so."""
        place = Path(
            subprocess.run(
                ["mktemp", "-d", "-p", self.directory, f"{workflow}-XXXX"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
        )
        tree, artifacts = place / "tree", place / "artifacts"
        artifacts.mkdir()
        subprocess.run(["git", "clone", "-q", self.path, tree], check=True)
        sha = self.git("rev-parse", revision)
        subprocess.run(["git", "-C", tree, "checkout", "-q", "-B", "main", sha], check=True)
        subprocess.run(
            ["git", "-C", tree, "remote", "set-url", "origin", f"https://github.com/{NAME}.git"],
            check=True,
        )
        file = tree / ".github/workflows" / f"{workflow}.yaml"
        file.write_text(self._inlined(file, tree))
        (place / "event.json").write_text(json.dumps(event))
        variables = {
            "ADAPTER_BUCKET": "qlora-adapters", "AWS_REGION": "us-east-1",
            "GATEWAYS": self.gateway, "NO_GPU": "true",
            "SIGNING_KEY": str(self.signing_key),
            "CANDIDATE_SIGNING_KEY": str(self.directory / "candidates.pem"),
            "CANDIDATE_PUBLIC_KEY": str(self.directory / "candidates.pub.pem"),
            "EVALUATION_SERVER_URL": f"http://127.0.0.1:{self.ports['engine']}",
            **{
                f"AWS_{name}_ROLE": f"arn:aws:iam::{ACCOUNT}:role/qlora-{role}"
                for name, role in {"READ": "read", "CANDIDATE": "candidates",
                "RELEASE": "release"}.items()
            },
        }  # fmt: skip
        outside = {
            **self.aws, "GITHUB_API_URL": self.github.url, "GITHUB_REPOSITORY": NAME,
            "GITHUB_SERVER_URL": "http://github.invalid",
            "ACTIONS_ID_TOKEN_REQUEST_URL": f"{self.github.url}/oidc",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "runner",
            "PLAY_REMOTE": str(self.remote), "PLAY_EVENT_SHA": sha,
            "PLAY_ARTIFACTS": str(artifacts), "PLAY_VENV": str(ROOT / ".venv"),
            "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        command = [
            str(BIN / "act"),
            event_name,
            "-e",
            str(place / "event.json"),
            "-W",
            str(file),
            "-s",
            "GITHUB_TOKEN=ghs_of_this_job",
            "--pull=false",
        ]
        for label in ("ubuntu-24.04", "self-hosted", "gpu-a100", "deploy"):
            command += ["-P", f"{label}=-self-hosted"]
        for name, value in variables.items():
            command += ["--var", f"{name}={value}"]
        for name, value in outside.items():
            command += ["--env", f"{name}={value}"]
        for name, value in (inputs or {}).items():
            command += ["--input", f"{name}={value}"]
        for uses in sorted(
            set(
                re.findall(
                    r"uses: (actions/([a-z-]+)@[0-9a-f]{40})",
                    "\n".join(f.read_text() for f in file.parent.glob("*.yaml")),
                )
            )
        ):
            command += ["--local-repository", f"{uses[0]}={ACTIONS / uses[1]}"]
        cache = {"XDG_CACHE_HOME": str(place / "cache")}
        started = time.monotonic()
        secrets = {name: None for name in self.environment if name.startswith("AWS_")}
        result = subprocess.run(
            command,
            cwd=tree,
            capture_output=True,
            text=True,
            env=environment(**secrets) | cache,
            check=False,
            timeout=3000,
        )
        run = Run(result.stdout + result.stderr, result.returncode, time.monotonic() - started)
        (place / "log.txt").write_text(run.output)
        self.timeline.append((f"{workflow} ({event_name})", run.jobs, run.seconds))
        return run

    def _inlined(self, file, tree):
        workflow = yaml.safe_load(file.read_text())
        for name, job in workflow["jobs"].items():
            if found := CALL.fullmatch(job.get("uses", "")):
                content = (tree / f".github/workflows/{found.group(1)}.yaml").read_text()
                if "@main" in job["uses"]:
                    content = self.git("show", f"main:.github/workflows/{found.group(1)}.yaml")
                for key, value in job.get("with", {}).items():
                    content = content.replace(
                        f"inputs.{key}", re.sub(r"^\$\{\{ | \}\}$", "", value)
                    )
                (called,) = yaml.safe_load(content.replace("inputs.rollback", "false"))[
                    "jobs"
                ].values()
                conditions = [
                    f"({re.sub(r'^[$]{{ | }}$', '', str(side['if']))})"
                    for side in (job, called)
                    if "if" in side
                ]
                workflow["jobs"][name] = called | {
                    key: job[key] for key in ("needs", "strategy") if key in job
                }
                if conditions:
                    workflow["jobs"][name]["if"] = " && ".join(conditions)
        workflow.get("concurrency", {}).pop("queue", None)
        workflow["on"] = workflow.pop(True)  # YAML 1.1 takes the key for a truth value
        return yaml.safe_dump(workflow, sort_keys=False, allow_unicode=True)
