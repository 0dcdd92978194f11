"""Half precision: measured, chosen by what was measured, and never that of predictions."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command import run
from monai.inferers import SlidingWindowInferer
from tiny import explainer_of, inferer_of, write_bundle

from agg2exp_core import pipeline, precision, volumes
from agg2exp_core.attribution import precision as comparing
from agg2exp_core.precision import Measured
from agg2exp_core.records import InputError, Method, Volume
from agg2exp_core.store import results


@pytest.fixture
def root(tmp_path):
    """A data root with a model `tiny` and a scan."""
    write_bundle(tmp_path / "data", "tiny")
    scan = np.random.default_rng(0).normal(-300, 400, (18, 16, 14)).astype(np.int16)
    volumes.write_volume(tmp_path / "scan.nii.gz", Volume(scan, np.diag([4.0, 4, 4, 1])))
    return tmp_path / "data"


def explain(root, out, *words: str) -> dict:
    """The manifest of the scan explained into a folder `out`."""
    options = ["--model", "tiny", "--image", root.parent / "scan.nii.gz", "--out", out, "--data", root]
    assert run("explain", *options, "--samples", "2", "--device", "cpu", *words) == 0
    return results.read_manifest(out)


@pytest.mark.parametrize(
    ("error", "speedup", "chosen"),
    [
        (0.0, 2.0, "bfloat16"),
        (0.002, 1.2, "bfloat16"),
        (0.0021, 9.0, "float32"),
        (0.0, 1.1, "float32"),
        (float("nan"), 9.0, "float32"),
    ],
)
def test_half_precision_is_chosen_where_it_is_right_and_faster(error, speedup, chosen):
    assert Measured(error, speedup).chosen == chosen


def test_a_network_that_looks_at_nothing_is_no_error_of_half_precision():
    network = torch.nn.Conv3d(1, 3, 1).requires_grad_(False)
    network.weight.zero_()
    explainer = explainer_of(network, inferer_of((4, 4, 4)))
    assert comparing.compare_precisions(explainer, torch.rand(1, 4, 4, 4))[0] == 0


def test_a_check_stores_what_explaining_goes_by(root, tmp_path, capsys):
    before = explain(root, tmp_path / "before")
    assert run("model", "check", "tiny", "--image", tmp_path / "scan.nii.gz", "--device", "cpu", "--data", root) == 0
    assert "tiny on cpu: bfloat16 is off by 0.00" in capsys.readouterr().out
    found = precision.read_measured(root, "tiny", "cpu")
    assert 0 < found.mass_error < 0.01 and found.speedup > 0
    for measured in (Measured(0.001, 2.0), Measured(0.1, 2.0)):
        precision.write_measured(root, "tiny", "cpu", measured)
        manifest = explain(root, tmp_path / measured.chosen)
        expected = {"precision": "bfloat16"} if measured.chosen == "bfloat16" else {}
        assert manifest["parameters"] == before["parameters"] | expected
        assert manifest["model_hash"] == before["model_hash"]
    asked = explain(root, tmp_path / "asked", "--precision", "bfloat16")
    assert asked["parameters"]["precision"] == "bfloat16"
    tables = [results.read_importance(tmp_path / name) for name in ("before", "asked")]
    masses = [table.positive + table.negative for table in tables]
    off = np.abs(np.subtract(*[one / one.sum(axis=1, keepdims=True) for one in masses])).max()
    assert 0 < off < 0.01
    assert (tmp_path / "before/prediction.nii.gz").read_bytes() == (tmp_path / "asked/prediction.nii.gz").read_bytes()


@pytest.mark.parametrize(("half", "rounds"), [(1.0, 4), (3.0, 2)])
def test_half_precision_that_is_far_slower_is_not_tried_twice(monkeypatch, half, rounds):
    """A clock of its own: each explanation in half precision takes so many seconds, each in single one."""
    now, tried = [0.0], []

    def attributing(explainer, subject, wanted, method, report, keep=None):
        tried.append(method.precision)
        now[0] += half if method.precision == "bfloat16" else 1.0
        return found

    tally = SimpleNamespace(sums=lambda: (np.ones(2), np.ones(2)))
    found = SimpleNamespace(prediction=torch.ones(4, 4, 4), tallies={"heart": tally})
    monkeypatch.setattr(comparing, "attribute", attributing)
    monkeypatch.setattr(comparing.time, "perf_counter", lambda: now[0])
    inferer = SlidingWindowInferer((4, 4, 4))
    explainer = SimpleNamespace(classes=("background", "heart"), inferer=inferer)
    assert comparing.compare_precisions(explainer, torch.rand(1, 4, 4, 4)) == (0.0, 1 / half)
    assert len(tried) == 1 + rounds  # the first finds the largest organs


@pytest.mark.parametrize("content", ["", "[]", '{"cpu": 3}', '{"cpu": {"mass_error": 0.1}}', '{"cuda": {}}'])
def test_where_nothing_sound_was_measured_it_is_single_precision(root, content):
    (root / "models" / "tiny" / "precision.json").write_text(content)
    assert precision.read_measured(root, "tiny", "cpu") is None
    assert pipeline.Explaining(root, pipeline.Plan("tiny", Method(precision="auto"))).plan.method == Method()


def test_another_device_keeps_its_own(root):
    for device, error in (("cpu", 0.1), ("cuda", 0.0)):
        precision.write_measured(root, "tiny", device, Measured(error, 4.0))
    stored = json.loads((root / "models" / "tiny" / "precision.json").read_text())
    assert {device: one["mass_error"] for device, one in stored.items()} == {"cpu": 0.1, "cuda": 0.0}


def test_unknown_precisions_and_models_are_refused(root, tmp_path, capsys):
    with pytest.raises(InputError, match="precision must be a known one; got 'half'; allowed: auto, float32, bfloat16"):
        pipeline.Explaining(root, pipeline.Plan("tiny", Method(precision="half")))
    assert run("model", "check", "none", "--data", root) == 2
    assert "model must exist; got 'none'; allowed: tiny" in capsys.readouterr().err
    assert run("model", "check", "tiny", "--image", tmp_path / "none.nii.gz", "--data", root) == 2
    assert not (root / "models" / "tiny" / "precision.json").exists()


def test_gradients_alone_are_half_precise():
    assert Method("ablation", precision="bfloat16").parameters() == {}
    assert Method("gradient", precision="bfloat16").parameters() == {"precision": "bfloat16"}
