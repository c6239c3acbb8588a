"""Judge training and evaluation rows by the policy; the result is a report, not a changed file."""

from __future__ import annotations

import bisect
import collections
import itertools
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from adapterops.basemodels.rendering import load_renderer
from adapterops.data.distribution_drift import Base, drift, drift_findings
from adapterops.data.normal import loose_form
from adapterops.data.personal import detect, mask
from adapterops.data.reader import Kind, Row, file_size
from adapterops.data.rows import DataRow, answer, prompt_text
from adapterops.data.scan import KEPT_PER_CODE, Job, Scanned, row_text, sampled, scan
from adapterops.data.similar import Clusters, Coverage, gram_set, jaccard, join, near_duplicates
from adapterops.diagnostics import Finding
from adapterops.documents import sha256_file, write_json
from adapterops.errors import UsageError
from adapterops.schemas import repository_path
from adapterops.shapes.data_report import DataReport, Drift, Duplicates, Spread
from adapterops.shapes.data_report import File as FileDocument
from adapterops.shapes.data_report import Finding as FindingDocument
from adapterops.specs.base_model import BaseModel
from adapterops.specs.policy import Policy

# Up to this size every row is counted in tokens; above it one in sixteen, and those that could
# break a limit.
_COUNT_ALL_BYTES = 25_000_000
_COUNT_EVERY = 16
_EXCERPT = 70
# Judged over the whole corpus, whoever wrote the rows.
_CORPUS_CODES = {"E102", "E108", "E111", "E112", "E205", "E401", "E601", "H701"}


@dataclass(frozen=True)
class Validation:
    """What validation found.

    Args:
        findings: changed rows first, then by file and line.
        changed: how many of them, from the first on, are on changed rows.
        document: the report.
    """

    findings: tuple[Finding, ...]
    changed: int
    document: DataReport

    @property
    def passed(self) -> bool:
        """True without errors; hints do not block."""
        return self.document["verdict"] == "PASS"


@dataclass(frozen=True)
class _File:
    job: Job
    scanned: Scanned

    def row(self, number: int) -> Row[DataRow]:
        return row_text(self.job, self.scanned, number)

    def line(self, number: int) -> int:
        return int(self.scanned.columns["line"][number])

    def place(self, number: int) -> str:
        return f"{self.job.path}:{self.line(number)}"


class _Findings:
    """Collects findings: all are counted, a thousand of each code are kept."""

    def __init__(self, *, changed_only: bool) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.errors = 0
        self._changed_only = changed_only
        self._kept: dict[tuple[str, bool], list[Finding]] = collections.defaultdict(list)

    def add(self, changed: bool, finding: Finding) -> None:
        """Count a finding."""
        self.add_worded(changed, finding.code, lambda: finding)

    def add_worded(self, changed: bool, code: str, word: Callable[[], Finding]) -> None:
        """Count a finding that is costly to word, and only worded if it is kept."""
        if not self._counts(code, changed=changed):
            return
        self._count(code, 1)
        kept = self._kept[code, changed]
        if len(kept) < KEPT_PER_CODE:
            kept.append(word())

    def take(self, scanned: Scanned) -> None:
        """Add what a scan found."""
        for (code, changed), count in scanned.counts.items():
            if self._counts(code, changed=changed):
                self._count(code, count)
                kept = self._kept[code, changed]
                kept += scanned.findings[code, changed][: KEPT_PER_CODE - len(kept)]

    def _counts(self, code: str, *, changed: bool) -> bool:
        return changed or not self._changed_only or code in _CORPUS_CODES

    def _count(self, code: str, count: int) -> None:
        self.counts[code] += count
        self.errors += count * code.startswith("E")

    def ranked(self) -> tuple[tuple[Finding, ...], int]:
        """Every kept finding, those on changed rows first, and their number."""
        sides: dict[bool, list[Finding]] = {True: [], False: []}
        for (_, changed), findings in self._kept.items():
            sides[changed] += findings
        return (*sorted(sides[True]), *sorted(sides[False])), len(sides[True])


