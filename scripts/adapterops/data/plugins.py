"""The opt-in finder of people's names; no name model can be had from a package registry, so none is built in."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from adapterops.errors import UsageError

NameFinder = Callable[[str], Iterable[tuple[int, int]]]


def load_name_finder(plugin: str) -> NameFinder:
    """The function `package.module:function`, which gives (start, end) of every name in a text.

    Raises:
        UsageError: it cannot be imported, or is not a function.
    """
    module, _, name = plugin.partition(":")
    try:
        finder: NameFinder = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module can fail in any way when it is imported
        raise UsageError(f"configs/data_policy.yaml: name_plugin `{plugin}` cannot be loaded: {error}.") from None
    if not callable(finder):
        raise UsageError(f"configs/data_policy.yaml: name_plugin `{plugin}` is not a function.")
    return finder
