"""A pull request is data: what of it reaches a trusted checkout, and what never does."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from adapterops import git_tree
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from repositories import ROWS, jsonl, with_adapters


@pytest.fixture
def repository(tmp_path):
    return with_adapters(tmp_path)


def take(repository, head):
    """As a workflow does: into the checkout of `main`."""
    return git_tree.take(
        repository.git("rev-parse", "main"), head, repository.path, repository.path
    )


def refusal(repository, head):
    before = repository.git("status", "--porcelain")
    with pytest.raises(RejectedError) as error:
        take(repository, head)
    assert repository.git("status", "--porcelain") == before  # all or nothing
    return str(error.value)


def commit_raw(repository, mode, path, content=b"../../etc/passwd"):
    """A commit with any mode and any name, as a hostile client can make it."""
    blob = repository.git("hash-object", "-w", "--stdin", input=content.decode())
    if mode == "160000":
        blob = repository.git("rev-parse", "HEAD")
    repository.git("update-index", "--add", "--replace", "--cacheinfo", f"{mode},{blob},{path}")
    written = repository.git("write-tree")
    repository.git("reset", "-q", "--hard")
    return repository.git("commit-tree", written, "-p", "main", "-m", "hostile")


def test_data_and_settings_are_taken_and_code_is_not(repository):
    head = repository.branch(
        "mixed",
        {
            "data/training/support.jsonl": jsonl(ROWS[:2]),
            "configs/qlora/new.yaml": "a: 1\n",
            "scripts/quality_gate.py": "print('PASS')\n",
            "README.md": "changed\n",
            "Makefile": "all:\n",
        },
    )
    take(repository, head)
    assert (repository.path / "data/training/support.jsonl").read_text() == jsonl(ROWS[:2])
    assert (repository.path / "configs/qlora/new.yaml").is_file()
    assert repository.git("status", "--porcelain").split() == [
        "M",
        "data/training/support.jsonl",
        "??",
        "configs/qlora/new.yaml",
    ]


@pytest.mark.parametrize(
    "path",
    [
        "configs/schemas/training_row.json",
        "configs/base_models.yaml",
        "configs/chat_templates/smollm2.jinja",
        "configs/serving.yaml",
        "configs/serving.demo.yaml",
        "configs/accelerate/fsdp.yaml",
        "configs/kubernetes/hosts.yaml",
    ],
)
def test_what_decides_over_running_and_loading_stays_that_of_main(repository, path):
    content = (repository.path / path).read_text()
    head = repository.branch("lower", {path: content + "\n"})
    take(repository, head)
    assert (repository.path / path).read_text() == content


def test_a_deleted_file_is_deleted(repository):
    head = repository.branch("delete", {"adapters/billing.yaml": None})
    take(repository, head)
    assert not (repository.path / "adapters/billing.yaml").exists()


@pytest.mark.parametrize("gone", ["configs/qlora/smollm2-135m.yaml", "data/training/support.jsonl"])
def test_a_folder_takes_the_place_of_a_file_and_a_file_that_of_a_folder(repository, gone):
    name = f"rows{Path(gone).suffix}"
    take(repository, commit_raw(repository, "100644", f"{gone}/{name}", b"x: 1\n"))
    assert (repository.path / gone / name).read_text() == "x: 1\n"
    repository.git("add", "-A")
    repository.git("commit", "-qm", "a folder")
    take(repository, commit_raw(repository, "100644", gone, b"x: 2\n"))
    assert (repository.path / gone).read_text() == "x: 2\n"


def test_the_merge_is_taken_not_the_branch_alone(repository):
    head = repository.branch("old", {"data/training/support.jsonl": jsonl(ROWS[:2])})
    repository.commit({"data/training/billing.jsonl": jsonl(ROWS[:3])})
    take(repository, head)
    assert (repository.path / "data/training/billing.jsonl").read_text() == jsonl(ROWS[:3])
    assert (repository.path / "data/training/support.jsonl").read_text() == jsonl(ROWS[:2])


def test_a_conflict_is_named(repository):
    head = repository.branch("mine", {"data/training/support.jsonl": jsonl(ROWS[:2])})
    repository.commit({"data/training/support.jsonl": jsonl(ROWS[:1])})
    assert "conflicts with the default branch in data/training/support.jsonl" in refusal(
        repository, head
    )


@pytest.mark.parametrize(
    ("mode", "path", "said"),
    [
        ("120000", "data/training/support.jsonl", "is a symbolic link"),
        ("120000", "data/training", "is a symbolic link"),
        ("160000", "data/rows", "is a submodule"),
        ("100755", "data/training/run.jsonl", "git update-index --chmod=-x"),
        ("100644", "data/training/model.pkl", "only .json, .jsonl, .md belong below data/"),
        ("100644", "configs/qlora/evil.py", "only .yaml belong below configs/"),
        ("100644", "adapters/sitecustomize.py", "only .yaml belong below adapters/"),
        ("100644", "configs/qlora/.hidden.yaml", "Rename it"),
        ("100644", "data/training/-rf.jsonl", "Rename it"),
        ("100644", "data/training/\x1b[2J.jsonl", "Rename it"),
        ("100644", "data/training/$(id).jsonl", "Rename it"),
        ("100644", "data/training/SUPPORT.jsonl", "upper and lower case"),
        (
            "100644",
            "data/Training/new.jsonl",
            "data/Training and data/training differ in upper and lower case",
        ),
        ("100644", "data/.gitattributes", "Rename it"),
        ("100644", "data/training/.gitmodules", "Rename it"),
        ("100644", "data/training/aux.jsonl", "devices on Windows"),
        ("100644", "data/COM1/rows.jsonl", "devices on Windows"),
        ("100644", "data/training./rows.jsonl", "neither dot nor space"),
        ("100644", "data/training /rows.jsonl", "neither dot nor space"),
        ("100644", "data/training/GIT~1.jsonl", "Rename it"),
        ("100644", "data/training/rows.jsonl:stream.jsonl", "Rename it"),
        ("100644", "data/training\\..\\..\\rows.jsonl", "Rename it"),
        ("100644", "data/training/\u202elnosj.jsonl", "Rename it"),
        ("100644", "data/training/a\u200bb.jsonl", "Rename it"),
        ("100644", f"data/{'n' * 240}.jsonl", "longer than 200 bytes"),
        ("100644", f"data/{'deep/' * 300}rows.jsonl", "Shorten it"),
        ("100644", "configs/qlora/recipe.yml", "only .yaml belong below configs/"),
        ("100644", "data/training/rows.JSONL", "only .json, .jsonl, .md belong below data/"),
    ],
)
def test_what_is_not_a_plain_listed_file_is_refused(repository, mode, path, said):
    message = refusal(repository, commit_raw(repository, mode, path))
    assert said in message
    assert "\x1b" not in message


def commit_trees(repository, *entries):
    """A commit whose `data` directory has these raw entries: (mode, name, content of a file or id
    of a tree)."""
    git = repository.git

    def raw_tree(listed):
        packed = b"".join(
            f"{mode} {name}".encode() + b"\0" + bytes.fromhex(identity)
            for mode, name, identity in listed
        )
        command = [
            "git",
            "-C",
            repository.path,
            "hash-object",
            "-w",
            "-t",
            "tree",
            "--literally",
            "--stdin",
        ]
        return (
            subprocess.run(command, input=packed, capture_output=True, check=True)
            .stdout.decode()
            .strip()
        )

    blob = git("hash-object", "-w", "--stdin", input="{}\n")
    listed = [(mode, name, content or blob) for mode, name, content in entries]
    root = [line.split(None, 3) for line in git("ls-tree", "main").splitlines()]
    rows = [
        (mode.lstrip("0"), name, identity if name != "data" else raw_tree(listed))
        for mode, _, identity, name in root
    ]
    return git("commit-tree", raw_tree(rows), "-p", "main", "-m", "hostile")


@pytest.mark.parametrize(
    "entries",
    [
        [("100644", "../../escaped.jsonl", None)],
        [("100644", "..", None)],
        [("100644", ".", None)],
        [("100644", ".git", None)],
        [("100644", "a/../../escaped.jsonl", None)],
        [("100644", "/tmp/escaped.jsonl", None)],
        [
            ("100644", "rows.jsonl", None),
            ("40000", "rows.jsonl", "4b825dc642cb6eb9a060e54bf8d69288fbee4904"),
        ],
    ],
    ids=lambda entries: entries[0][1],
)
def test_trees_that_no_git_client_writes_reach_nothing_outside(repository, entries):
    """Objects are as their maker made them: GitHub refuses such trees, and this does not count on
    it."""
    before = {
        path
        for path in repository.path.parent.rglob("*")
        if ".git" not in path.parts and "remote.git" not in path.parts
    }
    with contextlib.suppress(RejectedError, InfrastructureError):
        take(repository, commit_trees(repository, *entries))
    after = {
        path
        for path in repository.path.parent.rglob("*")
        if ".git" not in path.parts and "remote.git" not in path.parts
    }
    assert {path.name for path in after - before} <= {"rows.jsonl"}
    assert not (repository.path.parent / "escaped.jsonl").exists()
    assert not Path("/tmp/escaped.jsonl").exists()


def test_a_file_and_a_directory_of_one_name_are_refused(repository):
    assert "a file and a directory of one name" in refusal(
        repository, commit_trees_with_both(repository)
    )


def commit_trees_with_both(repository):
    inner = repository.git("rev-parse", "main:data/training")
    return commit_trees(repository, ("100644", "rows.jsonl", None), ("40000", "rows.jsonl", inner))


def test_a_pointer_of_git_lfs_is_not_taken_for_rows(repository):
    pointer = (
        "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"
    )
    assert "data/training/support.jsonl is a pointer of Git LFS" in refusal(
        repository, repository.branch("lfs", {"data/training/support.jsonl": pointer})
    )


def test_attributes_change_no_byte_of_what_is_taken(repository):
    """Line ends, encodings, keywords and filters are a working copy's business; blobs are written
    as they are."""
    content = '{"id": "a"}\r\n$Id$\n'
    attributes = (
        "* text eol=crlf ident working-tree-encoding=UTF-16 filter=lfs diff=lfs merge=lfs"
        " export-subst\n"
    )
    for path, text in {".gitattributes": attributes, "data/training/odd.jsonl": content}.items():
        command = ["git", "-C", repository.path, "hash-object", "-w", "--stdin"]
        blob = (
            subprocess.run(command, input=text.encode(), capture_output=True, check=True)
            .stdout.decode()
            .strip()
        )
        repository.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
    written = repository.git("write-tree")
    repository.git("reset", "-q", "--hard")
    take(repository, repository.git("commit-tree", written, "-p", "main", "-m", "attributes"))
    assert (repository.path / "data/training/odd.jsonl").read_bytes() == content.encode()
    assert not (repository.path / ".gitattributes").exists()


def test_every_refused_file_is_named_at_once(repository):
    head = repository.branch("two", {"data/a.pkl": "x", "data/b.exe": "x"})
    assert all(name in refusal(repository, head) for name in ("data/a.pkl", "data/b.exe"))


def test_sizes_and_counts_are_bounded(repository, monkeypatch):
    monkeypatch.setattr(git_tree, "MAX_SETTINGS_BYTES", 200_000)
    monkeypatch.setattr(git_tree, "MAX_FILE_BYTES", 1000)
    head = repository.branch(
        "big", {"data/training/big.jsonl": "x" * 1001, "configs/qlora/big.yaml": "#" * 200_001}
    )
    message = refusal(repository, head)
    assert "data/training/big.jsonl has 1,001 bytes, more than 1,000" in message
    assert "configs/qlora/big.yaml has 200,001 bytes" in message
    monkeypatch.setattr(git_tree, "MAX_FILES", 3)
    assert "more than 3" in refusal(repository, head)
    monkeypatch.setattr(git_tree, "MAX_TOTAL_BYTES", 10)
    assert "more than 10." in refusal(repository, head)


def test_korean_names_are_plain_names(repository):
    take(repository, repository.branch("korean", {"data/training/고객 지원.jsonl": jsonl(ROWS)}))
    assert (repository.path / "data/training/고객 지원.jsonl").is_file()


def test_nothing_that_the_repository_configures_is_run(repository, tmp_path):
    """A merge driver or filter named by a pull request's .gitattributes could start a program, were
    it configured."""
    marker = tmp_path / "ran"
    repository.git("config", "merge.evil.driver", f"touch {marker}")
    repository.git("config", "filter.evil.smudge", f"touch {marker}")
    head = repository.branch(
        "evil",
        {
            ".gitattributes": "* merge=evil filter=evil\n",
            "data/training/support.jsonl": jsonl(ROWS[:2]),
        },
    )
    take(repository, head)
    assert not marker.exists()


def test_only_an_exact_commit_is_fetched(repository):
    for name in ("main", "HEAD", "abc1234", "--upload-pack=touch /tmp/x", "refs/heads/main"):
        with pytest.raises(UsageError, match="not a full commit id"):
            git_tree.fetch(name, repository.path)


def test_a_commit_is_fetched_from_the_remote(repository, tmp_path):
    head = repository.branch("away", {"data/training/support.jsonl": jsonl(ROWS[:2])})
    repository.git("push", "-q", "origin", "away")
    fresh = tmp_path / "fresh"
    os.system(f"git clone -q --single-branch -b main {repository.remote} {fresh}")
    git_tree.fetch(head, fresh)
    assert git_tree.resolve(head, fresh) == head
    with pytest.raises(InfrastructureError, match="git fetch failed"):
        git_tree.fetch("0" * 40, fresh)
