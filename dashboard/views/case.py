"""The Case page: one scan, its segmentation, where the evidence lies, and how this case stands in its cohort."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from agg2exp_core.organs import BACKGROUND, LabelSet
from agg2exp_core.records import InputError, Method, Selection
from agg2exp_core.settings import data_root
from agg2exp_core.store import cohorts, results
from agg2exp_core.store.queries import NO_METADATA, NOT_EXPLAINED
from dashboard import charts, charts_case, data, filters, words
from dashboard.viewer import layers, niivue, slices
from dashboard.viewer.scene import Sources, load_scene
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Legend, Look, Scene, moved_to, stage, stage_data, voxel_inside
from dashboard.views import compute

MAPS = {"signed": "Signed", "absolute": "Absolute", "off": "Hidden"}
STAGE = "case_stage"
VIEWER = "case_viewer"


@dataclass(frozen=True, eq=False)
class Chosen:
    """What the page is about. run and its record are None for a case that nothing has explained."""

    root: Path
    cohort: str
    case: cohorts.Case
    run: str | None
    record: dict[str, Any]
    labels: LabelSet
    target: str

    @property
    def folder(self) -> Path | None:
        """The case's results in the run, if it has any."""
        if self.run is None:
            return None
        folder = self.root / "runs" / self.cohort / self.run / "cases" / self.case.case_id
        return folder if folder.is_dir() else None

    @property
    def map_file(self) -> Path | None:
        """The stored attribution map of the target, if there is one."""
        file = self.folder / "saliency" / f"{self.target}.nii.gz" if self.folder else None
        return file if file is not None and file.is_file() else None

    @property
    def method(self) -> Method | None:
        name, parameters = self.record.get("method"), self.record.get("parameters") or {}
        return Method(name, **parameters) if name in compute.METHODS else None

    def title(self, organ: str) -> str:
        return charts.organ_of(self.labels, organ).title


@words.told
def page() -> None:
    """Draw the page."""
    chosen = _choose(data_root())
    if chosen is None:
        st.info("No cohort is here yet. `agg2exp demo` brings two, or upload a scan at the left.")
        return
    _heading(chosen)
    if chosen.case.image is None:
        _without_image(chosen)
    else:
        _with_image(chosen)


def _with_image(chosen: Chosen) -> None:
    if chosen.folder is None:
        _scan(chosen)
        return
    left, right = st.columns([8, 5], gap="medium")
    with left:
        _scan(chosen)
    with right:
        _importance(chosen)


def _scan(chosen: Chosen) -> None:
    try:
        assert chosen.case.image is not None
        scene = load_scene(Sources(chosen.case.image, chosen.folder, chosen.target), chosen.labels)
    except InputError as error:
        words.refuse(error)
    else:
        _missing(chosen, scene)
        st.fragment(_viewer)(chosen, scene)


def _without_image(chosen: Chosen) -> None:
    st.info(
        "No image is stored for this case: it comes from a table of importances.", icon=":material/image_not_supported:"
    )
    left, right = st.columns([8, 5], gap="medium")
    with left:
        _importance(chosen, dice=False)
    with right:
        _agreement(chosen, expanded=True)


# ---- choosing -------------------------------------------------------------------------------------


def _choose(root: Path) -> Chosen | None:
    """The choosers at the left. The link names what is shown, so a copied link opens the same view."""
    with st.sidebar:
        known = cohorts.list_cohorts(root)
        cohort = _pick("Cohort", known, "cohort") if known else None
        if cohort is None:
            _compute(root, None)
            return None
        cases = list(cohorts.read_cases(root, cohort)["case_id"])
        case_id = _pick("Case", cases, "case")
        if case_id is None:
            st.info("This cohort has no case.")
            return None
        _neighbours(cases, case_id)
        records = data.run_records(root, cohort)
        titles = {run: run_title(record) for run, record in records.items()}
        run = _pick("Run", list(records), "run", titles) if records else None
        record = records.get(run or "", {})
        labels = data.labels(root, cohort, record)
        target = _pick("Target organ", *_targets(root, cohort, run, labels))
        chosen = Chosen(
            root, cohort, cohorts.find_case(root, cohort, case_id), run, record, labels, target or BACKGROUND
        )
        _compute(root, chosen)
    return chosen


