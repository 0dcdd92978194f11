"""The Cohort page's charts: five views of the same scans under the same filters, each to be clicked and taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from agg2exp_core.analysis import clustering, graph, summary
from agg2exp_core.organs import BACKGROUND, LabelSet
from agg2exp_core.records import InputError, Selection
from dashboard import data, downloads, filters, words
from dashboard.address import Address, Link
from dashboard.charts import common
from dashboard.charts.boxes import region_boxes
from dashboard.charts.channels import channel_bars
from dashboard.charts.common import Pick
from dashboard.charts.composition import composition_bars, parts_of
from dashboard.charts.dendrogram import dendrogram
from dashboard.charts.graph import Focus, edge_graph
from dashboard.charts.histograms import histogram_grid
from dashboard.charts.matrix import organ_matrix

ADDRESS = Address("cohort")
PICKED = "cohort_picked"
VIEWS = {
    "overview": "Overview", "histograms": "Histograms", "context": "Context", "graph": "Graph",
    "dendrogram": "Dendrogram",
}  # fmt: skip
MOST_ORGANS = 6
EDGES = {"top": "Strongest per target", "cut": "Up to a cumulative share"}
EDGE_ENDS = {"top": (1.0, 10.0, 1.0), "cut": (0.05, 1.0, 0.05)}
"""Lowest, highest and step of how many edges of a target, or of their shares together."""

USUAL_EDGES = {"top": 5.0, "cut": 0.35}
LINKAGES = {"average": "Average", "complete": "Complete", "single": "Single", "ward": "Ward"}

VIEW_HELP = (
    "**Overview**: one target’s regions, and all targets at once. **Histograms**: the scans behind the medians. "
    "**Context**: how much of an organ’s evidence lies inside it. **Graph**: which organs are evidence for which. "
    "**Dendrogram**: which organs explain each other."
)
BOX_HELP = (
    "Each box is one region over all scans shown: the line is the median, the box holds the middle half, whiskers "
    "reach the last scan within 1.5 box lengths, ticks are the scans beyond (at most 40 are drawn). Sorted by median. "
    "Click a row to list its scans."
)
MATRIX_HELP = (
    "One row a target, one column a region: the median over the scans shown. Colour grows with the square root of the "
    "value, so that small shares can be told apart. Click a cell to list its scans."
)
ORDER_HELP = (
    "Organs that explain each other stand together: the leaves of the dendrogram with average linkage. "
    "Else they stand group by group."
)
HISTOGRAM_HELP = (
    "One row a target, one column a region: how many scans have which value. All cells share both axes; the horizontal "
    "one grows with the square root. Tinted and framed: an organ on itself. Dotted: the median. "
    "Click a cell to list its scans."
)
CONTEXT_HELP = (
    "The share of each organ’s attribution that lies inside the organ itself, over the scans shown; the rest is its "
    "context. The line is the median, the box holds the middle half. Click a row to list its scans."
)
COMPOSITION_HELP = (
    "Where each organ’s attribution lies, as means over the scans shown: on the organ itself (full colour), on other "
    "organs by their group (paler), on background (grey). A bar sums to 100 %. Click one to list its scans."
)
CHANNELS_HELP = (
    "How each target’s attribution is shared among the model’s input channels, such as the sequences of an MRI: means "
    "over the scans shown, so that a bar sums to 100 %. Magnitudes of each channel are added up, signs as chosen above."
)
GRAPH_HELP = (
    "An arrow leads from a region to the target that it is evidence for; a circle is an organ that is evidence for "
    "itself. Its width grows with the root of the mean share of the target’s attribution on the region, its colour is "
    "the region’s group. Arrows of the target chosen at the "
    "left stand out. Click an arrow or an organ to list its scans."
)
EDGES_HELP = (
    "**Strongest per target**: the k largest regions of each target, by their share of all its attribution. **Up to a "
    "cumulative share**: of each target the largest regions as long as their shares together stay below the cut. Here "
    "shares are taken among the organs; with the background in them, a cut of 0.35 keeps 240 of 256 published edges."
)
TREE_HELP = (
    "Two organs are near where much of one’s attribution lies on the other. Distance: the largest √share − √share of "
    "the pair, where √share is the mean of both directions and shares are means over the scans shown, among the "
    "organs. Branches meet at the distance at which the linkage joins them. Click a row to list its scans."
)
LINKAGE_HELP = (
    "How the distance of two branches follows from that of their organs. In brackets the cophenetic correlation: how "
    "well the tree keeps the distances, 1 at best. Ward’s assumes Euclidean distances, which these are not."
)


@dataclass(frozen=True, eq=False)
class Shown:
    """What the charts are about. shares_only: an imported table, without signs."""

    root: Path
    labels: LabelSet
    selection: Selection
    target: str
    picked: Pick | None
    shares_only: bool

    @property
    def measure(self) -> str:
        return self.selection.value

    def title(self, organ: str) -> str:
        return common.organ_of(self.labels, organ).title

    def regions(self) -> list[str]:
        """Those that have values, in the order of the label set."""
        names = data.region_names(self.root, self.selection)
        return [name for name in names if self.selection.background or name != BACKGROUND]

    def matrix(self) -> pd.DataFrame:
        """See `queries.matrix`; without background there is none as a target either."""
        table = data.matrix(self.root, self.selection)
        return table if self.selection.background else table[table["target"] != BACKGROUND]


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure, its key, its heading, what its hover and its screen reader's text say, and its numbers as a table.

    clicks: whether they pick a box or a cell.
    """

    key: str
    heading: str
    text: str
    figure: go.Figure
    table: Callable[[], pd.DataFrame]
    clicks: bool = True


