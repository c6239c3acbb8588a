"""adapters.py: what is released and served, and what may be deleted."""

import datetime
import json

import pytest
import yaml
from test_store import (
    NAME,
    SOURCE,
    bucket,  # noqa: F401
    canary,
    changed,
    client,  # noqa: F401
    content,
    flip,
    gate_report,
    keys,
    make_adapter,
    published,
    rolled_back,
    run,
    s3,  # noqa: F401
    stable,
    store,  # noqa: F401
)

from adapterops.errors import InfrastructureError
from adapterops.schemas import ROOT
from adapterops.signing import Signer, make_key_pair
from adapterops.store import catalogue
from adapterops.store.catalogue import adapter_names, garbage, remove
from adapterops.store.releases import find_release, publish

pytestmark = pytest.mark.integration
LATER = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=60)


@pytest.fixture
def digests(store, tmp_path):  # noqa: F811
    return [
        published(store, make_adapter(tmp_path / str(value), value)).digest
        for value in (1.0, 2.0, 3.0, 4.0)
    ]


def found(store, **options):  # noqa: F811
    return [
        item.digest
        for item in garbage(
            store, **{"generations": 2, "min_age_days": 30, "now": LATER, **options}
        )
    ]


def test_what_no_kept_generation_names_is_garbage_and_nothing_else(store, digests):  # noqa: F811
    for digest in digests[:3]:
        changed(store, stable(digest))
    changed(store, canary(digests[2], 10))
    assert set(found(store, generations=1)) == {digests[0], digests[3]}
    assert set(found(store, generations=3)) == {digests[3]}
    assert found(store, now=None) == []  # too young


def test_a_version_that_was_rolled_back_is_kept(store, digests):  # noqa: F811
    for digest in digests[:2]:
        changed(store, stable(digest))
    rolled_back(store)
    assert set(found(store, generations=1)) == set(digests[2:])


def test_a_removal_takes_the_manifest_first_and_can_be_interrupted(
    store,  # noqa: F811
    digests,
    client,  # noqa: F811
    bucket,  # noqa: F811
    monkeypatch,
):
    [item] = [
        item
        for item in garbage(store, generations=1, min_age_days=0, now=LATER)
        if item.digest == digests[0]
    ]
    deleted = []
    delete = store.delete

    def dies(key):
        if deleted:
            raise KeyboardInterrupt
        deleted.append(key)
        delete(key)

    monkeypatch.setattr(store, "delete", dies)
    with pytest.raises(KeyboardInterrupt):
        remove(store, item)
    monkeypatch.undo()
    assert find_release(store, NAME, digests[0]) is None
    [rest] = [
        item
        for item in garbage(store, generations=1, min_age_days=0, now=LATER)
        if item.digest == digests[0]
    ]
    assert rest.why == "an upload without a manifest"
    remove(store, rest)
    assert not [key for key in keys(client, bucket) if digests[0] in key]


def test_with_a_damaged_channel_nothing_is_garbage(store, digests, client, bucket):  # noqa: F811
    changed(store, stable(digests[0]))
    client.put_object(Bucket=bucket, Key=f"channels/{NAME}.json", Body=b"{}")
    with pytest.raises(InfrastructureError, match="not a valid channel"):
        garbage(store, generations=1, min_age_days=0)


@pytest.mark.parametrize("body", [b"{}", b"", b"other"])
def test_with_a_damaged_audit_entry_nothing_that_it_may_name_is_garbage(
    store,  # noqa: F811
    digests,
    client,  # noqa: F811
    bucket,  # noqa: F811
    body,
):
    for digest in digests[:3]:
        changed(store, stable(digest))
    second = f"audit/{NAME}/000000002.json"
    if body == b"other":  # a valid entry, of another adapter
        body = json.dumps(
            json.loads(content(client, bucket, second)) | {"adapter": "other"}
        ).encode()
    client.put_object(Bucket=bucket, Key=second, Body=body)
    client.put_object(Bucket=bucket, Key=f"audit/{NAME}/notes.json", Body=b"{}")  # no entry
    assert set(found(store, generations=1)) == {digests[0], digests[3]}  # does not look at it
    with pytest.raises(
        InfrastructureError,
        match=(
            f"s3://{bucket}/{second} is not a valid audit entry, .*Bring the object's former"
            " version"
        ),
    ):
        garbage(store, generations=2, min_age_days=0)
    code, said = run("adapters.py", "gc", "--bucket", bucket, "--min-age-days", "0", "--delete")
    assert (code, second in said, len(list(store.keys("adapters/")))) == (3, True, 16)


