"""The Case page: one scan, its segmentation, where the evidence lies, and how this case stands in its cohort."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from agg2exp_core import spreadsheet
from agg2exp_core.organs import BACKGROUND, LabelSet
from agg2exp_core.records import InputError, Method, Selection
from agg2exp_core.settings import data_root
from agg2exp_core.store import cohorts, results
from agg2exp_core.store.queries import NO_METADATA, NOT_EXPLAINED, NOTHING_TO_SHARE
from dashboard import access, data, filters, words
from dashboard.address import MOST_IN_LINK, Address, Link
from dashboard.charts import bars, common
from dashboard.charts.channels import channel_title
from dashboard.filters import Choice
from dashboard.report import CaseReport, case_report
from dashboard.viewer import niivue, slices
from dashboard.viewer.scene import Sources, load_scene
from dashboard.viewer.slices import Voxel
from dashboard.viewer.stage import Legend, Look, Scene, moved_to, stage, stage_data, voxel_inside
from dashboard.views import choosing, compute, effort, methods, unusual, window
from dashboard.views.legend import legend, summed

ADDRESS = Address("case")
MAPS = {"signed": "Signed", "absolute": "Absolute", "off": "Hidden"}
STAGE, VIEWER = "case_stage", "case_viewer"
_BESIDE, _AMONG, _AS = "beside", "among", "as"
ALL_CHANNELS = "*"
"""In links and in the chooser; no channel is called so."""

CHANNEL_HELP = (
    "The model’s input channels, such as the sequences of an MRI. **All**: the bars add up every channel’s "
    "attribution; the map is their signed sum, drawn over the first one’s image. **One** of them: its own image and "
    "map; its bars stay shares of all channels together, so that the channels’ bars add up."
)
FACTS = ("cohort", "run", "dice")
"""What the page and its report tell of a case, beside its metadata."""

LINKED, ORDER, MEASURED = "case_linked_voxel", "case_order", "case_measured"


CHANNEL_SHARE = "Share of the attribution that the bars count, on all regions."


@dataclass(frozen=True)
class CaseOrder:
    """The list that a case was opened from: `previous` and `next` follow it. title: what list it is, in words."""

    cohort: str
    cases: tuple[str, ...]
    title: str

    def holds(self, cohort: str, case_id: str) -> bool:
        return self.cohort == cohort and case_id in self.cases


@dataclass(frozen=True, eq=False)
class Chosen:
    """What the page is about. run and its record are None for a case that nothing has explained.

    channels: those that the run's attribution is split among; channel: the one that is looked at, or all.
    """

    root: Path
    cohort: str
    case: cohorts.Case
    run: str | None
    record: dict[str, Any]
    labels: LabelSet
    target: str
    channels: tuple[str, ...] = ()
    channel: str = ""

    @property
    def folder(self) -> Path | None:
        """The case's results in the run, if it has any."""
        if self.run is None:
            return None
        folder = results.case_path(self.root, self.cohort, self.run, self.case.case_id)
        return folder if folder.is_dir() else None

    @property
    def map_file(self) -> Path | None:
        """The stored attribution map of the target, if there is one."""
        file = self.folder / results.map_name(self.target, self.channel) if self.folder else None
        return file if file is not None and file.is_file() else None

    @property
    def sources(self) -> Sources:
        """The files to show: one channel's image and map or, of all, the first one's image."""
        images = self.case.images
        place = self.channels.index(self.channel) if self.channel and len(images) == len(self.channels) else 0
        return Sources(images[place], self.folder, self.target, self.channel)

    def selection(self, sign: str = "abs", value: str = "mass") -> Selection:
        """The run's measure of the channel that is looked at."""
        return Selection(self.cohort, str(self.run), sign, value, channel=self.channel)

    @property
    def method(self) -> Method | None:
        return choosing.method_of(self.record)

    def title(self, organ: str) -> str:
        return common.organ_of(self.labels, organ).title