def choose(labels: LabelSet) -> str:
    """The row of views, which follows the link; and what the colours mean."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="large"):
        view = filters.asked_segments(ADDRESS, "View", "view", VIEWS, VIEW_HELP)
        st.html(legend(labels), width="content")
    return view


def fixed(view: str) -> dict[str, Any]:
    """The measures that a view cannot leave open: its picture is of shares, or of shares among the organs."""
    if view == "graph":
        # As published: the strongest edges by their shares of all attribution, the cut among the organs.
        return {"value": "mass", "background": _asked_edges() == "top"}
    if view == "dendrogram":
        return {"value": "mass", "background": False}
    return {"value": "mass"} if view == "context" else {}


def draw(view: str, shown: Shown) -> Link:
    """Draw one of VIEWS; the parameters of its own that open it again."""
    drawn = {
        "overview": _overview, "histograms": _histograms, "context": _context, "graph": _graph, "dendrogram": _tree,
    }  # fmt: skip
    return drawn[view](shown)


def legend(labels: LabelSet) -> str:
    """The groups' colours, for all charts, as HTML."""
    colors = common.group_colors(labels)
    squares = [
        f"<div><span style='color:{colors[group]}'>■</span> {escape(group.capitalize())}</div>"
        for group in labels.groups
        if group != BACKGROUND
    ]
    return f"<div class='groups'>{''.join(squares)}</div>"


# ---- overview ------------------------------------------------------------------------------------


def _overview(shown: Shown) -> Link:
    left, right = st.columns([1, 1], gap="small")
    stats = data.box_stats(shown.root, shown.selection, shown.target)
    region = shown.picked[1] if shown.picked and shown.picked[0] == shown.target else None
    with left:
        heading = f"{shown.title(shown.target)}: attribution by region"
        figure = data.once(
            shown.root, ("boxes", shown.selection, shown.target, region, shown.labels),
            lambda: region_boxes(stats, shown.labels, shown.measure, region),
        )  # fmt: skip
        _chart(shown, Chart("cohort_boxes", heading, BOX_HELP, figure, lambda: _boxed(shown, stats)))
    with right:
        key, wish = ADDRESS.key("clustered"), ADDRESS.asked("order")
        if wish:
            st.session_state[key] = wish == ["clustered"]
        clustered = bool(st.session_state.get(key))
        figure = data.once(
            shown.root, ("matrix", shown.selection, shown.picked, clustered, shown.labels),
            lambda: _matrix(shown, clustered),
        )  # fmt: skip
        chart = Chart("cohort_matrix", "All targets × regions", MATRIX_HELP, figure, shown.matrix)
        _chart(shown, chart, lambda: st.toggle("Clustered", key=key, help=ORDER_HELP, persist_state="session"))
    _by_channel(shown)
    return {"order": ["clustered" if clustered else "groups"]}


