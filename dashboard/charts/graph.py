"""Which regions the targets' evidence comes from, as organs on a circle with arrows: DataFrame → Plotly figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import LabelSet
from dashboard.charts.common import (
    GREY,
    PICKED,
    Pick,
    faint,
    group_colors,
    in_group_order,
    number,
    organ_of,
    own_region,
    plain,
    to_click,
)  # fmt: skip

HEIGHT = 560
WIDEST, THINNEST = 7.0, 1.2
STEPS = 24
"""Points of a curve."""

CLICKS = (0.4, 0.55, 0.7, 0.85)
"""Where along an arrow a click finds it; later than half way, so that two that lead to and fro stay apart."""

LOOP = 0.085
"""Radius of the circle of an organ that is evidence for itself; that of all organs is 1."""

DASHES = {"pos": "solid", "neg": "dot"}


@dataclass(frozen=True)
class Focus:
    """The target whose arrows stand out, and the pair that the list is about."""

    target: str | None = None
    picked: Pick | None = None


def edge_graph(edges: pd.DataFrame, labels: LabelSet, focus: Focus, among: Sequence[str] = ()) -> go.Figure:
    """Organs on a circle, group by group; an arrow leads from a region to the target that it is evidence for.

    edges: target, region, value (a share) and sign (pos | neg: dotted where neg), as `graph.top_edges` gives them.
    among: organs that are drawn even without an arrow. Width grows with the root of the share, colour is that of the
    region's group. A click on an arrow answers with customdata [target, region], one on an organ with [target, region]
    of itself.
    """
    names = in_group_order(pd.Series([*among, *edges["target"], *edges["region"]], dtype=object), labels)
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / max(len(names), 1)
    places = dict(zip(names, np.column_stack([np.cos(angles), np.sin(angles)]), strict=True))
    drawn = [_Arrow(row, places, labels, focus) for row in edges.to_dict("records")]
    figure = go.Figure()
    _add_lines(figure, drawn, max(edges["value"].abs().max(), 1e-12) if len(edges) else 1.0)
    _add_heads(figure, drawn)
    _add_organs(figure, places, labels, edges)
    _add_clicks(figure, drawn)
    axis = {"visible": False, "fixedrange": True}
    figure.update_layout(
        xaxis=axis | {"range": [-1.6, 1.6]}, yaxis=axis | {"range": [-1.22, 1.22], "scaleanchor": "x"},
        margin={"l": 0, "r": 0, "t": 0, "b": 0}, showlegend=False,
    )  # fmt: skip
    return plain(figure).update_layout(height=HEIGHT)


class _Arrow:
    """One edge as it is drawn."""

    def __init__(self, row: dict[Any, Any], places: dict[str, np.ndarray], labels: LabelSet, focus: Focus):
        self.pick: Pick = (row["target"], row["region"])
        self.value, self.sign = abs(row["value"]), row["sign"]
        start, end = places[row["region"]], places[row["target"]]
        self.path = _loop(end) if row["region"] == row["target"] else _curve(start, end)
        self.loop = row["region"] == row["target"]
        self.picked = self.pick == focus.picked
        self.strong = focus.target is None or row["target"] == focus.target
        color = group_colors(labels).get(organ_of(labels, row["region"]).group, GREY)
        self.color = PICKED if self.picked else color if self.strong else faint(color, 0.25)
        target, region = (organ_of(labels, name).title for name in self.pick)
        self.words = (
            f"<b>{region} → {target}</b><br>{number(self.value, 'mass')} of the attribution of {target}<br>"
            f"lies on {'itself' if self.loop else region} · click to list the scans"
        )


def _curve(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(STEPS, 2): bent towards the middle, and to one side, so that the way back is another."""
    across = end - start
    bend = 0.25 * (start + end) / 2 + 0.1 * np.array([across[1], -across[0]])
    t = np.linspace(0.04, 0.955, STEPS)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end


