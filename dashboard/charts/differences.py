"""What differs between two sets, pair by pair: DataFrame → Plotly figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import LabelSet
from dashboard.charts.change import Row, chance, differs, excludes_zero, interval, level, signed
from dashboard.charts.common import (
    ANYWHERE,
    PLAIN,
    SIDES,
    Pick,
    chart_height,
    frame,
    in_group_order,
    organ_axes,
    organ_of,
    rounded,
    short,
    to_click,
)  # fmt: skip

SCALE = [[0.0, SIDES[0]], [0.5, "rgba(128, 134, 142, 0.1)"], [1.0, SIDES[1]]]
"""Towards the colour of the set that has more; in the middle nearly the page's own, be it light or dark."""

FADED = 0.28
"""Opacity of cells that chance could explain."""


@dataclass(frozen=True)
class Look:
    """How differences are told. measure: "mass" (percentage points) or "mean"; names: what the two sets are called."""

    labels: LabelSet
    measure: str
    names: tuple[str, str]


def difference_matrix(table: pd.DataFrame, look: Look, picked: Pick | None = None) -> go.Figure:
    """Differences as colours: one row a target, one column a region, both group by group, zero in the middle.

    table: that of `compare.Comparison`. Colour grows with the square root, as in the matrix of one set. Cells that are
    not significant are faded; a dot says that the interval excludes zero. A click on a cell answers with customdata
    [target, region].
    """
    targets, regions = in_group_order(table["target"], look.labels), in_group_order(table["region"], look.labels)
    rows = table.to_dict("records")
    told = pd.Series([differs(row) for row in rows], index=table.index, dtype=bool)
    top = float(table["difference"].abs().max())
    top = top if math.isfinite(top) and top > 0 else 1e-12
    figure = go.Figure()
    for part, opacity, bar in ((told, 1.0, True), (~told, FADED, False)):
        values = _grid(table.where(part), targets, regions)
        figure.add_heatmap(
            z=np.sign(values) * np.sqrt(np.abs(values)), zmin=-math.sqrt(top), zmax=math.sqrt(top), colorscale=SCALE,
            opacity=opacity, xgap=1, ygap=1, hoverinfo="skip", showscale=bar,
            colorbar=_color_bar(top, look) if bar else None,
        )  # fmt: skip
    places = {
        (row["target"], row["region"]): (regions.index(row["region"]), targets.index(row["target"])) for row in rows
    }
    _add_dots(figure, [places[row["target"], row["region"]] for row in rows if excludes_zero(row)])
    _add_cells_to_click(figure, rows, places, look)
    if picked in places:
        x, y = places[picked]
        figure.add_shape(frame((x - 0.5, x + 0.5), (y - 0.5, y + 0.5)))
    layout = PLAIN | ANYWHERE | organ_axes(targets, regions, look.labels)
    return figure.update_layout(layout | {"height": chart_height(len(targets))})


def _grid(table: pd.DataFrame, targets: list[str], regions: list[str]) -> np.ndarray:
    values = table.pivot_table(index="target", columns="region", values="difference", dropna=False)
    return values.reindex(index=targets, columns=regions).to_numpy(np.float64)


def _add_dots(figure: go.Figure, places: list[tuple[int, int]]) -> None:
    figure.add_scatter(
        x=[x for x, _ in places], y=[y for _, y in places], mode="markers", hoverinfo="skip", showlegend=False,
        marker={"size": 4, "color": "#17212b", "line": {"color": "#ffffff", "width": 1}},
        selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
    )  # fmt: skip


def _add_cells_to_click(figure: go.Figure, rows: list[Row], places: dict[Pick, tuple[int, int]], look: Look) -> None:
    figure.add_scatter(
        x=[places[row["target"], row["region"]][0] for row in rows],
        y=[places[row["target"], row["region"]][1] for row in rows],
        customdata=[[row["target"], row["region"]] for row in rows],
        text=[cell_words(row, look) for row in rows],
        **to_click(),
    )


def cell_words(row: Row, look: Look) -> str:
    """What stands behind one cell: both medians, their difference, its interval, its p, and how many scans."""
    target, region = (organ_of(look.labels, row[name]).title for name in ("target", "region"))
    title = f"<b>{target}</b>, on <b>{region}</b>"
    if not math.isfinite(row["difference"]):
        return f"{title}<br>not in both sets"
    unit = " points" if look.measure == "mass" else ""
    lines = [
        title,
        *sets_words(row, look),
        f"<b>{signed(row['difference'], look.measure)}{unit}</b>, {interval(row, look.measure)}",
        f"{chance(row)} · click to see the scans",
    ]
    return "<br>".join(lines)


def sets_words(row: Row, look: Look) -> list[str]:
    """A line a set: its colour, its name, its value, its scans."""
    return [
        f"<span style='color:{color}'>■</span> {short(name)}: {level(row[side], look.measure)}, {row[n]} scans"
        for name, color, side, n in zip(look.names, SIDES, ("first", "second"), ("n_first", "n_second"), strict=True)
    ]


def _color_bar(top: float, look: Look) -> dict[str, Any]:
    shares = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7)
    sizes = [share for share in shares if 0.04 * top < share <= top][-4:]
    if look.measure != "mass":
        sizes = [float(f"{top * part:.1g}") for part in (0.1, 0.4, 1)]
    ticks = [*(-size for size in reversed(sizes)), 0.0, *sizes]
    text = [
        "0" if not tick else ("−" if tick < 0 else "+") + rounded(abs(tick) * (100 if look.measure == "mass" else 1), 2)
        for tick in ticks
    ]
    places = [math.copysign(math.sqrt(abs(tick)), tick) for tick in ticks]
    title = {"text": "points" if look.measure == "mass" else "per voxel", "side": "right"}
    return {
        "title": title,
        "tickvals": places,
        "ticktext": text,
        "thickness": 10,
        "outlinewidth": 0,
        "xpad": 6,
        "ypad": 0,
        "len": 1.0,
    }
