"""Which rows belong together: what a mean over all of them would hide."""

from __future__ import annotations

import collections

from adapterops.data.reader import Row


def slices(rows: list[Row], general: range = range(0)) -> dict[str, list[int]]:
    """Row positions by language, by task (the first tag) and by every other tag; of general rows by
    language and by task.
    """
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
