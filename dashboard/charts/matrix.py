"""The organ × organ matrix: DataFrame → Plotly figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import LabelSet
from dashboard.charts.common import (
    ANYWHERE,
    PLAIN,
    Pick,
    chart_height,
    frame,
    in_group_order,
    number,
    organ_axes,
    organ_of,
    room,
    rounded,
    to_click,
    unchecked,
)  # fmt: skip

SCALE = "Viridis"


def organ_matrix(
    matrix: pd.DataFrame, labels: LabelSet, measure: str, picked: Pick | None = None, order: Sequence[str] = ()
) -> go.Figure:
    """Medians as colours: one row a target, one column a region, both group by group or in the order given.

    matrix: as `queries.matrix` gives it (target, region, value, n). Colour grows with the square root, so that
    small shares stay apart beside the background's. A click on a cell answers with customdata [target, region].
    order: names from first to last; what it lacks follows.
    """
    targets, regions = (_ordered(matrix[axis], labels, order) for axis in ("target", "region"))
    values = matrix.pivot(index="target", columns="region", values="value")
    values = values.reindex(index=targets, columns=regions).astype(float)
    top = float(np.nanmax(values.to_numpy(), initial=1e-12))
    bar = _color_bar(top, measure)
    cells = {
        "type": "heatmap", "z": np.sqrt(values.to_numpy()), "zmin": 0, "zmax": math.sqrt(top), "colorscale": SCALE,
        "xgap": 1, "ygap": 1, "hoverinfo": "skip", "colorbar": bar,
    }  # fmt: skip
    layout: dict[str, Any] = PLAIN | ANYWHERE | organ_axes(targets, regions, labels)
    layout["height"] = chart_height(len(targets))
    layout["margin"]["r"] = bar["thickness"] + room(bar["ticktext"], 12)
    if picked and picked[0] in targets and picked[1] in regions:
        x, y = regions.index(picked[1]), targets.index(picked[0])
        layout["shapes"] = [frame((x - 0.5, x + 0.5), (y - 0.5, y + 0.5))]
    return unchecked([cells, _cells_to_click(matrix, (targets, regions), labels, measure)], layout)


def _ordered(names: pd.Series, labels: LabelSet, order: Sequence[str]) -> list[str]:
    grouped = in_group_order(names, labels)
    return [*(name for name in order if name in grouped), *(name for name in grouped if name not in order)]


def _cells_to_click(
    matrix: pd.DataFrame, axes: tuple[list[str], list[str]], labels: LabelSet, measure: str
) -> dict[str, Any]:
    targets, regions = axes
    cells = matrix[["target", "region", "value", "n"]].to_dict("records")
    return to_click() | {
        "x": [regions.index(cell["region"]) for cell in cells],
        "y": [targets.index(cell["target"]) for cell in cells],
        "customdata": [[cell["target"], cell["region"]] for cell in cells],
        "text": [_cell_words(cell, labels, measure) for cell in cells],
    }


def _cell_words(cell: dict[Any, Any], labels: LabelSet, measure: str) -> str:
    target, region = organ_of(labels, cell["target"]).title, organ_of(labels, cell["region"]).title
    if not cell["n"] or not math.isfinite(cell["value"]):
        return f"<b>{target}</b><br>{region}: in none of these scans"
    amount = number(cell["value"], measure)
    what = f"{amount} lies on<br><b>{region}</b>" if measure == "mass" else f"{amount} per voxel of<br><b>{region}</b>"
    return f"Of the attribution of <b>{target}</b><br>{what}<br>median of {cell['n']} scans · click to list them"


def _color_bar(top: float, measure: str) -> dict[str, Any]:
    shares = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
    ticks = [0.0, *(share for share in shares if 0.02 * top < share <= top)]
    if measure != "mass":
        ticks = [0.0, *(float(f"{top * part:.1g}") for part in (0.05, 0.2, 0.5)), top]
    text = [f"{100 * tick:g} %" if measure == "mass" else rounded(tick, 2) for tick in ticks]
    places = [math.sqrt(tick) for tick in ticks]
    return {"tickvals": places, "ticktext": text, "thickness": 10, "outlinewidth": 0, "xpad": 6, "ypad": 0, "len": 1.0}