def _pick(label: str, options: list[str], name: str, titles: dict[str, str] | None = None) -> str | None:
    """A select box that follows the link's parameter `name` and writes it.

    Only a parameter that came from outside moves the box: what the box itself wrote is known already.
    """
    key, written = f"case_{name}", f"case_{name}_written"
    asked = st.query_params.get(name)
    from_outside = asked is not None and asked != st.session_state.get(written)
    if from_outside and asked in options:
        st.session_state[key] = asked
    elif st.session_state.get(key) not in options:
        kept = st.session_state.get(written)
        st.session_state[key] = kept if kept in options else (options[0] if options else None)
    if asked is not None and from_outside and asked not in options:
        words.not_here(label, asked)
    value = st.selectbox(label, options, key=key, format_func=lambda option: (titles or {}).get(option, option))
    st.session_state[written] = value
    if value is not None and asked != value:
        st.query_params[name] = value
    return value


def _neighbours(cases: list[str], case_id: str) -> None:
    """Step through the cohort, case by case."""

    def step(by: int) -> None:
        st.session_state["case_case"] = cases[cases.index(case_id) + by]

    here = cases.index(case_id)
    with st.container(horizontal=True, vertical_alignment="center"):
        for side, by, name in (("left", -1, "previous"), ("right", 1, "next")):
            st.button(
                "",
                key=f"case_{name}",
                icon=f":material/chevron_{side}:",
                help=f"The {name} case",
                disabled=not 0 <= here + by < len(cases),
                on_click=step,
                args=(by,),
            )
        st.caption(f"{here + 1} of {len(cases)}")


def _targets(root: Path, cohort: str, run: str | None, labels: LabelSet) -> tuple[list[str], str, dict[str, str]]:
    """Organs to ask about, group by group, background last; with the parameter's name and their titles."""
    stored = data.targets(root, cohort, run) if run else []
    groups = [*(group for group in labels.groups if group != BACKGROUND), BACKGROUND]
    organs = sorted(labels.organs, key=lambda organ: groups.index(organ.group))
    names = [organ.name for organ in organs if organ.name in stored or not stored]
    titles = {organ.name: f"{organ.title} ({organ.group})" if organ.id else organ.title for organ in organs}
    return [*names, *(name for name in stored if name not in titles)], "target", titles


def run_title(record: dict[str, Any]) -> str:
    """`SmoothGrad × 20, seed 7, thorax17_swinunetr`, unusual parameters only; a run of another kind keeps its id."""
    method = compute.METHODS.get(str(record.get("method")))
    if method is None:
        return str(record["run"])
    parameters = record.get("parameters") or {}
    copies = f" × {parameters['samples']}" if "samples" in parameters else ""
    usual = Method(str(record["method"])).parameters() | {"samples": parameters.get("samples")}
    unusual = [f"{name} {value}" for name, value in parameters.items() if value != usual.get(name)]
    return ", ".join([f"{method}{copies}", *unusual, str(record.get("model"))])


# ---- heading and what is missing -----------------------------------------------------------------


def _heading(chosen: Chosen) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.markdown(f"### {words.plain(chosen.case.case_id)}", width="content")
        told = {name: value for name, value in chosen.case.metadata.items() if value and name not in NO_METADATA}
        pairs = [(words.plain(name), words.plain(value)) for name, value in {"cohort": chosen.cohort, **told}.items()]
        st.markdown("  ·  ".join(f"{name} **{value}**" for name, value in pairs), width="stretch")


def _missing(chosen: Chosen, scene: Scene) -> None:
    """Say why nothing is coloured, and what to do about it."""
    organ = words.plain(chosen.title(chosen.target))
    if scene.attribution is not None:
        return
    reason = _absent(chosen)
    if reason == NOT_EXPLAINED:
        text = "This case has not been explained" + (" in this run" if chosen.run else "")
    elif reason:
        st.info(f"Nothing to attribute: {organ} is {words.plain(reason)} in this case.", icon=":material/info:")
        return
    else:
        text = f"No attribution map of {organ} is stored for this case"
    st.info(f"{text}. Press **Explain** at the left to compute it.", icon=":material/info:")


def _absent(chosen: Chosen) -> str | None:
    """Why there is no attribution of the target, as the row of its own region tells, in computed runs and tables."""
    root, cohort, run = chosen.root, chosen.cohort, chosen.run
    if chosen.folder is None or run is None or chosen.target not in data.targets(root, cohort, run):
        return NOT_EXPLAINED
    reasons = _table(chosen, Selection(cohort, run, value="mean")).set_index("region")["absent"].dropna()
    return reasons.get(chosen.target)


