"""Charts of any table: DataFrame → Plotly figure, with a first guess at what suits it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from agg2exp_core.organs import LabelSet
from dashboard.charts.common import CHART_HEIGHT, HOVER, group_colors, in_group_order, organ_of
from dashboard.charts.matrix import SCALE

KINDS = {"bar": "Bars", "scatter": "Scatter", "heatmap": "Heatmap", "box": "Box plot", "histogram": "Histogram"}
ORGAN_COLUMNS = ("target", "region", "organ")
MOST_POINTS = 20_000
"""Rows that a chart draws; of more, an even spread over the answer."""

MOST_NAMES = 60
"""Categories of an axis of bars or boxes, in the order of the answer; a heatmap takes twice as many."""

FEW_SIDE_BY_SIDE = 4
"""Categories whose bars can stand beside each other."""

ROW = 19
"""Height in px of a lying bar or box."""

ODD = (bytes, bytearray, timedelta, UUID)
"""Of DuckDB's values, those that neither Plotly's JSON nor, some of them, a set takes."""

FEW = 8
"""Bars that still stand upright; more lie, so that their names can be read."""


@dataclass(frozen=True)
class Drawing:
    """Which columns a chart shows. y: for a heatmap, its rows; color: for a heatmap, its cells."""

    kind: str
    x: str | None = None
    y: str | None = None
    color: str | None = None


def columns_of(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Columns of categories and those of numbers, as far as a chart can show them: lists and structs it cannot."""
    numbers = [name for name in table if _is_number(table[name])]
    names = [name for name in table if name not in numbers and all(map(_is_single, table[name].dropna().head(100)))]
    return [str(name) for name in names], [str(name) for name in numbers]


def drawable(table: pd.DataFrame) -> pd.DataFrame:
    """The table with what a figure cannot hold as text: UUIDs, intervals, bits and bytes."""
    return table.assign(**{str(name): table[name].map(_text) for name in table if _is_odd(table[name])})


def suggested(table: pd.DataFrame) -> Drawing | None:
    """What probably suits the table; None where it has nothing to draw.

    A category and a number are bars, or boxes where no category is each row's own; two categories whose pairs are
    there once are a heatmap, or bars side by side where one has few; rows that are scans, with two numbers, a scatter.
    """
    names, numbers = columns_of(table)
    groups = [name for name in names if name != "case_id" and 1 < table[name].nunique() < len(table)]
    if table.empty or not numbers:
        return None
    if len(groups) == 2 and "case_id" not in names and not table.duplicated(groups).any():
        few, many = sorted(groups, key=lambda name: table[name].nunique())
        if table[few].nunique() <= FEW_SIDE_BY_SIDE:
            return Drawing("bar", many, numbers[0], few)
        return Drawing("heatmap", groups[1], groups[0], numbers[0])
    own = [name for name in names if name != "case_id" and table[name].nunique() == len(table)]
    if own:
        return Drawing("bar", own[0], numbers[0])
    if groups:
        return Drawing("box", next((name for name in groups if name in ORGAN_COLUMNS), groups[-1]), numbers[0])
    if len(numbers) > 1 and (not names or "case_id" in names):
        return Drawing("scatter", numbers[0], numbers[1])
    return Drawing("bar", names[0], numbers[0]) if names else Drawing("histogram", numbers[0])


def answer_chart(table: pd.DataFrame, drawing: Drawing, labels: LabelSet) -> go.Figure:
    """The chart of an answer. Organs stand under their titles; a bar of an organ has its group's colour.

    The order is the answer's; in a heatmap organs stand group by group, as in the matrix of the Cohort page.
    """
    organs = [name for name in (drawing.x, drawing.y, drawing.color) if name in ORGAN_COLUMNS]
    rows = _spread(table)
    shown = rows.assign(**{name: _titles(rows[name], labels) for name in organs if name is not None})
    figure = DRAW[drawing.kind](shown, drawing)
    if drawing.kind == "bar" and drawing.x in ORGAN_COLUMNS and drawing.color is None:
        colors = group_colors(labels)
        named = [organ_of(labels, str(name)) for name in _few(rows, drawing.x)[drawing.x]]
        figure.update_traces(marker_color=[colors.get(organ.group, organ.color) for organ in named])
    return figure.update_layout(
        height=max(CHART_HEIGHT, ROW * _lying(shown, drawing) + 60), margin={"l": 4, "r": 8, "t": 8, "b": 40},
        hoverlabel=HOVER, legend_title_text="",
    )  # fmt: skip


def titled(table: pd.DataFrame, labels: LabelSet) -> pd.DataFrame:
    """The table as it is read: organs by their titles, as in the chart, instead of their names."""

    def title(name: object) -> object:
        return organ_of(labels, name).title if isinstance(name, str) else name

    return table.assign(**{name: table[name].map(title) for name in ORGAN_COLUMNS if name in table})