def go_to(place: Selection, case_id: str, target: str, at: Sequence[int] | str = ()) -> None:
    """Leave the page for this one: a case of the selection's cohort in its run, counted alike.

    at: a voxel, or the region on whose strongest voxel the scan is opened.
    """
    link: Link = {"cohort": [place.cohort], "run": [place.run], "case": [case_id], "target": [target]}
    link |= filters.measure_link(place) | _list_link(place.cohort, case_id)
    if isinstance(at, str):
        # Not in the address, which the page would then write anew: a press of Back meanwhile would lose its way.
        st.session_state[LINKED] = (place.cohort, case_id, at)
    elif at:
        link["at"] = [".".join(str(index) for index in at)]
    st.switch_page(st.Page(page, url_path="case"), query_params=link)


@words.told
def page() -> None:
    """Draw the page."""
    ADDRESS.follow()
    chosen = _choose(data_root())
    if chosen is None:
        st.info("No cohort is here yet. `agg2exp demo` brings two, or upload a scan at the left.")
        return
    linked = ADDRESS.asked("at")
    if linked:
        st.session_state[LINKED] = (chosen.cohort, chosen.case.case_id, linked[0])
    _heading(chosen)
    measured = _without_image(chosen) if chosen.case.image is None else _with_image(chosen)
    ADDRESS.write(_link(chosen) | measured)


def _with_image(chosen: Chosen) -> Link:
    if chosen.folder is None:
        _scan(chosen)
        return {}
    left, right = st.columns([8, 5], gap="medium")
    with left:
        _scan(chosen)
    with right:
        measured = _importance(chosen)
        _unusual(chosen)
    return measured


def _scan(chosen: Chosen) -> None:
    if niivue.lacking(VIEWER) is None:
        niivue.warm()
    try:
        scene = load_scene(chosen.sources, chosen.labels)
    except InputError as error:
        words.refuse(error)
    else:
        _missing(chosen, scene)
        access.fragment(_viewer)(chosen, scene)
        if chosen.channels and not chosen.channel and scene.attribution is not None:
            st.caption(f"{summed(chosen.channels)} **Channel**, at the left, shows each by itself.")


def _without_image(chosen: Chosen) -> Link:
    st.info(
        "No image is stored for this case: it comes from a table of importances. Its shares and its Dice are below. "
        "For slices and maps, **Bring a scan** at the left, or `agg2exp cohort add`, takes the scans themselves.",
        icon=":material/image_not_supported:",
    )
    left, right = st.columns([8, 5], gap="medium")
    with left:
        measured = _importance(chosen, dice=False)
    with right:
        _unusual(chosen)
        _agreement(chosen, expanded=True)
    return measured


# ---- choosing -------------------------------------------------------------------------------------


def _choose(root: Path) -> Chosen | None:
    """The choosers at the left. The link names what is shown, so a copied link opens the same view."""
    with st.sidebar:
        known = list(data.cohorts(root)["cohort"])
        cohort = filters.pick_one(ADDRESS, Choice("Cohort", "cohort"), known) if known else None
        if cohort is None:
            _compute(root, None)
            return None
        cases = list(cohorts.read_cases(root, cohort)["case_id"])
        _follow_list(cohort, cases)
        case_id = filters.pick_one(ADDRESS, Choice("Case", "case"), cases)
        if case_id is None:
            st.info("This cohort has no case.")
            return None
        _neighbours(cohort, cases, case_id)
        records = data.run_records(root, cohort)
        run = choosing.run_box(ADDRESS, records)
        record = records.get(run or "", {})
        labels = data.labels(root, cohort, record)
        names, titles = _targets(root, cohort, run, labels)
        target = filters.pick_one(ADDRESS, Choice("Target organ", "target", titles), names)
        channels = tuple(data.channels(root, cohort, run)) if run else ()
        found = cohorts.find_case(root, cohort, case_id)
        chosen = Chosen(root, cohort, found, run, record, labels, target or BACKGROUND, channels, _channel(channels))
        _compute(root, chosen)
    return chosen


