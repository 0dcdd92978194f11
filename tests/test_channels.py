"""Several input channels, such as the sequences of an MRI: from files to the table, each channel by itself."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from command import run
from pages import opened, texts
from streamlit.testing.v1 import AppTest
from tiny import CLASSES, explainer_of, inferer_of

from agg2exp_core import masked, pipeline, volumes
from agg2exp_core.attribution.attribute import METHODS, Explanation, Subject, attribute
from agg2exp_core.attribution.smoothgrad import noisy_copies
from agg2exp_core.mask_files import Reading, find_masks
from agg2exp_core.model.adding import Wrapping, add_model
from agg2exp_core.model.bundle import Bundle, channel_ids, save_weights
from agg2exp_core.model.preprocess import load_scan
from agg2exp_core.model.windows import plan_windows
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import PERTURBING, InputError, Method, Selection, Volume
from agg2exp_core.store import catalog, cohorts, parquet_cache, queries, results
from agg2exp_core.store.cohort_check import check_cohort
from agg2exp_core.store.cohorts import Case
from dashboard.charts.channels import channel_bars
from dashboard.viewer import scene
from dashboard.viewer.layers import WINDOWS, windows_of
from dashboard.views import case as case_page

SHAPE = (13, 8, 6)  # longer than, equal to and shorter than a window of 8³
GRADIENTS = [name for name in METHODS if name not in PERTURBING]
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])


def silent(done: int, total: int, note: str) -> None: ...


def two_channel_net(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(2, 4, 3, padding=1), torch.nn.InstanceNorm3d(4, affine=True), torch.nn.LeakyReLU(),
        torch.nn.Conv3d(4, 3, 3, padding=1),
    ).requires_grad_(False)  # fmt: skip


def two_channels(seed: int = 0) -> torch.Tensor:
    """(2, I, J, K): the second of ten times the range of the first."""
    scan = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(seed))
    return scan * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)


def explain(network: torch.nn.Module, scan: torch.Tensor, method: Method, **others) -> Explanation:
    return attribute(explainer_of(network, **others), Subject(scan), CLASSES, method, silent)


# ---- attribution -------------------------------------------------------------------------------------


def test_the_gradient_of_each_channel_is_autograd_through_the_stitched_inference() -> None:
    network, scan, inferer = two_channel_net(), two_channels(), inferer_of(overlap=0.5)
    explained = explain(network, scan, Method("gradient"), inferer=inferer)
    leaf = scan.clone().requires_grad_()
    logits = inferer(leaf[None], network)[0]
    assert len(explained.targets) >= 2
    for name in explained.targets:
        channel = CLASSES.index(name)
        value = logits[channel][explained.prediction == channel].sum()
        (oracle,) = torch.autograd.grad(value, leaf, retain_graph=True)
        assert (explained.by_channel[name] - oracle).abs().max() <= 1e-4 * oracle.abs().max()
        torch.testing.assert_close(explained.saliency[name], explained.by_channel[name].sum(dim=0))


@pytest.mark.parametrize("name", GRADIENTS)
def test_sums_of_the_channels_are_those_of_the_regions(name: str) -> None:
    method = Method(name, samples=4, baseline="blurred")
    explained = explain(two_channel_net(), two_channels(), method)
    for target, tally in explained.tallies.items():
        for whole, parts in zip(tally.sums(), tally.channel_sums(), strict=True):
            assert parts.shape == (2, len(CLASSES)) and (parts.sum(axis=1) > 0).all()
            np.testing.assert_allclose(parts.sum(axis=0), whole, rtol=1e-12)
        drawn = explained.by_channel[target].double()
        net = np.subtract(*tally.channel_sums()).sum(axis=1)
        np.testing.assert_allclose(drawn.sum(dim=(1, 2, 3)), net, rtol=1e-3, atol=1e-3 * np.abs(drawn).sum())


@pytest.mark.parametrize("baseline", ["ones", "blurred", "uniform"])
def test_paths_of_all_channels_together_are_complete(baseline: str) -> None:
    network = torch.nn.Sequential(two_channel_net()[0], torch.nn.Softplus(), two_channel_net()[3])
    explained = explain(network, two_channels(), Method("integrated_gradients", samples=32, baseline=baseline))
    assert explained.targets
    for completeness in explained.completeness.values():
        assert completeness.gap <= 0.01 or abs(completeness.output_difference) < 1e-2


def test_noise_follows_the_range_of_each_channel() -> None:
    scan = two_channels()
    plan = plan_windows(inferer_of(), SHAPE, scan)
    whole = tuple(slice(0, size) for size in plan.padded)
    noise = plan.crop(noisy_copies(scan, plan, Method())(0, 1.0, whole)) - scan
    ranges = torch.stack([one.max() - one.min() for one in scan])
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)) / ranges, torch.full((2,), 0.1), rtol=0.1, atol=0)
    flat = torch.stack([scan[0], torch.ones(SHAPE)])
    with pytest.raises(InputError, match="a scan of one value, 1, in channel 2 of 2"):
        noisy_copies(flat, plan, Method())


class GlassBox(torch.nn.Module):
    """Logit of class k at every voxel: Σ_c,R w[k, c, R] · mean of channel c over region R of the window.

    Regions are slabs of the window, and a bias makes each a predicted class.
    """

    def __init__(self, slabs: torch.Tensor, importances: torch.Tensor):
        super().__init__()
        self.slabs, self.importances = slabs, importances

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        means = torch.stack([windows[..., self.slabs == k].mean(dim=-1) for k in range(3)], dim=-1)
        bias = 100.0 * torch.nn.functional.one_hot(self.slabs, 3).permute(3, 0, 1, 2)
        return torch.einsum("wcr,kcr->wk", means, self.importances)[:, :, None, None, None] + bias


@pytest.mark.parametrize("method", [Method("gradient"), Method(samples=3), Method("gradient_x_input")], ids=str)
def test_a_glass_box_gives_its_table_of_regions_and_channels_back(method: Method) -> None:
    slabs = torch.arange(9).div(3, rounding_mode="floor")[:, None, None].expand(9, 8, 8).contiguous()
    importances = torch.tensor([
        [[0.5, -0.2, 0.3], [0.0, 0.1, 0.0]], [[0.1, 0.8, -0.1], [-0.4, 0.0, 0.3]], [[-0.2, 0.2, 0.5], [0.6, 0.1, 0.1]],
    ])  # fmt: skip
    scan = torch.rand((2, 9, 8, 8), generator=torch.Generator().manual_seed(1))
    explained = explain(GlassBox(slabs, importances), scan, method, inferer=inferer_of((9, 8, 8)))
    known = importances.abs()
    if method.name == "gradient_x_input":  # which counts grey values from 0
        known = known * torch.stack([torch.stack([one[slabs == k].mean() for k in range(3)]) for one in scan])
    known = known / known.sum(dim=(1, 2), keepdim=True)
    for row, name in enumerate(CLASSES):
        amounts = np.sum(explained.tallies[name].channel_sums(), axis=0)
        np.testing.assert_allclose(amounts / amounts.sum(), known[row], atol=1e-5)


@pytest.mark.parametrize("method", [Method("ablation"), Method("kernelshap", samples=16, baseline="ones")], ids=str)
def test_a_region_is_taken_out_of_all_channels_at_once(method: Method) -> None:
    """Of a linear network the effect is Σ_c w_c · (x_c − x₀_c) over the region, and no channel's alone."""
    torch.manual_seed(0)
    network, scan = torch.nn.Conv3d(2, 3, 1, bias=False).requires_grad_(False), two_channels()
    scan -= 0.9 * scan.mean(dim=(1, 2, 3), keepdim=True)
    explained = explain(network, scan, method)
    assert len(explained.targets) >= 2 and not explained.by_channel
    neutral = scan.mean(dim=(1, 2, 3), keepdim=True) if method.name == "ablation" else torch.ones(2, 1, 1, 1)
    for name in explained.targets:
        channel = CLASSES.index(name)
        change = torch.einsum("c,cijk->ijk", network.weight[channel].flatten(), scan - neutral)
        mask = explained.prediction == channel
        positive, negative = explained.tallies[name].sums()
        bound = 1e-4 * float(change[mask].abs().sum())
        assert (positive - negative)[channel] == pytest.approx(float(change[mask].sum()), abs=bound)


