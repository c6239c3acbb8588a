"""Which rows belong together: what a mean over all of them would hide."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from adapterops.data.reader import Row
from adapterops.data.rows import DataRow


def slices(rows: Sequence[Row[DataRow]], general: range = range(0)) -> dict[str, list[int]]:
    """Row positions by language, task (the first tag) and other tags; general rows have none."""
    members = collections.defaultdict(list)
    for index, row in enumerate(rows):
        task, *tags = row.value.get("tags") or ["untagged"]
        if index in general:
            members[f"general-{row.value['language']}"].append(index)
            members[f"general-{task}"].append(index)
            continue
        for name in (
            f"language:{row.value['language']}",
            f"task:{task}",
            *(f"tag:{tag}" for tag in tags),
        ):
            members[name].append(index)
    return dict(sorted(members.items()))
