"""Charts of a cohort: DataFrame → Plotly figure. No streamlit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import BACKGROUND, LabelSet, Organ, plain_name

GREY = "#80868e"
HOVER = {"align": "left", "bgcolor": "#17212b", "bordercolor": "#17212b", "font": {"color": "#ffffff", "size": 13}}
SCALE = "Viridis"
CHART_HEIGHT = 500
"""Height in px of both charts, so that they stand side by side."""

CLICK_COLUMNS = 24
"""Points along a box's row that answer to hover and click; Plotly takes the nearest within 20 px."""

MOST_OUTLIERS = 40
"""Outliers drawn for one box; of more, an even spread over their range that keeps both ends."""

Pick = tuple[str, str]
"""A target and a region, as a click on a box or a cell names them."""


def group_colors(labels: LabelSet) -> dict[str, str]:
    """Group → colour: that of the group's first organ."""
    return {organ.group: organ.color for organ in reversed(labels.organs)}


def organ_of(labels: LabelSet, name: str) -> Organ:
    """The organ of that name, or a grey one for a region that the label set does not know."""
    known = {organ.name: organ for organ in labels.organs}
    return known.get(name) or Organ(-1, name, "other regions", GREY, plain_name(name))


def number(value: float, measure: str) -> str:
    """A share in per cent, a mean to three digits."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.1f} %" if measure == "mass" else _rounded(value, 3)


def _rounded(value: float, digits: int) -> str:
    """To so many digits, without an exponent while a million is not reached."""
    return f"{float(f'{value:.{digits}g}'):g}"


# ---- box plots -----------------------------------------------------------------------------------


def region_boxes(stats: pd.DataFrame, labels: LabelSet, measure: str, picked: str | None = None) -> go.Figure:
    """One box a region, sorted as given (largest median first, on top), coloured by group.

    stats: as `queries.box_stats` gives it. measure: "mass" (share of 1, drawn in %) or "mean".
    A click on a row answers with customdata [region].
    """
    rows = _box_rows(stats, labels, measure)
    figure = go.Figure()
    colors = group_colors(labels)
    for group, part in rows.groupby("group", sort=False):
        _add_boxes(figure, part, str(group), colors.get(str(group), GREY))
    _add_outliers(figure, rows, colors)
    end = max([*rows["high"], *(value for values in rows["outliers"] for value in values), 1e-12])
    _add_rows_to_click(figure, rows, end)
    if picked in list(rows["region"]):
        place = list(rows["region"]).index(str(picked))
        _frame(figure, (-0.01 * end, end * 1.02), (place - 0.5, place + 0.5))
    title = "share of attribution, %" if measure == "mass" else "attribution per voxel"
    figure.update_layout(
        xaxis={"title": {"text": title, "standoff": 6}, "range": [-0.01 * end, end * 1.02], "zeroline": False,
               "showgrid": True, "gridcolor": "rgba(128, 134, 142, 0.25)"},
        yaxis=_named_axis(rows["title"], [colors.get(group, GREY) for group in rows["group"]]),
        showlegend=False,
        margin={"l": 4, "r": 8, "t": 8, "b": 40},
    )  # fmt: skip
    return _plain(figure)


def _box_rows(stats: pd.DataFrame, labels: LabelSet, measure: str) -> pd.DataFrame:
    rows = stats[stats["n"] > 0].reset_index(drop=True)
    organs = [organ_of(labels, name) for name in rows["region"]]
    rows["title"] = [organ.title for organ in organs]
    rows["group"] = [organ.group for organ in organs]
    rows["told"] = [_box_words(row, measure) for row in rows.to_dict("records")]
    scale = 100.0 if measure == "mass" else 1.0
    numbers = ["low", "q1", "median", "q3", "high"]
    rows[numbers] = rows[numbers].astype(float) * scale
    rows["outliers"] = [list(scale * thinned(values)) for values in rows["outliers"]]
    return rows


def _box_words(row: dict[Any, Any], measure: str) -> str:
    def told(name: str) -> str:
        return number(row[name], measure)

    outliers = len(row["outliers"])
    beyond = f"<br>{outliers} beyond" if outliers else ""
    return (
        f"<b>{row['title']}</b>: median {told('median')}<br>middle half {told('q1')} to {told('q3')}"
        f"<br>whiskers {told('low')} to {told('high')}{beyond}<br>{row['n']} scans · click to list them"
    )


def thinned(values: Any) -> np.ndarray:
    """At most MOST_OUTLIERS of the values, sorted, both ends among them."""
    ordered = np.sort(np.asarray(values, dtype=float))
    if len(ordered) <= MOST_OUTLIERS:
        return ordered
    return ordered[np.linspace(0, len(ordered) - 1, MOST_OUTLIERS).round().astype(int)]


def _add_boxes(figure: go.Figure, rows: pd.DataFrame, group: str, color: str) -> None:
    figure.add_box(
        y=rows.index, q1=rows["q1"], median=rows["median"], q3=rows["q3"], lowerfence=rows["low"],
        upperfence=rows["high"], orientation="h", width=0.62, whiskerwidth=0.5, name=group.capitalize(),
        line={"color": color, "width": 1.6}, fillcolor=_faint(color), hoverinfo="skip",
    )  # fmt: skip


def _add_outliers(figure: go.Figure, rows: pd.DataFrame, colors: dict[str, str]) -> None:
    places = [place for place, values in enumerate(rows["outliers"]) for _ in values]
    figure.add_scatter(
        y=places, x=[value for values in rows["outliers"] for value in values], mode="markers", showlegend=False,
        marker={"size": 4, "opacity": 0.8, "color": [colors.get(rows["group"][place], GREY) for place in places]},
        hoverinfo="skip", unselected={"marker": {"opacity": 0.8}},
    )  # fmt: skip


def _add_rows_to_click(figure: go.Figure, rows: pd.DataFrame, end: float) -> None:
    figure.add_scatter(
        y=np.repeat(np.arange(len(rows)), CLICK_COLUMNS),
        x=np.round(np.tile(np.linspace(0, end, CLICK_COLUMNS), len(rows)), 6),
        customdata=[[region] for region in np.repeat(rows["region"], CLICK_COLUMNS)],
        text=np.repeat(rows["told"], CLICK_COLUMNS),
        **_invisible(),
    )


# ---- matrix --------------------------------------------------------------------------------------


def organ_matrix(matrix: pd.DataFrame, labels: LabelSet, measure: str, picked: Pick | None = None) -> go.Figure:
    """Medians as colours: one row a target, one column a region, both group by group.

    matrix: as `queries.matrix` gives it (target, region, value, n). Colour grows with the square root, so that
    small shares stay apart beside the background's. A click on a cell answers with customdata [target, region].
    """
    targets, regions = in_group_order(matrix["target"], labels), in_group_order(matrix["region"], labels)
    values = matrix.pivot_table(index="target", columns="region", values="value", dropna=False)
    values = values.reindex(index=targets, columns=regions).astype(float)
    top = float(np.nanmax(values.to_numpy(), initial=1e-12))
    figure = go.Figure()
    figure.add_heatmap(
        z=np.sqrt(values.to_numpy()), zmin=0, zmax=math.sqrt(top), colorscale=SCALE, xgap=1, ygap=1,
        hoverinfo="skip", colorbar=_color_bar(top, measure),
    )  # fmt: skip
    _add_cells_to_click(figure, matrix, labels, measure)
    if picked and picked[0] in targets and picked[1] in regions:
        x, y = regions.index(picked[1]), targets.index(picked[0])
        _frame(figure, (x - 0.5, x + 0.5), (y - 0.5, y + 0.5))
    figure.update_layout(
        xaxis=_matrix_axis(regions, labels) | {"tickangle": -90, "range": [-0.5, len(regions) - 0.5]},
        yaxis=_matrix_axis(targets, labels) | {"range": [len(targets) - 0.5, -0.5]},
        margin={"l": 4, "r": 0, "t": 8, "b": 4},
    )
    return _plain(figure)


def in_group_order(names: pd.Series, labels: LabelSet) -> list[str]:
    """The label set's organs among the names, group by group; then others; background last."""
    present = set(names)
    groups = [*(group for group in labels.groups if group != BACKGROUND), BACKGROUND]
    organs = sorted(labels.organs, key=lambda organ: groups.index(organ.group))
    known = [organ.name for organ in organs if organ.name in present and organ.name != BACKGROUND]
    others = sorted(present - {organ.name for organ in organs})
    return [*known, *others, *([BACKGROUND] if BACKGROUND in present else [])]


