"""Candidates: what a pull request computed is found by its keys, verified, and decided once."""

import json

import boto3
import pytest
from candidate_runs import BUCKET, SOURCE, empty_store, kept, release, run_of

from adapterops.documents import read_json, sha256_json
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.gitops import candidates
from adapterops.gitops.candidates import Candidate, fetch_adapter, fetch_judgement, find_candidate, keep_adapter, keep_judgement
from adapterops.gitops.promote import changed_adapters, fetch_promotion, find_promotion
from adapterops.plan.keys import adapter_keys
from adapterops.plan.tree import extract
from adapterops.store.channels import change_channel, promote
from adapterops.store.releases import adapter_digest
from repositories import ROWS, jsonl, with_adapters


@pytest.fixture
def store(monkeypatch):
    with empty_store(monkeypatch) as store:
        yield store


@pytest.fixture
def repository(tmp_path):
    return with_adapters(tmp_path / "git", ("support",))


@pytest.fixture
def keys(repository):
    return adapter_keys("support", repository.path)


@pytest.fixture(autouse=True)
def documents_as_they_are(monkeypatch):
    """Other stages' documents are tested with their stages; here only the fields that candidates look at matter."""
    monkeypatch.setattr(candidates, "read_json", lambda path, _: json.loads(path.read_text()))


def test_nothing_is_known_at_first(store, keys, tmp_path):
    assert find_candidate(store, keys) == Candidate(None, keys.judgement(None), None, released=False)
    assert fetch_adapter(store, keys.training, tmp_path / "model") is None


def test_what_was_kept_is_fetched_bit_for_bit(store, keys, tmp_path):
    judgement = kept(store, keys, tmp_path / "run")
    known = find_candidate(store, keys)
    assert (known.verdict, known.digest) == ("PASS", judgement["digest"])
    fetch_adapter(store, keys.training, tmp_path / "other/model")
    fetch_judgement(store, known.judgement, tmp_path / "other")
    assert adapter_digest(tmp_path / "other/model") == known.digest
    assert (tmp_path / "other/main/gate_report.json").read_text() == "{}"


def test_the_first_training_of_a_key_decides(store, keys, tmp_path):
    """Training is not repeatable to the bit; two runs at once must not make two candidates."""
    first = run_of(keys, tmp_path / "first", weights=b"first")
    second = run_of(keys, tmp_path / "second", weights=b"second")
    digest = keep_adapter(store, keys.training, first / "model")
    assert keep_adapter(store, keys.training, second / "model") == digest
    assert adapter_digest(second / "model") == digest  # what is evaluated next is what was kept


def test_a_verdict_stays(store, keys, tmp_path):
    """No retry until green."""
    assert kept(store, keys, tmp_path / "first", verdict="FAIL")["verdict"] == "FAIL"
    assert kept(store, keys, tmp_path / "second", verdict="PASS")["verdict"] == "FAIL"


def test_an_error_is_no_verdict(store, keys, tmp_path):
    assert kept(store, keys, tmp_path / "first", verdict="ERROR") is None
    assert kept(store, keys, tmp_path / "second")["verdict"] == "PASS"


def test_other_rules_ask_for_another_verdict_on_the_same_weights(store, keys, repository, tmp_path):
    kept(store, keys, tmp_path / "run")
    gates = repository.path / "configs/quality_gate.demo.yaml"
    gates.write_text(gates.read_text().replace("min: 0.80", "min: 0.90"))
    stricter = adapter_keys("support", repository.path)
    assert stricter.training == keys.training
    known = find_candidate(store, stricter)
    assert known.digest
    assert known.verdict is None


def test_a_verdict_on_other_weights_is_not_kept(store, keys, tmp_path):
    run = run_of(keys, tmp_path / "run")
    keep_adapter(store, keys.training, run / "model")
    (run / "model/adapter_model.safetensors").write_bytes(b"swapped")
    with pytest.raises(RejectedError, match="on another adapter"):
        keep_judgement(store, keys, run, SOURCE)
    with pytest.raises(UsageError, match="not the adapter of training key"):
        keep_adapter(store, keys.training, run / "model")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "train_manifest.json"])
