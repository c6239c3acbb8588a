"""Markdown for people: notes of a release, the drift issue, the weekly review."""

from __future__ import annotations

from adapterops.escape import inline
from adapterops.shapes.release_manifest import ReleaseManifest
from adapterops.store.channels import Channel


def notes(manifest: ReleaseManifest, bucket: str) -> str:
    """Notes of a release, from its manifest."""
    adapter, digest = manifest["adapter"], manifest["digest"]
    origin = "Judged on the default branch."
    if pull := str(manifest["source"]["pr"] or ""):
        origin = f"Judged in {f'#{pull}' if pull.isdecimal() else inline(pull)}."
    base_model = inline(manifest["base_model"]["name"])
    lines = [f"{origin} Base model {base_model}, LoRA rank {manifest['rank']}.", ""]
    lines += ["| metric | value |", "|---|---|"]
    for metric, value in manifest["metrics"].items():
        lines.append(f"| {inline(metric)} | {'-' if value is None else f'{value:.4g}'} |")
    back = f"gh workflow run deploy.yaml -f adapter={adapter} -f version={digest[:12]}"
    lines += [
        "",
        f"`s3://{bucket}/adapters/{adapter}/sha256-{digest}/`",
        f"Training key `{manifest['training_key']}`, gate key `{manifest['gate_key']}`.",
        f"Going back to this version: `{back}`.",
    ]
    return "\n".join(lines)


def drift_issue(differences: list[str]) -> str:
    """Body of the issue that stays open while main, channels and hosts differ."""
    return (
        "What `main` says, what the channels say and what the serving hosts have are not the same:"
        "\n\n"
        + "".join(f"- {inline(difference)}\n" for difference in differences)
        + "\nThis issue is kept up to date by `reconcile.yaml`, and closed once they agree."
    )


def review_issue(histories: dict[str, list[Channel]], waiting: list[str]) -> str:
    """Body of the weekly review: what was served when, by whom and why, and what waits."""
    rows = [
        (
            name,
            channel.updated_at[:16],
            channel.generation,
            (channel.stable or "-")[:12],
            (channel.canary or "-")[:12],
            channel.updated_by,
            channel.reason,
        )
        for name, history in histories.items()
        for channel in history
    ]
    lines = ["No channel changed this week."]
    if rows:
        lines = ["| adapter | when | generation | stable | canary | who | why |", "|" + "---|" * 7]
        lines += [f"| {' | '.join(map(inline, row))} |" for row in rows]
    lines += ["", "**Waiting:**", "", *(f"- {inline(name)}" for name in waiting or ["nothing"])]
    lines += [
        "",
        "To decide: which adapters' data grows next week, which gate is too tight or too loose,"
        " which canary step was too short.",
    ]
    return "\n".join(lines)
