"""A review session to hand on: tables for a CSV, and one HTML file that needs nothing else to be read."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from html import escape
from typing import Any

import pandas as pd

from agg2exp_core.analysis import raters
from agg2exp_core.analysis.raters import Agreement, Outcome
from agg2exp_core.organs import LabelSet, plain_name
from agg2exp_core.store.reviews import VERDICTS, Item, Session, Verdict, Verdicts

Picture = Callable[[Item], bytes | None]
"""A PNG of the item, or None where there is nothing to draw."""

PHASE_TITLES = {"segmentation": "before the evidence", "final": "final", "adjudication": "adjudication"}
COLUMNS = (
    "session", "cohort", "run", "case_id", "target", "phase", "reviewer", "verdict", "tags", "note", "given", "seconds",
    "holds", "independent", "replaces", "file", "scan_sha256", "prediction_sha256", "saliency_sha256",
    "importance_sha256", "model_hash", "window", "map",
)  # fmt: skip
CSS = """
body { font: 15px/1.45 system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif; color: #17212b; margin: 2rem auto;
  max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin: 1.8rem 0 0.5rem; }
p.about { color: #51606d; margin-top: 0; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 0.25rem 0.9rem 0.25rem 0;
  border-bottom: 1px solid #dde3e6; vertical-align: top; } th { font-weight: 600; color: #51606d; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
article { display: flex; gap: 1.2rem; padding: 0.9rem 0; border-top: 1px solid #dde3e6; break-inside: avoid; }
article img, article .none { width: 190px; flex: none; align-self: flex-start; border-radius: 4px; }
article .none { background: #eef3f4; color: #51606d; padding: 3rem 0; text-align: center; }
article h3 { margin: 0 0 0.4rem; font-size: 1.02rem; } article p { margin: 0.25rem 0; }
.note { white-space: pre-wrap; } .meta { color: #51606d; font-size: 0.86rem; }
.verdict { display: inline-block; padding: 0 0.5rem; border-radius: 0.6rem; font-weight: 600; background: #eef3f4; }
.accept { background: #d5efe6; color: #0b5a47; } .correct { background: #fdeccb; color: #6d4500; }
.reject { background: #fbdcd9; color: #8c1d18; } .unsure { background: #e4e7ea; color: #3c4650; }
.split { background: #e6defa; color: #4b2a91; } .damaged { color: #8c1d18; }
"""


# ---- tables ----------------------------------------------------------------------------------------


def verdict_table(verdicts: Verdicts) -> pd.DataFrame:
    """One row a verdict, replaced ones as well, oldest first. holds: nothing replaced it."""
    holding = {one.file for one in verdicts.current}
    return pd.DataFrame([_row(one, one.file in holding) for one in verdicts.given], columns=list(COLUMNS), dtype=object)


def summary_table(session: Session, verdicts: Verdicts) -> pd.DataFrame:
    """One row an item: case_id, target, the final verdict of each reviewer, adjudication, outcome."""
    rows = []
    for outcome in raters.outcomes(session, verdicts):
        said = {f"verdict of {name}": _said(outcome, name) for name in verdicts.reviewers}
        settled = outcome.adjudication
        rows.append(
            {"case_id": outcome.item.case, "target": outcome.item.target, **said}
            | {"adjudication": settled.verdict if settled else "", "reason": settled.note if settled else ""}
            | {"outcome": outcome.verdict or "open"}
        )
    return pd.DataFrame(rows, dtype=object)


def _row(one: Verdict, holds: bool) -> dict[str, Any]:
    told = {name: getattr(one, name) for name in COLUMNS if hasattr(one, name)}
    return told | {
        "case_id": one.case, "tags": "; ".join(one.tags), "holds": "yes" if holds else "no",
        "independent": "yes" if one.independent else "no", "scan_sha256": one.seen.scan,
        "prediction_sha256": one.seen.prediction, "saliency_sha256": one.seen.saliency,
        "importance_sha256": one.seen.importance, "model_hash": one.seen.model,
        "window": one.seen.settings.get("window"), "map": one.seen.settings.get("map"),
    }  # fmt: skip


def _said(outcome: Outcome, reviewer: str) -> str:
    return outcome.finals[reviewer].verdict if reviewer in outcome.finals else ""


# ---- HTML ------------------------------------------------------------------------------------------


def html(session: Session, verdicts: Verdicts, labels: LabelSet, picture: Picture) -> str:
    """The whole session as one page: agreement, then every item with its picture, verdicts and notes.

    Nothing in it is fetched or run: a policy in its head forbids it, and all text of users is escaped.
    """
    titles = {organ.name: organ.title for organ in labels.organs}
    items = "".join(_item(outcome, verdicts, titles, picture) for outcome in raters.outcomes(session, verdicts))
    return (
        "<!DOCTYPE html><html lang='en'><head><meta charset='utf-8'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>Review {escape(session.name)}</title><style>{CSS}</style></head><body>"
        f"{_head(session, titles)}{_damaged(verdicts)}{_progress(session, verdicts)}{_agreement(session, verdicts)}"
        f"{_organs(session, verdicts, titles)}<h2>Case by case</h2>{items}</body></html>\n"
    )


def _head(session: Session, titles: dict[str, str]) -> str:
    organs = ", ".join(titles.get(name, plain_name(name)) for name in session.targets)
    source = f"list {session.list_name}, cohort {session.cohort}" if session.list_name else f"cohort {session.cohort}"
    how = "blinded: the evidence was hidden until the segmentation was judged" if session.blinded else "open"
    about = f"{source}, run {session.run}; {organs}; {len(session.cases)} cases; {how}; begun {session.created[:10]}"
    return f"<h1>Review {escape(session.name)}</h1><p class='about'>{escape(about)}</p>"


def _damaged(verdicts: Verdicts) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in verdicts.damaged)
    return f"<div class='damaged'><h2>Files that could not be used</h2><ul>{lines}</ul></div>" if lines else ""


def _progress(session: Session, verdicts: Verdicts) -> str:
    changed = raters.changed_by_evidence(verdicts).set_index("reviewer")
    rows = []
    for row in raters.progress(session, verdicts).to_dict("records"):
        time = row["seconds"]
        cells = [row["reviewer"], f"{row['done']} of {row['total']}", "–" if pd.isna(time) else f"{time:.0f} s"]
        if session.blinded:
            known = row["reviewer"] in changed.index and changed.loc[row["reviewer"], "items"]
            cells.append(f"{changed.loc[row['reviewer'], 'changed']} of {known}" if known else "–")
        rows.append(cells)
    header = ["Reviewer", "Done", "Median time"] + (["Changed by the evidence"] if session.blinded else [])
    return "<h2>Reviewers</h2>" + _table(header, rows)


def _agreement(session: Session, verdicts: Verdicts) -> str:
    parts = ["<h2>Agreement</h2>"]
    rows = [row for phase in session.phases for row in agreement_rows(verdicts, phase)]
    if not rows:
        return "".join(parts) + "<p>One reviewer so far.</p>"
    header = ["Verdict", "Reviewers", "Items", "Same verdict", "Cohen’s κ"]
    parts.append(_table(header, rows))
    parts.append(
        "<p class='meta'>κ = (p<sub>o</sub> − p<sub>e</sub>) ÷ (1 − p<sub>e</sub>), unweighted, over the items that "
        "both judged without knowing the other’s verdict: 1 is full agreement, 0 that of chance. Undefined where both "
        "gave one and the same verdict to all.</p>"
    )
    for pair in raters.pairs(verdicts, "final"):
        parts.append(_confusion(pair))
    return "".join(parts)


def agreement_rows(verdicts: Verdicts, phase: str) -> list[list[str]]:
    """Every two reviewers in words: phase, names, items, share, κ."""
    return [
        [PHASE_TITLES[phase], f"{pair.first}, {pair.second}", str(pair.items), percent(pair.same), kappa(pair)]
        for pair in raters.pairs(verdicts, phase)
    ]


def percent(share: float | None) -> str:
    """A share in words; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.0f} %"


def kappa(pair: Agreement) -> str:
    """κ to two digits; undefined where both gave one and the same verdict to all, a dash where no item is shared."""
    if pair.kappa is not None:
        return f"{pair.kappa:.2f}".replace("-", "−")
    return "undefined" if pair.items else "–"


def _confusion(pair: Agreement) -> str:
    header = [f"{pair.first} ↓  {pair.second} →", *VERDICTS.values()]
    rows = [[title, *map(str, row)] for title, row in zip(VERDICTS.values(), pair.confusion.values, strict=True)]
    return "<p></p>" + _table(header, rows)


def _organs(session: Session, verdicts: Verdicts, titles: dict[str, str]) -> str:
    rows = [
        [titles.get(row["target"], plain_name(row["target"])), row["reviewer"], *(str(row[name]) for name in VERDICTS)]
        for row in raters.counts(session, verdicts).sort_values(["target", "reviewer"]).to_dict("records")
    ]
    header = ["Organ", "Reviewer", *VERDICTS.values()]
    return "<h2>Organ by organ</h2>" + _table(header, rows)


def _item(outcome: Outcome, verdicts: Verdicts, titles: dict[str, str], picture: Picture) -> str:
    item, png = outcome.item, picture(outcome.item)
    title = f"{item.case}: {titles.get(item.target, plain_name(item.target))}"
    image = (
        f"<img alt='{escape(title)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"
        if png
        else "<div class='none'>no picture</div>"
    )
    said = "".join(_verdict(one) for one in verdicts.current if one.item == item) or "<p class='meta'>not reviewed</p>"
    outcome_ = outcome.verdict or "open"
    return f"<article>{image}<div><h3>{escape(title)} {_badge(outcome_)}</h3>{said}</div></article>"


def _verdict(one: Verdict) -> str:
    about = [PHASE_TITLES[one.phase], one.given[:16].replace("T", " "), *one.tags]
    if not one.independent:
        about.append("given after seeing other verdicts")
    note = f"<p class='note'>{escape(one.note)}</p>" if one.note else ""
    return (
        f"<p><b>{escape(one.reviewer)}</b> {_badge(one.verdict)} "
        f"<span class='meta'>{escape(' · '.join(about))}</span></p>{note}"
    )


def _badge(verdict: str) -> str:
    title = VERDICTS.get(verdict) or verdict.capitalize()
    return f"<span class='verdict {escape(verdict)}'>{escape(title)}</span>"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
