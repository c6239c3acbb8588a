"""`--base` and `--changed-since`: what a change did, and that only what changed is judged while the
whole corpus is compared."""

from __future__ import annotations

import json
import subprocess

import pytest
from data_rows import codes, english, jsonl, places, policy, rows, write

from adapterops.data.distribution_drift import Base
from adapterops.data.validate import validate
from adapterops.errors import UsageError


class Repository:
    def __init__(self, root):
        self.root = root
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments):
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        return subprocess.run(
            ["git", "-C", self.root, *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def commit(self, content, name="rows.jsonl"):
        write(self.root / name, content)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", "a commit")

    def judge(
        self, content, *, name="rows.jsonl", revision="main", changed_only=False, evaluation=None
    ):
        path = write(self.root / name, content)
        with Base(revision, self.root) as base:
            return validate(
                [path],
                evaluation,
                base_model=None,
                policy=policy(),
                base=base,
                changed_only=changed_only,
            )

    def drift(self, content, **options):
        change = self.judge(content, **options).document["files"][0]["drift"]
        return {key: change[key] for key in ("added", "removed", "changed")}


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


class TestCounts:
    def test_rows_are_told_apart_by_id(self, repository):
        repository.commit(rows(10))
        values = [*rows(8), english(20), english(21), english(22)]
        values[0] = english(0, output="It is free for a member, and five without.")
        values[1:3] = values[2:0:-1]
        assert repository.drift(values) == {"added": 3, "removed": 2, "changed": 1}

    def test_nothing_changed(self, repository):
        repository.commit(rows(10))
        report = repository.judge(rows(10))
        assert report.document["files"][0]["changed_rows"] == 0
        assert (
            report.document["files"][0]["drift"]["before"]
            == report.document["files"][0]["drift"]["after"]
        )

    @pytest.mark.parametrize("former", [None, b""])
    def test_a_new_file_is_all_added(self, repository, former):
        repository.commit(rows(3), "other.jsonl") if former is None else repository.commit(former)
        report = repository.judge(rows(10))
        assert report.document["files"][0]["changed_rows"] == 10
        assert report.document["files"][0]["drift"]["added"] == 10
        assert codes(report) == []

    def test_a_renamed_file_is_a_new_one(self, repository):
        repository.commit(rows(5), "old.jsonl")
        (repository.root / "old.jsonl").rename(repository.root / "rows.jsonl")
        assert repository.drift(rows(5)) == {"added": 5, "removed": 0, "changed": 0}

    def test_from_lines_to_an_array_no_row_is_added(self, repository):
        repository.commit(rows(5))
        content = (
            "[" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows(5)) + "]"
        ).encode()
        assert repository.drift(content) == {"added": 0, "removed": 0, "changed": 0}

    def test_a_broken_base_is_no_obstacle(self, repository):
        repository.commit(b"\xff\n{\n" + jsonl(rows(5)))
        assert repository.drift(rows(6)) == {"added": 1, "removed": 0, "changed": 0}

    def test_a_directory_of_that_name_on_the_base_is_no_obstacle(self, repository):
        (repository.root / "rows.jsonl").mkdir()
        repository.commit(rows(1), "rows.jsonl/part.jsonl")
        (repository.root / "rows.jsonl/part.jsonl").unlink()
        (repository.root / "rows.jsonl").rmdir()
        assert repository.drift(rows(2))["added"] == 2

    def test_a_file_outside_the_repository_is_all_new(self, repository, tmp_path_factory):
        repository.commit(rows(3))
        path = write(tmp_path_factory.mktemp("elsewhere") / "rows.jsonl", rows(3))
        with Base("main", repository.root) as base:
            assert base.file(path) is None
            assert len(base.rows(path)) == 0


class TestChangedOnly:
    BAD = "Write to hong@example.com, please."

    def test_old_faults_are_not_the_pull_requests(self, repository):
        repository.commit([english(0, output=self.BAD), *rows(10, first=1)])
        values = [
            english(0, output=self.BAD),
            *rows(10, first=1),
            english(20, output=self.BAD, license="X"),
        ]
        everything = repository.judge(values)
        assert places(everything, "E301") == [12, 1]
        report = repository.judge(values, changed_only=True)
        assert (places(report, "E301"), places(report, "E501")) == ([12], [12])
        assert report.document["counts"] == {"E301": 1, "E501": 1}
        assert report.document["base"] == {"revision": "main", "changed_only": True}

    def test_without_changes_old_faults_pass(self, repository):
        values = [english(0, output=self.BAD), *rows(10, first=1)]
        repository.commit(values)
        assert repository.judge(values, changed_only=True).passed
        assert not repository.judge(values).passed

    def test_an_edited_row_is_judged(self, repository):
        repository.commit([english(0, output=self.BAD), *rows(10, first=1)])
        report = repository.judge(
            [english(0, output=self.BAD, tags=["returns"]), *rows(10, first=1)], changed_only=True
        )
        assert places(report, "E301") == [1]

    def test_a_broken_line_is_old_if_it_was_there(self, repository):
        repository.commit(jsonl(rows(3)) + b"{broken\n")
        assert repository.judge(jsonl(rows(3)) + b"{broken\n", changed_only=True).passed
        assert codes(repository.judge(jsonl(rows(3)) + b"{broken anew\n", changed_only=True)) == [
            "E103"
        ]

    def test_the_whole_corpus_is_still_compared(self, repository):
        repository.commit(rows(10))
        values = [*rows(10), english(3, id="copy"), english(4, id="r5")]
        report = repository.judge(values, changed_only=True)
        assert (places(report, "H205"), places(report, "E111"), places(report, "E205")) == (
            [11, 12],
            [12],
            [1],
        )

    def test_a_copy_of_the_same_bytes_is_a_change(self, repository):
        repository.commit(rows(30))
        assert places(repository.judge([*rows(30), english(3)], changed_only=True), "H205") == [31]

    def test_an_evaluation_row_that_was_trained_on_before_is_still_an_error(self, repository):
        question = {**english(3, id="e", output=None), "expected_output": "Five."}
        evaluation = write(
            repository.root / "eval.jsonl",
            [{key: value for key, value in question.items() if value is not None}],
        )
        repository.commit(rows(10))
        assert codes(repository.judge(rows(10), changed_only=True, evaluation=evaluation)) == [
            "E401"
        ]

    def test_findings_on_changed_rows_come_first(self, repository):
        repository.commit([english(n, license="X") for n in range(3)])
        report = repository.judge(
            [*(english(n, license="X") for n in range(3)), english(9, license="Y")]
        )
        assert places(report, "E501") == [4, 1, 2, 3]
        assert [finding["changed"] for finding in report.document["findings"]] == [
            True,
            False,
            False,
            False,
        ]
        assert report.changed == 1


class TestRevisions:
    def test_a_tag_a_branch_a_commit_or_an_ancestor(self, repository):
        repository.commit(rows(1))
        repository.git("tag", "first")
        repository.commit(rows(2))
        for revision, added in {
            "first": 2,
            "main~1": 2,
            "HEAD": 1,
            repository.git("rev-parse", "first").strip(): 2,
        }.items():
            assert repository.drift(rows(3), revision=revision)["added"] == added

    @pytest.mark.parametrize(
        "revision",
        [
            "origin/main",
            "0" * 40,
            "--help",
            "-n1",
            "main..HEAD",
            "HEAD:rows.jsonl",
            "",
            " ",
            "HEAD^{tree}",
            "a\nb",
        ],
    )
    def test_what_git_does_not_know_is_misuse(self, repository, revision):
        repository.commit(rows(1))
        with pytest.raises(UsageError, match="no such commit"):
            Base(revision, repository.root)

    def test_no_option_of_git_gets_through(self, repository):
        repository.commit(rows(1))
        with pytest.raises(UsageError):
            Base(f"--output={repository.root}/taken", repository.root)
        assert not (repository.root / "taken").exists()

    def test_a_shallow_clone_says_what_to_do(self, repository, tmp_path_factory):
        repository.commit(rows(1))
        repository.git("branch", "topic")
        clone = tmp_path_factory.mktemp("clone") / "c"
        subprocess.run(
            ["git", "clone", "-q", "--depth=1", "-b", "topic", f"file://{repository.root}", clone],
            check=True,
            capture_output=True,
        )
        with pytest.raises(UsageError, match="In a shallow clone, fetch it first"):
            Base("origin/main", clone)

    def test_outside_a_repository_it_is_misuse(self, tmp_path):
        with pytest.raises(UsageError):
            Base("HEAD", tmp_path)

    def test_the_copies_are_removed(self, repository):
        repository.commit(rows(1))
        with Base("HEAD", repository.root) as base:
            copy = base.file(repository.root / "rows.jsonl")
            assert copy.read_bytes() == jsonl(rows(1))
        assert not copy.exists()
