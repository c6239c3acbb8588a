# The bucket's rights for GitHub Actions: three roles, each for its prefixes, none with a stored key.
#
#   terraform apply -var bucket=qlora-adapters -var repository=your-org/qlora-gitops
#
# `repository` is how the token's subject names it. For repositories made since July 2026 that is your-org@ORG_ID/qlora-gitops@REPO_ID;
# docs/setup-github.md shows how to see it.

variable "bucket" { type = string }
variable "repository" { type = string }
variable "workflows_repository" {
  type        = string
  description = "owner/name as in job_workflow_ref, where it differs from `repository`"
  default     = ""
}

locals {
  issuer    = "token.actions.githubusercontent.com"
  workflows = coalesce(var.workflows_repository, var.repository)
  files     = "${local.workflows}/.github/workflows"
  train     = "${local.files}/train.yaml@refs/heads/main"
  bucket    = "arn:aws:s3:::${var.bucket}"
  roles = {
    # Any job of this repository may see what is there.
    read = {
      test     = "StringLike"
      subjects = ["repo:${var.repository}:*"]
      create   = []
      write    = []
      delete   = []
    }
    # train.yaml as main has it, called for a pull request or by main itself; never a pull request's own version of it.
    candidates = {
      test = "StringEquals"
      subjects = [
        "repo:${var.repository}:pull_request:job_workflow_ref:${local.train}",
        "repo:${var.repository}:ref:refs/heads/main:job_workflow_ref:${local.train}",
      ]
      create = ["candidates/*"]
      write  = ["checkpoints/*"]
      delete = ["checkpoints/*"]
    }
    # Jobs that were let into the environment `production`, which only main may enter; the files are named, for a pattern that ends with
    # @refs/heads/main also matches a branch of that name: `release.yaml@refs/heads/x@refs/heads/main`.
    release = {
      test = "StringEquals"
      subjects = [
        for file in ["release.yaml", "deploy.yaml"] :
        "repo:${var.repository}:environment:production:job_workflow_ref:${local.files}/${file}@refs/heads/main"
      ]
      create = ["audit/*"]
      write  = ["adapters/*", "channels/*", "withdrawn/*"]
      delete = []
    }
  }
}

resource "aws_iam_openid_connect_provider" "github" {
  url            = "https://${local.issuer}"
  client_id_list = ["sts.amazonaws.com"]
}

resource "aws_iam_role" "role" {
  for_each             = local.roles
  name                 = "qlora-${each.key}"
  max_session_duration = 3600
  assume_role_policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sts:AssumeRoleWithWebIdentity"
      Principal = { Federated = aws_iam_openid_connect_provider.github.arn }
      Condition = { (each.value.test) = {
        "${local.issuer}:aud" = "sts.amazonaws.com"
        "${local.issuer}:sub" = each.value.subjects
      } }
    }]
  })
}

resource "aws_iam_role_policy" "role" {
  for_each = local.roles
  name     = "bucket"
  role     = aws_iam_role.role[each.key].id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat(
      [
        { Effect = "Allow", Action = "s3:ListBucket", Resource = local.bucket },
        { Effect = "Allow", Action = "s3:GetObject", Resource = "${local.bucket}/*" },
      ],
      # Creating: what is there stays, for S3 asks for the header `If-None-Match` (there is no multipart upload then, and no copy).
      [for prefix in each.value.create : {
        Effect    = "Allow", Action = "s3:PutObject", Resource = "${local.bucket}/${prefix}"
        Condition = { Null = { "s3:if-none-match" = "false" } }
      }],
      # Writing, never deleting: only the bucket's owner tidies up.
      [for prefix in each.value.write : { Effect = "Allow", Action = "s3:PutObject", Resource = "${local.bucket}/${prefix}" }],
      # But for checkpoints, gigabytes that nobody needs when the training is done.
      [for prefix in each.value.delete : { Effect = "Allow", Action = "s3:DeleteObject", Resource = "${local.bucket}/${prefix}" }],
    )
  })
}

# A version of the channel that was overwritten by hand can be brought back.
resource "aws_s3_bucket_versioning" "bucket" {
  bucket = var.bucket
  versioning_configuration { status = "Enabled" }
}

# Checkpoints of a training that nobody went on with go after a month; the bytes of removed ones stay a week, not for ever.
resource "aws_s3_bucket_lifecycle_configuration" "bucket" {
  bucket = var.bucket
  rule {
    id     = "checkpoints"
    status = "Enabled"
    filter { prefix = "checkpoints/" }
    noncurrent_version_expiration { noncurrent_days = 7 }
    expiration { days = 30 }
  }
}

output "roles" { value = { for name, role in aws_iam_role.role : name => role.arn } }
