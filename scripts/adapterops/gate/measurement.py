"""Whether something was measured as a specification asks: on its rows, with its settings."""

from __future__ import annotations

from adapterops.data.general_sets import described
from adapterops.documents import sha256_file, sha256_json
from adapterops.evaluate.detector import judge_model
from adapterops.shapes.eval_results import EvalResults, GeneralSets
from adapterops.specs.adapter import AdapterSpec
from adapterops.specs.serving import load_serving_config

_UNRECORDED = "not recorded"  # by an evaluation that is older than the setting

Settings = dict[str, str | int]  # by the name that a specification has for it


def measured_otherwise(results: EvalResults, spec: AdapterSpec) -> list[str]:
    """The settings that an evaluation was not made with as the specification asks.

    It is what determines measurements (`key_inputs`) as far as a specification says it; adapter and
    production are the caller's.

    Returns:
        Each with both values, as `evaluation.max_tokens: 48 there, 7 here`; empty if none differs.

    Raises:
        UsageError: a file that the specification names breaks its schema.
    """
    made = _made(results)
    return [
        f"{setting}: {value} there, {made[setting]} here"
        for setting, value in asked_settings(spec).items()
        if made[setting] != value
    ]


def asked_settings(spec: AdapterSpec) -> Settings:
    """The settings that an evaluation is made with, as the specification has them."""
    how = spec.evaluation
    return {
        "data.evaluation": sha256_file(spec.evaluation_data)[:12],
        "data.extension": sha256_file(spec.extension_data)[:12] if spec.extension_data else "none",
        "evaluation.general": _in_a_word(described(spec.general)),
        "evaluation.max_tokens": how.max_tokens,
        "evaluation.latency_requests": how.latency_requests,
        "evaluation.latency_concurrency": how.latency_concurrency,
        "evaluation.win_rate_judge": judge_model(how.win_rate_judge),
        "engine.dtype": load_serving_config(spec.serving).engine.dtype,
    }


def _made(results: EvalResults) -> Settings:
    """The same settings, as an evaluation recorded them."""
    data, inputs = results["evaluation_data"], results["key_inputs"]
    extension = data["extension"]
    speed = inputs.get("speed") or {}
    return {
        "data.evaluation": data["sha256"][:12],
        "data.extension": extension["sha256"][:12] if extension else "none",
        "evaluation.general": _in_a_word(data.get("general") or {"rows": [], "texts": []}),
        "evaluation.max_tokens": inputs.get("decoding", {}).get("max_tokens", _UNRECORDED),
        "evaluation.latency_requests": speed.get("requests", _UNRECORDED),
        "evaluation.latency_concurrency": speed.get("concurrency", _UNRECORDED),
        "evaluation.win_rate_judge": inputs.get("win_rate_judge", _UNRECORDED),
        "engine.dtype": inputs.get("engine", {}).get("dtype", _UNRECORDED),
    }


def _in_a_word(general: GeneralSets) -> str:
    """What was asked of which general sets."""
    files = [*general["rows"], *general["texts"]]
    return sha256_json([[file["sha256"], file["asked"]] for file in files])[:12]