# ---- slices --------------------------------------------------------------------------------------


@words.told
def _viewer(chosen: Chosen, scene: Scene) -> None:
    """A fragment: what the pictures send draws this again and nothing else."""
    place = f"case_at_{chosen.cohort}_{chosen.case.case_id}"
    cursor = st.session_state.get(place) or _linked_voxel(scene.shape) or scene.peak or scene.middle
    st.session_state[place] = cursor
    lacking = niivue.lacking(VIEWER)
    if lacking:
        st.caption(f"{lacking} These slices serve instead.")
        _slices(chosen, scene, place)
    else:
        niivue.viewer(_maps(chosen, scene), VIEWER, cursor)
    tilt = slices.tilt(scene.scan.affine)
    if tilt > 1:
        st.caption(
            f"This scan is tilted by up to {tilt:.0f}° against the patient’s axes. The slices follow the scan’s own "
            "axes, so the letters at the sides name the closest direction; positions in mm are exact."
        )


def _maps(chosen: Chosen, scene: Scene) -> list[niivue.Shown]:
    """The run's map and, side by side with it, those of other runs that the user asks for."""
    records = data.run_records(chosen.root, chosen.cohort)
    others = {run: replace(chosen, run=run, record=record) for run, record in records.items() if run != chosen.run}
    # Of one label set, so that one list of organs and one set of colours serve all.
    alike = {run: o for run, o in others.items() if o.record.get("label_set") == chosen.record.get("label_set")}
    options = {run: other for run, other in alike.items() if other.map_file} if chosen.map_file else {}
    beside = []
    if options:
        beside = st.multiselect(
            "Side by side with",
            list(options),
            format_func=lambda run: run_title(options[run].record),
            max_selections=niivue.MOST - 1,
            key="case_beside",
            label_visibility="collapsed",
            placeholder="Side by side with other runs …",
        )
    shown = [niivue.Shown(scene, _legends(chosen, scene), run_title(chosen.record) if beside else "")]
    for run in beside:
        other = options[run]
        assert other.case.image is not None
        theirs = load_scene(Sources(other.case.image, other.folder, other.target), other.labels)
        shown.append(niivue.Shown(theirs, _legends(other, theirs), run_title(other.record)))
    return shown


def _slices(chosen: Chosen, scene: Scene, place: str) -> None:
    """Three pictures that the server cuts, for browsers without WebGL."""

    def moved() -> None:
        st.session_state[place] = moved_to(STAGE, scene.shape) or st.session_state[place]

    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        windows = {name: window.title for name, window in layers.WINDOWS.items()}
        window = filters.segments("HU window", "case_window", windows, "soft")
        shown = "off" if scene.attribution is None else filters.segments("Attribution map", "case_map", MAPS, "signed")
    look = Look(window, signed=shown == "signed")
    legend = None if shown == "off" else _legend(chosen, scene, look)
    stage(stage_data(scene, look, st.session_state[place], legend), STAGE, moved)


def _linked_voxel(shape: Voxel) -> Voxel | None:
    """The position that the link names, if it lies in this scan. It counts once: for the case linked to."""
    if st.session_state.get("case_link_followed"):
        return None
    st.session_state["case_link_followed"] = True
    return voxel_inside(st.query_params.get("at", "").split("."), shape)


def _legends(chosen: Chosen, scene: Scene) -> dict[str, Legend]:
    legends = {mode: _legend(chosen, scene, Look(signed=mode == "signed")) for mode in ("signed", "absolute")}
    return {mode: legend for mode, legend in legends.items() if legend is not None}


def _legend(chosen: Chosen, scene: Scene, look: Look) -> Legend | None:
    if scene.attribution is None:
        return None
    organ = chosen.title(chosen.target)
    method = chosen.method.name if chosen.method else ""
    if not look.signed:
        low, high = "no influence", "strong influence"
    elif method == "integrated_gradients":
        low, high = "speaks against", "speaks for"
    else:
        low, high = f"higher HU here: less {organ.lower()}", f"higher HU here: more {organ.lower()}"
    note = f"100 % is {scene.attribution.end:.2g}, the 99.9th percentile of this map; stronger voxels share its colour."
    return Legend(f"{organ}: {compute.METHODS.get(method, method)}", low, high, note)


# ---- importance ----------------------------------------------------------------------------------