def _channel(channels: Sequence[str]) -> str:
    """The channel that is looked at; nothing for all of them, and where there is nothing to choose."""
    if not channels:
        return ""
    titles = {ALL_CHANNELS: "All channels", **{name: channel_title(name) for name in channels}}
    choice = Choice("Channel", "channel", titles, CHANNEL_HELP)
    taken = filters.pick_one(ADDRESS, choice, [ALL_CHANNELS, *channels])
    return "" if taken in (None, ALL_CHANNELS) else str(taken)


def _link(chosen: Chosen) -> Link:
    """The parameters that open this view again."""
    link = {"cohort": chosen.cohort, "case": chosen.case.case_id, "run": chosen.run, "target": chosen.target}
    if chosen.channels:
        link["channel"] = chosen.channel or ALL_CHANNELS
    beside = list(st.session_state.get(ADDRESS.key(_BESIDE), []))
    shown = {name: [value] for name, value in link.items() if value is not None}
    return shown | ({_BESIDE: beside} if beside else {}) | _list_link(chosen.cohort, chosen.case.case_id)


def _list_link(cohort: str, case_id: str) -> Link:
    """The list that one steps through from this case, if it is not too long for a link."""
    listed: CaseOrder | None = st.session_state.get(ORDER)
    if listed is None or not listed.holds(cohort, case_id) or len(listed.cases) > MOST_IN_LINK:
        return {}
    return {_AMONG: list(listed.cases), _AS: [listed.title]}


def _follow_list(cohort: str, cases: list[str]) -> None:
    """Step through the scans that a link names, and where no case was shown yet, begin with the first of the list."""
    among, title = ADDRESS.asked(_AMONG), ADDRESS.asked(_AS)
    if known := tuple(name for name in dict.fromkeys(among or ()) if name in cases):
        st.session_state[ORDER] = CaseOrder(cohort, known, title[0] if title else "of the link")
    listed: CaseOrder | None = st.session_state.get(ORDER)
    if listed is not None and listed.cohort == cohort:
        st.session_state.setdefault(ADDRESS.key("case"), listed.cases[0])


def _neighbours(cohort: str, cases: list[str], case_id: str) -> None:
    """Step through the list that the case was opened from, in its order, or through the whole cohort."""
    listed: CaseOrder | None = st.session_state.get(ORDER)
    in_list = listed is not None and listed.holds(cohort, case_id)
    if listed is not None and in_list:
        cases = list(listed.cases)

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
        st.caption(f"{here + 1} of {len(cases)}" + (f", {words.plain(listed.title)}" if listed and in_list else ""))
        if in_list:
            st.button(
                "",
                key="case_whole_cohort",
                icon=":material/close:",
                type="tertiary",
                help="Step through the whole cohort",
                on_click=lambda: st.session_state.pop(ORDER, None),
            )


def _targets(root: Path, cohort: str, run: str | None, labels: LabelSet) -> tuple[list[str], dict[str, str]]:
    """Organs to ask about, group by group, background last; with their titles."""
    stored = data.targets(root, cohort, run) if run else []
    groups = [*(group for group in labels.groups if group != BACKGROUND), BACKGROUND]
    organs = sorted(labels.organs, key=lambda organ: groups.index(organ.group))
    names = [organ.name for organ in organs if organ.name in stored or not stored]
    titles = {organ.name: f"{organ.title} ({organ.group})" if organ.id else organ.title for organ in organs}
    return [*names, *(name for name in stored if name not in titles)], titles


# ---- heading and what is missing -----------------------------------------------------------------


def _heading(chosen: Chosen) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.markdown(f"### {words.plain(chosen.case.case_id)}", width="content")
        told = {"cohort": chosen.cohort, **_metadata(chosen)}
        pairs = [(words.plain(name), words.plain(value)) for name, value in told.items()]
        st.markdown("  ·  ".join(f"{name} **{value}**" for name, value in pairs), width="stretch")
        if chosen.folder is not None:
            _downloads(chosen)