def validate(
    inputs: list[Path],
    eval_data: Path | Sequence[Path] | None,
    *,
    base_model: BaseModel | None,
    policy: Policy,
    max_length: int | None = None,
    base: Base | None = None,
    changed_only: bool = False,
    console: Console | None = None,
) -> Validation:
    """Check training files and, with them, the evaluation rows that judge what they train.

    Args:
        inputs: training files.
        eval_data: file or files of evaluation rows; none leaves the contamination check out.
        base_model: counts tokens and renders; None leaves these checks out.
        policy: limits.
        max_length: longest rendered row in tokens, from the recipe.
        base: the files as they were; None takes every row as changed.
        changed_only: findings on single rows that were not changed do not count.
        console: where progress is shown.

    Raises:
        UsageError: a file cannot be opened.
        InfrastructureError: a worker process was killed.
    """
    asked = [eval_data] if isinstance(eval_data, Path) else list(eval_data or [])
    _refuse_twice([*inputs, *asked])
    if base_model:  # the first use on a machine converts it, which is no part of the checks
        load_renderer(base_model)
    started = time.monotonic()
    found = _Findings(changed_only=changed_only)
    with _progress([*inputs, *asked], console) as advance:
        name = base_model.name if base_model else None
        reader = _Reader(policy, name, max_length, base, advance)
        evaluation = [reader.read(path, "eval") for path in asked]
        coverage = _coverage(evaluation) if evaluation else None
        training = [reader.read(path, "training", coverage) for path in inputs]
    described = _check_together(training, evaluation, base, found)
    findings, changed = found.ranked()
    seconds = max(time.monotonic() - started - reader.startup_s, 1e-6)
    rows = sum(file.scanned.total for file in (*training, *evaluation))
    document: DataReport = {
        "schema": "data_report/v2",
        "verdict": "FAIL" if found.errors else "PASS",
        "policy": {"path": repository_path(policy.path), "sha256": sha256_file(policy.path)},
        "base_model": name,
        "base": {"revision": base.revision, "changed_only": changed_only} if base else None,
        "files": described,
        "counts": dict(sorted(found.counts.items())),
        "findings": [_described(item, place < changed) for place, item in enumerate(findings)],
        "timing": {
            "startup_s": round(reader.startup_s, 3),
            "checks_s": round(seconds, 3),
            "rows_per_second": round(rows / seconds),
        },
    }
    return Validation(findings, changed, document)


@dataclass
class _Reader:
    """Scans files under the same settings.

    Args:
        startup_s: what starting workers and loading tokenizers took, which is no part of a check.
    """

    policy: Policy
    base_model: str | None
    max_length: int | None
    base: Base | None
    advance: Callable[[int], None]
    startup_s: float = 0.0

    def read(self, path: Path, kind: Kind, coverage: Coverage | None = None) -> _File:
        limits = self.policy.limits_for(path)
        path = _shown(path)
        job = Job(
            path=path,
            kind=kind,
            limits=limits,
            base_model=self.base_model,
            max_length=self.max_length,
            count_every=_COUNT_EVERY if file_size(path) > _COUNT_ALL_BYTES else 1,
            coverage=coverage,
            coverage_share=limits.contamination_hint,
            base_rows=self.base.rows(path) if self.base else None,
        )
        began = time.monotonic()
        file = _File(job, scan(job, self.advance))
        self.startup_s += max(0.0, file.scanned.ready_s - began)
        return file


def _check_together(
    training: list[_File], evaluation: list[_File], base: Base | None, found: _Findings
) -> list[FileDocument]:
    """What no row shows by itself: languages, ids, copies, contamination, drift; and each file."""
    files = [*training, *evaluation]
    for file in files:
        found.take(file.scanned)
        _check_language(file, found)
    _check_ids(files, found)
    copies = [*_check_duplicates(training, found), *_check_duplicates(evaluation, found)]
    if evaluation:
        _check_contamination(training, evaluation, found)
    drifts = [drift(base, file.job, file.scanned) if base else None for file in files]
    for file, change in zip(files, drifts, strict=True):
        for finding in drift_findings(file.job.path, change):
            found.add(True, finding)
    return [_summary(*parts) for parts in zip(files, copies, drifts, strict=True)]


def _described(finding: Finding, changed: bool) -> FindingDocument:
    return {
        "file": finding.file,
        "line": finding.line,
        "code": finding.code,
        "message": finding.message,
        "severity": finding.severity,
        "row_id": finding.row_id,
        "changed": changed,
    }


def write_report(path: Path, report: Validation) -> None:
    """Write `data_report.json`."""
    write_json(path, report.document, DataReport)


