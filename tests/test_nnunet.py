"""nnU-Net's trained folders: taken in, they give nnU-Net's own logits, and are explained like any other model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from command import run
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch.nn.functional import pad

from agg2exp_core import pipeline
from agg2exp_core.aggregation.regions import mass
from agg2exp_core.attribution.attribute import Explainer, Subject, attribute
from agg2exp_core.model.adding import Wrapping, add_model
from agg2exp_core.model.bundle import Bundle, Nested
from agg2exp_core.model.nnunet import CropToNonzerod, EvenInferer, Folds, NormalizeChannelsd, ResampleCubicd
from agg2exp_core.model.predict import predicted_organs, stitched_logits
from agg2exp_core.model.preprocess import load_scan, on_model_grid, scaled
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError, Method, Volume
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case
from agg2exp_core.volumes import read_labels, write_volume

OBLIQUE = np.array([[2.9, 0.3, 0.1, -40], [-0.3, 2.4, 0.4, 10], [0.1, -0.3, 4.1, 7], [0, 0, 0, 1.0]])
BOUNDS = {"percentile_00_5": -900.0, "percentile_99_5": 700.0, "mean": 30.0, "std": 250.0}
STAGES = {
    "features_per_stage": [4, 8], "kernel_sizes": [[1, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2]],
    "n_conv_per_stage_decoder": [1],
}  # fmt: skip
DEPTHS = {PlainConvUNet: "n_conv_per_stage", ResidualEncoderUNet: "n_blocks_per_stage"}

Folder = Callable[..., Path]


def _plans(kind: type = PlainConvUNet, **changed: Any) -> dict[str, Any]:
    parts = {
        "conv_op": "torch.nn.modules.conv.Conv3d", "conv_bias": True, "dropout_op": None, "dropout_op_kwargs": None,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    architecture = {
        "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind.__name__}",
        "arch_kwargs": STAGES | parts | {"n_stages": 2, DEPTHS[kind]: [1, 1]},
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    kwargs = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    full = {
        "data_identifier": "nnUNetPlans_3d_fullres", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
        "patch_size": [8, 16, 16], "spacing": [5.0, 3.0, 3.0], "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False], "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": kwargs,
        "resampling_fn_seg_kwargs": kwargs | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": kwargs | {"order": 1}, "batch_dice": True, "architecture": architecture,
    }  # fmt: skip
    return {
        "dataset_name": "Dataset001_Tiny", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
        "experiment_planner_used": "ExperimentPlanner",
        "foreground_intensity_properties_per_channel": {"0": BOUNDS},
        "configurations": {"base": full | changed, "3d_fullres": {"inherits_from": "base"}},
    }  # fmt: skip


def _with_part(**part: Any) -> dict[str, Any]:
    plans = _plans()
    plans["configurations"]["base"]["architecture"]["arch_kwargs"] |= part
    return plans


DATASET = {
    "channel_names": {"0": "CT"}, "labels": {"background": 0, "heart": 2, "aorta": 1, "ignore": 3},
    "numTraining": 2, "file_ending": ".nii.gz",
}  # fmt: skip


@pytest.fixture
def trained(tmp_path: Path) -> Folder:
    """Writes a folder as nnU-Net leaves it, of networks that were not trained."""

    def write(
        plans: dict[str, Any] | None = None, dataset: dict[str, Any] | None = None, folds: int = 1, seed: int = 0
    ) -> Path:
        folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_fullres"
        plans, dataset = plans or _plans(), dataset or DATASET
        folder.mkdir()
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(dataset))
        for fold in range(folds):
            (folder / f"fold_{fold}").mkdir()
            weights = _checkpoint(fold, seed, len(dataset["channel_names"]))
            torch.save(weights, folder / f"fold_{fold}" / "checkpoint_final.pth")
        return folder

    def _checkpoint(fold: int, seed: int, channels: int) -> dict[str, Any]:
        torch.manual_seed(fold + seed)
        return {
            "network_weights": network(channels).state_dict(), "trainer_name": "nnUNetTrainer",
            "init_args": {"configuration": "3d_fullres", "fold": fold}, "_best_ema": np.float32(0.5),
            "current_epoch": 1, "inference_allowed_mirroring_axes": (0, 2),
            "logging": {"losses": [np.float64(0.1), np.float32(0.2)]},
        }  # fmt: skip

    def network(channels: int) -> torch.nn.Module:
        stages = STAGES | {"n_conv_per_stage": [1, 1]}
        found = Folds("PlainConvUNet", stages, 3, 1, (2, 1, 0), channels=channels).folds[0]
        for parameter in found.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        return found

    return write


MRI = {
    "channel_names": {"0": "T1", "1": "CT"}, "file_ending": ".nii.gz",
    "labels": {"background": 0, "whole tumor": [1, 2, 3], "core": [2, 3], "enhancing": [3], "ignore": 4},
    "regions_class_order": [1, 3, 2],
}  # fmt: skip
"""Two channels and regions that hold each other. The order is one that must be refused: no region's own labels."""
BRAIN = MRI | {"labels": MRI["labels"] | {"core": [2, 3], "enhancing": [2]}}
"""The same with an order that serves: the core's label is 3, that of what lies in it 2."""


