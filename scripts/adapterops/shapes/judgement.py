"""The shape of `configs/schemas/judgement.json`; `make types`."""

from __future__ import annotations

from typing import Literal, TypeAlias, TypedDict


class Documents(TypedDict):
    """
    Expected the documents of a run, each once, and among them its results, its samples and its gate report.
    """


Sha256: TypeAlias = str


Line: TypeAlias = str


class Document(TypedDict):
    name: Literal[
        "gate_report.json",
        "eval_results.json",
        "eval_samples.jsonl",
        "data_report.json",
        "main/gate_report.json",
        "main/eval_results.json",
        "main/eval_samples.jsonl",
        "main/data_report.json",
    ]
    size: int
    sha256: Sha256


class Source(TypedDict):
    commit: Line | None
    pr: Line | None
    run: Line | None


class Judgement(TypedDict):
    schema: Literal["judgement/v1"]
    adapter: str
    training_key: Sha256
    judgement_key: Sha256
    production: Sha256 | None
    digest: Sha256
    verdict: Literal["PASS", "FAIL", "INCONCLUSIVE"]
    reason: str
    documents: list[Document] | Documents
    source: Source
