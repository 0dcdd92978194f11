"""Joined regions: five lobes as one lung. A group's sums are those of its members, so nothing is computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from agg2exp_core.records import InputError, SumTable


def join_regions(table: SumTable, groups: Mapping[str, Sequence[str]]) -> SumTable:
    """The table with each group (name → members) in place of its members, where the first of them stood."""
    owner = {member: name for name, members in groups.items() for member in members}
    if len(owner) < sum(len(members) for members in groups.values()):
        raise InputError("a region may be in one group only", "one in several")
    unknown = sorted(set(owner) - set(table.regions))
    if unknown:
        raise InputError("a group's members must be regions", ", ".join(unknown), ", ".join(table.regions))
    joined = [owner.get(region, region) for region in table.regions]
    names = tuple(dict.fromkeys(joined))
    member = np.array([[name == of for name in names] for of in joined], dtype=np.int64)
    return SumTable(
        table.targets, names, table.positive @ member, table.negative @ member, table.voxels @ member, table.absent
    )