def _mri_plans(**changed: Any) -> dict[str, Any]:
    """T1 by the z-scores of what is not 0, CT by the dataset's intensities."""
    schemes = {"normalization_schemes": ["ZScoreNormalization", "CTNormalization"], "use_mask_for_norm": [True, False]}
    return _plans(**schemes | changed) | {"foreground_intensity_properties_per_channel": {"0": {}, "1": BOUNDS}}


@pytest.fixture
def channels(tmp_path: Path, scan: Path) -> list[Path]:
    """A second channel on the scan's grid, whose zeros are others and enclose some voxels of the first."""
    first = nib.load(scan)
    array = np.random.default_rng(1).normal(100, 200, first.shape).astype(np.int16)
    array[array == 0] = 1
    array[:4], array[:, :, -1], array[10:13, 10:13, 6:9] = 0, 0, 0
    holed = np.asarray(first.dataobj).copy()
    block = holed[2:-1, 3:, 1:]
    block += 400  # around 0, a mean over the zeros too would be nearly that of the voxels inside
    block[block == 0] = 1
    holed[11, 11, 7] = 0  # in no channel: a hole, which counts as inside
    write_volume(scan, Volume(holed, OBLIQUE))
    write_volume(tmp_path / "second.nii.gz", Volume(array, OBLIQUE))
    return [scan, tmp_path / "second.nii.gz"]


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Noise on a sound grid, oblique and thick, with an edge of zeros around it."""
    rng = np.random.default_rng(0)
    array = np.zeros((22, 26, 15), np.int16)
    array[2:-1, 3:, 1:] = rng.normal(0, 300, (19, 23, 14))
    write_volume(tmp_path / "scan.nii.gz", Volume(array, OBLIQUE))
    return tmp_path / "scan.nii.gz"


# ---- parts by hand -----------------------------------------------------------------------------------


def test_windows_are_spread_evenly() -> None:
    inferer = EvenInferer((64, 4, 6), overlap=0.5)
    windows = inferer.slices((110, 4, 7))
    starts = [sorted({window[axis].start for window in windows}) for axis in range(3)]
    assert starts == [[0, 23, 46], [0], [0, 1]] and len(windows) == 6
    weight = inferer.weight(torch.zeros(1))
    assert weight.shape == (64, 4, 6) and weight.min() > 0 and weight[32, 2, 3] == weight.max() == 10
    with pytest.raises(NotImplementedError):
        inferer(torch.zeros(1, 1, 64, 4, 6), torch.nn.Identity())


def test_a_linear_field_is_resampled_to_where_it_lies() -> None:
    places = np.stack(np.meshgrid(*map(np.arange, (12, 16, 9)), indexing="ij"), axis=-1) @ OBLIQUE[:3, :3].T
    field = (places + OBLIQUE[:3, 3]) @ np.array([1.0, 2.0, -1.0])
    image = MetaTensor(torch.tensor(field[None], dtype=torch.float32), affine=torch.tensor(OBLIQUE))
    moved = ResampleCubicd("image", (2.0, 3.5, 3.0), far=False)({"image": image})["image"]
    affine = np.asarray(moved.affine)
    assert moved.shape == (1, 18, 11, 12)
    places = np.stack(np.meshgrid(*map(np.arange, moved.shape[1:]), indexing="ij"), axis=-1) @ affine[:3, :3].T
    expected = (places + affine[:3, 3]) @ np.array([1.0, 2.0, -1.0])
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(moved[0].numpy()[inner], expected[inner], atol=0.05)


def test_normalised_channels_stay_where_they_are_without_a_word() -> None:
    image = MetaTensor(torch.rand(1, 3, 3, 3), affine=torch.from_numpy(OBLIQUE))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = NormalizeChannelsd("image", [{"scheme": "ZScoreNormalization"}])({"image": image})["image"]
    np.testing.assert_array_equal(found.affine, OBLIQUE)


@pytest.mark.parametrize(("own", "far"), [((1.0, 1.0, 3.5), True), ((1.0, 1.0, 3.0), False), ((4.0, 4.0, 1.0), False)])
def test_thick_slices_are_taken_from_the_nearest(own: tuple[float, ...], far: bool) -> None:
    rng = np.random.default_rng(0)
    image = MetaTensor(torch.tensor(rng.normal(size=(1, 5, 6, 4)), dtype=torch.float32), affine=torch.diag(
        torch.tensor([*own, 1.0], dtype=torch.float64)
    ))  # fmt: skip
    spacing = (*own[:2], own[2] / 2)
    moved = ResampleCubicd("image", spacing)({"image": image})["image"].numpy()[0]
    assert moved.shape == (5, 6, 8)
    np.testing.assert_array_equal(np.abs(moved[..., ::2] - moved[..., 1::2]).max() == 0, far)


def test_the_crop_keeps_all_but_zeros() -> None:
    voxels = torch.zeros(1, 6, 5, 4)
    voxels[0, 1, 2, 0], voxels[0, 3, 2, 2] = -1000, 5
    cropped = CropToNonzerod("image")({"image": MetaTensor(voxels)})["image"]
    assert cropped.shape == (1, 3, 1, 3) and np.asarray(cropped.affine)[:3, 3].tolist() == [1, 2, 0]


def test_folds_and_mirror_images_are_averaged() -> None:
    torch.manual_seed(0)
    stages = STAGES | {"n_blocks_per_stage": [1, 1]}
    both = Folds("ResidualEncoderUNet", stages, 3, 2, (2, 0, 1), (1,))
    image = torch.randn(1, 1, 16, 8, 12)  # of which the network sees (12, 16, 8)
    turned = image.permute(0, 1, 4, 2, 3)
    logits = [net(turned) for net in both.folds] + [net(turned.flip(3)).flip(3) for net in both.folds]
    torch.testing.assert_close(both(image), torch.stack(logits).mean(0).permute(0, 1, 3, 4, 2))


# ---- whole folders -----------------------------------------------------------------------------------


def _logits(root: Path, folder: Path, scan: Path | list[Path], wrapping: Wrapping) -> np.ndarray:
    """(classes, I, J, K) on the model's grid, stitched by the windows of the bundle."""
    bundle = add_model(root, folder, "tiny", wrapping)
    image = load_scan(bundle, *(scan if isinstance(scan, list) else [scan]))
    plan = plan_windows(bundle.inferer(), tuple(image.voxels.shape[1:]), image.voxels)
    logits = torch.empty(len(bundle.classes), *plan.shape)
    for place, part in stitched_logits(bundle.network(torch.device("cpu")), plan, image.voxels):
        logits[(slice(None), *place)] = part
    return logits.numpy()


