"""Signed releases: what was changed since, or signed by somebody else, is not loaded, and the
reason is said."""

# fixtures are imported by name
import hashlib
import json
import pickle
from dataclasses import replace

import pytest
from test_store import (
    BASE,
    NAME,
    SOURCE,
    bucket,  # noqa: F401
    client,  # noqa: F401
    content,
    edit_manifest,
    gate_report,
    keys,
    make_adapter,
    s3,  # noqa: F401
    store,  # noqa: F401
)

from adapterops.documents import sha256_json
from adapterops.errors import InfrastructureError, RejectedError, UsageError
from adapterops.signing import Signer, Trust, make_key_pair, signer_from
from adapterops.store.objects import ObjectStore
from adapterops.store.releases import (
    MANIFEST,
    SIGNATURE,
    adapter_digest,
    fetch_release,
    find_release,
    publish,
)
from adapterops.store.signed import add_signature

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Who signs here, and who is trusted to."""
    directory = tmp_path_factory.mktemp("keys")
    make_key_pair(directory / "signing.pem", directory / "signing.pub.pem")
    assert (directory / "signing.pem").stat().st_mode & 0o077 == 0
    return Signer(directory / "signing.pem"), Trust(directory / "signing.pub.pem")


def published(store, directory, signer):  # noqa: F811
    trained = json.loads((directory / "train_manifest.json").read_bytes())
    return publish(
        store, NAME, directory, gate_report(directory), trained, source=SOURCE, signer=signer
    )


@pytest.fixture
def adapter(tmp_path):
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def release(store, adapter, pair):  # noqa: F811
    return published(store, adapter, pair[0])


def fetch(store, release, tmp_path, trust, base_model=BASE):  # noqa: F811
    return fetch_release(
        store, NAME, release.digest, tmp_path / "releases", base_model=base_model, trust=trust
    )


def test_a_signed_release_is_fetched_and_its_local_copy_is_verified_again(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    release,
    pair,
    tmp_path,
):
    directory, _ = fetch(store, release, tmp_path, pair[1])
    assert {path.name for path in directory.iterdir()} == {
        *(file["name"] for file in release.manifest["files"]),
        MANIFEST,
        SIGNATURE,
    }
    assert fetch(store, release, tmp_path, pair[1])[0] == directory
    signature = (directory / SIGNATURE).read_text()
    start = signature.index('"sig":')
    broken = signature[:start] + signature[start:].replace("M", "N", 1)
    (directory / SIGNATURE).write_text(broken)
    fetch(store, release, tmp_path, pair[1])
    assert (directory / SIGNATURE).read_text() == signature  # fetched anew
    (directory / SIGNATURE).write_text(broken)
    [key] = [key for key in keys(client, bucket) if key.startswith(f"{release.uri}/signature-")]
    client.put_object(Bucket=bucket, Key=key, Body=broken.encode())
    with pytest.raises(RejectedError, match="the signature does not hold"):
        fetch(store, release, tmp_path, pair[1])


def test_a_release_that_nobody_signed_is_refused_where_a_signature_is_asked_for(
    store,  # noqa: F811
    adapter,
    pair,
    tmp_path,
):
    release = published(store, adapter, None)
    assert fetch(store, release, tmp_path / "any", None)[0].is_dir()
    with pytest.raises(RejectedError, match="is not signed"):
        fetch(store, release, tmp_path, pair[1])
    assert not (tmp_path / "releases" / NAME / f"sha256-{release.digest}").exists()


def test_a_release_that_was_published_unsigned_is_signed_by_publishing_it_again(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    adapter,
    pair,
    tmp_path,
):
    first = published(store, adapter, None)
    manifest = content(client, bucket, f"{first.uri}/{MANIFEST}")
    assert published(store, adapter, pair[0]) == replace(first, new=False, mended=("signature",))
    assert published(store, adapter, pair[0]) == replace(first, new=False)
    assert content(client, bucket, f"{first.uri}/{MANIFEST}") == manifest
    assert fetch(store, first, tmp_path, pair[1])[1] == first.manifest


@pytest.mark.parametrize(
    "changes",
    [
        {
            "probes": [
                {"messages": [{"role": "user", "content": "Hello?"}], "output": "Something else."}
            ]
        },
        {"base_model": {"name": "llama", "source_id": "x", "revision": "y"}},
        {"gate_key": "0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("signed", [False, True])
def test_a_manifest_that_is_not_of_this_run_is_not_signed(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    adapter,
    pair,
    changes,
    signed,
):
    release = published(store, adapter, pair[0] if signed else None)
    edit_manifest(client, bucket, release, **changes)
    before = keys(client, bucket)
    with pytest.raises(
        RejectedError,
        match=(
            rf"another {next(iter(changes))} than this run has. It is not"
            rf" signed.*{bucket}/{release.uri}/"
        ),
    ):
        published(store, adapter, pair[0])
    assert keys(client, bucket) == before


def test_a_signer_that_is_overtaken_by_an_unsigned_publication_signs_that_one(
    bucket,  # noqa: F811
    store,  # noqa: F811
    adapter,
    pair,
    tmp_path,
):
    class Overtaken(ObjectStore):
        def put_new(self, key, *rest):
            if key.endswith(MANIFEST):
                published(store, adapter, None)
            super().put_new(key, *rest)

    release = published(Overtaken(bucket), adapter, pair[0])
    assert (release.new, release.mended) == (False, ("signature",))
    fetch(store, release, tmp_path, pair[1])


def test_a_release_that_somebody_else_signed_is_refused_and_mended_as_the_message_says(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    adapter,
    pair,
    tmp_path,
):
    make_key_pair(tmp_path / "other.pem", tmp_path / "other.pub.pem")
    other = Trust(tmp_path / "other.pub.pem")
    release = published(store, adapter, Signer(tmp_path / "other.pem"))
    with pytest.raises(RejectedError, match="the signature does not hold") as error:
        fetch(store, release, tmp_path, pair[1])
    assert not (tmp_path / "releases" / NAME / f"sha256-{release.digest}").exists()
    fetch(store, release, tmp_path, other)  # a host of before the key changed
    [key] = [key for key in keys(client, bucket) if key.startswith(f"{release.uri}/signature-")]
    assert f"remove s3://{bucket}/{key} and publish the release again with --signing-key" in str(
        error.value
    )
    client.delete_object(Bucket=bucket, Key=key)
    assert published(store, adapter, pair[0]).mended == ("signature",)
    fetch(store, release, tmp_path, pair[1])


def test_a_manifest_that_was_changed_after_it_was_signed_is_refused(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    release,
    pair,
    tmp_path,
):
    """Its digests are right: only the signature tells."""
    manifest = json.loads(content(client, bucket, f"{release.uri}/{MANIFEST}"))
    manifest["probes"] = [
        {"messages": [{"role": "user", "content": "Hello?"}], "output": "Something else."}
    ]
    client.put_object(
        Bucket=bucket, Key=f"{release.uri}/{MANIFEST}", Body=json.dumps(manifest).encode()
    )
    with pytest.raises(RejectedError, match="not signed, or its manifest was changed"):
        fetch(store, release, tmp_path, pair[1])


def test_a_signature_that_is_there_before_its_manifest_stops_the_publication(
    store,  # noqa: F811
    adapter,
    pair,
    monkeypatch,
):
    """Hosts would refuse what is then published, and say nothing of who put it there."""

    def planted(into, document, signer):
        into.put_new(document.signature_key, b"{}", "application/json")
        return add_signature(into, document, signer)

    monkeypatch.setattr("adapterops.store.releases.add_signature", planted)
    with pytest.raises(RejectedError, match="exists before its manifest"):
        published(store, adapter, pair[0])
    assert find_release(store, NAME, adapter_digest(adapter)) is None


def test_a_signature_of_another_release_does_not_hold(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    release,
    pair,
    tmp_path,
):
    other = published(store, make_adapter(tmp_path / "other", 2.0), pair[0])
    [mine] = [key for key in keys(client, bucket) if key.startswith(f"{release.uri}/signature-")]
    [theirs] = [key for key in keys(client, bucket) if key.startswith(f"{other.uri}/signature-")]
    client.put_object(Bucket=bucket, Key=mine, Body=content(client, bucket, theirs))
    with pytest.raises(RejectedError, match="the signature does not hold"):
        fetch(store, release, tmp_path, pair[1])


def test_a_local_copy_with_another_file_beside_it_is_not_loaded(store, release, pair, tmp_path):  # noqa: F811
    directory, _ = fetch(store, release, tmp_path, pair[1])
    (directory / "adapter_model.bin").write_bytes(pickle.dumps({}))
    fetch(store, release, tmp_path, pair[1])
    assert not (directory / "adapter_model.bin").exists()  # fetched anew, without it


def test_a_pickle_that_is_called_safetensors_is_neither_published_nor_loaded(store, pair, tmp_path):  # noqa: F811
    directory = make_adapter(tmp_path / "adapter")
    (directory / "adapter_model.safetensors").write_bytes(pickle.dumps({"layer": [0.0] * 64}))
    trained = json.loads((directory / "train_manifest.json").read_bytes())
    trained["adapter"]["digest"] = adapter_digest(directory)
    with pytest.raises(RejectedError, match="begins like a pickle"):
        publish(
            store, NAME, directory, gate_report(directory), trained, source=SOURCE, signer=pair[0]
        )
    assert not list(store.keys(""))


def test_a_key_that_cannot_sign_is_named(store, adapter, tmp_path):  # noqa: F811
    with pytest.raises(UsageError, match="does not exist"):
        signer_from(str(tmp_path / "nowhere.pem"))
    (tmp_path / "bad.pem").write_text("not a key")
    with pytest.raises(UsageError, match=r"bad\.pem"):
        published(store, adapter, signer_from(str(tmp_path / "bad.pem")))
    assert not any(key.endswith(MANIFEST) for key in store.keys(""))


def byte_changed(client, bucket, release, _):  # noqa: F811
    key = f"{release.uri}/adapter_model.safetensors"
    client.put_object(Bucket=bucket, Key=key, Body=content(client, bucket, key)[:-1] + b"\xff")


def file_swapped(client, bucket, release, other):  # noqa: F811
    theirs = content(client, bucket, f"{other.uri}/adapter_model.safetensors")
    client.put_object(Bucket=bucket, Key=f"{release.uri}/adapter_model.safetensors", Body=theirs)


def base_model_renamed(client, bucket, release, _):  # noqa: F811
    edit_manifest(
        client, bucket, release, base_model={"name": "llama", "source_id": "x", "revision": "y"}
    )


def pickle_listed(client, bucket, release, _):  # noqa: F811
    body = pickle.dumps({})
    client.put_object(Bucket=bucket, Key=f"{release.uri}/adapter_model.bin", Body=body)
    listed = [
        {"name": "adapter_model.bin", "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    ]
    edit_manifest(client, bucket, release, files=release.manifest["files"] + listed)


@pytest.mark.parametrize(
    ("tamper", "base_model", "reason"),
    [
        (byte_changed, BASE, r"adapter_model\.safetensors: .*damaged or replaced"),
        (file_swapped, BASE, r"adapter_model\.safetensors: .*damaged or replaced"),
        (base_model_renamed, "llama", "not signed, or its manifest was changed since"),
        (lambda *_: None, "llama", f"was trained on {BASE}; llama is served here"),
        (pickle_listed, BASE, "not a valid release manifest"),
    ],
    ids=[
        "a changed byte",
        "a swapped file",
        "a manifest made for another base model",
        "another base model",
        "a pickle among the files",
    ],
)
def test_what_somebody_with_write_access_to_the_bucket_can_do_is_refused_with_the_reason(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    release,
    pair,
    tmp_path,
    tamper,
    base_model,
    reason,
):
    other = published(store, make_adapter(tmp_path / "other", 2.0), pair[0])
    tamper(client, bucket, release, other)
    with pytest.raises((RejectedError, InfrastructureError), match=reason):
        fetch(store, release, tmp_path, pair[1], base_model)
    assert [path for path in (tmp_path / "releases").rglob("*") if path.is_file()] == []


def test_a_whole_forged_release_of_a_pickle_is_refused_also_where_no_signature_is_asked_for(
    client,  # noqa: F811
    bucket,  # noqa: F811
    store,  # noqa: F811
    release,
    pair,
    tmp_path,
):
    """Every digest of it is right."""
    body = pickle.dumps({"layer": [0.0] * 64})
    files = [
        (
            {**file, "size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            if file["name"] == "adapter_model.safetensors"
            else file
        )
        for file in release.manifest["files"]
    ]
    digest = sha256_json({file["name"]: file["sha256"] for file in files})
    forged = f"adapters/{NAME}/sha256-{digest}"
    for file in files:
        good = content(client, bucket, f"{release.uri}/{file['name']}")
        client.put_object(
            Bucket=bucket,
            Key=f"{forged}/{file['name']}",
            Body=body if file["sha256"] != hashlib.sha256(good).hexdigest() else good,
        )
    manifest = {**release.manifest, "digest": digest, "files": files}
    client.put_object(Bucket=bucket, Key=f"{forged}/{MANIFEST}", Body=json.dumps(manifest).encode())
    with pytest.raises(RejectedError, match="begins like a pickle"):
        fetch_release(store, NAME, digest, tmp_path / "releases", base_model=BASE)
    with pytest.raises(RejectedError, match="is not signed"):
        fetch_release(store, NAME, digest, tmp_path / "releases", base_model=BASE, trust=pair[1])
    assert [path for path in (tmp_path / "releases").rglob("*") if path.is_file()] == []