def _by_channel(shown: Shown) -> None:
    """Nothing where the run's attribution is not split among input channels."""
    if not data.channels(shown.root, shown.selection.cohort, shown.selection.run):
        return
    shares = data.channel_shares(shown.root, shown.selection)
    known = set(shares["target"])
    order = [name for name in common.in_group_order(shares["target"], shown.labels) if name in known]
    order = [name for name in order if shown.selection.background or name != BACKGROUND]
    if order:
        figure = channel_bars(shares, shown.labels, order)
        heading = "Which input channel the evidence is in"
        _chart(shown, Chart("cohort_channels", heading, CHANNELS_HELP, figure, lambda: shares, clicks=False))


def _matrix(shown: Shown, clustered: bool) -> go.Figure:
    order = _order(shown) if clustered else []
    return organ_matrix(shown.matrix(), shown.labels, shown.measure, shown.picked, order)


def _order(shown: Shown) -> list[str]:
    """Leaves of the tree, each after the joined region that it is a part of; none where there is no tree."""
    try:
        leaves = clustering.cluster(_organs(shown, joined=False, background=False)).order
    except InputError:
        return []
    return list(dict.fromkeys(name for leaf in leaves for name in (shown.labels.joins.get(leaf, leaf), leaf)))


def _organs(shown: Shown, joined: bool, background: bool) -> pd.DataFrame:
    """(targets × regions): mean shares on the organs, NaN where absent. background: whether it counts in the whole."""
    selection = replace(shown.selection, value="mass", background=background, joined=joined)
    table = data.matrix(shown.root, selection)
    table = table[(table["target"] != BACKGROUND) & (table["region"] != BACKGROUND)]
    matrix = table.pivot_table(index="target", columns="region", values="mean", dropna=False, sort=False)
    return matrix.astype(float)


# ---- histograms ----------------------------------------------------------------------------------


def _histograms(shown: Shown) -> Link:
    organs = _chosen_organs(shown)
    if not organs:
        st.info("Choose organs above: each becomes a row, as a target, and a column, as a region.")
        return {}
    own = [common.own_region(shown.labels, name, shown.regions()) for name in organs]
    columns = list(dict.fromkeys(name for name in own if name))
    if not columns:
        st.info("None of these organs is a region, so there is nothing to draw. Choose another one.")
        return {"organs": organs}
    cells = {
        (target, region): data.values(shown.root, shown.selection, target, region)
        for target in organs
        for region in columns
    }
    bins = summary.histograms(cells)
    figure = histogram_grid(bins, shown.labels, shown.measure, shown.picked)
    what = "Share" if shown.measure == "mass" else "Mean per voxel"
    heading = f"{what} of the attribution of each target (rows) on each region (columns), scan by scan"
    _chart(shown, Chart("cohort_histograms", heading, HISTOGRAM_HELP, figure, lambda: bins))
    return {"organs": organs}


def _chosen_organs(shown: Shown) -> list[str]:
    """Several targets; the page's target and where most of its attribution lies, until a reader chooses."""
    known = data.targets(shown.root, shown.selection.cohort, shown.selection.run)
    names = common.in_group_order(pd.Series(known, dtype=object), shown.labels)
    names = [name for name in names if shown.selection.background or name != BACKGROUND]
    key, wish = f"{ADDRESS.key('organs')}_{shown.selection.cohort}_{shown.selection.run}", ADDRESS.asked("organs")
    if wish:
        st.session_state[key] = [name for name in wish if name in names][:MOST_ORGANS]
    chosen = st.session_state.get(key)
    # Without background, it cannot stay chosen.
    st.session_state[key] = _usual_organs(shown, names) if chosen is None else [one for one in chosen if one in names]
    return st.multiselect(
        "Organs", names, key=key, format_func=shown.title, max_selections=MOST_ORGANS, persist_state="session",
        placeholder="Choose organs", help=f"Up to {MOST_ORGANS}: the rows and columns of the grid, in this order.",
    )  # fmt: skip


