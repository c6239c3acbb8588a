"""Candidates: what a pull request computed is found by its keys, verified, and decided once."""

import dataclasses
import json

import boto3
import pytest
from candidate_runs import (
    BUCKET,
    SOURCE,
    empty_store,
    kept,
    release,
    run_of,
    sigstore_is_unreachable,
)
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from adapterops.candidates import kept as candidates
from adapterops.candidates.kept import (
    Candidate,
    fetch_adapter,
    fetch_judgement,
    find_candidate,
    keep_adapter,
    keep_judgement,
    trust_from,
)
from adapterops.candidates.keys import adapter_keys
from adapterops.candidates.promotion import changed_adapters, fetch_promotion, find_promotion
from adapterops.documents import read_json, sha256_json
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.git_tree import extract
from adapterops.plan import planning
from adapterops.plan.estimate import Estimate
from adapterops.shapes.candidate import Candidate as CandidateDocument
from adapterops.shapes.judgement import Judgement
from adapterops.signing import Signer, Trust, make_key_pair
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
    """Other stages' documents are tested with their stages; here only the fields that candidates
    look at matter."""
    monkeypatch.setattr(candidates, "read_json", lambda path, _: json.loads(path.read_text()))


def test_nothing_is_known_at_first(store, keys, tmp_path):
    assert find_candidate(store, keys) == Candidate(
        None, keys.judgement(None), None, released=False
    )
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


def test_what_is_kept_needs_no_checkpoints(store, keys, tmp_path):
    other = f"checkpoints/{'f' * 64}/rung-0/00000005-{'a' * 12}/seal.json"
    for key in (f"checkpoints/{keys.training}/rung-0/00000005-{'a' * 12}/seal.json", other):
        store.put_new(key, b"{}")
    keep_adapter(store, keys.training, run_of(keys, tmp_path / "run") / "model")
    assert list(store.keys("checkpoints/")) == [other]


def test_checkpoints_of_a_pipeline_are_signed_as_candidates_are_and_stay_until_then(
    store, monkeypatch, tmp_path
):
    from adapterops.pipeline import checkpoints_in

    make_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    monkeypatch.setenv("CANDIDATE_SIGNING_KEY", str(tmp_path / "key.pem"))
    monkeypatch.setenv("CANDIDATE_SIGNED_BY", str(tmp_path / "key.pub.pem"))
    remote = checkpoints_in(BUCKET)
    assert (remote.store.bucket, remote.signer, remote.trust) == (
        BUCKET,
        Signer(tmp_path / "key.pem"),
        Trust(tmp_path / "key.pub.pem"),
    )
    assert remote.until_kept
    assert checkpoints_in(None) is None


def test_a_verdict_stays(store, keys, tmp_path):
    """No retry until green."""
    assert kept(store, keys, tmp_path / "first", verdict="FAIL")["verdict"] == "FAIL"
    assert kept(store, keys, tmp_path / "second", verdict="PASS")["verdict"] == "FAIL"


def test_an_error_is_no_verdict(store, keys, tmp_path):
    assert kept(store, keys, tmp_path / "first", verdict="ERROR") is None
    assert kept(store, keys, tmp_path / "second")["verdict"] == "PASS"


