"""The compute panel: explain this case, watch and stop what runs, bring a scan of one's own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import streamlit as st

from agg2exp_core import volumes
from agg2exp_core.files import make_folder, read_json, sync_file, sync_folder
from agg2exp_core.jobs import estimate, queue
from agg2exp_core.jobs.estimate import duration
from agg2exp_core.jobs.queue import JobState, Request
from agg2exp_core.organs import LabelSet
from agg2exp_core.records import PERTURBING, InputError, Method
from agg2exp_core.settings import list_models
from agg2exp_core.store import cohorts
from agg2exp_core.store.cohorts import Case
from dashboard import access, data, uploads, words
from dashboard.charts import common
from dashboard.views import effort, methods

UPLOADS = "uploads"
STATUS = {
    "queued": ("waiting", "gray"),
    "running": ("running", "blue"),
    "done": ("done", "green"),
    "failed": ("failed", "red"),
    "cancelled": ("stopped", "gray"),
}
ALL_THERE = "All of it is there already: only what a scan lacks is computed."
NO_TIME = " How long that takes is known once this model has explained a scan on this machine."
SHOWN_JOBS = 3
SHOWN_FAILED = 5
LATELY_SECONDS = 3600.0
WATCHED = "compute_watched"


@dataclass(frozen=True)
class Subject:
    """What the page shows, and so what a computation would be about. method: that of the run shown.

    labelled: the case has a label map, so that a mask can be made of it.
    """

    root: Path
    cohort: str
    case_id: str
    target: str
    labels: LabelSet
    model: str | None = None
    method: Method | None = None
    labelled: bool = False


def ask(subject: Subject) -> None:
    """The form: method, samples, explained voxels, one organ or all of them, and the button that starts it."""
    if access.keeps_from("To explain a scan", "operator"):
        return
    models = list_models(subject.root)
    if not models:
        st.info("No model is here yet, so nothing can be computed. `agg2exp demo` brings one.")
        return
    index = models.index(subject.model) if subject.model in models else 0
    model = (
        st.selectbox("Model", models, index=index, key="compute_model", format_func=words.model_title)
        if len(models) > 1
        else models[0]
    )
    title = common.organ_of(subject.labels, subject.target).title
    if told := described(subject.root, model):
        st.caption(words.plain(told))
    usual = subject.method or effort.EFFORTS["Quick look"]
    method = methods.ask_method(usual)
    measured = estimate.measured(subject.root, model)
    method = replace(
        method,
        mask=methods.ask_mask(usual.mask) if subject.labelled else "prediction",
        precision=methods.ask_precision(measured) if method.name not in PERTURBING else "float32",
    )
    if told := unfit(subject.root, model, [cohorts.find_case(subject.root, subject.cohort, subject.case_id)]):
        st.info(words.plain(told))
        return
    scope = st.radio("Organs", [title, "All organs"], format_func=words.plain, horizontal=True, key="compute_scope")
    targets = (subject.target,) if scope == title else ()
    submit_button(subject.root, Request(subject.cohort, subject.case_id, model, method, targets), "Explain")


def submit_button(root: Path, request: Request, label: str) -> None:
    """What the request takes, and the button that starts it unless that cannot fit."""
    fits = True
    try:
        needed = estimate.estimate(root, request)
        known = "" if needed.seconds is not None else NO_TIME
        st.caption(f"{needed}.{known}" if needed.scans else ALL_THERE)
    except InputError as error:
        words.refuse(error)
        fits = False
    if st.button(
        label, type="primary", icon=":material/bolt:", width="stretch", key="compute_start", disabled=not fits
    ):
        access.require("operator")
        queue.submit(root, request)
        st.rerun()


def described(root: Path, model: str) -> str:
    """What the bundle's metadata says the model is, and what it is for."""
    metadata = read_json(root / "models" / model / "configs" / "metadata.json")
    return " ".join(str(metadata[name]) for name in ("description", "intended_use") if metadata.get(name))


