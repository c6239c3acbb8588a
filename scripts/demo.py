"""The embedded default on one machine: a local S3 server, a serving host, the pipeline, one
question.
"""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click
import psutil

from adapterops.command import command, console, run_child
from adapterops.errors import InfrastructureError, UsageError

if TYPE_CHECKING:
    from adapterops.specs.serving import ServingConfig

ROOT = Path(__file__).resolve().parents[1]
STATE = ROOT / ".demo"
ADAPTER = "support-demo"
SERVING = ROOT / "configs" / "serving.demo.yaml"
S3_PORT = 9300
QUESTION = [
    {
        "role": "user",
        "content": (
            "Return JSON with keys intent (refund, exchange, status, cancel), order, item.\n\nhey,"
            " the teapot from 58213 has a chip on the spout. could you send me one that isn't"
            " broken?"
        ),
    }
]


@command()
@click.argument("action", type=click.Choice(["up", "rollback", "report", "down"]), default="up")
def main(action: str) -> None:
    """Run the whole flow on this machine and leave the adapter being served (`make demo`), or stop
    it (`make down`).

    \b
    Example:
      python scripts/demo.py up
      python scripts/demo.py rollback # deploys a second version and goes back
      python scripts/demo.py report   # opens the HTML report
      python scripts/demo.py down
    """
    try:
        {"up": up, "rollback": rollback, "report": report, "down": down}[action]()
    except KeyboardInterrupt:
        if any(running(name) for name in ("s3", "serve")):
            console.print("\nServers still run; `make down` stops them.")
        raise


def up() -> None:
    """Start what is not running, run the pipeline, ask one question."""
    from adapterops.basemodels.materialize import base_model_directory

    started = time.monotonic()
    config = local_settings()
    # All of them now: one that is taken must not be found out after the training.
    refuse_taken("s3", {"s3": S3_PORT})
    refuse_taken("serve", {"gateway.port": config.gateway.port, "engine.port": config.engine.port})
    if not running("s3"):
        # The S3 server keeps its objects in memory: what a host remembers of channels in a former
        # one would contradict the new one's.
        stop("serve")
        shutil.rmtree(config.state_directory, ignore_errors=True)
    base_model_directory(config.base_model)  # once for all that start now
    # The engine starts beside what a training does with one core before its first step: by then it
    # is ready, and takes no core from it.
    s3 = start("s3", [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)])
    serve = start(
        "serve", [sys.executable, str(ROOT / "scripts" / "serve.py"), "--config", str(SERVING)]
    )
    await_port("s3", S3_PORT, s3)
    make_bucket(config.bucket)
    await_port("serve", config.gateway.port, serve)
    console.print(
        f"S3 server on port {S3_PORT}, serving host on port {config.gateway.port} (logs:"
        f" {shown(STATE)}/*.log)"
    )
    pipeline("--server-url", engine_url(config), "--gateway", gateway_url(config))
    ask(gateway_url(config), config.base_model.name)
    console.print(
        f"\nDone in {time.monotonic() - started:.0f} s. The adapter is being served:\n"
        f"  curl {gateway_url(config)}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f'    -d \'{{"model": "{ADAPTER}", "messages": [{{"role": "user", "content": "Where is my'
        " parcel?\"}]}'\n"
        "  make report     opens the HTML report\n"
        "  make rollback   deploys a second version and goes back to this one\n"
        "  make down       stops the servers",
        soft_wrap=True,
    )


