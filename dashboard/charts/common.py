"""What all charts share: organs' names and colours, numbers in words, how an axis of organs looks. No streamlit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import BACKGROUND, LabelSet, Organ, plain_name

GREY = "#80868e"
PICKED = "#e0115f"
"""What the list below is about."""

MASKED = "#8a5cd6"
"""Of masked regions, which belong to no group of organs."""

HOVER = {"align": "left", "bgcolor": "#17212b", "bordercolor": GREY, "font": {"color": "#ffffff", "size": 13}}
SIDES = ("#c2771f", "#13928a")
"""Colours of the first and the second of two sets; a difference takes that of the set which has more."""

CHART_HEIGHT = 500
"""Height in px of charts that stand side by side."""

HIGHEST_ROW = 72
"""Height in px that an organ's row takes at most."""

CLICK_COLUMNS = 8
"""Parts of a row that answer to hover and click, each where it stands."""

PLAIN = {
    "height": CHART_HEIGHT, "dragmode": False, "hovermode": "closest", "hoverlabel": HOVER, "boxmode": "overlay",
}  # fmt: skip
"""How every chart behaves."""

ANYWHERE = {"hoverdistance": -1}
"""Of a layout: the nearest point answers, be it ever so far."""

UNMEASURED = {"ticklabeloverflow": "allow"}
"""Of an axis whose labels have room: else Plotly measures each of them at every drawing."""

NARROW, WIDE = "fijlrt.,'’:()| ", "mwMW%"

Pick = tuple[str, str]
"""A target and a region, as a click on a box or a cell names them."""


def unchecked(traces: list[dict[str, Any]], layout: dict[str, Any]) -> go.Figure:
    """A figure that Plotly takes as it is: its check of each property takes fifteen times as long as all the rest.

    For the charts that every change of a filter draws anew; the tests have Plotly check them.
    """
    return go.Figure(traces, layout, _validate=False)


def chart_height(rows: int) -> int:
    """Height in px of a chart of so many organs: few of them do not fill that of many."""
    return min(CHART_HEIGHT, 150 + HIGHEST_ROW * rows)


def group_colors(labels: LabelSet) -> dict[str, str]:
    """Group → colour: that of the group's first organ."""
    return {organ.group: organ.color for organ in reversed(labels.organs)}


def organ_of(labels: LabelSet, name: str) -> Organ:
    """The organ of that name, joined ones too, or a grey one for a region that the label set does not know."""
    return labels.by_name.get(name) or Organ(-1, name, "other regions", GREY, plain_name(name))


def own_region(labels: LabelSet, target: str, regions: Collection[str]) -> str | None:
    """The region that a target is or, where regions are joined, is a part of; None where it is no region."""
    whole = labels.joins.get(target, target)
    return next((name for name in (target, whole) if name in regions), None)


def mask_titles(table: pd.DataFrame) -> list[str]:
    """A title a row of masked regions (region_set, region); it names the set only where two sets have the region."""
    sets = table.groupby("region")["region_set"].nunique()
    return [
        f"{plain_name(region)} ({'mask' if sets[region] == 1 else plain_name(name).lower()})"
        for name, region in zip(table["region_set"], table["region"], strict=True)
    ]


def number(value: float | None, measure: str) -> str:
    """A share in per cent, a mean to three digits; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f} %" if measure == "mass" else rounded(value, 3)


def rounded(value: float, digits: int) -> str:
    """To so many digits, without an exponent while a million is not reached."""
    return f"{float(f'{value:.{digits}g}'):g}"


def in_group_order(names: pd.Series, labels: LabelSet) -> list[str]:
    """The label set's organs among the names, group by group; then others; background last.

    A joined organ stands before its first part.
    """
    present = set(names)
    groups = [*(group for group in labels.groups if group != BACKGROUND), BACKGROUND]
    organs = sorted((*labels.joined, *labels.organs), key=lambda organ: (groups.index(organ.group), organ.id))
    known = [organ.name for organ in organs if organ.name in present and organ.name != BACKGROUND]
    others = sorted(present - {organ.name for organ in organs})
    return [*known, *others, *([BACKGROUND] if BACKGROUND in present else [])]


def named_axis(titles: Any, colors: list[str]) -> dict[str, Any]:
    """Places 0, 1, 2 … with their names, each with a square in its group's colour; `room` is what they take."""
    names = [f"{title} <span style='color:{color}'>■</span>" for title, color in zip(titles, colors, strict=True)]
    return {
        "tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.5, -0.5],
        "showgrid": False, "zeroline": False, "ticks": "", "tickfont": {"size": 13}, **UNMEASURED,
    }  # fmt: skip


