"""A case as one HTML file that needs nothing else: pictures, importance organ by organ, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import pandas as pd

from agg2exp_core.organs import LabelSet
from dashboard.charts.bars import INTERVAL
from dashboard.charts.common import GREY, MASKED, group_colors, mask_titles, number, organ_of
from dashboard.viewer import slices, still
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Look, Scene

DEFINITIONS = (
    "Attribution says how much each voxel moved the model's output for the target organ, the sum of its scores over "
    "the voxels given to it. Share is the attribution on a region divided by that on all regions listed; of a mask, "
    "which may overlap them, by that on the whole scan. What follows ± holds 95 %: how sure a number is, judged from "
    "the noisy copies that were averaged and from windows that were left out, where there are any. The cohort's values "
    "are those of the same run. Dice is the overlap of prediction and label."
)
CAUTION = (
    "For research, not for diagnosis. Attribution says what moved the output, not whether that is medically sound."
)

CSS = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .6rem; background: #000; padding: .6rem; }
figure { margin: 0; color: #cfd8dc; font-size: .8rem; text-align: center; } figure img { display: block; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; }
th, td { padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #80868e55; } td.n, th.n { text-align: right; }
.bar { height: .7rem; } .quiet { color: #80868e; font-size: .85rem; }
"""


@dataclass(frozen=True, eq=False)
class CaseReport:
    """What a report tells. table: as `queries.case_importance` gives it. facts: name → value, as shown.

    counted: what the numbers are, in words. measure: "mass" or "mean". masked: masks, as `queries.case_masked` gives
    them. at: the voxel that the pictures go through. notes: sentences on how this case differs.
    """

    title: str
    target: str
    labels: LabelSet
    facts: dict[str, str]
    table: pd.DataFrame
    counted: str = ""
    measure: str = "mass"
    masked: pd.DataFrame | None = None
    scene: Scene | None = None
    at: Voxel | None = None
    look: Look = field(default_factory=Look)
    notes: Sequence[str] = ()


def case_report(report: CaseReport) -> str:
    """The HTML text. Names, metadata and notes are escaped."""
    organ = organ_of(report.labels, report.target).title
    facts = " · ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in report.facts.items())
    parts = [f"<h1>{escape(report.title)}: {escape(organ)}</h1><p>{facts}</p>", _pictures(report), _notes(report)]
    parts += [f"<h2>Attribution of {escape(organ)}, organ by organ</h2>"]
    parts += [f"<p>{escape(report.counted)}</p>" if report.counted else "", _table(report)]
    parts += [f"<p class='quiet'>{escape(DEFINITIONS)}</p><p class='quiet'>{escape(CAUTION)}</p>"]
    head = f"<meta charset='utf-8'><title>{escape(report.title)}</title><style>{CSS}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>"


def _pictures(report: CaseReport) -> str:
    if report.scene is None or report.at is None:
        return "<p class='quiet'>No image is stored for this case.</p>"
    figures = []
    for plane in slices.PLANES:
        source = still.data_uri(still.still(report.scene, plane, report.at, report.look, height=260))
        sides = f"left {plane.left}, right {plane.right}, top {plane.top}, bottom {plane.bottom}"
        text = f"{plane.name.capitalize()} · {sides}"
        figures.append(f"<figure><img src='{source}' alt='{text}'><figcaption>{text}</figcaption></figure>")
    millimetres = slices.world(report.scene.scan.affine, report.at)
    where = ", ".join(f"{value:.0f}" for value in millimetres)
    words = f"{slices.CONVENTION} Slices through ({where}) mm, right, anterior and superior positive."
    return f"<div class='pictures'>{''.join(figures)}</div><p class='quiet'>{escape(words)}</p>"


def _notes(report: CaseReport) -> str:
    if not report.notes:
        return ""
    return f"<h2>Unlike its cohort</h2><ul>{''.join(f'<li>{escape(note)}</li>' for note in report.notes)}</ul>"


def _table(report: CaseReport) -> str:
    rows = report.table.sort_values("value", ascending=False, na_position="last").to_dict("records")
    rows = [{**row, "organ": organ_of(report.labels, row["region"])} for row in rows]
    top = max((float(row["value"]) for row in rows if pd.notna(row["value"])), default=1.0) or 1.0
    numbers = "".join(f"<th class='n'>{name}</th>" for name in ("This case", "Cohort median", "5–95 %"))
    head = f"<tr><th>Region</th><th></th>{numbers}</tr>"
    colors = group_colors(report.labels)
    told = [(row["organ"].title, colors.get(row["organ"].group, GREY), row) for row in rows]
    if report.masked is not None:
        masks = report.masked.dropna(subset="value")
        told += [(title, MASKED, row) for title, row in zip(mask_titles(masks), masks.to_dict("records"), strict=True)]
    return f"<table>{head}{''.join(_row(report.measure, top, *one) for one in told)}</table>"


def _row(measure: str, top: float, title: str, color: str, row: dict) -> str:
    if pd.isna(row["value"]):
        return f"<tr><td>{escape(title)}</td><td colspan='4'>{escape(str(row['absent']))}</td></tr>"
    bar = f"<div class='bar' style='width:{min(12 * row['value'] / top, 12):.2f}rem;background:{color}'></div>"
    value, median, low, high = (number(row[name], measure) for name in ("value", "median", "q05", "q95"))
    if pd.notna(row.get("error")):
        value += f" ± {number(INTERVAL * row['error'], measure)}"
    numbers = "".join(f"<td class='n'>{text}</td>" for text in (value, median, f"{low} to {high}"))
    return f"<tr><td>{escape(title)}</td><td>{bar}</td>{numbers}</tr>"