def local_settings() -> ServingConfig:
    """The demo's serving configuration; the environment names its S3 server and no other from now
    on.
    """
    from adapterops.specs.serving import load_serving_config

    config = load_serving_config(SERVING)
    # Any value will do: the local S3 server checks none. Real credentials of the user's must not
    # reach it.
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{S3_PORT}",
        "AWS_ACCESS_KEY_ID": "demo",
        "AWS_SECRET_ACCESS_KEY": "demo",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "ADAPTER_BUCKET": config.bucket,
        "SIGNING_KEY": str(signing_key()),
    }
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN"):
        os.environ.pop(name, None)
    for name in ("no_proxy", "NO_PROXY"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    return config


def gateway_url(config: ServingConfig) -> str:
    """Where users ask."""
    return f"http://127.0.0.1:{config.gateway.port}"


def engine_url(config: ServingConfig) -> str:
    """Where the evaluation asks: the engine behind the gateway."""
    return f"http://127.0.0.1:{config.engine.port}"


def pipeline(*arguments: str) -> None:
    """Run some stages of the pipeline.

    Raises:
        SystemExit: one of them failed, or its verdict is no; with its exit code.
    """
    command_line = [
        sys.executable,
        str(ROOT / "scripts" / "pipeline.py"),
        "--adapter",
        ADAPTER,
        *arguments,
    ]
    code = run_child(command_line, cwd=ROOT)
    if code != 0:
        console.print(
            f"\nThe pipeline ended with exit code {code}. The servers still run; `make down` stops"
            " them."
        )
        sys.exit(code)


def ask(gateway: str, base_model: str) -> None:
    """One question to the base model and to the adapter, with the client that users have."""
    import openai

    from adapterops.report.console import answers

    client = openai.OpenAI(base_url=f"{gateway}/v1", api_key="unused")

    def answer(model: str) -> str:
        completion = client.chat.completions.create(
            model=model,
            messages=QUESTION,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=64,
        )
        return completion.choices[0].message.content or ""

    with ThreadPoolExecutor() as pool:
        texts = dict(
            zip((base_model, ADAPTER), pool.map(answer, (base_model, ADAPTER)), strict=True)
        )
    console.rule("one question, through the gateway")
    console.print(
        answers(QUESTION[0]["content"], base_model, texts[base_model], ADAPTER, texts[ADAPTER])
    )


def rollback() -> None:
    """Deploy a second version through the same gates, and roll it back: what on-call does, in
    seconds.

    Training another adapter would take minutes; the second version is the first with its effect
    lowered by a hundredth, which its manifest says. It is evaluated, judged, signed and rolled out
    like any other.

    Raises:
        UsageError: the first one is not being served.
    """
    from adapterops.specs.adapter import load_adapter

    if not (running("s3") and running("serve")):
        raise UsageError(
            "nothing is being served that could be rolled back. Run `make demo` first."
        )
    config, spec = local_settings(), load_adapter(ADAPTER)
    gateway = gateway_url(config)
    console.rule("a second version, and the way back")
    model = second_version(newest_run() / "model", STATE / "second")
    results, verdict = model.parent / "eval_results.json", model.parent / "gate_report.json"
    evaluation = [
        "--max-tokens",
        spec.evaluation.max_tokens,
        "--latency-requests",
        spec.evaluation.latency_requests,
    ]
    evaluation += [
        "--latency-concurrency",
        spec.evaluation.latency_concurrency,
        "--server-url",
        engine_url(config),
    ]
    evaluation += spec.general.options()
    evaluation += [
        "--responses",
        ROOT / "runs" / "responses.sqlite",
    ]  # the base model answers as it did the first time
    script(
        "evaluate",
        "--model",
        model,
        "--eval-data",
        spec.evaluation_data,
        "--output",
        results,
        *evaluation,
    )
    if script(
        "quality_gate",
        "--results",
        results,
        "--gates",
        spec.evaluation.gate,
        "--output",
        verdict,
        "--adapter",
        ADAPTER,
        quiet=True,
    ):
        console.print(
            "The gate does not let the second version pass, so that there is nothing to roll back."
            " (make report)"
        )
        return
    script("publish_adapter", "--adapter", ADAPTER, "--model", model, "--gate-report", verdict)
    script(
        "deploy_adapter",
        "--adapter",
        ADAPTER,
        "--version",
        adapter_version(model),
        "--gateway",
        gateway,
    )
    console.print(f"$ python scripts/deploy_adapter.py --adapter {ADAPTER} --rollback")
    script("deploy_adapter", "--adapter", ADAPTER, "--rollback", "--gateway", gateway)


def second_version(first: Path, directory: Path) -> Path:
    """The adapter in `first` with its B matrices, and so its effect, at 99 %."""
    from safetensors.torch import load_file, save_file

    from adapterops.documents import new_directory, read_json, sha256_file, write_json
    from adapterops.store.releases import adapter_digest, adapter_files

    manifest = read_json(first / "train_manifest.json", "train_manifest")
    with new_directory(directory / "model") as model:
        for name in adapter_files:
            (model / name).write_bytes((first / name).read_bytes())
        weights = load_file(first / "adapter_model.safetensors")
        changed = {
            name: tensor * 0.99 if "lora_B" in name else tensor for name, tensor in weights.items()
        }
        save_file(changed, model / "adapter_model.safetensors", metadata={"format": "pt"})
        files = [
            {
                "name": name,
                "size": (model / name).stat().st_size,
                "sha256": sha256_file(model / name),
            }
            for name in adapter_files
        ]
        manifest["adapter"] |= {"digest": adapter_digest(model), "files": files}
        manifest["key_inputs"] |= {"demo": "lora_B of the trained adapter, times 0.99"}
        write_json(model / "train_manifest.json", manifest, "train_manifest")
    return directory / "model"


def adapter_version(model: Path) -> str:
    """The version that an adapter directory is published as."""
    from adapterops.store.releases import adapter_digest

    return adapter_digest(model)


def script(name: str, *arguments: object, quiet: bool = False) -> int:
    """Run one of the scripts as a person would; its exit code.

    Raises:
        SystemExit: it failed, and `quiet` does not ask for the exit code 1 to be returned.
    """
    code = run_child(
        [sys.executable, str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)], cwd=ROOT
    )
    if code and not (quiet and code == 1):
        sys.exit(code)
    return code