def unfit(root: Path, model: str, cases: Sequence[Case]) -> str:
    """Why none of these scans can be given to the model, in words; empty where one can."""
    wanted, scans = _channels(root, model), [case for case in cases if case.images]
    if not scans or any(len(case.images) == wanted for case in scans):
        return ""
    found = len(scans[0].images)
    has = "has one image" if found == 1 else f"has {found} images"
    needs = "one image a scan" if wanted == 1 else f"{wanted} images a scan, one for each channel"
    return f"{words.model_title(model)} takes {needs}; {scans[0].case_id} {has}. Choose another model."


def _channels(root: Path, model: str) -> int:
    """As the bundle's metadata tells, or one; what is wrong with it is told where the bundle is read."""
    try:
        image = read_json(root / "models" / model / "configs" / "metadata.json")["network_data_format"]["inputs"][
            "image"
        ]
        return int(image.get("num_channels") or max(len(image.get("channel_def") or ()), 1))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return 1


def jobs(root: Path, labels: LabelSet, here: tuple[str, str] | None) -> None:
    """What runs and what ended lately; looks again every second while something runs.

    here: cohort and case on the page. When a job about it ends, the page turns to its result.
    """
    access.fragment(_jobs, run_every=1.0 if is_running(root) else None)(root, labels, here)


def is_running(root: Path) -> bool:
    """Whether a job waits or runs."""
    return any(not job.finished for job in queue.list_jobs(root))


@words.told
def _jobs(root: Path, labels: LabelSet, here: tuple[str, str] | None) -> None:
    queue.tend(root)
    known = queue.list_jobs(root)
    unfinished = [job for job in known if not job.finished]
    ended = [job for job in known if job.finished]
    watched = st.session_state.get(WATCHED, ())
    st.session_state[WATCHED] = tuple(job.job_id for job in unfinished)
    for job in ended:
        if job.job_id in watched:
            if job.result and (job.request.cohort, job.request.case_id) == here:
                open_result(job)
            st.rerun(scope="app")
    told = [job for job in ended if (job.request.cohort, job.request.case_id) == here or _lately(job)]
    for job in [*unfinished, *told[: max(SHOWN_JOBS - len(unfinished), 1)]]:
        job_card(root, labels, job)


def _lately(job: JobState) -> bool:
    """Whether it was asked for so lately that who looks at another case wants to hear how it ended."""
    return time.time() - job.created < LATELY_SECONDS


def open_result(job: JobState) -> None:
    """Let the page's link name what the job computed, and draw it."""
    data.forget()
    st.query_params.update(result_link(job))
    st.rerun(scope="app")


def result_link(job: JobState) -> dict[str, str]:
    """The case that a job computed, as a link of the Case page names it."""
    assert job.result is not None
    link = {name: job.result[value] for name, value in (("cohort", "cohort"), ("run", "run"), ("case", "case_id"))}
    return link | ({"target": job.request.targets[0]} if job.request.targets else {})


def job_card(
    root: Path,
    labels: LabelSet,
    job: JobState,
    before: int = 0,
    opening: Callable[[JobState], None] = open_result,
) -> None:
    """One job: what it is, how far it is, and what can be done about it.

    before: jobs that were asked for earlier. opening: shows what a job computed.
    """
    with st.container(border=True, key=f"job_{job.job_id}", gap="small"):
        st.markdown(_headline(labels, job))
        if not job.finished:
            ahead = f" · {before} before it" if before and job.status == "queued" else ""
            st.progress(min(job.done / job.total, 1.0) if job.total else 0.0, text=_pace(job) + ahead)
            with st.container(horizontal=True, gap="small"):
                if access.may("operator"):
                    _stop_button(root, job)
                _log(root, job)
        elif job.status == "done" and job.result:
            if st.button("Open", key=f"open_{job.job_id}", icon=":material/visibility:"):
                opening(job)
        elif job.status == "failed":
            words.refuse(job.reason)
            for case_id, reason in list(job.failed.items())[:SHOWN_FAILED]:
                st.caption(f"{words.plain(case_id)}: {words.plain(reason)}")
            with st.container(horizontal=True, gap="small"):
                if access.may("operator"):
                    again = replace(job.request, only=tuple(job.failed) or job.request.only)
                    _again_button(root, job, again, "Try these again" if job.failed else "Try again")
                _log(root, job)
        elif job.status == "cancelled" and access.may("operator"):
            _again_button(root, job, job.request, "Go on")


