"""Who may write candidates/ alone writes no file of a checkout, and gets nothing released, judged
or reported."""

import contextlib
import hashlib
import json

import boto3
import pytest
from candidate_runs import BUCKET, SOURCE, empty_store, kept, release, run_of
from click.testing import CliRunner

from adapterops import pipeline
from adapterops.candidates import kept as candidates
from adapterops.candidates.checkpoints import Checkpoints, Remote
from adapterops.candidates.kept import fetch_adapter, fetch_judgement, keep_adapter, keep_judgement
from adapterops.candidates.keys import adapter_keys
from adapterops.documents import sha256_file
from adapterops.errors import AdapterOpsError, InfrastructureError, RejectedError
from adapterops.git_tree import extract
from adapterops.plan import planning
from adapterops.plan.estimate import Estimate
from adapterops.signing import Signer, Trust, make_key_pair
from adapterops.store.channels import change_channel, promote
from adapterops.store.releases import adapter_digest, publish
from adapterops.store.withdrawn import withdraw
from repositories import ROWS, jsonl, with_adapters

NOBODY = {"commit": None, "pr": None, "actor": None}
PAYLOAD = b"print('planted')\n"


@pytest.fixture
def store(monkeypatch):
    with empty_store(monkeypatch) as store:
        yield store


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A checkout that hosts' settings come from too: they trust the releaser's key."""
    from adapterops import schemas

    made = with_adapters(tmp_path / "git", ("support",))
    serving = made.path / "configs/serving.demo.yaml"
    serving.write_text(
        serving.read_text().replace(".demo/signing.pub.pem", str(tmp_path / "release.pub.pem"))
    )
    monkeypatch.setattr(schemas, "ROOT", made.path)
    return made


@pytest.fixture
def keys(repository):
    return adapter_keys("support", repository.path)


@pytest.fixture
def signers(tmp_path):
    """By who signs: `train` candidates, `release` releases, `stranger` whatever it likes."""
    for name in ("train", "release", "stranger"):
        make_key_pair(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem")
    return {name: Signer(tmp_path / f"{name}.pem") for name in ("train", "release", "stranger")}


@pytest.fixture
def trust(signers, tmp_path):
    """Of who looks at candidates."""
    return Trust(tmp_path / "train.pub.pem")


@pytest.fixture(autouse=True)
def documents_as_they_are(monkeypatch):
    monkeypatch.setattr(candidates, "read_json", lambda path, _: json.loads(path.read_text()))


def call(script, *arguments, **environment):
    module = __import__(script)
    return CliRunner().invoke(
        module.main, [str(argument) for argument in arguments], env=environment
    )


def put(key, body):
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=body)


def document(store, key):
    return json.loads(store.get(key).content)


def named(store, keys, tmp_path, name):
    """Have the candidate's document name another file `name`, with bytes that are under it in the
    store."""
    (tmp_path / "payload").write_bytes(PAYLOAD)
    place = f"candidates/{keys.training}"
    found = document(store, f"{place}/candidate.json")
    put(f"{place}/adapter/sha256-{found['digest']}/{name}", PAYLOAD)
    file = {"name": name, "size": len(PAYLOAD), "sha256": sha256_file(tmp_path / "payload")}
    put(f"{place}/candidate.json", json.dumps({**found, "files": [*found["files"], file]}).encode())


def released(store, keys, run, signers, **options):
    """A release, signed by who releases, of a candidate that nobody signed, and that a merge goes
    back to."""
    digest = release(store, keys, run, release_signer=signers["release"], **options)
    change_channel(
        store, "support", lambda channel: promote(channel, "f" * 64), reason="the next one"
    )
    return digest


ABSOLUTE, OUTSIDE, BESIDE = "{script}", "../../victim.py", "../victim.py"


@pytest.mark.parametrize(
    "name",
    [
        ABSOLUTE,
        OUTSIDE,
        BESIDE,
        "sub/victim.py",
        "victim.py",
        ".",
        "..",
        "",
        ".hidden",
        "a\\b",
        "a\n",
        "a\0b",
    ],
)
def test_a_candidate_names_its_four_files_and_no_other(store, keys, tmp_path, name):
    script = tmp_path / "victim.py"
    script.write_text("kept\n")
    kept(store, keys, tmp_path / "run")
    named(store, keys, tmp_path, name.format(script=script))
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(InfrastructureError, match=r"candidate\.json is damaged"):
        fetch_adapter(store, keys.training, tmp_path / "there/model")
    assert script.read_text() == "kept\n"
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


@pytest.mark.parametrize("drop", [0, 3])
@pytest.mark.parametrize("twice", [True, False])
def test_a_candidate_has_all_four_files_and_each_once(store, keys, tmp_path, drop, twice):
    kept(store, keys, tmp_path / "run")
    key = f"candidates/{keys.training}/candidate.json"
    found = document(store, key)
    files = [file for number, file in enumerate(found["files"]) if number != drop]
    put(key, json.dumps({**found, "files": [*files, files[0]] if twice else files}).encode())
    with pytest.raises(InfrastructureError, match=r"candidate\.json is damaged"):
        fetch_adapter(store, keys.training, tmp_path / "there/model")


@pytest.mark.parametrize("script", ["promote", "candidate"])
def test_no_script_of_the_checkout_is_overwritten_by_a_candidate_of_a_released_adapter(
    store, keys, tmp_path, signers, script
):
    """The release job and the GPU runner ran it next."""
    victim = tmp_path / "victim.py"
    victim.write_text("kept\n")
    released(store, keys, tmp_path / "run", signers)
    named(store, keys, tmp_path, str(victim))
    actions = {
        "promote": ["--into", tmp_path / "promoted"],
        "candidate": ["fetch", "--runs", tmp_path / "runs"],
    }[script]
    result = call(
        script,
        *actions,
        "--adapter",
        "support",
        CANDIDATE_SIGNED_BY=str(tmp_path / "train.pub.pem"),
    )
    assert victim.read_text() == "kept\n"
    assert result.exit_code != 0


def forged_training(store, keys):
    """Have the candidate say another story of how its (released) weights were made, with every
    digest right."""
    place = f"candidates/{keys.training}"
    found = document(store, f"{place}/candidate.json")
    path = f"{place}/adapter/sha256-{found['digest']}/train_manifest.json"
    content = json.dumps({**document(store, path), "recipe": "forged"}).encode()
    put(path, content)
    digest = hashlib.sha256(content).hexdigest()
    files = [
        {**file, "size": len(content), "sha256": digest}
        if file["name"] == "train_manifest.json"
        else file
        for file in found["files"]
    ]
    put(
        f"{place}/candidate.json",
        (json.dumps({**found, "files": files}, indent=2, ensure_ascii=False) + "\n").encode(),
    )


def test_of_a_released_adapter_the_release_brings_the_weights_and_nothing_unsigned_comes(
    store, keys, tmp_path, signers
):
    digest = released(store, keys, tmp_path / "run", signers)
    forged_training(store, keys)
    options = ["--adapter", "support", "--into", tmp_path / "promoted"]
    result = call("promote", *options, CANDIDATE_SIGNED_BY=str(tmp_path / "train.pub.pem"))
    assert result.exit_code == 0, result.output
    assert adapter_digest(tmp_path / "promoted/model") == digest
    assert not (tmp_path / "promoted/model/train_manifest.json").exists()
    put(
        f"candidates/{keys.training}/adapter/sha256-{digest}/adapter_model.safetensors",
        b"nobody looks here",
    )
    result = call("promote", *options, CANDIDATE_SIGNED_BY=str(tmp_path / "train.pub.pem"))
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("signed", ["unsigned", "stranger"])
def test_a_release_that_the_hosts_would_not_load_is_not_gone_back_to(
    store, keys, tmp_path, signers, signed
):
    release(store, keys, tmp_path / "run", release_signer=signers.get(signed))
    change_channel(
        store, "support", lambda channel: promote(channel, "f" * 64), reason="the next one"
    )
    options = ["--adapter", "support", "--into", tmp_path / "promoted"]
    result = call("promote", *options, CANDIDATE_SIGNED_BY=str(tmp_path / "train.pub.pem"))
    assert (
        result.exit_code,
        "is not signed" in result.output or "the signature does not hold" in result.output,
    ) == (1, True)
    assert not (tmp_path / "promoted/model").exists()


@pytest.mark.parametrize(
    ("by", "verdict"), [("release", "PROCEED"), ("stranger", "REFUSED"), ("nobody", "REFUSED")]
)
def test_a_manifest_below_adapters_is_no_verdict_before_the_merge(
    store, repository, tmp_path, signers, trust, monkeypatch, by, verdict
):
    """Who writes adapters/ alone could say there that what the gate refused is a release: going
    back to one asks for no verdict."""
    monkeypatch.setattr(planning, "estimate", lambda *_: Estimate(60.0, 8.0, "measured"))
    repository.git("commit", "-qam", "whom the hosts trust")
    head = repository.branch("data", {"data/training/support.jsonl": jsonl(ROWS[:2])})
    extract(head, "main", repository.path, tmp_path / "pull")
    theirs = adapter_keys("support", tmp_path / "pull")
    run = run_of(theirs, tmp_path / "run", verdict="FAIL")
    keep_adapter(store, theirs.training, run / "model", signers["train"])
    keep_judgement(store, theirs, run, SOURCE, signers["train"])
    report, manifest = (
        json.loads((run / name).read_text())
        for name in ("gate_report.json", "model/train_manifest.json")
    )
    publish(
        store,
        "support",
        run / "model",
        {**report, "verdict": "PASS"},
        manifest,
        source=NOBODY,
        signer=signers.get(by),
    )
    plan = planning.build_plan(
        repository.git("rev-parse", "main"), head, repository.path, store, trust=trust
    )
    assert plan["verdict"] == verdict, plan["problems"]
    assert bool(plan["problems"]) is (verdict == "REFUSED")


@pytest.mark.parametrize("changed", ["base_model", "signature", "channel"])
def test_nobody_takes_away_what_candidates_must_not_be_worse_than(
    store, repository, keys, tmp_path, signers, monkeypatch, changed
):
    """Who writes adapters/ or channels/ alone could have them compared with nothing."""
    digest = release(store, keys, tmp_path / "run", release_signer=signers["release"])
    prefix = f"adapters/support/sha256-{digest}"
    if changed == "channel":
        change_channel(
            store, "support", lambda channel: promote(channel, "f" * 64), reason="no such version"
        )
    elif changed == "signature":
        store.delete(next(key for key in store.keys(f"{prefix}/signature")))
    else:
        manifest = document(store, f"{prefix}/manifest.json")
        manifest["base_model"]["name"] = "llama-3.1-8b-instruct"
        put(f"{prefix}/manifest.json", json.dumps(manifest))
    monkeypatch.setenv("CANDIDATE_SIGNED_BY", "keyless")
    with pytest.raises(RejectedError, match="nothing can be compared with the stable version"):
        pipeline._production(keys.spec, BUCKET, "a" * 64, tmp_path / "runs", "gate")


def test_what_is_in_production_and_signed_is_compared_with(
    store, keys, tmp_path, signers, monkeypatch
):
    digest = release(store, keys, tmp_path / "run", release_signer=signers["release"])
    monkeypatch.setenv("CANDIDATE_SIGNED_BY", "keyless")
    found = pipeline._production(keys.spec, BUCKET, "a" * 64, tmp_path / "runs", "gate")
    assert (found.digest, (found.directory / "adapter_model.safetensors").is_file()) == (
        digest,
        True,
    )


def test_a_release_that_was_withdrawn_is_not_gone_back_to(store, keys, tmp_path, signers):
    digest = released(store, keys, tmp_path / "run", signers)
    withdraw(store, "support", digest, reason="leaks", signer=signers["release"], trust=None)
    result = call("promote", "--adapter", "support", "--into", tmp_path / "promoted")
    assert (result.exit_code, "is withdrawn (leaks)" in result.output) == (1, True), result.output
    assert not (tmp_path / "promoted").exists()


def test_a_run_takes_no_unsigned_candidate_because_a_release_of_that_key_exists(
    store, keys, tmp_path, signers, trust
):
    """What it would evaluate and sign came with a train manifest that nobody vouches for."""
    released(store, keys, tmp_path / "run", signers)
    forged_training(store, keys)
    options = ["fetch", "--adapter", "support", "--runs", tmp_path / "runs"]
    result = call("candidate", *options, CANDIDATE_SIGNED_BY=str(tmp_path / "train.pub.pem"))
    assert (result.exit_code, "candidate.json is not used: it is not signed" in result.output) == (
        1,
        True,
    )
    assert not list((tmp_path / "runs").rglob("*"))


def test_no_report_rests_on_an_unsigned_candidate_because_a_release_of_that_key_exists(
    store, keys, tmp_path, signers, monkeypatch
):
    import post_reports

    released(store, keys, tmp_path / "run", signers, signer=signers["train"])
    forged_training(store, keys)
    row = {"name": "support", "training_key": keys.training, "judgement_key": keys.judgement(None)}
    (tmp_path / "plan.json").write_text(json.dumps({"adapters": [row]}))
    monkeypatch.setattr(
        "adapterops.documents.read_json", lambda path, _: json.loads(path.read_text())
    )
    monkeypatch.setattr(post_reports, "subprocess", None)  # nothing is posted
    options = [
        "--plan",
        tmp_path / "plan.json",
        "--pull-request",
        7,
        "--repository",
        "o/r",
        "--output",
        tmp_path / "reports",
    ]
    result = call("post_reports", *options, CANDIDATE_SIGNED_BY=str(tmp_path / "train.pub.pem"))
    assert (result.exit_code, "candidate.json is not used: it is not signed" in result.output) == (
        0,
        True,
    ), result.output
    assert not list(tmp_path.glob("reports/**/train_manifest.json"))


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x.json",
        "../x.json",
        "main/../../x.json",
        "model/train_manifest.json",
        "conftest.py",
        "x.json",
        "main/x.json",
        "main",
    ],
)
def test_a_judgement_names_the_documents_of_a_run_and_no_other(store, keys, tmp_path, name):
    kept(store, keys, tmp_path / "run")
    key = f"candidates/{keys.training}/judgements/{keys.judgement(None)}/judgement.json"
    found = document(store, key)
    extra = {**found["documents"][0], "name": name}
    put(key, json.dumps({**found, "documents": [*found["documents"], extra]}).encode())
    with pytest.raises(InfrastructureError, match=r"judgement\.json is damaged"):
        candidates.find_candidate(store, keys)


@pytest.mark.parametrize("change", ["without the gate's report", "twice"])
def test_a_judgement_has_its_verdict_and_nothing_twice(store, keys, tmp_path, change):
    kept(store, keys, tmp_path / "run")
    key = f"candidates/{keys.training}/judgements/{keys.judgement(None)}/judgement.json"
    found = document(store, key)
    rest = [file for file in found["documents"] if file["name"] != "gate_report.json"]
    put(
        key,
        json.dumps(
            {**found, "documents": [*found["documents"], rest[0]] if change == "twice" else rest}
        ).encode(),
    )
    with pytest.raises(InfrastructureError, match=r"judgement\.json is damaged"):
        candidates.find_candidate(store, keys)


@pytest.mark.parametrize("link", ["main", "gate_report.json", "main/gate_report.json"])
def test_links_in_a_run_lead_nowhere(store, keys, tmp_path, link):
    """An artifact, or a pull request's file, may have put one there."""
    judgement = kept(store, keys, tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "gate_report.json").write_text("kept")
    place = tmp_path / "fetched" / link
    place.parent.mkdir(parents=True)
    place.symlink_to(elsewhere if link == "main" else elsewhere / "gate_report.json")
    refused = pytest.raises(InfrastructureError, match=r"main/gate_report\.json cannot be written")
    with refused if link == "main" else contextlib.nullcontext():
        fetch_judgement(store, judgement, tmp_path / "fetched")
    assert [(path.name, path.read_text()) for path in elsewhere.iterdir()] == [
        ("gate_report.json", "kept")
    ]


