"""One dot a case on each masked region: DataFrame → Plotly figure. Few cases have a mask, too few for boxes."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dashboard.charts.common import MASKED, mask_titles, number, plain

ROW = 46
"""Height in px of one region's row."""


def masked_strips(values: pd.DataFrame, measure: str) -> go.Figure:
    """A row a region, the largest median on top: a dot a case and a line at the median.

    values: as `queries.masked_values` gives it, without empty values. measure: "mass" (share of 1, drawn in %) or
    "mean".
    """
    scale = 100.0 if measure == "mass" else 1.0
    rows = values.assign(title=mask_titles(values), shown=values["value"].astype(float) * scale)
    order = rows.groupby("title")["shown"].median().sort_values(ascending=False)
    places = {title: place for place, title in enumerate(order.index)}
    figure = go.Figure()
    figure.add_scatter(
        y=rows["title"].map(places), x=rows["shown"], mode="markers", name="one scan", customdata=rows[["case_id"]],
        text=[_told(row, measure) for row in rows.to_dict("records")], hovertemplate="%{text}<extra></extra>",
        marker={"size": 11, "color": MASKED, "opacity": 0.75, "line": {"width": 1, "color": "#ffffff"}},
    )  # fmt: skip
    figure.add_scatter(
        y=list(range(len(order))), x=order.to_list(), mode="markers", name="median", hoverinfo="skip",
        marker={"symbol": "line-ns", "size": 22, "line": {"width": 2, "color": "#80868e"}},
    )  # fmt: skip
    title = "share of attribution, %" if measure == "mass" else "attribution per voxel"
    figure.update_layout(
        xaxis={"title": {"text": title, "standoff": 6}, "rangemode": "tozero", "zeroline": False, "showgrid": True,
               "gridcolor": "rgba(128, 134, 142, 0.25)"},
        yaxis={"tickvals": list(places.values()), "ticktext": list(places), "range": [len(places) - 0.5, -0.5],
               "automargin": True, "showgrid": False, "zeroline": False, "ticks": "", "tickfont": {"size": 13}},
        margin={"l": 4, "r": 8, "t": 4, "b": 40}, showlegend=False,
    )  # fmt: skip
    return plain(figure).update_layout(height=ROW * len(places) + 60)


def _told(row: dict, measure: str) -> str:
    return f"<b>{row['case_id']}</b>: {number(float(row['value']), measure)} on {row['title']}"