def test_a_folder_is_taken_in_and_explained(tmp_path: Path, trained: Folder, scan: Path) -> None:
    root = tmp_path / "root"
    folder = trained(folds=2)
    assert run("model", "add", folder, "--name", "tiny", "--no-check", "--data", root) == 0
    bundle = Bundle(root / "models" / "tiny")
    assert bundle.classes == ("background", "aorta", "heart") and bundle.label_set == "tiny"
    assert scaled(bundle, -1024) == pytest.approx((-900 - 30) / 250)
    image = load_scan(bundle, scan).voxels
    assert image.shape[1:] == (18, 19, 12)  # of 19 x 23 x 14 voxels of 2.9 x 2.4 x 4.1 mm
    logits = _stitched(bundle, image.requires_grad_())
    prediction = logits.argmax(0)
    target = int(prediction.flatten().bincount(minlength=3)[1:].argmax()) + 1
    expected = torch.autograd.grad((logits[target] * (prediction == target)).sum(), image)[0][0]

    plan = pipeline.Plan("tiny", Method("gradient"), (bundle.classes[target],), saliency="float32")
    pipeline.Explaining(root, plan).case(Case("c", scan, None, {}), tmp_path / "out", lambda *_: None)
    assert mass(results.read_importance(tmp_path / "out"), "abs").sum() == pytest.approx(1, abs=1e-6)
    found = nib.load(tmp_path / "out" / "saliency" / f"{bundle.classes[target]}.nii.gz").get_fdata()
    assert np.abs(found - expected.numpy()).sum() <= 1e-4 * expected.abs().sum().item()