# ---- models ------------------------------------------------------------------------------------------


def write_bundle(folder: Path, network: torch.nn.Module | None = None, **inputs) -> Path:
    """A bundle of two channels as the zoo writes that of BraTS: the reader stacks files, each channel is z-scored."""
    config = {
        "network_def": {
            "_target_": "torch.nn.Conv3d",
            "in_channels": 2,
            "out_channels": 3,
            "kernel_size": 3,
            "padding": 1,
        },
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True, "channel_wise": True},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 8], "overlap": 0.5, "mode": "gaussian"},
    }
    data = {"outputs": {"pred": {"channel_def": {str(index): name for index, name in enumerate(CLASSES)}}}}
    if inputs:
        data["inputs"] = {"image": inputs}
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": data}))
    torch.manual_seed(3)
    save_weights(Bundle(folder), network or torch.nn.Conv3d(2, 3, 3, padding=1))
    return folder


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """T1 and T2 of one case, with an edge of zeros around."""
    found = []
    for seed, name in enumerate(("a_0000", "a_0001")):
        array = np.zeros((16, 12, 10), np.int16)
        array[2:, 1:, :-1] = np.random.default_rng(seed).normal(100 + 900 * seed, 50, (14, 11, 9))
        found.append(tmp_path / f"{name}.nii.gz")
        volumes.write_volume(found[-1], Volume(array, AFFINE))
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    source = write_bundle(tmp_path / "brats", num_channels=2, channel_def={"0": "T1 Gd", "1": "FLAIR"})
    add_model(tmp_path / "root", source, "brats", Wrapping())
    return tmp_path / "root"