def _metadata(chosen: Chosen) -> dict[str, str]:
    """What is known of the scan; a name that the page itself uses gets a number behind it, as in SQL."""
    told = {name: value for name, value in chosen.case.metadata.items() if value and name not in NO_METADATA}
    return {f"{name}_2" if name.casefold() in FACTS else name: value for name, value in told.items()}


def _downloads(chosen: Chosen) -> None:
    """Map, table and report of the target; each is made when it is asked for."""
    name = "-".join(filter(None, [chosen.cohort, chosen.case.case_id, chosen.target, chosen.channel]))
    # Held here: where a file is made on a click, there is no session to ask.
    measured = st.session_state.setdefault(MEASURED, {})
    files: list[tuple[str, str, Callable[[], bytes | str]]] = [
        ("Table (CSV)", f"{name}.csv", lambda: _csv(chosen)),
        ("Report (HTML)", f"{name}.html", lambda: _report(chosen, measured)),
    ]
    if chosen.map_file is not None:
        files.append(("Attribution map (NIfTI)", f"{name}.nii.gz", chosen.map_file.read_bytes))
    with st.popover("Download", icon=":material/download:", type="tertiary", width="content", key="case_download"):
        for title, file_name, content in files:
            st.download_button(title, content, file_name, on_click="ignore", type="tertiary", key=f"download_{title}")


def _csv(chosen: Chosen) -> str:
    """Every measure of this target's regions, with the cohort's spread of each."""
    signs = ("abs",) if chosen.record.get("values") == "shares" else tuple(filters.SIGNS)
    parts = [
        _table(chosen, chosen.selection(sign, value)).assign(sign=sign, measure=value)
        for sign in signs
        for value in filters.VALUES
    ]
    table = pd.concat(parts).assign(cohort=chosen.cohort, run=chosen.run, target=chosen.target)
    table = table.assign(case_id=chosen.case.case_id)
    first = ["cohort", "run", "case_id", "target", "region", "sign", "measure"]
    if chosen.channel:
        table, first = table.assign(channel=chosen.channel), [*first[:5], "channel", *first[5:]]
    return spreadsheet.to_csv(table[[*first, *(name for name in table if name not in first)]])


def _report(chosen: Chosen, measured: dict[str, Selection]) -> bytes:
    """measured: "as": how the bars of the page were drawn last."""
    scene = None
    if chosen.case.image is not None:
        scene = load_scene(chosen.sources, chosen.labels)
    at = None if scene is None else st.session_state.get(_place(chosen)) or scene.peak or scene.middle
    dice = _scores(chosen).set_index("target")["dice"].get(chosen.target)
    facts = {"cohort": chosen.cohort, "run": choosing.run_title(chosen.record), **_metadata(chosen)}
    if pd.notna(dice):
        facts["Dice"] = f"{dice:.3f}"
    if chosen.channels:
        facts["Channel"] = channel_title(chosen.channel) or f"all: {', '.join(map(channel_title, chosen.channels))}"
    place = chosen.selection()
    selection = replace(measured.get("as", place), cohort=place.cohort, run=place.run, channel=place.channel)
    report = CaseReport(
        chosen.case.case_id, chosen.target, chosen.labels, facts, _table(chosen, selection),
        counted(selection, chosen.labels), selection.value, _masked(chosen, selection), scene, at,
        Look(scene.window if scene else "soft"), _notes(chosen),
    )  # fmt: skip
    return case_report(report).encode()


def counted(selection: Selection, labels: LabelSet) -> str:
    """What the numbers of a table are."""
    told = f"{filters.VALUES[selection.value]} of the {filters.SIGNS[selection.sign].lower()} attribution"
    left_out = "" if selection.background or selection.value == "mean" else "; background left out, organs to 100 %"
    return f"{told}{left_out}{f'; {filters.parts_words(labels)} joined' if selection.joined else ''}."


