"""Cut the paths that this project calls out of GitHub's own API description (npm package
@octokit/openapi, MIT).

npm pack @octokit/openapi@23.0.2 && tar xzf octokit-openapi-23.0.2.tgz
package/generated/api.github.com.json
python tests/play/slice_openapi.py package/generated/api.github.com.json > \\
    tests/play/github-openapi.json
"""

import json
import sys
from pathlib import Path

REPOSITORY = "/repos/{owner}/{repo}"
PATHS = {
    REPOSITORY: ["get"],
    f"{REPOSITORY}/activity": ["get"],
    f"{REPOSITORY}/actions/oidc/customization/sub": ["put"],
    f"{REPOSITORY}/actions/runs/{{run_id}}/cancel": ["post"],
    f"{REPOSITORY}/actions/runs/{{run_id}}/rerun": ["post"],
    f"{REPOSITORY}/actions/runs/{{run_id}}/rerun-failed-jobs": ["post"],
    f"{REPOSITORY}/actions/workflows/{{workflow_id}}": ["get"],
    f"{REPOSITORY}/actions/workflows/{{workflow_id}}/dispatches": ["post"],
    f"{REPOSITORY}/actions/workflows/{{workflow_id}}/runs": ["get"],
    f"{REPOSITORY}/collaborators/{{username}}/permission": ["get"],
    f"{REPOSITORY}/deployments": ["post"],
    f"{REPOSITORY}/deployments/{{deployment_id}}": ["get"],
    f"{REPOSITORY}/deployments/{{deployment_id}}/statuses": ["post"],
    f"{REPOSITORY}/issues": ["get", "post"],
    f"{REPOSITORY}/issues/{{issue_number}}": ["get", "patch"],
    f"{REPOSITORY}/issues/{{issue_number}}/comments": ["get", "post"],
    f"{REPOSITORY}/issues/{{issue_number}}/events": ["get"],
    f"{REPOSITORY}/issues/comments/{{comment_id}}": ["get", "patch", "delete"],
    f"{REPOSITORY}/issues/comments/{{comment_id}}/reactions": ["post"],
    f"{REPOSITORY}/pulls": ["get", "post"],
    f"{REPOSITORY}/pulls/{{pull_number}}": ["get"],
    f"{REPOSITORY}/releases": ["post"],
    f"{REPOSITORY}/releases/tags/{{tag}}": ["get"],
    f"{REPOSITORY}/rulesets": ["get", "post"],
    f"{REPOSITORY}/rulesets/{{ruleset_id}}": ["get", "put"],
}


def main():
    whole = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    cut = {"openapi": "3.0.3", "info": whole["info"], "paths": {}, "components": {}}
    for path, methods in PATHS.items():
        item = whole["paths"][path]
        cut["paths"][path] = {method: request_side(item[method]) for method in methods}
        if "parameters" in item:
            cut["paths"][path]["parameters"] = item["parameters"]
    waiting = [cut["paths"]]
    while waiting:  # whatever is referred to comes along
        for reference in references(waiting.pop()):
            _, kind, name = reference.removeprefix("#/").split("/")
            section = cut["components"].setdefault(kind, {})
            if name not in section:
                section[name] = whole["components"][kind][name]
                waiting.append(section[name])
    json.dump(plain(cut), sys.stdout, indent=1, sort_keys=True, ensure_ascii=False)
    sys.stdout.write("\n")


def request_side(operation):
    """What a request must be; answers are this project's tests' own."""
    kept = {
        key: operation[key]
        for key in ("operationId", "parameters", "requestBody")
        if key in operation
    }
    return {**kept, "responses": {"default": {"description": "not described here"}}}


def references(node):
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for child in node.values():
            yield from references(child)
    elif isinstance(node, list):
        for child in node:
            yield from references(child)


def plain(node):
    """Without examples and descriptions: half of the size, and nothing is validated by them."""
    if isinstance(node, dict):
        return {
            key: plain(child)
            for key, child in node.items()
            if not (
                key in ("example", "examples")
                or (
                    key == "description"
                    and isinstance(child, str)
                    and "content" not in node
                    and "default" not in node
                    and "type" in node
                )
            )
        }
    return [plain(child) for child in node] if isinstance(node, list) else node


if __name__ == "__main__":
    main()
