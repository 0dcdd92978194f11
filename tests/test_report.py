"""A still and a report: what is on the left stays there, numbers are those given, and nothing is fetched or run."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from agg2exp_core.organs import load_label_set
from agg2exp_core.records import Volume
from dashboard.report import CaseReport, case_report
from dashboard.viewer import slices
from dashboard.viewer.stage import Attribution, Look, Scene
from dashboard.viewer.still import still

LABELS = load_label_set("thorax17")
HEART = LABELS["heart"]
SHAPE, SPACING = (40, 30, 20), (2.0, 2.0, 4.0)


def _scene(at: tuple[int, int, int]) -> Scene:
    """Air, one strong voxel of attribution, and a heart in the corner of lowest indices."""
    affine = np.diag([*SPACING, 1])
    saliency, labels = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.uint8)
    saliency[at] = 1
    labels[2:8, 2:8, 2:8] = HEART.id
    volume = Volume(saliency, affine)
    attribution = Attribution(volume, 1.0, slices.peak(volume))
    scan = Volume(np.full(SHAPE, -1024, np.int16), affine)
    return Scene("a", scan, LABELS, HEART.id, Volume(labels, affine), attribution)


@pytest.mark.parametrize("plane", slices.PLANES, ids=lambda plane: plane.name)
def test_a_still_is_true_in_millimetres_and_shows_attribution_where_it_lies(plane: slices.Plane) -> None:
    at = (30, 20, 15)
    image = still(_scene(at), plane, at, Look(), height=240)
    sizes = [SHAPE[axis] * SPACING[axis] for axis in (plane.horizontal, plane.vertical)]
    assert image.height == 240 and image.width == round(240 * sizes[0] / sizes[1])
    bright = np.argwhere(np.asarray(image)[..., 0] > 60).mean(axis=0) / [image.height, image.width]
    row, column = slices.pixel(plane, at, SHAPE)
    expected = (row + 0.5) / SHAPE[plane.vertical], (column + 0.5) / SHAPE[plane.horizontal]
    assert bright == pytest.approx(expected, abs=0.02)


def test_a_still_outlines_the_target_in_its_colour() -> None:
    image = np.asarray(still(_scene((30, 20, 15)), slices.PLANES[0], (5, 5, 5), Look()))
    color = [int(HEART.color[place : place + 2], 16) for place in (1, 3, 5)]
    rows, columns = np.nonzero((image == color).all(axis=-1))
    # Low indices are the patient's left and back: on the right and at the bottom of a radiological slice.
    assert len(rows) and rows.min() > image.shape[0] / 2 and columns.min() > image.shape[1] / 2


def _report(**changes: object) -> str:
    table = pd.DataFrame(
        {
            "region": ["heart", "aorta", "ribs"], "value": [0.75, 0.25, np.nan],
            "absent": [None, None, "not predicted"],
            "q05": 0.1, "median": [0.5, 0.2, 0.1], "q95": 0.9,
        }
    )  # fmt: skip
    given = {"title": "<b>case</b>", "target": "heart", "labels": LABELS, "facts": {"sex": "<i>F</i>"}, "table": table}
    return case_report(CaseReport(**(given | changes)))  # type: ignore[arg-type]


def test_a_report_holds_its_numbers_and_needs_nothing_else() -> None:
    text = _report(scene=_scene((30, 20, 15)), at=(30, 20, 15), notes=["less <u>heart</u> than usual"])
    assert text.count("data:image/png;base64,") == 3
    assert "75.0 %" in text and "50.0 %" in text and "not predicted" in text and "Radiological" in text
    assert "http" not in text and "<script" not in text
    assert not any(tag in text for tag in ("<b>case", "<i>F", "<u>heart"))


def test_a_report_tells_what_its_numbers_are_how_sure_and_of_masks() -> None:
    row = {"value": 0.3, "absent": None, "q05": 0.1, "median": 0.2, "q95": 0.4, "error": 0.01}
    masked = pd.DataFrame([row | {"region_set": "pathology", "region": "pleural effusion"}])
    text = _report(table=pd.DataFrame([row | {"region": "heart"}]), masked=masked, counted="Share <all>.")
    assert "Pleural effusion (mask)" in text and text.count("30.0 % ± 2.0 %") == 2 and "Share &lt;all&gt;." in text


def test_a_report_of_a_table_says_that_no_image_is_stored() -> None:
    assert "No image is stored" in _report() and "data:image" not in _report()
