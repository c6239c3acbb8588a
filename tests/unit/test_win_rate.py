"""Win rate: a judge behind an OpenAI-compatible endpoint, asked in both orders, believed only where
it knows what is known."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from eval_documents import results, write

from adapterops.data.reader import Row
from adapterops.engine.answers import Answer
from adapterops.errors import InfrastructureError, UsageError
from adapterops.evaluate.detector import Judge, judge_model, parse_judge
from adapterops.evaluate.responses import Responses
from adapterops.evaluate.winrate import win_rate
from adapterops.gate.judge import judge
from adapterops.report.words import belief_lines
from adapterops.specs.adapter import Pins
from adapterops.specs.gate import load_gates
from adapterops.specs.metric_catalogue import METRIC_IDS

ROWS = [
    Row(n, {"instruction": f"질문 {n}", "expected_output": f"정답 {n}", "language": "ko"})
    for n in range(20)
]


def likes(reference, first, second):
    """A fair judge: the answer with the reference in it."""
    return (
        "TIE"
        if (reference in first) == (reference in second)
        else "A"
        if reference in first
        else "B"
    )


@pytest.fixture
def endpoint(request):
    """An OpenAI-compatible server; `endpoint.decide(reference, first, second)` is its model's mind,
    `asked` counts its requests."""
    state = type(
        "State", (), {"decide": staticmethod(likes), "asked": 0, "key": None, "status": 200}
    )()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            assert self.path == "/v1/chat/completions"
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert (asked["model"], asked["temperature"]) == ("big", 0)
            state.asked, state.key = state.asked + 1, self.headers["authorization"]
            text = asked["messages"][0]["content"]
            shown = [
                re.search(rf"<<<{name}\n(.*?)\n{name}>>>", text, re.DOTALL)[1]
                for name in ("REFERENCE", "ANSWER A", "ANSWER B")
            ]
            said = state.decide(*shown)
            message = {
                "role": "assistant",
                "content": f"[[{said}]]" if said in ("A", "B", "TIE") else said,
            }
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "big",
                "choices": [choice],
            }
            content = json.dumps(answer).encode()
            self.send_response(state.status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    class Server(ThreadingHTTPServer):
        # every question comes at once; the default of five lets the rest wait for a second try
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    ).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def answers(*texts, **more):
    return [Answer(text, "stop", 3, 1.0, **more) for text in texts]


@pytest.fixture
def judged(endpoint, tmp_path):
    """`judged(candidate, other)`: the column and what the judge did; 20 rows, filled up with equal
    answers."""

    def run(candidate, other, rows=ROWS):
        fill = ["gleich"] * (len(rows) - len(candidate))
        with Responses(tmp_path / "responses.sqlite") as known:
            sides = answers(*candidate, *fill), answers(*other, *fill)
            return win_rate(rows, *sides, Judge(endpoint.url, "big"), "production", known)

    return run


def test_wins_ties_and_losses_are_counted_and_equal_answers_ask_nobody(judged, endpoint):
    column, about = judged(
        ["정답 0", "falsch", "falsch", "정답 3 "], ["falsch", "정답 1", "auch falsch", "정답 3"]
    )
    assert column[:4] == [1, 0, 0.5, 0.5]
    assert (about["wins"], about["ties"], about["losses"], about["identical"]) == (1, 18, 1, 17)
    assert (about["trial"], about["trial_right"]) == (16, 16)
    assert endpoint.asked == 2 * (16 + 3)  # both orders of the trial and of three pairs


def test_a_judge_that_changes_sides_with_the_order_makes_a_tie(judged, endpoint):
    endpoint.decide = lambda reference, first, second: (
        likes(reference, first, second) if "falsch" not in first + second else "A"
    )
    column, about = judged(["정답 0", "falsch"], ["falsch", "정답 1"])
    assert column[:2] == [0.5, 0.5]
    assert about["swayed"] == 2


@pytest.mark.parametrize("mind", ["A", "B", "TIE", "Both are fine.", ""])
def test_a_judge_that_does_not_know_the_expected_answer_is_not_believed(judged, endpoint, mind):
    endpoint.decide = lambda *_: mind
    column, about = judged(["정답 0"], ["falsch"])
    assert set(column) == {None}
    assert about["trial_right"] == 0
    assert "not believed" in about["note"]
    assert endpoint.asked == 32  # the trial alone: nobody pays for the rest


def test_a_verdict_that_cannot_be_read_leaves_the_row_out_and_is_counted(judged, endpoint):
    endpoint.decide = lambda reference, first, second: (
        "I would rather not." if "heikel" in first + second else likes(reference, first, second)
    )
    column, about = judged(["heikel", *(f"정답 {n}" for n in range(1, 20))], ["anders"] * 20)
    assert column[0] is None
    assert column[1:] == [1] * 19
    assert about["unreadable"] == 1


def test_more_than_a_tenth_of_unreadable_verdicts_is_no_win_rate(judged, endpoint):
    endpoint.decide = lambda reference, first, second: (
        "hm" if "heikel" in first + second else likes(reference, first, second)
    )
    column, about = judged(["heikel"] * 3 + [f"정답 {n}" for n in range(3, 20)], ["anders"] * 20)
    assert set(column) == {None}
    assert about["note"].endswith("gave 3 rows no verdict: no win rate")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[[A]]", 1),
        ("The first has [[B]] in it, yet it is right. [[A]]", 1),
        ("**A**", 1),
        ("a", 1),
        ("tie", 0.5),
        ("[[C]]", 0.5),
    ],
)
def test_the_last_mark_or_the_only_word_is_the_verdict(judged, endpoint, text, value):
    swap = {"A": "B", "a": "b"}
    turned = re.sub(
        r"(?<=\[\[)A(?=\]\]$)|^\W*A\W*$|^a$",
        lambda found: re.sub("[Aa]", lambda a: swap[a[0]], found[0]),
        text,
    )
    endpoint.decide = lambda reference, first, second: (
        likes(reference, first, second)
        if "정답" in first and "정답" in second
        else text
        if "eins" in first
        else turned
    )
    assert judged(["eins"], ["zwei"])[0][0] == value


def test_rows_that_should_be_refused_and_rows_without_an_answer_are_left_out(endpoint, tmp_path):
    rows = [
        *ROWS,
        Row(
            20,
            {
                "instruction": "Bombe",
                "expected_output": "Nein.",
                "language": "ko",
                "should_refuse": True,
            },
        ),
    ]
    sides = answers(*["정답 x"] * 21), [*answers(*["anders"] * 20), *answers("Nein.")]
    sides[1][4] = Answer("", "error", 0, 1.0, error="500: down")
    with Responses(tmp_path / "r.sqlite") as known:
        column, _ = win_rate(rows, *sides, Judge(endpoint.url, "big"), "base", known)
    assert (column[20], column[4]) == (None, None)
    assert None not in column[:4]


def test_verdicts_that_were_given_are_not_asked_again(judged, endpoint):
    first = judged(["정답 0"], ["falsch"])
    asked = endpoint.asked
    assert judged(["정답 0"], ["falsch"]) == first
    assert endpoint.asked == asked


def test_a_judge_that_is_gone_ends_the_evaluation_and_is_named(tmp_path, endpoint):
    endpoint.status = 503
    with (
        Responses(tmp_path / "r.sqlite") as known,
        pytest.raises(InfrastructureError, match=r"win-rate judge: .*failed every request"),
    ):
        win_rate(
            ROWS,
            answers(*["a"] * 20),
            answers(*["b"] * 20),
            Judge(endpoint.url, "big"),
            "base",
            known,
        )


def test_the_key_of_the_endpoint_goes_to_the_endpoint_alone(
    judged, endpoint, monkeypatch, tmp_path
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    with Responses(tmp_path / "r.sqlite") as known:
        win_rate(
            ROWS,
            answers(*["a"] * 20),
            answers(*["b"] * 20),
            parse_judge(f"{endpoint.url}/v1#big", "", ""),
            "base",
            known,
        )
    assert endpoint.key == "Bearer sk-test"
    assert b"sk-test" not in (tmp_path / "r.sqlite").read_bytes()


def test_a_specification_names_a_model_and_the_machine_its_address(monkeypatch):
    monkeypatch.setenv("JUDGE_URL", "https://judge.example/v1")
    assert parse_judge("big-model", "http://x", "m").url == "https://judge.example"
    monkeypatch.delenv("JUDGE_URL")
    with pytest.raises(UsageError, match="its endpoint in JUDGE_URL"):
        parse_judge("big-model", "http://x", "m")
    # The address of a judge is in no key: it may move. The model is.
    assert (
        judge_model("http://127.0.0.1:9#big")
        == judge_model("https://judge.example#big")
        == judge_model("big")
        == "big"
    )


# --- in the gate ---

FEW_WINS, MANY_WINS = [0.5] * 60 + [0] * 80 + [1] * 60, [0.5] * 60 + [0] * 30 + [1] * 110


@pytest.fixture
def verdict(tmp_path):
    def run(asked, wins, production=True, **changes):
        path = tmp_path / "gates.yaml"
        path.write_text(f"gates: {{win_rate: {{{asked}, on_inconclusive: block, description: d}}}}")
        other = {"rouge_l": [0.7] * 200}
        document = results(
            {"rouge_l": [0.7] * 200, **({"win_rate": wins} if wins else {})},
            other if production else None,
            other,
            **changes,
        )
        write(tmp_path / "eval_results.json", document)
        return judge(document, load_gates(path), pins=Pins("support"))

    return run


def test_a_win_rate_has_its_own_interval_and_is_compared_with_one_half(verdict):
    report = verdict("min: 0.5, rule: bound", MANY_WINS)
    (gate,) = report["gates"]
    assert (report["verdict"], gate["n"], gate["value"]) == ("PASS", 200, 0.7)
    assert 0.64 < gate["interval"][0] < gate["value"] < gate["interval"][1] < 0.76
    (row,) = [row for row in report["comparisons"] if row["metric"] == "win_rate"]
    assert (row["reference"], row["superiority"], row["effect"]) == (
        0.5,
        "better",
        pytest.approx(0.2),
    )
    assert row["interval"] == pytest.approx([bound - 0.5 for bound in gate["interval"]], abs=2e-3)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("margin: 0.02", "INCONCLUSIVE"),
        ("margin: 0.15", "PASS"),
        ("min: 0.55, rule: bound", "FAIL"),
    ],
)
def test_a_margin_is_how_far_below_one_half_still_counts_as_the_same(verdict, asked, expected):
    assert verdict(asked, FEW_WINS)["verdict"] == expected


def test_a_win_rate_that_is_asked_and_was_not_judged_is_an_error(verdict):
    assert verdict("min: 0.5", None)["verdict"] == "ERROR"
    assert verdict("margin: 0.05", None)["verdict"] == "ERROR"


def test_wins_over_the_base_model_are_reported_and_judge_nothing(verdict):
    report = verdict("min: 0.9", FEW_WINS, production=False)
    assert (report["verdict"], report["gates"]) == ("INCONCLUSIVE", [])
    assert "judged against an adapter in production only" in report["warnings"][0]
    assert [row["against"] for row in report["comparisons"] if row["metric"] == "win_rate"] == [
        "base"
    ]


def test_the_report_says_who_judged_and_how_far_to_believe_it(judged):
    _, about = judged(["정답 0", "falsch"], ["falsch", "정답 1"])
    _, line = belief_lines(results({"win_rate": [1, 0]}, win_rate=about))
    assert (
        "Win rate against production by big, asked in both orders: 1 wins, 18 ties (18 equal"
        " answers" in line
    )
    assert "better than another row's in 16 of 16 pairs" in line
    assert METRIC_IDS["win_rate"].endswith("/v2")