def test_a_damaged_file_is_not_used(store, keys, tmp_path, name):
    digest = kept(store, keys, tmp_path / "run")["digest"]
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"candidates/{keys.training}/adapter/sha256-{digest}/{name}", Body=b"forged")
    with pytest.raises(InfrastructureError, match="damaged or replaced"):
        fetch_adapter(store, keys.training, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_forged_verdict_contradicts_its_report(store, keys, tmp_path):
    judgement = kept(store, keys, tmp_path / "run", verdict="FAIL")
    key = f"candidates/{keys.training}/judgements/{keys.judgement(None)}/judgement.json"
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=json.dumps({**judgement, "verdict": "PASS"}).encode())
    known = find_candidate(store, keys)
    with pytest.raises(InfrastructureError, match="contradict each other"):
        fetch_judgement(store, known.judgement, tmp_path / "fetched")


def test_a_judgement_cannot_write_outside_its_run(store, keys, tmp_path):
    judgement = kept(store, keys, tmp_path / "run")
    judgement["documents"][0]["name"] = "../../escaped.json"
    with pytest.raises(InfrastructureError, match="outside its run"):
        fetch_judgement(store, judgement, tmp_path / "fetched")
    assert not (tmp_path.parent / "escaped.json").exists()


class TestProduction:
    """A verdict holds against the adapter that it was compared with, and no other."""

    @pytest.fixture
    def newer(self, repository):
        """Keys of a pull request's tree with other data."""
        repository.write("data/training/support.jsonl", jsonl(ROWS[:2]))
        return adapter_keys("support", repository.path)

    def test_a_verdict_against_a_former_production_adapter_is_not_reused(self, store, keys, newer, repository, tmp_path):
        kept(store, newer, tmp_path / "newer", weights=b"newer")  # judged while nothing was in production
        assert find_candidate(store, newer).verdict == "PASS"
        served = release(store, keys, tmp_path / "run")  # another pull request is released meanwhile
        known = find_candidate(store, newer)
        assert (known.verdict, known.judgement_key) == (None, newer.judgement(served))
        assert known.digest  # judged again, not trained again
        assert "against the adapter that is in production now" in find_promotion(store, "support", repository.path).problem
        kept(store, newer, tmp_path / "again", weights=b"newer", production=served)
        assert find_candidate(store, newer).verdict == "PASS"
        assert find_promotion(store, "support", repository.path).problem == ""

    def test_both_verdicts_are_kept_with_what_they_were_against(self, store, newer, tmp_path):
        assert kept(store, newer, tmp_path / "first")["production"] is None
        judgement = kept(store, newer, tmp_path / "second", verdict="FAIL", production="e" * 64)
        assert (judgement["verdict"], judgement["production"]) == ("FAIL", "e" * 64)

    def test_the_adapter_in_production_is_not_compared_with_itself(self, store, keys, tmp_path):
        release(store, keys, tmp_path / "run")
        assert find_candidate(store, keys).judgement_key == keys.judgement(None)

    def test_an_adapter_of_another_base_model_is_nothing_to_compare_with(self, store, keys, newer, tmp_path, monkeypatch):
        release(store, keys, tmp_path / "run")
        monkeypatch.setattr(candidates, "find_release", lambda *_: {"base_model": {"name": "gemma-3-270m"}})
        assert find_candidate(store, newer).judgement_key == newer.judgement(None)

    def test_the_key_is_of_what_an_evaluation_compares_with(self, store, keys, newer, tmp_path):
        """`adapterops.evaluate.production` decides what an evaluation does; the key must name the same."""
        from adapterops.evaluate.production import production_from_channel

        served = release(store, keys, tmp_path / "run")
        for base_model, key in {"smollm2-135m-instruct": newer.judgement(served), "gemma-3-270m": newer.judgement(None)}.items():
            compared = production_from_channel(store, "support", base_model, tmp_path / "releases", "a" * 64)
            assert newer.judgement(compared.digest) == key
        assert find_candidate(store, newer).judgement_key == newer.judgement(served)