def _loop(place: np.ndarray) -> np.ndarray:
    """(STEPS, 2): a circle inside, so that the name outside stays free."""
    middle = place * (1 - LOOP)
    turn = np.arctan2(place[1], place[0]) + np.linspace(0.35, 2 * np.pi - 0.35, STEPS)
    return middle + LOOP * np.column_stack([np.cos(turn), np.sin(turn)])


def _add_lines(figure: go.Figure, arrows: list[_Arrow], top: float) -> None:
    """One trace for all that look alike, faint ones first."""
    alike: dict[tuple[bool, bool, str, float, str], list[np.ndarray]] = {}
    for arrow in arrows:
        width = round(THINNEST + (WIDEST - THINNEST) * float(np.sqrt(arrow.value / top)), 1)
        look = arrow.picked, arrow.strong, arrow.color, width, DASHES[arrow.sign]
        alike.setdefault(look, []).append(np.vstack([arrow.path, [np.nan, np.nan]]))
    for (_, _, color, width, dash), paths in sorted(alike.items(), key=lambda item: item[0][:2]):
        x, y = np.round(np.vstack(paths), 4).T
        line = {"color": color, "width": width, "dash": dash}
        figure.add_scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip")


def _add_heads(figure: go.Figure, arrows: list[_Arrow]) -> None:
    heads = [arrow for arrow in arrows if not arrow.loop]
    ends = np.array([arrow.path[-1] for arrow in heads]).reshape(-1, 2)
    ways = np.array([arrow.path[-1] - arrow.path[-3] for arrow in heads]).reshape(-1, 2)
    figure.add_scatter(
        x=ends[:, 0], y=ends[:, 1], mode="markers", hoverinfo="skip",
        marker={
            "symbol": "triangle-up", "size": 11, "color": [arrow.color for arrow in heads], "line": {"width": 0},
            "angle": np.degrees(np.arctan2(ways[:, 0], ways[:, 1])),
        },
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
    )  # fmt: skip


def _add_organs(figure: go.Figure, places: dict[str, np.ndarray], labels: LabelSet, edges: pd.DataFrame) -> None:
    organs = [organ_of(labels, name) for name in places]
    colors = group_colors(labels)
    spots = np.array(list(places.values())).reshape(-1, 2)
    regions, given = set(places), edges["region"].value_counts()
    mode = {"mode": "markers+text", "textfont": {"size": 13}, "cliponaxis": False}
    figure.add_scatter(
        x=spots[:, 0], y=spots[:, 1], **mode, text=[organ.title for organ in organs],
        textposition=[_beside(place) for place in spots],
        marker={"size": 17, "color": [colors.get(organ.group, GREY) for organ in organs], "opacity": 1,
                "line": {"width": 1.5, "color": "#ffffff"}},
        customdata=[[name, own_region(labels, name, regions)] for name in places],
        hovertext=[
            f"<b>{organ.title}</b>: {given.get(name, 0)} arrows lead from it<br>click to list the scans"
            for name, organ in zip(places, organs, strict=True)
        ],
        hovertemplate="%{hovertext}<extra></extra>",
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
    )  # fmt: skip


def _beside(place: np.ndarray) -> str:
    x, y = place
    if abs(x) < 0.2:
        return "top center" if y > 0 else "bottom center"
    up = "top " if y > 0.85 else "bottom " if y < -0.85 else "middle "
    return up + ("right" if x > 0 else "left")


def _add_clicks(figure: go.Figure, arrows: list[_Arrow]) -> None:
    spots = [(arrow, arrow.path[round(part * (STEPS - 1))]) for arrow in arrows for part in CLICKS]
    look = to_click()
    figure.add_scatter(
        x=[round(float(spot[0]), 4) for _, spot in spots], y=[round(float(spot[1]), 4) for _, spot in spots],
        customdata=[list(arrow.pick) for arrow, _ in spots], text=[arrow.words for arrow, _ in spots],
        **look | {"marker": {"opacity": 0, "size": 9}},
    )  # fmt: skip