def room(titles: Iterable[str], size: int = 13) -> int:
    """px beside an axis for names of that font size: Plotly's automatic margins draw every chart twice."""
    return round(max((_width(title) for title in titles), default=0) * size + 2.5 * size)


def _width(text: str) -> float:
    """Of a text in em, at most: in DejaVu Sans, wider than other systems' usual font."""
    return sum(0.38 if char in NARROW else 0.95 if char in WIDE else 0.72 if char.isupper() else 0.62 for char in text)


def organ_axes(targets: list[str], regions: list[str], labels: LabelSet) -> dict[str, Any]:
    """Both sides of a matrix, targets down and regions along, and the room that their titles take."""
    colors, axes, rooms = group_colors(labels), [], []
    for names in (targets, regions):
        organs = [organ_of(labels, name) for name in names]
        titles = [organ.title for organ in organs]
        axis = named_axis(titles, [colors.get(organ.group, GREY) for organ in organs])
        axes.append(axis | {"tickfont": {"size": 12}})
        rooms.append(room(titles, 12))
    return {
        "yaxis": axes[0],
        "xaxis": axes[1] | {"tickangle": -90, "range": [-0.5, len(regions) - 0.5]},
        "margin": {"l": rooms[0], "r": 0, "t": 8, "b": rooms[1]},
    }


def short(name: str, length: int = 40) -> str:
    """A name that fits into a legend; Plotly reads tags in its texts, so that those of others come as they are."""
    return escape(name if len(name) <= length else f"{name[: length - 1]}…", quote=False)


def to_click() -> dict[str, Any]:
    """Points that answer to hover and click where the traces below answer to none, as heatmaps and given boxes do.

    One of them is drawn, as nobody sees them and each would cost the browser a node; so ANYWHERE must be in the
    layout, by which the nearest one answers.
    """
    clear = {"marker": {"opacity": 0}}
    return {
        "type": "scatter", "mode": "markers", "marker": {"opacity": 0, "maxdisplayed": 1}, "showlegend": False,
        "hovertemplate": "%{text}<extra></extra>", "selected": clear, "unselected": clear,
    }  # fmt: skip


def rows_to_click(end: float, picks: list[Any], told: list[str]) -> dict[str, Any]:
    """Such points over the rows of a chart from 0 to `end`.

    picks: the customdata of each row, from the first on; told: what it says under the pointer, near which it stays
    as a row has several points.
    """
    rows, steps = np.meshgrid(np.arange(len(picks)), np.arange(CLICK_COLUMNS))
    return to_click() | {
        "x": ((steps.ravel() + 0.5) * end / CLICK_COLUMNS).tolist(), "y": rows.ravel().tolist(),
        "customdata": picks * CLICK_COLUMNS, "text": told * CLICK_COLUMNS,
    }  # fmt: skip


def frame(x: tuple[float, float], y: tuple[float, float]) -> dict[str, Any]:
    """The shape that shows which box or cell the list is about."""
    line = {"color": PICKED, "width": 2}
    return {"type": "rect", "x0": x[0], "x1": x[1], "y0": y[0], "y1": y[1], "line": line, "layer": "above"}


def plain(figure: go.Figure) -> go.Figure:
    return figure.update_layout(PLAIN)


def faint(color: str, alpha: float = 0.4) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"
