"""Organs that explain each other, as a dendrogram."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from agg2exp_core.analysis.importance import roots
from agg2exp_core.records import InputError

LINKAGES = ("average", "complete", "single", "ward")


@dataclass(frozen=True, eq=False)
class Dendrogram:
    """names: organs. linkage: (organs − 1, 4) as SciPy writes it. order: names from leaf to leaf.

    cophenetic: correlation of the tree's distances with the given ones; NaN for two organs.
    """

    names: tuple[str, ...]
    linkage: np.ndarray
    order: tuple[str, ...]
    cophenetic: float


def distances(matrix: pd.DataFrame) -> pd.DataFrame:
    """(organs × organs): max − √mass between organs that are target and region, symmetric, 0 on the diagonal.

    √mass is the mean of both directions (the published script takes one of them), the maximum that of all these
    means, the diagonal's included. A pair with one direction keeps that one; with none it is as far as can be. Organs
    that were never explained are left out.
    """
    explained = matrix.index[matrix.notna().any(axis=1)]
    names = [name for name in explained if name in matrix.columns]
    root = roots(matrix.loc[names, names].to_numpy(np.float64))
    near = np.where(np.isnan(root), root.T, root)
    near = np.nan_to_num((near + near.T) / 2)
    far = near.max(initial=0) - near
    np.fill_diagonal(far, 0)
    return pd.DataFrame(far, index=pd.Index(names), columns=pd.Index(names))


def cluster(matrix: pd.DataFrame, method: str = "average") -> Dendrogram:
    """Organs of the matrix (targets × regions, masses) joined by their `distances`, with leaves in optimal order.

    Ward's criterion assumes Euclidean distances, which these are not; it is offered because the publication shows it.
    InputError: an unknown method, or fewer than two organs.
    """
    if method not in LINKAGES:
        raise InputError("linkage must be known", repr(method), ", ".join(LINKAGES))
    table = distances(matrix)
    if len(table) < 2:
        raise InputError("clustering needs at least 2 organs that are target and region", len(table))
    names = tuple(map(str, table.index))
    condensed = squareform(table.to_numpy(), checks=False)
    linkage = hierarchy.linkage(condensed, method, optimal_ordering=True)
    tree = hierarchy.cophenet(linkage)
    constant = len(names) == 2 or np.ptp(tree) == 0 or np.ptp(condensed) == 0
    cophenetic = np.nan if constant else float(np.corrcoef(condensed, tree)[0, 1])
    return Dendrogram(names, linkage, tuple(names[leaf] for leaf in hierarchy.leaves_list(linkage)), cophenetic)