def _usual_organs(shown: Shown, names: list[str]) -> list[str]:
    plain = replace(shown.selection.unfiltered(), joined=False)
    ordered = data.box_stats(shown.root, plain, shown.target)["region"]
    near = [name for name in ordered if name in names and name not in (shown.target, BACKGROUND)]
    return [*([shown.target] if shown.target in names else []), *near[:3]]


# ---- context -------------------------------------------------------------------------------------


def _context(shown: Shown) -> Link:
    matrix = shown.matrix()
    stats = _own_boxes(shown, list(dict.fromkeys(matrix["target"])))
    parts = parts_of(matrix, shown.labels)
    left, right = st.columns([1, 1], gap="small")
    picked = shown.picked[0] if shown.picked and shown.picked in _pairs(stats) else None
    with left:
        figure = region_boxes(stats, shown.labels, "mass", picked)
        heading = "Evidence inside the organ itself"
        _chart(shown, Chart("cohort_context", heading, CONTEXT_HELP, figure, lambda: _boxed(shown, stats)))
    with right:
        order = list(stats["target"][stats["n"] > 0])
        figure = composition_bars(parts, shown.labels, order)
        heading = "And where the rest of it lies"
        _chart(shown, Chart("cohort_composition", heading, COMPOSITION_HELP, figure, lambda: parts))
    return {}


def _own_boxes(shown: Shown, targets: list[str]) -> pd.DataFrame:
    """`queries.box_stats` of each target on itself, with a column `target`; largest median first."""
    regions = shown.regions()
    found = {name: common.own_region(shown.labels, name, regions) for name in targets if name != BACKGROUND}
    own = {name: region for name, region in found.items() if region}
    values = {name: data.values(shown.root, shown.selection, name, region) for name, region in own.items()}
    stats = summary.boxes(values).rename(columns={"region": "target"})
    return stats.assign(region=[own[name] for name in stats["target"]])


def _pairs(stats: pd.DataFrame) -> list[Pick]:
    return list(zip(stats["target"], stats["region"], strict=True))


# ---- graph ---------------------------------------------------------------------------------------


def _graph(shown: Shown) -> Link:
    matrix = _organs(shown, shown.selection.joined, shown.selection.background)
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        edges, link = _chosen_edges(matrix)
        edges = _signed(shown, edges)
        st.markdown(_edges_in_words(shown, edges), width="content")
    left, right = st.columns([7, 4], gap="small")
    with left:
        figure = edge_graph(edges, shown.labels, Focus(shown.target, shown.picked), list(matrix.index))
        _chart(shown, Chart("cohort_graph", "Which organs are evidence for which", GRAPH_HELP, figure, lambda: edges))
    with right:
        _edge_list(shown, edges)
    return link


def _asked_edges() -> str:
    """Which of EDGES is shown; a link's wish is followed here, as it decides what shares are shares of."""
    kind, _, text = (ADDRESS.asked("edges") or [""])[0].partition("~")
    key = ADDRESS.key("edges")
    if kind in EDGES:
        st.session_state[key] = kind
        low, high, step = EDGE_ENDS[kind]
        number = _number(text)
        if number is not None:
            st.session_state[f"{key}_{kind}"] = round(round(min(max(number, low), high) / step) * step, 2)
    return str(st.session_state.get(key) or "top")