def _stitched(bundle: Bundle, image: torch.Tensor) -> torch.Tensor:
    """Logits (classes, I, J, K) of a scan (1, I, J, K) larger than a window, by nnU-Net's formula."""
    network, inferer = bundle.network(torch.device("cpu")), bundle.inferer()
    assert isinstance(inferer, EvenInferer)
    sums, weights, weight = 0.0, torch.zeros(image.shape[1:]), inferer.weight(image.detach())
    for window in inferer.slices(image.shape[1:]):
        logits = network(image[(slice(None), *window)][None])[0] * weight
        edges = zip(reversed(window), reversed(image.shape[1:]), strict=True)
        sums = sums + pad(logits, [n for edge, size in edges for n in (edge.start, size - edge.stop)])
        weights[window] += weight
    return sums / weights


def test_channels_are_normalised_each_by_its_scheme(tmp_path: Path, trained: Folder, channels: list[Path]) -> None:
    """With the grid as it is: what nnU-Net's formulas make of the voxels, by hand."""
    spacing = np.linalg.norm(OBLIQUE[:3, :3], axis=0)[::-1].tolist()
    folder = trained(_mri_plans(spacing=spacing), BRAIN)
    bundle = add_model(tmp_path / "root", folder, "tiny", Wrapping())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Setting affine")  # MONAI warned of one that is there twice
        image = load_scan(bundle, *channels).voxels.numpy()
    raw = np.stack([np.asarray(nib.load(path).dataobj, dtype=np.float64) for path in channels])[:, 2:]
    assert image.shape[1:] == raw.shape[1:] and (raw[:, 9, 11, 7] == 0).all()
    inside = (raw != 0).any(axis=0)
    inside[9, 11, 7] = True  # which is enclosed
    expected = raw[0].copy()
    expected[inside] = (raw[0][inside] - raw[0][inside].mean()) / raw[0][inside].std()
    np.testing.assert_allclose(image[0], expected, atol=1e-4)
    np.testing.assert_allclose(image[1], (raw[1].clip(-900, 700) - 30) / 250, atol=1e-4)


def test_z_scores_inside_a_mask_give_air_no_value_of_its_own(tmp_path: Path, trained: Folder) -> None:
    """Of one channel too, whose −1024 would else be 1024 standard deviations below the mean."""
    plans = _plans(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[True])
    assert scaled(add_model(tmp_path / "root", trained(plans), "tiny", Wrapping()), -1024) is None


def test_regions_that_hold_each_other_are_explained(tmp_path: Path, trained: Folder, channels: list[Path]) -> None:
    """Logits are judged each by itself, the label map is made by class order, a target is all of its region."""
    root = tmp_path / "root"
    bundle = add_model(root, trained(_mri_plans(), BRAIN, seed=5), "tiny", Wrapping())
    assert bundle.classes == ("background", "whole_tumor", "core", "enhancing") and bundle.channels == ("T1", "CT")
    assert bundle.regions is not None and bundle.regions.members == ((0,), (1, 2, 3), (2, 3), (3,))
    image = load_scan(bundle, *channels).voxels.requires_grad_()
    logits = _stitched(bundle, image)
    prediction = torch.zeros(image.shape[1:], dtype=torch.int64)
    for number in (1, 2, 3):
        prediction[logits[number] > 0] = number
    assert len(prediction.unique()) == 4

    truth = np.random.default_rng(3).integers(0, 5, (22, 26, 15)).astype(np.uint8)
    write_volume(tmp_path / "label.nii.gz", Volume(truth, OBLIQUE))
    plan = pipeline.Plan("tiny", Method("gradient"), saliency="float32")
    case = Case("c", channels[0], tmp_path / "label.nii.gz", {}, (channels[1],))
    out = pipeline.Explaining(root, plan).case(case, tmp_path / "out", lambda *_: None)
    np.testing.assert_array_equal(np.asarray(nib.load(out / "prediction.nii.gz").dataobj), prediction)
    table = results.read_importance(out)
    for row, name in enumerate(table.targets):
        mask = torch.isin(prediction, torch.tensor(bundle.regions.members[row]))
        (oracle,) = torch.autograd.grad((logits[row] * mask).sum(), image, retain_graph=True)
        for channel, expected in zip(bundle.channels, oracle, strict=True):
            found = nib.load(out / "saliency" / name / f"{channel}.nii.gz").get_fdata()
            assert np.abs(found - expected.numpy()).sum() <= 1e-4 * oracle.abs().sum().item()
        amounts = [float(oracle[:, prediction == region].abs().sum()) for region in range(4)]
        np.testing.assert_allclose((table.positive + table.negative)[row], amounts, rtol=1e-3)
    _check_regions(root, case, out)
    pipeline.Explaining(root, replace(plan, targets=("core",))).cohort_case("c", case, lambda *_: None)
    record = json.loads((root / "runs" / "c" / "tiny-gradient" / "run.json").read_text())
    assert record["members"] == [[0], [1, 2, 3], [2, 3], [3]]  # of which a DICOM segmentation is made


