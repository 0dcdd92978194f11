"""The cohort's charts: the numbers that were given are the numbers that are drawn, where a click finds them."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from agg2exp_core.analysis import clustering, graph, summary
from agg2exp_core.analysis.importance import Importance
from agg2exp_core.organs import BACKGROUND, load_label_set, made_label_set
from dashboard.charts import common
from dashboard.charts.boxes import CLICK_COLUMNS, MOST_OUTLIERS, region_boxes, thinned
from dashboard.charts.composition import OWN, composition_bars, parts_of
from dashboard.charts.dendrogram import dendrogram
from dashboard.charts.graph import Focus, edge_graph
from dashboard.charts.histograms import histogram_grid
from dashboard.charts.matrix import organ_matrix

LABELS = load_label_set("thorax17")
REGIONS = ["heart", "ribs", "aorta", "somewhere_else"]


def _stats() -> pd.DataFrame:
    middle = np.array([0.5, 0.2, 0.1, 0.05])
    return pd.DataFrame(
        {
            "region": REGIONS, "n": [30, 30, 29, 0], "low": middle / 2, "q1": middle * 0.8, "median": middle,
            "q3": middle * 1.2, "high": middle * 1.5, "mean": middle,
            "outliers": [[0.9, 0.01], [], list(np.linspace(0.3, 0.6, 500)), []],
        }
    )  # fmt: skip


def _matrix() -> pd.DataFrame:
    names = ["background", "ribs", "aorta"]
    cells = [(target, region) for target in names for region in names]
    values = np.arange(1, 10) / 45
    values[5] = np.nan
    return pd.DataFrame(cells, columns=["target", "region"]).assign(value=values, n=[4, 4, 4, 4, 4, 0, 4, 4, 4])


def _clickable(figure):
    return next(trace for trace in figure.data if trace.customdata is not None)


def test_organs_that_no_label_set_describes_keep_their_class_and_get_a_colour_each() -> None:
    names = [f"organ_{number}" for number in range(1, 118)]
    made = made_label_set("a_bundle", ["background", *names, "organ_1"])
    assert [made[name].id for name in ("background", "organ_1", "organ_117")] == [0, 1, 117]
    assert made["organ_1"].title == "Organ 1" and made.groups == ("background", "organs")
    assert len({organ.color for organ in made.organs}) == 118


def test_boxes_keep_order_and_quartiles() -> None:
    figure = region_boxes(_stats(), LABELS, "mass")
    drawn = {
        int(place): (q1, median, q3, low, high)
        for box in figure.data
        if box.type == "box"
        for place, q1, median, q3, low, high in zip(
            box.y, box.q1, box.median, box.q3, box.lowerfence, box.upperfence, strict=True
        )
    }
    assert drawn[0] == pytest.approx((40, 50, 60, 25, 75)) and drawn[2] == pytest.approx((8, 10, 12, 5, 15))
    names = [text.partition(" <")[0] for text in figure.layout.yaxis.ticktext]
    assert names == ["Heart", "Ribs", "Aorta"]  # a region that no scan has gets no box
    top, bottom = figure.layout.yaxis.range[1], figure.layout.yaxis.range[0]
    assert top < 0 < bottom  # the largest median on top


def test_boxes_take_their_groups_colour() -> None:
    colors = {box.name: box.line.color for box in region_boxes(_stats(), LABELS, "mean").data if box.type == "box"}
    assert colors == {"Cardiovascular system": LABELS["aorta"].color, "Skeleton": LABELS["ribs"].color}


def test_every_box_answers_to_a_click_along_its_whole_row() -> None:
    figure = region_boxes(_stats(), LABELS, "mass", picked="aorta")
    grid = _clickable(figure)
    for place, region in enumerate(REGIONS[:3]):
        xs = [x for x, y, (name,) in zip(grid.x, grid.y, grid.customdata, strict=True) if y == place and name == region]
        assert len(xs) == CLICK_COLUMNS and (xs[0], xs[-1]) == (0, pytest.approx(90))
    assert "median 50.0 %" in grid.text[0] and "2 beyond" in grid.text[0]
    assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].y1) == (1.5, 2.5)


def test_of_many_outliers_both_ends_are_drawn() -> None:
    kept = thinned(np.random.default_rng(0).permutation(5000))
    assert len(kept) == MOST_OUTLIERS and (kept[0], kept[-1]) == (0, 4999)
    assert list(thinned([3.0, 1.0])) == [1.0, 3.0]


def test_cells_show_and_answer_for_the_same_target_and_region() -> None:
    table = _matrix()
    figure = organ_matrix(table, LABELS, "mass", picked=("ribs", "background"))
    order = ["aorta", "ribs", "background"]  # group by group, background last
    drawn, grid = figure.data[0], _clickable(figure)
    given = table.set_index(["target", "region"])["value"]
    for x, y, (target, region) in zip(grid.x, grid.y, grid.customdata, strict=True):
        assert (order[y], order[x]) == (target, region)
        assert drawn.z[y][x] ** 2 == pytest.approx(given[target, region], nan_ok=True)
    frame = figure.layout.shapes[0]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (1.5, 2.5, 0.5, 1.5)


def test_a_cell_says_its_share_in_words_and_an_absent_one_that_it_is_absent() -> None:
    grid = _clickable(organ_matrix(_matrix(), LABELS, "mass"))
    told = {tuple(names): text for names, text in zip(grid.customdata, grid.text, strict=True)}
    assert "<b>Aorta</b>" in told["aorta", "ribs"] and "17.8 % lies on" in told["aorta", "ribs"]
    assert "in none of these scans" in told["ribs", "aorta"]


@pytest.mark.parametrize("measure", ["mass", "mean"])
def test_the_colour_bar_is_labelled_with_the_values_it_colours(measure: str) -> None:
    bar = organ_matrix(_matrix(), LABELS, measure).data[0].colorbar
    for place, text in zip(bar.tickvals, bar.ticktext, strict=True):
        value = float(text.rstrip(" %")) / (100 if measure == "mass" else 1)
        assert place**2 == pytest.approx(value, rel=0.05, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "measure", "shown"),
    [(0.0969, "mass", "9.7 %"), (5432.1, "mean", "5430"), (0.000123, "mean", "0.000123"), (float("nan"), "mass", "–")],
)
def test_numbers_in_words(value: float, measure: str, shown: str) -> None:
    assert common.number(value, measure) == shown


def _masses(cases: int = 40) -> Importance:
    """Shares of three organs on themselves and each other, one value absent."""
    names = ("heart", "lung_upper_lobe_left", "ribs")
    values = np.random.default_rng(0).dirichlet([1, 2, 3], (cases, 3))
    values[0, 0, 1] = np.nan
    return Importance(tuple(map(str, range(cases))), names, names, values)


def test_histograms_count_every_scan_once_and_share_their_axes() -> None:
    masses = _masses()
    names = list(enumerate(masses.targets))
    cells = {(target, region): masses.values[:, row, column] for row, target in names for column, region in names}
    bins = summary.histograms(cells)
    counted = bins.groupby(["target", "region"])["count"].sum()
    assert counted["heart", "lung_upper_lobe_left"] == 39 and set(counted.drop(("heart", "lung_upper_lobe_left"))) == {
        40
    }
    assert bins["low"].min() == 0 and bins["high"].max() == np.nanmax(masses.values)
    figure = histogram_grid(bins, LABELS, "mass", ("ribs", "heart"))
    bars = [trace for trace in figure.data if trace.type == "bar"]
    assert len(bars) == 9 and sum(sum(bar.y) for bar in bars) == 359
    own = [bar.marker.color == common.GREY for bar in bars]
    assert own == [False, True, True, True, False, True, True, True, False]  # the diagonal has its group's colour
    picks = {tuple(pick) for trace in figure.data if trace.customdata is not None for pick in trace.customdata}
    assert picks == set(itertools.product(masses.targets, masses.regions))


def test_a_composition_sums_to_one_and_knows_the_organ_itself_joined_too() -> None:
    rows = [("heart", "heart", 0.2), ("heart", "aorta", 0.3), ("heart", "lung", 0.1), ("heart", BACKGROUND, 0.4)]
    rows += [("lung_upper_lobe_left", "lung", 0.7), ("lung_upper_lobe_left", "trachea", 0.3)]
    parts = parts_of(pd.DataFrame(rows, columns=["target", "region", "mean"]), LABELS)
    shares = parts.set_index(["target", "part"])["share"]
    assert shares["heart", OWN] == 0.2 and shares["heart", "cardiovascular system"] == 0.3
    assert shares["lung_upper_lobe_left", OWN] == 0.7 and shares["lung_upper_lobe_left", "other organs"] == 0.3
    figure = composition_bars(parts, LABELS, ["lung_upper_lobe_left", "heart"])
    assert np.sum([bar.x for bar in figure.data], axis=0) == pytest.approx([100, 100])


def test_an_arrow_answers_for_its_edge_and_says_its_sign() -> None:
    matrix = pd.DataFrame([[0.5, -0.2], [0.3, 0.0]], index=["heart", "ribs"], columns=["heart", "ribs"])
    edges = graph.top_edges(matrix)
    figure = edge_graph(edges, LABELS, Focus("heart", ("ribs", "heart")), list(matrix.index))
    assert {tuple(pick) for pick in figure.data[-1].customdata} == {
        ("heart", "heart"), ("heart", "ribs"), ("ribs", "heart"),
    }  # fmt: skip
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    looks = {(line.line.color, line.line.dash) for line in lines}
    assert looks == {
        (LABELS["aorta"].color, "solid"), (LABELS["ribs"].color, "dot"), (common.PICKED, "solid"),
    }  # fmt: skip
    organs = next(trace for trace in figure.data if trace.mode == "markers+text")
    assert list(organs.text) == ["Heart", "Ribs"]
    widths = {line.line.color: line.line.width for line in lines}
    assert widths[LABELS["aorta"].color] > widths[LABELS["ribs"].color]


def test_a_graph_without_edges_shows_its_organs() -> None:
    empty = graph.top_edges(pd.DataFrame([[np.nan]], index=["heart"], columns=["heart"]))
    organs = next(trace for trace in edge_graph(empty, LABELS, Focus(), ["heart"]).data if trace.mode == "markers+text")
    assert list(organs.text) == ["Heart"]


def test_branches_meet_at_their_distance_and_leaves_answer() -> None:
    names = ["heart", "aorta", "ribs"]
    matrix = pd.DataFrame([[0.64, 0.3, 0.01], [0.3, 0.64, 0.02], [0.01, 0.01, 0.64]], index=names, columns=names)
    tree = clustering.cluster(matrix, "average")
    figure = dendrogram(tree, LABELS, "ribs")
    joins = [trace for trace in figure.data if trace.mode == "lines"]
    assert [join.x[1] for join in joins] == pytest.approx(list(tree.linkage[:, 2]))
    assert [join.line.color for join in joins] == [LABELS["aorta"].color, common.GREY]
    for trace in figure.data:
        for place, pick in zip(trace.y, trace.customdata if trace.customdata is not None else (), strict=False):
            assert list(pick) == [tree.order[place]] * 2
    titles = [text.partition(" <")[0] for text in figure.layout.yaxis.ticktext]
    assert titles == [LABELS[name].title for name in tree.order]


def test_a_matrix_follows_a_given_order_and_keeps_what_it_lacks() -> None:
    figure = organ_matrix(_matrix(), LABELS, "mass", order=["ribs", "lung"])
    assert [text.partition(" <")[0] for text in figure.layout.yaxis.ticktext] == ["Ribs", "Aorta", "Background"]


def test_a_joined_organ_stands_where_its_first_part_does_and_has_a_title() -> None:
    names = pd.Series(["trachea", "lung", "autochthon", "heart", BACKGROUND, "lung_lower_lobe_left"])
    order = ["heart", "lung", "lung_lower_lobe_left", "trachea", "autochthon", BACKGROUND]
    assert common.in_group_order(names, LABELS) == order
    titles = [common.organ_of(LABELS, name).title for name in ("lung", "autochthon")]
    assert titles == ["Lung", "Deep back muscles"] and common.organ_of(LABELS, "lung").group == "other organs"
    assert common.own_region(LABELS, "lung_lower_lobe_left", ["lung", "heart"]) == "lung"
    assert common.own_region(LABELS, "lung_lower_lobe_left", ["heart"]) is None


# ---- colours ---------------------------------------------------------------------------------------

SIGHTS = {
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900],
    ],
}  # fmt: skip
"""What linear RGB becomes: Machado, Oliveira and Fernandes 2009, severity 1."""

TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)
WHITE = np.array([0.95047, 1, 1.08883])


def _seen(color: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of #rrggbb."""
    coded = np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.array(SIGHTS[sight]) @ linear, 0, 1) / WHITE
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_are_told_apart_by_every_eye(sight: str) -> None:
    """Groups by a ΔE of 20; no organ's outline turns into the grey of a scan."""
    groups = {group: _seen(color, sight) for group, color in common.group_colors(LABELS).items()}
    for one, other in itertools.combinations(groups, 2):
        assert math.dist(groups[one], groups[other]) > 20, (one, other)
    for organ in LABELS.organs:
        if organ.name != BACKGROUND:
            assert math.hypot(*_seen(organ.color, sight)[1:]) > 12, organ.name


def test_charts_know_no_streamlit() -> None:
    charts = ("bars", "boxes", "composition", "dendrogram", "graph", "histograms", "matrix")
    imports = "; ".join(["import sys", *(f"import dashboard.charts.{chart}" for chart in charts)])
    script = f"{imports}; sys.exit('streamlit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
