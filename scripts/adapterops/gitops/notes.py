"""Markdown for people: notes of a release, the drift issue, the weekly review."""

from __future__ import annotations

from typing import Any

from adapterops.escape import inline
from adapterops.store.channels import Channel


def notes(manifest: dict[str, Any], bucket: str) -> str:
    """Notes of a release, from its manifest (`configs/schemas/release_manifest.json`)."""
    pull = str(manifest["source"]["pr"] or "")
    origin = (
        f"Judged in {f'#{pull}' if pull.isdecimal() else inline(pull)}."
        if pull
        else "Judged on the default branch."
    )
    lines = [
        (
            f"{origin} Base model {inline(manifest['base_model']['name'])}, LoRA rank"
            f" {manifest['rank']}."
        ),
        "",
        "| metric | value |",
        "|---|---|",
        *(
            f"| {inline(metric)} | {'-' if value is None else f'{value:.4g}'} |"
            for metric, value in manifest["metrics"].items()
        ),
        "",
        f"`s3://{bucket}/adapters/{manifest['adapter']}/sha256-{manifest['digest']}/`",
        f"Training key `{manifest['training_key']}`, gate key `{manifest['gate_key']}`.",
        (
            "Going back to this version: `gh workflow run deploy.yaml -f"
            f" adapter={manifest['adapter']} -f version={manifest['digest'][:12]}`."
        ),
    ]
    return "\n".join(lines)


def drift_issue(differences: list[str]) -> str:
    """Body of the issue that stays open while main, channels and hosts differ."""
    return (
        "What `main` says, what the channels say and what the serving hosts have are not the"
        " same:\n\n"
        + "".join(f"- {inline(difference)}\n" for difference in differences)
        + "\nThis issue is kept up to date by `reconcile.yaml`, and closed once they agree."
    )


def review_issue(histories: dict[str, list[Channel]], waiting: list[str]) -> str:
    """Body of the weekly review: what was served when, by whom and why, and what waits."""
    lines = [
        "| adapter | when | generation | stable | canary | who | why |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, history in histories.items():
        for channel in history:
            facts = (
                name,
                channel.updated_at[:16],
                channel.generation,
                (channel.stable or "-")[:12],
                (channel.canary or "-")[:12],
            )
            lines.append(
                "| "
                + " | ".join(inline(fact) for fact in (*facts, channel.updated_by, channel.reason))
                + " |"
            )
    if len(lines) == 2:
        lines = ["No channel changed this week."]
    lines += ["", "**Waiting:**", "", *(f"- {inline(name)}" for name in waiting or ["nothing"])]
    lines += [
        "",
        (
            "To decide: which adapters' data grows next week, which gate is too tight or too loose,"
            " which canary step was too short."
        ),
    ]
    return "\n".join(lines)