def explained_by(root: Path, files: list[Path], method: Method, out: Path, **others) -> Path:
    plan = pipeline.Plan("brats", method, saliency="float32", **others)
    return pipeline.Explaining(root, plan).case(Case("a", files[0], None, {}, tuple(files[1:])), out, silent)


def test_a_bundle_of_two_channels_is_explained_channel_by_channel(
    tmp_path: Path, root: Path, files: list[Path]
) -> None:
    bundle = Bundle(root / "models" / "brats")
    assert bundle.channels == ("T1_Gd", "FLAIR")
    image = load_scan(bundle, *files).voxels.requires_grad_()
    assert image.shape == (2, 16, 12, 10)
    inside = image[1][image[1] != 0]  # of this channel alone: it is z-scored by itself
    assert inside.mean().item() == pytest.approx(0, abs=1e-4) and inside.std().item() == pytest.approx(1, abs=1e-2)
    out = explained_by(root, files, Method("gradient"), tmp_path / "out")
    logits = bundle.inferer()(image[None], bundle.network(torch.device("cpu")))[0]
    prediction = logits.argmax(0)
    table = results.read_importance(out)
    assert table.by_channel is not None and table.by_channel.names == ("T1_Gd", "FLAIR")
    for row, name in enumerate(table.targets):
        channel = bundle.classes.index(name)
        (oracle,) = torch.autograd.grad(logits[channel][prediction == channel].sum(), image, retain_graph=True)
        for part, expected in zip(("T1_Gd", "FLAIR"), oracle, strict=True):
            found = nib.load(out / "saliency" / name / f"{part}.nii.gz").get_fdata()
            np.testing.assert_allclose(found, expected, atol=1e-4 * float(oracle.abs().max()))
        whole = nib.load(out / "saliency" / f"{name}.nii.gz").get_fdata()
        np.testing.assert_allclose(whole, oracle.sum(dim=0), atol=1e-4 * float(oracle.abs().max()))
        amounts = (table.by_channel.positive + table.by_channel.negative)[:, row]
        known = [[float(part[prediction == region].abs().sum()) for region in range(3)] for part in oracle]
        np.testing.assert_allclose(amounts, known, rtol=1e-4)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["channels"] == ["T1_Gd", "FLAIR"] and not results.verify(out)


@pytest.mark.parametrize(
    "inputs", [{}, *({"num_channels": count} for count in (1, 2, -2, 10**12, float("inf"), [2]))], ids=str
)
def test_channels_that_the_metadata_does_not_tell_are_found(tmp_path: Path, inputs: dict[str, int]) -> None:
    bundle = add_model(tmp_path / "root", write_bundle(tmp_path / "made", **inputs), "made", Wrapping())
    assert Bundle(bundle.folder).channels == ("channel_1", "channel_2")


def test_a_config_that_gives_no_network_is_refused(tmp_path: Path) -> None:
    source = write_bundle(tmp_path / "made")
    config = source / "configs" / "inference.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"network_def": 3}))
    with pytest.raises(InputError, match="network_def must be a Module; got int"):
        add_model(tmp_path / "root", source, "made", Wrapping())