def _chosen_edges(matrix: pd.DataFrame) -> tuple[pd.DataFrame, Link]:
    """The edges that a reader asks for, and what opens them again."""
    key = ADDRESS.key("edges")
    kind = filters.segments("Edges", key, EDGES, "top", EDGES_HELP)
    low, high, step = EDGE_ENDS[kind]
    st.session_state.setdefault(f"{key}_{kind}", USUAL_EDGES[kind])
    label = {"top": "Edges per target", "cut": "Cumulative share"}[kind]
    limit = st.slider(label, low, high, step=step, key=f"{key}_{kind}", format="%g", width=220, persist_state="session")
    edges = graph.top_edges(matrix, int(limit)) if kind == "top" else graph.cumulative_edges(matrix, limit)
    return edges, {"edges": [f"{kind}~{limit:g}"]}


def _number(text: str) -> float | None:
    try:
        return float(text) if np.isfinite(float(text)) else None
    except ValueError:
        return None


def _signed(shown: Shown, edges: pd.DataFrame) -> pd.DataFrame:
    """sign: that of the attribution counted; of both together, that which outweighs the other in the median scan."""
    sign = shown.selection.sign
    if sign != "abs" or shown.shares_only or edges.empty:
        return edges.assign(sign="neg" if sign == "neg" else "pos")
    place = ["target", "region"]
    # Means per voxel of one region have the same voxels below them: they compare the sums themselves.
    tables = [
        data.matrix(shown.root, replace(shown.selection, sign=one, value="mean")).set_index(place)["value"]
        for one in ("pos", "neg")
    ]
    positive, negative = (table.reindex(pd.MultiIndex.from_frame(edges[place])).to_numpy(float) for table in tables)
    return edges.assign(sign=np.where(negative > positive, "neg", "pos"))


def _edges_in_words(shown: Shown, edges: pd.DataFrame) -> str:
    loops = len(graph.self_loops(edges))
    text = f"**{len(edges)} edges**, {loops} of them self-loops"
    if shown.shares_only:
        return f"{text}  \n:small[:gray[The table holds no signs.]]"
    if shown.selection.sign != "abs":
        return f"{text}  \n:small[:gray[{filters.SIGNS[shown.selection.sign]} attribution only.]]"
    negative = int((edges["sign"] == "neg").sum())
    return f"{text}  \n:small[:gray[Dotted: negative attribution outweighs positive ({negative} edges).]]"


def _edge_list(shown: Shown, edges: pd.DataFrame) -> None:
    """The edges as a table, largest first; a click on one picks it."""
    ranked = edges.sort_values("value", ascending=False, kind="stable", ignore_index=True)

    def pick() -> None:
        cells = st.session_state["cohort_edges_list"]["selection"]["cells"]
        if cells:
            row = ranked.iloc[cells[0][0]]
            take((row["target"], row["region"]))

    listed = pd.DataFrame(
        {
            "region": [shown.title(name) for name in ranked["region"]],
            "target": [shown.title(name) for name in ranked["target"]],
            "share": 100 * ranked["value"],
        }
    )
    number = st.column_config.NumberColumn
    columns: Any = {"region": "Evidence from", "target": "for", "share": number("Share", format="%.1f %%", width=66)}
    st.markdown("##### Strongest first", help="Mean share of the target’s attribution. Click one to list its scans.")
    st.dataframe(
        listed, hide_index=True, column_config=columns, key="cohort_edges_list", on_select=pick,
        selection_mode="single-cell", height=530,
    )  # fmt: skip


# ---- dendrogram ----------------------------------------------------------------------------------


