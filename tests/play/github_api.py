# every route has the same arguments; http.server names its methods
"""A GitHub API on loopback that remembers, and refuses what GitHub's own description of its API
refuses."""

import datetime
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from openapi_core import OpenAPI
from openapi_core.exceptions import OpenAPIError
from openapi_core.testing import MockRequest

DESCRIPTION = Path(__file__).with_name("github-openapi.json")
NAME = "your-org/qlora-gitops"
BOT = {"login": "github-actions[bot]", "type": "Bot", "id": 41898282}


def now():
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class GitHub:
    """State, and the server that shows it; use as a context manager.

    `requests` lists what was asked (method, path, body), `refused` what broke the description.
    """

    def __init__(self):
        self.api = OpenAPI.from_dict(json.loads(DESCRIPTION.read_text()))
        self.lock = threading.Lock()
        self.requests, self.refused, self.failures = [], [], []
        self.issues, self.pulls, self.comments, self.reactions = {}, {}, {}, []
        self.deployments, self.releases, self.runs, self.dispatches, self.rulesets = (
            {},
            {},
            [],
            [],
            {},
        )
        self.permissions, self.pushes, self.label_events = {}, [], {}
        self.numbers = iter(range(1, 10_000))

    def __enter__(self):
        github = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self):
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                status, document = github.handle(self.command, self.path, body, self.headers)
                content = json.dumps(document).encode() if document is not None else b""
                self.send_response(status)
                self.send_header("content-type", "application/json; charset=utf-8")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def pull_request(self, head, sha, *, fork=False, labels=()):
        """Open a pull request; returns its number."""
        number = next(self.numbers)
        repository = "somebody/qlora-gitops" if fork else NAME
        self.issues[number] = {
            "number": number,
            "title": head,
            "state": "open",
            "user": {"login": "curator", "type": "User"},
            "body": "",
            "labels": [],
            "pull_request": {"url": "x"},
            "html_url": f"{self.url}/pull/{number}",
        }
        self.pulls[number] = {
            "number": number,
            "state": "open",
            "title": head,
            "html_url": f"{self.url}/pull/{number}",
            "url": f"{self.url}/repos/{NAME}/pulls/{number}",
            "issue_url": f"{self.url}/repos/{NAME}/issues/{number}",
            "user": {"login": "curator", "type": "User"},
            "head": {"ref": head, "sha": sha, "repo": {"full_name": repository, "fork": fork}},
            "base": {"ref": "main"},
        }
        self.pushed(head, sha)
        for label in labels:
            self.labelled(number, label)
        return number

    def pushed(self, branch, sha, at=None, kind="push"):
        """A branch moves: what GitHub lists as an activity."""
        before = next(
            (
                push["after"]
                for push in reversed(self.pushes)
                if push["ref"] == f"refs/heads/{branch}"
            ),
            "0" * 40,
        )
        identity = len(self.pushes) + 1
        facts = {
            "id": identity,
            "node_id": f"PSH_{identity}",
            "before": before,
            "after": sha,
            "ref": f"refs/heads/{branch}",
        }
        self.pushes.append(
            {
                **facts,
                "timestamp": at or now(),
                "activity_type": kind,
                "actor": {"login": "curator"},
            }
        )

    def labelled(self, number, name, at=None, by="platform", kind="User"):
        """Somebody sets a label; one that stands already makes no event."""
        known = self.issues[number]["labels"]
        if name not in [label["name"] for label in known]:
            known.append({"name": name})
        label = {"name": name, "color": "ededed"}
        event = {
            "id": next(self.numbers),
            "event": "labeled",
            "label": label,
            "created_at": at or now(),
            "actor": {"login": by, "type": kind},
        }
        self.label_events.setdefault(number, []).append(event)

    def comments_on(self, number):
        return [comment["body"] for comment in self.comments.values() if comment["issue"] == number]

    def handle(self, method, path, body, headers):
        split = urlsplit(path)
        if split.path == "/oidc":  # the runner's own token service, no part of the API
            return 200, {"value": "eyJhbGciOiJub25lIn0.e30."}
        document = json.loads(body) if body else None
        with self.lock:
            self.requests.append((method, split.path, document))
            if self.failures:
                return self.failures.pop(0), {"message": "injected"}
            if not (headers.get("authorization") or "").strip():
                return 401, {"message": "Requires authentication"}
            request = MockRequest(
                "https://api.github.com",
                method.lower(),
                split.path,
                args={key: values[-1] for key, values in parse_qs(split.query).items()},
                data=body or None,
                content_type="application/json",
            )
            try:
                self.api.validate_request(request)
            except OpenAPIError as error:
                cause = getattr(error.__cause__, "schema_errors", None) or [
                    error.__cause__ or error
                ]
                said = "; ".join(str(getattr(one, "message", one)) for one in cause)
                self.refused.append((method, split.path, said))
                return 422, {"message": f"Validation Failed: {said}"}
            return self.route(
                method,
                split.path.removeprefix(f"/repos/{NAME}"),
                document or {},
                parse_qs(split.query),
            )

    def route(self, method, path, body, query):
        for pattern, handler in ROUTES:
            if (found := re.fullmatch(pattern, f"{method} {path}")) is not None:
                return handler(self, *found.groups(), body, query)
        return 404, {"message": f"Not Found: {method} {path}"}

    def repository(self, body, query):  # noqa: ARG002
        owner, name = NAME.split("/")
        return 200, {
            "id": 1,
            "full_name": NAME,
            "name": name,
            "default_branch": "main",
            "owner": {"login": owner, "type": "Organization"},
            "url": f"{self.url}/repos/{NAME}",
            "html_url": f"{self.url}/{NAME}",
        }

    def issue(self, number, body, query):  # noqa: ARG002
        known = self.issues.get(int(number))
        return (
            (200, {**known, "url": f"{self.url}/repos/{NAME}/issues/{number}"})
            if known
            else (404, {"message": "Not Found"})
        )

    def issue_events(self, number, body, query):  # noqa: ARG002
        page = int(query.get("page", ["1"])[0])
        return 200, self.label_events.get(int(number), []) if page == 1 else []

    def activity(self, body, query):  # noqa: ARG002
        ref = query.get("ref", [""])[0]
        return 200, [
            push
            for push in reversed(self.pushes)
            if ref in ("", push["ref"], push["ref"].removeprefix("refs/heads/"))
        ]

    def edit_issue(self, number, body, query):
        self.issues[int(number)] |= body
        return self.issue(number, body, query)

    def list_issues(self, body, query):  # noqa: ARG002
        return 200, [
            self.issue(number, {}, {})[1]
            for number, issue in self.issues.items()
            if issue["state"] == "open"
        ]

    def create_issue(self, body, query):  # noqa: ARG002
        number = next(self.numbers)
        self.issues[number] = {
            "number": number,
            "state": "open",
            "user": BOT,
            "labels": [],
            "html_url": f"{self.url}/issues/{number}",
            **body,
        }
        return 201, self.issue(number, {}, {})[1]

    def pull(self, number, body, query):  # noqa: ARG002
        known = self.pulls.get(int(number))
        return (200, known) if known else (404, {"message": "Not Found"})

    def list_pulls(self, body, query):  # noqa: ARG002
        head = query.get("head", [""])[0].partition(":")[2]
        return 200, [
            pull
            for pull in self.pulls.values()
            if pull["state"] == "open" and head in ("", pull["head"]["ref"])
        ]

    def create_pull(self, body, query):  # noqa: ARG002
        number = self.pull_request(body["head"], "0" * 40)
        self.pulls[number]["title"] = body["title"]
        return 201, self.pulls[number]

    def list_comments(self, number, body, query):  # noqa: ARG002
        return 200, [
            self.comment_document(comment)
            for comment in self.comments.values()
            if comment["issue"] == int(number)
        ]

    def comment_document(self, comment):
        return {key: value for key, value in comment.items() if key != "issue"} | {
            "url": f"{self.url}/repos/{NAME}/issues/comments/{comment['id']}",
            "html_url": f"{self.url}/comment/{comment['id']}",
        }

    def create_comment(self, number, body, query):  # noqa: ARG002
        if len(body["body"]) > 65_536:
            return 422, {"message": "body is too long (maximum is 65536 characters)"}
        return 201, self.comment_document(self.add_comment(int(number), body["body"], BOT))

    def add_comment(self, number, text, user):
        identity = next(self.numbers)
        self.comments[identity] = {
            "id": identity,
            "issue": number,
            "body": text,
            "user": user,
            "created_at": now(),
            "updated_at": now(),
        }
        return self.comments[identity]

    def comment(self, identity, body, query):  # noqa: ARG002
        known = self.comments.get(int(identity))
        return (200, self.comment_document(known)) if known else (404, {"message": "Not Found"})

    def edit_comment(self, identity, body, query):
        self.comments[int(identity)] |= {"body": body["body"], "updated_at": now()}
        return self.comment(identity, body, query)

    def delete_comment(self, identity, body, query):  # noqa: ARG002
        del self.comments[int(identity)]
        return 204, None

    def react(self, identity, body, query):  # noqa: ARG002
        self.reactions.append((int(identity), body["content"]))
        return 201, {"id": len(self.reactions), "content": body["content"], "user": BOT}

    def permission(self, user, body, query):  # noqa: ARG002
        return 200, {
            "permission": self.permissions.get(user, "read"),
            "role_name": "x",
            "user": {"login": user},
        }

    def workflow(self, name, body, query):  # noqa: ARG002
        return 200, {
            "id": 1,
            "name": name,
            "path": f".github/workflows/{name}",
            "url": f"{self.url}/repos/{NAME}/actions/workflows/{name}",
        }

    def list_runs(self, name, body, query):  # noqa: ARG002
        head = query.get("head_sha", [""])[0]
        found = [
            run
            | {
                "url": f"{self.url}/repos/{NAME}/actions/runs/{run['id']}",
                "html_url": f"{self.url}/runs/{run['id']}",
                "rerun_url": f"{self.url}/repos/{NAME}/actions/runs/{run['id']}/rerun",
                "cancel_url": f"{self.url}/repos/{NAME}/actions/runs/{run['id']}/cancel",
            }
            for run in self.runs
            if run["head_sha"] == head
        ]
        return 200, {"total_count": len(found), "workflow_runs": found}

    def dispatch(self, name, body, query):  # noqa: ARG002
        self.dispatches.append((name, body))
        return 204, None

    def restart(self, identity, how, body, query):  # noqa: ARG002
        self.dispatches.append((how, int(identity)))
        return (202 if how == "cancel" else 201), {}

    def create_deployment(self, body, query):  # noqa: ARG002
        identity = next(self.numbers)
        self.deployments[identity] = {"id": identity, "statuses": [], **body}
        return 201, self.deployment_document(identity)

    def deployment_document(self, identity):
        return {
            **self.deployments[identity],
            "url": f"{self.url}/repos/{NAME}/deployments/{identity}",
            "statuses_url": f"{self.url}/repos/{NAME}/deployments/{identity}/statuses",
        }

    def deployment(self, identity, body, query):  # noqa: ARG002
        return 200, self.deployment_document(int(identity))

    def deployment_status(self, identity, body, query):  # noqa: ARG002
        self.deployments[int(identity)]["statuses"].append(body["state"])
        return 201, {"id": 1, "state": body["state"]}

    def create_release(self, body, query):  # noqa: ARG002
        self.releases[body["tag_name"]] = body
        return 201, {
            "id": len(self.releases),
            **body,
            "html_url": f"{self.url}/releases/{body['tag_name']}",
        }

    def release(self, tag, body, query):  # noqa: ARG002
        known = self.releases.get(tag)
        return (
            (200, {"id": 1, **known, "html_url": f"{self.url}/releases/{tag}"})
            if known
            else (404, {"message": "Not Found"})
        )

    def list_rulesets(self, body, query):  # noqa: ARG002
        return 200, [
            {"id": identity, "name": ruleset["name"]} for identity, ruleset in self.rulesets.items()
        ]

    def create_ruleset(self, body, query):  # noqa: ARG002
        identity = next(self.numbers)
        self.rulesets[identity] = body
        return 201, {"id": identity, **body}

    def ruleset(self, identity, body, query):  # noqa: ARG002
        return 200, {"id": int(identity), **self.rulesets[int(identity)]}

    def replace_ruleset(self, identity, body, query):  # noqa: ARG002
        self.rulesets[int(identity)] = body
        return 200, {"id": int(identity), **body}

    def accept(self, body, query):  # noqa: ARG002
        return 201, {}


