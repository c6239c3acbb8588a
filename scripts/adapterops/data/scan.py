"""Everything that can be said of a row by itself, for many rows at once and on every core.

A worker gets a block of a file and gives back findings and, as arrays, what the comparisons over
the whole file need. Memory grows by some 350 bytes a row, whatever the rows' size.
"""

from __future__ import annotations

import collections
import concurrent.futures
import json
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapterops.basemodels.rendering import load_renderer
from adapterops.data.answer_checks import broken_checks
from adapterops.data.formats import FormatChecker, SlowFormatError, format_problem
from adapterops.data.language import is_json, language_of
from adapterops.data.normal import exact_form, fingerprint, loose_form
from adapterops.data.personal import KINDS, detect, masked
from adapterops.data.plain_answer import plain
from adapterops.data.reader import (
    HIDE_NO_ROW,
    Block,
    Entry,
    Kind,
    Row,
    file_size,
    is_evaluation,
    is_training,
    no_rows,
    parse_row,
    read_blocks,
    schema_findings,
)
from adapterops.data.refusal_rules import rules_say
from adapterops.data.rows import DataRow, JsonObject, answer, has_texts, prompt_text
from adapterops.data.similar import Coverage, Signatures, join, no_signatures, shingle, signatures
from adapterops.data.tokens import TokenCounter
from adapterops.diagnostics import Finding
from adapterops.errors import InfrastructureError
from adapterops.schemas import did_you_mean
from adapterops.shapes.eval_row import EvalRow
from adapterops.shapes.training_row import TrainingRow
from adapterops.specs.base_model import find_base_model
from adapterops.specs.policy import Limits

# Starting the workers takes a second or two; below this size one process is done sooner.
_PARALLEL_BYTES = 6_000_000
KEPT_PER_CODE = 1000  # findings of one code that are kept with their text; all are counted

_WHAT = {
    "email": "an e-mail address",
    "phone": "a phone number",
    "rrn": "a resident or foreigner registration number",
    "passport": "a passport number",
    "driver_licence": "a driver's licence number",
    "card": "a bank card number",
    "ip": "a public IP address",
    "secret": "a key, token or private key",
}
# fmt: off
_COLUMNS: dict[str, npt.DTypeLike] = {
    "line": np.uint32, "offset": np.uint64, "length": np.uint32, "prompt": np.uint64,
    "exact": np.uint64, "id": np.uint64,
    "source": np.uint64, "prompt_tokens": np.uint32, "answer_tokens": np.uint32,
    "row_tokens": np.uint32, "characters": np.uint32,
    "language": np.dtype("U3"), "refused": np.bool_, "changed": np.bool_,
}
# fmt: on
_Columns = dict[str, Sequence[Any]]  # by name, one element a valid row
_OF_A_ROW = (
    "line",
    "offset",
    "length",
    "prompt",
    "exact",
    "id",
    "source",
    "characters",
    "language",
    "refused",
    "changed",
)


@dataclass(frozen=True)
class Job:
    """How the rows of one file are judged; picklable.

    Args:
        path: the file, as it is shown.
        kind: training or evaluation rows.
        limits: of the policy, for this file.
        base_model: name in the allow-list, to count tokens with; None leaves token and template
            checks out.
        max_length: longest rendered row in tokens.
        count_every: one row in so many is counted in tokens, and every one that could break a
            limit; 1 counts all.
        coverage: evaluation prompts to look for; None for none.
        coverage_share: from which share of a prompt on it is worth a hint.
        base_rows: sorted fingerprints of the base branch's rows; None where everything counts as
            changed.
    """

    path: Path
    kind: Kind
    limits: Limits
    base_model: str | None = None
    max_length: int | None = None
    count_every: int = 1
    coverage: Coverage | None = None
    coverage_share: float = 1.0
    base_rows: npt.NDArray[np.uint64] | None = None


