"""Run a serving host."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import logging
from pathlib import Path

import click

from adapterops.command import EXISTING_FILE, OUTPUT_PATH, command, log_in_lines


@command()
@click.option(
    "--config",
    type=EXISTING_FILE,
    required=True,
    help="Serving configuration: configs/serving*.yaml.",
)
@click.option(
    "--engine-url",
    multiple=True,
    help="Attach to this running vLLM (root, without /v1) instead of starting one; repeatable.",
)
@click.option(
    "--engine-config",
    type=OUTPUT_PATH,
    help="Fetch the base model, write vLLM's options to this file, and end.",
)
def main(config: Path, engine_url: tuple[str, ...], engine_config: Path | None) -> None:
    """Run a serving host: vLLM on loopback, and a gateway that follows the channels of its
    adapters.

    The access log goes to standard output, a line of JSON for each request; everything else to
    standard error. SIGTERM lets running answers end, then stops everything.

    \b
    Example:
      python scripts/serve.py --config configs/serving.demo.yaml
      # then: vllm serve --config engine.yaml
      python scripts/serve.py --config configs/serving.yaml --engine-config engine.yaml
    """
    from adapterops.engine.server import write_engine_config
    from adapterops.serving.host import serve
    from adapterops.specs.serving import load_serving_config

    log_in_lines()
    for talkative in ("httpx", "httpx2", "botocore"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    settings = load_serving_config(config)
    if engine_config:
        write_engine_config(settings, engine_config)
        return
    serve(settings, [url.rstrip("/").removesuffix("/v1") for url in engine_url])


if __name__ == "__main__":
    main()
