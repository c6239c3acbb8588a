"""Evaluate an adapter."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

from pathlib import Path

import click

from adapterops.command import EXISTING_DIRECTORY, EXISTING_FILE, OUTPUT_PATH, command, console


@command()
@click.option(
    "--model",
    type=EXISTING_DIRECTORY,
    required=True,
    help="Adapter directory that train_qlora.py wrote.",
)
@click.option(
    "--eval-data", type=EXISTING_FILE, required=True, help="Evaluation rows, JSON array or JSONL."
)
@click.option(
    "--output",
    type=OUTPUT_PATH,
    required=True,
    help="Results document to write; samples go beside it.",
)
@click.option(
    "--server-url", help="Use this running vLLM (root, without /v1) instead of starting one."
)
@click.option(
    "--server-wait",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that it may take to answer.",
)
@click.option(
    "--serving",
    type=EXISTING_FILE,
    help="Serving configuration to start vLLM with. Default: by base model.",
)
@click.option(
    "--production",
    type=EXISTING_DIRECTORY,
    help="Adapter directory to compare with, in pairs on the same rows.",
)
@click.option(
    "--production-of",
    metavar="ADAPTER",
    help="Compare with the stable version of this adapter's channel instead.",
)
@click.option(
    "--bucket",
    help=(
        "S3 bucket of --production-of. Default: $ADAPTER_BUCKET, else the serving configuration's."
    ),
)
@click.option(
    "--extension-data",
    type=EXISTING_FILE,
    help="More rows, registered for gates that the first ones leave open.",
)
@click.option(
    "--draw-extension", is_flag=True, help="Evaluate on them too; the gate said INCONCLUSIVE."
)
@click.option(
    "--general-data",
    type=EXISTING_FILE,
    multiple=True,
    help="General rows. Default: those of data/eval/, in en and ko.",
)
@click.option(
    "--general-texts", type=EXISTING_FILE, multiple=True, help="General texts. Default: likewise."
)
@click.option(
    "--general-rows",
    type=click.IntRange(1),
    help="So many of each file of general rows. Default: all.",
)
@click.option(
    "--general-texts-rows",
    type=click.IntRange(1),
    help="So many of each file of general texts. Default: all.",
)
@click.option(
    "--no-general",
    is_flag=True,
    help="Leave them out; a gate that asks what the adapter has lost is an ERROR then.",
)
@click.option(
    "--refusal-judge",
    default="base",
    show_default=True,
    help="Who is asked where rules cannot tell: base, none or URL#MODEL.",
)
@click.option(
    "--win-rate-judge",
    default="none",
    show_default=True,
    help="Who compares answers in pairs: none, base or URL#MODEL.",
)
@click.option(
    "--responses",
    type=OUTPUT_PATH,
    help="File of answers known already. Default: responses.sqlite beside OUTPUT.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=512,
    show_default=True,
    help="Longest answer in tokens.",
)
@click.option(
    "--latency-requests",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    help="Requests of the speed phase.",
)
@click.option(
    "--latency-concurrency",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="... of them in flight.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Evaluate although OUTPUT holds the results of this very evaluation.",
)
def main(
    model: Path,
    eval_data: Path,
    output: Path,
    server_url: str | None,
    server_wait: float,
    serving: Path | None,
    production: Path | None,
    production_of: str | None,
    bucket: str | None,
    extension_data: Path | None,
    draw_extension: bool,
    general_data: tuple[Path, ...],
    general_texts: tuple[Path, ...],
    general_rows: int | None,
    general_texts_rows: int | None,
    no_general: bool,
    refusal_judge: str,
    win_rate_judge: str,
    responses: Path | None,
    max_tokens: int,
    latency_requests: int,
    latency_concurrency: int,
    force: bool,
) -> None:
    """Evaluate an adapter, the one in production and their base model on the same rows, through
    vLLM, at temperature 0.

    Writes the metrics that the gate judges, and every answer with its scores. An interrupted
    evaluation goes on where it stopped.

    \b
    Example:
      python scripts/evaluate.py --model models/support --eval-data data/eval/support.jsonl \\
        --output results/eval_support.json
    """
    from adapterops.evaluate.evaluation import NO_GENERAL, Data, Settings, evaluate_once
    from adapterops.evaluate.production import NONE, named_production, production_from_directory
    from adapterops.report.console import print_metrics
    from adapterops.schemas import ROOT
    from adapterops.specs.adapter import General, general_sets
    from adapterops.store.releases import adapter_digest

    if no_general and (general_data or general_texts or general_rows or general_texts_rows):
        raise click.UsageError(
            "--no-general and the other options of the general sets exclude each other."
        )
    general = NO_GENERAL
    if not no_general:
        shipped = general_sets(ROOT)
        general = General(
            general_data or shipped.rows,
            general_texts or shipped.texts,
            general_rows,
            general_texts_rows,
        )
    if production and production_of:
        raise click.UsageError("--production and --production-of exclude each other.")
    compared = NONE
    if production:
        compared = production_from_directory(production, adapter_digest(model))
    elif production_of:
        compared = named_production(
            production_of, bucket, adapter_digest(model), output.parent / "releases"
        )
    results, cached = evaluate_once(
        model,
        Data(eval_data, extension_data, draw_extension, general),
        Settings(max_tokens, latency_requests, latency_concurrency, refusal_judge, win_rate_judge),
        output,
        console,
        production=compared,
        responses=responses,
        server_url=server_url,
        server_wait_s=server_wait,
        serving=serving,
        force=force,
    )
    print_metrics(results, console)
    console.print(f"{output}: {'already evaluated, nothing to do' if cached else 'written'}")


if __name__ == "__main__":
    main()