def _refuse_twice(paths: list[Path]) -> None:
    known: dict[str, Path] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in known:
            also = "" if known[real] == path else f", also as {known[real]}"
            raise UsageError(f"{path} is given twice{also}. Expected each file once.")
        known[real] = path


class _progress:  # used as a function  # noqa: N801
    """A bar over the bytes of the files, for files that take longer than a blink."""

    def __init__(self, paths: list[Path], console: Console | None) -> None:
        size = sum(map(file_size, paths))
        columns = (TextColumn("checking"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        shown = console is not None and console.is_terminal and size > 3_000_000
        self._bar = Progress(*columns, console=console, transient=True, disable=not shown)
        self._task = self._bar.add_task("", total=size)

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return lambda count: self._bar.advance(self._task, count)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def _coverage(evaluation: list[_File]) -> Coverage:
    return Coverage(
        [
            loose_form(prompt_text(file.row(number).value))
            for file in evaluation
            for number in range(file.scanned.rows)
        ]
    )


def _check_language(file: _File, found: _Findings) -> None:
    languages = file.scanned.columns["language"]
    prose = languages != ""
    if not prose.any():
        return
    target = _target_language(file)
    others = np.flatnonzero(prose & (languages != target))
    share = 1 - len(others) / int(prose.sum())
    for number in others.tolist():
        _add_row(found, file, number, "H601", partial(_language_message, file, number, target))
    if share < file.job.limits.language_share:
        message = (
            f"{share:.1%} of {int(prose.sum())} rows with prose are in `{target}`. Expected at"
            f" least {file.job.limits.language_share:.0%}; H601 names the others."
        )
        found.add(True, Finding(str(file.job.path), 1, "E601", message))


def _language_message(file: _File, number: int, target: str) -> str:
    language = file.scanned.columns["language"][number]
    return f"the text is in `{language}`. Expected `{target}`."


def _target_language(file: _File) -> str:
    declared = file.scanned.declared.most_common(1)
    return file.job.limits.language or (declared[0][0] if declared else "en")


def _check_ids(files: list[_File], found: _Findings) -> None:
    corpus = _Corpus(files)
    first: dict[int, int] = {}
    for number, place in _repeated(corpus.column("id"), skip=0):
        one, other = corpus.locate(first.setdefault(number, place)), corpus.locate(place)
        if one != other:
            _add_row(found, *other, "E111", partial(_id_message, other, one))


def _id_message(place: _Place, former: _Place) -> str:
    return f"id `{place[0].row(place[1]).id}` stands at {former[0].place(former[1])} already."


def _repeated(values: npt.NDArray[np.uint64], skip: int | None = None) -> Iterator[tuple[int, int]]:
    """(value, place) of every value that stands more than once, each value's places in order."""
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    same = ranked[1:] == ranked[:-1]
    repeated = (
        np.concatenate([same, [False]]) | np.concatenate([[False], same])
        if len(values)
        else np.zeros(0, bool)
    )
    for value, place in zip(ranked[repeated].tolist(), order[repeated].tolist(), strict=True):
        if value != skip:
            yield value, place


_Place = tuple[_File, int]  # a row by its number in a file


class _Corpus:
    """The rows of several files under one number each, in the order of the files."""

    def __init__(self, files: list[_File]) -> None:
        self.files = files
        self.starts = [0, *itertools.accumulate(file.scanned.rows for file in files)]

    def column(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([file.scanned.columns[name] for file in self.files])

    def file_of(self, row: int) -> int:
        index = bisect.bisect_right(self.starts, row) - 1
        while self.files[index].scanned.rows == 0:  # an empty file begins where the next one does
            index += 1
        return index

    def locate(self, row: int) -> _Place:
        index = self.file_of(row)
        return self.files[index], row - self.starts[index]

    def named(self, row: int) -> str:
        file, number = self.locate(row)
        return f"line {file.line(number)}" if len(self.files) == 1 else file.place(number)

    def text(self, row: int) -> str:
        file, number = self.locate(row)
        value = file.row(number).value
        return loose_form(f"{prompt_text(value)}\n{answer(value)}")


def _check_duplicates(files: list[_File], found: _Findings) -> list[Duplicates]:
    """Exact copies, near duplicates and contradictions among the rows; counts for each file."""
    counts: list[Duplicates] = [{"exact": 0, "near": 0, "conflicts": 0} for _ in files]
    if not files:
        return counts
    corpus, clusters = _Corpus(files), Clusters()
    changed = corpus.column("changed")

    def add(row: int, other: int, code: str, message: Callable[[], str]) -> Duplicates:
        touched = bool(changed[row] or changed[other])
        _add_row(found, *corpus.locate(row), code, message, changed=touched)
        return counts[corpus.file_of(row)]

    exact = corpus.column("exact")
    for row, original in _copies(exact):
        clusters.join(original, row)
        add(row, original, "H205", partial(_copy_message, corpus, original))["exact"] += 1
    threshold = min(file.job.limits.near_duplicate for file in files)
    signatures = join([file.scanned.signatures for file in files])
    near = near_duplicates(signatures, _last_used(corpus.text), clusters, threshold)
    for row, (original, similarity) in sorted(near.items()):
        message = partial(_near_message, corpus, original, similarity)
        add(row, original, "H206", message)["near"] += 1
    for row, original in _copies(corpus.column("prompt")):
        if exact[original] != exact[row] and clusters.root(original) != clusters.root(row):
            message = partial(_conflict_message, corpus, original)
            add(row, original, "H207", message)["conflicts"] += 1
    _check_rates(corpus, clusters.copies(), counts, found)
    return counts


def _copies(values: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """(place, first place) of every value that stood before."""
    first: dict[int, int] = {}
    for value, place in _repeated(values):
        if (original := first.setdefault(value, place)) != place:
            yield place, original


def _check_rates(
    corpus: _Corpus, copied: Collection[int], counts: list[Duplicates], found: _Findings
) -> None:
    for index, file in enumerate(corpus.files):
        start, end = corpus.starts[index], corpus.starts[index + 1]
        copies = sum(start <= place < end for place in copied)
        rate = copies / file.scanned.rows if file.scanned.rows else 0.0
        if copies and rate >= file.job.limits.duplicate_rate:
            message = (
                f"{copies} of {file.scanned.rows} rows ({rate:.1%}) repeat another one,"
                f" {counts[index]['exact']} exactly and the rest nearly. Expected under"
                f" {file.job.limits.duplicate_rate:.0%}."
            )
            found.add(True, Finding(str(file.job.path), 1, "E205", message))


def _copy_message(corpus: _Corpus, original: int) -> str:
    return f"the row repeats the one on {corpus.named(original)}."


def _conflict_message(corpus: _Corpus, original: int) -> str:
    return f"the instruction on {corpus.named(original)} is the same, its output another."


def _near_message(corpus: _Corpus, original: int, similarity: float) -> str:
    other = corpus.named(original)
    return f"the row is nearly the one on {other} (similarity {similarity:.2f})."


def _last_used(function: Callable[[int], str]) -> Callable[[int], str]:
    """Candidates come sorted by the earlier row: its text is read once for all its pairs."""
    known: dict[int, str] = {}

    def cached(place: int) -> str:
        if place not in known:
            if len(known) >= 64:
                known.clear()
            known[place] = function(place)
        return known[place]

    return cached


def _check_contamination(training: list[_File], evaluation: list[_File], found: _Findings) -> None:
    """Evaluation rows whose prompt is trained on, as it stands or in good part."""
    judged = _Corpus(evaluation)
    known = _check_same_prompts(training, judged, found)
    best: dict[int, tuple[float, int, int]] = {}
    for index, file in enumerate(training):
        for row, number, share in file.scanned.covered:
            if number not in known and (number not in best or share > best[number][0]):
                best[number] = (share, index, row)
    for number, (share, index, row) in sorted(best.items()):
        place = judged.locate(number)
        message = partial(_covered_message, place, (training[index], row), share)
        _add_row(found, *place, "H402", message)


def _check_same_prompts(training: list[_File], judged: _Corpus, found: _Findings) -> set[int]:
    """Evaluation rows, by their number, whose very prompt is trained on."""
    asked = judged.column("prompt")
    known: set[int] = set()
    for file in training:
        prompts = file.scanned.columns["prompt"]
        order = np.argsort(prompts, kind="stable")
        nearest = np.minimum(np.searchsorted(prompts[order], asked), max(len(order) - 1, 0))
        same = prompts[order][nearest] == asked if len(order) else np.zeros(len(asked), bool)
        for number in np.flatnonzero(same).tolist():
            if number not in known:
                known.add(number)
                message = partial(_same_prompt_message, file, int(order[nearest[number]]))
                _add_row(found, *judged.locate(number), "E401", message, changed=True)
    return known


def _same_prompt_message(file: _File, row: int) -> str:
    return f"the same prompt is trained on at {file.place(row)}."


def _covered_message(judged: _Place, trained: _Place, share: float) -> str:
    ours = prompt_text(judged[0].row(judged[1]).value)
    theirs = prompt_text(trained[0].row(trained[1]).value)
    similarity = jaccard(gram_set(loose_form(ours)), gram_set(loose_form(theirs)))
    return (
        f"{share:.0%} of the prompt stands in the training row at {trained[0].place(trained[1])}"
        f" (similarity of the prompts {similarity:.2f}): {_difference(ours, theirs)}."
    )


def _difference(ours: str, theirs: str) -> str:
    """Excerpts of two texts from where they part, with a few words before."""
    one, two = (" ".join(mask(text, detect(text, most=None)).split()) for text in (ours, theirs))
    parting = next(
        (place for place, (a, b) in enumerate(zip(one, two, strict=False)) if a != b),
        min(len(one), len(two)),
    )
    start = max(0, parting - _EXCERPT // 4)
    texts = [
        ("…" if start else "")
        + text[start : start + _EXCERPT]
        + ("…" if len(text) > start + _EXCERPT else "")
        for text in (one, two)
    ]
    return f"`{texts[0]}` / `{texts[1]}`"


def _shown(path: Path) -> Path:
    """The path from where the user is, which is also what annotations need."""
    absolute, here = path.absolute(), Path.cwd()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else path


def _add_row(
    found: _Findings,
    file: _File,
    number: int,
    code: str,
    message: Callable[[], str],
    *,
    changed: bool | None = None,
) -> None:
    """A finding on one row, worded only if it is kept."""

    def finding() -> Finding:
        severity: Literal["error", "hint"] = "error" if code.startswith("E") else "hint"
        path, row_id = str(file.job.path), file.row(number).id
        return Finding(path, file.line(number), code, message(), severity, row_id)

    if changed is None:
        changed = bool(file.scanned.columns["changed"][number])
    found.add_worded(changed, code, finding)


def _summary(file: _File, copies: Duplicates, change: Drift | None) -> FileDocument:
    scanned, path = file.scanned, file.job.path
    columns = scanned.columns
    detected = collections.Counter(columns["language"].tolist())
    counted = file.job.base_model is not None
    return {
        "path": repository_path(path),
        "kind": file.job.kind,
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "rows": scanned.rows,
        "rejected_rows": scanned.total - scanned.rows,
        "changed_rows": int(columns["changed"].sum()),
        "duplicates": copies,
        "target_language": _target_language(file),
        "languages": dict(scanned.declared.most_common()),
        "detected_languages": {
            language or "none": count for language, count in detected.most_common()
        },
        "tags": dict(scanned.tasks.most_common()),
        "refusals": int(columns["refused"].sum()),
        "characters": _spread(columns["characters"]),
        "prompt_tokens": _tokens(file, "prompt_tokens") if counted else None,
        "answer_tokens": _tokens(file, "answer_tokens") if counted else None,
        "row_tokens": _tokens(file, "row_tokens") if counted else None,
        "drift": change,
    }


def _tokens(file: _File, name: str) -> Spread | None:
    """Figures of a column of token counts, estimated where only a sample was counted."""
    columns = file.scanned.columns
    sample = sampled(columns["exact"], file.job.count_every)
    spread = _spread(columns[name][sample])
    if spread is None or sample.all():
        return spread
    counted = columns[name][columns["row_tokens"] > 0]
    total = round(spread["mean"] * file.scanned.rows)
    return {
        **spread,
        "min": int(counted.min()),
        "max": int(counted.max()),
        "total": total,
        "sampled_rows": int(sample.sum()),
    }


def _spread(counts: npt.NDArray[np.uint32]) -> Spread | None:
    if not len(counts):
        return None
    middle, high = np.percentile(counts, [50, 95], method="inverted_cdf")
    return {
        "min": int(counts.min()),
        "mean": round(float(counts.mean()), 1),
        "p50": int(middle),
        "p95": int(high),
        "max": int(counts.max()),
        "total": int(counts.sum(dtype=np.uint64)),
    }
