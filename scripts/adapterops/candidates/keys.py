"""The two keys of an adapter: what determines its weights, and what determines its verdict."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path

from adapterops.data.adjudicated import labels_key, labels_path, load_labels
from adapterops.documents import sha256_file, sha256_json
from adapterops.engine.installed import engine_version
from adapterops.errors import UsageError
from adapterops.shapes.quality_gate import QualityGate
from adapterops.specs.adapter import AdapterSpec, load_adapter
from adapterops.specs.gate import JUDGE_VERSION
from adapterops.specs.metric_catalogue import METRIC_IDS
from adapterops.specs.recipe import Recipe, load_recipe, training_key
from adapterops.specs.serving import load_serving_config
from adapterops.yamlfile import load_yaml


@dataclass(frozen=True)
class Keys:
    """Of one adapter in one tree; equal keys mean that nothing has to be computed again.

    Args:
        spec: the adapter.
        recipe: its recipe.
        training: SHA-256 over what determines the weights.
        rules: SHA-256 over that and over what the tree says about the verdict: evaluation rows,
            gates, metrics, the judge's version, decoding, engine, what people said of answers.
    """

    spec: AdapterSpec
    recipe: Recipe
    training: str
    rules: str

    def judgement(self, production: str | None) -> str:
        """SHA-256 over what determines the verdict: the rules, and the adapter that the candidate
        is compared with; and whose it is.

        A copy under another name has the same weights, and never the same verdict.

        Args:
            production: its digest, None where there is nothing to compare with.
        """
        return sha256_json(
            {"adapter": self.spec.name, "rules": self.rules, "production": production}
        )


def adapter_names(root: Path) -> list[str]:
    """Adapters of a tree, sorted."""
    return sorted(path.stem for path in (root / "adapters").glob("*.yaml"))


def adapter_keys(name: str, root: Path) -> Keys:
    """The keys of an adapter of the tree that lies in `root`.

    Raises:
        UsageError: a file of it is missing or breaks its schema; paths are those of the repository.
    """
    try:
        spec = load_adapter(name, root / "adapters")
        recipe = load_recipe(spec.recipe)
        training = training_key(recipe, list(spec.training_data))
        labels = labels_key(load_labels(labels_path(name, root)))
        return Keys(
            spec, recipe, training, sha256_json({**_rules(spec, training), "adjudicated": labels})
        )
    except UsageError as error:
        raise UsageError(
            str(error).replace(f"{root.resolve()}/", "").replace(f"{root}/", "")
        ) from None


def _rules(spec: AdapterSpec, training: str) -> dict[str, object]:
    """What the tree says about the verdict, for hashing alone."""
    serving = load_serving_config(spec.serving)
    return {
        "training_key": training,
        "evaluation_data": sha256_file(spec.evaluation_data),
        "pins": [spec.pins.evaluation, spec.pins.extension],
        "extension_data": sha256_file(spec.extension_data) if spec.extension_data else None,
        "general_data": [sha256_file(path) for path in (*spec.general.rows, *spec.general.texts)],
        "gates": load_yaml(spec.evaluation.gate, QualityGate),
        "evaluation": {
            key: value for key, value in asdict(spec.evaluation).items() if key != "gate"
        },
        "metrics": METRIC_IDS,
        "judge": JUDGE_VERSION,
        # The CPU and the CUDA build of one version have different names; the release judges what
        # the GPU runner computed.
        "engine": {"version": _engine_number(), "dtype": serving.engine.dtype},
    }


@functools.cache
def _engine_number() -> str:
    return engine_version().split()[-1]