def points_left_out(table: pd.DataFrame) -> int:
    """Rows that a chart leaves out."""
    return max(0, len(table) - MOST_POINTS)


def _is_single(value: Any) -> bool:
    return not isinstance(value, (list, dict, np.ndarray))


def _is_odd(column: pd.Series) -> bool:
    return pd.api.types.is_timedelta64_dtype(column) or isinstance(next(iter(column.dropna()), None), ODD)


def _text(value: Any) -> str | None:
    if pd.isna(value):
        return None
    return bytes(value).decode(errors="backslashreplace") if isinstance(value, bytes | bytearray) else str(value)


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def _spread(table: pd.DataFrame) -> pd.DataFrame:
    return table if not points_left_out(table) else table.iloc[:: -(-len(table) // MOST_POINTS)]


def _titles(names: pd.Series, labels: LabelSet) -> pd.Series:
    """Titles of organs, which know the label set's order."""
    order = {name: organ_of(labels, name).title for name in in_group_order(names.dropna().astype(str), labels)}
    return pd.Series(pd.Categorical(names.map(order), list(dict.fromkeys(order.values()))), names.index)


def _order(column: pd.Series) -> list[Any]:
    """Values in the order of their appearance; organs in the label set's."""
    return list(column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column.unique())


def _few(rows: pd.DataFrame, column: str | None, most: int = MOST_NAMES) -> pd.DataFrame:
    """The rows of the first so many categories; a number is none."""
    if column is None or _is_number(rows[column]):
        return rows
    return rows[rows[column].isin(rows[column].unique()[:most])]


def _lying(rows: pd.DataFrame, drawing: Drawing) -> int:
    """Categories of a chart whose bars or boxes lie, as they are too many to stand; else 0."""
    if drawing.kind not in ("bar", "box") or drawing.x is None or _is_number(rows[drawing.x]):
        return 0
    count = min(MOST_NAMES, int(rows[drawing.x].nunique()))
    return count if count > FEW else 0


def _hover(rows: pd.DataFrame) -> dict[str, Any]:
    """Every column under the pointer, fractions to four digits."""
    return {str(name): ":.4g" if pd.api.types.is_float_dtype(rows[name]) else True for name in rows}


def _turned(make: Callable[..., go.Figure], rows: pd.DataFrame, drawing: Drawing, **named: Any) -> go.Figure:
    """Bars or boxes in the order of the answer: standing, or lying with the first on top."""
    names = {"automargin": True, "title_text": "", "ticks": ""}
    named |= {"color": drawing.color, "hover_data": _hover(rows)}
    if not _lying(rows, drawing):
        return make(rows, x=drawing.x, y=drawing.y, **named).update_xaxes(**names)
    figure = make(rows, x=drawing.y, y=drawing.x, orientation="h", **named)
    return figure.update_yaxes(**names, autorange="reversed", dtick=1)


def _bar(rows: pd.DataFrame, drawing: Drawing) -> go.Figure:
    rows = _few(rows, drawing.x)
    aside = drawing.color is not None and not _is_number(rows[drawing.color])
    return _turned(px.bar, rows, drawing, barmode="group" if aside else "relative").update_layout(bargap=0.25)


def _box(rows: pd.DataFrame, drawing: Drawing) -> go.Figure:
    return _turned(px.box, _few(rows, drawing.x), drawing).update_traces(line_width=1.4)


def _scatter(rows: pd.DataFrame, drawing: Drawing) -> go.Figure:
    scale = {"color": drawing.color, "color_continuous_scale": SCALE}
    figure = px.scatter(rows, x=drawing.x, y=drawing.y, hover_data=_hover(rows), **scale)
    return figure.update_traces(marker={"size": 8, "opacity": 0.8})


def _heatmap(rows: pd.DataFrame, drawing: Drawing) -> go.Figure:
    rows = _few(_few(rows, drawing.x, 2 * MOST_NAMES), drawing.y, 2 * MOST_NAMES)
    order = [_order(rows[str(name)]) for name in (drawing.y, drawing.x)]
    rows = rows.astype({str(drawing.x): object, str(drawing.y): object})
    cells = rows.pivot_table(index=drawing.y, columns=drawing.x, values=drawing.color, aggfunc="mean")
    cells = cells.reindex(index=order[0], columns=order[1])
    figure = px.imshow(cells, color_continuous_scale=SCALE, aspect="auto", labels={"color": str(drawing.color)})
    figure.update_xaxes(tickangle=-90, automargin=True, title_text="", ticks="", dtick=1)
    return figure.update_yaxes(automargin=True, title_text="", ticks="", dtick=1)


def _histogram(rows: pd.DataFrame, drawing: Drawing) -> go.Figure:
    return px.histogram(rows, x=drawing.x, color=drawing.color, nbins=40).update_layout(bargap=0.03)


DRAW = {"bar": _bar, "scatter": _scatter, "heatmap": _heatmap, "box": _box, "histogram": _histogram}
