"""Predicted GPU minutes and cost of one adapter. Numbers come from measurements and price lists that are there, or are unknown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterops.errors import RejectedError
from adapterops.plan.keys import Keys
from adapterops.yamlfile import load_yaml

PRICING = "configs/pricing.yaml"
GPU = "a100-80"  # of the runners labelled gpu-a100, as the price list names it


@dataclass(frozen=True)
class Estimate:
    """A prediction.

    Args:
        minutes: of GPU time; None where it is unknown.
        usd: US dollars; None where it is unknown.
        basis: where the numbers come from, or why there are none.
        problem: why it cannot run on the runners, and what to do; None if it can.
        hints: on settings of the recipe that are unusual.
    """

    minutes: float | None
    usd: float | None
    basis: str
    problem: str | None = None
    hints: tuple[str, ...] = ()


def estimate(keys: Keys, action: str) -> Estimate:
    """Predicted GPU minutes and cost of an action of the plan.

    Args:
        keys: of the adapter.
        action: `train`, `judge`, `reuse` or `none`.

    Raises:
        UsageError: the price list does not know the runners' GPU.
        InfrastructureError: tokenizer and configuration of the base model cannot be had, without which tokens cannot be counted.
    """
    if action in ("reuse", "none"):
        return Estimate(0.0, 0.0, "nothing is computed")
    if action == "judge":
        return Estimate(None, None, "unknown: how long an evaluation takes was not measured")
    from adapterops.train.preflight import choose, preflight, too_large  # transformers behind it: seconds that most plans do not need

    try:
        document = preflight(keys.recipe, list(keys.spec.training_data))
    except RejectedError:  # the job `validate` says it in full, and nothing is trained before it passes
        return Estimate(None, None, "unknown: the data cannot be trained on as it is")
    entry = choose(document, GPU)
    basis = f"training on one {GPU}: {entry['speed_from']}"
    return Estimate(float(entry["minutes"]), float(entry["usd"]), basis, too_large(document, entry), tuple(document["hints"]))


def cap_usd(root: Path) -> float:
    """What one pull request may cost, in US dollars, by the `configs/pricing.yaml` of the tree in `root`.

    Raises:
        UsageError: the file is missing or breaks its schema.
    """
    return float(load_yaml(root / PRICING, "pricing")["cap_usd"])
