"""Check training and evaluation rows against the policy; the result is a report, not a changed file."""

from __future__ import annotations

import collections
import hashlib
import math
import re
import statistics
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from adapterops.basemodels import BaseModel, load_tokenizer
from adapterops.data.personal import masked, personal_data
from adapterops.data.policy import Policy
from adapterops.data.reader import Kind, Row, read_rows, schema_findings
from adapterops.data.rows import answer, prompt_messages, prompt_text, training_messages
from adapterops.diagnostics import Finding
from adapterops.documents import sha256_file, write_json
from adapterops.schemas import repository_path, schema_problems

_SHOWN_PER_CODE = 50


@dataclass(frozen=True)
class DataReport:
    """What validation found; `document` is `configs/schemas/data_report.json`."""

    findings: tuple[Finding, ...]
    document: dict[str, Any]

    @property
    def passed(self) -> bool:
        """True without errors; hints do not block."""
        return bool(self.document["verdict"] == "PASS")


@dataclass(frozen=True)
class _File:
    path: Path
    kind: Kind
    rows: list[Row]


def validate(
    inputs: list[Path],
    eval_data: Path | None,
    *,
    base_model: BaseModel | None,
    policy: Policy,
    max_length: int | None = None,
) -> DataReport:
    """Check training files and, with them, the evaluation rows that judge what they train.

    Args:
        inputs: training files.
        eval_data: evaluation rows; None leaves the contamination check out.
        base_model: counts tokens; None leaves the token checks out.
        policy: limits.
        max_length: longest rendered row in tokens, from the recipe.

    Raises:
        UsageError: a file cannot be opened.
    """
    findings: list[Finding] = []
    files = [_read(path, "training", findings) for path in inputs]
    if eval_data:
        files.append(_read(eval_data, "eval", findings))
    ids: dict[str, tuple[Path, int]] = {}
    summaries = []
    for file in files:
        limits = policy.limits_for(file.path)
        _check_ids(file, ids, findings)
        duplicates = _check_duplicates(file, limits.duplicate_rate, findings)
        _check_personal(file, findings)
        tokens = _check_tokens(file, base_model, limits, max_length, findings) if base_model else {}
        summaries.append(_summary(file, duplicates, tokens))
    if eval_data:
        _check_contamination(files[:-1], files[-1], findings)
    findings.sort()
    document = {
        "schema": "data_report/v1",
        "verdict": "FAIL" if any(finding.severity == "error" for finding in findings) else "PASS",
        "policy": {"path": repository_path(policy.path), "sha256": sha256_file(policy.path)},
        "base_model": base_model.name if base_model else None,
        "files": summaries,
        "counts": dict(sorted(collections.Counter(finding.code for finding in findings).items())),
        "findings": [asdict(finding) for finding in findings],
    }
    return DataReport(tuple(findings), document)


def write_report(path: Path, report: DataReport) -> None:
    """Write `data_report.json`."""
    write_json(path, report.document, "data_report")


def print_report(report: DataReport, console: Console, *, github: bool = False) -> None:
    """Findings, at most 50 a code, then a line a file, then the verdict."""
    shown: collections.Counter[str] = collections.Counter()
    for finding in report.findings:
        shown[finding.code] += 1
        if shown[finding.code] <= _SHOWN_PER_CODE:
            console.out(finding.annotation() if github else finding.text(), highlight=False)
    for code, count in shown.items():
        if count > _SHOWN_PER_CODE:
            console.out(f"{code}: {count - _SHOWN_PER_CODE} more")
    for file in report.document["files"]:
        tokens = file["row_tokens"]
        counted = f", {tokens['total']} tokens (mean {tokens['mean']}, longest {tokens['max']})" if tokens else ""
        tasks = ", ".join(f"{count} {tag}" for tag, count in file["tags"].items())
        console.out(f"{file['path']}: {file['rows']} rows{counted}{f'; {tasks}' if tasks else ''}")
    errors = sum(finding.severity == "error" for finding in report.findings)
    hints = len(report.findings) - errors
    verdict = "[bold green]PASS[/]" if report.passed else "[bold red]FAIL[/]"
    console.print(f"{verdict}: {errors} errors, {hints} hints")


def _read(path: Path, kind: Kind, findings: list[Finding]) -> _File:
    rows = []
    for item in read_rows(path):
        if isinstance(item, Finding):
            findings.append(item)
            continue
        problems = schema_findings(path, item, kind) or _message_findings(path, item) or _format_findings(path, item)
        findings.extend(problems)
        if not problems:
            rows.append(item)
    return _File(path, kind, rows)


