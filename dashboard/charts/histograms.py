"""A grid of histograms, a target a row and a region a column: DataFrame → Plotly figure."""

from __future__ import annotations

import math
import textwrap
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from agg2exp_core.organs import LabelSet
from dashboard.charts.common import (
    ANYWHERE,
    GREY,
    HOVER,
    PICKED,
    Pick,
    faint,
    frame,
    group_colors,
    number,
    organ_of,
    own_region,
    rounded,
    to_click,
)  # fmt: skip

ROW, ROW_LETTERS = 124, 14
"""Height in px of one row of the grid, and what of its title has room along it."""

CLICK_COLUMNS, CLICK_ROWS = 12, 5


def histogram_grid(bins: pd.DataFrame, labels: LabelSet, measure: str, picked: Pick | None = None) -> go.Figure:
    """One histogram a cell, all on the same axes; an organ on itself is tinted, the others are grey.

    bins: as `summary.histograms` gives it, in the order in which rows and columns are drawn. A click in a cell answers
    with customdata [target, region].
    """
    targets, regions = list(dict.fromkeys(bins["target"])), list(dict.fromkeys(bins["region"]))
    titles = [organ_of(labels, name).title for name in regions]
    figure = make_subplots(
        len(targets), len(regions), shared_xaxes="all", shared_yaxes="all", column_titles=titles,
        horizontal_spacing=0.014, vertical_spacing=0.03,
    )  # fmt: skip
    top = max(int(bins["count"].max()), 1)
    for row, target in enumerate(targets, 1):
        lines = textwrap.wrap(escape(organ_of(labels, target).title, quote=False), ROW_LETTERS)
        title = {"text": "<br>".join(lines), "standoff": 4}
        figure.update_yaxes(title=title, row=row, col=1)
        own = own_region(labels, target, regions)
        for column, region in enumerate(regions, 1):
            cell = bins[(bins["target"] == target) & (bins["region"] == region)]
            where = {"row": row, "col": column}
            _add_bars(figure, cell, labels, region == own, where)
            _add_squares(figure, cell, _words(cell, labels, measure), top, where)
            if picked == (target, region):
                ends = 0.0, math.sqrt(float(cell["high"].iloc[-1]))
                figure.add_shape(frame(ends, (0, top * 1.06)), **where)
    return _laid_out(figure, bins, measure, top)


def _add_bars(figure: go.Figure, cell: pd.DataFrame, labels: LabelSet, own: bool, where: dict[str, int]) -> None:
    low, high = np.sqrt(cell["low"]), np.sqrt(cell["high"])
    region = organ_of(labels, cell["region"].iloc[0])
    color = group_colors(labels).get(region.group, GREY)
    figure.add_bar(
        x=(low + high) / 2, y=cell["count"], width=(high - low) * 0.94, hoverinfo="skip", showlegend=False,
        marker={"color": color if own else GREY, "line": {"width": 0}}, opacity=1 if own else 0.75, **where,
    )  # fmt: skip
    if own:
        figure.add_shape(
            type="rect", xref="x domain", yref="y domain", x0=0, x1=1, y0=0, y1=1, layer="below",
            fillcolor=faint(color, 0.14), line={"color": color, "width": 1.5}, **where,
        )  # fmt: skip
    if cell["n"].iloc[0]:
        middle = math.sqrt(max(float(cell["median"].iloc[0]), 0))
        figure.add_vline(x=middle, line={"color": PICKED, "width": 1.4, "dash": "dot"}, **where)


def _add_squares(figure: go.Figure, cell: pd.DataFrame, text: str, top: int, where: dict[str, int]) -> None:
    end = math.sqrt(float(cell["high"].iloc[-1]))
    x, y = np.meshgrid(np.linspace(0.02, 0.98, CLICK_COLUMNS) * end, np.linspace(0.05, 1, CLICK_ROWS) * top)
    count = CLICK_COLUMNS * CLICK_ROWS
    figure.add_scatter(
        x=np.round(x.ravel(), 5), y=np.round(y.ravel(), 2), text=[text] * count,
        customdata=[[cell["target"].iloc[0], cell["region"].iloc[0]]] * count, **to_click(), **where,
    )  # fmt: skip


def _words(cell: pd.DataFrame, labels: LabelSet, measure: str) -> str:
    target, region = (organ_of(labels, str(cell[axis].iloc[0])).title for axis in ("target", "region"))
    if not cell["n"].iloc[0]:
        return f"<b>{target}</b> on <b>{region}</b>: in none of these scans"
    middle = number(float(cell["median"].iloc[0]), measure)
    what = "attribution" if measure == "mass" else "attribution per voxel"
    return (
        f"<b>{target}</b>: {what} on <b>{region}</b><br>median {middle} of {cell['n'].iloc[0]} scans · "
        "click to list them"
    )


def _laid_out(figure: go.Figure, bins: pd.DataFrame, measure: str, top: int) -> go.Figure:
    end = float(bins["high"].max())
    rows = bins["target"].nunique()
    x: dict[str, Any] = _ticks(end, measure) | {
        "range": [0, math.sqrt(end)], "zeroline": False, "showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.2)",
        "ticks": "outside", "ticklen": 3,
    }  # fmt: skip
    figure.update_xaxes(**x)
    figure.update_yaxes(range=[0, top * 1.06], nticks=3, zeroline=False, gridcolor="rgba(128, 134, 142, 0.2)")
    figure.update_layout(
        ANYWHERE, height=ROW * rows + 70, bargap=0, dragmode=False, hovermode="closest", hoverlabel=HOVER,
        margin={"l": 4, "r": 8, "t": 26, "b": 30},
    )  # fmt: skip
    return figure


def _ticks(end: float, measure: str) -> dict[str, Any]:
    """Ticks on an axis of square roots, so few that they stay apart."""
    shares = (0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
    ticks = [share for share in shares if share <= end] if measure == "mass" else [0.0, 0.04 * end, 0.25 * end, end]
    apart = [ticks[0]]
    for tick in ticks[1:]:
        if math.sqrt(tick) - math.sqrt(apart[-1]) > 0.13 * math.sqrt(end):
            apart.append(tick)
    text = [f"{100 * tick:g} %" if measure == "mass" else rounded(tick, 2) for tick in apart]
    return {"tickvals": [math.sqrt(tick) for tick in apart], "ticktext": text}