@dataclass
class Scanned:
    """What a scan found.

    Args:
        findings: of single rows by (code, whether the row was changed), the first thousand of each.
        counts: all of them.
        columns: one array a fact, one element a valid row.
        signatures: for the search for near duplicates.
        declared: rows by the language they claim.
        tasks: rows by first tag.
        covered: (row, evaluation prompt, share) pairs.
        texts: the rows themselves where they cannot be read again by offset.
        total: rows, broken ones included.
        ready_s: when the worker had started and loaded the tokenizer, by the system's monotonic
            clock.
    """

    findings: dict[tuple[str, bool], list[Finding]] = field(default_factory=dict)
    counts: collections.Counter[tuple[str, bool]] = field(default_factory=collections.Counter)
    columns: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    signatures: Signatures = field(default_factory=no_signatures)
    declared: collections.Counter[str] = field(default_factory=collections.Counter)
    tasks: collections.Counter[str] = field(default_factory=collections.Counter)
    covered: list[tuple[int, int, float]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    total: int = 0
    ready_s: float = 0.0

    @property
    def rows(self) -> int:
        """Valid rows."""
        return len(self.columns["line"])

    def add(self, changed: bool, finding: Finding) -> None:
        """Count a finding, and keep it if it is one of the first thousand of its kind."""
        self.take(
            {(finding.code, changed): [finding]}, collections.Counter({(finding.code, changed): 1})
        )

    def take(
        self,
        findings: dict[tuple[str, bool], list[Finding]],
        counts: collections.Counter[tuple[str, bool]],
    ) -> None:
        """Add those of another scan."""
        self.counts.update(counts)
        for kind, more in findings.items():
            kept = self.findings.setdefault(kind, [])
            kept += more[: KEPT_PER_CODE - len(kept)]


def scan(job: Job, advance: Any = lambda _: None) -> Scanned:
    """Scan a file; large ones on all cores.

    Args:
        job: what and how.
        advance: called with the number of bytes done, for progress.

    Raises:
        UsageError: the file cannot be opened, or the base model's tokenizer cannot be had.
        InfrastructureError: a worker was killed.
    """
    results = (
        _parallel(job, advance) if file_size(job.path) > _PARALLEL_BYTES else _serial(job, advance)
    )
    return _merge(job.path, job.base_rows, results)


def sampled(exact: Any, every: int) -> Any:
    """Whether a row, by its `exact` fingerprint, belongs to the sample of one in `every` whose
    tokens are counted; also of arrays.
    """
    return exact % np.uint64(every) == 0 if isinstance(exact, np.ndarray) else exact % every == 0


def row_text(job: Job, scanned: Scanned, row: int) -> Row[DataRow]:
    """A row again, by its number."""
    columns = scanned.columns
    if scanned.texts:
        text = scanned.texts[row]
    else:
        with job.path.open("rb") as file:
            file.seek(int(columns["offset"][row]))
            text = file.read(int(columns["length"][row])).decode("utf-8-sig")
    value: DataRow = json.loads(text)
    return Row(int(columns["line"][row]), value)


def _serial(job: Job, advance: Any) -> Iterator[Scanned | Finding]:
    scanner = _Scanner(job)
    for block in read_blocks(job.path):
        yield block if isinstance(block, Finding) else scanner.block(block)
        if isinstance(block, Block):
            advance(len(block.data))


def _parallel(job: Job, advance: Any) -> Iterator[Scanned | Finding]:
    workers = max(1, len(os.sched_getaffinity(0)))
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(job,)
    ) as pool:
        pending: collections.deque[tuple[int, concurrent.futures.Future[Scanned] | Finding]] = (
            collections.deque()
        )

        def finished() -> Scanned | Finding:
            size, item = pending.popleft()
            try:
                result = item if isinstance(item, Finding) else item.result()
            except BrokenProcessPool:
                raise InfrastructureError(
                    f"{job.path}: a worker was ended by the system, most likely for memory."
                ) from None
            advance(size)
            return result

        for block in read_blocks(job.path):
            pending.append(
                (0, block)
                if isinstance(block, Finding)
                else (len(block.data), pool.submit(_work, block))
            )
            if len(pending) > workers * 3:
                yield finished()
        while pending:
            yield finished()


_scanner: _Scanner


def _start_worker(job: Job) -> None:
    global _scanner  # a worker's state lives in its module  # noqa: PLW0603
    _scanner = _Scanner(job)


def _work(block: Block) -> Scanned:
    return _scanner.block(block)