def _message_findings(path: Path, row: Row) -> list[Finding]:
    roles = [message["role"] for message in row.value.get("messages", [])]
    if not roles:
        return []
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 == 0 and turns == ["user", "assistant"] * (len(turns) // 2):
        return []
    message = f"messages have the roles {', '.join(roles)}. Expected user and assistant in turns after an optional system."
    return [Finding(str(path), row.line, "E110", message, row_id=row.id)]


def _format_findings(path: Path, row: Row) -> list[Finding]:
    schema = row.value.get("expected_format")
    if not isinstance(schema, dict):
        return []
    import jsonschema

    try:
        jsonschema.Draft202012Validator.check_schema(schema)
    except jsonschema.SchemaError as error:
        return [Finding(str(path), row.line, "E110", f"`expected_format` is not a JSON Schema: {error.message}.", row_id=row.id)]
    import json

    try:
        value = json.loads(row.value["expected_output"])
    except ValueError:
        return [Finding(str(path), row.line, "E110", "`expected_output` is not JSON, but `expected_format` asks for it.", row_id=row.id)]
    return [
        Finding(str(path), row.line, "E110", f"`expected_output` breaks its own `expected_format`: {problem}", row_id=row.id)
        for problem in schema_problems(value, schema)[:1]
    ]


def _check_ids(file: _File, ids: dict[str, tuple[Path, int]], findings: list[Finding]) -> None:
    for row in file.rows:
        if row.id in ids:
            path, line = ids[row.id]
            findings.append(Finding(str(file.path), row.line, "E111", f"id `{row.id}` stands at {path}:{line} already.", row_id=row.id))
        elif row.id:
            ids[row.id] = (file.path, row.line)


def _check_duplicates(file: _File, limit: float, findings: list[Finding]) -> int:
    first: dict[bytes, int] = {}
    copies = 0
    for row in file.rows:
        key = _fingerprint(prompt_text(row.value)) + _fingerprint(answer(row.value))
        if key in first:
            copies += 1
            message = f"the row repeats the one on line {first[key]}."
            findings.append(Finding(str(file.path), row.line, "H205", message, "hint", row.id))
        else:
            first[key] = row.line
    if file.rows and copies / len(file.rows) >= limit:
        message = f"{copies} of {len(file.rows)} rows ({copies / len(file.rows):.1%}) repeat another one. Expected under {limit:.0%}."
        findings.append(Finding(str(file.path), 1, "E205", message))
    return copies


def _check_personal(file: _File, findings: list[Finding]) -> None:
    kinds = {"E301": "an e-mail address", "E302": "a phone number", "E303": "a resident registration number"}
    for row in file.rows:
        for field, text in (("prompt", prompt_text(row.value)), ("answer", answer(row.value))):
            for code, found in personal_data(text):
                message = f"the {field} contains {kinds[code]} (`{masked(found)}`, {len(found)} characters)."
                findings.append(Finding(str(file.path), row.line, code, message, row_id=row.id))


def _check_tokens(file: _File, base_model: BaseModel, limits: Any, max_length: int | None, findings: list[Finding]) -> dict[str, list[int]]:
    """Token counts of prompts, answers and rendered rows; findings where they leave the limits."""
    tokenizer = load_tokenizer(base_model)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    counts = {
        "prompt": count([prompt_text(row.value) for row in file.rows]),
        "answer": count([answer(row.value) for row in file.rows]),
        "row": count([tokenizer.apply_chat_template(training_messages(row.value), tokenize=False) for row in file.rows]),
    }
    special = re.compile("|".join(re.escape(token) for token in sorted(tokenizer.all_special_tokens, key=len, reverse=True)))
    for index, row in enumerate(file.rows):

        def found(code: str, message: str, row: Row = row) -> None:
            findings.append(Finding(str(file.path), row.line, code, message, row_id=row.id))

        low, high = limits.instruction_tokens
        if not low <= counts["prompt"][index] <= high:
            found("E201", f"the instruction has {counts['prompt'][index]} tokens. Expected {low}-{high}.")
        low, high = limits.output_tokens
        if not low <= counts["answer"][index] <= high:
            found("E202", f"the output has {counts['answer'][index]} tokens. Expected {low}-{high}.")
        if max_length is not None and counts["row"][index] > max_length:
            found("E203", f"the rendered row has {counts['row'][index]} tokens. Expected at most max_length {max_length}.")
        texts = [*(message["content"] for message in prompt_messages(row.value)), answer(row.value)]
        if match := next((m for text in texts if (m := special.search(text))), None):
            found("E204", f"the text contains the special token `{match.group()}`.")
    return counts


def _check_contamination(training: list[_File], evaluation: _File, findings: list[Finding]) -> None:
    asked = {_fingerprint(prompt_text(row.value)): (file.path, row.line) for file in reversed(training) for row in reversed(file.rows)}
    for row in evaluation.rows:
        if place := asked.get(_fingerprint(prompt_text(row.value))):
            message = f"the same prompt is trained on at {place[0]}:{place[1]}."
            findings.append(Finding(str(evaluation.path), row.line, "E401", message, row_id=row.id))


def _fingerprint(text: str) -> bytes:
    """Equal for texts that differ only in Unicode form, case and white space."""
    folded = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.blake2b(folded.encode(), digest_size=16).digest()


def _summary(file: _File, duplicates: int, tokens: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "path": repository_path(file.path),
        "kind": file.kind,
        "sha256": sha256_file(file.path),
        "bytes": file.path.stat().st_size,
        "rows": len(file.rows),
        "duplicates": duplicates,
        "languages": dict(collections.Counter(row.value["language"] for row in file.rows).most_common()),
        "tags": dict(collections.Counter((row.value.get("tags") or ["untagged"])[0] for row in file.rows).most_common()),
        "prompt_tokens": _spread(tokens.get("prompt")),
        "answer_tokens": _spread(tokens.get("answer")),
        "row_tokens": _spread(tokens.get("row")),
    }


def _spread(counts: list[int] | None) -> dict[str, Any] | None:
    if not counts:
        return None
    ranked = sorted(counts)
    return {
        "min": ranked[0],
        "mean": round(statistics.fmean(ranked), 1),
        "p50": ranked[math.ceil(0.5 * len(ranked)) - 1],
        "p95": ranked[math.ceil(0.95 * len(ranked)) - 1],
        "max": ranked[-1],
        "total": sum(ranked),
    }
