"""The opt-in finder of people's names; no name model can be had from a package registry, so none is built in."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from adapterops.errors import UsageError

NameFinder = Callable[[str], Iterable[tuple[int, int]]]


def load_name_finder(plugin: str) -> NameFinder:
    """The function `package.module:function`, which gives (start, end) of every name in a text.

    Raises:
        UsageError: it cannot be imported.
    """
    module, _, name = plugin.partition(":")
    try:
        finder: NameFinder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"configs/data_policy.yaml: name_plugin `{plugin}` cannot be loaded: {error}.") from None
    return finder
