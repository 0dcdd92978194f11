"""The Runs page: what is being computed, what was, and a whole cohort explained at a click."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from agg2exp_core.jobs import estimate, queue
from agg2exp_core.jobs.queue import JobState, Request
from agg2exp_core.records import PERTURBING, Method
from agg2exp_core.settings import data_root, list_models
from agg2exp_core.store import cohorts
from dashboard import access, data, words
from dashboard.views import case, choosing, cohort, compute, effort, methods

SHOWN_JOBS = 20
NOTHING, HOW = "Nothing is being computed.", "Explain a cohort at the left, or one scan on the Case page."


@words.told
def page() -> None:
    """Draw the page."""
    root = data_root()
    with st.sidebar:
        _ask(root)
    st.markdown("### Runs")
    # Looks again every second while something runs, without the rest of the page.
    access.fragment(_jobs, run_every=1.0 if compute.is_running(root) else None)(root)
    _finished(root)


# ---- a cohort ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What the form asks for."""

    cohort: str
    scans: int
    model: str
    method: Method


def _ask(root: Path) -> None:
    """The form: which scans, which model, which method; and how long it will take."""
    st.markdown("##### Explain a cohort")
    if access.keeps_from("To explain a cohort", "operator"):
        return
    known = list(data.cohorts(root)["cohort"])
    models = list_models(root)
    if not known or not models:
        st.info(choosing.NO_COHORT if not known else "No model is here yet. `agg2exp model add` takes one in.")
        return
    wish = _wish(root, known, models)
    if not wish.scans:
        st.info("No scan of this cohort is stored here, only its table, so that there is nothing to compute.")
        return
    if told := compute.unfit(root, wish.model, cohorts.list_cases(root, wish.cohort)):
        st.info(words.plain(told))
        return
    st.caption("Scans that this run has already are not computed again, so a stopped run can simply be started anew.")
    label = f"Explain {wish.scans} scans" if wish.scans != 1 else "Explain 1 scan"
    compute.submit_button(root, Request(wish.cohort, "", wish.model, wish.method), label)


def _wish(root: Path, known: list[str], models: list[str]) -> Wish:
    chosen = st.selectbox("Cohort", known, key="runs_cohort")
    model = (
        st.selectbox("Model", models, key="compute_model", format_func=words.model_title)
        if len(models) > 1
        else models[0]
    )
    method = methods.ask_method(effort.EFFORTS["Quick look"])
    measured = estimate.measured(root, model)
    precision = methods.ask_precision(measured) if method.name not in PERTURBING else "float32"
    scans = int((cohorts.read_cases(root, chosen)["image"] != "").sum())
    return Wish(chosen, scans, model, replace(method, precision=precision))


# ---- jobs ----------------------------------------------------------------------------------------


@words.told
def _jobs(root: Path) -> None:
    queue.tend(root)
    known = queue.list_jobs(root)
    unfinished = [job for job in reversed(known) if not job.finished]
    watched = st.session_state.get("runs_watched", ())
    st.session_state["runs_watched"] = tuple(job.job_id for job in unfinished)
    if set(watched) - set(st.session_state["runs_watched"]):
        data.forget()
        st.rerun(scope="app")
    if not unfinished:
        st.caption(f"{NOTHING} {HOW}" if access.may("operator") else NOTHING)
    for place, job in enumerate(unfinished):
        compute.job_card(root, data.labels(root, job.request.cohort, {}), job, before=place)
    ended = [job for job in known if job.finished][: max(SHOWN_JOBS - len(unfinished), 1)]
    if ended:
        with st.expander(f"Ended: {_counted(ended)}", expanded=not unfinished and ended[0].status == "failed"):
            for job in ended:
                compute.job_card(root, data.labels(root, job.request.cohort, {}), job, opening=_open)


def _open(job: JobState) -> None:
    data.forget()
    st.switch_page(st.Page(case.page, url_path="case"), query_params=compute.result_link(job))


def _counted(ended: list[JobState]) -> str:
    counts = pd.Series([compute.STATUS[job.status][0] for job in ended]).value_counts()
    return ", ".join(f"{count} {word}" for word, count in counts.items())


# ---- what is there -------------------------------------------------------------------------------


def _finished(root: Path) -> None:
    """Every run of every cohort; a click opens it."""
    rows: list[dict[str, Any]] = []
    known = data.cohorts(root)
    for name, scans in zip(known["cohort"], known["cases"].astype(int), strict=True):
        for record in data.run_records(root, name).values():
            done = int(record["listed"])
            row = {"cohort": name, "method": choosing.run_title(record), "model": str(record.get("model") or "–")}
            rows.append(row | {"done": 100 * done / max(scans, 1), "scans": f"{done} of {scans}", "run": record["run"]})
    if not rows:
        return
    st.markdown("##### Explained so far", help="Click a run to see what its model looks at.")
    table = pd.DataFrame(rows)
    columns = {
        "cohort": "Cohort", "method": "Run", "model": None, "run": None, "scans": "Scans",
        "done": st.column_config.ProgressColumn("Explained", min_value=0, max_value=100, format="%.0f %%"),
    }  # fmt: skip
    event = st.dataframe(
        table[["cohort", "method", "scans", "done", "model", "run"]], hide_index=True, column_config=columns,
        key="runs_table", on_select="rerun", selection_mode="single-cell",
    )  # fmt: skip
    if event["selection"]["cells"]:
        chosen = rows[event["selection"]["cells"][0][0]]
        link = {name: str(chosen[name]) for name in ("cohort", "run")}
        st.switch_page(st.Page(cohort.page, default=True), query_params=link)
