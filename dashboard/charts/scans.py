"""The scans behind one pair of target and region, in two sets: DataFrame → Plotly figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.analysis import summary
from dashboard.charts.change import level, signed
from dashboard.charts.common import GREY, SIDES, faint, plain, short
from dashboard.charts.differences import Look

HEIGHT = 420
MOST_DOTS = 1000
"""Scans drawn; of more, an even spread over their order that keeps both ends."""

GRID = {"showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.25)", "zeroline": False}
DOT = {"size": 9, "opacity": 0.75, "line": {"width": 1, "color": "rgba(255, 255, 255, 0.8)"}}


def spread(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """At most MOST_DOTS rows in the order of a column, the lowest and the highest among them."""
    ordered = table.sort_values(column, kind="stable")
    if len(ordered) <= MOST_DOTS:
        return ordered
    return ordered.iloc[np.linspace(0, len(ordered) - 1, MOST_DOTS).round().astype(int)]


def scatter_of_scans(table: pd.DataFrame, look: Look) -> go.Figure:
    """Second against first, a dot a scan: above the line the second set has more.

    table: case_id, first, second, change. A click on a dot answers with customdata [case_id, "second"].
    """
    rows = spread(table, "change")
    scale = 100.0 if look.measure == "mass" else 1.0
    end = float(np.nanmax([*rows["first"], *rows["second"], 1e-12])) * scale * 1.05
    figure = go.Figure()
    figure.add_shape(type="line", x0=0, y0=0, x1=end, y1=end, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.add_scatter(
        x=rows["first"] * scale, y=rows["second"] * scale, mode="markers", showlegend=False,
        marker={**DOT, "color": [SIDES[int(change > 0)] for change in rows["change"]]},
        customdata=[[case, "second"] for case in rows["case_id"]],
        text=[_pair_words(row, look) for row in rows.to_dict("records")],
        hovertemplate="%{text}<extra></extra>", **_unchanged_by_clicks(),
    )  # fmt: skip
    unit = ", %" if look.measure == "mass" else ""
    return _sized(figure).update_layout(
        xaxis={**GRID, "range": [0, end], "title": _axis_title(look.names[0], SIDES[0], unit)},
        yaxis={**GRID, "range": [0, end], "title": _axis_title(look.names[1], SIDES[1], unit)},
    )


def strips_of_scans(first: pd.DataFrame, second: pd.DataFrame, look: Look) -> go.Figure:
    """A box and its scans as dots for each set.

    first, second: case_id, value. A click on a dot answers with customdata [case_id, "first" or "second"].
    """
    scale = 100.0 if look.measure == "mass" else 1.0
    figure = go.Figure()
    sides = zip((first, second), ("first", "second"), look.names, SIDES, strict=True)
    for place, (table, side, name, color) in enumerate(sides):
        figure.add_box(
            **_box(table["value"] * scale, place), name=short(name), line={"color": color}, fillcolor=faint(color)
        )
        rows = spread(table, "value")
        figure.add_scatter(
            x=place + 0.2 + np.random.default_rng(0).uniform(0, 0.22, len(rows)), y=rows["value"] * scale,
            mode="markers", showlegend=False, marker={**DOT, "size": 7, "color": color},
            customdata=[[case, side] for case in rows["case_id"]],
            text=[_strip_words(row, name, look) for row in rows.to_dict("records")],
            hovertemplate="%{text}<extra></extra>", **_unchanged_by_clicks(),
        )  # fmt: skip
    title = "share of attribution, %" if look.measure == "mass" else "attribution per voxel"
    labelled = [
        f"<span style='color:{color}'>■</span> {short(name)}" for name, color in zip(look.names, SIDES, strict=True)
    ]
    return _sized(figure).update_layout(
        xaxis={
            "tickvals": [0.1, 1.1],
            "ticktext": labelled,
            "range": [-0.4, 1.6],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={**GRID, "rangemode": "tozero", "title": {"text": title, "standoff": 6}},
        showlegend=False,
    )


def _box(values: pd.Series, place: int) -> dict[str, Any]:
    """Quartiles and whiskers as in the other box plots."""
    box = summary.boxes({"": values.to_numpy(np.float64)}).iloc[0]
    return {
        "x": [place], "q1": [box["q1"]], "median": [box["median"]], "q3": [box["q3"]], "lowerfence": [box["low"]],
        "upperfence": [box["high"]], "width": 0.3, "whiskerwidth": 0.5, "hoverinfo": "skip",
    }  # fmt: skip


def _pair_words(row: dict[Any, Any], look: Look) -> str:
    lines = [
        f"<span style='color:{color}'>■</span> {short(name)}: {level(row[side], look.measure)}"
        for name, color, side in zip(look.names, SIDES, ("first", "second"), strict=True)
    ]
    unit = " points" if look.measure == "mass" else ""
    change = f"{signed(row['change'], look.measure)}{unit}"
    return "<br>".join([f"<b>{row['case_id']}</b>", *lines, f"{change} · click to open"])


def _strip_words(row: dict[Any, Any], name: str, look: Look) -> str:
    return f"<b>{row['case_id']}</b>, {short(name)}<br>{level(row['value'], look.measure)} · click to open"


def _axis_title(name: str, color: str, unit: str) -> dict[str, Any]:
    return {"text": f"<span style='color:{color}'>■</span> {short(name)}{unit}", "standoff": 6}


def _unchanged_by_clicks() -> dict[str, Any]:
    same = {"marker": {"opacity": DOT["opacity"]}}
    return {"selected": same, "unselected": same}


def _sized(figure: go.Figure) -> go.Figure:
    return plain(figure).update_layout(height=HEIGHT, margin={"l": 4, "r": 8, "t": 8, "b": 40})
