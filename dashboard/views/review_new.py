"""A new review session: which cases, which organs, blinded or open."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import streamlit as st

from agg2exp_core.organs import BACKGROUND
from agg2exp_core.records import InputError
from agg2exp_core.store import cohorts, lists, results, reviews
from agg2exp_core.store.reviews import Session
from dashboard import access, data, filters, words
from dashboard.address import Address
from dashboard.charts import common
from dashboard.filters import Choice
from dashboard.views import choosing

ADDRESS = Address("review", "new")
LINKED, REFUSED = "review_new_linked", "review_new_refused"
MODES = {"blinded": "Blinded", "open": "Open"}
MODE_HELP = (
    "**Blinded**: reviewers judge the segmentation first, then see where the evidence lies and judge again. "
    "**Open**: the evidence is in view from the start, one verdict an item."
)
NO_SCAN = (
    "Reviewers look at scans, and here are none to show. Choose another cohort or run. For these cases, "
    "`agg2exp cohort add` takes the scans in and `agg2exp explain --cohort` segments them; a table of importances "
    "alone can be read on the other pages."
)
SEED = 1
NAMED, ON_TRUST = "Their e-mail addresses, as they sign in.", "Names are taken on trust; there is no login."


@dataclass(frozen=True)
class Source:
    """Where the cases come from."""

    title: str
    cases: tuple[str, ...]
    list_name: str = ""


def take_link(wanted: list[str] | None, cohort: list[str] | None) -> bool:
    """Begin with the cohort that was shown last, and keep the cases that a link brings; whether it brought any."""
    if cohort:
        st.session_state[ADDRESS.key("cohort")] = cohort[0]
    if wanted and cohort:
        st.session_state[LINKED] = (cohort[0], tuple(dict.fromkeys(wanted)))
    return bool(wanted and cohort)


def draw(root: Path, leave: str | None) -> str | None:
    """The form; the new session's name once it is made. leave: the session to go back to, if any."""
    st.markdown("### New review session")
    known = list(data.cohorts(root)["cohort"])
    if not known:
        st.info(choosing.NO_COHORT)
        return None
    left, right = st.columns(2, gap="large", border=True)
    with left:
        chosen = _cases(root, known)
    if chosen is None:
        return None
    cohort, run, source, reviewable = chosen
    with right:
        return _terms(root, cohort, run, source, reviewable)


def _cases(root: Path, known: list[str]) -> tuple[str, str, Source, tuple[str, ...]] | None:
    """Cohort, run, source, and its cases that have a scan and a segmentation."""
    st.markdown("##### What is reviewed")
    cohort = filters.pick_one(ADDRESS, Choice("Cohort", "cohort"), known)
    records = data.run_records(root, cohort or known[0])
    run = choosing.run_box(ADDRESS, records)
    if cohort is None or run is None:
        st.info("Nothing in this cohort is explained yet: press **Explain** on the Case page first.")
        return None
    sources = _sources(root, cohort)
    names = [source.title for source in sources]
    picked = filters.pick_one(ADDRESS, Choice("Cases", "source", text="A saved list, or all of the cohort."), names)
    source = sources[names.index(picked or names[0])]
    reviewable = _reviewable(root, cohort, run, source.cases)
    gone = len(source.cases) - len(reviewable)
    has = "**1 case** has" if len(reviewable) == 1 else f"**{len(reviewable)} cases** have"
    left_out = f" {gone} more {'does' if gone == 1 else 'do'} not and {'is' if gone == 1 else 'are'} left out."
    st.markdown(f"{has} a scan and a segmentation of this run.{left_out if gone else ''}")
    if not reviewable:
        st.info(NO_SCAN, icon=":material/image_not_supported:")
    return cohort, run, source, reviewable


def _sources(root: Path, cohort: str) -> list[Source]:
    cases = tuple(cohorts.read_cases(root, cohort)["case_id"])
    found = [
        Source(f"List {one.name} ({len(one.cases)})", one.cases, one.name) for one in lists.list_lists(root, cohort)
    ]
    linked = st.session_state.get(LINKED)
    if linked and linked[0] == cohort:
        some = tuple(case for case in cases if case in linked[1])
        found.insert(0, Source(f"The cases of the link ({len(some)})", some))
    return [*found, Source(f"The whole cohort ({len(cases)})", cases)]


def _reviewable(root: Path, cohort: str, run: str, cases: tuple[str, ...]) -> tuple[str, ...]:
    """Those with a scan and a segmentation of the run; a list may also name cases that have left the cohort."""
    scans = {case.case_id: case.image for case in cohorts.list_cases(root, cohort)}

    def has_both(case_id: str) -> bool:
        image = scans.get(case_id)
        stored = results.case_path(root, cohort, run, case_id) / results.PREDICTION
        return image is not None and image.is_file() and stored.is_file()

    return tuple(case_id for case_id in cases if has_both(case_id))


def _terms(root: Path, cohort: str, run: str, source: Source, cases: tuple[str, ...]) -> str | None:
    st.markdown("##### How")
    labels = data.labels(root, cohort, data.run_records(root, cohort)[run])
    organs = [name for name in data.targets(root, cohort, run) if name != BACKGROUND]
    targets = st.multiselect(
        "Organs", organs, default=organs[:1], key=f"review_new_targets_{cohort}_{run}",
        format_func=lambda name: common.organ_of(labels, name).title, help="Each is judged on its own, in every case.",
    )  # fmt: skip
    drawn = sum(
        (results.case_path(root, cohort, run, case_id) / results.map_name(target)).is_file()
        for case_id in cases for target in targets
    )  # fmt: skip
    if drawn < len(cases) * len(targets):
        st.caption(
            f"An attribution map is stored for {drawn} of these {len(cases) * len(targets)}; of the others, the "
            "evidence is shown as shares only."
        )
    mode = filters.segments("Evidence", "review_new_mode", MODES, "blinded", MODE_HELP)
    shuffled = st.toggle("Another order for each reviewer", value=True, key="review_new_shuffled",
                         help="Cases are shuffled, so that tiring does not always meet the same ones.")  # fmt: skip
    expected = st.text_input(
        "Reviewers, separated by commas", key="review_new_reviewers", placeholder="anyone",
        help=f"Optional: only these may give verdicts then. {NAMED if access.person() else ON_TRUST}",
    )  # fmt: skip
    name = st.text_input(
        "Name of the session", value=_free_name(root, source.list_name or cohort),
        key=f"review_new_name_{source.title}",
        help="Letters, digits and _ . -; blanks become -. It is a folder’s name.",
    )  # fmt: skip
    count = len(cases) * len(targets)
    session = Session(
        words.as_name(name), cohort, run, tuple(targets), cases, mode, source.list_name,
        tuple(one for one in expected.split(",") if one.strip()), SEED if shuffled else None,
    )  # fmt: skip
    pressed = st.button(
        f"Create, {count} to judge", key="review_create", type="primary", icon=":material/add:", disabled=not count
    )
    if pressed:
        try:
            access.require("reviewer")
            return reviews.create_session(root, session).name
        except InputError as error:
            words.refuse(error)
    return None


def _free_name(root: Path, stem: str) -> str:
    taken = set(reviews.list_sessions(root))
    name = f"{stem[:48]}-{date.today():%Y-%m-%d}"
    return next(one for one in (name, *(f"{name}-{n}" for n in range(2, len(taken) + 3))) if one not in taken)
