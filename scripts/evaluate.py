"""Evaluate an adapter."""

from __future__ import annotations

from pathlib import Path

import click

from adapterops.command import EXISTING_DIRECTORY, EXISTING_FILE, OUTPUT_PATH, command, console


@command()
@click.option("--model", type=EXISTING_DIRECTORY, required=True, help="Adapter directory that train_qlora.py wrote.")
@click.option("--eval-data", type=EXISTING_FILE, required=True, help="Evaluation rows, JSON array or JSONL.")
@click.option("--output", type=OUTPUT_PATH, required=True, help="Results document to write; samples go beside it.")
@click.option("--server-url", help="Use this running vLLM (root, without /v1) instead of starting one.")
@click.option("--server-wait", type=click.FloatRange(0), default=30.0, show_default=True, help="Seconds that it may take to answer.")
@click.option("--serving", type=EXISTING_FILE, help="Serving configuration to start vLLM with. Default: by base model.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, help="Longest answer in tokens.")
@click.option("--latency-requests", type=click.IntRange(1), default=200, show_default=True, help="Requests of the speed phase.")
@click.option("--latency-concurrency", type=click.IntRange(1), default=1, show_default=True, help="... of them in flight.")
@click.option("--force", is_flag=True, help="Evaluate although OUTPUT holds the results of this very evaluation.")
def main(
    model: Path,
    eval_data: Path,
    output: Path,
    server_url: str | None,
    server_wait: float,
    serving: Path | None,
    max_tokens: int,
    latency_requests: int,
    latency_concurrency: int,
    force: bool,
) -> None:
    """Evaluate an adapter and its base model on the same rows, through vLLM, at temperature 0.

    Writes the metrics that the gate judges, and every answer with its scores.

    \b
    Example:
      python scripts/evaluate.py --model models/support --eval-data data/eval/support.jsonl \\
        --output results/eval_support.json
    """
    from adapterops.evaluate.run import Settings, evaluate_once
    from adapterops.report.console import metrics_table

    settings = Settings(max_tokens, latency_requests, latency_concurrency)
    results, cached = evaluate_once(
        model, eval_data, settings, output, console, server_url=server_url, server_wait_s=server_wait, serving=serving, force=force
    )
    console.print(metrics_table(results))
    console.print(f"{output}: {'already evaluated, nothing to do' if cached else 'written'}")


if __name__ == "__main__":
    main()
