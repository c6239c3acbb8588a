"""Near duplicates, personal data and token counts with datatrove, for
tests/benchmarks/data_gate.py; runs where datatrove is installed.

python tests/benchmarks/data_gate_peer.py ROWS_DIRECTORY TOKENIZER_JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import TokensCounter
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.logging import logger

_WORKERS = 2
_CONFIG = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def _text(self: Any, row: dict[str, Any], path: str, number: int) -> dict[str, Any]:
    text = "\n".join(row.get(key, "") for key in ("instruction", "input", "output"))
    return {"text": text, "id": row.get("id", f"{path}/{number}"), "metadata": {}}


def main() -> None:
    """Print, as JSON, the seconds and how many rows are left."""
    rows, tokenizer = Path(sys.argv[1]), sys.argv[2]
    logger.remove()
    with tempfile.TemporaryDirectory() as scratch:

        def run(steps: list[Any], name: str, tasks: int) -> None:
            LocalPipelineExecutor(
                steps,
                tasks=tasks,
                workers=min(tasks, _WORKERS),
                logging_dir=f"{scratch}/logs/{name}",
            ).run()

        def read() -> JsonlReader:
            return JsonlReader(str(rows), glob_pattern="??.jsonl", adapter=_text)

        started = time.monotonic()
        # English splits at white space and punctuation, which suits Korean as well; datatrove's
        # Korean one is a morphological analyser.
        run(
            [
                read(),
                PIIFormatter(),
                MinhashDedupSignature(f"{scratch}/signatures", config=_CONFIG, language="eng_Latn"),
            ],
            "1",
            2,
        )
        run(
            [MinhashDedupBuckets(f"{scratch}/signatures", f"{scratch}/buckets", config=_CONFIG)],
            "2",
            _CONFIG.num_buckets,
        )
        run(
            [MinhashDedupCluster(f"{scratch}/buckets", f"{scratch}/remove", config=_CONFIG)], "3", 1
        )
        run(
            [
                read(),
                TokensCounter(tokenizer),
                MinhashDedupFilter(f"{scratch}/remove"),
                JsonlWriter(f"{scratch}/kept"),
            ],
            "4",
            2,
        )
        seconds = time.monotonic() - started
        stats = json.loads(Path(f"{scratch}/logs/4/stats.json").read_text())
        kept = next(part["stats"]["total"] for part in stats if "WRITER" in part["name"])
        print(json.dumps({"seconds": seconds, "kept": kept}))


if __name__ == "__main__":
    main()
