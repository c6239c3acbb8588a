"""What JSON Schemas cost the engine's compiler: what the caps of `serving/schema_cost.py` are
chosen by.

Suggested usage:

    # the demo's 49,152 tokens; some minutes
    python tests/benchmarks/schema_compile.py
    python tests/benchmarks/schema_compile.py --more-tokens 80000  # about as many as Llama 3 has

Each schema is compiled in a process of its own, which is ended after 20 s. "refused" is what the
gateway does with it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import queue
import sys
import time
from pathlib import Path
from typing import Any

import xgrammar
from tokenizers import Tokenizer

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts")]
LONGEST_S = 20
TEXT = {"type": "string"}


def properties(count: int, schema: dict[str, Any] = TEXT) -> dict[str, Any]:
    return {"type": "object", "properties": {f"p{number}": schema for number in range(count)}}


def different(count: int, **bounds: int) -> dict[str, Any]:
    """Texts whose bounds all differ, so that nothing is compiled once for all of them."""
    texts = [
        TEXT | {name: value + number for name, value in bounds.items()} for number in range(count)
    ]
    return {
        "type": "object",
        "properties": {f"p{number}": text for number, text in enumerate(texts)},
    }


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = TEXT
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def doubled(count: int) -> dict[str, Any]:
    """Definitions that name the former one twice: 2^count if written out."""
    pairs = {
        f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number - 1}"}] * 2}
        for number in range(1, count)
    }
    return {"$defs": {"d0": TEXT, **pairs}, "$ref": f"#/$defs/d{count - 1}"}


SCHEMAS: dict[str, dict[str, Any]] = {
    "16 properties": properties(16),
    "250 properties": properties(250),
    "250 properties, all required": (
        properties(250) | {"required": [f"p{number}" for number in range(250)]}
    ),
    "1,000 properties": properties(1000),
    "12 levels": nested(12),
    "60 levels": nested(60),
    "1,000 values": {"enum": [f"value-{number}" for number in range(1000)]},
    "16 values of 1,000 characters": {"enum": [f"{number:x}" * 999 for number in range(16)]},
    "20 doubled references": doubled(20),
    "64 date-times": properties(64, TEXT | {"format": "date-time"}),
    "one e-mail address": TEXT | {"format": "email"},
    "64 e-mail addresses": properties(64, TEXT | {"format": "email"}),
    "64 ranges of integers": {
        "type": "object",
        "properties": {
            f"p{number}": {
                "type": "integer",
                "minimum": -(10**9) - number,
                "maximum": 10**9 + number,
            }
            for number in range(64)
        },
    },
    "at most 1,000 items": {"type": "array", "items": properties(16), "maxItems": 1000},
    "3 to 40 of 64 properties": properties(64) | {"minProperties": 3, "maxProperties": 40},
    "maxLength 8": TEXT | {"maxLength": 8},
    "maxLength 32": TEXT | {"maxLength": 32},
    "maxLength 100": TEXT | {"maxLength": 100},
    "32 different maxLength": different(32, maxLength=1),
    "pattern [a-z]{1,100}": TEXT | {"pattern": "^[a-z]{1,100}$"},
    "pattern, nested three times": TEXT | {"pattern": "^(([a-z]{1,30}){1,30}){1,30}$"},
}


def compile_schema(tokens: list[str], schema: dict[str, Any], results: Any) -> None:
    info = xgrammar.TokenizerInfo(
        tokens, vocab_type=xgrammar.VocabType.BYTE_LEVEL, stop_token_ids=[0, 2]
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=8, cache_enabled=False)
    started = time.perf_counter()
    compiler.compile_json_schema(json.dumps(schema), any_whitespace=True)
    results.put(time.perf_counter() - started)


def main() -> None:
    from adapterops.basemodels.materialize import base_model_directory
    from adapterops.serving.body import BodyError
    from adapterops.serving.schema_cost import SchemaCost
    from adapterops.specs.base_model import load_base_models
    from adapterops.specs.serving import load_serving_config

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--more-tokens", type=int, default=0, help="pairs of tokens added to the vocabulary"
    )
    more = parser.parse_args().more_tokens
    tokenizer = Tokenizer.from_file(
        str(base_model_directory(load_base_models()["smollm2-135m-instruct"]) / "tokenizer.json")
    )
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    tokens += [
        tokens[200 + number % 40_000] + tokens[200 + number * 7 % 40_000] for number in range(more)
    ]
    limits = load_serving_config(ROOT / "configs/serving.yaml").gateway.limits
    print(f"xgrammar {importlib.metadata.version('xgrammar')}, {len(tokens)} tokens")
    context = multiprocessing.get_context("fork")
    for name, schema in SCHEMAS.items():
        results = context.Queue()
        process = context.Process(target=compile_schema, args=(tokens, schema, results))
        process.start()
        try:
            found = f"{results.get(timeout=LONGEST_S):8.2f} s"
        except queue.Empty:
            found = f"> {LONGEST_S:6} s"
        process.kill()
        process.join()
        try:
            SchemaCost(limits).add(schema, "schema")
            taken = "taken"
        except BodyError as error:
            taken = f"refused: {error}"
        print(f"{name:32} {len(json.dumps(schema)):7} bytes {found}  {taken}", flush=True)


if __name__ == "__main__":
    main()