def test_names_of_channels_name_files_and_are_all_different() -> None:
    assert channel_ids(["T1", "t1", "T2 w/ fat sat", "", "T1"]) == ("T1", "t1_2", "T2_w_fat_sat", "channel", "T1_3")
    for names in (["T1", "T1", "T1_2"], ["t1_2", "T1", "T1"], ["T1_3", "T1", "T1", "T1"]):
        assert len({name.casefold() for name in channel_ids(names)}) == len(names)


def test_targets_are_added_to_a_table_of_channels(tmp_path: Path, root: Path, files: list[Path]) -> None:
    whole = results.read_importance(explained_by(root, files, Method("gradient"), tmp_path / "whole"))
    for name in whole.targets:
        explained_by(root, files, Method("gradient"), tmp_path / "out", targets=(name,))
    added = results.read_importance(tmp_path / "out")
    assert added.targets == whole.targets and added.by_channel is not None and whole.by_channel is not None
    np.testing.assert_array_equal(added.by_channel.positive, whole.by_channel.positive)
    np.testing.assert_array_equal(added.positive, whole.positive)


# ---- files -------------------------------------------------------------------------------------------


def stacked(path: Path, files: list[Path]) -> Path:
    """The files as one of four dimensions, as the Decathlon has them."""
    images = [nib.load(file) for file in files]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.stack([image.get_fdata() for image in images], axis=3), images[0].affine), path)
    return path


def test_explain_takes_a_file_a_channel_or_one_of_all(tmp_path: Path, root: Path, files: list[Path]) -> None:
    words = ["explain", "--model", "brats", "--method", "gradient", "--data", root]
    assert run(*words, "--image", files[0], "--image", files[1], "--out", tmp_path / "two") == 0
    assert run(*words, "--image", stacked(tmp_path / "a.nii.gz", files), "--out", tmp_path / "one") == 0
    one, two = ((tmp_path / name / "importance.csv").read_bytes() for name in ("one", "two"))
    assert one == two and json.loads((tmp_path / "two" / "manifest.json").read_text())["case_id"] == "scan"
    assert (
        run("predict", "--model", "brats", "--data", root, "--image", tmp_path / "a.nii.gz", "--out", tmp_path / "p")
        == 0
    )
    labels = volumes.read_labels(tmp_path / "p" / "prediction.nii.gz")
    assert np.array_equal(labels.array, volumes.read_labels(tmp_path / "two" / "prediction.nii.gz").array)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([0], "image for each channel of brats; got 1: a_0000.nii.gz; allowed: 2 (T1_Gd, FLAIR)"),
        ([0, 1, 1], "for each channel of brats; got 3: a_0000.nii.gz, a_0001.nii.gz, a_0001.nii.gz; allowed: 2"),
        ([0, "cut"], "must lie on one grid, that of a_0000.nii.gz; got cut.nii.gz, shape (8, 12, 10)"),
        ([0, "moved"], "one grid, that of a_0000.nii.gz; got moved.nii.gz, 20 mm apart; allowed: to 0.4 mm"),
    ],
)  # fmt: skip
def test_images_that_are_no_scan_of_the_model_are_refused_in_one_line(
    tmp_path: Path, root: Path, files: list[Path], capsys: pytest.CaptureFixture[str], given: list, told: str
) -> None:
    array, moved = volumes.read_volume(files[1]).array, AFFINE.copy()
    moved[0, 3] = 20
    volumes.write_volume(tmp_path / "cut.nii.gz", Volume(array[:8], AFFINE))
    volumes.write_volume(tmp_path / "moved.nii.gz", Volume(array, moved))
    images = [files[one] if isinstance(one, int) else tmp_path / f"{one}.nii.gz" for one in given]
    options = [word for image in images for word in ("--image", image)]
    assert run("explain", "--model", "brats", *options, "--out", tmp_path / "out", "--data", root) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def numbered(folder: Path, files: list[Path]) -> Path:
    """nnU-Net's layout: two cases of two channels."""
    (folder / "imagesTr").mkdir(parents=True)
    for case_id in ("a", "b"):
        for number, file in enumerate(files):
            (folder / "imagesTr" / f"{case_id}_{number:04}.nii.gz").symlink_to(file)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": {}}))
    return folder