def _tree(shown: Shown) -> Link:
    matrix = _organs(shown, joined=False, background=False)
    try:
        trees = {name: clustering.cluster(matrix, name) for name in LINKAGES}
    except InputError:
        st.info("A tree needs two organs that are explained and are regions too.", icon=":material/info:")
        return {}
    titles = {name: f"{LINKAGES[name]} ({trees[name].cophenetic:.3f})" for name in LINKAGES}
    linkage = filters.asked_segments(ADDRESS, "Linkage (cophenetic correlation)", "linkage", titles, LINKAGE_HELP)
    tree = trees[linkage]
    left, right = st.columns([1, 1], gap="small")
    picked = shown.picked[0] if shown.picked and shown.picked[0] == shown.picked[1] else None
    with left:
        figure = dendrogram(tree, shown.labels, picked)
        _chart(shown, Chart("cohort_tree", "Organs that explain each other", TREE_HELP, figure, lambda: _joins(tree)))
    with right:
        table = shown.matrix()
        figure = organ_matrix(table, shown.labels, "mass", shown.picked, tree.order)
        _chart(shown, Chart("cohort_tree_matrix", "The same organs, cell by cell", MATRIX_HELP, figure, lambda: table))
    if shown.labels.joined:
        st.caption(
            "Organs one by one: a joined region is no target, as the attributions of its parts cannot be added up."
        )
    return {"linkage": [linkage]}


def _joins(tree: clustering.Dendrogram) -> pd.DataFrame:
    """The tree as a table: two branches, each named by its organs, and their distance."""
    branches: list[tuple[str, ...]] = [(name,) for name in tree.names]
    rows = []
    for first, second, distance, _ in tree.linkage:
        one, two = branches[int(first)], branches[int(second)]
        branches.append((*one, *two))
        rows.append((" ".join(one), " ".join(two), distance))
    return pd.DataFrame(rows, columns=["branch", "other_branch", "distance"]).assign(cophenetic=tree.cophenetic)


# ---- what every chart has ------------------------------------------------------------------------


def _chart(shown: Shown, chart: Chart, switch: Callable[[], object] | None = None) -> None:
    """Heading with its definition, a switch of its own, what to take away, and the figure that answers to clicks."""
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key=f"{chart.key}_head"):
        st.markdown(f"##### {words.plain(chart.heading)}", help=chart.text, width="stretch")
        if switch:
            switch()
        downloads.offer(chart.key, _name(shown, chart), lambda: _named(shown, chart.table()))
    st.plotly_chart(
        chart.figure, key=chart.key, on_select=(lambda: _pick(chart.key)) if chart.clicks else "ignore",
        selection_mode="points",
        config=downloads.CHART_CONFIG, alt=chart.heading,
    )  # fmt: skip


def _name(shown: Shown, chart: Chart) -> str:
    """Of the files: what is drawn, of whom, and under which filters."""
    chosen = shown.selection
    measure = f"{chosen.sign}-{chosen.value}" + ("" if chosen.background else "-without-background")
    told = [measure, *(["joined"] if chosen.joined else []), *filters.describe(chosen, shown.labels)]
    about = [shown.target] if chart.key == "cohort_boxes" else []
    return downloads.file_name(chosen.cohort, chosen.run, chart.key.removeprefix("cohort_"), *about, *told)


def _named(shown: Shown, table: pd.DataFrame) -> pd.DataFrame:
    """With the organs' titles behind their names."""
    for axis in ("region", "target"):
        if axis in table:
            titles = [shown.title(name) for name in table[axis]]
            table = table.copy()
            table.insert(list(table.columns).index(axis) + 1, f"{axis}_title", titles)
    return table


def _boxed(shown: Shown, stats: pd.DataFrame) -> pd.DataFrame:
    """Boxes as a table: the target first, values beyond the whiskers in one field."""
    beyond = [" ".join(f"{value:.6g}" for value in values) for values in stats["outliers"]]
    about = stats if "target" in stats else stats.assign(target=shown.target)
    return about.assign(outliers=beyond)[["target", *(name for name in about.columns if name != "target")]]


def _pick(key: str) -> None:
    """A click on a box names its region, one on a cell also its target; one on the same place again, nothing."""
    points = st.session_state[key]["selection"]["points"]
    named = [str(name) for name in points[0]["customdata"]] if points else []
    target = st.session_state[ADDRESS.key("target")]
    take((*([target] if len(named) == 1 else []), *named) if named else None)


def take(picked: tuple[str, ...] | None) -> None:
    """Let the list below be about this pair, and the page about its target."""
    st.session_state[PICKED] = picked
    if picked:
        st.session_state[ADDRESS.key("target")] = picked[0]