def _add_cells_to_click(figure: go.Figure, matrix: pd.DataFrame, labels: LabelSet, measure: str) -> None:
    targets, regions = in_group_order(matrix["target"], labels), in_group_order(matrix["region"], labels)
    cells = matrix[["target", "region", "value", "n"]].to_dict("records")
    figure.add_scatter(
        x=[regions.index(cell["region"]) for cell in cells],
        y=[targets.index(cell["target"]) for cell in cells],
        customdata=[[cell["target"], cell["region"]] for cell in cells],
        text=[_cell_words(cell, labels, measure) for cell in cells],
        **_invisible(),
    )


def _cell_words(cell: dict[Any, Any], labels: LabelSet, measure: str) -> str:
    target, region = organ_of(labels, cell["target"]).title, organ_of(labels, cell["region"]).title
    if not cell["n"] or not math.isfinite(cell["value"]):
        return f"<b>{target}</b><br>{region}: in none of these scans"
    amount = number(cell["value"], measure)
    what = f"{amount} lies on<br><b>{region}</b>" if measure == "mass" else f"{amount} per voxel of<br><b>{region}</b>"
    return f"Of the attribution of <b>{target}</b><br>{what}<br>median of {cell['n']} scans · click to list them"


def _color_bar(top: float, measure: str) -> dict[str, Any]:
    shares = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
    ticks = [0.0, *(share for share in shares if 0.02 * top < share <= top)]
    if measure != "mass":
        ticks = [0.0, *(float(f"{top * part:.1g}") for part in (0.05, 0.2, 0.5)), top]
    text = [f"{100 * tick:g} %" if measure == "mass" else _rounded(tick, 2) for tick in ticks]
    places = [math.sqrt(tick) for tick in ticks]
    return {"tickvals": places, "ticktext": text, "thickness": 10, "outlinewidth": 0, "xpad": 6, "ypad": 0, "len": 1.0}


