"""Predicted GPU minutes and cost of one adapter. Numbers come from measurements and price lists that are there, or are unknown."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import yaml

from adapterops.errors import AdapterOpsError, UsageError
from adapterops.plan.keys import Keys

PRICING = "configs/pricing.yaml"
GPU = "a100-80"  # of the runners labelled gpu-a100, as the price list names it
_PREDICTION = "adapterops.train.preflight"  # where this repository has it


@dataclass(frozen=True)
class Estimate:
    """A prediction.

    Args:
        minutes: of GPU time; None where it is unknown.
        usd: US dollars; None where it is unknown.
        basis: where the numbers come from, or why there are none.
    """

    minutes: float | None
    usd: float | None
    basis: str


def estimate(keys: Keys, action: str) -> Estimate:
    """Predicted GPU minutes and cost of an action of the plan.

    Args:
        keys: of the adapter.
        action: `train`, `judge`, `reuse` or `none`.
    """
    if action in ("reuse", "none"):
        return Estimate(0.0, 0.0, "nothing is computed")
    if action == "judge":
        return Estimate(None, None, "unknown: how long an evaluation takes was not measured")
    if importlib.util.find_spec(_PREDICTION) is None:
        return Estimate(None, None, f"unknown: no measured throughput for {keys.recipe.base_model.name}")
    prediction = importlib.import_module(_PREDICTION)
    try:
        entry = prediction.choose(prediction.preflight(keys.recipe, list(keys.spec.training_data)), GPU)
    except AdapterOpsError as error:
        return Estimate(None, None, f"unknown: {error}".partition("\n")[0])
    return Estimate(float(entry["minutes"]), float(entry["usd"]), f"training on one {GPU}: {entry['speed_from']}")


def cap_usd(root: Path) -> float | None:
    """What one pull request may cost, in US dollars, by `configs/pricing.yaml`; None where there is no such file or no cap in it.

    Raises:
        UsageError: the cap is not a number.
    """
    path = root / PRICING
    if not path.is_file():
        return None
    cap = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("cap_usd")
    if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int | float)):
        raise UsageError(f"{PRICING}: cap_usd {cap!r} is not a number.")
    return cap
