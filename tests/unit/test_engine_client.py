"""How the engine's client connects; what engines answer is in the integration tests."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adapterops.engine.client import greedy_answer, is_healthy, served_models, unload_adapter
from adapterops.errors import InfrastructureError, RejectedError

MODELS = {"data": [{"id": "support-1", "root": "/adapters/1"}]}


@pytest.fixture
def engine():
    """An engine that does as `answers` says: status, headers and body by path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            server.seen.append((self.command, self.path, self.headers, self.client_address))
            length = int(self.headers.get("content-length", 0))
            server.bodies.append(self.rfile.read(length))
            status, headers, body = server.answers[self.path]
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.bodies = [], []
    server.answers = {
        "/v1/models": (200, {}, json.dumps(MODELS).encode()),
        "/health": (200, {}, b""),
    }
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_models_are_read_past_a_proxy_and_on_a_new_connection_each(engine, monkeypatch):
    """A connection that is kept may be of an engine that was restarted meanwhile."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for _ in range(3):
        assert served_models(engine.url) == {"support-1": "/adapters/1"}
    assert len({address for *_, address in engine.seen}) == 3
    assert engine.seen[0][2]["Accept-Encoding"] == "identity"


def test_a_document_is_posted_as_json(engine):
    engine.answers["/v1/unload_lora_adapter"] = (404, {}, b"")
    unload_adapter(engine.url, "support-1")
    (command, _, headers, _), (body,) = engine.seen[0], engine.bodies
    assert (command, headers["Content-Type"]) == ("POST", "application/json")
    assert json.loads(body) == {"lora_name": "support-1"}


def test_an_answer_of_another_status_is_an_answer(engine):
    engine.answers["/v1/chat/completions"] = (400, {}, b'{"error": {"message": "too long"}}')
    with pytest.raises(RejectedError, match=r"\(400\): too long"):
        greedy_answer(engine.url, "support-1", [], 8)


def test_a_reading_request_follows_and_a_changing_one_does_not(engine):
    moved = {"location": "/v1/models"}
    engine.answers["/old/v1/models"] = (307, moved, b"")
    assert served_models(f"{engine.url}/old") == {"support-1": "/adapters/1"}
    engine.answers["/v1/unload_lora_adapter"] = (307, moved, b"")
    with pytest.raises(InfrastructureError, match=r"did not unload support-1 \(307\)"):
        unload_adapter(engine.url, "support-1")


def test_what_does_not_answer_is_said_with_its_path(engine):
    engine.server_close()
    engine.shutdown()
    assert not is_healthy(engine.url)
    with pytest.raises(InfrastructureError, match=r"does not answer \(/v1/models\): .*refused"):
        served_models(engine.url)


def test_a_file_is_no_engine(tmp_path):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text(json.dumps(MODELS))
    with pytest.raises(InfrastructureError, match="does not answer"):
        served_models(f"file://{tmp_path}")
