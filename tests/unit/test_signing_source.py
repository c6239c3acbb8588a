"""A keyless signature counts for the repository that its workflow ran in, not for every one that
could call the workflow's file."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from adapterops.errors import RejectedError
from adapterops.signing import check_source

OURS = "https://github.com/acme/qlora"
IDENTITY = f"{OURS}/.github/workflows/train.yaml@refs/heads/main"
SOURCE = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.12")  # Fulcio: Source Repository URI


def certificate(source):
    """As Fulcio makes it for a workflow's token, as far as it is looked at."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    name = x509.Name([])
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    )
    builder = (
        builder.serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(minutes=10))
    )
    builder = builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(IDENTITY)]), critical=True
    )
    if source:
        text = source.encode()
        builder = builder.add_extension(
            x509.UnrecognizedExtension(SOURCE, bytes([12, len(text)]) + text), critical=False
        )
    return builder.sign(key, hashes.SHA256())


def test_what_ran_in_the_files_own_repository_holds():
    check_source(certificate(OURS), IDENTITY)


OTHERS = [
    "https://github.com/acme/other",
    f"{OURS}-2",
    "https://github.com/ACME/qlora",
    "http://github.com/acme/qlora",
    None,
]


@pytest.mark.parametrize("source", OTHERS)
def test_what_ran_elsewhere_with_the_same_file_does_not(source):
    with pytest.raises(RejectedError, match=f"not made in {OURS}"):
        check_source(certificate(source), IDENTITY)


def test_a_person_has_no_repository():
    check_source(certificate(None), "somebody@acme.example")
