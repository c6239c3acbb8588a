"""`configs/pricing.yaml`: GPU types, what they cost, and how fast they were seen to run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from adapterops.schemas import ROOT
from adapterops.shapes.pricing import Pricing
from adapterops.yamlfile import load_yaml

PRICING = "configs/pricing.yaml"


def load_pricing(root: Path = ROOT) -> Pricing:
    """The price list of the tree in `root`.

    Raises:
        UsageError: the file is missing or breaks its schema.
    """
    return load_yaml(root / PRICING, Pricing)


def gpu_type(device: str, known: Iterable[str]) -> str | None:
    """The GPU type of a price list that a driver means with its own name; None for another device.

    Whole words decide: `NVIDIA A100-SXM4-80GB` is `a100-80`, and `NVIDIA L40S` is not `l4`.

    Args:
        device: as the driver calls it.
        known: names of the price list.
    """
    words = {word.removesuffix("gb") for word in re.split(r"[^a-z0-9]+", device.lower())}
    fits = [name for name in known if words.issuperset(name.lower().split("-"))]
    return max(fits, key=len, default=None)
