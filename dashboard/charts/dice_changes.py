"""How Dice differs between two sets, organ by organ: DataFrame → Plotly figure."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.change import chance, differs, interval, signed
from dashboard.charts.common import CHART_HEIGHT, GREY, SIDES, group_colors, named_axis, organ_of, plain, room
from dashboard.charts.differences import Look, sets_words

ROW = 27
FADED = 0.35


def dice_changes(table: pd.DataFrame, look: Look) -> go.Figure:
    """A dot and its interval a target, the largest loss on top; faded where chance could explain it.

    table: that of `compare.compare_dice`'s organs; look.measure: "dice".
    """
    rows = table.dropna(subset="difference").sort_values("difference", kind="stable").reset_index(drop=True)
    figure = go.Figure()
    figure.add_vline(x=0, line={"color": GREY, "width": 1})
    told = np.array([differs(row) for row in rows.to_dict("records")], dtype=bool)
    for part, opacity in ((told, 1.0), (~told, FADED)):
        for color, side in zip(SIDES, (rows["difference"] < 0, rows["difference"] >= 0), strict=True):
            _add_dots(figure, rows[part & side], color, opacity, look)
    organs, colors = [organ_of(look.labels, name) for name in rows["target"]], group_colors(look.labels)
    plain(figure).update_layout(
        xaxis={"title": {"text": "difference of mean Dice", "standoff": 6}, "zeroline": False, "showgrid": True,
               "gridcolor": "rgba(128, 134, 142, 0.25)", "tickformat": "+.2~f"},
        yaxis=named_axis([organ.title for organ in organs], [colors.get(organ.group, GREY) for organ in organs]),
        showlegend=False,
        margin={"l": room(organ.title for organ in organs), "r": 8, "t": 28, "b": 40},
        height=max(CHART_HEIGHT, ROW * len(rows) + 68),
    )  # fmt: skip
    return figure


def _add_dots(figure: go.Figure, rows: pd.DataFrame, color: str, opacity: float, look: Look) -> None:
    figure.add_scatter(
        x=rows["difference"], y=rows.index, mode="markers", opacity=opacity,
        marker={"size": 9, "color": color}, hovertemplate="%{text}<extra></extra>",
        error_x={"array": rows["high"] - rows["difference"], "arrayminus": rows["difference"] - rows["low"],
                 "color": color, "thickness": 2, "width": 0},
        text=[_words(row, look) for row in rows.to_dict("records")],
    )  # fmt: skip


def _words(row: dict, look: Look) -> str:
    lines = [
        f"<b>{organ_of(look.labels, row['target']).title}</b>: mean Dice",
        *sets_words(row, look),
        f"<b>{signed(row['difference'], 'dice')}</b>, {interval(row, 'dice')}",
        chance(row),
    ]
    return "<br>".join(lines)
