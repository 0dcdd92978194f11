"""What lies around an organ when it is explained, as stacked bars: DataFrame → Plotly figure."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import BACKGROUND, LabelSet
from dashboard.charts.common import GREY, faint, group_colors, named_axis, number, organ_of, own_region, plain, room

OWN = "the organ itself"


def parts_of(matrix: pd.DataFrame, labels: LabelSet) -> pd.DataFrame:
    """target, part, share: means of `queries.matrix`, summed over the target itself, each group and the background."""
    regions = set(matrix["region"])
    own = {name: own_region(labels, name, regions) for name in matrix["target"].unique()}
    rows = matrix.assign(
        part=[
            OWN if region == own[target] else organ_of(labels, region).group
            for target, region in zip(matrix["target"], matrix["region"], strict=True)
        ]
    )
    shares = rows.groupby(["target", "part"], as_index=False, sort=False).agg(share=("mean", "sum"))
    return pd.DataFrame(shares)


def composition_bars(parts: pd.DataFrame, labels: LabelSet, order: list[str]) -> go.Figure:
    """One bar a target in the order given, first on top: itself, then group by group, the background last.

    parts: as `parts_of` gives it. A click on a bar answers with customdata [target].
    """
    colors = group_colors(labels)
    groups = list(dict.fromkeys([*labels.groups, *parts["part"]]))
    groups = [*(name for name in groups if name not in (OWN, BACKGROUND)), BACKGROUND]
    table = parts.pivot(index="target", columns="part", values="share").reindex(index=order).fillna(0)
    organs = [organ_of(labels, name) for name in order]
    own = [colors.get(organ.group, GREY) for organ in organs]
    figure = go.Figure()
    for part in (OWN, *(name for name in groups if name in table)):
        color = own if part == OWN else faint(colors.get(part, GREY), 0.28 if part == BACKGROUND else 0.5)
        told = "itself" if part == OWN else part if part == BACKGROUND else f"other {_organs(part)}"
        figure.add_bar(
            y=list(range(len(order))), x=100 * table[part], orientation="h", width=0.66, name=part, showlegend=False,
            marker={"color": color, "line": {"width": 0}}, customdata=[[name] for name in order],
            text=[
                f"<b>{organ.title}</b>: {number(share, 'mass')} on {told}<br>click to list the scans"
                for organ, share in zip(organs, table[part], strict=True)
            ],
            textposition="none", hovertemplate="%{text}<extra></extra>",
            selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
        )  # fmt: skip
    figure.update_layout(
        barmode="stack",
        xaxis={"title": {"text": "mean share of attribution, %", "standoff": 6}, "range": [0, 100], "dtick": 20,
               "zeroline": False},
        yaxis=named_axis([organ.title for organ in organs], own),
        margin={"l": room(organ.title for organ in organs), "r": 16, "t": 8, "b": 40},
    )  # fmt: skip
    return plain(figure).update_layout(barmode="stack")


def _organs(group: str) -> str:
    return f"{group.removeprefix('other ')}" if group.endswith("organs") else f"organs of the {group}"