class TestPromotion:
    def test_a_merge_finds_what_the_pull_request_judged(self, store, keys, repository, tmp_path):
        judgement = kept(store, keys, tmp_path / "run")
        promotion = find_promotion(store, "support", repository.path)
        assert (promotion.digest, promotion.problem, promotion.released) == (judgement["digest"], "", False)
        assert fetch_promotion(store, promotion, repository.path, tmp_path / "promoted")["source"]["pr"] == "7"
        assert adapter_digest(tmp_path / "promoted/model") == judgement["digest"]

    def test_without_a_candidate_it_is_refused_with_the_command_that_mends_it(self, store, repository, tmp_path):
        promotion = find_promotion(store, "support", repository.path)
        assert "gh workflow run retrain.yaml --ref main -f adapter=support" in promotion.problem
        with pytest.raises(RejectedError, match="what was judged in the pull request is not what was merged"):
            fetch_promotion(store, promotion, repository.path, tmp_path / "promoted")
        assert not (tmp_path / "promoted").exists()

    @pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
    def test_what_did_not_pass_is_not_released(self, store, keys, repository, tmp_path, verdict):
        kept(store, keys, tmp_path / "run", verdict=verdict)
        assert f"the gate said {verdict}" in find_promotion(store, "support", repository.path).problem

    def test_a_revert_promotes_the_older_candidate_without_a_new_verdict(self, store, keys, repository, tmp_path):
        """Also when the rules became stricter since: going back must not need a GPU."""
        first = release(store, keys, tmp_path / "run")
        assert find_promotion(store, "support", repository.path) is None  # it is served
        change_channel(store, "support", lambda channel: promote(channel, "f" * 64), reason="the next one")
        gates = repository.path / "configs/quality_gate.demo.yaml"
        gates.write_text(gates.read_text().replace("min: 0.80", "min: 0.99"))
        promotion = find_promotion(store, "support", repository.path)
        assert (promotion.digest, promotion.released, promotion.problem) == (first, True, "")

    def test_only_adapters_whose_weights_changed_are_looked_at(self, repository, tmp_path):
        before = repository.git("rev-parse", "HEAD")
        documents = repository.commit({"README.md": "x\n"})
        data = repository.commit({"data/training/support.jsonl": jsonl(ROWS[:2])})
        back = repository.commit({"data/training/support.jsonl": jsonl(ROWS)})
        assert changed_adapters(before, documents, repository.path, tmp_path / "1") == []
        assert changed_adapters(documents, data, repository.path, tmp_path / "2") == ["support"]
        assert changed_adapters(before, back, repository.path, tmp_path / "3") == []
        assert changed_adapters(None, back, repository.path, tmp_path / "4") == ["support"]

    def test_squashing_and_reverting_keep_the_key(self, keys, repository, tmp_path):
        repository.branch("pull", {"data/training/support.jsonl": jsonl(ROWS[:2])})
        extract("pull", "main", repository.path, tmp_path / "pull")
        repository.git("merge", "-q", "--squash", "pull")
        repository.commit(message="squashed")
        assert adapter_keys("support", repository.path).training == adapter_keys("support", tmp_path / "pull").training
        repository.git("revert", "--no-edit", "HEAD")
        assert adapter_keys("support", repository.path).training == keys.training


def test_the_schemas_are_those_of_the_documents(store, keys, tmp_path):
    kept(store, keys, tmp_path / "run")
    for schema, key in {"candidate": "candidate.json", "judgement": f"judgements/{keys.judgement(None)}/judgement.json"}.items():
        fetched = store.get(f"candidates/{keys.training}/{key}")
        (tmp_path / schema).write_bytes(fetched.content)
        assert read_json(tmp_path / schema, schema)["training_key"] == keys.training
    assert sha256_json({}) != keys.training
