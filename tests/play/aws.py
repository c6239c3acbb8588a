"""The roles of docs/aws/main.tf, evaluated as Terraform would, and an S3 server that holds callers
to them.

Suggested usage:

    # Buckets, users and roles are made by `set_up`; from then on nobody may do what no policy
    # allows.
    python tests/play/aws.py 9000
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import boto3
import httpx
import tfparse

from adapterops.schemas import ROOT

ACCOUNT = "123456789012"
READER = {
    "Version": "2012-10-17",
    "Statement": [
        {"Effect": "Allow", "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": "*"}
    ],
}
OWNER = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
}


def evaluate(repository="your-org/qlora-gitops", bucket="qlora-adapters", **variables):
    """The resources of docs/aws by type, with their values under these variables."""
    settings = {"repository": repository, "bucket": bucket, **variables}
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copy(ROOT / "docs/aws/main.tf", scratch)
        Path(scratch, "terraform.tfvars").write_text(
            "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
        )
        return tfparse.load_from_path(scratch, vars_paths=["terraform.tfvars"])


def roles(**variables):
    """Name of each role → (who may take it, what it may do), as policy documents."""
    resources = evaluate(**variables)
    rights = {
        path_key(resource): json.loads(resource["policy"])
        for resource in resources["aws_iam_role_policy"]
    }
    return {
        role["name"]: (json.loads(role["assume_role_policy"]), rights[path_key(role)])
        for role in resources["aws_iam_role"]
    }


def path_key(resource):
    """`read` of `aws_iam_role.role["read"]`."""
    return resource["__tfmeta"]["path"].partition('["')[2].removesuffix('"]')


def set_up(endpoint, bucket="qlora-adapters"):
    """Make the bucket, the roles, and a user `reader` (a serving host) and `owner` (who looks on),
    then hold everybody to their rights.

    Returns:
        The keys of the two users by name.
    """
    session = boto3.Session("first", "first", region_name="us-east-1")
    session.client("s3", endpoint_url=endpoint).create_bucket(Bucket=bucket)
    iam = session.client("iam", endpoint_url=endpoint)
    for name, (trust, rights) in roles(bucket=bucket).items():
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        iam.put_role_policy(RoleName=name, PolicyName="bucket", PolicyDocument=json.dumps(rights))
    keys = {}
    for name, rights in {"reader": READER, "owner": OWNER}.items():
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="bucket", PolicyDocument=json.dumps(rights))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        keys[name] = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }
    httpx.post(f"{endpoint}/moto-api/reset-auth", content=b"0").raise_for_status()
    return keys


def main():
    from moto.core.authorization import ActionAuthenticatorMixin
    from moto.server import main as serve

    checked = ActionAuthenticatorMixin._authenticate_and_authorize_action

    def authorize(self, iam_request_cls, resource="*"):
        # Whoever takes a role by a web identity has no keys yet; moto wants a signature all the
        # same.
        if self._get_action() != "AssumeRoleWithWebIdentity":
            checked(self, iam_request_cls, resource)

    ActionAuthenticatorMixin._authenticate_and_authorize_action = authorize
    serve(["-H", "127.0.0.1", "-p", sys.argv[1]])


if __name__ == "__main__":
    main()
