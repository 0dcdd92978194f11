"""Dice against how unusual the evidence is, one point a scan: DataFrame → Plotly figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.common import CHART_HEIGHT, GREY, HOVER

PALETTE = ("#1f86e0", "#e07b00", "#0f9d74", "#c2569b", "#7a5cd6", "#b08900", "#d1495b", "#2aa3b8", "#8a6d4b", "#5b7f2b")
POINT = "#1f86e0"
NOTHING = "none"
"""What an empty metadata value is called; it is drawn in grey."""

MANY = 2000
"""More points than these are drawn by WebGL."""

RIGHT_UNUSUAL, WRONG_UNUSUAL = "Right for unusual reasons", "Wrong, on unusual evidence"
RIGHT_USUAL, WRONG_USUAL = "Right for usual reasons", "Wrong despite usual evidence"


@dataclass(frozen=True)
class Lines:
    """What divides the chart: scores above `limit` are unusual, Dice from `good` on is good. None: there is no Dice."""

    limit: float
    good: float | None

    def quadrant(self, score: float, dice: float) -> str:
        """The words of the corner that a scan lies in; "" without a score or Dice."""
        if self.good is None or not (math.isfinite(score) and math.isfinite(dice)):
            return ""
        if score > self.limit:
            return RIGHT_UNUSUAL if dice >= self.good else WRONG_UNUSUAL
        return RIGHT_USUAL if dice >= self.good else WRONG_USUAL


@dataclass(frozen=True)
class Words:
    """Titles of the axes and of what the points are coloured by ("" for nothing)."""

    x: str
    y: str
    color: str = ""


def evidence_scatter(points: pd.DataFrame, lines: Lines, words: Words, dragmode: str = "lasso") -> go.Figure:
    """Scores over Dice with four named corners; without Dice, a strip of scores, the most unusual first.

    points: case_id, x, score, told (hover), color (text or numbers), selected; one row a scan. Every point answers with
    customdata [case_id].
    """
    figure = go.Figure()
    for trace in _traces(points, words):
        figure.add_trace(trace)
    x, y = _range(points["x"], 0.05), _range(points["score"], 0.14, lines.limit)
    if lines.good is not None:
        x = min(x[0], lines.good - 0.02), max(x[1], lines.good + 0.02)
    _divide(figure, points, lines, (x, y))
    grid = {"zeroline": False, "showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.18)"}
    strip = lines.good is None
    figure.update_layout(
        height=CHART_HEIGHT, hovermode="closest", hoverlabel=HOVER, dragmode=dragmode, clickmode="event+select",
        margin={"l": 4, "r": 4, "t": 8 if not words.color else 30, "b": 40},
        xaxis={"title": {"text": words.x, "standoff": 6}, "range": x, **grid} | ({"tickvals": []} if strip else {}),
        yaxis={"title": {"text": words.y, "standoff": 8}, "range": y, "automargin": True, **grid},
        legend={"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "title": {"text": ""}},
    )  # fmt: skip
    return figure


def _traces(points: pd.DataFrame, words: Words) -> list[Any]:
    if not words.color:
        return [_trace(points, "", {"color": POINT}, points["selected"].any())]
    if pd.api.types.is_numeric_dtype(points["color"]):
        bar = {"title": {"text": words.color, "side": "right"}, "thickness": 10, "outlinewidth": 0, "len": 1.0}
        marker = {"color": points["color"], "colorscale": "Viridis", "colorbar": bar}
        return [_trace(points, "", marker, points["selected"].any())]
    names = sorted(points["color"].unique(), key=lambda name: (name != NOTHING, name))
    named = [name for name in names if name != NOTHING]
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(named)} | {NOTHING: GREY}
    return [
        _trace(points[points["color"] == name], name, {"color": colors[name]}, points["selected"].any())
        for name in names
    ]


def _trace(points: pd.DataFrame, name: str, marker: dict[str, Any], some_selected: bool) -> Any:
    kind = go.Scattergl if len(points) > MANY else go.Scatter
    return kind(
        x=points["x"], y=points["score"], customdata=points[["case_id"]].to_numpy(), text=points["told"], name=name,
        mode="markers", hovertemplate="%{text}<extra></extra>", showlegend=bool(name),
        marker={"size": 10 if len(points) <= 300 else 6, "opacity": 0.9, "line": {"width": 0}, **marker},
        selectedpoints=np.flatnonzero(points["selected"]) if some_selected else None,
        unselected={"marker": {"opacity": 0.22}}, selected={"marker": {"opacity": 1}},
    )  # fmt: skip


def _range(values: pd.Series, room: float, *more: float) -> tuple[float, float]:
    known = [value for value in [*values, *more] if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    pad = room * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


def _divide(figure: go.Figure, points: pd.DataFrame, lines: Lines, ends: tuple[Any, Any]) -> None:
    """The dividing lines, and each corner's words and count."""
    (left, right), (low, high) = ends
    line = {"color": GREY, "width": 1.2, "dash": "dot"}
    known = math.isfinite(lines.limit)
    if known:
        figure.add_shape(type="line", x0=left, x1=right, y0=lines.limit, y1=lines.limit, line=line, layer="below")
    if lines.good is None:
        unusual = int((points["score"] > lines.limit).sum())
        if known:
            _corner(figure, f"Unusual: {_scans(unusual)}", (1, 1))
        return
    figure.add_shape(type="line", x0=lines.good, x1=lines.good, y0=low, y1=high, line=line, layer="below")
    if known:
        # The corner that no other measure shows.
        figure.add_shape(
            type="rect", x0=lines.good, x1=right, y0=lines.limit, y1=high, line={"width": 0},
            fillcolor="rgba(224, 17, 95, 0.07)", layer="below",
        )  # fmt: skip
    corners = [lines.quadrant(score, dice) for score, dice in zip(points["score"], points["x"], strict=True)]
    places = {RIGHT_UNUSUAL: (1, 1), WRONG_UNUSUAL: (0, 1), WRONG_USUAL: (0, 0), RIGHT_USUAL: (1, 0)}
    for words, place in places.items():
        _corner(figure, f"<b>{words}</b>: {_scans(corners.count(words))}", place)


def _corner(figure: go.Figure, text: str, place: tuple[int, int]) -> None:
    x, y = place
    figure.add_annotation(
        text=text, xref="paper", yref="paper", x=x, y=y, xanchor="right" if x else "left",
        yanchor="top" if y else "bottom", xshift=-6 if x else 6, yshift=-4 if y else 4, showarrow=False,
        font={"size": 13},
    )  # fmt: skip


def _scans(count: int) -> str:
    return "1 scan" if count == 1 else f"{count} scans"