def test_the_commands_say_what_is_served_since_when_by_whom_and_from_which_pull_request(
    store,  # noqa: F811
    digests,
    client,  # noqa: F811
    bucket,  # noqa: F811
):
    changed(store, stable(digests[0]), "first", "kim")
    changed(store, canary(digests[1], 10), "canary at 10 %", "lee")
    code, said = run("adapters.py", "list", "--bucket", bucket)
    row = next(line for line in said.splitlines() if line.startswith(NAME)).split("  ")
    assert code == 0
    assert [cell.strip() for cell in row if cell.strip()][1:2] == [digests[0][:12]]
    assert all(text in said for text in ("kim", "7", "cccccccccc", f"{digests[1][:12]} at 10 %"))
    document = json.loads(run("adapters.py", "list", "--bucket", bucket, "--json")[1])
    assert (document[0]["source"]["pr"], document[0]["channel"]["generation"]) == (7, 2)
    code, said = run("adapters.py", "history", NAME, "--bucket", bucket)
    assert (code, "first" in said, "lee" in said) == (0, True, True)
    client.put_object(Bucket=bucket, Key=f"audit/{NAME}/000000001.json", Body=b"{}")
    code, said = run("adapters.py", "history", NAME, "--bucket", bucket)
    assert (
        code,
        "first" in said,
        "lee" in said,
        f"audit/{NAME}/000000001.json is left out" in said,
    ) == (0, False, True, True)
    assert (
        json.loads(
            run("adapters.py", "show", NAME, "--version", digests[2][:12], "--bucket", bucket)[1]
        )["digest"]
        == digests[2]
    )
    assert run("adapters.py", "history", "--bucket", bucket)[0] == 2
    for action in ("list", "history", "show", "verify", "gc"):
        code, said = run("adapters.py", action, "support-dmo", "--bucket", bucket)
        assert (code, f"Did you mean `{NAME}`? Known: {NAME}." in said) == (2, True)
    for key in (
        "channels/Bad Name.json",
        "channels/a/b.json",
        "adapters/Bad/sha256-x/manifest.json",
    ):
        client.put_object(Bucket=bucket, Key=key, Body=b"{}")
    assert adapter_names(store) == [NAME]  # what can be no adapter's stands in nobody's way


def test_verifying_finds_what_was_damaged_and_who_signed(store, digests, client, bucket, tmp_path):  # noqa: F811
    assert (
        run("adapters.py", "verify", NAME, "--version", digests[0][:12], "--bucket", bucket)[0] == 0
    )
    flip(client, bucket, f"adapters/{NAME}/sha256-{digests[1]}/adapter_model.safetensors")
    code, said = run(
        "adapters.py", "verify", NAME, "--version", digests[1][:12], "--bucket", bucket
    )
    assert (code, "damaged or replaced" in said) == (3, True)
    values = yaml.safe_load((ROOT / "configs/serving.demo.yaml").read_text())
    make_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    values["store"]["signed_by"] = {"public_key": str(tmp_path / "key.pub.pem")}
    (tmp_path / "serving.yaml").write_text(yaml.safe_dump(values))
    code, said = run(
        "adapters.py",
        "verify",
        NAME,
        "--version",
        digests[0][:12],
        "--bucket",
        bucket,
        "--config",
        tmp_path / "serving.yaml",
    )
    assert (code, "is not signed" in said) == (1, True)
    assert Signer(tmp_path / "key.pem").sign(tmp_path)


