"""A case as one HTML file that needs nothing else: pictures, importance organ by organ, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

import pandas as pd

from agg2exp_core.organs import LabelSet
from dashboard.charts.common import GREY, group_colors, number, organ_of
from dashboard.viewer import slices, still
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Look, Scene

DEFINITIONS = (
    "Attribution says how much each voxel moved the model's output for the target organ, the sum of its scores over "
    "the voxels given to it. Share is the absolute attribution on a region divided by that on the whole scan; the "
    "cohort's values are those of the same run. Dice is the overlap of prediction and label."
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
    """What a report tells. table: as `queries.case_importance` gives it, shares. facts: name → value, as shown.

    at: the voxel that the pictures go through. notes: sentences on how this case differs.
    """

    title: str
    target: str
    labels: LabelSet
    facts: dict[str, str]
    table: pd.DataFrame
    scene: Scene | None = None
    at: Voxel | None = None
    look: Look = field(default_factory=Look)
    notes: Sequence[str] = ()


def case_report(report: CaseReport) -> str:
    """The HTML text. Names, metadata and notes are escaped."""
    organ = organ_of(report.labels, report.target).title
    facts = " · ".join(f"{escape(name)} <b>{escape(value)}</b>" for name, value in report.facts.items())
    parts = [f"<h1>{escape(report.title)}: {escape(organ)}</h1><p>{facts}</p>", _pictures(report), _notes(report)]
    parts += [f"<h2>Attribution of {escape(organ)}, organ by organ</h2>", _table(report)]
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
    top = max((float(row["value"]) for row in rows if pd.notna(row["value"])), default=1.0) or 1.0
    numbers = "".join(f"<th class='n'>{name}</th>" for name in ("This case", "Cohort median", "5–95 %"))
    head = f"<tr><th>Region</th><th></th>{numbers}</tr>"
    return f"<table>{head}{''.join(_row(row, report.labels, top) for row in rows)}</table>"


def _row(row: dict, labels: LabelSet, top: float) -> str:
    organ = organ_of(labels, row["region"])
    if pd.isna(row["value"]):
        return f"<tr><td>{escape(organ.title)}</td><td colspan='4'>{escape(str(row['absent']))}</td></tr>"
    color = group_colors(labels).get(organ.group, GREY)
    bar = f"<div class='bar' style='width:{12 * row['value'] / top:.2f}rem;background:{color}'></div>"
    value, median, low, high = (number(row[name], "mass") for name in ("value", "median", "q05", "q95"))
    numbers = "".join(f"<td class='n'>{text}</td>" for text in (value, median, f"{low} to {high}"))
    return f"<tr><td>{escape(organ.title)}</td><td>{bar}</td>{numbers}</tr>"
