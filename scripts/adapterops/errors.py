"""Errors that end a command, each with the exit code that CI acts on.

0 pass, 1 the data or the gate says no, 2 misuse (option, configuration, file), 3 infrastructure
(GPU, engine, object store, network). A message names the setting or `file:line`, the value, the
reason and the fix.
"""

from __future__ import annotations


class AdapterOpsError(Exception):
    """Base of the errors below; never raised itself."""

    exit_code = 3


class RejectedError(AdapterOpsError):
    """The data or the gate says no."""

    exit_code = 1


class UsageError(AdapterOpsError):
    """A bad option, configuration or file: mend the input and run again."""

    exit_code = 2


class InfrastructureError(AdapterOpsError):
    """GPU, engine, object store or network failed: the same input may pass on another try."""

    exit_code = 3
