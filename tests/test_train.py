"""Training: what it writes is a bundle as the model zoo writes them, and an interrupted one leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agg2exp_core import cli, volumes
from agg2exp_core.model import train as training
from agg2exp_core.model.bundle import find_bundle
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import list_models
from agg2exp_core.store import cohorts

ORGANS = load_label_set("thorax17").names


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two scans of noise in which one half is called heart."""
    folder = tmp_path / "cohorts" / "small"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed, name in enumerate(("a", "b")):
        hu = np.random.default_rng(seed).normal(0, 100, (20, 20, 20)).astype(np.int16)
        heart = np.zeros(hu.shape, np.uint8)
        heart[10:] = ORGANS.index("heart")
        for part, array in (("images", hu), ("labels", heart)):
            volumes.write_volume(folder / part / f"{name}.nii.gz", Volume(array, np.diag([5.0, 5, 5, 1])))
    cohorts.append_case(tmp_path, "small", {"case_id": "a", "image": "images/a.nii.gz", "label": "labels/a.nii.gz"})
    cohorts.append_case(tmp_path, "small", {"case_id": "b", "image": "images/b.nii.gz", "label": "labels/b.nii.gz"})
    return tmp_path


@pytest.mark.parametrize(("network", "target"), [("swinunetr", "SwinUNETR"), ("segresnet", "SegResNet")])
def test_a_trained_model_is_a_bundle_with_its_record(root, capsys, network, target):
    cli.train(cohort="small", model="net", label_set="thorax17", network=network, steps=1, seed=3, data=root)
    assert "held-out Dice" in capsys.readouterr().out
    bundle = find_bundle(root, "net")
    assert bundle.classes == ORGANS and bundle.label_set == "thorax17"
    assert bundle.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]["8"] == "heart"
    config = json.loads((bundle.folder / "configs" / "inference.json").read_text())
    assert config["network_def"]["_target_"] == target
    assert {"network_def", "preprocessing", "inferer"} <= set(config)
    record = json.loads((bundle.folder / "docs" / "training.json").read_text())
    assert record["plan"]["seed"] == 3 and set(record["held_out_dice"]) == set(ORGANS[1:])
    assert list_models(root) == ["net"]


def test_an_interrupted_training_leaves_no_model(root, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cli.train(cohort="small", model="net", label_set="thorax17", steps=1, seed=0, data=root)
    assert list((root / "models").iterdir()) == []


def test_a_taken_name_and_a_cohort_without_labels_are_refused(root):
    (root / "models" / "net").mkdir(parents=True)
    with pytest.raises(InputError, match="free"):
        cli.train(cohort="small", model="net", label_set="thorax17", steps=1, seed=0, data=root)
    with pytest.raises(InputError, match="swinunetr, segresnet"):
        cli.train(cohort="small", model="other", label_set="thorax17", network="vnet", data=root)
    cohorts.append_case(root, "bare", {"case_id": "a", "image": "", "label": ""})
    with pytest.raises(InputError, match="at least 2"):
        cli.train(cohort="bare", model="other", label_set="thorax17", steps=1, seed=0, data=root)
    assert not (root / "models" / "other").exists()