class TestTwins:
    """A copy under another name may have the trained bytes; a verdict is one name's."""

    @pytest.fixture
    def twin(self, repository):
        text = (repository.path / "adapters/support.yaml").read_text()
        (repository.path / "adapters/copy.yaml").write_text(
            text.replace("name: support", "name: copy")
        )
        return adapter_keys("copy", repository.path)

    def test_the_bytes_are_shared_and_the_verdicts_are_not(self, keys, twin):
        assert twin.training == keys.training
        assert twin.judgement(None) != keys.judgement(None)

    def test_the_first_ones_verdict_leaves_the_seconds_free(self, store, keys, twin, tmp_path):
        kept(store, twin, tmp_path / "copy", verdict="FAIL")
        assert candidates.find_candidate(store, keys).verdict is None
        assert candidates.find_candidate(store, keys).digest
        assert kept(store, keys, tmp_path / "support")["adapter"] == "support"
        assert candidates.find_candidate(store, keys).verdict == "PASS"
        assert candidates.find_candidate(store, twin).verdict == "FAIL"

    def test_a_verdict_that_was_copied_to_the_others_key_is_damaged(
        self, store, keys, twin, tmp_path
    ):
        kept(store, keys, tmp_path / "run")
        place = f"candidates/{keys.training}/judgements"
        judgement = document(store, f"{place}/{keys.judgement(None)}/judgement.json")
        put(
            f"{place}/{twin.judgement(None)}/judgement.json",
            json.dumps({**judgement, "judgement_key": twin.judgement(None)}).encode(),
        )
        with pytest.raises(InfrastructureError, match="`adapter` is not copy"):
            candidates.find_candidate(store, twin)

    def test_a_report_on_one_name_is_not_kept_for_the_other(self, store, keys, twin, tmp_path):
        run = run_of(keys, tmp_path / "run")
        keep_adapter(store, twin.training, run / "model")
        with pytest.raises(AdapterOpsError, match="is on adapter support, not copy"):
            keep_judgement(store, twin, run, SOURCE)


