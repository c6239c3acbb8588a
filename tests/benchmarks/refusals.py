"""Fit the refusal detector's weights, and measure it by source: the tables of
docs/measurements/refusals.md.

Answers that others labelled are never kept in the repository. They are JSON lines, plain or
gzipped, with `source` (`collection/model`), `language`, `answer` and `refused`;
docs/measurements/refusals.md says where they come from.

    # new weights, from all but the held-back half
    python tests/benchmarks/refusals.py --labelled FILE --fit
    # measure: docs/measurements/refusals.md and the figures of the comment
    python tests/benchmarks/refusals.py --labelled FILE --write
    # what the shipped weights say, without writing
    python tests/benchmarks/refusals.py [--labelled FILE]
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from adapterops.data.plain_answer import plain  # noqa: E402
from adapterops.data.refusal import DETECTOR_ID, classify  # noqa: E402
from adapterops.data.refusal_model import BUCKETS, WEIGHTS, Weights, buckets  # noqa: E402
from adapterops.data.rows import answer as answer_of  # noqa: E402
from adapterops.evaluate.detector import FIGURES, labelled_answers  # noqa: E402

FORMS = ROOT / "data" / "labelled" / "refusal_forms.json"
HELD_BACK = "own, held back"
_OWN = "own, other half"
_INVERSE_PENALTY = (
    30.0  # of the squared weights; the least error on left-out sources among 3, 30 and 100
)
_PARTS = 4  # of the prompts of others, by their checksum
_FORM_TOPICS = 4  # topics that each form is filled with
_Z = 1.959964  # of a 95 % Wilson interval


@dataclass(frozen=True)
class Row:
    """One labelled answer."""

    source: str
    language: str
    answer: str
    refused: bool
    prompt: str = ""


def outside(path: Path) -> list[Row]:
    """What others labelled."""
    data = path.read_bytes()
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    read = [json.loads(line) for line in text.decode().splitlines()]
    return [
        Row(row["source"], row["language"], row["answer"], bool(row["refused"]), row["prompt"])
        for row in read
    ]


def own() -> list[Row]:
    """The repository's labelled answers, forms filled with topics, and what its training and
    evaluation rows answer."""
    rows = [
        Row(HELD_BACK if row.held_back else _OWN, row.language, row.answer, row.refused)
        for row in labelled_answers()
    ]
    for language, forms in json.loads(FORMS.read_text(encoding="utf-8")).items():
        for refused, topics in ((True, forms["harmful"]), (False, forms["harmless"])):
            for number, form in enumerate(forms["refused" if refused else "complied"]):
                filled = {
                    form.replace("{topic}", topics[(number * 3 + i) % len(topics)])
                    for i in range(_FORM_TOPICS)
                }
                rows += [
                    Row(f"forms {language}", language, text, refused) for text in sorted(filled)
                ]
    seen = set()
    for path in sorted((ROOT / "data").glob("[te][rv]a*/support*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            text, refused = (
                answer_of(row),
                "refuse" in row.get("tags", []) or bool(row.get("should_refuse")),
            )
            if text not in seen and not text.startswith(("{", "[")):
                seen.add(text)
                rows.append(Row(f"support {row['language']}", row["language"], text, refused))
    return rows


def fit(rows: list[Row], features: csr_matrix, chosen: npt.NDArray[np.intp]) -> Weights:
    """Logistic regression with a penalty on the squared weights, by L-BFGS.

    Each label of each source weighs as the root of its rows, so that a large source does not drown
    a small one.
    """
    group = [(rows[i].source, rows[i].refused) for i in chosen]
    sizes = {key: group.count(key) for key in set(group)}
    importance = np.array([sizes[key] ** -0.5 for key in group])
    importance *= len(importance) / importance.sum()
    x, sign = features[chosen], np.array([1.0 if rows[i].refused else -1.0 for i in chosen])
    transposed = x.T.tocsr()

    def loss(values: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        margin = sign * (x @ values[:-1] + values[-1])
        pull = -importance * sign / (1 + np.exp(np.clip(margin, -50, 50)))
        slope = np.append(transposed @ pull + values[:-1] / _INVERSE_PENALTY, pull.sum())
        penalty = values[:-1] @ values[:-1] / (2 * _INVERSE_PENALTY)
        return float(importance @ np.logaddexp(0, -margin) + penalty), slope

    found = minimize(
        loss, np.zeros(BUCKETS + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    ).x
    scale = float(np.abs(found[:-1]).max()) / 32_000
    return Weights(np.round(found[:-1] / scale).astype(np.int16), scale, float(found[-1]))


def matrix(rows: list[Row]) -> csr_matrix:
    """One line for each answer: its buckets, by the root of their number."""
    found = [buckets(plain(row.answer)) for row in rows]
    values = np.concatenate([np.full(len(one), 1 / math.sqrt(max(1, len(one)))) for one in found])
    ends = np.cumsum([0, *map(len, found)])
    return csr_matrix((values, np.concatenate(found), ends), shape=(len(rows), BUCKETS))


def verdicts_left_out(rows: list[Row]) -> list[str]:
    """What is said of each answer by weights that were fitted without its source, and without any
    answer to its prompt.

    Models of one collection answer the same prompts: weights that have seen another model's answer
    would know the topic. Of filled forms and of rows of support nothing is said.
    """
    features, said = matrix(rows), [""] * len(rows)
    sources = np.array([row.source for row in rows])
    part = np.array(
        [zlib.crc32(row.prompt.encode()) % _PARTS if "/" in row.source else -1 for row in rows]
    )
    for source in dict.fromkeys(row.source for row in rows if measured(row.source)):
        for number in np.unique(part[sources == source]):
            judged = np.flatnonzero((sources == source) & (part == number))
            topics = np.zeros(len(rows), bool) if number < 0 else part == number
            weights = fit(
                rows,
                features,
                np.flatnonzero((sources != source) & (sources != HELD_BACK) & ~topics),
            )
            for i in judged:
                said[i] = classify(rows[i].answer, weights)
    return said


def measured(source: str) -> bool:
    """Whether a source is one that measures: the filled forms and the rows of support are fitted to
    alone."""
    return "/" in source or source in (HELD_BACK, _OWN)


def wilson(count: int, n: int) -> str:
    """A share with its 95 % Wilson interval."""
    if not n:
        return "-"
    share, z = count / n, _Z
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return f"{share:.3f} ({max(0.0, middle - half):.3f}–{min(1.0, middle + half):.3f})"


def table(rows: list[Row], said: list[str]) -> list[dict[str, Any]]:
    """Counts by source, and by language over the sources of others."""
    outsiders = [row.source for row in rows if "/" in row.source]
    groups: dict[str, Callable[[Row], bool]] = {
        source: lambda row, source=source: row.source == source  # type: ignore[misc]
        for source in dict.fromkeys(row.source for row in rows if measured(row.source))
    }
    for language, name in (("ko", "all of others, Korean"), ("en", "all of others, English")):
        if outsiders:
            groups[name] = lambda row, language=language: (
                "/" in row.source and row.language == language
            )  # type: ignore[misc]
    lines = []
    for name, of in groups.items():
        line: dict[str, Any] = {"source": name}
        for label in (True, False):
            verdicts = [
                verdict
                for row, verdict in zip(rows, said, strict=True)
                if of(row) and row.refused == label
            ]
            key = "refusals" if label else "answers"
            line[key] = len(verdicts)
            line[f"{key}_refused"] = verdicts.count("refused")
            line[f"{key}_unsure"] = verdicts.count("unsure")
        lines.append(line)
    return lines


def markdown(lines: Iterable[dict[str, Any]]) -> str:
    """The table for people."""
    text = (
        "| source | refusals | answers | recall | false-positive rate | refusals left open |"
        " answers left open |\n"
    )
    text += "|---|---|---|---|---|---|---|\n"
    for line in lines:
        cells = [
            wilson(line["refusals_refused"], line["refusals"]),
            wilson(line["answers_refused"], line["answers"]),
            wilson(line["refusals_unsure"], line["refusals"]),
            wilson(line["answers_unsure"], line["answers"]),
        ]
        text += (
            f"| {line['source']} | {line['refusals']} | {line['answers']} | {' | '.join(cells)} |\n"
        )
    return text


XSTEST = (
    "| `xstest/*`: completions of XSTest (paul-rottger/exaggerated-safety), full refusals and full"
    " compliance | people | CC-BY-4.0 |"
)
KOREAN = (
    "| `k-overrefusal/*`: answers of Korean models (Marker-Inc-Korea/K-OverRefusal), at most 350 of"
    " a kind | two judge models that agree | MIT |"
)
PAGE = """# How well refusals are found, by source

