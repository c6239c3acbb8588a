"""The speed phase asks both sides the same prompts in turn, so that a slow spell of the machine
meets both."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from adapterops.evaluate.phases import Phases, turns_of
from adapterops.evaluate.responses import Responses

SCOPE = {"decoding": {"temperature": 0}}
OWN = 6


def test_each_prompt_is_asked_by_every_side_at_once():
    turns = turns_of(["candidate", "production"], list(range(50)), SCOPE)
    pairs = list(zip(turns[::2], turns[1::2], strict=True))
    assert all(first[1] == second[1] for first, second in pairs)
    assert all({first[0], second[0]} == {"candidate", "production"} for first, second in pairs)
    assert sorted(first[1] for first, _ in pairs) == list(range(50))


def test_neither_side_is_always_first_and_the_prompts_are_shuffled():
    turns = turns_of(["candidate", "production"], list(range(200)), SCOPE)
    first = sum(label == "candidate" for label, _ in turns[::2])
    assert 70 < first < 130
    assert [prompt for _, prompt in turns[::2]] != list(range(200))


def test_the_order_is_that_of_the_content():
    labels, prompts = ["candidate", "production"], list(range(20))
    assert turns_of(labels, prompts, SCOPE) == turns_of(labels, prompts, SCOPE)
    assert turns_of(labels, prompts, SCOPE) != turns_of(
        labels, prompts, {"decoding": {"temperature": 1}}
    )


def test_prompts_that_are_asked_several_times_stay_several():
    turns = turns_of(["candidate"], [0, 0, 0, 1], SCOPE)
    assert sorted(prompt for _, prompt in turns) == [0, 0, 0, 1]


@pytest.fixture
def engine():
    """Answers every chat request, and keeps what was asked in order."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked.append((self.path, body))
            content = b"ok"
            if self.path == "/v1/completions":
                content = self.likelihood(body)
            if self.path == "/v1/chat/completions":
                content = self.completion(body)
            self.send_response(200)
            stream = bool(body.get("stream"))
            self.send_header("content-type", "text/event-stream" if stream else "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def likelihood(self, body):
            """An adapter finds each text half a nat per token less likely."""
            logprob = -2.0 if body["model"] == "base" else -2.5
            choice = {
                "index": 0,
                "text": "",
                "finish_reason": "length",
                "prompt_logprobs": [None, {"5": {"logprob": logprob}}],
            }
            return json.dumps(
                {
                    "id": "1",
                    "created": 1,
                    "model": body["model"],
                    "object": "text_completion",
                    "choices": [choice],
                }
            ).encode()

        def completion(self, body):
            head = {"id": "1", "created": 1, "model": body["model"]}
            usage = {"completion_tokens": 2, "prompt_tokens": 1, "total_tokens": 3}
            if not body.get("stream"):
                message = {"role": "assistant", "content": "ok"}
                choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
                return json.dumps(
                    {**head, "object": "chat.completion", "choices": choices, "usage": usage}
                ).encode()
            choices = [{"index": 0, "delta": {"content": "ok"}, "finish_reason": "stop"}]
            chunk = json.dumps(
                {**head, "object": "chat.completion.chunk", "choices": choices, "usage": usage}
            )
            return f"data: {chunk}\n\ndata: [DONE]\n\n".encode()

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", asked
    running.shutdown()
    running.server_close()


def measured(engine, tmp_path, sides):
    url, asked = engine
    prompts = [
        [{"role": "user", "content": f"question {number}"}] for number in range(OWN + 3)
    ]  # the last three are general
    with Responses(tmp_path / "responses.sqlite") as known:
        phases = Phases(
            url,
            prompts,
            SCOPE,
            8,
            10,
            1,
            known,
            Console(quiet=True),
            timed=OWN,
            texts=["One text.", "Another."],
        )
        base = phases.base("base")
        found = phases.adapters(
            {label: (digest, tmp_path) for label, digest in sides.items()}, base
        )
    return found, asked


def test_quality_comes_before_speed_and_speed_goes_in_turn(engine, tmp_path):
    found, asked = measured(engine, tmp_path, {"candidate": "c" * 64, "production": "d" * 64})
    paths = [path.rpartition("/")[2] for path, _ in asked]
    assert paths.count("load_lora_adapter") == paths.count("unload_lora_adapter") == 2
    speed = [body for path, body in asked if body.get("stream")]
    assert len(speed) == 2 * (10 + 2)  # two of each side are warm-up
    for first, second in zip(speed[::2], speed[1::2], strict=True):
        assert first["messages"] == second["messages"]
        assert first["model"] != second["model"]
    last_of_quality = max(
        i for i, (path, body) in enumerate(asked) if "messages" in body and not body.get("stream")
    )
    assert last_of_quality < min(i for i, (_, body) in enumerate(asked) if body.get("stream"))
    assert [len(side.speed) for side in found.values()] == [10, 10]


def test_the_speed_phase_asks_no_general_row_and_texts_are_read_after_it(engine, tmp_path):
    found, asked = measured(engine, tmp_path, {"candidate": "c" * 64, "production": "d" * 64})
    speed = [i for i, (_, body) in enumerate(asked) if body.get("stream")]
    questions = {asked[i][1]["messages"][0]["content"] for i in speed}
    assert questions == {f"question {number}" for number in range(OWN)}
    texts = [
        i for i, (_, body) in enumerate(asked) if body.get("prompt") and body["model"] != "base"
    ]
    assert len(texts) == 4
    assert min(texts) > max(speed)
    assert {label: side.losses for label, side in found.items()} == {
        "candidate": [2.5, 2.5],
        "production": [2.5, 2.5],
    }


def test_without_production_the_candidate_is_measured_alone(engine, tmp_path):
    found, asked = measured(engine, tmp_path, {"candidate": "c" * 64})
    assert sum(bool(body.get("stream")) for _, body in asked) == 12
    assert list(found) == ["candidate"]


def test_an_adapter_is_compared_with_itself_under_two_names(engine, tmp_path):
    found, asked = measured(engine, tmp_path, {"candidate": "c" * 64, "production": "c" * 64})
    names = {body["lora_name"] for path, body in asked if path.endswith("load_lora_adapter")}
    assert len(names) == 2
    assert [len(side.speed) for side in found.values()] == [10, 10]
