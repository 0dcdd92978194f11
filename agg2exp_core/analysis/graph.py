"""Which regions the targets' evidence comes from, as a directed graph of organs.

An edge leads from the region to the target that it is evidence for, as in the published figures. Matrices are
DataFrames (targets × regions) as `importance.medians` gives; with negative values, as of positive minus negative
mass, edges are chosen by magnitude and keep their sign.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from agg2exp_core.records import InputError

EDGES = ("target", "region", "value", "sign")


def top_edges(matrix: pd.DataFrame, k: int = 5) -> pd.DataFrame:
    """target, region, value, sign (pos | neg): the k largest regions of each target, largest first.

    Absent pairs and zeros are no edges. InputError: k below 1.
    """
    if k < 1:
        raise InputError("a target needs at least 1 edge", k)
    edges = _ranked(matrix)
    return edges[edges.groupby("target", sort=False).cumcount() < k].reset_index(drop=True)


def cumulative_edges(matrix: pd.DataFrame, cut: float) -> pd.DataFrame:
    """As `top_edges`, but of each target the largest regions as long as their masses together are at most `cut`.

    Give masses of `importance.foreground`, whose rows sum to 1. The published cut of 0.35 was laid on means that still
    shared with the background; their organs seldom reach it together, so that it keeps nearly everything.
    InputError: a cut outside 0 … 1.
    """
    if not 0 < cut <= 1:
        raise InputError("cumulative mass must be cut above 0 and at most at 1", cut)
    edges = _ranked(matrix)
    reached = edges["value"].abs().groupby(edges["target"], sort=False).cumsum()
    # A row that sums to 1 but for rounding is kept whole by a cut at 1.
    return edges[reached <= cut + 1e-9].reset_index(drop=True)


def self_loops(edges: pd.DataFrame) -> pd.DataFrame:
    """The edges of targets that look at themselves."""
    return edges[edges["target"] == edges["region"]]


def _ranked(matrix: pd.DataFrame) -> pd.DataFrame:
    """Every pair as an edge: targets in their order, regions by magnitude, ties in the order of the matrix."""
    values = matrix.to_numpy(np.float64)
    order = np.argsort(-np.abs(values), axis=1, kind="stable")
    rows = np.repeat(np.arange(len(values)), values.shape[1])
    value = np.take_along_axis(values, order, axis=1).reshape(-1)
    columns = (
        matrix.index.to_numpy(object)[rows],
        matrix.columns.to_numpy(object)[order.reshape(-1)],
        value,
        np.where(value < 0, "neg", "pos").astype(object),
    )
    edges = pd.DataFrame(dict(zip(EDGES, columns, strict=True)))
    return edges[np.isfinite(value) & (value != 0)]
