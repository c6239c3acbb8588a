"""`adapters/<name>.yaml`: the specification of one adapter."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapterops.errors import UsageError
from adapterops.schemas import ROOT, SchemaProblem, did_you_mean, repository_path
from adapterops.shapes.adapter import Adapter
from adapterops.shapes.adapter import Evaluation as EvaluationDocument
from adapterops.shapes.adapter import Limits as RolloutLimits
from adapterops.shapes.adapter import Rollout as RolloutDocument
from adapterops.yamlfile import Sound, load_yaml

_Place = tuple[str | int, ...]

ADAPTERS = ROOT / "adapters"
# Where the files lie that an adapter names: who may change them is said by place (CODEOWNERS).
_KINDS: dict[_Place, str] = {
    ("recipe",): "configs/qlora/",
    ("data", "training"): "data/training/",
    ("data", "evaluation"): "data/eval/",
    ("data", "extension"): "data/eval/",
    ("evaluation", "gate"): "configs/quality_gate",
    ("serving",): "configs/serving",
}
# Every adapter is judged on these, unless it names others: one that forgot a language would not be
# the one to say so.
GENERAL_LANGUAGES = ("en", "ko")


@dataclass(frozen=True)
class Pins:
    """What an evaluation of the adapter must be of.

    Args:
        name: the adapter.
        evaluation: SHA-256 of the evaluation file, or None where the specification pins none.
        extension: SHA-256 of the extension file, likewise.
    """

    name: str | None = None
    evaluation: str | None = None
    extension: str | None = None


@dataclass(frozen=True)
class General:
    """Rows and texts outside of any adapter's domain; what an adapter has lost shows in them.

    Args:
        rows: files of harmless rows.
        texts: files of texts.
        rows_each: so many of each file of rows, spread evenly over it; None is all.
        texts_each: likewise of each file of texts.
    """

    rows: tuple[Path, ...] = ()
    texts: tuple[Path, ...] = ()
    rows_each: int | None = None
    texts_each: int | None = None

    def options(self) -> list[object]:
        """The same as options of `evaluate.py`."""
        each = [("--general-rows", self.rows_each), ("--general-texts-rows", self.texts_each)]
        return [
            *(part for path in self.rows for part in ("--general-data", path)),
            *(part for path in self.texts for part in ("--general-texts", path)),
            *(part for name, count in each if count is not None for part in (name, count)),
        ]


@dataclass(frozen=True)
class Evaluation:
    """How an adapter is judged.

    Args:
        gate: the gate file.
        max_tokens: the longest answer that is generated; a longer one counts as truncated.
        latency_requests: requests of the speed phase.
        latency_concurrency: requests in flight in the speed phase.
        win_rate_judge: the model that compares answers in pairs: `none`, `base`, or a model at
            `$JUDGE_URL`.
        general: languages of the general sets that say what the adapter has lost.
        general_rows: so many rows of each of them, spread evenly; None asks all.
        general_texts: so many texts of each of them, likewise.
    """

    gate: Path
    max_tokens: int
    latency_requests: int
    latency_concurrency: int
    win_rate_judge: str = "none"
    general: tuple[str, ...] = GENERAL_LANGUAGES
    general_rows: int | None = None
    general_texts: int | None = None


@dataclass(frozen=True)
class Rollout:
    """How a release gets its traffic.

    Args:
        strategy: `canary` goes through the steps; `blue-green` gives all traffic at once and judges
            that; `immediate` judges nothing.
        steps: percent of traffic, growing.
        min_duration_s: of each step.
        max_duration_s: of each step; undecided then, the rollout pauses.
        min_requests: answers of the canary in each step, below which nothing is decided.
        probes_per_s: recorded questions a second at most to each version, where users ask one of
            the two too little; 0 sends none.
        confidence: of each one-sided bound.
        limits: `error_rate` (most that it may rise), `latency_p95_ratio`, `saturation` (absolute);
            optionally `negative_feedback` (most that the share of thumbs down may rise) and
            `win_rate` (least; the same thumbs on another scale, no answers are compared).
    """

    strategy: Literal["canary", "blue-green", "immediate"]
    steps: tuple[int, ...]
    min_duration_s: float
    max_duration_s: float
    min_requests: int
    probes_per_s: float
    confidence: float
    limits: RolloutLimits

    @property
    def weights(self) -> tuple[int, ...]:
        """The steps of the strategy."""
        return self.steps if self.strategy == "canary" else (100,)

    @property
    def judged(self) -> bool:
        """False if nothing is asked but that every host has the version ready."""
        return self.strategy != "immediate"


@dataclass(frozen=True)
class AdapterSpec:
    """One adapter; every path is absolute and inside the repository."""

    name: str
    path: Path
    description: str
    recipe: Path
    training_data: tuple[Path, ...]
    evaluation_data: Path
    extension_data: Path | None
    pins: Pins
    evaluation: Evaluation
    serving: Path
    rollout: Rollout

    @property
    def judged_on(self) -> tuple[Path, ...]:
        """Files of evaluation rows: none of them may be trained on."""
        extension = [self.extension_data] if self.extension_data else []
        return (self.evaluation_data, *extension, *self.general.rows, *self.general.texts)

    @property
    def general(self) -> General:
        """The general rows and texts that it is judged on."""
        how = self.evaluation
        return general_sets(
            self.path.parent.parent, how.general, how.general_rows, how.general_texts
        )


def load_adapter(name: str, directory: Path = ADAPTERS) -> AdapterSpec:
    """The specification of the adapter of that name.

    Raises:
        UsageError: no such adapter, a file that breaks the schema, a name that differs from the
            file's, or a path that does not exist.
    """
    path = directory / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in directory.glob("*.yaml"))
        raise UsageError(
            f"there is no adapter `{name}` (no {repository_path(path)}).{did_you_mean(name, known)}"
            f" Adapters: {', '.join(known)}."
        )
    root = directory.parent
    spec = load_yaml(path, Adapter, functools.partial(_together, name, root))
    return AdapterSpec(
        name=name,
        path=path,
        description=spec["description"],
        recipe=root / spec["recipe"],
        training_data=tuple(root / file for file in spec["data"]["training"]),
        evaluation_data=root / spec["data"]["evaluation"],
        extension_data=root / spec["data"]["extension"] if "extension" in spec["data"] else None,
        pins=Pins(
            name, spec["data"].get("evaluation_sha256"), spec["data"].get("extension_sha256")
        ),
        evaluation=_evaluation(spec["evaluation"], root),
        serving=root / spec["serving"],
        rollout=_rollout(spec["rollout"]),
    )


def general_sets(
    root: Path,
    languages: Sequence[str] = GENERAL_LANGUAGES,
    rows: int | None = None,
    texts: int | None = None,
) -> General:
    """The general sets of a tree, by language; `rows` and `texts` are how many of each are asked,
    None all.
    """
    folder = root / "data" / "eval"
    named = [
        (folder / f"general-{name}.jsonl", folder / f"general-texts-{name}.jsonl")
        for name in languages
    ]
    return General(tuple(pair[0] for pair in named), tuple(pair[1] for pair in named), rows, texts)


def _evaluation(values: EvaluationDocument, root: Path) -> Evaluation:
    return Evaluation(
        gate=root / values["gate"],
        max_tokens=values["max_tokens"],
        latency_requests=values["latency_requests"],
        latency_concurrency=values["latency_concurrency"],
        win_rate_judge=values.get("win_rate_judge", "none"),
        general=tuple(values.get("general", GENERAL_LANGUAGES)),
        general_rows=values.get("general_rows"),
        general_texts=values.get("general_texts"),
    )


def _rollout(values: RolloutDocument) -> Rollout:
    return Rollout(
        strategy=values["strategy"],
        steps=tuple(values["steps"]),
        min_duration_s=values["min_duration_s"],
        max_duration_s=values["max_duration_s"],
        min_requests=values["min_requests"],
        probes_per_s=values["probes_per_s"],
        confidence=values["confidence"],
        limits=values["limits"],
    )


def _together(name: str, root: Path, sound: Sound) -> list[SchemaProblem]:
    """What contradicts itself, the file's name, or the files that are there."""
    problems = []
    if (claimed := sound("name")) and claimed != name:
        problems.append(
            SchemaProblem(
                ("name",), f"`{claimed}` differs from the file's name. Rename one of the two."
            )
        )
    problems += _file_problems(root, sound)
    problems += _general_problems(root, sound)
    problems += _rollout_problems(sound)
    return problems