def decathlon(folder: Path, files: list[Path], count: int = 2) -> Path:
    for case_id in ("a", "b"):
        stacked(folder / "imagesTr" / f"{case_id}.nii.gz", files[:count])
    training = [{"image": f"./imagesTr/{case_id}.nii.gz"} for case_id in ("a", "b")]
    about = {"modality": {"0": "T1", "1": "T2"}, "training": training}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize("layout", [numbered, decathlon])
def test_layouts_of_several_channels_become_cohorts(tmp_path: Path, root: Path, files: list[Path], layout) -> None:
    assert cohorts.add_cohort(root, "mri", layout(tmp_path / "dataset", files)) == (2, [])
    cases = cohorts.list_cases(root, "mri")
    assert [case.case_id for case in cases] == ["a", "b"] and all(len(case.images) == 2 for case in cases)
    for case in cases:
        for found, file in zip(case.images, files, strict=True):
            assert np.array_equal(volumes.read_volume(found).array, volumes.read_volume(file).array)
    table = check_cohort(root, "mri", load_label_set("thorax17"), silent).table
    assert list(table["wrong"]) == ["", ""] and "HU" not in table["odd"][0]
    assert run("explain", "--model", "brats", "--cohort", "mri", "--method", "gradient", "--data", root) == 0
    con = catalog.connect(root)
    assert queries.channels(con, "mri", "brats-gradient") == ["T1_Gd", "FLAIR"]
    assert run("train", "--cohort", "mri", "--model", "new", "--data", root) == 2


def test_a_dataset_whose_files_are_not_what_it_says_is_refused(tmp_path: Path, files: list[Path]) -> None:
    with pytest.raises(InputError, match=re.escape("that dataset.json names; got 1 volumes in a.nii.gz; allowed: 2")):
        cohorts.add_cohort(tmp_path / "root", "m", decathlon(tmp_path / "decathlon", files, 1))
    folder = numbered(tmp_path / "numbered", files)
    (folder / "imagesTr" / "b_0001.nii.gz").unlink()
    with pytest.raises(InputError, match="a file for each channel; got b without _0001"):
        cohorts.add_cohort(tmp_path / "root", "m", folder)
    (folder / "imagesTr" / "b_0001.nii.gz").symlink_to(files[1])
    (tmp_path / "x;y").mkdir()
    folder.rename(tmp_path / "x;y" / "numbered")
    for file in files:
        file.rename(tmp_path / "x;y" / file.name)
    for link in (tmp_path / "x;y" / "numbered" / "imagesTr").iterdir():
        target = tmp_path / "x;y" / f"a{link.name[1:]}"
        link.unlink()
        link.symlink_to(target)
    with pytest.raises(InputError, match="paths of images must be without ;"):
        cohorts.add_cohort(tmp_path / "root", "m", tmp_path / "x;y" / "numbered")
    assert cohorts.list_cohorts(tmp_path / "root") == []


# ---- the table ---------------------------------------------------------------------------------------


@pytest.fixture
def explained(root: Path, files: list[Path], tmp_path: Path) -> Path:
    """A root with a cohort explained by a method that tells channels apart and one that does not."""
    cohorts.add_cohort(root, "mri", numbered(tmp_path / "dataset", files))
    for method in ("gradient", "ablation"):
        words = ["--method", method, "--saliency-dtype", "float32", "--data", root]
        assert run("explain", "--model", "brats", "--cohort", "mri", *words) == 0
    return root


def test_views_tell_the_sums_over_channels_and_the_split(explained: Path) -> None:
    con = catalog.connect(explained)
    columns = [row[0] for row in con.execute("DESCRIBE importance").fetchall()]
    assert [row[0] for row in con.execute("DESCRIBE importance_by_channel").fetchall()] == [*columns, "channel"]
    keys = "cohort, run, case_id, region_set, target, region, sign"
    whole = con.execute(f"SELECT {keys}, mass, mean, organ_mass, voxels FROM importance ORDER BY ALL").df()
    parts = con.execute(f"""
        SELECT {keys}, sum(mass), sum(mean), sum(organ_mass), any_value(voxels) FROM importance_by_channel
        GROUP BY {keys} ORDER BY {keys}""").df()
    assert len(whole) == 2 * 2 * 3 * 3 * 3 and whole["mass"].notna().sum() > 50
    assert (whole.iloc[:, :7] == parts.iloc[:, :7]).all(axis=None)
    np.testing.assert_allclose(whole.iloc[:, 7:].astype(float), parts.iloc[:, 7:].astype(float), rtol=1e-9)
    found = con.execute("SELECT run, channel, count(*) FROM importance_by_channel GROUP BY ALL ORDER BY ALL").fetchall()
    assert found == [("brats-ablation", "", 54), ("brats-gradient", "FLAIR", 54), ("brats-gradient", "T1_Gd", 54)]
    totals = con.execute("""
        SELECT sum(mass) FROM importance_by_channel WHERE sign = 'abs' GROUP BY run, case_id, target""").fetchall()
    np.testing.assert_allclose(totals, 1, atol=1e-9)