def newest_run() -> Path:
    """The run directory that was written last.

    Raises:
        UsageError: there is none.
    """
    runs = sorted(
        (ROOT / "runs" / ADAPTER).glob("*/eval_results.json"), key=lambda file: file.stat().st_mtime
    )
    if not runs:
        raise UsageError("there is no run yet. Run `make demo` first.")
    return runs[-1].parent


def down() -> None:
    """Stop the servers that `up` started; the last started first."""
    for name in ("serve", "s3"):
        console.print(f"{name} stopped" if stop(name) else f"{name} is not running")


def stop(name: str) -> bool:
    """End a server that `up` started; False if it does not run."""
    process = running(name)
    if process is None:
        return False
    process.terminate()
    try:
        process.wait(timeout=30)
    except psutil.TimeoutExpired:
        process.kill()
    pid_file(name).unlink(missing_ok=True)
    return True


def report() -> None:
    """Open the HTML report of the newest run."""
    pages = sorted(
        (ROOT / "runs" / ADAPTER).glob("*/report.html"), key=lambda page: page.stat().st_mtime
    )
    if not pages:
        raise UsageError("there is no report yet. Run `make demo` first.")
    console.print(str(pages[-1]))
    webbrowser.open(pages[-1].as_uri())


def start(name: str, arguments: list[str]) -> subprocess.Popen[bytes] | None:
    """Start a server in the background; None if the one of an earlier call still runs."""
    if running(name):
        return None
    STATE.mkdir(exist_ok=True)
    log = STATE / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            arguments, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
        )
    created = psutil.Process(process.pid).create_time()
    pid_file(name).write_text(
        json.dumps({"pid": process.pid, "created": created}), encoding="utf-8"
    )
    return process


def refuse_taken(name: str, ports: dict[str, int]) -> None:
    """Ports that a server which does not run yet will need.

    Raises:
        UsageError: another program has one of them.
    """
    for setting, port in ports.items():
        if not running(name) and port_taken(port):
            raise UsageError(
                f"port {port} is taken by another program. Stop it, or change the port ({setting})."
            )


def await_port(name: str, port: int, process: subprocess.Popen[bytes] | None) -> None:
    """Return once the server listens.

    Raises:
        InfrastructureError: it ended, or does not listen within a minute; quotes the end of its
            log.
    """
    log = STATE / f"{name}.log"
    deadline = time.monotonic() + 60
    while not port_taken(port):
        if (process is not None and process.poll() is not None) or time.monotonic() > deadline:
            tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
            raise InfrastructureError(f"{name} did not start; the end of {shown(log)}:\n{tail}")
        time.sleep(0.1)


def running(name: str) -> psutil.Process | None:
    """The server that an earlier call started, if it still runs; never another process that got its
    number.
    """
    try:
        record = json.loads(pid_file(name).read_text(encoding="utf-8"))
        process = psutil.Process(record["pid"])
        alive = (
            process.create_time() == record["created"] and process.status() != psutil.STATUS_ZOMBIE
        )
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
    return process if alive else None


def pid_file(name: str) -> Path:
    """Where the process of that name is noted."""
    return STATE / f"{name}.pid"


def port_taken(port: int) -> bool:
    """True if something listens on the loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def signing_key() -> Path:
    """The demo's own key pair, made once; the serving host trusts its public half
    (configs/serving.demo.yaml).
    """
    from adapterops.signing import make_key_pair

    private, public = STATE / "signing.pem", STATE / "signing.pub.pem"
    if not private.is_file() or not public.is_file():
        STATE.mkdir(exist_ok=True)
        make_key_pair(private, public)
    return private


def make_bucket(bucket: str) -> None:
    """Create the bucket; in production it is made by whoever owns the account, never by this
    project.
    """
    import boto3

    boto3.client("s3").create_bucket(Bucket=bucket)


def shown(path: Path) -> str:
    """The path relative to where the user is, if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    main()