def _check_regions(root: Path, case: Case, out: Path) -> None:
    """Dice is that of whole regions, and `predict` writes the labels of the training."""
    bundle = Bundle(root / "models" / "tiny")
    segmented, scores = out.parent / "segmented.nii.gz", (out / "agreement.csv").read_text().splitlines()[1:]
    pipeline.Segmenting(bundle, "cpu").case(case, segmented, lambda *_: None)
    assert np.unique(np.asarray(nib.load(segmented).dataobj)).tolist() == [0, 1, 2, 3]
    image = load_scan(bundle, *case.images)
    truth = on_model_grid(read_labels(case.label), image)
    prediction = np.asarray(nib.load(out / "prediction.nii.gz").dataobj)
    label_of = np.array([0, 1, 3, 2])
    for line, labels in zip(scores, ([0], [1, 2, 3], [2, 3], [2]), strict=True):
        ours, theirs = np.isin(label_of[prediction], labels), np.isin(truth, labels)
        dice = 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum())
        assert float(line.split(",")[1]) == pytest.approx(dice)


@pytest.mark.parametrize("value", ["dice", "counts"])
def test_values_of_nested_regions_are_those_of_whole_regions(value: str) -> None:
    """Of a network that looks at single voxels, what is lost with a slab is what lies in it."""
    network = Nested(torch.nn.Conv3d(1, 2, 1))  # two regions: above −1, and in it above 1
    network.network.weight.data.fill_(20.0)
    network.network.bias.data = torch.tensor([20.0, -20.0])
    image = torch.tensor([-3.0, 0.0, 3.0, 3.0]).view(1, 4, 1, 1).expand(1, 4, 4, 4).contiguous()
    explainer = Explainer(
        network.requires_grad_(False), SlidingWindowInferer((4, 4, 4)), ("background", "whole", "core"),
        torch.device("cpu"), tissue=-3.0, members=((0,), (1, 2), (2,)),
    )  # fmt: skip
    found = attribute(explainer, Subject(image), ("whole",), Method("ablation", value=value), lambda *_: None)
    effects = np.subtract(*found.tallies["whole"].sums())
    assert found.prediction[:, 0, 0].tolist() == [0, 1, 2, 2]
    if value == "counts":  # of 48 voxels of the whole region, 16 are no core's
        np.testing.assert_allclose(effects, [0, 16, 32], atol=1e-4)
    else:
        np.testing.assert_allclose(effects, [0, 1 - 64 / 80, 1 - 32 / 64], atol=1e-4)


def test_older_plans_tell_the_same_network(tmp_path: Path, trained: Folder, scan: Path) -> None:
    old = _plans()
    base = old["configurations"]["base"]
    del base["architecture"]
    base |= {
        "UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 320,
        "n_conv_per_stage_encoder": [1, 1], "n_conv_per_stage_decoder": [1], "num_pool_per_axis": [0, 1, 1],
        "pool_op_kernel_sizes": STAGES["strides"], "conv_kernel_sizes": STAGES["kernel_sizes"],
    }  # fmt: skip
    folder = trained()
    new = _logits(tmp_path / "new", folder, scan, Wrapping())
    (folder / "plans.json").write_text(json.dumps(old))
    np.testing.assert_array_equal(_logits(tmp_path / "old", folder, scan, Wrapping()), new)