def test_gc_says_first_and_deletes_only_when_told(store, digests, bucket, client):  # noqa: F811
    changed(store, stable(digests[0]))
    command = ("adapters.py", "gc", "--bucket", bucket, "--min-age-days", "0")
    code, said = run(*command)
    assert (code, said.count("would delete")) == (0, 3)
    assert find_release(store, NAME, digests[3])
    assert run(*command, "--delete")[1].count("deleted ") >= 3
    assert [digest for digest in digests if find_release(store, NAME, digest)] == [digests[0]]
    assert "nothing to delete" in run(*command)[1]
    assert catalogue.garbage(store, generations=1, min_age_days=0) == []


def test_gc_of_one_adapter_leaves_the_others_alone(store, digests, client, bucket, tmp_path):  # noqa: F811
    report = gate_report(tmp_path / "1.0")
    report["adapter"]["name"] = "other"
    trained = json.loads((tmp_path / "1.0" / "train_manifest.json").read_bytes())
    other = publish(store, "other", tmp_path / "1.0", report, trained, source=SOURCE)
    client.put_object(
        Bucket=bucket, Key="channels/other.json", Body=b"{}"
    )  # nor is it stopped by them
    code, said = run(
        "adapters.py", "gc", NAME, "--min-age-days", "0", "--delete", "--bucket", bucket
    )
    assert (code, "4 versions deleted" in said) == (0, True)
    assert {key.split("/")[1] for key in store.keys("adapters/")} == {"other"}
    assert find_release(store, "other", other.digest)


@pytest.mark.parametrize("days", ["nan", "inf", "-1", "1e9"])
def test_an_age_that_is_none_ends_with_2(bucket, days):  # noqa: F811
    code, said = run("adapters.py", "gc", "--min-age-days", days, "--bucket", bucket)
    assert (code, "--min-age-days" in said) == (2, True)


def test_the_weekly_report_counts_what_the_audit_log_and_the_runs_say(
    store,  # noqa: F811
    digests,
    bucket,  # noqa: F811
    tmp_path,
):
    for digest in digests[:2]:
        changed(store, canary(digest, 10))
        changed(store, stable(digest))
    rolled_back(store)
    changed(store, canary(digests[2], 10))
    runs = tmp_path / "runs" / "one"
    runs.mkdir(parents=True)
    report = gate_report(
        tmp_path / "1.0", "FAIL", judged_at=datetime.datetime.now(datetime.UTC).isoformat()
    )
    (runs / "gate_report.json").write_text(json.dumps(report))
    manifest = json.loads((tmp_path / "1.0" / "train_manifest.json").read_text())
    manifest |= {
        "finished_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "total_seconds": 7200.0,
    }
    (runs / "train_manifest.json").write_text(json.dumps(manifest))
    (runs / "damaged").mkdir()
    (runs / "damaged" / "train_manifest.json").write_text("{}")
    code, said = run(
        "retrospective.py",
        "--bucket",
        bucket,
        "--runs",
        tmp_path / "runs",
        "--usd-per-gpu-hour",
        "3.5",
    )
    assert code == 0, said
    for line in (
        "| deployments | 3 |",
        "| change-failure rate | 50% (1 of 2) |",
        "| rouge_l missed | 1 |",
        f"| {NAME} | configs/qlora/smollm2-135m.yaml | cpu | 1 | 2.00 | 7.00 |",
        "1 more train_manifest.json are not valid by configs/schemas/train_manifest.json.",
        f"{digests[1][:12]} was rolled back",
        f"canary {digests[2][:12]} at 10 %",
        "no previous version",
        "data/training/support.jsonl",
    ):
        assert line in said, said
    assert run("retrospective.py", "--bucket", bucket, "--output", tmp_path / "week")[0] == 0
    assert "<h2>Open risks</h2>" in (tmp_path / "week.html").read_text()