def _importance(chosen: Chosen, dice: bool = True) -> None:
    """How much of the target's attribution every organ holds, and where this case stands in its cohort."""
    if chosen.folder is None or chosen.run is None:
        return
    st.markdown(f"##### Attribution of {words.plain(chosen.title(chosen.target))}, organ by organ")
    whole = _table(chosen, Selection(chosen.cohort, chosen.run))
    _key_figures(chosen, whole)
    _completeness(chosen)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        shares_only = chosen.record.get("values") == "shares"
        sign = "abs" if shares_only else filters.segments("Attribution counted", "case_sign", filters.SIGNS, "abs")
        value = filters.segments("Measure", "case_value", filters.VALUES, "mass")
        background = st.toggle("With background", key="case_background")
    table = _table(chosen, Selection(chosen.cohort, chosen.run, sign, value, background))
    figure = charts_case.importance_bars(table, chosen.labels, charts.group_colors(chosen.labels), value)
    with st.container(key="case_bars_box"):
        st.plotly_chart(figure, key="case_bars", config={"displayModeBar": False})
    if not background:
        st.caption("Background left out; the shares of the organs are renormalised to 100 %.")
    if dice:
        _agreement(chosen)


def _table(chosen: Chosen, selection: Selection) -> pd.DataFrame:
    return data.case_importance(chosen.root, selection, chosen.case.case_id, chosen.target)


def _scores(chosen: Chosen) -> pd.DataFrame:
    assert chosen.run is not None
    return data.agreement(chosen.root, chosen.cohort, chosen.run, chosen.case.case_id)


def _key_figures(chosen: Chosen, whole: pd.DataFrame) -> None:
    shares = whole.set_index("region")["value"].astype(float)
    scores = _scores(chosen).set_index("target")
    dice = scores["dice"].get(chosen.target)
    own, outside = shares.get(chosen.target), shares.get(BACKGROUND)
    figures = {
        "Dice": ("no label" if dice is None or pd.isna(dice) else f"{dice:.3f}", "Overlap of prediction and label."),
        "On the organ": (_percent(own), "Share of the absolute attribution on the target’s own voxels."),
        "Off all organs": (_percent(outside), "Share of the absolute attribution on background."),
    }
    for column, (name, (value, help_text)) in zip(st.columns(3), figures.items(), strict=True):
        column.markdown(f":small[:gray[{name}]]  \n**{value}**", help=help_text)


def _percent(share: float | None) -> str:
    return "–" if share is None or pd.isna(share) else f"{100 * share:.1f} %"


def _completeness(chosen: Chosen) -> None:
    """Integrated gradients should sum to the change of the output; say how far they are from it."""
    if chosen.folder is None or not (chosen.folder / "completeness.csv").is_file():
        return
    row = results.read_completeness(chosen.folder).get(chosen.target)
    if row is None:
        return
    total, difference, gap = row
    text = (
        f"Completeness gap **{gap:.2g}**: the attributions sum to {total:.4g}, the output differs by {difference:.4g} "
        "from that of the baseline. "
    )
    if abs(gap) <= 0.05:
        st.caption(text + "The map accounts for the output.")
    else:
        st.warning(text + "The map does not account for the output; read it with care.", icon=":material/warning:")


def _agreement(chosen: Chosen, expanded: bool = False) -> None:
    scores = _scores(chosen)
    if scores.empty:
        return
    shown = scores.assign(target=[chosen.title(name) for name in scores["target"]])
    columns = {
        "target": st.column_config.TextColumn("Organ"),
        "dice": st.column_config.ProgressColumn("Dice", min_value=0, max_value=1, format="%.3f"),
        "iou": st.column_config.NumberColumn("IoU", format="%.3f"),
    }
    with st.expander("Agreement with the labels, every organ", expanded=expanded):
        st.dataframe(shown[list(columns)], hide_index=True, column_config=columns, key="case_agreement")


# ---- compute -------------------------------------------------------------------------------------


def _compute(root: Path, chosen: Chosen | None) -> None:
    if chosen is not None and chosen.case.image is not None:
        model = chosen.record.get("model")
        subject = compute.Subject(
            root, chosen.cohort, chosen.case.case_id, chosen.target, chosen.labels, model, chosen.method
        )
        with st.expander("Explain this case", icon=":material/bolt:", expanded=chosen.folder is None):
            compute.ask(subject)
    with st.expander("Bring a scan", icon=":material/upload_file:"):
        compute.upload(root)
    labels = chosen.labels if chosen else data.labels(root, "", {})
    compute.jobs(root, labels, (chosen.cohort, chosen.case.case_id) if chosen else None)
