"""The cohort's charts: the numbers that were given are the numbers that are drawn, where a click finds them."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from agg2exp_core.analysis import clustering, graph, summary
from agg2exp_core.analysis.importance import Importance
from agg2exp_core.analysis.raters import agreement
from agg2exp_core.organs import BACKGROUND, load_label_set, made_label_set, numbered
from agg2exp_core.records import InputError
from agg2exp_core.store.reviews import Item
from dashboard.charts import common
from dashboard.charts.boxes import MOST_OUTLIERS, region_boxes, thinned
from dashboard.charts.change import signed
from dashboard.charts.common import CHART_HEIGHT
from dashboard.charts.composition import OWN, composition_bars, parts_of
from dashboard.charts.confusion import confusion
from dashboard.charts.dendrogram import dendrogram
from dashboard.charts.dice_changes import dice_changes
from dashboard.charts.differences import Look, difference_matrix
from dashboard.charts.graph import Focus, edge_graph
from dashboard.charts.histograms import histogram_grid
from dashboard.charts.matrix import organ_matrix
from dashboard.charts.scans import MOST_DOTS, scatter_of_scans, spread, strips_of_scans
from dashboard.charts.side_boxes import side_by_side_boxes

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


@pytest.mark.parametrize("picked", [None, "aorta"])
def test_plotly_agrees_with_the_charts_that_it_is_not_asked_to_check(picked: str | None) -> None:
    cell = None if picked is None else ("ribs", picked)
    for figure in (region_boxes(_stats(), LABELS, "mass", picked), organ_matrix(_matrix(), LABELS, "mean", cell)):
        assert len(go.Figure(figure.to_dict()).data) == len(figure.data) > 1


def test_boxes_take_their_groups_colour() -> None:
    colors = {box.name: box.line.color for box in region_boxes(_stats(), LABELS, "mean").data if box.type == "box"}
    assert colors == {"Cardiovascular system": LABELS["aorta"].color, "Skeleton": LABELS["ribs"].color}


def test_every_box_answers_to_a_click_along_its_whole_row() -> None:
    figure = region_boxes(_stats(), LABELS, "mass", picked="aorta")
    grid = _clickable(figure)
    for place, region in enumerate(REGIONS[:3]):
        own = [x for x, y in zip(grid.x, grid.y, strict=True) if y == place]
        assert {name for y, (name,) in zip(grid.y, grid.customdata, strict=True) if y == place} == {region}
        assert np.diff(own) == pytest.approx(90 / common.CLICK_COLUMNS) and own[0] == pytest.approx(90 - own[-1])
    # The nearest point answers, so that no part of a row is out of reach.
    assert figure.layout.hoverdistance == -1
    assert len(grid.x) == 3 * common.CLICK_COLUMNS
    assert "median 50.0 %" in grid.text[0] and "2 beyond" in grid.text[0]
    frame = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (frame.y0, frame.y1) == (1.5, 2.5)


def test_few_organs_do_not_fill_the_height_of_many() -> None:
    few = organ_matrix(_matrix(), LABELS, "mass").layout.height
    many = pd.concat([_matrix().assign(target=organ.name) for organ in LABELS.organs])
    assert few < CHART_HEIGHT == organ_matrix(many.drop_duplicates(["target", "region"]), LABELS, "mass").layout.height


def test_values_beyond_the_whiskers_are_ticks_in_their_row() -> None:
    shapes = region_boxes(_stats(), LABELS, "mass").layout.shapes
    paths = " ".join(shape.path for shape in shapes if shape.type == "path")
    ticks = [tuple(map(float, numbers)) for numbers in re.findall(r"M([\d.-]+),([\d.-]+)L([\d.-]+),([\d.-]+)", paths)]
    assert len(ticks) == 2 + MOST_OUTLIERS
    assert all(left == right and round(low) == round(high) for left, low, right, high in ticks)
    assert {(x, round(y)) for x, y, _, _ in ticks if y < 1} == {(90, 0), (1, 0)}


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
    names = (
        "bars", "boxes", "composition", "dendrogram", "dice_changes", "differences", "graph", "histograms", "matrix",
        "scans", "side_boxes",
    )  # fmt: skip
    imports = f"import sys, {', '.join(f'dashboard.charts.{name}' for name in names)}"
    script = f"{imports}; sys.exit('streamlit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


# ---- two sets --------------------------------------------------------------------------------------

LOOK = Look(LABELS, "mass", ("old", "new"))


def _compared() -> pd.DataFrame:
    """Nine pairs; the fourth, ribs on the background, is significant, the fifth excludes zero alone; one is absent."""
    table = _matrix().rename(columns={"value": "first"})
    difference = np.array([0, 0.01, -0.01, 0.09, -0.04, np.nan, 0.02, 0, 0.01])
    adjusted = np.array([1, 0.9, 0.9, 0.01, 0.2, np.nan, 0.6, 1, 0.9])
    low, high = difference - 0.03, difference + 0.03
    return table.assign(
        second=table["first"] + difference, difference=difference, low=low, high=high, p=adjusted / 5,
        p_adjusted=adjusted, n_first=table["n"], n_second=table["n"],
    )  # fmt: skip


def test_differences_stand_in_their_cells_in_full_colour_only_if_significant() -> None:
    figure = difference_matrix(_compared(), LOOK, picked=("ribs", "background"))
    clear, faded = (np.array(figure.data[layer].z, float) for layer in (0, 1))
    at = {"aorta": 0, "ribs": 1, "background": 2}
    for row in _compared().to_dict("records"):
        place = at[row["target"]], at[row["region"]]
        layer, other = (clear, faded) if row["p_adjusted"] <= 0.05 else (faded, clear)
        assert np.sign(layer[place]) * layer[place] ** 2 == pytest.approx(row["difference"], nan_ok=True)
        assert np.isnan(other[place])
    assert figure.data[0].zmin == -figure.data[0].zmax == pytest.approx(-0.3)  # zero in the middle
    assert figure.data[1].opacity < 1
    dots = figure.data[2]
    assert set(zip(dots.y, dots.x, strict=True)) == {(1, 2), (1, 1)}  # both intervals without zero


def test_a_difference_says_both_sets_its_interval_and_its_p() -> None:
    grid = _clickable(difference_matrix(_compared(), LOOK))
    told = {tuple(names): text for names, text in zip(grid.customdata, grid.text, strict=True)}
    text = told["ribs", "background"]
    for part in ("old: 8.9 %, 4 scans", "new: 17.9 %", "+9.0 points", "95 % +6.0 to +12.0", "adjusted p 0.010"):
        assert part in text
    assert "not in both sets" in told["ribs", "aorta"]


def test_two_boxes_a_region_the_first_set_above() -> None:
    second = _stats().assign(median=[0.4, 0.2, 0.6, 0.05])
    figure = side_by_side_boxes(_stats(), second, LOOK, picked="aorta")
    first, other = (box for box in figure.data if box.type == "box")
    assert (first.name, other.name) == ("old", "new")
    # By the larger median: aorta 0.6 of the second set, heart 0.5 of the first, ribs.
    assert [text.partition(" <")[0] for text in figure.layout.yaxis.ticktext] == ["Aorta", "Heart", "Ribs"]
    assert dict(zip(np.round(first.y), first.median, strict=True)) == pytest.approx({0: 10, 1: 50, 2: 20})
    assert dict(zip(np.round(other.y), other.median, strict=True)) == pytest.approx({0: 60, 1: 40, 2: 20})
    frame = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert all(np.array(first.y) < np.round(first.y)) and frame.y0 == -0.5


def test_dice_changes_keep_their_interval_and_fade_where_chance_could_explain_them() -> None:
    table = _compared()[lambda rows: rows["region"] == "background"]
    figure = dice_changes(table, replace(LOOK, measure="dice"))
    names = [text.partition(" <")[0] for text in figure.layout.yaxis.ticktext]
    drawn = {names[y]: (x, trace.opacity) for trace in figure.data for x, y in zip(trace.x, trace.y, strict=True)}
    assert names == ["Background", "Aorta", "Ribs"]  # the largest loss on top
    assert drawn["Ribs"] == (pytest.approx(0.09), 1) and drawn["Aorta"][1] == drawn["Background"][1] < 1
    ribs = next(trace for trace in figure.data if trace.opacity == 1 and len(trace.x))
    assert ribs.error_x.array[0] == pytest.approx(0.03) and ribs.error_x.arrayminus[0] == pytest.approx(0.03)


def test_scans_of_two_sets_are_drawn_where_their_values_are_and_open_their_own_run() -> None:
    pairs = pd.DataFrame({"case_id": ["a", "b"], "first": [0.1, 0.2], "second": [0.3, 0.1], "change": [0.2, -0.1]})
    dots = scatter_of_scans(pairs, LOOK).data[0]
    drawn = {names[0]: (x, y) for names, x, y in zip(dots.customdata, dots.x, dots.y, strict=True)}
    assert drawn["a"] == pytest.approx((10, 30)) and drawn["b"] == pytest.approx((20, 10))
    values = [0.1, 0.2, 0.3], [0.4, 0.5, 0.9]
    one, other = (pd.DataFrame({"case_id": list("abc"), "value": own}) for own in values)
    strips = [trace for trace in strips_of_scans(one, other, LOOK).data if trace.customdata is not None]
    assert [names[1] for trace in strips for names in trace.customdata] == ["first"] * 3 + ["second"] * 3
    assert list(strips[1].y) == pytest.approx([40, 50, 90])


def test_of_many_scans_both_ends_are_drawn() -> None:
    table = pd.DataFrame({"case_id": range(5000), "value": np.random.default_rng(0).permutation(5000)})
    kept = spread(table, "value")["value"]
    assert len(kept) == MOST_DOTS and (kept.min(), kept.max()) == (0, 4999)


@pytest.mark.parametrize(
    ("value", "measure", "shown"),
    [(0.123, "mass", "+12.3"), (-0.0004, "mass", "−0.04"), (0.0, "mass", "±0"), (-0.0124, "dice", "−0.012"),
     (1234.5, "mean", "+1230"), (float("nan"), "mass", "–")],
)  # fmt: skip
def test_differences_in_words(value: float, measure: str, shown: str) -> None:
    assert signed(value, measure) == shown


def test_a_model_that_numbers_organs_its_own_way_keeps_their_names_and_colours() -> None:
    own = numbered(LABELS, ["background", "aorta", "heart", "spleen"])
    assert [(organ.id, organ.name) for organ in own.organs] == [
        (0, "background"), (1, "aorta"), (2, "heart"), (3, "spleen"),
    ]  # fmt: skip
    assert own["heart"] == replace(LABELS["heart"], id=2) and own["spleen"].title == "Spleen"


@pytest.mark.parametrize(
    ("row", "rule"),
    [
        ("1,lung,organs,#112233,", "ids and names of their own; got broken.csv: 1 twice"),
        ("2,heart,organs,#112233,", "own; got broken.csv: 'heart' twice"),
        ("-2,lung,organs,#112233,", "must be a label value"), ("2,lung,organs,#112233,<b>Lung", "without < and >"),
    ],
)  # fmt: skip
def test_label_sets_that_would_mix_organs_or_bring_tags_are_refused(tmp_path: Path, row: str, rule: str) -> None:
    (tmp_path / "label_sets").mkdir()
    rows = ["id,name,group,color,title", "0,background,background,#9aa0a6,", "1,heart,organs,#aa0000,", row]
    (tmp_path / "label_sets" / "broken.csv").write_text("\n".join(rows))
    with pytest.raises(InputError, match=rule):
        load_label_set("broken", tmp_path)


# ---- reviewers -------------------------------------------------------------------------------------


def test_reviewers_names_are_no_tags() -> None:
    said = {Item("a", "heart"): "accept"}
    figure = confusion(agreement(said, said, ("Ada <ada@example.org>", "Bob")))
    assert figure.layout.yaxis.title.text == "Ada &lt;ada@example.org&gt;"
    assert figure.data[0].hovertemplate.startswith("Ada &lt;ada@example.org&gt;: ")
