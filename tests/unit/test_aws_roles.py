"""docs/aws/main.tf, evaluated: who may take which role, and what a role may do to the bucket."""

import os
import subprocess
import sys
from fnmatch import fnmatchcase

import boto3
import pytest
from botocore.exceptions import ClientError

from adapterops.schemas import ROOT
from play.aws import ACCOUNT, evaluate, roles, set_up
from processes import free_port, wait_for_http

WRITES = {
    "qlora-read": set(),
    "qlora-candidates": {"candidates", "checkpoints"},
    "qlora-release": {"adapters", "channels", "audit", "withdrawn"},
}
CREATES = {"candidates", "audit"}  # what is there is never replaced
TRAIN = "your-org/qlora-gitops/.github/workflows/train.yaml@refs/heads/main"


def subjects(role, **variables):
    (statement,) = roles(**variables)[role][0]["Statement"]
    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    ((operator, values),) = statement["Condition"].items()
    assert values["token.actions.githubusercontent.com:aud"] == "sts.amazonaws.com"
    return operator, values["token.actions.githubusercontent.com:sub"]


def may_take(role, subject, **variables):
    """As AWS compares: with StringLike `*` and `?`, with StringEquals nothing; upper and lower case
    apart."""
    operator, patterns = subjects(role, **variables)
    return any(
        {"StringLike": fnmatchcase, "StringEquals": str.__eq__}[operator](subject, pattern)
        for pattern in patterns
    )


class TestTrust:
    """The subject of a job's token: `repo:…:<context>:job_workflow_ref:<the file whose job it
    is>`."""

    @pytest.mark.parametrize(
        ("context", "file", "allowed"),
        [
            ("pull_request", TRAIN, {"qlora-read", "qlora-candidates"}),
            ("ref:refs/heads/main", TRAIN, {"qlora-read", "qlora-candidates"}),
            # A pull request's own version of the file, or another file that says it is it.
            ("pull_request", TRAIN.replace("heads/main", "pull/7/merge"), {"qlora-read"}),
            ("pull_request", TRAIN.replace("train", "pull-request"), {"qlora-read"}),
            ("pull_request", TRAIN.replace("your-org", "mallory"), {"qlora-read"}),
            # A branch's run, whatever it calls.
            ("ref:refs/heads/mine", TRAIN, {"qlora-read"}),
            (
                "environment:production",
                TRAIN.replace("train", "deploy"),
                {"qlora-read", "qlora-release"},
            ),
            (
                "environment:production",
                TRAIN.replace("train", "release"),
                {"qlora-read", "qlora-release"},
            ),
            (
                "environment:production",
                TRAIN.replace("train", "release").replace("heads/main", "heads/mine"),
                {"qlora-read"},
            ),
            # A branch, or a file, whose name ends like main's.
            (
                "environment:production",
                TRAIN.replace("train", "release").replace("main", "x@refs/heads/main"),
                {"qlora-read"},
            ),
            (
                "environment:production",
                TRAIN.replace("train.yaml", "x.yaml@refs/heads/main/../release.yaml"),
                {"qlora-read"},
            ),
            ("environment:production", TRAIN.replace("train", "anything-new"), {"qlora-read"}),
            ("environment:production", TRAIN.replace("train", "sub/release"), {"qlora-read"}),
            ("ref:refs/heads/main", TRAIN.replace("main", "x@refs/heads/main"), {"qlora-read"}),
            ("environment:staging", TRAIN.replace("train", "deploy"), {"qlora-read"}),
        ],
    )
    def test_a_job_may_take_just_its_roles(self, context, file, allowed):
        subject = f"repo:your-org/qlora-gitops:{context}:job_workflow_ref:{file}"
        assert {role for role in WRITES if may_take(role, subject)} == allowed

    @pytest.mark.parametrize(
        "repository", ["mallory/qlora-gitops", "your-org/qlora-gitops-2", "your-org/other"]
    )
    def test_no_other_repository_takes_any(self, repository):
        subject = f"repo:{repository}:pull_request:job_workflow_ref:{TRAIN}"
        assert [role for role in WRITES if may_take(role, subject)] == []

    def test_subjects_with_ids_in_them(self):
        """Of repositories made since July 2026."""
        ids = {
            "repository": "your-org@1234/qlora-gitops@5678",
            "workflows_repository": "your-org/qlora-gitops",
        }
        subject = f"repo:your-org@1234/qlora-gitops@5678:pull_request:job_workflow_ref:{TRAIN}"
        assert may_take("qlora-candidates", subject, **ids)
        assert not may_take("qlora-candidates", subject)