def _notes(chosen: Chosen) -> list[str]:
    """Why the case is unusual in its cohort, as plain sentences; none where that cannot be told."""
    place = unusual.Place(chosen.root, chosen.cohort, str(chosen.run), chosen.case.case_id, chosen.labels)
    try:
        told = unusual.why_unusual(place, Selection(chosen.cohort, str(chosen.run)))
    except InputError:
        return []
    return [line.replace("**", "").replace("\\", "") + "." for line in told]


def _missing(chosen: Chosen, scene: Scene) -> None:
    """Say why nothing is coloured, and what to do about it."""
    organ = words.plain(chosen.title(chosen.target))
    if scene.attribution is not None:
        return
    reason = _absent(chosen)
    if reason == NOT_EXPLAINED:
        text = "This case has not been explained" + (" in this run" if chosen.run else "")
    elif reason:
        verb = "is" if reason.startswith("not ") else "has"
        st.info(f"Nothing to attribute: {organ} {verb} {words.plain(reason)} in this case.", icon=":material/info:")
        return
    else:
        text = f"No attribution map of {organ} is stored for this case"
    st.info(f"{text}. Press **Explain** at the left to compute it.", icon=":material/info:")


def _absent(chosen: Chosen) -> str | None:
    """Why there is no attribution of the target, as the row of its own region tells, in computed runs and tables.

    None while any region has a value: a target of which nothing is predicted may still have false negatives.
    """
    root, cohort, run = chosen.root, chosen.cohort, chosen.run
    if chosen.folder is None or run is None or chosen.target not in data.targets(root, cohort, run):
        return NOT_EXPLAINED
    table = _table(chosen, Selection(cohort, run, value="mean")).set_index("region")
    return None if table["value"].notna().any() else table["absent"].dropna().get(chosen.target)


# ---- slices --------------------------------------------------------------------------------------


@words.told
def _viewer(chosen: Chosen, scene: Scene) -> None:
    """A fragment: what the pictures send draws this again and nothing else."""
    place = _place(chosen)
    linked = _linked_voxel(chosen, scene)
    if linked is not None:  # else the browser keeps where it was when this scan was seen last
        niivue.point_at(VIEWER, slices.world(scene.scan.affine, linked))
    cursor = linked or st.session_state.get(place) or scene.peak or scene.middle
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


def _place(chosen: Chosen) -> str:
    """Where the session keeps the voxel that the slices go through."""
    return f"case_at_{chosen.cohort}_{chosen.case.case_id}"


def _maps(chosen: Chosen, scene: Scene) -> list[niivue.Shown]:
    """The run's map and, side by side with it, those of other runs that the user asks for."""
    records = data.run_records(chosen.root, chosen.cohort)
    others = {run: _in_run(chosen, run, record) for run, record in records.items() if run != chosen.run}
    # Numbered alike, so that one list of organs and one set of colours serve all.
    place = chosen.root, chosen.cohort
    alike = {run: other for run, other in others.items() if data.labels(*place, other.record) == chosen.labels}
    options = {run: other for run, other in alike.items() if other.map_file} if chosen.map_file else {}
    beside = [options[run] for run in _beside(options)]
    own, *titles = choosing.told_apart([choosing.run_title(one.record) for one in (chosen, *beside)])
    shown = [niivue.Shown(scene, _legends(chosen, scene), own if beside else "")]
    for other, title in zip(beside, titles, strict=True):
        # Over the scan that is shown, whichever channel of theirs is.
        theirs = load_scene(replace(other.sources, image=chosen.sources.image), other.labels)
        shown.append(niivue.Shown(theirs, _legends(other, theirs), title))
    return shown


def _in_run(chosen: Chosen, run: str, record: dict[str, Any]) -> Chosen:
    """The same case in another run: its map of the same channel, or of all where it has none."""
    channels = tuple(data.channels(chosen.root, chosen.cohort, run))
    channel = chosen.channel if chosen.channel in channels else ""
    return replace(chosen, run=run, record=record, channels=channels, channel=channel)