ROUTES = [
    (r"GET ", GitHub.repository),
    (r"GET /issues/(\d+)", GitHub.issue),
    (r"GET /issues/(\d+)/events", GitHub.issue_events),
    (r"GET /activity", GitHub.activity),
    (r"PATCH /issues/(\d+)", GitHub.edit_issue),
    (r"GET /issues", GitHub.list_issues),
    (r"POST /issues", GitHub.create_issue),
    (r"GET /pulls/(\d+)", GitHub.pull),
    (r"GET /pulls", GitHub.list_pulls),
    (r"POST /pulls", GitHub.create_pull),
    (r"GET /issues/(\d+)/comments", GitHub.list_comments),
    (r"POST /issues/(\d+)/comments", GitHub.create_comment),
    (r"GET /issues/comments/(\d+)", GitHub.comment),
    (r"PATCH /issues/comments/(\d+)", GitHub.edit_comment),
    (r"DELETE /issues/comments/(\d+)", GitHub.delete_comment),
    (r"POST /issues/comments/(\d+)/reactions", GitHub.react),
    (r"GET /collaborators/([^/]+)/permission", GitHub.permission),
    (r"GET /actions/workflows/([^/]+)", GitHub.workflow),
    (r"GET /actions/workflows/([^/]+)/runs", GitHub.list_runs),
    (r"POST /actions/workflows/([^/]+)/dispatches", GitHub.dispatch),
    (r"POST /actions/runs/(\d+)/(rerun|rerun-failed-jobs|cancel)", GitHub.restart),
    (r"POST /deployments", GitHub.create_deployment),
    (r"GET /deployments/(\d+)", GitHub.deployment),
    (r"POST /deployments/(\d+)/statuses", GitHub.deployment_status),
    (r"POST /releases", GitHub.create_release),
    (r"GET /releases/tags/([^/]+)", GitHub.release),
    (r"GET /rulesets", GitHub.list_rulesets),
    (r"POST /rulesets", GitHub.create_ruleset),
    (r"GET /rulesets/(\d+)", GitHub.ruleset),
    (r"PUT /rulesets/(\d+)", GitHub.replace_ruleset),
    (r"PUT /actions/oidc/customization/sub", GitHub.accept),
]