class TestRights:
    def test_the_roles_are_those_of_the_workflows(self):
        assert set(roles()) == set(WRITES)
        text = (ROOT / "docs/setup-github.md").read_text()
        assert all(f"`{name}`" in text for name in WRITES)

    def test_every_prefix_of_the_store_is_written_by_one_role(self):
        """docs/architecture.md: these are all there are."""
        written = [
            statement["Resource"].removeprefix("arn:aws:s3:::qlora-adapters/").removesuffix("/*")
            for _, rights in roles().values()
            for statement in rights["Statement"]
            if statement["Action"] == "s3:PutObject"
        ]
        assert sorted(written) == [
            "adapters",
            "audit",
            "candidates",
            "channels",
            "checkpoints",
            "withdrawn",
        ]

    def test_what_was_judged_and_what_was_recorded_is_created_and_never_replaced(self):
        """https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes-enforce.html;
        the local server knows no conditions."""
        for _, rights in roles().values():
            for statement in rights["Statement"]:
                prefix = (
                    statement["Resource"]
                    .removeprefix("arn:aws:s3:::qlora-adapters/")
                    .removesuffix("/*")
                )
                wanted = (
                    {"Null": {"s3:if-none-match": "false"}}
                    if statement["Action"] == "s3:PutObject" and prefix in CREATES
                    else None
                )
                assert statement.get("Condition") == wanted

    def test_checkpoints_alone_are_removed_by_who_writes_them_and_by_the_clock(self):
        removed = {
            name: [
                statement["Resource"]
                for statement in rights["Statement"]
                if statement["Action"] == "s3:DeleteObject"
            ]
            for name, (_, rights) in roles().items()
        }
        wanted = ["arn:aws:s3:::qlora-adapters/checkpoints/*"]
        assert removed == {"qlora-read": [], "qlora-candidates": wanted, "qlora-release": []}
        (lifecycle,) = evaluate()["aws_s3_bucket_lifecycle_configuration"]
        assert lifecycle["rule"]["filter"]["prefix"] == "checkpoints/"

    def test_old_objects_stay(self):
        (versioning,) = evaluate()["aws_s3_bucket_versioning"]
        assert versioning["versioning_configuration"]["status"] == "Enabled"

    @pytest.fixture(scope="class")
    def server(self, tmp_path_factory):
        port = free_port()
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT / 'tests'}"}
        with (tmp_path_factory.mktemp("aws") / "server.log").open("wb") as log:
            command = [sys.executable, str(ROOT / "tests/play/aws.py"), str(port)]
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        try:
            wait_for_http(f"http://127.0.0.1:{port}", process=process)
            set_up(f"http://127.0.0.1:{port}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)

    @pytest.mark.parametrize("role", WRITES)
    def test_a_server_that_holds_to_them_lets_it_write_there_and_nowhere_else(self, server, role):
        """Real requests with the role's own keys; nothing may be deleted by anybody, but for
        checkpoints by who writes them."""
        from botocore import UNSIGNED
        from botocore.config import Config

        sts = boto3.client(
            "sts",
            endpoint_url=server,
            region_name="us-east-1",
            config=Config(signature_version=UNSIGNED),
        )
        arn = f"arn:aws:iam::{ACCOUNT}:role/{role}"
        keys = sts.assume_role_with_web_identity(
            RoleArn=arn, RoleSessionName="test", WebIdentityToken="e30.e30."
        )["Credentials"]
        session = boto3.Session(
            keys["AccessKeyId"],
            keys["SecretAccessKey"],
            keys["SessionToken"],
            region_name="us-east-1",
        )
        client = session.client("s3", endpoint_url=server)
        for prefix in (
            "candidates",
            "checkpoints",
            "adapters",
            "channels",
            "audit",
            "withdrawn",
            "elsewhere",
        ):
            if prefix in WRITES[role]:
                client.put_object(
                    Bucket="qlora-adapters", Key=f"{prefix}/test", Body=b"x", IfNoneMatch="*"
                )
                assert (
                    client.get_object(Bucket="qlora-adapters", Key=f"{prefix}/test")["Body"].read()
                    == b"x"
                )
            else:
                with pytest.raises(ClientError, match="AccessDenied"):
                    client.put_object(Bucket="qlora-adapters", Key=f"{prefix}/test", Body=b"x")
            if prefix != "checkpoints":
                with pytest.raises(ClientError, match="AccessDenied"):
                    client.delete_object(Bucket="qlora-adapters", Key=f"{prefix}/test")
        checkpoint = {"Bucket": "qlora-adapters", "Key": f"checkpoints/{'a' * 64}/rung-0/1/weights"}
        if role == "qlora-candidates":
            client.put_object(**checkpoint, Body=b"x", IfNoneMatch="*")
            client.delete_object(**checkpoint)
        else:
            with pytest.raises(ClientError, match="AccessDenied"):
                client.delete_object(**checkpoint)
        assert client.list_objects_v2(Bucket="qlora-adapters")["KeyCount"] >= len(WRITES[role])