def test_first_rows_whose_extension_was_not_judged_are_no_verdict(store, keys, tmp_path):
    """A job that ends between the two would leave INCONCLUSIVE for ever."""
    assert kept(store, keys, tmp_path / "cut off", verdict="INCONCLUSIVE", wanted=True) is None
    assert kept(store, keys, tmp_path / "whole")["verdict"] == "PASS"


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
    boto3.client("s3").put_object(
        Bucket=BUCKET,
        Key=f"candidates/{keys.training}/adapter/sha256-{digest}/{name}",
        Body=b"forged",
    )
    with pytest.raises(InfrastructureError, match="damaged or replaced"):
        fetch_adapter(store, keys.training, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_forged_verdict_contradicts_its_report(store, keys, tmp_path):
    judgement = kept(store, keys, tmp_path / "run", verdict="FAIL")
    key = f"candidates/{keys.training}/judgements/{keys.judgement(None)}/judgement.json"
    boto3.client("s3").put_object(
        Bucket=BUCKET, Key=key, Body=json.dumps({**judgement, "verdict": "PASS"}).encode()
    )
    known = find_candidate(store, keys)
    with pytest.raises(InfrastructureError, match="contradict each other"):
        fetch_judgement(store, known.judgement, tmp_path / "fetched")


@pytest.mark.parametrize(
    "name",
    [
        "../../escaped.json",
        "model/adapter_model.safetensors",
        "./model/chat_template.jinja",
        "main/../model/x.json",
        ".hidden.json",
        ".",
    ],
)
def test_a_judgement_brings_documents_and_nothing_else(store, keys, tmp_path, name):
    """The adapter beside them was verified before."""
    judgement = kept(store, keys, tmp_path / "run")
    judgement["documents"][0]["name"] = name
    with pytest.raises(
        InfrastructureError, match=r"is damaged: `documents`: .* among them its results"
    ):
        fetch_judgement(store, judgement, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()
    assert not (tmp_path.parent / "escaped.json").exists()


def test_a_document_that_cannot_be_written_again_is_damaged(store, keys, tmp_path):
    """Half of a surrogate pair is JSON all the same."""
    judgement = kept(store, keys, tmp_path / "run")
    key = f"candidates/{keys.training}/judgements/{keys.judgement(None)}/judgement.json"
    boto3.client("s3").put_object(
        Bucket=BUCKET, Key=key, Body=json.dumps({**judgement, "reason": "\ud800"}).encode()
    )
    with pytest.raises(InfrastructureError, match=r"judgement\.json is damaged"):
        find_candidate(store, keys)


class TestProduction:
    """A verdict holds against the adapter that it was compared with, and no other."""

    @pytest.fixture
    def newer(self, repository):
        """Keys of a pull request's tree with other data."""
        repository.write("data/training/support.jsonl", jsonl(ROWS[:2]))
        return adapter_keys("support", repository.path)

    def test_a_verdict_against_a_former_production_adapter_is_not_reused(
        self, store, keys, newer, repository, tmp_path
    ):
        kept(
            store, newer, tmp_path / "newer", weights=b"newer"
        )  # judged while nothing was in production
        assert find_candidate(store, newer).verdict == "PASS"
        served = release(
            store, keys, tmp_path / "run"
        )  # another pull request is released meanwhile
        known = find_candidate(store, newer)
        assert (known.verdict, known.judgement_key) == (None, newer.judgement(served))
        assert known.digest  # judged again, not trained again
        assert (
            "against the adapter that is in production now"
            in find_promotion(store, "support", repository.path).problem
        )
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

    def test_an_adapter_of_another_base_model_is_nothing_to_compare_with(
        self, store, keys, newer, tmp_path, monkeypatch
    ):
        release(store, keys, tmp_path / "run")
        monkeypatch.setattr(
            candidates, "find_release", lambda *_: {"base_model": {"name": "gemma-3-270m"}}
        )
        assert find_candidate(store, newer).judgement_key == newer.judgement(None)

    def test_the_key_is_of_what_an_evaluation_compares_with(self, store, keys, newer, tmp_path):
        """`adapterops.evaluate.production` decides what an evaluation does; the key must name the
        same."""
        from adapterops.evaluate.production import production_from_channel

        served = release(store, keys, tmp_path / "run")
        for base_model, key in {
            "smollm2-135m-instruct": newer.judgement(served),
            "gemma-3-270m": newer.judgement(None),
        }.items():
            compared = production_from_channel(
                store, "support", base_model, tmp_path / "releases", "a" * 64
            )
            assert newer.judgement(compared.digest) == key
        assert find_candidate(store, newer).judgement_key == newer.judgement(served)


class TestPromotion:
    def test_a_merge_finds_what_the_pull_request_judged(self, store, keys, repository, tmp_path):
        judgement = kept(store, keys, tmp_path / "run")
        promotion = find_promotion(store, "support", repository.path)
        assert (promotion.digest, promotion.problem, promotion.released) == (
            judgement["digest"],
            "",
            False,
        )
        assert (
            fetch_promotion(store, promotion, repository.path, tmp_path / "promoted")["source"][
                "pr"
            ]
            == "7"
        )
        assert adapter_digest(tmp_path / "promoted/model") == judgement["digest"]

    def test_without_a_candidate_it_is_refused_with_the_command_that_mends_it(
        self, store, repository, tmp_path
    ):
        promotion = find_promotion(store, "support", repository.path)
        assert "gh workflow run retrain.yaml --ref main -f adapter=support" in promotion.problem
        with pytest.raises(
            RejectedError, match="what was judged in the pull request is not what was merged"
        ):
            fetch_promotion(store, promotion, repository.path, tmp_path / "promoted")
        assert not (tmp_path / "promoted").exists()

    @pytest.mark.parametrize("verdict", ["FAIL", "INCONCLUSIVE"])
    def test_what_did_not_pass_is_not_released(self, store, keys, repository, tmp_path, verdict):
        kept(store, keys, tmp_path / "run", verdict=verdict)
        assert (
            f"the gate said {verdict}" in find_promotion(store, "support", repository.path).problem
        )

    def test_a_revert_promotes_the_older_candidate_without_a_new_verdict(
        self, store, keys, repository, tmp_path
    ):
        """Also when the rules became stricter since: going back must not need a GPU."""
        first = release(store, keys, tmp_path / "run")
        assert find_promotion(store, "support", repository.path) is None  # it is served
        change_channel(
            store, "support", lambda channel: promote(channel, "f" * 64), reason="the next one"
        )
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
        assert (
            adapter_keys("support", repository.path).training
            == adapter_keys("support", tmp_path / "pull").training
        )
        repository.git("revert", "--no-edit", "HEAD")
        assert adapter_keys("support", repository.path).training == keys.training


class TestSignature:
    """Who may write candidates/ is not who says that one is good: train.yaml does, by its
    signature."""

    @pytest.fixture(scope="class")
    def pairs(self, tmp_path_factory):
        """Who signs here and who is trusted to, then a stranger."""
        directory = tmp_path_factory.mktemp("keys")
        for name in ("mine", "theirs"):
            make_key_pair(directory / f"{name}.pem", directory / f"{name}.pub.pem")
        return [
            (Signer(directory / f"{name}.pem"), Trust(directory / f"{name}.pub.pem"))
            for name in ("mine", "theirs")
        ]

    @pytest.fixture
    def signer(self, pairs):
        return pairs[0][0]

    @pytest.fixture
    def trust(self, pairs):
        return pairs[0][1]

    def judgement_place(self, keys):
        return f"candidates/{keys.training}/judgements/{keys.judgement(None)}"

    def signatures(self, store, place):
        return set(store.keys(f"{place}/signatures/"))

    def refusal(self, store, repository, tmp_path, trust):
        """Why it is not released, which is also why nothing is fetched."""
        promotion = find_promotion(store, "support", repository.path, trust)
        overlooked = dataclasses.replace(promotion, problem="")
        with pytest.raises(RejectedError):
            fetch_promotion(store, overlooked, repository.path, tmp_path / "promoted", trust)
        assert not (tmp_path / "promoted").exists()
        assert "-f adapter=support" in promotion.problem
        return promotion.problem

    def test_what_is_signed_is_promoted(self, store, keys, repository, tmp_path, signer, trust):
        kept(store, keys, tmp_path / "run", signer)
        promotion = find_promotion(store, "support", repository.path, trust)
        assert promotion.problem == ""
        assert (
            fetch_promotion(store, promotion, repository.path, tmp_path / "promoted", trust)[
                "verdict"
            ]
            == "PASS"
        )

    def test_without_trust_nothing_is_asked_for(self, store, keys, repository, tmp_path, signer):
        kept(store, keys, tmp_path / "run", signer)
        assert find_promotion(store, "support", repository.path).problem == ""

    def test_the_document_is_written_after_its_signature(
        self, store, keys, tmp_path, signer, monkeypatch
    ):
        """A run that is killed in between leaves a signature of nothing, and the next one is not
        hindered."""
        written, put_new = [], store.put_new
        monkeypatch.setattr(
            store,
            "put_new",
            lambda key, *rest: (written.append(key.rpartition("/")[2][:9]), put_new(key, *rest)),
        )
        run = run_of(keys, tmp_path / "run")
        keep_adapter(store, keys.training, run / "model", signer)
        (signature,) = self.signatures(store, f"candidates/{keys.training}")
        assert written[-2:] == [signature.rpartition("/")[2][:9], "candidate"]
        keep_judgement(store, keys, run, SOURCE, signer)
        (signature,) = self.signatures(store, self.judgement_place(keys))
        assert written[-2:] == [signature.rpartition("/")[2][:9], "judgement"]
        boto3.client("s3").delete_object(
            Bucket=BUCKET, Key=f"{self.judgement_place(keys)}/judgement.json"
        )
        assert (
            keep_judgement(store, keys, run, SOURCE, signer)["verdict"] == "PASS"
        )  # of the same bytes

    def test_an_unsigned_judgement_is_refused_with_what_mends_it(
        self, store, keys, repository, tmp_path, signer, trust
    ):
        run = run_of(keys, tmp_path / "run")
        keep_adapter(store, keys.training, run / "model", signer)
        keep_judgement(store, keys, run, SOURCE)
        said = self.refusal(store, repository, tmp_path, trust)
        assert (
            f"{self.judgement_place(keys)}/judgement.json is not used: it is not signed, or was"
            " changed since" in said
        )
        assert (
            f"aws s3 rm --recursive s3://{BUCKET}/{self.judgement_place(keys)}/   # then: gh"
            " workflow run retrain.yaml" in said
        )

    def test_the_way_out_judges_again_and_trains_nothing(
        self, store, keys, repository, tmp_path, signer, trust
    ):
        run = run_of(keys, tmp_path / "run")
        digest = keep_adapter(store, keys.training, run / "model", signer)
        keep_judgement(store, keys, run, SOURCE)
        for key in list(
            store.keys(f"{self.judgement_place(keys)}/")
        ):  # what the message tells an administrator to do
            boto3.client("s3").delete_object(Bucket=BUCKET, Key=key)
        keep_judgement(store, keys, run, SOURCE, signer)
        promotion = find_promotion(store, "support", repository.path, trust)
        assert (promotion.digest, promotion.problem) == (digest, "")

    def test_a_signature_is_never_added_to_what_was_kept_without(
        self, store, keys, repository, tmp_path, signer, trust
    ):
        """It may be anybody's: a run that signed it would vouch for what it has not computed."""
        kept(store, keys, tmp_path / "run")
        keep_adapter(store, keys.training, tmp_path / "run/model", signer)
        keep_judgement(store, keys, tmp_path / "run", SOURCE, signer)
        assert not [key for key in store.keys("candidates/") if "/signatures/" in key]
        self.refusal(store, repository, tmp_path, trust)

    @pytest.mark.parametrize("document", ["candidate", "judgement"])
    def test_what_somebody_else_signed_is_refused(
        self, store, keys, repository, tmp_path, pairs, document
    ):
        (mine, trust), (theirs, _) = pairs
        run = run_of(keys, tmp_path / "run")
        keep_adapter(
            store, keys.training, run / "model", theirs if document == "candidate" else mine
        )
        keep_judgement(store, keys, run, SOURCE, theirs if document == "judgement" else mine)
        said = self.refusal(store, repository, tmp_path, trust)
        assert f"{document}.json is not used: the signature does not hold" in said

    def replaced(self, keys, store, path, **changes):
        key = f"candidates/{keys.training}/{path}"
        changed = {**json.loads(store.get(key).content), **changes}
        content = (json.dumps(changed, indent=2) + "\n").encode()
        boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content)
        return content

    def test_a_changed_verdict_is_refused(self, store, keys, repository, tmp_path, signer, trust):
        kept(store, keys, tmp_path / "run", signer, verdict="FAIL")
        self.replaced(
            keys, store, f"judgements/{keys.judgement(None)}/judgement.json", verdict="PASS"
        )
        assert "judgement.json is not used: it is not signed, or was changed since" in self.refusal(
            store, repository, tmp_path, trust
        )

    @pytest.mark.parametrize("signed_before", [True, False])
    def test_another_adapter_in_its_place_is_refused(
        self, store, keys, repository, tmp_path, pairs, signed_before
    ):
        """With every digest right, and a signature of another document under the right name."""
        (signer, trust), (stranger, _) = pairs
        kept(store, keys, tmp_path / "run", signer)
        documents = {key: store.get(key).content for key in store.keys("candidates/")}
        for key in documents:
            boto3.client("s3").delete_object(Bucket=BUCKET, Key=key)
        kept(store, keys, tmp_path / "forged", stranger, weights=b"forged")
        if signed_before:
            for place in (f"candidates/{keys.training}", self.judgement_place(keys)):
                (forged,) = self.signatures(store, place)
                (real,) = [
                    content
                    for key, content in documents.items()
                    if key.startswith(f"{place}/signatures/")
                ]
                boto3.client("s3").put_object(Bucket=BUCKET, Key=forged, Body=real)
        assert "candidate.json is not used: the signature does not hold" in self.refusal(
            store, repository, tmp_path, trust
        )

    def test_a_signature_of_another_judgement_does_not_hold(
        self, store, keys, repository, tmp_path, signer, trust
    ):
        kept(store, keys, tmp_path / "run", signer)
        keep_judgement(
            store, keys, run_of(keys, tmp_path / "other", production="e" * 64), SOURCE, signer
        )
        (theirs,) = self.signatures(
            store, f"candidates/{keys.training}/judgements/{keys.judgement('e' * 64)}"
        )
        (mine,) = self.signatures(store, self.judgement_place(keys))
        boto3.client("s3").put_object(Bucket=BUCKET, Key=mine, Body=store.get(theirs).content)
        said = self.refusal(store, repository, tmp_path, trust)
        assert "judgement.json is not used: the signature does not hold" in said

    def test_a_changed_digest_is_refused(self, store, keys, repository, tmp_path, signer, trust):
        """Of the manifest, which no adapter's digest covers."""
        kept(store, keys, tmp_path / "run", signer)
        files = json.loads(store.get(f"candidates/{keys.training}/candidate.json").content)["files"]
        forged = [
            {**file, "sha256": "e" * 64} if file["name"] == "train_manifest.json" else file
            for file in files
        ]
        self.replaced(keys, store, "candidate.json", files=forged)
        assert "candidate.json is not used: it is not signed, or was changed since" in self.refusal(
            store, repository, tmp_path, trust
        )

    def test_of_two_keepers_the_first_ones_signature_is_there(
        self, store, keys, repository, tmp_path, signer, trust, monkeypatch
    ):
        """Both have looked and found nothing."""
        runs = [
            run_of(keys, tmp_path / name, verdict=verdict)
            for name, verdict in {"first": "PASS", "second": "FAIL"}.items()
        ]
        keep_adapter(store, keys.training, runs[0] / "model", signer)
        with monkeypatch.context() as at_once:
            at_once.setattr(candidates, "find_judgement", lambda *_: None)
            assert [
                keep_judgement(store, keys, run, SOURCE, signer)["verdict"] for run in runs
            ] == ["PASS", "PASS"]
        assert (
            len(self.signatures(store, self.judgement_place(keys))) == 2
        )  # the other one signs nothing that is there
        assert find_promotion(store, "support", repository.path, trust).problem == ""

    def test_weights_that_were_planted_before_the_training_ended_do_not_replace_it(
        self, store, keys, tmp_path, signer, trust
    ):
        """They would be judged, and signed, and released."""
        keep_adapter(
            store, keys.training, run_of(keys, tmp_path / "planted", weights=b"planted") / "model"
        )
        own = run_of(keys, tmp_path / "own", weights=b"own")
        digest = adapter_digest(own / "model")
        with pytest.raises(RejectedError, match=r"candidate\.json is not used: it is not signed"):
            keep_adapter(store, keys.training, own / "model", signer, trust)
        assert adapter_digest(own / "model") == digest

    def test_a_failed_verdict_that_train_did_not_sign_is_none(
        self, store, keys, repository, tmp_path, trust
    ):
        """Whoever may write there would have a merge reverted by it."""
        kept(store, keys, tmp_path / "run", verdict="FAIL")
        said = self.refusal(store, repository, tmp_path, trust)
        assert "is not signed" in said
        assert "the gate said" not in said

    def test_a_failed_verdict_that_is_signed_is_said(
        self, store, keys, repository, tmp_path, signer, trust
    ):
        kept(store, keys, tmp_path / "run", signer, verdict="FAIL")
        assert (
            "the gate said FAIL" in find_promotion(store, "support", repository.path, trust).problem
        )

    @pytest.mark.parametrize("at_once", [True, False])
    def test_a_planted_verdict_is_not_reported_as_the_runs_own(
        self, store, keys, tmp_path, signer, trust, monkeypatch, at_once
    ):
        run = run_of(keys, tmp_path / "run", verdict="FAIL")
        keep_adapter(store, keys.training, run / "model", signer)
        keep_judgement(store, keys, run_of(keys, tmp_path / "planted"), SOURCE)
        if at_once:  # looked, and found nothing
            monkeypatch.setattr(candidates, "find_judgement", lambda *_: None)
        with pytest.raises(RejectedError, match=r"judgement\.json is not used: it is not signed"):
            keep_judgement(store, keys, run, SOURCE, signer, trust)

    def test_a_former_verdict_that_is_signed_stays(self, store, keys, tmp_path, signer, trust):
        kept(store, keys, tmp_path / "first", signer, verdict="FAIL")
        assert (
            keep_judgement(store, keys, run_of(keys, tmp_path / "second"), SOURCE, signer, trust)[
                "verdict"
            ]
            == "FAIL"
        )

    @pytest.mark.parametrize("signed", [(), ("candidate",), ("judgement",)], ids=str)
    def test_of_a_release_candidate_and_verdict_must_be_signed_too(
        self, store, keys, tmp_path, signer, trust, signed
    ):
        """The train manifest and the verdict's documents come into the run beside the weights."""
        run = run_of(keys, tmp_path / "planted")
        keep_adapter(store, keys.training, run / "model", signer if "candidate" in signed else None)
        keep_judgement(store, keys, run, SOURCE, signer if "judgement" in signed else None)
        digest = release(store, keys, tmp_path / "run")
        known = find_candidate(store, keys, trust)
        assert (known.digest, known.released, known.judgement) == (digest, True, None)
        assert (
            f"{'judgement' if 'candidate' in signed else 'candidate'}.json is not used"
            in known.distrust
        )

    def test_a_release_is_served_again_by_its_own_signature(
        self, store, keys, repository, tmp_path, signer, trust
    ):
        serving = repository.path / "configs/serving.demo.yaml"
        serving.write_text(
            serving.read_text().replace(".demo/signing.pub.pem", str(trust.public_key))
        )
        first = release(store, keys, tmp_path / "run", release_signer=signer)
        change_channel(
            store, "support", lambda channel: promote(channel, "f" * 64), reason="the next one"
        )
        promotion = find_promotion(store, "support", repository.path, trust)
        assert (promotion.digest, promotion.released, promotion.problem) == (first, True, "")
        assert (
            fetch_promotion(store, promotion, repository.path, tmp_path / "promoted", trust) is None
        )  # its verdict is not signed
        assert adapter_digest(tmp_path / "promoted/model") == first
        assert not (tmp_path / "promoted/gate_report.json").exists()

    def test_an_older_release_is_not_passed_off_as_what_newer_data_made(
        self, store, keys, repository, tmp_path, trust
    ):
        """Its own training key finds it; under another one it is a candidate like any other."""
        release(store, keys, tmp_path / "run")
        repository.write("data/training/support.jsonl", jsonl(ROWS[:2]))
        newer = adapter_keys("support", repository.path)
        keep_adapter(store, newer.training, run_of(newer, tmp_path / "forged") / "model")
        known = find_candidate(store, newer, trust)
        assert known.digest == find_candidate(store, keys).digest
        assert (known.released, "candidate.json is not used" in known.distrust) == (False, True)

    @pytest.mark.parametrize("kind", ["garbage", "private half", "other kind"])
    def test_what_is_no_public_key_is_misuse_and_nothing_to_remove(
        self, store, keys, tmp_path, signer, kind
    ):
        other = ed25519.Ed25519PrivateKey.generate().public_key()
        content = {
            "garbage": b"not a key",
            "private half": signer.private_key.read_bytes(),
            "other kind": other.public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        }[kind]
        (tmp_path / "bad.pem").write_bytes(content)
        kept(store, keys, tmp_path / "run", signer)
        with pytest.raises(
            UsageError, match=r"bad\.pem is not an elliptic-curve public key \(PEM\)"
        ):
            find_candidate(store, keys, Trust(tmp_path / "bad.pem"))

    def test_without_sigstore_nothing_is_said_about_the_signature(
        self, store, keys, tmp_path, signer, monkeypatch
    ):
        sigstore_is_unreachable(monkeypatch)
        kept(store, keys, tmp_path / "run", signer)
        with pytest.raises(InfrastructureError, match=r"must reach \*\.sigstore\.dev"):
            find_candidate(
                store,
                keys,
                Trust(
                    None,
                    "https://github.com/x/y/.github/workflows/train.yaml@refs/heads/main",
                    "https://issuer",
                ),
            )

    @pytest.mark.usefixtures("store")
    def test_the_scripts_sign_and_verify(self, keys, repository, tmp_path, pairs, monkeypatch):
        import candidate
        import promote as promote_script
        from adapterops import schemas

        monkeypatch.setattr(schemas, "ROOT", repository.path)
        (signer, trust), (_, other) = pairs
        run = run_of(keys, tmp_path / "runs/support" / keys.training[:12])
        arguments = ["keep", "--adapter", "support", "--runs", str(tmp_path / "runs")]
        result = CliRunner().invoke(
            candidate.main, arguments, env={"CANDIDATE_SIGNING_KEY": str(signer.private_key)}
        )
        assert result.exit_code == 0, result.output
        for trusted, code in ((trust, 0), (other, 1)):
            environment = {"CANDIDATE_SIGNED_BY": str(trusted.public_key)}
            result = CliRunner().invoke(
                promote_script.main, ["--adapter", "support"], env=environment
            )
            assert result.exit_code == code, result.output
            result = CliRunner().invoke(
                candidate.main,
                ["fetch", "--adapter", "support", "--runs", str(tmp_path / f"{code}")],
                env=environment,
            )
            assert result.exit_code == code, result.output
            assert (tmp_path / f"{code}/support" / run.name / "gate_report.json").exists() is (
                code == 0
            )

    def test_a_planted_verdict_makes_the_check_red_before_the_merge(
        self, store, repository, tmp_path, trust, monkeypatch
    ):
        import plan
        import required_check
        from adapterops import schemas

        monkeypatch.setattr(schemas, "ROOT", repository.path)
        monkeypatch.setattr(planning, "estimate", lambda *_: Estimate(60.0, 8.0, "measured"))
        head = repository.branch("data", {"data/training/support.jsonl": jsonl(ROWS[:2])})
        extract(head, "main", repository.path, tmp_path / "pull")
        kept(store, adapter_keys("support", tmp_path / "pull"), tmp_path / "planted")
        needs = {
            "plan": {
                "result": "success",
                "outputs": {"validate": '["support"]', "train": "[]", "code": "false"},
            }
        }
        needs |= {
            job: {"result": result}
            for job, result in {
                "validate": "success",
                "train": "skipped",
                "code": "skipped",
            }.items()
        }
        monkeypatch.setenv("NEEDS", json.dumps(needs))
        for environment, code in (({}, 0), ({"CANDIDATE_SIGNED_BY": str(trust.public_key)}, 1)):
            for script in (plan, required_check):
                result = CliRunner().invoke(script.main, ["--head", head], env=environment)
                assert result.exit_code == code, result.output
                assert ("candidate.json is not used: it is not signed" in result.output) is bool(
                    code
                )

    def test_keyless_means_this_repositorys_train_workflow(self, monkeypatch, tmp_path):
        monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.com")
        monkeypatch.setenv("GITHUB_REPOSITORY", "your-org/qlora-gitops")
        identity = (
            "https://github.com/your-org/qlora-gitops/.github/workflows/train.yaml@refs/heads/main"
        )
        assert trust_from("keyless") == Trust(
            None, identity, "https://token.actions.githubusercontent.com"
        )
        assert trust_from("") is None
        monkeypatch.delenv("GITHUB_REPOSITORY")
        with pytest.raises(UsageError, match="GITHUB_REPOSITORY"):
            trust_from("keyless")
        with pytest.raises(UsageError, match=r"nowhere\.pem does not exist"):
            trust_from(str(tmp_path / "nowhere.pem"))


def test_the_schemas_are_those_of_the_documents(store, keys, tmp_path):
    kept(store, keys, tmp_path / "run")
    for shape, key in {
        CandidateDocument: "candidate.json",
        Judgement: f"judgements/{keys.judgement(None)}/judgement.json",
    }.items():
        fetched = store.get(f"candidates/{keys.training}/{key}")
        (tmp_path / "document.json").write_bytes(fetched.content)
        assert read_json(tmp_path / "document.json", shape)["training_key"] == keys.training
    assert sha256_json({}) != keys.training
