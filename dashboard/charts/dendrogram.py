"""Organs joined by how much they explain each other, as a tree: Dendrogram → Plotly figure."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from agg2exp_core.analysis.clustering import Dendrogram
from agg2exp_core.organs import LabelSet
from dashboard.charts.common import (
    ANYWHERE,
    GREY,
    frame,
    group_colors,
    named_axis,
    organ_of,
    plain,
    room,
    rows_to_click,
)


@dataclass(frozen=True, eq=False)
class _Branch:
    """A leaf or a join: the organs below it, where along the axis of organs it stands, and its distance."""

    organs: tuple[str, ...]
    place: float
    distance: float


def dendrogram(tree: Dendrogram, labels: LabelSet, picked: str | None = None) -> go.Figure:
    """Leaves in the tree's order, first on top; two branches meet at their distance, in their group's colour if all
    their organs are of one. A click on a leaf's row answers with customdata [organ, organ].
    """
    colors = group_colors(labels)
    branches = [_Branch((name,), tree.order.index(name), 0.0) for name in tree.names]
    joins: dict[str, str] = {}
    figure = go.Figure()
    for first, second, distance, _ in tree.linkage:
        one, two = branches[int(first)], branches[int(second)]
        joined = _Branch((*one.organs, *two.organs), (one.place + two.place) / 2, float(distance))
        _add_join(figure, (one, two, joined), labels, colors)
        for single, other in ((one, two), (two, one)):
            if len(single.organs) == 1:
                joins[single.organs[0]] = _words(other, joined.distance, labels)
        branches.append(joined)
    end = float(tree.linkage[:, 2].max()) * 1.03 or 1.0
    _add_leaves(figure, tree, labels, joins, end)
    if picked in tree.order:
        place = tree.order.index(str(picked))
        figure.add_shape(frame((0, end), (place - 0.5, place + 0.5)))
    organs = [organ_of(labels, name) for name in tree.order]
    figure.update_layout(
        xaxis={"title": {"text": "distance (max − √share)", "standoff": 6}, "range": [0, end],
               "zeroline": False, "showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.25)"},
        yaxis=named_axis([organ.title for organ in organs], [colors.get(organ.group, GREY) for organ in organs]),
        showlegend=False, margin={"l": room(organ.title for organ in organs), "r": 8, "t": 8, "b": 40},
    )  # fmt: skip
    return plain(figure).update_layout(ANYWHERE)


def _add_join(
    figure: go.Figure, branches: tuple[_Branch, _Branch, _Branch], labels: LabelSet, colors: dict[str, str]
) -> None:
    one, two, joined = branches
    groups = {organ_of(labels, name).group for name in joined.organs}
    color = colors.get(groups.pop(), GREY) if len(groups) == 1 else GREY
    figure.add_scatter(
        x=[one.distance, joined.distance, joined.distance, two.distance],
        y=[one.place, one.place, two.place, two.place], mode="lines", line={"color": color, "width": 2.4},
        hoverinfo="skip",
    )  # fmt: skip


def _words(other: _Branch, distance: float, labels: LabelSet) -> str:
    names = [organ_of(labels, name).title for name in other.organs]
    with_whom = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"joins {with_whom}<br>at a distance of {distance:.3f}"


def _add_leaves(figure: go.Figure, tree: Dendrogram, labels: LabelSet, joins: dict[str, str], end: float) -> None:
    told = [f"<b>{organ_of(labels, name).title}</b> {joins[name]} · click to list the scans" for name in tree.order]
    figure.add_trace(rows_to_click(end, [[name, name] for name in tree.order], told))