class TestCheckpoints:
    """Who trains goes on from what lies in the store: below `checkpoints/`, which the same role may
    write."""

    KEY = "a" * 64

    def uploaded(self, store, directory, files=("weights", "global_step5/rank")):
        checkpoints = Checkpoints(directory, self.KEY, Remote(store))
        for name in files:
            path = checkpoints.directory / "checkpoint-5" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(PAYLOAD)
        checkpoints.seal(5)
        return checkpoints

    def seal(self, store):
        (key,) = [
            key for key in store.keys(f"checkpoints/{self.KEY}/") if key.endswith("/seal.json")
        ]
        return key, document(store, key)

    def test_another_machine_finds_it_whole(self, store, tmp_path):
        assert self.uploaded(store, tmp_path / "one").uploaded
        found = Checkpoints(tmp_path / "two", self.KEY, Remote(store)).newest()
        assert {str(path.relative_to(found)) for path in found.rglob("*") if path.is_file()} == {
            "weights",
            "global_step5/rank",
            "seal.json",
        }

    @pytest.mark.parametrize(
        "name",
        [
            "/etc/x",
            "{script}",
            "../victim.py",
            "a/../../victim.py",
            "a/b/c",
            ".",
            "..",
            "",
            ".hidden",
            "a\n",
        ],
    )
    def test_its_seal_names_nothing_outside(self, store, tmp_path, name):
        script = tmp_path / "victim.py"
        script.write_text("kept")
        self.uploaded(store, tmp_path / "one")
        key, seal = self.seal(store)
        name = name.format(script=script)
        put(key.removesuffix("seal.json") + name, PAYLOAD)
        put(key, json.dumps({**seal, "files": [{**seal["files"][0], "name": name}]}).encode())
        assert Checkpoints(tmp_path / "two", self.KEY, Remote(store)).newest() is None
        assert script.read_text() == "kept"
        assert not [path for path in (tmp_path / "two").rglob("*") if path.is_file()]

    def test_thousands_that_are_none_keep_no_gpu_waiting(self, store, tmp_path, trust, monkeypatch):
        start = f"checkpoints/{self.KEY}/rung-0/"
        for number in range(60):
            put(f"{start}{90_000_000 + number}-{number:012x}/seal.json", b"{}")
        asked = []
        get = store.get
        monkeypatch.setattr(store, "get", lambda key, *rest: asked.append(key) or get(key, *rest))
        assert Checkpoints(tmp_path / "one", self.KEY, Remote(store, trust=trust)).newest() is None
        assert len(asked) <= 40

    @pytest.mark.parametrize("damage", ["missing", "longer", "other"])
    def test_a_damaged_one_is_passed_over(self, store, tmp_path, damage):
        self.uploaded(store, tmp_path / "one")
        key = self.seal(store)[0].removesuffix("seal.json") + "weights"
        store.delete(key)
        if damage != "missing":
            put(key, PAYLOAD + b"x" if damage == "longer" else bytes(len(PAYLOAD)))
        assert Checkpoints(tmp_path / "two", self.KEY, Remote(store)).newest() is None
