"""Box plots of one target's regions, two sets side by side: DataFrame → Plotly figure."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.boxes import pairs, thinned, ticks
from dashboard.charts.change import level
from dashboard.charts.common import (
    ANYWHERE,
    GREY,
    SIDES,
    chart_height,
    faint,
    frame,
    group_colors,
    named_axis,
    organ_of,
    plain,
    room,
    rows_to_click,
    short,
)  # fmt: skip
from dashboard.charts.differences import Look

ROW = 30
"""Height in px of a region, which takes two boxes."""

PLACES = (-0.2, 0.2)
WIDTH = 0.32


def side_by_side_boxes(first: pd.DataFrame, second: pd.DataFrame, look: Look, picked: str | None = None) -> go.Figure:
    """Two boxes a region, the first set's above the second's; the region of the largest median is on top.

    first, second: as `queries.box_stats` gives them. A click on a row answers with customdata [region].
    """
    stats = [table[table["n"] > 0].set_index("region") for table in (first, second)]
    largest = pd.concat([table["median"] for table in stats]).groupby(level=0).max()
    regions = [str(name) for name in largest.sort_values(ascending=False, kind="stable").index]
    scale = 100.0 if look.measure == "mass" else 1.0
    figure = go.Figure()
    ends = [1e-12]
    for table, name, color, shift in zip(stats, look.names, SIDES, PLACES, strict=True):
        ends.append(_add_side(figure, _placed(table, regions, shift, scale), short(name), color))
    end = max(ends)
    told = [_row_words(region, stats, look) for region in regions]
    figure.add_trace(rows_to_click(end, [[region] for region in regions], told))
    if picked in regions:
        place = regions.index(str(picked))
        figure.add_shape(frame((-0.01 * end, end * 1.02), (place - 0.5, place + 0.5)))
    organs, colors = [organ_of(look.labels, name) for name in regions], group_colors(look.labels)
    title = "share of attribution, %" if look.measure == "mass" else "attribution per voxel"
    plain(figure).update_layout(
        ANYWHERE,
        xaxis={"title": {"text": title, "standoff": 6}, "range": [-0.01 * end, end * 1.02], "zeroline": False,
               "showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.25)"},
        yaxis=named_axis([organ.title for organ in organs], [colors.get(organ.group, GREY) for organ in organs]),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "itemclick": False, "itemdoubleclick": False},
        margin={"l": room(organ.title for organ in organs), "r": 8, "t": 28, "b": 40},
        height=max(chart_height(len(regions)), ROW * len(regions) + 68),
    )  # fmt: skip
    return figure


def _placed(table: pd.DataFrame, regions: list[str], shift: float, scale: float) -> pd.DataFrame:
    rows = table.reindex([name for name in regions if name in table.index])
    numbers = ["low", "q1", "median", "q3", "high"]
    placed = rows.assign(place=[regions.index(name) + shift for name in rows.index])
    placed[numbers] = placed[numbers].astype(float) * scale
    placed["outliers"] = [list(scale * thinned(values)) for values in placed["outliers"]]
    return placed


def _add_side(figure: go.Figure, rows: pd.DataFrame, name: str, color: str) -> float:
    """The boxes of one set and what lies beyond them; the largest value drawn."""
    figure.add_box(
        y=rows["place"], q1=rows["q1"], median=rows["median"], q3=rows["q3"], lowerfence=rows["low"],
        upperfence=rows["high"], orientation="h", width=WIDTH, whiskerwidth=0.5, name=name,
        line={"color": color, "width": 1.5}, fillcolor=faint(color), hoverinfo="skip",
    )  # fmt: skip
    beyond = pairs(rows["place"], rows["outliers"])
    for shape in ticks(beyond, 0.16, color):
        figure.add_shape(shape)
    return max([*rows["high"], *(value for _, value in beyond)], default=0.0)


def _row_words(region: str, stats: list[pd.DataFrame], look: Look) -> str:
    lines = [f"<b>{organ_of(look.labels, region).title}</b>"]
    for table, name, color in zip(stats, look.names, SIDES, strict=True):
        lines.append(f"<span style='color:{color}'>■</span> {short(name)}: {_box_words(table, region, look.measure)}")
    return "<br>".join([*lines, "click to see the scans"])


def _box_words(table: pd.DataFrame, region: str, measure: str) -> str:
    if region not in table.index:
        return "in none of these scans"
    row: Any = table.loc[region]
    middle = f"{level(row['q1'], measure)} to {level(row['q3'], measure)}"
    return f"median {level(row['median'], measure)}, middle half {middle}, {row['n']} scans"
