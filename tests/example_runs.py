"""Three runs of an adapter, made up from a seed, judged by the real gate and rendered by the real
report.

    # writes docs/examples/comment-{pass,fail,inconclusive}.md
    python tests/example_runs.py
    # and report-*.html into DIRECTORY, with 1,000 answers each
    python tests/example_runs.py DIRECTORY

A passing one, one whose answers lost against production, and one that refuses as it should but on
too few rows to say so.
"""

import functools
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests"), str(ROOT / "tests/unit")]

from eval_documents import results, with_general  # noqa: E402

from adapterops.documents import write_bytes  # noqa: E402
from adapterops.evaluate.detector import detector_figures  # noqa: E402
from adapterops.gate.judge import judge  # noqa: E402
from adapterops.report.collect import Report  # noqa: E402
from adapterops.report.comment import comment  # noqa: E402
from adapterops.report.html import page  # noqa: E402
from adapterops.specs.adapter import Pins  # noqa: E402
from adapterops.specs.gate import load_gates  # noqa: E402
from adapterops.specs.metric_catalogue import METRIC_IDS  # noqa: E402
from release_documents import whole_manifest  # noqa: E402

ANSWERED, REFUSE = 400, 236  # rows to answer, half of them as JSON, and rows to refuse
GENERAL = ["en"] * 162 + ["ko"] * 157  # the general rows, and texts, by language
TEXTS = ["en"] * 102 + ["ko"] * 102
EXAMPLES = ROOT / "docs/examples"
ROWS = ANSWERED + REFUSE + len(GENERAL)
# For each run: change of ROUGE-L, refusals that are missed, of the candidate; production misses
# one.
RUNS = {"pass": (0.01, 0), "fail": (-0.06, 0), "inconclusive": (0.01, 2)}
# What stands in the comment: question, expected, and what a good and a bad adapter answers.
TALKS = [
    (
        "환불은 언제 되나요?",
        "환불은 영업일 기준 사흘 안에 됩니다.",
        "환불은 영업일 기준 사흘 안에 처리됩니다.",
        "환불은 규정에 따라 처리됩니다.",
    ),
    (
        "세일 상품도 교환되나요?",
        "세일 상품은 크기만 교환됩니다.",
        "네, 세일 상품은 크기만 교환됩니다.",
        "죄송하지만 그 요청은 도와드릴 수 없습니다.",
    ),
    (
        "Is my parcel insured, and up to how much?",
        "Every shipment is insured up to £500.",
        "Every shipment is insured up to £500.",
        "Yes, every shipment is insured.",
    ),
    (
        "주문 61302 다리미판이 휘어 왔어요. intent, order, item을 JSON으로.",
        '{"intent": "refund", "order": "61302", "item": "다리미판"}',
        '{"intent": "refund", "order": "61302", "item": "다리미판"}',
        '{"intent": "refund", "order": 61302, "item": "다리미판"',
    ),
    (
        "Can the slippers go back?",
        "Not with dirty soles.",
        "Slippers with dirty soles are not taken back.",
        "Socks are never returnable.",
    ),
    (
        "배송 조회가 안 돼요.",
        "송장 번호는 발송 후 두 시간 뒤에 보입니다.",
        "송장 번호는 발송 후 두 시간 뒤에 보입니다.",
        "고객센터에 문의하세요.",
    ),
]


def answer(text, rouge, **more):
    fields = {
        "finish_reason": "stop",
        "tokens": 12,
        "latency_ms": 310.0,
        "ttft_ms": None,
        "error": None,
        "format_ok": None,
    }
    return (
        fields
        | {"text": text, "rouge_l": rouge, "chrf": rouge, "refused": text.startswith("죄송")}
        | more
    )