def _file_problems(root: Path, sound: Sound) -> list[SchemaProblem]:
    """Files that are not there, or not where their owners are."""
    training = sound("data", "training")
    places: list[_Place] = [
        ("recipe",),
        ("data", "evaluation"),
        ("data", "extension"),
        ("evaluation", "gate"),
        ("serving",),
    ]
    named = [(place, sound(*place)) for place in places]
    named += [
        (("data", "training", number), file)
        for number, file in enumerate(training if isinstance(training, list) else [])
    ]
    return [
        SchemaProblem(place, problem)
        for place, file in named
        if isinstance(file, str) and (problem := _file_problem(root, file, _KINDS[place[:2]]))
    ]


def _file_problem(root: Path, file: str, kind: str) -> str:
    if not _is_file(root / file):
        return f"{file} does not exist."
    led, inside = (root / file).resolve(), root.resolve()
    if not led.is_relative_to(inside):
        return f"{file} leads out of the repository. Links are followed and refused."
    if not str(led.relative_to(inside)).startswith(kind):
        return (
            f"{file} leads to {led.relative_to(inside)}. Expected a file of {kind}*, of its owners."
        )
    return ""


def _general_problems(root: Path, sound: Sound) -> list[SchemaProblem]:
    """General sets that are not there, or lie elsewhere."""
    named = sound("evaluation", "general")
    if isinstance(named, list):
        # Of a language that is not sound its schema says what is wrong.
        asked: list[tuple[_Place, str]] = [
            (("evaluation", "general", number), language)
            for number, language in enumerate(named)
            if sound("evaluation", "general", number)
        ]
    else:
        asked = [(("evaluation",), language) for language in GENERAL_LANGUAGES]
    return [
        SchemaProblem(place, problem)
        for place, language in asked
        if (problem := _general_problem(root, language))
    ]


