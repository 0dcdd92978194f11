"""Which input channels a model's evidence lies in, as stacked bars: DataFrame → Plotly figure."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import LabelSet
from dashboard.charts.common import GREY, group_colors, named_axis, number, organ_of, plain, room

COLORS = ("#2f6db3", "#b86a14", "#2f8465", "#8f4a8c", "#7d7622", "#3a86a8")
"""Of channels, dark enough for white numbers on them; names in the legend keep their order. More begin again."""

NAMED = 0.07
"""Share from which a part of a bar has room for its number."""


def channel_title(name: str) -> str:
    """`T1_Gd` → `T1 Gd`, as the model's author wrote it."""
    return name.replace("_", " ")


def channel_bars(shares: pd.DataFrame, labels: LabelSet, order: list[str]) -> go.Figure:
    """One bar a target in the order given, first on top, and a part of it a channel, in the model's order.

    shares: as `queries.channel_shares` gives them (target, channel, value).
    """
    channels = list(dict.fromkeys(shares["channel"]))
    table = shares.pivot(index="target", columns="channel", values="value").reindex(index=order)
    organs = [organ_of(labels, name) for name in order]
    colors = group_colors(labels)
    figure = go.Figure()
    for place, name in enumerate(channels):
        values, title = table[name], channel_title(name)
        figure.add_bar(
            y=list(range(len(order))), x=100 * values, orientation="h", width=0.66, name=title,
            marker={"color": COLORS[place % len(COLORS)], "line": {"width": 0}},
            text=[f"{100 * value:.0f} %" if value >= NAMED else "" for value in values.fillna(0)],
            textposition="inside", insidetextanchor="middle", textangle=0, textfont={"color": "#ffffff", "size": 12},
            hovertext=[
                f"<b>{organ.title}</b>: {number(value, 'mass')} in {title}"
                for organ, value in zip(organs, values, strict=True)
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        xaxis={"title": {"text": "mean share of attribution, %", "standoff": 6}, "range": [0, 100], "dtick": 20,
               "zeroline": False},
        yaxis=named_axis([organ.title for organ in organs], [colors.get(organ.group, GREY) for organ in organs]),
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        margin={"l": room(organ.title for organ in organs), "r": 16, "t": 30, "b": 40},
        height=110 + 34 * len(order),
    )  # fmt: skip
    height = figure.layout.height
    return plain(figure).update_layout(barmode="stack", height=height)