def _merge(
    path: Path, base_rows: npt.NDArray[np.uint64] | None, results: Iterator[Scanned | Finding]
) -> Scanned:
    whole = Scanned()
    parts: list[Scanned] = []
    rows = 0
    for result in results:
        if isinstance(result, Finding):
            whole.add(True, result)
            whole.total += result.code not in HIDE_NO_ROW
            continue
        whole.take(result.findings, result.counts)
        whole.covered += [(row + rows, prompt, share) for row, prompt, share in result.covered]
        whole.texts += result.texts
        whole.total += result.total
        whole.declared.update(result.declared)
        whole.tasks.update(result.tasks)
        rows += result.rows
        whole.ready_s = max(whole.ready_s, result.ready_s)
        parts.append(result)
    if whole.total == 0:
        whole.add(True, no_rows(path))
    for name, kind in _COLUMNS.items():
        whole.columns[name] = np.concatenate(
            [np.zeros(0, kind), *(part.columns[name] for part in parts)]
        )
    whole.signatures = join([part.signatures for part in parts])
    if base_rows is not None:
        _mark_new_copies(whole.columns, base_rows)
    return whole


def _mark_new_copies(
    columns: dict[str, npt.NDArray[Any]], base_rows: npt.NDArray[np.uint64]
) -> None:
    """A row that stands more often than it did is changed, from the first time too many on."""
    order = np.argsort(columns["source"], kind="stable")
    ranked = columns["source"][order]
    first = np.searchsorted(ranked, ranked)
    before = np.searchsorted(base_rows, ranked, side="right") - np.searchsorted(base_rows, ranked)
    columns["changed"][order] |= np.arange(len(ranked)) - first >= before


class _Scanner:
    """The state of one worker."""

    def __init__(self, job: Job) -> None:
        self._job = job
        renderer = (
            load_renderer(find_base_model(job.base_model, "--base-model"))
            if job.base_model
            else None
        )
        self._counter = (
            TokenCounter(renderer, job.limits, job.max_length, skip=job.count_every > 1)
            if renderer
            else None
        )
        self._ready_s = time.monotonic()
        self._kinds = frozenset(job.limits.personal_data)
        self._formats = FormatChecker()
        self._special = renderer.special if renderer else ()
        # Nearly always `<` alone, which hardly any text has.
        self._first = {token[0] for token in self._special}

    def block(self, block: Block) -> Scanned:
        """Judge the rows of a block."""
        result = Scanned(ready_s=self._ready_s)
        facts: list[tuple[Any, ...]] = []  # of `_OF_A_ROW`
        rows: list[Row[DataRow]] = []
        loose: list[str] = []
        for entry in block.entries(self._job.path):
            result.total += 1
            if isinstance(entry, Finding):
                result.add(True, entry)
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
            facts.append((
                row.line,
                entry.offset,
                entry.length,
                fingerprint(prompt_form),
                fingerprint(prompt_form + "\0" + exact_form(said)),
                fingerprint(row.id) if row.id else 0,
                source,
                len(both),
                language_of(asked if is_json(said) else both) or "",
                # the rules alone: drift compares shares, and rows come by the thousand
                rules_say(plain(said)) == "refused",
                changed,
            ))  # fmt: skip
        columns = zip(*facts, strict=True) if facts else [()] * len(_OF_A_ROW)
        values: _Columns = dict(zip(_OF_A_ROW, columns, strict=True))
        self._count(rows, values, result)
        for name, kind in _COLUMNS.items():
            result.columns[name] = np.array(values[name], dtype=kind)
        shingles = shingle(loose)
        result.signatures = signatures(shingles)
        if self._job.coverage is not None:
            result.covered = self._job.coverage.of(shingles, self._job.coverage_share)
        return result

    def _count(self, rows: list[Row[DataRow]], values: _Columns, result: Scanned) -> None:
        nothing = [0] * len(rows)
        columns = dict.fromkeys(("prompt_tokens", "answer_tokens", "row_tokens"), nothing)
        if self._counter and rows:
            counted = self._counter.of(
                rows, [sampled(exact, self._job.count_every) for exact in values["exact"]]
            )
            columns = {
                "prompt_tokens": counted.prompt,
                "answer_tokens": counted.answer,
                "row_tokens": counted.row,
            }
            for index, code, message in counted.problems:
                result.add(
                    values["changed"][index],
                    Finding(
                        str(self._job.path), rows[index].line, code, message, row_id=rows[index].id
                    ),
                )
        values.update(columns)

    def _is_changed(self, source: int) -> bool:
        known = self._job.base_rows
        if known is None:
            return True
        place = int(np.searchsorted(known, np.uint64(source)))
        return place == len(known) or int(known[place]) != source

    def _accepted(self, entry: Entry, changed: bool, result: Scanned) -> Row[DataRow] | None:
        """The row if it is valid by its schema."""
        path = self._job.path
        row = None
        for item in parse_row(path, entry.line, entry.text):
            if isinstance(item, Finding):
                result.add(changed, item)
            else:
                row = item
        if row is None:
            return None
        if self._job.kind == "training" and is_training(row):
            problems = _message_findings(path, row)
            valid: Row[DataRow] | None = row
        elif self._job.kind == "eval" and is_evaluation(row):
            problems = _format_findings(path, row, self._formats) or _check_findings(path, row)
            valid = row
        else:
            problems, valid = schema_findings(path, row, self._job.kind), None
        for problem in problems:
            result.add(changed, problem)
        # So that a curator need not come back for what the schema hid.
        if problems and has_texts(row.value):
            self._personal_data(row, prompt_text(row.value), answer(row.value), changed, result)
        return None if problems else valid

    def _row_findings(
        self, row: Row[DataRow], asked: str, said: str, changed: bool, result: Scanned
    ) -> None:
        self._personal_data(row, asked, said, changed, result)

        def found(code: str, message: str) -> None:
            result.add(
                changed, Finding(str(self._job.path), row.line, code, message, row_id=row.id)
            )

        licence = row.value["license"]
        if licence not in self._job.limits.licenses:
            allowed = list(self._job.limits.licenses)
            found(
                "E501",
                f"licence `{licence}` is not on the policy's list.{did_you_mean(licence, allowed)}"
                f" Allowed: {', '.join(allowed)}.",
            )
        suspicious = any(first in asked or first in said for first in self._first)
        if token := suspicious and next(
            (token for token in self._special if token in asked or token in said), None
        ):
            found("E204", f"the text contains the special token `{token}`.")

    def _personal_data(
        self, row: Row[JsonObject], asked: str, said: str, changed: bool, result: Scanned
    ) -> None:
        def found(kind: str, place: str, text: str, more: str = "") -> None:
            message = (
                f"the {place} contains {_WHAT[kind]}{more} (`{masked(text)}`, {len(text)}"
                " characters)."
            )
            result.add(
                changed, Finding(str(self._job.path), row.line, KINDS[kind], message, row_id=row.id)
            )

        for place, text in (("prompt", asked), ("answer", said)):
            for item in detect(text, self._kinds):
                found(
                    item.kind,
                    place,
                    text[item.start : item.end],
                    " with a valid checksum" if item.kind == "rrn" and item.certain else "",
                )


