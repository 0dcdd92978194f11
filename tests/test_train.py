"""Training: what it writes is a bundle as the model zoo writes them, and a stopped one goes on where it was."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from agg2exp_core import cli, volumes
from agg2exp_core.model import fitting
from agg2exp_core.model import train as training
from agg2exp_core.model.bundle import find_bundle, load_weights
from agg2exp_core.model.fitting import Fitting
from agg2exp_core.model.plan import TrainPlan
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError, Volume
from agg2exp_core.settings import list_models
from agg2exp_core.store import cohorts

PLAN = TrainPlan(steps=3, validate=1, window=32, network="segresnet")
WORDS = {"cohort": "small", "label_set": "thorax17", "network": "swinunetr", "steps": 1, "seed": 0}
WORDS |= {"spacing": 5.0, "window": 64}
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
    cli.train(**WORDS | {"network": network, "seed": 3}, model="net", data=root)
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


class Stopped(Exception):
    """The user's Ctrl-C, at a known step."""


@pytest.mark.parametrize("network", ["swinunetr", "segresnet"])
def test_a_stopped_training_goes_on_to_the_same_weights(root, monkeypatch, network):
    """Stopped twice by a fault: after a state was stored, and before one was, so that a step is made again."""
    if network == "swinunetr":  # in bfloat16 its smallest convolutions round otherwise from run to run
        monkeypatch.setattr(fitting, "_computes_bfloat16", lambda device: False)
    words = WORDS | {"network": network, "steps": 3, "window": 32 if network == "segresnet" else 64, "data": root}
    cli.train(model="whole", **words)
    advance = Fitting.advance
    for last, every in ((1, 0.0), (2, np.inf)):
        monkeypatch.setattr(training, "EVERY", every)

        def advance_and_stop(self: Fitting, last: int = last) -> None:
            if self.step == last:
                raise Stopped
            advance(self)

        monkeypatch.setattr(Fitting, "advance", advance_and_stop)
        with pytest.raises(Stopped):
            cli.train(model="stopped", **words)
        assert list_models(root) == ["whole"]
    with pytest.raises(InputError, match="goes on as it began"):
        cli.train(model="stopped", **words | {"seed": 2})
    monkeypatch.setattr(Fitting, "advance", advance)
    cli.train(model="stopped", **words)
    whole, stopped = (find_bundle(root, name) for name in ("whole", "stopped"))
    for name in ("model.safetensors", "last.safetensors"):
        files = [bundle.folder / "models" / name for bundle in (whole, stopped)]
        assert files[0].read_bytes() == files[1].read_bytes()
    records = [json.loads((bundle.folder / "docs" / "training.json").read_text()) for bundle in (whole, stopped)]
    assert records[0]["loss"] == records[1]["loss"]
    assert not list((root / "models").glob("*/training.pt")) and not list((root / "models").glob(".*.training"))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_loses_no_finished_step(root, monkeypatch, kind):
    """Amid the second step, and then amid the look at the held-out cases after the last."""
    words = WORDS | {"network": "segresnet", "steps": 3, "window": 32, "data": root}
    cli.train(model="whole", **words)
    advance, look, made, looks = Fitting.advance, training.held_out_dice, [], []

    def advance_and_be_told(self: Fitting) -> None:
        made.append(self.step)
        if made == [0, 1]:
            os.kill(os.getpid(), kind)
        advance(self)

    def look_and_be_told(*given):
        looks.append(given)
        if len(looks) == 1:
            os.kill(os.getpid(), kind)
        return look(*given)

    monkeypatch.setattr(Fitting, "advance", advance_and_be_told)
    monkeypatch.setattr(training, "held_out_dice", look_and_be_told)
    before = signal.getsignal(kind)
    for step in (2, 3):
        with pytest.raises(KeyboardInterrupt if kind == signal.SIGINT else SystemExit):
            cli.train(model="stopped", **words)
        state = torch.load(root / "models" / ".stopped.training" / training.STATE, weights_only=True)
        assert state["step"] == step and signal.getsignal(kind) == before
    cli.train(model="stopped", **words)
    assert made == [0, 1, 2]
    files = [find_bundle(root, name).folder / "models" / "last.safetensors" for name in ("whole", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_best_weights_are_the_models_and_the_last_are_kept(root, monkeypatch):
    """Dice as if the second of three looks had been the best."""
    scores, seen = iter([0.1, 0.9, 0.3, 0.5]), []

    def dice(bundle, network, pairs, report):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return dict.fromkeys(ORGANS[1:], next(scores))

    monkeypatch.setattr(training, "held_out_dice", dice)
    bundle = training.write_bundle(root / "models" / "net", load_label_set("thorax17"), PLAN)
    pairs = [(case.image, case.label) for case in cohorts.list_cases(root, "small")]
    record = training.train(bundle, pairs, PLAN, lambda *_: None)
    assert record["best_step"] == 2 and [row["held_out_dice"] for row in record["loss"]] == [0.1, 0.9, 0.3]
    for name, wanted in (("model.safetensors", seen[1]), ("last.safetensors", seen[2])):
        stored = load_weights(bundle.folder / "models" / name)
        assert all((stored[key] == wanted[key].half().float()).all() for key in stored)


def relabelled(root: Path, name: str, value: int) -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[10:] = value
    path = root / "cohorts" / "small" / "labels" / f"{name}.nii.gz"
    volumes.write_volume(path, Volume(labels, np.diag([5.0, 5, 5, 1])))


def test_an_organ_that_no_held_out_case_has_has_no_dice(root, capsys):
    cli.train(**WORDS | {"network": "segresnet", "window": 32}, model="net", data=root)
    record = json.loads((root / "models" / "net" / "docs" / "training.json").read_text())
    dice = record["held_out_dice"]
    assert {name for name, score in dice.items() if score is not None} == {"heart"}
    assert record["loss"][-1]["held_out_dice"] == dice["heart"]
    said = capsys.readouterr().out
    assert f"mean {dice['heart']:.3f}, worst heart" in said and "no held-out case has aorta" in said


@pytest.mark.parametrize(("value", "told"), [(99, "99 in b.nii.gz"), (0, "must have an organ")])
def test_held_out_labels_are_looked_at_before_the_first_step(root, monkeypatch, value, told):
    relabelled(root, "b", value)
    monkeypatch.setattr(Fitting, "advance", lambda self: pytest.fail("a step was made"))
    with pytest.raises(InputError, match=told):
        cli.train(**WORDS | {"network": "segresnet", "window": 32}, model="net", data=root)
    assert [path.name for path in (root / "models").rglob("*")] == [".net"]  # the lock


def test_labels_that_were_refused_can_be_mended(root):
    relabelled(root, "b", 0)
    words = WORDS | {"network": "segresnet", "window": 32, "steps": 1, "data": root}
    with pytest.raises(InputError, match="must have an organ"):
        cli.train(**words, model="net")
    relabelled(root, "b", 1)
    cli.train(**words, model="net")
    assert list_models(root) == ["net"]


def test_a_stopped_training_does_not_go_on_with_other_labels(root, monkeypatch):
    def stop(self: Fitting) -> None:
        raise Stopped

    words = WORDS | {"network": "segresnet", "window": 32, "data": root}
    monkeypatch.setattr(Fitting, "advance", stop)
    with pytest.raises(Stopped):
        cli.train(model="net", **words)
    relabelled(root, "a", 1)
    with pytest.raises(InputError, match="other parameters or files"):
        cli.train(model="net", **words)


def test_labels_are_read_as_the_list_of_the_cohort_tells(root):
    """Of eight organs: a model of the 17 of another label set came of it."""
    (root / "label_sets").mkdir()
    text = "id,name,group,color\n0,background,background,#000000\n"
    rows = [f"{number},{'heart' if number == 8 else f'part{number}'},organs,#ff0000" for number in range(1, 9)]
    (root / "label_sets" / "mine.csv").write_text(text + "\n".join(rows))
    path = root / "cohorts" / "small" / "cases.csv"
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first + ",label_set", *(row + ",mine" for row in others)]) + "\n")
    cli.train(**WORDS | {"network": "segresnet"}, model="net", data=root)
    bundle = find_bundle(root, "net")
    assert bundle.label_set == "mine" and bundle.classes[-1] == "heart" and len(bundle.classes) == 9
    (root / "label_sets" / "mine.csv").write_text(text + rows[-1])
    with pytest.raises(InputError, match="numbered one by one; got the label set mine: 0, 8"):
        cli.train(**WORDS, model="other", data=root)


def test_a_taken_name_and_a_cohort_without_labels_are_refused(root):
    (root / "models" / "net").mkdir(parents=True)
    with pytest.raises(InputError, match="free"):
        cli.train(**WORDS, model="net", data=root)
    with pytest.raises(InputError, match="swinunetr, segresnet"):
        cli.train(**WORDS | {"network": "vnet"}, model="other", data=root)
    cohorts.append_case(root, "bare", {"case_id": "a", "image": "", "label": ""})
    with pytest.raises(InputError, match="at least 2"):
        cli.train(**WORDS | {"cohort": "bare"}, model="other", data=root)
    assert not (root / "models" / "other").exists()