@pytest.mark.parametrize(
    ("plans", "dataset", "told"),
    [
        ({"num_stages": 3}, DATASET, "must be of nnU-Net v2"),
        (_plans(previous_stage="3d_lowres"), DATASET, "stand on its own"),
        (_plans(patch_size=[32, 32]), DATASET, "3D"),
        (_plans(normalization_schemes=["RGBTo01Normalization"]), DATASET, "CTNormalization"),
        (_plans(resampling_fn_data="resample_torch_fornnunet"), DATASET, "cubic splines"),
        (_plans() | {"image_reader_writer": "NaturalImage2DIO"}, DATASET, "SimpleITKIO"),
        (_plans(), DATASET | {"channel_names": {"0": "T1", "1": "T2"}}, "scheme for each channel; got 1 for T1, T2"),
        (_plans(), DATASET | {"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "of each region, in the order"),
        (_mri_plans(), MRI, "order of the regions; got [1, 3, 2]; allowed: whole tumor [1, 2, 3], core [2, 3], enh"),
        (_mri_plans(), MRI | {"regions_class_order": [1, 2]}, "name a label of each region"),
        (_plans(), DATASET | {"labels": {"background": 0, "heart": 2}}, "count from 0"),
        (_plans(), DATASET | {"labels": {"background": 0, "heart": 1}}, "fold_0: decoder.seg_layers.0.weight"),
        (_plans() | {"foreground_intensity_properties_per_channel": {"0": BOUNDS | {"std": 0}}}, DATASET, "writes"),
        (_mri_plans(), BRAIN | {"labels": BRAIN["labels"] | {"core": [float("inf"), 3]}}, "as nnU-Net v2 writes them"),
        (_with_part(nonlin_kwargs={"negative_slope": 0.2}), DATASET, "its usual parts; got nonlin_kwargs"),
        (_with_part(stem_channels=8), DATASET, "its usual parts; got stem_channels 8"),
        (_plans(inherits_from="base", previous_stage="x"), DATASET, "stand on its own"),
        (_plans(architecture={"network_class_name": "a.Primus", "arch_kwargs": {}}), DATASET, "PlainConvUNet"),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_serve_is_refused_in_one_line(
    tmp_path: Path, trained: Folder, plans: dict[str, Any], dataset: dict[str, Any], told: str
) -> None:
    folder = trained(plans, dataset)
    with pytest.raises(InputError, match=re.escape(told)):
        add_model(tmp_path / "root", folder, "tiny", Wrapping())
    assert not list((tmp_path / "root" / "models").iterdir())


def test_folds_must_be_there_and_hold_weights(tmp_path: Path, trained: Folder) -> None:
    with pytest.raises(InputError, match="folds must be there; got none 1"):
        add_model(tmp_path, trained(), "tiny", Wrapping(folds=("1",)))
    checkpoint = next(tmp_path.glob("nnUNet*/fold_0/*.pth"))
    for content in (b"no checkpoint", b""):
        checkpoint.write_bytes(content)
        with pytest.raises(InputError, match="weights must be readable"):
            add_model(tmp_path, checkpoint.parents[1], "tiny", Wrapping())
    checkpoint.unlink()
    with pytest.raises(InputError, match="needs a trained fold"):
        add_model(tmp_path, checkpoint.parents[1], "tiny", Wrapping())
    with pytest.raises(InputError, match="go with a trained folder"):
        add_model(tmp_path, checkpoint.parent, "tiny", Wrapping(mirrored=True))


def test_totalsegmentators_names_get_its_label_set(tmp_path: Path, trained: Folder) -> None:
    names = load_label_set("totalsegmentator").names[:3]
    folder = trained(dataset=DATASET | {"labels": {name: number for number, name in enumerate(names)}})
    assert add_model(tmp_path / "root", folder, "tiny", Wrapping()).label_set == "totalsegmentator"


# ---- the oracle --------------------------------------------------------------------------------------


def _nnunet_itself(folder: Path, images: list[Path], folds: int, mirrored: bool) -> tuple[Any, np.ndarray]:
    """nnU-Net's own predictor, and its logits (classes, K, J, I) of a scan."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    theirs = nnUNetPredictor(
        use_mirroring=mirrored, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    theirs.initialize_from_trained_model_folder(str(folder), tuple(range(folds)))
    voxels, told = SimpleITKIO().read_images([*map(str, images)])
    chain = theirs.configuration_manager.preprocessor_class(verbose=False)
    managers = theirs.plans_manager, theirs.configuration_manager, theirs.dataset_json
    data, _, _ = chain.run_case_npy(voxels, None, told, *managers)
    with pytest.MonkeyPatch.context() as patch:
        # It sums in half precision, which rounds logits near a scan's corners, where weights are small, to integers.
        patch.setattr(torch, "half", torch.float32)
        return theirs, theirs.predict_logits_from_preprocessed_data(torch.from_numpy(data)).numpy()


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings, without which it warns."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("plans", "folds", "mirrored"),
    [
        (_plans(), 1, False), (_plans(), 2, True), (_plans() | {"transpose_forward": [1, 0, 2]}, 1, True),
        (_plans(spacing=[2.0, 3.0, 3.0]), 1, False), (_plans(spacing=[12.0, 3.0, 3.0]), 1, False),
        (_plans(normalization_schemes=["ZScoreNormalization"]), 1, False),
    ],
    ids=["plain", "folds and mirror images", "axes turned", "finer", "thicker", "z scores"],
)  # fmt: skip
def test_logits_are_those_of_nnunet_itself(
    tmp_path: Path, trained: Folder, scan: Path, nnunet: None, plans: dict[str, Any], folds: int, mirrored: bool
) -> None:
    folder = trained(plans, folds=folds)
    ours = _logits(tmp_path / "root", folder, scan, Wrapping(mirrored=mirrored))
    _, logits = _nnunet_itself(folder, [scan], folds, mirrored)
    axes = [2 - place for place in plans["transpose_forward"]]
    np.testing.assert_allclose(ours, logits.transpose(0, *(axes.index(axis) + 1 for axis in range(3))), atol=1e-4)


@pytest.mark.oracle
def test_channels_and_regions_are_those_of_nnunet_itself(
    tmp_path: Path, trained: Folder, channels: list[Path], nnunet: None
) -> None:
    """Each channel normalised by its scheme, one of them inside a mask, and a label map by class order."""
    folder = trained(_mri_plans(), BRAIN, seed=5)
    ours = _logits(tmp_path / "root", folder, channels, Wrapping())
    theirs, logits = _nnunet_itself(folder, channels, 1, False)
    np.testing.assert_allclose(ours[1:], logits.transpose(0, 3, 2, 1), atol=1e-4)
    labels = np.asarray(theirs.label_manager.convert_logits_to_segmentation(logits)).transpose(2, 1, 0)
    regions = Bundle(tmp_path / "root" / "models" / "tiny").regions
    assert regions is not None and len(np.unique(labels)) == 4
    predicted = predicted_organs(torch.from_numpy(ours), nested=True).numpy()
    assert (np.array(regions.given)[predicted] == labels).mean() > 0.9999  # logits of 0 to the last bit may differ


@pytest.mark.oracle
def test_what_nnunet_itself_has_trained_is_explained_as_it_predicts(tmp_path: Path, nnunet: None) -> None:
    (tmp_path / "nnunet").mkdir()
    script = Path(__file__).with_name("nnunet_training.py")
    subprocess.run([sys.executable, script, tmp_path / "nnunet"], check=True, capture_output=True)
    (folder,) = (tmp_path / "nnunet" / "nnUNet_results").glob("*/nnUNetTrainer__nnUNetPlans__3d_fullres")
    (scan, *_) = sorted((tmp_path / "nnunet" / "nnUNet_raw").glob("*/imagesTr/*"))
    ours = _logits(tmp_path / "root", folder, scan, Wrapping())
    _, logits = _nnunet_itself(folder, [scan], 1, False)
    np.testing.assert_allclose(ours, logits.transpose(0, 3, 2, 1), atol=1e-3)
    words = ("--model", "tiny", "--image", scan, "--out", tmp_path / "out", "--method", "gradient")
    assert run("explain", *words, "--targets", "heart", "--data", tmp_path / "root") == 0
    table = results.read_importance(tmp_path / "out")
    assert table.targets == ("heart",) and set(table.absent) <= {"heart"}  # two steps may leave an organ no voxel
