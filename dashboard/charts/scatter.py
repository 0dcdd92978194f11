"""Dice against how unusual the evidence is, one point a scan: DataFrame → Plotly figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.common import CHART_HEIGHT, GREY, HOVER, short

PALETTE = ("#1f86e0", "#e07b00", "#0f9d74", "#c2569b", "#7a5cd6", "#b08900", "#d1495b", "#2aa3b8", "#8a6d4b", "#5b7f2b")
POINT = "#1f86e0"
NOTHING = "none"
"""What an empty metadata value is called; it is drawn in grey."""

DICE_TICKS = (0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99, 0.995)
FINEST = 1e-3
"""Dice nearer to 1 than this is drawn as if it were that near."""

CORNER = 0.25
"""Least share of the chart's width on each side of the good Dice: its corners' words fit into it."""

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
        """The words of the corner that a scan lies in; "" without a score, Dice or a limit for the score."""
        if self.good is None or not all(map(math.isfinite, (self.limit, score, dice))):
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
    customdata [case_id]. Scores are drawn on a logarithmic axis, and Dice `stretched`: most scans are well segmented
    and usual, and would lie on one another.
    """
    figure = go.Figure()
    strip = lines.good is None
    drawn = points if strip else points.assign(x=stretched(points["x"].to_numpy(float)))
    x = _range(drawn["x"], 0.05) if strip else _sides(drawn["x"], _place(lines.good))
    y = _log_range(points["score"], lines.limit)
    # A scan that is twice in its cohort may score 0, which a logarithmic axis has no place for: it stands at its foot.
    foot = 10 ** (y[0] + 0.02 * (y[1] - y[0]))
    for trace in _traces(drawn.assign(score=drawn["score"].mask(drawn["score"] <= 0, foot)), words):
        figure.add_trace(trace)
    _divide(figure, points, lines, (x, (10 ** y[0], 10 ** y[1])))
    grid = {"zeroline": False, "showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.18)"}
    legend_rows = math.ceil(len(figure.data) / 4) if words.color else 0
    figure.update_layout(
        height=CHART_HEIGHT, hovermode="closest", hoverlabel=HOVER, dragmode=dragmode, clickmode="event+select",
        margin={"l": 62, "r": 6, "t": 6, "b": 44 + 21 * legend_rows},
        xaxis={"title": {"text": words.x, "standoff": 6}, "range": x, **grid} | _dice_ticks(strip, x),
        yaxis={"title": {"text": words.y, "standoff": 10}, "type": "log", "range": y, "minor": {"showgrid": False},
               "tickvals": _log_ticks(y), **grid},
        legend={"orientation": "h", "xref": "container", "yref": "container", "x": 0.02, "y": 0, "yanchor": "bottom",
                "title": {"text": ""}},
    )  # fmt: skip
    return figure


def stretched(dice: np.ndarray) -> np.ndarray:
    """−log₁₀ of what is missing to a Dice of 1, which parts 0.95 from 0.98 as well as 0.5 from 0.8."""
    return -np.log10(np.maximum(1 - dice, FINEST))


def _place(dice: float | None) -> float:
    return float(stretched(np.array(dice, float)))


def _dice_ticks(strip: bool, ends: tuple[float, float]) -> dict[str, Any]:
    if strip:
        return {"tickvals": []}
    low, high = (1 - 10**-end for end in ends)
    ticks = [tick for tick in DICE_TICKS if low <= tick <= high]
    ticks = ticks if len(ticks) >= 4 else _even_ticks(low, high)
    return {"tickvals": [_place(tick) for tick in ticks], "ticktext": [f"{tick:g}" for tick in ticks]}


def _log_range(scores: pd.Series, limit: float) -> tuple[float, float]:
    """Exponents of ten around the positive scores and the limit, with room for the corners' words."""
    known = np.array([*scores, limit], float)
    known = known[np.isfinite(known) & (known > 0)]
    return _range(pd.Series(np.log10(known)), 0.2)


