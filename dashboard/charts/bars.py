"""Bars of one case, a region each: DataFrame → Plotly figure."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from agg2exp_core.organs import BACKGROUND, LabelSet
from dashboard.charts.common import GREY, MASKED, mask_titles, organ_of

ROW = 25
"""Height in px of one region's bar."""

INTERVAL = 1.96
"""Standard errors to both sides that hold 95 %."""

_TINT = "rgba(128, 134, 142, {})"


def importance_bars(
    table: pd.DataFrame, labels: LabelSet, colors: dict[str, str], measure: str, masked: pd.DataFrame | None = None
) -> go.Figure:
    """One bar a region, the largest on top, with the cohort's spread behind it.

    table: as `queries.case_importance` gives it (region, value, absent, q05, q25, median, q75, q95,
    percentile, error, of which whiskers are made that hold 95 %). colors: group → colour. measure: "mass" (a share
    of 1, shown in %) or "mean".
    masked: the same of `queries.case_masked`; those with a value are hatched bars above the organs.
    """
    organs = _described(table, labels, colors, measure)
    rows = pd.concat([organs, _described_masks(masked, measure)], ignore_index=True)
    figure = go.Figure()
    alone = rows["percentile"].isna().all()  # no other case is there to compare it with
    if not alone:
        _add_spread(figure, rows)
    figure.add_bar(
        y=rows["title"], x=rows["value"], width=0.42, orientation="h", name="this case", showlegend=False,
        marker={
            "color": rows["color"], "pattern": {"shape": rows["pattern"], "size": 5, "solidity": 0.4},
            # A hatched bar of a few pixels needs its outline to be seen.
            "line": {"width": rows["pattern"].map({"": 0, "/": 1.5}), "color": MASKED},
        },
        error_x={"array": rows["spread"], "thickness": 1.4, "width": 3, "color": GREY},
        customdata=rows["told"],
        hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip
    if not alone:
        _add_median(figure, rows)
    _name_groups(figure, organs)
    if len(rows) > len(organs):
        figure.add_hline(y=len(organs) - 0.5, line={"width": 1, "dash": "dot", "color": GREY})
    return _laid_out(figure, rows, measure)


def _add_spread(figure: go.Figure, rows: pd.DataFrame) -> None:
    for low, high, width, alpha, name in (
        ("q05", "q95", 0.86, 0.24, "5–95 % of the cohort"),
        ("q25", "q75", 0.86, 0.40, "25–75 % of the cohort"),
    ):
        figure.add_bar(
            y=rows["title"], x=rows[high] - rows[low], base=rows[low], width=width, orientation="h",
            marker={"color": _TINT.format(alpha), "line": {"width": 0}}, name=name, hoverinfo="skip",
        )  # fmt: skip


def _add_median(figure: go.Figure, rows: pd.DataFrame) -> None:
    figure.add_scatter(
        y=rows["title"], x=rows["median"], mode="markers", name="cohort median", hoverinfo="skip",
        marker={"symbol": "line-ns", "size": 17, "line": {"width": 2, "color": "#80868e"}},
    )  # fmt: skip


def _described(table: pd.DataFrame, labels: LabelSet, colors: dict[str, str], measure: str) -> pd.DataFrame:
    rows = _scaled(table, measure)
    organs = [organ_of(labels, name) for name in rows["region"]]
    rows["title"] = [organ.title for organ in organs]
    rows["group"] = [organ.group for organ in organs]
    rows["color"] = [colors.get(group, GREY) for group in rows["group"]]
    rows["told"] = [_told(row, measure) for row in rows.to_dict("records")]
    return rows.assign(pattern="")


def _described_masks(masked: pd.DataFrame | None, measure: str) -> pd.DataFrame:
    """Masks that this case has; of a mask that it lacks there is nothing to say here."""
    if masked is None or masked["value"].isna().all():
        return pd.DataFrame()
    rows = _scaled(masked.dropna(subset="value"), measure)
    rows["title"] = mask_titles(rows)
    share = "<br>of the whole attribution; the mask may overlap organs" if measure == "mass" else ""
    rows["told"] = [_told(row, measure) + share for row in rows.to_dict("records")]
    return rows.assign(group="", color=MASKED, pattern="/")


def _scaled(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Sorted by value, shares in %."""
    rows = table.sort_values("value", ascending=True, na_position="first").reset_index(drop=True)
    rows["spread"] = INTERVAL * rows["error"].astype(float) if "error" in rows else float("nan")
    numbers = ["value", "q05", "q25", "median", "q75", "q95", "spread"]
    rows[numbers] = rows[numbers].astype(float) * (100.0 if measure == "mass" else 1.0)
    return rows


def _told(row: dict, measure: str) -> str:
    def number(value: float) -> str:
        return f"{value:.2f} %" if measure == "mass" else f"{value:.3g}"

    if pd.isna(row["value"]):
        return f"<b>{row['title']}</b><br>{row.get('absent') or 'not predicted'}"
    lines = [f"<b>{row['title']}</b>: {number(row['value'])}"]
    if pd.notna(row["spread"]):
        lines[0] += f" ± {number(row['spread'])}"
    if pd.notna(row.get("percentile")):
        lines.append(f"cohort median {number(row['median'])}, 5–95 %: {number(row['q05'])} to {number(row['q95'])}")
        lines.append(f"higher than in {row['percentile']:.0f} % of the cohort")
    return "<br>".join(lines)


def _name_groups(figure: go.Figure, rows: pd.DataFrame) -> None:
    """A bar trace has one legend entry; the groups get theirs from empty traces."""
    named = rows[rows["region"] != BACKGROUND].drop_duplicates("group").sort_values("group")
    for group, color in zip(named["group"], named["color"], strict=True):
        figure.add_bar(y=[None], x=[None], orientation="h", name=group, marker={"color": color}, hoverinfo="skip")


def _laid_out(figure: go.Figure, rows: pd.DataFrame, measure: str) -> go.Figure:
    title = "share, %" if measure == "mass" else "mean per voxel"
    figure.update_layout(
        barmode="overlay",
        bargap=0,
        height=ROW * len(rows) + 118,
        margin={"l": 4, "r": 14, "t": 4, "b": 74},
        legend={"orientation": "h", "xref": "container", "yref": "container", "x": 0, "y": 0, "yanchor": "bottom"},
        xaxis={"title": {"text": title, "standoff": 4}, "rangemode": "tozero", "zeroline": False},
        yaxis={"automargin": True, "dtick": 1, "ticks": "", "tickfont": {"size": 13}},
        hoverlabel={"align": "left"},
    )
    return figure