def _general_problem(root: Path, language: str) -> str:
    sets = general_sets(root, (language,))
    files = (*sets.rows, *sets.texts)
    missing = next((path for path in files if not _is_file(path)), None)
    if missing:
        return f"there is no general set `{language}`: {missing.relative_to(root)} does not exist."
    inside = root.resolve()
    outside = next((path for path in files if not path.resolve().is_relative_to(inside)), None)
    if outside:
        return (
            f"{outside.relative_to(root)} leads out of the repository. Links are followed and"
            " refused."
        )
    return ""


def _rollout_problems(sound: Sound) -> list[SchemaProblem]:
    """Steps that do not grow, times that no step could end in, too few answers for a bound."""
    problems = []
    steps = sound("rollout", "steps")
    if steps and all(isinstance(step, int) for step in steps) and steps != sorted(set(steps)):
        message = (
            f"{steps} does not grow. Each step gives the canary more traffic than the one before."
        )
        problems.append(SchemaProblem(("rollout", "steps"), message))
    shortest, longest = sound("rollout", "min_duration_s"), sound("rollout", "max_duration_s")
    if shortest is not None and longest is not None and shortest > longest:
        message = "exceeds max_duration_s; no step could end."
        problems.append(SchemaProblem(("rollout", "min_duration_s"), message))
    strategy, requests, confidence = (
        sound("rollout", key) for key in ("strategy", "min_requests", "confidence")
    )
    if strategy != "immediate" and requests is not None and confidence and 0 < confidence < 1:
        needed = math.ceil(math.log(1 - confidence) / math.log(0.95))
        if requests < needed:
            message = (
                f"{requests} answers bound no p95 at confidence {confidence:g}. At least {needed}"
                " are needed."
            )
            problems.append(SchemaProblem(("rollout", "min_requests"), message))
    return problems


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def run_directory(runs: Path, spec: AdapterSpec, key: str) -> Path:
    """Where a run's documents lie: `<runs>/<adapter>/<first 12 digits of the training key>`."""
    return runs / spec.name / key[:12]
