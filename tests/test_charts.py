"""The cohort's charts: the numbers that were given are the numbers that are drawn, where a click finds them."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from agg2exp_core.organs import load_label_set, made_label_set
from dashboard.charts import common
from dashboard.charts.boxes import CLICK_COLUMNS, MOST_OUTLIERS, region_boxes, thinned
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


def test_charts_know_no_streamlit() -> None:
    imports = "import sys, dashboard.charts.boxes, dashboard.charts.matrix, dashboard.charts.bars"
    script = f"{imports}; sys.exit('streamlit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