def _matrix_axis(names: list[str], labels: LabelSet) -> dict[str, Any]:
    organs = [organ_of(labels, name) for name in names]
    colors = group_colors(labels)
    axis = _named_axis([organ.title for organ in organs], [colors.get(organ.group, GREY) for organ in organs])
    return axis | {"tickfont": {"size": 12}}


# ---- shared --------------------------------------------------------------------------------------


def _named_axis(titles: Any, colors: list[str]) -> dict[str, Any]:
    """Places 0, 1, 2 … with their names, each with a square in its group's colour."""
    names = [f"{title} <span style='color:{color}'>■</span>" for title, color in zip(titles, colors, strict=True)]
    return {
        "tickvals": list(range(len(names))), "ticktext": names, "range": [len(names) - 0.5, -0.5],
        "automargin": True, "showgrid": False, "zeroline": False, "ticks": "", "tickfont": {"size": 13},
    }  # fmt: skip


def _invisible() -> dict[str, Any]:
    """Boxes with given quartiles, and heatmaps, answer to no click: these squares over them do."""
    clear = {"marker": {"opacity": 0}}
    return {
        "mode": "markers", "marker": {"opacity": 0, "size": 18, "symbol": "square"}, "showlegend": False,
        "hovertemplate": "%{text}<extra></extra>", "selected": clear, "unselected": clear,
    }  # fmt: skip


def _frame(figure: go.Figure, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Show which box or cell the list is about."""
    line = {"color": "#e0115f", "width": 2}
    figure.add_shape(type="rect", x0=x[0], x1=x[1], y0=y[0], y1=y[1], line=line, layer="above")


def _plain(figure: go.Figure) -> go.Figure:
    return figure.update_layout(
        height=CHART_HEIGHT, dragmode=False, hovermode="closest", hoverlabel=HOVER, boxmode="overlay"
    )


def _faint(color: str) -> str:
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.4)"