`{detector}`, measured by `{command}`. Shares have 95 % Wilson intervals. What is left open is
neither found nor wrongly found: it goes to a judge or a reviewer, and counts against the candidate
until then.

## Each source left out of the fit

What to expect of a model that nobody has fitted to. For each row of the table weights were fitted
to the other sources, without their answers to the prompts that are judged (in four parts), and to
the repository's own rows; the held-back half was never fitted to. Bars and features were chosen by
the totals of such a table, so that it flatters a little.

{left_out}
## The weights as shipped

Fitted to every source here but the held-back half. This is not what to expect of another model.

{shipped}
## Sources

| source | labelled by | licence |
|---|---|---|
| own: `data/labelled/refusals.jsonl` | its author | CC0-1.0 |
{xstest}
{korean}

No row of the last two is kept in the repository. FILE has one JSON object a line, with `source`,
`language`, `answer` and `refused`. Some labels of K-OverRefusal are arguable: a lecture on the law
counts as a refusal there, whatever it goes on to explain.
"""


def write_page(rows: list[Row]) -> None:
    """Measure, and write the page and the figures that the comment shows."""
    left_out = table(rows, verdicts_left_out(rows))
    shipped = table(rows, [classify(row.answer) for row in rows])
    command = "python tests/benchmarks/refusals.py --labelled FILE --write"
    page = PAGE.format(
        xstest=XSTEST,
        korean=KOREAN,
        detector=DETECTOR_ID,
        command=command,
        left_out=markdown(left_out),
        shipped=markdown(shipped),
    )
    (ROOT / "docs" / "measurements" / "refusals.md").write_text(page, encoding="utf-8")
    others = [line for line in left_out if "/" in line["source"]]
    document = json.dumps({"detector": DETECTOR_ID, "sources": others}, indent=2)
    FIGURES.write_text(document + "\n", encoding="utf-8")


def main() -> None:
    """Fit, measure, or show."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--labelled", type=Path, metavar="FILE", help="answers that others labelled"
    )
    parser.add_argument("--fit", action="store_true", help=f"write {WEIGHTS.relative_to(ROOT)}")
    parser.add_argument("--write", action="store_true", help="write page and figures")
    options = parser.parse_args()
    if (options.fit or options.write) and not options.labelled:
        parser.error("--fit and --write need --labelled")
    rows = own() + (outside(options.labelled) if options.labelled else [])
    if options.fit:
        chosen = np.array([i for i, row in enumerate(rows) if row.source != HELD_BACK])
        weights = fit(rows, matrix(rows), chosen)
        about = {"detector": DETECTOR_ID, "scale": repr(weights.scale), "bias": repr(weights.bias)}
        save_file({"weights": weights.values}, WEIGHTS, about)
        WEIGHTS.chmod(0o644)
        print(f"{WEIGHTS.relative_to(ROOT)}: fitted to {len(chosen):,} answers")
    elif options.write:
        write_page(rows)
    else:
        started = time.process_time()
        said = [classify(row.answer) for row in rows]
        speed = len(rows) / (time.process_time() - started)
        print(f"{markdown(table(rows, said))}\n{speed:,.0f} answers a second")


if __name__ == "__main__":
    main()
