"""Files of a pull request as data: exact commits, plain files of listed kinds in listed places.

Nothing here checks a pull request out. The tree that `main` would have after the merge is computed
from two exact commits (`git merge-tree --write-tree`, git 2.38), listed, judged as a whole, and
only then written, blob by blob.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from adapterops import escape
from adapterops.documents import write_bytes
from adapterops.environment import child_environment
from adapterops.errors import InfrastructureError, RejectedError, UsageError

# What a pull request may bring into a trusted checkout, and as which kinds of file.
TAKEN = {"data": {".jsonl", ".json", ".md"}, "configs": {".yaml"}, "adapters": {".yaml"}}
# Of configs/, these alone: all else there decides what may be run, loaded, served, spent or
# believed, and is the trusted side's.
_SETTINGS = re.compile(r"configs/(qlora/.*|quality_gate[^/]*|data_policy\.yaml)", re.DOTALL)
# What detectors are measured on, and what people said of answers: neither comes with what it
# judges.
_LABELS = ("data/labelled/", "data/adjudicated/")
MAX_FILE_BYTES = 512 << 20
MAX_SETTINGS_BYTES = 256 << 10  # a YAML file
MAX_TOTAL_BYTES = 2 << 30
MAX_FILES = 5000
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
MAX_NAME_BYTES = 200
MAX_PATH_BYTES = 1000
# Ends in neither dot nor space, which Windows drops.
_PLAIN_NAME = re.compile(r"\w([\w.@+=, -]*[\w@+=,-])?")
_DEVICE = re.compile(
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
)  # of Windows, where curators work too
_LFS = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class Entry:
    """One file of a tree.

    Args:
        path: from the root, with `/`.
        mode: git's file mode, `100644` for a plain file.
        blob: object id.
        size: bytes; 0 for what has no size (a submodule).
    """

    path: str
    mode: str
    blob: str
    size: int


def git(
    *arguments: str, repository: Path, ok: Iterable[int] = (0,)
) -> subprocess.CompletedProcess[bytes]:
    """Run git.

    Raises:
        InfrastructureError: it ended with a code that is not in `ok`; quotes what it said.
    """
    # No hooks, filters or drivers of the repository's own: attributes of a pull request must not
    # start a program.
    command = [
        "git",
        "-c",
        "core.hooksPath=/dev/null",
        "-c",
        "core.quotePath=false",
        "-C",
        str(repository),
        *arguments,
    ]
    result = subprocess.run(
        command, capture_output=True, check=False, env=_environment(arguments[0])
    )
    if result.returncode not in ok:
        said = result.stderr.decode(errors="replace").strip().splitlines()
        raise InfrastructureError(
            f"git {arguments[0]} failed ({result.returncode}):"
            f" {said[-1] if said else 'it said nothing'}"
        )
    return result


def _environment(verb: str) -> dict[str, str]:
    """With the job's token for GitHub over https where git goes there: the checkout leaves no
    credentials, and no argument shows them.
    """
    token, server = os.environ.get("GITHUB_TOKEN"), os.environ.get("GITHUB_SERVER_URL", "")
    if verb not in ("fetch", "push") or not token or not server.startswith("https://"):
        return child_environment(prefixes=("GIT_", "SSH_"))
    basic = base64.b64encode(f"x-access-token:{token}".encode()).decode()
    return child_environment(
        prefixes=("GIT_", "SSH_"),
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0=f"http.{server}/.extraheader",
        GIT_CONFIG_VALUE_0=f"AUTHORIZATION: basic {basic}",
    )


def resolve(revision: str, repository: Path) -> str:
    """The full id of a commit that is in the repository.

    Raises:
        UsageError: it is not there.
    """
    result = git(
        "rev-parse",
        "--verify",
        "--quiet",
        "--end-of-options",
        f"{revision}^{{commit}}",
        repository=repository,
        ok=(0, 1, 128),
    )
    if result.returncode != 0:
        raise UsageError(
            f"commit {revision} is not in this clone. Fetch it first: git fetch origin {revision}"
        )
    return result.stdout.decode().strip()


def fetch(sha: str, repository: Path) -> None:
    """Bring an exact commit from `origin`.

    Raises:
        UsageError: not a full commit id: a branch could move between two looks.
        InfrastructureError: the remote does not have it, or cannot be reached.
    """
    if not _SHA.fullmatch(sha):
        raise UsageError(
            f"{sha!r} is not a full commit id. A branch or a short id could mean another commit at"
            " the next look."
        )
    present = git("cat-file", "-e", f"{sha}^{{commit}}", repository=repository, ok=(0, 1, 128))
    if present.returncode != 0:
        git(
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-recurse-submodules",
            "origin",
            sha,
            repository=repository,
        )


def merged_tree(base: str, head: str, repository: Path) -> str:
    """The tree that `base` would have after merging `head`.

    Raises:
        RejectedError: they conflict; names the files.
    """
    if base == head:
        return git("rev-parse", f"{base}^{{tree}}", repository=repository).stdout.decode().strip()
    result = git(
        "merge-tree",
        "--write-tree",
        "--name-only",
        "--no-messages",
        "-z",
        "--end-of-options",
        base,
        head,
        repository=repository,
        ok=(0, 1),
    )
    tree, *conflicts = result.stdout.decode(errors="replace").rstrip("\0").split("\0")
    if result.returncode == 1:
        raise RejectedError(
            f"the pull request conflicts with the default branch in {', '.join(conflicts[:5])}."
            " Merge or rebase, resolve them, and push."
        )
    return tree.strip()


def entries(tree: str, repository: Path, *directories: str) -> dict[str, Entry]:
    """Every file of a tree below the directories (all without any), by path."""
    listing = git(
        "ls-tree", "-r", "-z", "-l", "--full-tree", tree, "--", *directories, repository=repository
    ).stdout
    found = {}
    for line in filter(None, listing.split(b"\0")):
        facts, _, name = line.partition(b"\t")
        mode, _, blob, size = facts.decode().split()
        path = name.decode("utf-8", errors="surrogateescape")
        found[path] = Entry(path, mode, blob, int(size) if size != "-" else 0)
    return found


def changed_paths(before: str, after: str, repository: Path) -> list[str]:
    """Paths that differ between two trees, sorted."""
    listing = git(
        "diff-tree", "-r", "-z", "--name-only", "--no-renames", before, after, repository=repository
    ).stdout
    return sorted(
        name.decode("utf-8", errors="surrogateescape") for name in listing.split(b"\0") if name
    )


def trusted_alone(path: str) -> bool:
    """True for a file that a pull request never brings along, though its directory may change."""
    return path.startswith(_LABELS) or (
        path.startswith("configs/") and not _SETTINGS.fullmatch(path)
    )


def takeable(path: str) -> bool:
    """True for a file that is taken from a pull request."""
    return PurePosixPath(path).parts[0] in TAKEN and not trusted_alone(path)


def problems_of(wanted: dict[str, Entry], present: dict[str, Entry], repository: Path) -> list[str]:
    """Why the files of a pull request are not taken; empty if all is well. What is on the trusted
    side already is not judged again.
    """
    new = {
        path: entry
        for path, entry in wanted.items()
        if takeable(path) and present.get(path) != entry
    }
    problems = [problem for path in sorted(new) if (problem := _problem(new[path]))]
    problems += _collisions(sorted(wanted), new.keys())
    if not problems:  # so that nothing is read that is not a plain file
        problems += _pointers(new, repository)
    if len(wanted) > MAX_FILES:
        problems.append(
            f"{len(wanted):,} files in {', '.join(TAKEN)}, more than {MAX_FILES:,}. Put rows into"
            " fewer files."
        )
    if (total := sum(entry.size for entry in wanted.values())) > MAX_TOTAL_BYTES:
        problems.append(f"{total:,} bytes in {', '.join(TAKEN)}, more than {MAX_TOTAL_BYTES:,}.")
    return problems


def _collisions(paths: list[str], new: Collection[str]) -> list[str]:
    """Names that are one where case or spellings of accents are not told apart."""
    problems: dict[str, None] = {}
    seen: dict[str, tuple[str, bool, str]] = {}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            place, whole = "/".join(parts[:depth]), depth == len(parts)
            known, was_whole, owner = seen.setdefault(
                unicodedata.normalize("NFC", place).casefold(), (place, whole, path)
            )
            if (known, was_whole) != (place, whole) and (path in new or owner in new):
                differ = (
                    "differ in upper and lower case or accents only"
                    if known != place
                    else "are a file and a directory of one name"
                )
                both = f"{owner} and {path}: {known} and {place}"
                problems[f"{escape.line(both)} {differ}. Rename one of them."] = None
                break
    return list(problems)


def _pointers(new: dict[str, Entry], repository: Path) -> list[str]:
    """Files that Git LFS left behind in place of the rows."""
    small = [entry for entry in new.values() if entry.size < 1024]
    return [
        f"{entry.path} is a pointer of Git LFS, not the rows. Put the file itself there: git lfs"
        f" migrate export --include='{entry.path}'"
        for entry in small
        if git("cat-file", "blob", entry.blob, repository=repository).stdout.startswith(_LFS)
    ]


def _problem(entry: Entry) -> str:
    path = PurePosixPath(entry.path)
    shown = escape.line(entry.path)
    kinds = TAKEN[path.parts[0]]
    if entry.mode == "120000":
        return f"{shown} is a symbolic link. Put the file itself there."
    if entry.mode == "160000":
        return f"{shown} is a submodule. Put the files themselves there."
    if entry.mode != "100644":
        return (
            f"{shown} has mode {entry.mode}; data and settings are plain files. Run: git"
            f" update-index --chmod=-x '{shown}'"
        )
    # Split as git writes it: PurePosixPath would drop a `.` or an empty name.
    parts = entry.path.split("/")
    if not all(_PLAIN_NAME.fullmatch(part) for part in parts):
        return (
            f"{shown}: names start with a letter or digit, end in neither dot nor space, and hold"
            " letters, digits, spaces and . _ - + = @ , alone. Rename it."
        )
    if any(_DEVICE.fullmatch(part) for part in parts):
        return f"{shown}: con, prn, aux, nul, com1 and lpt1 are devices on Windows. Rename it."
    if (
        len(entry.path.encode()) > MAX_PATH_BYTES
        or max(len(part.encode()) for part in parts) > MAX_NAME_BYTES
    ):
        return (
            f"{shown[:80]}…: the name is longer than {MAX_NAME_BYTES} bytes, or the path than"
            f" {MAX_PATH_BYTES}. Shorten it."
        )
    if path.suffix not in kinds:
        return (
            f"{shown}: only {', '.join(sorted(kinds))} belong below {path.parts[0]}/. Move or"
            " remove it."
        )
    limit = MAX_SETTINGS_BYTES if path.suffix == ".yaml" else MAX_FILE_BYTES
    if entry.size > limit:
        return f"{shown} has {entry.size:,} bytes, more than {limit:,}. Split it."
    return ""


def write_tree(wanted: dict[str, Entry], repository: Path, into: Path) -> None:
    """Write the entries below `into`, blob by blob; the caller has judged them.

    Raises:
        InfrastructureError: git lost an object.
    """
    if not wanted:
        return
    command = ["git", "-C", str(repository), "cat-file", "--batch"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
    ) as process:
        assert process.stdin
        assert process.stdout
        for entry in wanted.values():
            process.stdin.write(f"{entry.blob}\n".encode())
            process.stdin.flush()
            header = process.stdout.readline().decode().split()
            if len(header) != 3 or header[1] != "blob":
                raise InfrastructureError(
                    f"git has no object {entry.blob} for {entry.path}. Fetch the commit whole."
                )
            content = process.stdout.read(int(header[2]))
            process.stdout.read(1)
            write_bytes(into / entry.path, content)
        process.stdin.close()


def take(base: str, head: str, repository: Path, into: Path) -> str:
    """Bring data, configs and adapters of a merge into a trusted checkout; all of it, or nothing.

    Args:
        base: commit of the default branch, whose code and trusted files stay.
        head: exact head commit of the pull request.
        repository: a clone that has both.
        into: root of the trusted checkout.

    Returns:
        The id of the merged tree.

    Raises:
        RejectedError: a conflict, or files that are not taken; all of them are named.
    """
    tree = merged_tree(base, head, repository)
    present, wanted = entries(base, repository, *TAKEN), entries(tree, repository, *TAKEN)
    if problems := problems_of(wanted, present, repository):
        raise RejectedError(
            "the pull request's files are not taken:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    # First what goes: a folder may take the place of a file of its name, and a file that of a
    # folder.
    for path in filter(takeable, present.keys() - wanted.keys()):
        (into / path).unlink(missing_ok=True)
        for folder in PurePosixPath(path).parents[:-2]:
            with contextlib.suppress(OSError):  # there is more in it
                (into / folder).rmdir()
    write_tree(
        {
            path: entry
            for path, entry in wanted.items()
            if takeable(path) and present.get(path) != entry
        },
        repository,
        into,
    )
    return tree


def extract(tree: str, trusted: str, repository: Path, into: Path) -> None:
    """Write data, configs and adapters of a (judged) tree below `into`, with the trusted side's own
    files from `trusted`.
    """
    files = {
        path: entry for path, entry in entries(tree, repository, *TAKEN).items() if takeable(path)
    }
    files |= {
        path: entry
        for path, entry in entries(trusted, repository, *TAKEN).items()
        if trusted_alone(path)
    }
    write_tree(
        {path: entry for path, entry in files.items() if entry.mode == "100644"}, repository, into
    )
