"""Answers are kept as they are given: an interrupted evaluation goes on, and a failed request is an
answer that says so."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adapterops.engine.answers import Answer
from adapterops.engine.generate import generate
from adapterops.errors import InfrastructureError, UsageError
from adapterops.evaluate.responses import Responses, response_key

SCOPE = {"adapter": "a" * 64, "decoding": {"temperature": 0}}
PROMPTS = [[{"role": "user", "content": f"질문 {number}"}] for number in range(4)]
KEYS = [response_key(SCOPE, prompt) for prompt in PROMPTS]


def answer(text="네", tokens=5, **more):
    return Answer(text, "stop", tokens, 10.0, **more)


def test_what_was_answered_before_an_interruption_is_there_afterwards(tmp_path):
    path = tmp_path / "responses.sqlite"
    with pytest.raises(KeyboardInterrupt), Responses(path) as first:
        first.start()
        first.keep(KEYS[0], answer("하나"))
        first.keep(KEYS[2], answer("셋"))
        raise KeyboardInterrupt
    with Responses(path) as second:
        assert {i: found.text for i, found in second.find(KEYS).items()} == {0: "하나", 2: "셋"}


def test_another_adapter_decoding_or_engine_shares_no_answer():
    assert (
        len(
            {
                response_key(scope, PROMPTS[0])
                for scope in (SCOPE, SCOPE | {"adapter": None}, SCOPE | {"engine": "x"})
            }
        )
        == 3
    )


def test_failed_answers_are_not_kept_and_a_forced_evaluation_takes_none(tmp_path):
    with Responses(tmp_path / "r.sqlite") as responses:
        responses.keep(KEYS[0], Answer("", "error", 0, 1.0, error="500: down"))
        responses.keep(KEYS[1], answer())
        assert list(responses.find(KEYS)) == [1]
    with Responses(tmp_path / "r.sqlite", fresh=True) as forced:
        assert forced.find(KEYS) == {}


def test_throughput_is_that_of_the_session_that_gave_most_answers(tmp_path):
    with Responses(tmp_path / "r.sqlite") as responses:
        responses.start()
        for key in KEYS[:3]:
            responses.keep(key, answer(tokens=10))
        responses.start()
        responses.keep(KEYS[3], answer(tokens=1000))
        tokens, seconds = responses.throughput(KEYS)
    assert tokens == 30
    assert seconds > 0


def test_a_file_that_is_no_database_is_named_with_the_way_out(tmp_path):
    (tmp_path / "r.sqlite").write_text("not a database, but long enough to be taken for one" * 20)
    with pytest.raises(UsageError, match="Remove it"):
        Responses(tmp_path / "r.sqlite")


@pytest.fixture
def server():
    """An OpenAI-compatible server that refuses prompts with `bad` in them."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bad = "bad" in asked["messages"][0]["content"]
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": "ok"},
                "finish_reason": "stop",
            }
            good = {
                "id": "1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [choice],
            }
            good["usage"] = {"completion_tokens": 2, "prompt_tokens": 1, "total_tokens": 3}
            content = json.dumps(
                {"error": {"message": "prompt too long"}} if bad else good
            ).encode()
            self.send_response(400 if bad else 200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def prompts(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def test_a_refused_request_is_a_failed_answer_and_the_others_are_given_in_order(server):
    seen = {}
    answers = generate(
        server,
        "m",
        prompts("a", "bad", "c"),
        max_tokens=4,
        on_answer=lambda i, found: seen.update({i: found}),
    )
    assert [found.text for found in answers] == ["ok", "", "ok"]
    assert answers[1].finish_reason == "error"
    assert "prompt too long" in answers[1].error
    assert seen == dict(enumerate(answers))


def test_a_server_that_fails_everything_or_is_gone_ends_the_evaluation(server):
    with pytest.raises(InfrastructureError, match="failed every request"):
        generate(server, "m", prompts("bad", "bad"), max_tokens=4)
    with pytest.raises(InfrastructureError, match="does not answer any more"):
        generate("http://127.0.0.1:1", "m", prompts("a"), max_tokens=4)
