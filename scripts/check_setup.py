"""Check what a job needs before it starts."""

from __future__ import annotations

import in_venv  # noqa: F401  first: it enters .venv

import click

from adapterops.command import command, console


@command()
@click.option(
    "--need",
    "needed",
    multiple=True,
    required=True,
    help="What later steps need; may be given several times.",
)
def main(needed: tuple[str, ...]) -> int:
    """Check that everything is there that later steps need; name all that is missing, with what to
    do, and exit 3.

    \b
    bucket             the store can be read
    candidates-write   ... and candidates written
    releases-write     ... and releases and channels
    gateways           every gateway of $GATEWAYS answers
    gpu                the driver finds a GPU ($NO_GPU=true: none is wanted)
    disk               30 GiB are free
    engine             vLLM is installed
    github             $GITHUB_TOKEN is set
    candidates-sign    the key of $CANDIDATE_SIGNING_KEY signs, and fits $CANDIDATE_SIGNED_BY;
                       `keyless`: the job has an identity (id-token: write), and Sigstore
                       gives out its keys

    \b
    Example:
      python scripts/check_setup.py --need bucket --need candidates-write --need gpu --need engine
    """
    from adapterops.gitops.outputs import annotate
    from adapterops.gitops.setup import missing

    problems = missing(list(needed))
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
        annotate("error", "setup", problem)
    console.print(
        f"{len(needed) - len(problems)} of {len(needed)} needs are met: {', '.join(needed)}"
    )
    return 3 if problems else 0


if __name__ == "__main__":
    main()
