"""A GitHub that remembers comments: every request is held to GitHub's published API description
(github_api_slice.json)."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest

SLICE = Path(__file__).with_name("github_api_slice.json")


class GitHubFake:
    """Comments of one pull request.

    `failures` are statuses (with headers, and a message if it matters) that the next requests get
    instead of an answer, of the methods in `failing`; if `deaf`, a comment that fails is made all
    the same.
    """

    def __init__(self):
        self.api = OpenAPI.from_file_path(SLICE)
        self.comments = []
        self.failures = []
        self.failing = ("get", "post", "patch")
        self.deaf = False
        self.requests = []
        self.invalid = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                fake.answer(self)

            do_POST = do_PATCH = do_GET  # http.server's names  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def add(self, body, login="github-actions[bot]", kind="Bot"):
        number = len(self.comments) + 1
        comment = {
            "id": number,
            "body": body,
            "user": {"login": login, "id": 1, "type": kind},
            "html_url": f"https://github.com/o/r/pull/7#issuecomment-{number}",
            "url": f"{self.url}/repos/o/r/issues/comments/{number}",
        }
        self.comments.append(comment)
        return comment

    def answer(self, handler):
        method, (path, _, query) = handler.command.lower(), handler.path.partition("?")
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        self.requests.append((method, path))
        if self.failures and method in self.failing:
            status, headers, *message = self.failures.pop(0)
            if self.deaf:
                self.add(json.loads(body)["body"])
            return self._send(
                handler, status, {"message": message[0] if message else "injected"}, headers
            )
        args = dict(pair.split("=") for pair in query.split("&") if pair)
        request = MockRequest(
            "http://localhost",
            method,
            path,
            args=args,
            data=body or None,
            content_type="application/json",
        )
        try:
            self.api.validate_request(request)
        except OpenAPIError as error:
            self.invalid.append(f"{method} {path}: {error!r} {error.__cause__!r}")
            return self._send(handler, 422, {"message": str(error)})
        if method == "get" and path.endswith("/comments"):
            page, size = int(args.get("page", 1)), int(args.get("per_page", 30))
            shown = self.comments[(page - 1) * size : page * size]
            more = f'<{self.url}{path}?page={page + 1}&per_page={size}>; rel="next"'
            return self._send(
                handler, 200, shown, {"Link": more} if page * size < len(self.comments) else {}
            )
        if method == "get":
            issue = {
                "number": 7,
                "url": f"{self.url}{path}",
                "comments_url": f"{self.url}{path}/comments",
            }
            return self._send(handler, 200, issue)
        text = json.loads(body)["body"]
        if len(text) > 65_536:
            return self._send(
                handler, 422, {"message": "body is too long (maximum is 65536 characters)"}
            )
        if method == "post":
            return self._send(handler, 201, self.add(text))
        comment = self.comments[int(path.rsplit("/", 1)[1]) - 1]
        comment["body"] = text
        return self._send(handler, 200, comment)

    @staticmethod
    def _send(handler, status, document, headers=()):
        content = json.dumps(document).encode()
        handler.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": len(content),
            **dict(headers),
        }.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(content)
