"""Predicted GPU minutes and cost of one adapter: measured and priced, or unknown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapterops.candidates.keys import Keys
from adapterops.errors import RejectedError
from adapterops.plan.evaluation_cost import evaluation_cost
from adapterops.specs.price_list import load_pricing

GPU = "a100-80"  # of the runners labelled gpu-a100, as the price list names it

Action = Literal["train", "judge", "reuse", "none"]


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


def estimate(keys: Keys, action: Action) -> Estimate:
    """Predicted GPU minutes and cost of an action of the plan.

    Args:
        keys: of the adapter.
        action: what is done about the adapter.

    Raises:
        UsageError: the price list does not know the runners' GPU, or the win-rate judge.
        InfrastructureError: tokenizer and configuration of the base model cannot be had, without
            which tokens cannot be counted.
    """
    if action in ("reuse", "none"):
        return Estimate(0.0, 0.0, "nothing is computed")
    prices = load_pricing()
    training = _training(keys) if action == "train" else Estimate(0.0, 0.0, "")
    if training.minutes is None or training.usd is None:
        return training
    try:
        judged = evaluation_cost(keys.spec, keys.recipe.base_model.parameters, GPU, prices)
    except RejectedError:
        return Estimate(None, None, "unknown: the evaluation rows cannot be judged by as they are")
    minutes = judged.seconds / 60
    usd = training.usd + judged.usd + minutes / 60 * prices["gpus"][GPU]["usd_per_hour"]
    basis = "; ".join(filter(None, [training.basis, judged.basis]))
    return Estimate(
        round(training.minutes + minutes, 1), round(usd, 2), basis, training.problem, training.hints
    )


def _training(keys: Keys) -> Estimate:
    # Here, for transformers behind it takes seconds that most plans do not need.
    from adapterops.train.preflight import choose, preflight, too_large

    try:
        document = preflight(keys.recipe, list(keys.spec.training_data))
    except RejectedError:
        # The job `validate` says it in full, and nothing is trained before it passes.
        return Estimate(None, None, "unknown: the data cannot be trained on as it is")
    entry = choose(document, GPU)
    basis = f"training on one {GPU}: {entry['speed_from']}"
    problem, hints = too_large(document, entry), tuple(document["hints"])
    return Estimate(float(entry["minutes"]), float(entry["usd"]), basis, problem, hints)


def cap_usd(root: Path) -> float:
    """What one pull request may cost, in US dollars, by the price list of the tree in `root`.

    Raises:
        UsageError: the file is missing or breaks its schema.
    """
    return float(load_pricing(root)["cap_usd"])
