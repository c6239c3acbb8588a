"""Everything that can be said of a row by itself, for many rows at once and on every core.

A worker gets a block of a file and gives back findings and, as arrays, what the comparisons over the whole file need. Memory grows by
some 350 bytes a row, whatever the rows' size.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapterops.basemodels import find_base_model
from adapterops.basemodels.rendering import Renderer, load_renderer
from adapterops.data.language import is_json, language_of
from adapterops.data.normal import exact_form, fingerprint, loose_form
from adapterops.data.personal import KINDS, detect, masked
from adapterops.data.plugins import NameFinder, load_name_finder
from adapterops.data.policy import Limits
from adapterops.data.reader import Block, Entry, Kind, Row, no_rows, parse_row, read_blocks, schema_findings
from adapterops.data.rows import answer, prompt_messages, prompt_text
from adapterops.data.similar import Coverage, Signatures, join, no_signatures, shingle, signatures
from adapterops.diagnostics import Finding
from adapterops.errors import InfrastructureError
from adapterops.evaluate.refusal import is_refusal
from adapterops.schemas import data_schema_validator, did_you_mean

# Starting the workers takes a second or two; below this size one process is done sooner.
_PARALLEL_BYTES = 6_000_000
_EXACT_SAMPLE = 16  # rows a block on which the sum of parts is compared with the count of the whole
_MARGIN_TOKENS = 16

_WHAT = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "rrn": "a resident or foreigner registration number",
    "passport": "a passport number",
    "driver_licence": "a driver's licence number",
    "card": "a bank card number",
    "ip": "a public IP address",
    "name": "a person's name",
    "secret": "a key, token or private key",
}
# fmt: off
_COLUMNS: dict[str, Any] = {
    "line": np.uint32, "offset": np.uint64, "length": np.uint32, "prompt": np.uint64, "exact": np.uint64, "id": np.uint64,
    "source": np.uint64, "prompt_tokens": np.uint32, "answer_tokens": np.uint32, "row_tokens": np.uint32, "characters": np.uint32,
    "language": np.dtype("U3"), "refused": np.bool_, "changed": np.bool_,
}
# fmt: on


@dataclass(frozen=True)
class Job:
    """How the rows of one file are judged; picklable.

    Args:
        path: the file, as it is shown.
        kind: training or evaluation rows.
        limits: of the policy, for this file.
        base_model: name in the allow-list, to count tokens with; None leaves token and template checks out.
        max_length: longest rendered row in tokens.
        coverage: evaluation prompts to look for; None for none.
        coverage_share: from which share of a prompt on it is worth a hint.
        base_rows: sorted fingerprints of the base branch's rows; None where everything counts as changed.
    """

    path: Path
    kind: Kind
    limits: Limits
    base_model: str | None = None
    max_length: int | None = None
    coverage: Coverage | None = None
    coverage_share: float = 1.0
    base_rows: npt.NDArray[np.uint64] | None = None


@dataclass
class Scanned:
    """What a scan found.

    Args:
        findings: of single rows, with whether the row was changed.
        columns: one array a fact, one element a valid row.
        signatures: for the search for near duplicates.
        declared: rows by the language they claim.
        tasks: rows by first tag.
        covered: (row, evaluation prompt, share) pairs.
        texts: the rows themselves where they cannot be read again by offset.
        total: rows, broken ones included.
    """

    findings: list[tuple[bool, Finding]] = field(default_factory=list)
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    signatures: Signatures = field(default_factory=no_signatures)
    declared: collections.Counter[str] = field(default_factory=collections.Counter)
    tasks: collections.Counter[str] = field(default_factory=collections.Counter)
    covered: list[tuple[int, int, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    total: int = 0

    @property
    def rows(self) -> int:
        """Valid rows."""
        return len(self.columns["line"])


def scan(job: Job, advance: Any = lambda _: None) -> Scanned:
    """Scan a file; large ones on all cores.

    Args:
        job: what and how.
        advance: called with the number of bytes done, for progress.

    Raises:
        UsageError: the file cannot be opened, or the base model's tokenizer cannot be had.
        InfrastructureError: a worker was killed.
    """
    results = _parallel(job, advance) if job.path.exists() and job.path.stat().st_size > _PARALLEL_BYTES else _serial(job, advance)
    return _merge(job.path, results)


def row_text(job: Job, scanned: Scanned, row: int) -> Row:
    """A row again, by its number."""
    columns = scanned.columns
    if scanned.texts:
        text = scanned.texts[row]
    else:
        with job.path.open("rb") as file:
            file.seek(int(columns["offset"][row]))
            text = file.read(int(columns["length"][row])).decode("utf-8-sig")
    return Row(int(columns["line"][row]), json.loads(text))


def _serial(job: Job, advance: Any) -> Iterator[Scanned | Finding]:
    scanner = _Scanner(job)
    for block in read_blocks(job.path):
        yield block if isinstance(block, Finding) else scanner.block(block)
        if isinstance(block, Block):
            advance(len(block.data))


def _parallel(job: Job, advance: Any) -> Iterator[Scanned | Finding]:
    if job.base_model:  # convert the base model once, and fail here if it cannot be had
        load_renderer(find_base_model(job.base_model, "--base-model"))
    workers = max(1, len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(job,)) as pool:
        pending: collections.deque[tuple[int, concurrent.futures.Future[Scanned] | Finding]] = collections.deque()

        def finished() -> Scanned | Finding:
            size, item = pending.popleft()
            try:
                result = item if isinstance(item, Finding) else item.result()
            except BrokenProcessPool:
                raise InfrastructureError(f"{job.path}: a worker was ended by the system, most likely for memory.") from None
            advance(size)
            return result

        for block in read_blocks(job.path):
            pending.append((0, block) if isinstance(block, Finding) else (len(block.data), pool.submit(_work, block)))
            if len(pending) > workers * 3:
                yield finished()
        while pending:
            yield finished()


_scanner: _Scanner


def _start_worker(job: Job) -> None:
    global _scanner  # noqa: PLW0603  # a worker's state lives in its module
    _scanner = _Scanner(job)


def _work(block: Block) -> Scanned:
    return _scanner.block(block)


def _merge(path: Path, results: Iterator[Scanned | Finding]) -> Scanned:
    whole = Scanned()
    parts: list[Scanned] = []
    rows = 0
    for result in results:
        if isinstance(result, Finding):
            whole.findings.append((True, result))
            whole.total += result.code not in {"E102", "H101"}
            continue
        whole.findings += result.findings
        whole.covered += [(row + rows, prompt, share) for row, prompt, share in result.covered]
        whole.texts += result.texts
        whole.total += result.total
        whole.declared.update(result.declared)
        whole.tasks.update(result.tasks)
        rows += result.rows
        parts.append(result)
    if whole.total == 0:
        whole.findings.append((True, no_rows(path)))
    for name, kind in _COLUMNS.items():
        whole.columns[name] = np.concatenate([np.zeros(0, kind), *(part.columns[name] for part in parts)])
    whole.signatures = join([part.signatures for part in parts])
    return whole


class _Scanner:
    """The state of one worker."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._renderer = load_renderer(find_base_model(job.base_model, "--base-model")) if job.base_model else None
        self._kinds = frozenset(job.limits.personal_data)
        self._names: NameFinder | None = load_name_finder(job.limits.name_plugin) if job.limits.name_plugin else None
        self._special = self._renderer.special if self._renderer else ()
        self._first = {token[0] for token in self._special}  # nearly always `<` alone, which hardly any text has

    def block(self, block: Block) -> Scanned:
        """Judge the rows of a block."""
        result = Scanned()
        values: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
        rows: list[Row] = []
        loose: list[str] = []
        for entry in block.entries(self._job.path):
            result.total += 1
            if isinstance(entry, Finding):
                result.findings.append((True, entry))
                continue
            source = fingerprint(entry.text) if self._job.base_rows is not None else 0
            changed = self._is_changed(source)
            row = self._accepted(entry, changed, result)
            if row is None:
                continue
            rows.append(row)
            asked, said = prompt_text(row.value), answer(row.value)
            both = f"{asked}\n{said}"
            prompt_form = exact_form(asked)
            loose.append(loose_form(both))
            self._row_findings(row, asked, said, changed, result)
            result.declared[row.value["language"]] += 1
            result.tasks[(row.value.get("tags") or ["untagged"])[0]] += 1
            if not block.data:
                result.texts.append(entry.text)
            facts: dict[str, Any] = {
                "line": row.line,
                "offset": entry.offset,
                "length": entry.length,
                "prompt": fingerprint(prompt_form),
                "exact": fingerprint(prompt_form + "\0" + exact_form(said)),
                "id": fingerprint(row.id) if row.id else 0,
                "source": source,
                "characters": len(both),
                "language": language_of(asked if is_json(said) else f"{asked}\n{said}") or "",
                "refused": is_refusal(said),
                "changed": changed,
            }
            for name, value in facts.items():
                values[name].append(value)
        counts = self._tokens(rows, values["changed"], result)
        for name, kind in _COLUMNS.items():
            result.columns[name] = np.array(counts.get(name, values[name]), dtype=kind)
        shingles = shingle(loose)
        result.signatures = signatures(shingles)
        if self._job.coverage is not None:
            result.covered = self._job.coverage.of(shingles, self._job.coverage_share)
        return result

    def _is_changed(self, source: int) -> bool:
        known = self._job.base_rows
        if known is None:
            return True
        place = int(np.searchsorted(known, np.uint64(source)))
        return place == len(known) or int(known[place]) != source

    def _accepted(self, entry: Entry, changed: bool, result: Scanned) -> Row | None:
        """The row if it is valid by its schema."""
        path = self._job.path
        row = None
        for item in parse_row(path, entry.line, entry.text):
            if isinstance(item, Finding):
                result.findings.append((changed, item))
            else:
                row = item
        if row is None:
            return None
        problems = schema_findings(path, row, self._job.kind) or _message_findings(path, row) or _format_findings(path, row)
        result.findings += [(changed, problem) for problem in problems]
        return None if problems else row

    def _row_findings(self, row: Row, asked: str, said: str, changed: bool, result: Scanned) -> None:
        def found(code: str, message: str) -> None:
            result.findings.append((changed, Finding(str(self._job.path), row.line, code, message, row_id=row.id)))

        for place, text in (("prompt", asked), ("answer", said)):
            for item in detect(text, self._kinds):
                part = text[item.start : item.end]
                sure = " with a valid checksum" if item.kind == "rrn" and item.certain else ""
                found(KINDS[item.kind], f"the {place} contains {_WHAT[item.kind]}{sure} (`{masked(part)}`, {len(part)} characters).")
            if self._names:
                for start, end in self._names(text):
                    found(KINDS["name"], f"the {place} contains {_WHAT['name']} (`{masked(text[start:end])}`).")
        licence = row.value["license"]
        if licence not in self._job.limits.licenses:
            allowed = list(self._job.limits.licenses)
            found(
                "E501", f"licence `{licence}` is not on the policy's list.{did_you_mean(licence, allowed)} Allowed: {', '.join(allowed)}."
            )
        suspicious = any(first in asked or first in said for first in self._first)
        if token := suspicious and next((token for token in self._special if token in asked or token in said), None):
            found("E204", f"the text contains the special token `{token}`.")

    def _tokens(self, rows: list[Row], changed: list[bool], result: Scanned) -> dict[str, list[int]]:
        """Token counts of prompts, answers and rendered rows; findings where they leave the limits, or a row does not render."""
        if self._renderer is None or not rows:
            return {name: [0] * len(rows) for name in ("prompt_tokens", "answer_tokens", "row_tokens")}
        conversations = [[*prompt_messages(row.value), {"role": "assistant", "content": answer(row.value)}] for row in rows]
        flat = iter(self._renderer.count([message["content"] for messages in conversations for message in messages]))
        parts = [[next(flat) for _ in messages] for messages in conversations]
        prompts, answers = [sum(counts[:-1]) for counts in parts], [counts[-1] for counts in parts]
        shapes = [_shape(self._renderer, tuple(message["role"] for message in messages)) for messages in conversations]
        totals = [sum(counts) + shape.overhead for counts, shape in zip(parts, shapes, strict=True)]
        exact = self._exact_counts(conversations, shapes, totals)
        totals = [exact.get(index, total) for index, total in enumerate(totals)]
        limits, longest = self._job.limits, self._job.max_length
        for index, row in enumerate(rows):
            problems = []
            if problem := shapes[index].problem:
                problems.append(("E206", problem))
            low, high = limits.instruction_tokens
            if not low <= prompts[index] <= high:
                problems.append(("E201", f"the instruction has {prompts[index]} tokens. Expected {low}-{high}."))
            low, high = limits.output_tokens
            if not low <= answers[index] <= high:
                problems.append(("E202", f"the output has {answers[index]} tokens. Expected {low}-{high}."))
            if longest is not None and totals[index] > longest:
                problems.append(("E203", f"the rendered row has {totals[index]} tokens. Expected at most max_length {longest}."))
            result.findings += [
                (changed[index], Finding(str(self._job.path), row.line, code, message, row_id=row.id)) for code, message in problems
            ]
        return {"prompt_tokens": prompts, "answer_tokens": answers, "row_tokens": totals}

    def _exact_counts(self, conversations: list[list[dict[str, str]]], shapes: list[_Shape], totals: list[int]) -> dict[int, int]:
        """Counts of rendered rows, for those near the limit and for a sample; for all of them if the sample shows a difference.

        A template that puts a special token on either side of each message makes the whole the sum of its parts, and counting
        the parts alone halves the work.
        """
        assert self._renderer is not None
        renderer, longest = self._renderer, self._job.max_length
        usable = [index for index, shape in enumerate(shapes) if shape.problem is None]
        sample = usable[:: max(1, len(usable) // _EXACT_SAMPLE)]
        near = [index for index in usable if longest is not None and 0 < abs(totals[index] - longest) <= max(_MARGIN_TOKENS, longest // 20)]

        def counted(indices: list[int]) -> dict[int, int]:
            return dict(zip(indices, renderer.count([renderer.render(conversations[index]) for index in indices]), strict=True))

        exact = counted(sorted({*sample, *near}))
        return counted(usable) if any(totals[index] != exact[index] for index in sample) else exact


@dataclass(frozen=True)
class _Shape:
    """A sequence of roles under a chat template: the tokens that the template adds, and what is wrong with it."""

    overhead: int
    problem: str | None


@functools.cache
def _shape(renderer: Renderer, roles: tuple[str, ...]) -> _Shape:
    """Whether a sequence of roles renders with one BOS in front and every answer closed; templates do not look at the content."""
    messages = [{"role": role, "content": "x"} for role in roles]
    try:
        text = renderer.render(messages)
        prompt = renderer.render(messages[:-1], add_generation_prompt=True)
    except ValueError as error:
        return _Shape(0, f"the chat template refuses the roles {', '.join(roles)}: {error}.")
    overhead, single = renderer.count([text, "x"])
    problem = None
    if renderer.bos and not text.startswith(renderer.bos):
        problem = f"the rendered row does not begin with `{renderer.bos}`."
    elif renderer.bos and text.startswith(renderer.bos * 2):
        problem = f"the rendered row begins with `{renderer.bos}` twice."
    elif not text.startswith(prompt) or renderer.end_of_turn not in text[len(prompt) :]:
        problem = f"the rendered answer does not end in the trained end-of-turn token `{renderer.end_of_turn}`."
    return _Shape(overhead - single * len(roles), problem)


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

    def finding(message: str) -> list[Finding]:
        return [Finding(str(path), row.line, "E110", message, row_id=row.id)]

    try:
        validator = data_schema_validator(schema)
    except ValueError as error:
        return finding(f"`expected_format` is not a JSON Schema: {error}.")
    try:
        value = json.loads(row.value["expected_output"])
    except (ValueError, RecursionError):
        return finding("`expected_output` is not JSON, but `expected_format` asks for it.")
    problem = next(validator.iter_errors(value), None)
    return finding(f"`expected_output` breaks its own `expected_format`: {problem.message[:200]}.") if problem else []
