"""Verdicts of two reviewers against each other: Agreement → Plotly figure."""

from __future__ import annotations

import plotly.graph_objects as go

from agg2exp_core.analysis.raters import Agreement
from agg2exp_core.store.reviews import VERDICTS
from dashboard.charts.common import HOVER, short

HEIGHT = 300
"""In px."""


def confusion(pair: Agreement) -> go.Figure:
    """Items by the first reviewer's verdict (rows) and the second's (columns); agreement lies on the diagonal."""
    titles = [title.replace(" ", "<br>") for title in VERDICTS.values()]
    counts = pair.confusion.to_numpy()
    first, second = short(pair.first), short(pair.second)
    figure = go.Figure(
        go.Heatmap(
            z=counts, x=titles, y=titles, xgap=2, ygap=2, showscale=False, texttemplate="%{z}", textfont={"size": 14},
            colorscale=[[0, "rgba(15, 118, 110, 0.06)"], [1, "rgba(15, 118, 110, 0.75)"]], zmin=0,
            zmax=max(counts.max(), 1),
            hovertemplate=f"{first}: %{{y}}<br>{second}: %{{x}}<br>%{{z}} items<extra></extra>",
        )
    )  # fmt: skip
    axis = {"ticks": "", "showgrid": False, "automargin": True, "tickfont": {"size": 13}}
    figure.update_layout(
        height=HEIGHT, dragmode=False, hoverlabel=HOVER, margin={"l": 4, "r": 4, "t": 34, "b": 4},
        xaxis={"title": {"text": second, "standoff": 6}, "side": "top", **axis},
        yaxis={"title": {"text": first, "standoff": 6}, "autorange": "reversed", **axis},
    )  # fmt: skip
    return figure