def samples(worse, count):
    """Rows of the report: as many as asked, the bad answer on the candidate's side where it got
    worse."""
    rows = []
    for number in range(count):
        question, expected, good, bad = TALKS[number % len(TALKS)]
        swapped = (number // len(TALKS)) % 3 != 0 if worse else (number // len(TALKS)) % 3 == 0
        sides = (answer(bad, 0.2 + number % 7 / 100), answer(good, 0.9 + number % 5 / 100))
        candidate, production = sides if swapped else sides[::-1]
        rows.append(
            {
                "id": f"row-{number:04d}",
                "line": number + 1,
                "language": "en" if question.isascii() else "ko",
                "tags": ["extract" if "{" in expected else "policy"],
                "prompt": [{"role": "user", "content": question}],
                "expected": expected,
                "should_refuse": False,
                "win": 0.0 if swapped else 1.0,
                "candidate": candidate,
                "production": production,
                "base": answer("I am not sure.", 0.1),
            }
        )
    return tuple(rows)


def evaluation(effect, missed, random):
    """An `eval_results.json` with the candidate's `effect` on ROUGE-L and `missed` refusals."""
    nothing, difficulty = [None] * REFUSE, random.normal(0.74, 0.15, ANSWERED)
    formatted = random.permutation([1] * (ANSWERED // 2 - 2) + [0] * 2).tolist()

    def side(change, misses, noise):
        rouge = (
            np.clip(difficulty + change + random.normal(0, noise, ANSWERED), 0, 1).round(4).tolist()
        )
        return {
            "rouge_l": rouge + nothing,
            "chrf": (np.clip(np.array(rouge) - 0.08, 0, 1)).round(4).tolist() + nothing,
            "format_compliance": formatted + [None] * (ANSWERED // 2) + nothing,
            "safety_refusal": [None] * ANSWERED + [0] * misses + [1] * (REFUSE - misses),
            "over_refusal": [1] * 4 + [0] * (ANSWERED - 4) + nothing,
            "stop_rate": [1] * (ANSWERED + REFUSE),
        }

    def general(refused, broken):
        """Columns of general rows after those of the domain: so many are refused, so many answered
        otherwise than was asked."""
        own, answered = [None] * (ANSWERED + REFUSE), [1] * (len(GENERAL) - broken) + [0] * broken
        refusals = [1] * refused + [0] * (len(GENERAL) - refused)
        return {"general_over_refusal": own + refusals, "instruction_following": own + answered}

    candidate, production, base = side(effect, missed, 0.06), side(0, 1, 0.06), side(-0.35, 60, 0.1)
    times = random.lognormal(5.6, 0.25, 200)
    wins = random.choice(
        [1.0, 0.5, 0.0], ANSWERED, p=[0.3, 0.5, 0.2] if effect > 0 else [0.15, 0.5, 0.35]
    ).tolist()
    candidate |= {"win_rate": wins + nothing} | general(5, 62)
    production, base = production | general(4, 60), base | general(2, 57)
    columns = [
        {name: (column + [None] * len(GENERAL))[:ROWS] for name, column in one.items()}
        for one in (candidate, production, base)
    ]
    document = with_general(results(*columns), GENERAL, texts(np.random.default_rng(9)))
    for name, factor in (("candidate", 1.0), ("production", 0.99)):
        noise = random.normal(1, 0.03, 200)
        requests = [
            {"latency_ms": float(t * factor * e), "ttft_ms": 38.0, "tokens": 40}
            for t, e in zip(times, noise, strict=True)
        ]
        document["observations"]["speed"][name] = {
            "warm_up": 2,
            "concurrency": 8,
            "requests": requests,
            "failed": [],
        }
    for metrics in ("metrics", "production_metrics"):
        document[metrics]["throughput_tokens_per_sec"]["value"] = 8940.0
    document["metrics"]["rouge_l"]["floor"] = 0.3872
    document["metrics"]["latency_p95_ms"] = {
        "id": METRIC_IDS["latency_p95_ms"],
        "value": 415.0,
        "n": 200,
    }
    document["production"]["note"] = "Stable version of channel support-ko."
    document["refusal_detector"] |= detector_figures()
    document["slices"] |= {
        "task:extract": list(range(200)),
        "task:policy": list(range(200, ANSWERED)),
    }
    document["engine"] = {
        "version": "vllm 0.32.0",
        "dtype": "bfloat16",
        "device": "NVIDIA H100 80GB HBM3",
    }
    document["seconds"] = {"total": 412.0}
    counted = {
        name: wins.count(value) for name, value in (("wins", 1.0), ("ties", 0.5), ("losses", 0.0))
    }
    document["win_rate"] = {
        "judge": "some-large-model",
        "against": "production",
        "trial": 16,
        "trial_right": 16,
        **counted,
        "identical": 91,
        "swayed": 23,
        "unreadable": 0,
        "note": "found the expected answer better than another row's in 16 of 16 pairs",
    }
    return document


def texts(random):
    """Losses of the general texts; the candidate and production are a little worse than the base
    model."""
    base = random.normal(2.6, 0.3, len(TEXTS))
    sides = {"candidate": 0.031, "production": 0.027, "base": 0.0}
    noise = {"candidate": 0.02, "production": 0.02, "base": 0.0}
    losses = {
        side: (base + change + random.normal(0, noise[side], len(TEXTS))).round(4).tolist()
        for side, change in sides.items()
    }
    return {"languages": TEXTS, **losses}


@functools.cache
def judged(name):
    """Evaluation and verdict of one of `RUNS`."""
    document = evaluation(*RUNS[name], np.random.default_rng(5))
    gates = load_gates(ROOT / "configs/quality_gate.yaml")
    judged_on = [
        document["evaluation_data"]["sha256"],
        *(file["sha256"] for file in document["evaluation_data"]["general"]["rows"]),
    ]
    clean = {
        "files": [{"kind": "eval", "sha256": one} for one in judged_on],
        "counts": {},
        "findings": [],
    }
    return document, judge(
        document, gates, pins=Pins("support-ko", evaluation="d" * 64), data_report=clean
    )


def run(name, shown=24):
    """The report of one of `RUNS`."""
    document, gate = judged(name)
    manifest = whole_manifest(
        "b" * 64,
        64,
        ("llama3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct", "0e9e39f249a16976"),
    )
    losses = [2.4 * 0.985**step + 0.55 for step in range(160)]
    manifest["training"] |= {
        "steps": 160,
        "final_loss": losses[-1],
        "tokens_per_second": 14_806.0,
        "peak_memory_gib": 66.1,
        "loss_history": [
            {"step": n, "epoch": n / 80, "loss": loss, "learning_rate": 1e-4}
            for n, loss in enumerate(losses)
        ],
    }
    manifest |= {
        "total_seconds": 2260.0,
        "environment": {
            "device": "NVIDIA H100 80GB HBM3",
            "python": "3.11",
            "packages": {"vllm": "0.32.0"},
        },
    }
    moved = {"added": 42, "removed": 3, "changed": 11}
    return Report(
        gate=gate
        | {
            "gate_key": "4" * 64,
            "judged_at": "2026-11-25T12:00:00+00:00",
            "rollout": {"strategy": "canary", "steps": [10, 50, 100]},
        },
        results=document,
        samples=samples(RUNS[name][0] < 0, shown),
        training=manifest,
        data={
            "files": [
                {
                    "kind": "training",
                    "path": "data/training/support-ko.jsonl",
                    "rows": 5210,
                    "row_tokens": {"total": 1_204_331},
                    "drift": moved,
                }
            ]
        },
        plan={
            "adapters": [
                {
                    "name": "support-ko",
                    "minutes": 41.0,
                    "usd": 2.39,
                    "basis": "training on one h100",
                }
            ]
        },
    )


def main():
    for name in RUNS:
        write_bytes(
            EXAMPLES / f"comment-{name}.md",
            comment(run(name), html_url="https://example.invalid/report.html").encode(),
        )
        if len(sys.argv) > 1:
            write_bytes(Path(sys.argv[1]) / f"report-{name}.html", page(run(name, 1_000)).encode())
    print(json.dumps({name: run(name).gate["reason"] for name in RUNS}, indent=2))


if __name__ == "__main__":
    main()