def _again_button(root: Path, job: JobState, request: Request, label: str) -> None:
    """Asks for all or a part of the job's request once more; what it had finished is not computed again."""
    if st.button(label, key=f"again_{job.job_id}", icon=":material/replay:"):
        access.require("operator")
        queue.submit(root, request)
        st.rerun(scope="app")


def _log(root: Path, job: JobState) -> None:
    with st.popover("Log"):
        st.code(queue.log(root, job.job_id) or "Nothing was printed.", language=None, wrap_lines=True)


def _stop_button(root: Path, job: JobState) -> None:
    asked = f"stopping_{job.job_id}"
    stopping = st.session_state.get(asked, False)
    label = "Stopping …" if stopping else "Stop"
    if st.button(label, key=f"stop_{job.job_id}", disabled=stopping, icon=":material/stop_circle:"):
        access.require("operator")
        st.session_state[asked] = True
        queue.cancel(root, job.job_id)
        st.rerun(scope="fragment")


def _headline(labels: LabelSet, job: JobState) -> str:
    organs = ", ".join(words.plain(common.organ_of(labels, name).title) for name in job.request.targets) or "All organs"
    method = job.request.method
    word, color = STATUS[job.status]
    how = [methods.method_words(method), *methods.mask_words(method), words.model_title(job.request.model)]
    what = ", ".join([organs, *map(words.plain, how)])
    scans = f"{len(job.request.only)} scans" if job.request.only else "all scans"
    subject = job.request.case_id or f"{job.request.cohort}, {scans}"
    return f"**{words.plain(subject)}** :{color}-badge[{word}]  \n{what}"


def _pace(job: JobState) -> str:
    parts = [words.plain(job.note)] if job.note else []
    if job.seconds_left is not None:
        parts.append(f"about {duration(job.seconds_left)} left")
    return " · ".join(parts) or "starting"


def upload(root: Path) -> None:
    """Take a NIfTI scan into the cohort `uploads` and show it."""
    if access.keeps_from("To bring a scan", "operator"):
        return
    uploads.invite()
    file = st.file_uploader("NIfTI scan (.nii, .nii.gz), HU", type=["nii", "gz"], key="upload_file")
    if file is None or st.session_state.get("upload_seen") == file.file_id:
        return
    st.session_state["upload_seen"] = file.file_id
    try:
        with st.spinner("Checking the scan …"):
            case_id = take_in(root, file.name, file)
    except InputError as error:
        st.session_state["upload_seen"] = None
        words.refuse(error)
        return
    data.forget()
    for name in ("run", "target", "at"):
        st.query_params.pop(name, None)
    st.query_params["cohort"], st.query_params["case"] = UPLOADS, case_id
    st.rerun()


def take_in(root: Path, name: str, content: IO[bytes]) -> str:
    """Check an uploaded scan, store it as a case of the cohort `uploads` and return its id.

    The id is `scan-` and digits of the hash of the bytes: the same file brought twice is the same case, and no other
    one is. The file's name, which may be the patient's, is written nowhere.
    """
    ending = next((ending for ending in (".nii.gz", ".nii") if name.lower().endswith(ending)), None)
    if ending is None:
        raise InputError("a scan must be a NIfTI file", repr(name), ".nii or .nii.gz")
    images = root / "cohorts" / UPLOADS / "images"
    content.seek(0)
    digest = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    case_id = f"scan-{digest[:16]}"
    root.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root, prefix=".incoming-") as folder:
        arrived = Path(folder) / f"scan{ending}"
        content.seek(0)
        with arrived.open("wb") as file:
            while block := content.read(2**22):
                file.write(block)
        volumes.check_scan(arrived)
        make_folder(images)
        sync_file(arrived)
        arrived.replace(images / f"{case_id}{ending}")
        sync_folder(images)
    row: dict[str, Any] = {"case_id": case_id, "image": f"images/{case_id}{ending}", "label": ""}
    cohorts.append_case(root, UPLOADS, row)
    return case_id