def _beside(options: dict[str, Chosen]) -> list[str]:
    """The runs to show beside this one, which follow the link."""
    key, wish = ADDRESS.key(_BESIDE), ADDRESS.asked(_BESIDE)
    asked = st.session_state.get(key, []) if wish is None else wish
    st.session_state[key] = [run for run in asked if run in options][: niivue.MOST - 1]
    if wish and ADDRESS.from_outside and set(wish) - set(options):
        words.not_here("Run", next(run for run in wish if run not in options))
    if not options:
        return []
    return st.multiselect(
        "Side by side with",
        list(options),
        format_func=lambda run: choosing.run_title(options[run].record),
        max_selections=niivue.MOST - 1,
        key=key,
        on_change=lambda: ADDRESS.amend({_BESIDE: st.session_state[key]}),
        label_visibility="collapsed",
        placeholder="Side by side with other runs …",
    )


def _slices(chosen: Chosen, scene: Scene, place: str) -> None:
    """Three pictures that the server cuts, for browsers without WebGL."""

    def moved() -> None:
        st.session_state[place] = moved_to(STAGE, scene.shape) or st.session_state[place]

    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        taken = window.choose(scene, "case_window")
        shown = "off" if scene.attribution is None else filters.segments("Attribution map", "case_map", MAPS, "signed")
    look = Look(taken, signed=shown == "signed")
    told = None if shown == "off" else _legend(chosen, scene, look)
    stage(stage_data(scene, look, st.session_state[place], told), STAGE, moved)


def _linked_voxel(chosen: Chosen, scene: Scene) -> Voxel | None:
    """The position that the link names, or the strongest on the region that it names, if it lies in this scan.

    It counts once: for the case linked to.
    """
    *place, at = st.session_state.pop(LINKED, ("", "", ""))
    if place != [chosen.cohort, chosen.case.case_id]:
        return None
    return scene.peak_on(at) if at in chosen.labels.by_name else voxel_inside(at.split("."), scene.shape)


def _legends(chosen: Chosen, scene: Scene) -> dict[str, Legend]:
    found = {mode: _legend(chosen, scene, Look(signed=mode == "signed")) for mode in ("signed", "absolute")}
    return {mode: one for mode, one in found.items() if one is not None}


def _legend(chosen: Chosen, scene: Scene, look: Look) -> Legend | None:
    if scene.attribution is None:
        return None
    method = chosen.method.name if chosen.method else ""
    part = f" in {channel_title(chosen.channel)}" if chosen.channel else ""
    found = legend(chosen.title(chosen.target), method, scene.attribution, look.signed, scene.brighter)
    return replace(found, title=f"{found.title}{part}")


# ---- importance ----------------------------------------------------------------------------------


def _importance(chosen: Chosen, dice: bool = True) -> Link:
    """How much of the target's attribution every organ holds, and where this case stands in its cohort.

    The parameters that open the same measure again.
    """
    if chosen.folder is None or chosen.run is None:
        return {}
    part = f" in {channel_title(chosen.channel)}" if chosen.channel else ""
    st.markdown(f"##### Attribution of {words.plain(chosen.title(chosen.target) + part)}, organ by organ")
    figures = st.container()  # filled once it is known whether background counts
    _completeness(chosen)
    _against_ablation(chosen)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="case_measures"):
        shares_only = chosen.record.get("values") == "shares"
        sign, value, background = filters.measures(ADDRESS, shares_only)
        joined = filters.joining(ADDRESS, chosen.labels)
    selection = replace(chosen.selection(sign, value), background=background, joined=joined)
    st.session_state.setdefault(MEASURED, {})["as"] = selection
    table = _table(chosen, selection)
    with figures:
        _key_figures(chosen, background)
        _by_channel(chosen, selection)
    masked = _masked(chosen, selection)
    figure = bars.importance_bars(table, chosen.labels, common.group_colors(chosen.labels), value, masked)
    with st.container(key="case_bars_box"):
        st.plotly_chart(figure, key="case_bars", config={"displayModeBar": False})
    _nothing(chosen, table, selection)
    if table["error"].notna().any():
        st.caption(f"Whiskers hold 95 %: how sure each share is, judged from {_doubts(chosen)}.{_unsettled(chosen)}")
    if chosen.channel and value == "mass":
        st.caption(f"Shares are of all channels together: these bars are what {channel_title(chosen.channel)} has.")
    elif not background:
        kept = " Masks keep their share of the whole." if masked["value"].notna().any() else ""
        st.caption(f"Background left out; the shares of the organs are renormalised to 100 %.{kept}")
    if dice:
        _agreement(chosen)
    return filters.measure_link(selection)