def _message_findings(path: Path, row: Row[TrainingRow]) -> list[Finding]:
    roles = [message["role"] for message in row.value.get("messages", [])]
    if not roles:
        return []
    turns = roles[1:] if roles[0] == "system" else roles
    if len(turns) % 2 == 0 and turns == ["user", "assistant"] * (len(turns) // 2):
        return []
    message = (
        f"messages have the roles {', '.join(roles)}. Expected user and assistant in turns after an"
        " optional system."
    )
    return [Finding(str(path), row.line, "E110", message, row_id=row.id)]


def _format_findings(path: Path, row: Row[EvalRow], formats: FormatChecker) -> list[Finding]:
    schema = row.value.get("expected_format")
    if not isinstance(schema, dict):
        return []

    def finding(message: str) -> list[Finding]:
        return [Finding(str(path), row.line, "E110", message, row_id=row.id)]

    if problem := format_problem(schema):
        return finding(f"`expected_format` is not applied: {problem}.")
    try:
        found, why = formats.check(schema, row.value["expected_output"])
    except SlowFormatError as error:
        return finding(f"`expected_format` on `expected_output`: {error}. Simplify the schema.")
    if found == "schema":
        return finding(f"`expected_format` is not a JSON Schema: {why}.")
    if found == "value" and why == "not JSON":
        return finding("`expected_output` is not JSON, but `expected_format` asks for it.")
    return (
        finding(f"`expected_output` breaks its own `expected_format`: {why}.")
        if found == "value"
        else []
    )


def _check_findings(path: Path, row: Row[EvalRow]) -> list[Finding]:
    """A row whose own answer breaks its checks would fail every model; one that is refused rightly
    has no form to keep.
    """
    checks = row.value.get("checks")
    if not checks:
        return []
    if row.value.get("should_refuse"):
        broken = [
            "`checks` are of answers, but `should_refuse` asks for none. Leave one of the two out"
        ]
    else:
        broken = [
            f"`expected_output` breaks its own check: {broken}"
            for broken in broken_checks(checks, row.value["expected_output"])
        ]
    return [
        Finding(str(path), row.line, "E110", f"{problem[:300]}.", row_id=row.id)
        for problem in broken[:1]
    ]
