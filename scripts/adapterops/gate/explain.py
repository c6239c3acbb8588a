"""What a gate file can decide on the rows at hand, in sentences; what it never can is refused."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from adapterops.data.general_sets import load_general
from adapterops.data.reader import Row, load_rows
from adapterops.data.slices import slices
from adapterops.documents import sha256_file
from adapterops.gate.evidence import Evidence, Sample
from adapterops.schemas import repository_path
from adapterops.shapes.eval_results import EvalResults
from adapterops.shapes.eval_row import EvalRow
from adapterops.specs.adapter import AdapterSpec
from adapterops.specs.gate import Gate, GateConfig, load_gates
from adapterops.specs.metric_catalogue import METRICS
from adapterops.statistics.power import (
    WANTED,
    Outlook,
    asking_rows,
    measured_rows,
    outlooks,
    per_look,
)


def rows_of(spec: AdapterSpec) -> dict[str, int]:
    """How many rows, texts or requests measure each metric, also in each slice, by its gate's name.

    The extension's rows are among them.

    Raises:
        RejectedError: an evaluation file has a row that is none.
    """
    paths = [path for path in (spec.evaluation_data, spec.extension_data) if path]
    own = [row for path in paths for row in load_rows(path, "eval")]
    general, texts = load_general(spec.general)
    rows, others = [*own, *general], range(len(own), len(own) + len(general))
    counts = measured_rows(
        _values(own), spec.evaluation.latency_requests, _values(general), len(texts)
    )
    languages = Counter(f"general-{row.value['language']}" for row in texts)
    of_texts: dict[str, list[int]] = {name: [] for name in languages}
    for name, members in {**of_texts, **slices(rows, others)}.items():
        ours, theirs = (
            [rows[place] for place in members if (place in others) is outside]
            for outside in (False, True)
        )
        part = measured_rows(_values(ours), 0, _values(theirs), languages[name])
        counts |= {f"{metric} in {name}": count for metric, count in part.items()}
    return counts


def outlooks_of(config: GateConfig, counts: dict[str, int], *, registered: bool) -> list[Outlook]:
    """Of every gate whose rows are counted.

    Args:
        config: the gates.
        counts: of `rows_of`.
        registered: whether there are extension rows, so that two looks share the error.
    """
    known = [(gate, count) for gate in config.gates if (count := _count(gate, counts)) is not None]
    return [
        one
        for gate, count in known
        for one in outlooks(gate, count, per_look(gate.confidence, registered))
    ]


def problems_beforehand(spec: AdapterSpec, counts: dict[str, int]) -> list[str]:
    """What makes sure, before anything is trained, that no evaluation of this adapter can pass.

    Args:
        spec: the adapter.
        counts: of `rows_of`.
    """
    config, found = load_gates(spec.evaluation.gate), []
    file = repository_path(spec.evaluation.gate)
    pinned = (
        ("evaluation", spec.evaluation_data, spec.pins.evaluation),
        ("extension", spec.extension_data, spec.pins.extension),
    )
    for what, path, pin in pinned:
        if path and pin and sha256_file(path) != pin:
            found.append(
                f"data.{what}_sha256 pins {pin[:12]}, but {repository_path(path)} is"
                f" {sha256_file(path)[:12]}: its evaluation would be an ERROR. Pin the file that is"
                f" meant (`sha256sum {repository_path(path)}`)."
            )
    for gate in config.gates:
        if (count := _count(gate, counts)) is not None:
            place = f"{file}: slices: {gate.name}" if gate.slice else f"{file}: gates.{gate.name}"
            found += _never(gate, count, place, bool(spec.extension_data))
    return found


def _never(gate: Gate, n: int, place: str, registered: bool) -> list[str]:
    rows, kind = asking_rows(gate.metric), METRICS[gate.metric].kind
    if not n:
        return [f"{place}: no row measures it. Add {rows}, or take the gate out."]
    if n < gate.min_n and kind != "total":
        return [
            f"{place}.min_n is {gate.min_n}, and there are {n} {rows}. Have more, or lower min_n."
        ]
    return [
        f"{place}: {one.asked} cannot be decided on {n} {rows}, not even by the best answers, and"
        " undecided blocks." + _more(one)
        for one in outlooks(gate, n, per_look(gate.confidence, registered))
        if gate.blocks and not one.decidable
    ]


def sentence(outlook: Outlook) -> str:
    """One line on one threshold or margin."""
    rows = asking_rows(outlook.metric)
    name = f"{outlook.metric} in {outlook.slice}" if outlook.slice else outlook.metric
    place = f"{name} {outlook.asked}, {outlook.rows} {rows}"
    if METRICS[outlook.metric].kind == "total":
        return f"{name} {outlook.asked}: one number, of which no chance can be reckoned."
    if not outlook.decidable:
        return f"{place}: cannot be decided, however good the answers.{_more(outlook)}"
    said = []
    if outlook.worse is not None and outlook.failed is not None:
        said.append(f"an equal candidate passes {_share(outlook.equal)}")
        fails = "" if outlook.blocks else f", FAIL {_share(outlook.failed)} (undecided only warns)"
        said.append(f"one worse by twice as much is no PASS {_share(outlook.worse)}{fails}")
    elif outlook.equal is not None:
        said.append(f"a good candidate passes {_share(outlook.equal)}")
    said.append(f"one exactly at the bar passes {_share(outlook.bar)}")
    return f"{place}: {', '.join(said)}.{_more(outlook)}"


def whole(found: list[Outlook]) -> str:
    """All gates together, as if each were independent of the others, which promises too little."""
    stopped = [one.worse if one.blocks else one.failed for one in found if one.worse is not None]
    passes = math.prod(one.passes for one in found)
    worse = (
        " One that is worse by twice a margin is stopped"
        f" {_share(min(one or 0.0 for one in stopped))} or more."
        if stopped
        else ""
    )
    return f"Whole gate: an equal candidate passes {_share(passes)}.{worse}"


def explain(config: GateConfig, counts: dict[str, int], *, registered: bool) -> list[str]:
    """Every gate in a line, those that are not reckoned too, and the whole."""
    found = outlooks_of(config, counts, registered=registered)
    unknown = [
        f"{gate.name}: not reckoned." for gate in config.gates if _count(gate, counts) is None
    ]
    return [*map(sentence, found), *unknown, whole(found)]


def observed(config: GateConfig, results: EvalResults) -> tuple[GateConfig, dict[str, int]]:
    """The gates with the noise between candidate and production, and the rows by metric.

    What differs truly counts as noise too, so that the chances promise too little rather than too
    much.
    """
    evidence, gates, counts = Evidence(results), [], {}
    for gate in config.gates:
        rows = evidence.members(gate.slice, gate.metric)
        candidate = evidence.sample("candidate", gate.metric, extended=True, rows=rows)
        production = evidence.sample("production", gate.metric, extended=True, rows=rows)
        counts[gate.name] = candidate.n if candidate else 0
        noise = _noise(candidate, production) if candidate and production else None
        noise = gate.noise if noise is None else noise
        gates.append(dataclasses.replace(gate, noise=min(max(noise, 1e-3), 0.99)))
    return dataclasses.replace(config, gates=tuple(gates)), counts


def _noise(candidate: Sample, production: Sample) -> float | None:
    """As a gate file gives it; None of a speed, and where no row has both sides."""
    kind = METRICS[candidate.metric].kind
    theirs = dict(zip(production.rows, production.values, strict=True))
    pairs = zip(candidate.rows, candidate.values, strict=True)
    differences = np.array([value - theirs[row] for row, value in pairs if row in theirs])
    if kind not in ("rate", "mean", "loss") or not len(differences):
        return None
    return float(np.mean(differences != 0) if kind == "rate" else np.std(differences))


def _values(rows: list[Row[EvalRow]]) -> list[Mapping[str, object]]:
    return [row.value for row in rows]


def _count(gate: Gate, counts: dict[str, int]) -> int | None:
    """Rows that measure it; None where its metric is not counted. A slice that is gone has none."""
    return counts.get(gate.name, 0 if gate.slice and gate.metric in counts else None)


def _more(outlook: Outlook) -> str:
    if outlook.enough:
        return ""
    if outlook.needed is None:
        return (
            f" No number of rows up to 5,000 reaches {WANTED:g}: widen the margin or lower the bar."
        )
    return (
        f" About {outlook.needed - outlook.rows} more {asking_rows(outlook.metric)} would reach"
        f" {WANTED:g}."
    )


def _share(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"
