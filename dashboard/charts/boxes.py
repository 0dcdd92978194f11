"""Box plots of one target's regions: DataFrame → Plotly figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import LabelSet
from dashboard.charts.common import (
    ANYWHERE,
    GREY,
    PLAIN,
    UNMEASURED,
    chart_height,
    faint,
    frame,
    group_colors,
    named_axis,
    number,
    organ_of,
    room,
    rows_to_click,
    unchecked,
)  # fmt: skip

MOST_OUTLIERS = 40
"""Outliers drawn for one box; of more, an even spread over their range that keeps both ends."""


def region_boxes(stats: pd.DataFrame, labels: LabelSet, measure: str, picked: str | None = None) -> go.Figure:
    """One box a region, sorted as given (largest median first, on top), coloured by group.

    stats: as `queries.box_stats` gives it, or with a column `target` too, after which the boxes are then named.
    measure: "mass" (share of 1, drawn in %) or "mean". A click on a row answers with customdata [region], or
    [target, region].
    """
    rows = _box_rows(stats, labels, measure)
    colors, traces, shapes = group_colors(labels), [], []
    for group, part in rows.groupby("group", sort=False):
        color = colors.get(str(group), GREY)
        traces.append(_boxes(part, str(group), color))
        shapes += ticks(pairs(part.index, part["outliers"]), 0.24, color)
    end = max([*rows["high"], *(value for values in rows["outliers"] for value in values), 1e-12])
    picks = rows[["target", "region"] if "target" in rows else ["region"]].to_numpy().tolist()
    traces.append(rows_to_click(end, picks, list(rows["told"])))
    if picked in list(rows["name"]):
        place = list(rows["name"]).index(str(picked))
        shapes.append(frame((-0.01 * end, end * 1.02), (place - 0.5, place + 0.5)))
    title = "share of attribution, %" if measure == "mass" else "attribution per voxel"
    layout = {
        "xaxis": {"title": {"text": title, "standoff": 6}, "range": [-0.01 * end, end * 1.02], "zeroline": False,
                  "showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.25)", **UNMEASURED},
        "yaxis": named_axis(rows["title"], [colors.get(group, GREY) for group in rows["group"]]),
        "showlegend": False, "shapes": shapes,
        "margin": {"l": room(rows["title"]), "r": 8, "t": 8, "b": 50},
    }  # fmt: skip
    return unchecked(traces, PLAIN | ANYWHERE | layout | {"height": chart_height(len(rows))})


def _box_rows(stats: pd.DataFrame, labels: LabelSet, measure: str) -> pd.DataFrame:
    rows = stats[stats["n"] > 0].reset_index(drop=True)
    rows["name"] = rows["target"] if "target" in rows else rows["region"]
    organs = [organ_of(labels, name) for name in rows["name"]]
    rows["title"] = [organ.title for organ in organs]
    rows["group"] = [organ.group for organ in organs]
    rows["told"] = [_box_words(row, measure) for row in rows.to_dict("records")]
    scale = 100.0 if measure == "mass" else 1.0
    numbers = ["low", "q1", "median", "q3", "high"]
    rows[numbers] = rows[numbers].astype(float) * scale
    rows["outliers"] = [list(scale * thinned(values)) for values in rows["outliers"]]
    return rows


def _box_words(row: dict[Any, Any], measure: str) -> str:
    def told(name: str) -> str:
        return number(row[name], measure)

    outliers = len(row["outliers"])
    beyond = f"<br>{outliers} beyond" if outliers else ""
    return (
        f"<b>{row['title']}</b>: median {told('median')}<br>middle half {told('q1')} to {told('q3')}"
        f"<br>whiskers {told('low')} to {told('high')}{beyond}<br>{row['n']} scans · click to list them"
    )


def thinned(values: Any) -> np.ndarray:
    """At most MOST_OUTLIERS of the values, sorted, both ends among them."""
    ordered = np.sort(np.asarray(values, dtype=float))
    if len(ordered) <= MOST_OUTLIERS:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, MOST_OUTLIERS).round().astype(int)]


def _boxes(rows: pd.DataFrame, group: str, color: str) -> dict[str, Any]:
    columns = {"q1": "q1", "median": "median", "q3": "q3", "lowerfence": "low", "upperfence": "high"}
    # As lists: of a Series, Plotly finds out anew each time what it is.
    return {drawn: rows[name].tolist() for drawn, name in columns.items()} | {
        "type": "box", "y": rows.index.tolist(), "orientation": "h", "width": 0.62, "whiskerwidth": 0.5,
        "name": group.capitalize(), "line": {"color": color, "width": 1.6}, "fillcolor": faint(color),
        "hoverinfo": "skip",
    }  # fmt: skip


def pairs(places: Any, outliers: Any) -> list[tuple[float, float]]:
    """(place, value) of every outlier, from the places of boxes and the outliers of each."""
    return [(place, value) for place, values in zip(places, outliers, strict=True) for value in values]


def ticks(outliers: list[tuple[float, float]], length: float, color: str) -> list[dict[str, Any]]:
    """A tick across its row for each (place, value): one path, where a marker each would cost the browser a node.

    The path in a list; an empty one where there is no outlier.
    """
    half = length / 2
    path = " ".join(f"M{value:.6g},{place - half:g}L{value:.6g},{place + half:g}" for place, value in outliers)
    drawn = {"type": "path", "path": path, "line": {"color": color, "width": 1.3}, "opacity": 0.8}
    return [drawn] if path else []