def _nothing(chosen: Chosen, table: pd.DataFrame, selection: Selection) -> None:
    """Say why there are no bars of a target that was explained."""
    if (table["absent"] == NOTHING_TO_SHARE).all():
        kind = {"abs": "", "pos": "positive ", "neg": "negative "}[selection.sign]
        where = "every voxel" + ("" if selection.background else " of every organ")
        organ = words.plain(chosen.title(chosen.target))
        st.info(f"{organ} has no {kind}attribution to share out: it is 0 in {where}.")


def _doubts(chosen: Chosen) -> str:
    """What the errors of the shares are made of."""
    method = chosen.method or Method()
    paired = method.name == "smoothgrad" and method.estimator != "plain"
    doubts = ["the noisy copies that were averaged"] if paired or not method.skip else []
    return " and ".join(doubts + (["what windows left out may hold"] if method.skip else []))


def _unsettled(chosen: Chosen) -> str:
    """How far the least sure share is from where more pairs would have stopped, if they came to their end before."""
    method = chosen.method
    if method is None or method.skip or effort.effort_of(method) != "Settled":
        return ""
    left = 2 * _table(chosen, Selection(chosen.cohort, str(chosen.run)))["error"].max()
    if not left > method.tolerance:
        return ""
    return f" It did not settle: {method.samples} pairs leave the least sure one at ± {100 * left:.2g} %."


def _masked(chosen: Chosen, selection: Selection) -> pd.DataFrame:
    """Masks of the case; their shares are of the whole scan, and of all channels: of one there are none."""
    whole = Selection(selection.cohort, selection.run, selection.sign, selection.value)
    found = data.case_masked(chosen.root, whole, chosen.case.case_id, chosen.target)
    return found.head(0) if selection.channel else found


def _table(chosen: Chosen, selection: Selection) -> pd.DataFrame:
    return data.case_importance(chosen.root, selection, chosen.case.case_id, chosen.target)


def _scores(chosen: Chosen) -> pd.DataFrame:
    assert chosen.run is not None
    return data.agreement(chosen.root, chosen.cohort, chosen.run, chosen.case.case_id)


def _key_figures(chosen: Chosen, background: bool) -> None:
    """background: whether it counts in the share on the organ, as it does in the bars below."""
    assert chosen.run is not None
    of_all, counted = (
        _table(chosen, Selection(chosen.cohort, chosen.run, background=on)).set_index("region")["value"].astype(float)
        for on in (True, background)
    )
    scores = _scores(chosen).set_index("target")
    dice = scores["dice"].get(chosen.target)
    own, outside = counted.get(chosen.target), of_all.get(BACKGROUND)
    whole = "of the whole scan" if background else "on all organs, without background"
    figures = {
        "Dice": ("no label" if dice is None or pd.isna(dice) else f"{dice:.3f}", "Overlap of prediction and label."),
        "On the organ" if background else "On it, of organs": (
            common.number(own, "mass"),
            f"Share on the target’s own voxels, of the absolute attribution {whole}.",
        ),
        "Off all organs": (
            common.number(outside, "mass"), "Share on background, of the absolute attribution of the whole scan."
        ),
    }  # fmt: skip
    for column, (name, (value, help_text)) in zip(st.columns(3), figures.items(), strict=True):
        column.markdown(f":small[:gray[{name}]]  \n**{value}**", help=help_text)