def test_a_selection_may_be_of_one_channel(explained: Path) -> None:
    con, whole = catalog.connect(explained), Selection("mri", "brats-gradient")
    target = queries.targets(con, "mri", "brats-gradient")["target"][0]
    values = [
        queries.case_importance(con, replace(whole, channel=channel), "a", target).set_index("region")["value"]
        for channel in ("", "T1_Gd", "FLAIR")
    ]
    assert (values[0] - values[1] - values[2]).abs().max() < 1e-9 and min(values[1].sum(), values[2].sum()) > 0
    shares = queries.channel_shares(con, whole)
    assert list(shares["channel"][:2]) == ["T1_Gd", "FLAIR"] and set(shares["n"]) == {2}
    np.testing.assert_allclose(shares.groupby("target")["value"].sum(), 1)
    with pytest.raises(InputError, match="channel must be known; got 'T9'; allowed: T1_Gd, FLAIR"):
        queries.case_importance(con, replace(whole, channel="T9"), "a", target)


def test_a_growing_run_keeps_what_was_read_of_its_channels(explained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = explained / "runs" / "mri" / "brats-gradient"
    before = catalog.connect(explained).execute("FROM importance_by_channel ORDER BY ALL").fetchall()
    manifest = place / "cases" / "b" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")  # whose state is another one, and its content the same
    read = parquet_cache._read_case
    asked: list[str] = []
    monkeypatch.setattr(
        parquet_cache, "_read_case", lambda folder, kinds: (asked.append(folder.name), read(folder, kinds))[1]
    )
    parquet_cache._known.clear()
    assert catalog.connect(explained).execute("FROM importance_by_channel ORDER BY ALL").fetchall() == before
    assert asked == ["b"]
    (place / "importance_by_channel.parquet").unlink()
    parquet_cache._known.clear()
    assert catalog.connect(explained).execute("FROM importance_by_channel ORDER BY ALL").fetchall() == before


def test_masks_are_summed_channel_by_channel_and_maps_made_small(explained: Path, tmp_path: Path) -> None:
    """A mask of the whole scan has all of the attribution: magnitudes of the channels, not of their sum."""
    for case in ("a", "b"):
        (tmp_path / "masks").mkdir(exist_ok=True)
        volumes.write_volume(tmp_path / "masks" / f"{case}.nii.gz", Volume(np.ones((16, 12, 10), np.uint8), AFFINE))
    words = ["--cohort", "mri", "--run", "brats-gradient", "--data", explained]
    assert run("aggregate", *words, "--masks", tmp_path / "masks", "--name", "all") == 0
    folder = explained / "runs" / "mri" / "brats-gradient" / "cases" / "a"
    table = results.read_importance(folder)
    masks = find_masks(explained, "mri", tmp_path / "masks", Reading("all"), silent)
    rows = masked.case_sums(folder, masks, "a", table.targets)
    np.testing.assert_allclose([row.positive for row in rows], table.positive.sum(axis=1), rtol=1e-5)
    assert run("export", "saliency", *words, "--out", tmp_path / "exported") == 0
    assert len([*(tmp_path / "exported").rglob("FLAIR.nii.gz")]) == 2 * len(table.targets)
    assert run("thin", *words) == 0
    assert not results.verify(folder) and nib.load(next(folder.rglob("FLAIR.nii.gz"))).get_data_dtype() == np.int16
    assert run("check", "--data", explained) == 0


# ---- pages -------------------------------------------------------------------------------------------


def addressed(app: AppTest) -> str:
    """The channel that the address names."""
    named = app.query_params.get("channel", "")
    return str(named[0] if isinstance(named, list) else named)


def shown(app: AppTest) -> dict[str, str]:
    return {box.label: box.value for box in app.selectbox}


def test_the_case_page_shows_all_channels_or_one(explained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    loaded = scene.load_scene
    monkeypatch.setattr(
        case_page, "load_scene", lambda of, labels: (asked.append((of.image.name, of.channel)), loaded(of, labels))[1]
    )
    target = results.read_importance(explained / "runs" / "mri" / "brats-gradient" / "cases" / "a").targets[0]
    link = {"cohort": "mri", "run": "brats-gradient", "case": "a", "target": target}
    app = opened(monkeypatch, explained, "case", link)
    assert shown(app)["Channel"] == "*" and addressed(app) == "*"
    assert asked[-1] == ("a_0000.nii.gz", "")
    said = texts(app)
    assert "In T1 Gd" in said and "In FLAIR" in said and "the signed sum of T1 Gd, FLAIR" in said
    app.selectbox(key="case_channel").set_value("FLAIR").run()
    assert not app.exception and addressed(app) == "FLAIR"
    assert asked[-1] == ("a_0001.nii.gz", "FLAIR") and "in FLAIR, organ by organ" in texts(app)
    assert "signed sum" not in texts(app)
    again = opened(monkeypatch, explained, "case", link | {"channel": "T1_Gd"})
    assert shown(again)["Channel"] == "T1_Gd" and asked[-1] == ("a_0000.nii.gz", "T1_Gd")
    whole = opened(monkeypatch, explained, "case", link | {"run": "brats-ablation"})
    assert "Channel" not in shown(whole) and not addressed(whole)


def test_the_cohort_page_shows_channels_where_there_are_some(explained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run_id, there in (("brats-gradient", True), ("brats-ablation", False)):
        said = texts(opened(monkeypatch, explained, "cohort", {"cohort": "mri", "run": run_id}))
        assert ("Which input channel the evidence is in" in said) == there


def test_bars_of_channels_stand_in_the_order_of_the_model() -> None:
    shares = pd.DataFrame(
        {"target": ["heart", "heart", "aorta", "aorta"], "channel": ["T2", "T1_Gd"] * 2, "value": [0.9, 0.1, 0.5, 0.5]}
    )
    figure = channel_bars(shares, load_label_set("thorax17"), ["aorta", "heart"])
    assert [bar.name for bar in figure.data] == ["T2", "T1 Gd"]
    assert list(figure.data[0].x) == [50, 90] and list(figure.data[1].text) == ["50 %", "10 %"]
    assert figure.data[0].hovertext[1] == "<b>Heart</b>: 90.0 % in T2"


def test_images_that_are_not_in_hu_have_a_window_of_their_own() -> None:
    assert windows_of(np.array([[[-160, 0, 60]]], np.int16)) is WINDOWS
    mri = np.zeros((20, 20, 20), np.int16)
    mri[5:15] = np.linspace(200, 1200, 4000).reshape(10, 20, 20)
    (window,) = windows_of(mri).values()
    assert window.level == pytest.approx(700, abs=5) and window.width == pytest.approx(980, abs=10)


@pytest.mark.parametrize(
    ("most", "least", "kind", "step"),
    [
        (3e-3, 0, np.float32, 1e-7), (17, 0, np.float32, 1e-3), (3, -3, np.float32, 1e-4), (6e4, 0, np.uint16, 10),
        (1200, 0, np.float32, 1), (9, 0, np.int16, 1), (3000.5, -1024, np.float32, 1),
    ],
)  # fmt: skip
def test_images_of_any_scale_are_seen(tmp_path: Path, most: float, least: float, kind: type, step: float) -> None:
    """Diffusion, uptake, z-scores and 16 bits: as whole numbers of 1 they would be black, a few greys or cut off."""
    array = np.linspace(least, most, 8 * 8 * 8).reshape(8, 8, 8).astype(kind)
    volumes.write_volume(tmp_path / "image.nii.gz", Volume(array, AFFINE))
    shown = scene.load_scene(scene.Sources(tmp_path / "image.nii.gz", None, "heart"), load_label_set("thorax17"))
    assert shown.step == pytest.approx(step) and shown.scan.array.dtype == np.int16
    np.testing.assert_allclose(shown.scan.array * shown.step, array, atol=0.51 * step)
    assert len(np.unique(shown.scan.array)) == len(np.unique(np.rint(array / step)))
    assert shown.in_hu == (least < -100) and shown.unit == ("HU" if shown.in_hu else {1: ""}.get(step, f"× {step:g}"))