def _log_ticks(ends: tuple[float, float]) -> list[float]:
    """Four to nine round values inside the range."""
    low, high = 10 ** ends[0], 10 ** ends[1]
    decades = range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [float(f"{step * 10.0**decade:.6g}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            return ticks[:: math.ceil(len(ticks) / 9)]
    return _even_ticks(low, high)


def _even_ticks(low: float, high: float) -> list[float]:
    """The fewest round values at even steps inside the range that are at least four."""
    for decade in range(3, -9, -1):
        for lead in (5, 2, 1):
            step = lead * 10.0**decade
            places = range(math.ceil(low / step), math.floor(high / step) + 1)
            if len(places) >= 4:
                return [float(f"{place * step:.6g}") for place in places]
    return []


def _traces(points: pd.DataFrame, words: Words) -> list[Any]:
    some = bool(points["selected"].any())
    if not words.color:
        return [_trace(points, "", {"color": POINT}, some)]
    if pd.api.types.is_numeric_dtype(points["color"]):
        bar = {"title": {"text": short(words.color), "side": "right"}, "thickness": 10, "outlinewidth": 0, "len": 1.0}
        marker = {"color": points["color"], "colorscale": "Viridis", "colorbar": bar}
        return [_trace(points, "", marker, some)]
    names = sorted(points["color"].unique(), key=lambda name: (name != NOTHING, name))
    named = [name for name in names if name != NOTHING]
    colors = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(named)} | {NOTHING: GREY}
    return [_trace(points[points["color"] == name], name, {"color": colors[name]}, some) for name in names]


def _trace(points: pd.DataFrame, name: str, marker: dict[str, Any], some_selected: bool) -> Any:
    kind = go.Scattergl if len(points) > MANY else go.Scatter
    return kind(
        x=points["x"], y=points["score"], customdata=points[["case_id"]].to_numpy(), text=points["told"],
        name=short(name), mode="markers", hovertemplate="%{text}<extra></extra>", showlegend=bool(name),
        marker={"size": 10 if len(points) <= 300 else 6, "opacity": 0.9, "line": {"width": 0}, **marker},
        selectedpoints=np.flatnonzero(points["selected"]) if some_selected else None,
        unselected={"marker": {"opacity": 0.22}}, selected={"marker": {"opacity": 1}},
    )  # fmt: skip


def _range(values: pd.Series, room: float, *more: float) -> tuple[float, float]:
    known = [value for value in [*values, *more] if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    pad = room * ((high - low) or abs(high) or 1.0)
    return low - pad, high + pad


def _sides(values: pd.Series, good: float) -> tuple[float, float]:
    """A range around the values in which the line of the good Dice leaves room for words on both sides."""
    low, high = _range(values, 0.05, good)
    least = CORNER / (1 - CORNER)
    high = max(high, good + least * (good - low))
    return min(low, good - least * (high - good)), high


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
    good = _place(lines.good)
    figure.add_shape(type="line", x0=good, x1=good, y0=low, y1=high, line=line, layer="below")
    if not known:
        return
    # The corner that no other measure shows.
    figure.add_shape(
        type="rect", x0=good, x1=right, y0=lines.limit, y1=high, line={"width": 0},
        fillcolor="rgba(224, 17, 95, 0.07)", layer="below",
    )  # fmt: skip
    corners = [lines.quadrant(score, dice) for score, dice in zip(points["score"], points["x"], strict=True)]
    places = {RIGHT_UNUSUAL: (1, 1), WRONG_UNUSUAL: (0, 1), WRONG_USUAL: (0, 0), RIGHT_USUAL: (1, 0)}
    for words, place in places.items():
        first, second = words.rsplit(" ", 2)[0], " ".join(words.rsplit(" ", 2)[1:])
        _corner(figure, f"<b>{first}<br>{second}</b><br>{_scans(corners.count(words))}", place)


def _corner(figure: go.Figure, text: str, place: tuple[int, int]) -> None:
    x, y = place
    figure.add_annotation(
        text=text, xref="paper", yref="paper", x=x, y=y, align="right" if x else "left",
        xanchor="right" if x else "left",
        yanchor="top" if y else "bottom", xshift=-6 if x else 6, yshift=-4 if y else 4, showarrow=False,
        font={"size": 13},
    )  # fmt: skip


def _scans(count: int) -> str:
    return "1 scan" if count == 1 else f"{count} scans"
