"""What every command line shares: exit codes, error output, option types."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import click
from rich.console import Console

from adapterops.errors import AdapterOpsError
from adapterops.escape import line, no_commands, visible

# Set before any import of transformers, trl or vllm in a stage: progress is shown by the stage
# itself, and nothing may phone home from a runner.
for _name, _value in {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # a recipe's attention, where it is not installed, would be fetched as compiled code
    "USE_HUB_KERNELS": "NO",
}.items():
    os.environ.setdefault(_name, _value)


class _WithoutCommands:
    """`sys.stdout` or `sys.stderr`, in whose text GitHub's runner finds no command.

    So a name in a message cannot give it one.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def write(self, text: str) -> int:
        """Write a text."""
        written: int = getattr(sys, self._name).write(no_commands(text))
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self._name), name)


console = Console(file=cast(IO[str], _WithoutCommands("stdout")), highlight=False)
error_console = Console(
    file=cast(IO[str], _WithoutCommands("stderr")), stderr=True, highlight=False
)
# For workflow commands, and for lines that `escape.line` made harmless.
to_runner = Console(highlight=False)

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
EXISTING_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)
OUTPUT_PATH = click.Path(path_type=Path)

# For every script that looks at candidates: what one takes for done, a release must not refuse.
SIGNED_BY = click.option(
    "--signed-by",
    envvar="CANDIDATE_SIGNED_BY",
    help=(
        "Whose signature candidates must carry: public key (PEM), or `keyless`: this repository's"
        " train.yaml. Default: $CANDIDATE_SIGNED_BY, else none is asked for."
    ),
)


# A path of the user's that cannot be read or written, and a disk that is full: no defect, so that a
# sentence says it.
_BAD_PATH = {
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.EBUSY,
}
_BAD_DISK = {errno.ENOSPC, errno.EDQUOT}


class StageCommand(click.Command):
    """A click command with the project's exit codes, and no traceback for a user's mistake."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command and exit.

        Raises:
            SystemExit: always; see `adapterops.errors` for the codes. 130 after an interrupt.
        """
        kwargs["standalone_mode"] = False
        try:
            code = super().main(*args, **kwargs)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            error_console.print(
                "Interrupted. Nothing half-written is left; the same command starts again."
            )
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)
        except AdapterOpsError as error:
            error_console.print("[bold red]error:[/] ", end="")
            error_console.print(visible(str(error)), markup=False, soft_wrap=True)
            sys.exit(error.exit_code)
        except OSError as error:
            if error.errno not in _BAD_PATH | _BAD_DISK or error.filename is None:
                error_console.out(visible(traceback.format_exc()), end="")
                sys.exit(3)
            name = (
                error.filename2 or error.filename
            )  # of two, the one that was asked for: files are written beside and renamed
            error_console.print("[bold red]error:[/] ", end="")
            error_console.print(visible(f"{name}: {error.strerror}."), markup=False, soft_wrap=True)
            sys.exit(3 if error.errno in _BAD_DISK else 2)
        except Exception:
            # A defect of this project or a broken machine, never "the gate says no": exit code 1
            # would say that.
            error_console.out(visible(traceback.format_exc()), end="")
            sys.exit(3)
        sys.exit(code if isinstance(code, int) else 0)


class _LineFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # logging's name  # noqa: N802
        return line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Its lines are indented, so that none looks like a record."""
        return textwrap.indent(visible(super().formatException(ei)), "  ")


def log_in_lines() -> None:
    """Log to standard error, a record a line: what a client or the store wrote forges none."""
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def run_child(arguments: Sequence[str], **options: Any) -> int:
    """Run a program to its end; its exit code.

    After an interrupt it has the time that it takes to write a checkpoint or to take traffic back;
    a second one kills it.

    Raises:
        KeyboardInterrupt: there was one; the program has ended.
    """
    process, interrupts = subprocess.Popen(arguments, **options), 0
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupts += 1
            if interrupts > 1:
                process.kill()
            elif not any(
                os.isatty(descriptor) for descriptor in range(3)
            ):  # a terminal tells both by itself
                process.send_signal(signal.SIGINT)
    if interrupts:
        raise KeyboardInterrupt
    return code


def command(**attributes: Any) -> Any:
    """`click.command` with `StageCommand`; the docstring of the function is the `--help` text."""
    attributes.setdefault(
        "context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 110}
    )
    return click.command(cls=StageCommand, **attributes)