def _by_channel(chosen: Chosen, selection: Selection) -> None:
    """How the attribution that the bars count is shared among the channels."""
    if selection.value != "mass" or not chosen.channels:
        return
    shares = {
        name: _table(chosen, replace(selection, channel=name))["value"].sum(min_count=1) for name in chosen.channels
    }
    with st.container(horizontal=True, gap="medium", key="case_channels"):
        for name, share in shares.items():
            shown, strong = common.number(share, "mass"), "**" if chosen.channel in ("", name) else ""
            st.markdown(
                f":small[:gray[In {words.plain(channel_title(name))}]]  \n{strong}{shown}{strong}", width="content",
                help=CHANNEL_SHARE if name == chosen.channels[0] else None,
            )  # fmt: skip


def _completeness(chosen: Chosen) -> None:
    """Integrated gradients should sum to the change of the output; say how far they are from it."""
    if chosen.folder is None or not (chosen.folder / "completeness.csv").is_file():
        return
    if results.verify(chosen.folder, ["completeness.csv"]):
        st.warning("The completeness of this attribution is damaged. `agg2exp check` says how to compute it again.")
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
        st.warning(
            f"{text}The map does not account for the output; read it with care. More steps{_nearer(chosen)} come "
            "closer.",
            icon=":material/warning:",
        )


def _nearer(chosen: Chosen) -> str:
    """The other way to a smaller gap, unless it was taken."""
    method = choosing.method_of(chosen.record)
    return ", or a blurred scan as the baseline," if method is None or method.baseline != "blurred" else ""


def _against_ablation(chosen: Chosen) -> None:
    """The first honest check: do the shares rank the organs as taking them away does? If not computed, how to."""
    place = chosen.cohort, str(chosen.run)
    if found := data.ablation_agreement(chosen.root, place, chosen.case.case_id, chosen.target):
        rho, regions, taken = found
        method = choosing.method_of(data.run_records(chosen.root, chosen.cohort).get(taken, {}))
        name = ", ".join(["ablation", *(methods.parameter_words(method) if method else [])])
        st.caption(
            f"Agreement with {name}: **ρ = {rho:.2f}** over {regions} regions, background included.",
            help="Spearman’s rank correlation of these shares with what taking each organ away changes in the output: "
            "it is replaced by soft tissue or, where its grey value is not known, by the scan’s mean. Near 1: the map "
            "ranks the organs as the network itself does.",
        )
    elif (own := choosing.method_of(chosen.record)) and own.name != "ablation" and chosen.case.image:
        st.caption(
            "Not yet checked against ablation: **Explain** this scan by **Ablation**, too, to see how they agree."
        )


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


def _unusual(chosen: Chosen) -> None:
    if chosen.folder is not None and chosen.run is not None:
        unusual.expander(unusual.Place(chosen.root, chosen.cohort, chosen.run, chosen.case.case_id, chosen.labels))


# ---- compute -------------------------------------------------------------------------------------


def _compute(root: Path, chosen: Chosen | None) -> None:
    here = (chosen.cohort, chosen.case.case_id) if chosen else None
    labels = chosen.labels if chosen else data.labels(root, "", {})
    running = compute.is_running(root)
    if running:
        compute.jobs(root, labels, here)  # above the forms, where its progress and its Stop are in sight
    if chosen is not None and chosen.case.image is not None:
        model = chosen.record.get("model")
        subject = compute.Subject(
            root, chosen.cohort, chosen.case.case_id, chosen.target, chosen.labels, model, chosen.method,
            chosen.case.label is not None,
        )  # fmt: skip
        with st.expander("Explain this case", icon=":material/bolt:", expanded=chosen.folder is None):
            compute.ask(subject)
    with st.expander("Bring a scan", icon=":material/upload_file:"):
        compute.upload(root)
    if not running:
        compute.jobs(root, labels, here)
