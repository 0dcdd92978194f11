"""Models from elsewhere: bundles as the zoo writes them, bare checkpoints, TorchScript; and what is refused."""

from __future__ import annotations

import ast
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from command import run
from monai.bundle import ConfigParser
from monai.networks.nets.dynunet import DynUNet
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unet import UNet
from monai.networks.nets.unetr import UNETR

from agg2exp_core import pipeline, volumes
from agg2exp_core.aggregation.regions import mass
from agg2exp_core.model import adding, config, script
from agg2exp_core.model.adding import Wrapping, add_model
from agg2exp_core.model.bundle import Bundle, load_weights
from agg2exp_core.model.networks import misfit, network_def, without_prefixes
from agg2exp_core.model.preprocess import AIR_HU, scaled
from agg2exp_core.organs import Organ, load_label_set
from agg2exp_core.records import InputError, Method, Volume
from agg2exp_core.settings import ALLOWED_VARIABLE, list_models
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case

WRAPPED = ("--spacing", "5,5,5", "--window", "32,32,32", "--intensity", "-175,250")
BTCV = ("background", "Spleen", "Right Kidney", "Left Kidney", "Gallbladder", "Esophagus", "Liver", "Stomach", "Aorta",
        "IVC", "Portal and Splenic Veins", "Pancreas", "Right adrenal gland", "Left adrenal gland")  # fmt: skip


def chain(*middle: dict[str, Any], spacing: Any = (5.0, 5.0, 5.0)) -> dict[str, Any]:
    """Pre-processing as bundles of the zoo begin and end it."""
    return {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "Spacingd", "keys": "image", "pixdim": spacing, "mode": "bilinear"},
            *middle,
        ],
    }


COMMON = {
    "imports": ["$import glob", "$import os"], "bundle_root": "/workspace/bundle", "image_key": "image",
    "output_dir": "$@bundle_root + '/eval'", "datalist": "$list(sorted(glob.glob(@bundle_root + '/*.nii.gz')))",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network": "$@network_def.to(@device)",
    "postprocessing": {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred"}
                                                             | {"softmax": True}]},
    "evaluator": {"_target_": "SupervisedEvaluator", "network": "@network", "inferer": "@inferer"},
}  # fmt: skip
INFERER = {"_target_": "SlidingWindowInferer", "roi_size": [64, 32, 32], "sw_batch_size": 4, "overlap": 0.25}
RANGE = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -175, "a_max": 250, "b_min": 0, "b_max": 1}


def whole_body() -> tuple[dict[str, Any], dict[str, str], torch.nn.Module]:
    """104 organs: a choice between spacings, normalisation to the scan's mean, windows on a device of their own."""
    kwargs = {"spatial_dims": 3, "in_channels": 1, "out_channels": 105, "init_filters": 8, "blocks_down": [1, 1]}
    kwargs |= {"blocks_up": [1], "dropout_prob": 0.2}
    spacing = "$[5.0, 5.0, 5.0] if not @highres else [1.5, 1.5, 1.5]"
    normalise = {"_target_": "NormalizeIntensityd", "keys": "image", "nonzero": True}
    own = {
        "highres": False, "network_def": {"_target_": "SegResNet", **kwargs},
        "preprocessing": chain(normalise, {"_target_": "ScaleIntensityd", "keys": "@image_key"}, spacing=spacing),
        "inferer": INFERER | {"mode": "gaussian", "padding_mode": "replicate", "device": "$torch.device('cpu')"},
    }  # fmt: skip
    names = {str(number): "background" if number == 0 else f"organ_{number}" for number in range(105)}
    return COMMON | own, names, SegResNet(**kwargs)


def btcv() -> tuple[dict[str, Any], dict[str, str], torch.nn.Module]:
    """13 organs with large letters and blanks, numbered from 1; arguments of older releases of the network."""
    kwargs = {"spatial_dims": 3, "in_channels": 1, "out_channels": 14, "feature_size": 12}
    own = {
        "network_def": {"_target_": "SwinUNETR", "img_size": 96, "use_checkpoint": True, **kwargs},
        "preprocessing": chain(RANGE), "inferer": INFERER | {"mode": "constant"},
    }  # fmt: skip
    return COMMON | own, {str(number): name for number, name in enumerate(BTCV) if number}, SwinUNETR(**kwargs)


def spleen() -> tuple[dict[str, Any], dict[str, str], torch.nn.Module]:
    """One organ, a UNet with batch normalisation, softmax only in the post-processing."""
    kwargs = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8, 16], "strides": [2, 2]}
    kwargs |= {"num_res_units": 2, "norm": "batch"}
    own = {"network_def": {"_target_": "UNet", **kwargs}, "preprocessing": chain(RANGE), "inferer": INFERER}
    return COMMON | own, {"0": "background", "1": "spleen"}, UNet(**kwargs)


def write_zoo(folder: Path, made: tuple[dict[str, Any], dict[str, str], torch.nn.Module], kind: str = "json") -> Path:
    settings, channels, network = made
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    text = json.dumps(settings) if kind == "json" else yaml.safe_dump(settings)
    (folder / "configs" / f"inference.{kind}").write_text(text)
    outputs = {"pred": {"num_channels": len(channels), "channel_def": channels}}
    (folder / "configs" / "metadata.json").write_text(json.dumps({"network_data_format": {"outputs": outputs}}))
    (folder / "docs" / "README.md").write_text("# A model\n")
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """Larger than a window along one axis, smaller along the others; oblique, anisotropic."""
    array = np.random.default_rng(0).normal(-100, 150, (66, 30, 15)).astype(np.int16)
    affine = np.diag([5.0, 5.0, 8.0, 1.0])
    affine[0, 1] = 0.4
    volumes.write_volume(tmp_path / "scan.nii.gz", Volume(array, affine))
    return tmp_path / "scan.nii.gz"


@pytest.mark.parametrize(
    ("made", "kind"), [(whole_body, "json"), (btcv, "json"), (spleen, "json"), (spleen, "yaml")]
)  # fmt: skip
def test_a_bundle_of_the_zoo_is_explained_as_its_own_inference_is_differentiated(tmp_path, scan, made, kind) -> None:
    torch.manual_seed(1)
    settings, channels, network = made()
    source = write_zoo(tmp_path / "zoo", (settings, channels, network), kind)
    assert run("model", "add", source, "--name", "new", "--no-check", "--data", tmp_path / "root") == 0

    parser = ConfigParser({key: settings[key] for key in ("preprocessing", "inferer", "image_key")} | {
        "device": torch.device("cpu"), "highres": False,
    })  # fmt: skip
    image = parser.get_parsed_content("preprocessing")({"image": str(scan)})["image"].as_tensor().float()[None]
    image.requires_grad_()
    logits = parser.get_parsed_content("inferer")(image, network.eval())
    prediction = logits[0].argmax(0)
    target = next(number for number, _ in Counter(prediction.flatten().tolist()).most_common() if number)
    expected = torch.autograd.grad((logits[0, target] * (prediction == target)).sum(), image)[0][0, 0]

    bundle = Bundle(tmp_path / "root" / "models" / "new")
    name = bundle.classes[target]
    plan = pipeline.Plan("new", Method("gradient"), (name,), saliency="float32")
    pipeline.Explaining(tmp_path / "root", plan).case(Case("c", scan, None, {}), tmp_path / "out", lambda *_: None)
    table = results.read_importance(tmp_path / "out")
    assert mass(table, "abs").sum() == pytest.approx(1, abs=1e-6)
    found = np.asarray(nib.load(tmp_path / "out" / "saliency" / f"{name}.nii.gz").dataobj)
    assert np.abs(found - expected.numpy()).sum() <= 1e-4 * expected.abs().sum().item()


def test_a_network_that_runs_on_windows_of_its_size_alone_comes_in(tmp_path, monkeypatch) -> None:
    """As a UNETR, which is made for one size."""
    monkeypatch.setattr(adding, "TRIED", 16)
    kwargs = {"in_channels": 1, "out_channels": 2, "img_size": [32] * 3, "feature_size": 4, "hidden_size": 24}
    kwargs |= {"mlp_dim": 24, "num_heads": 2}
    settings, channels, _ = spleen()
    settings |= {"network_def": {"_target_": "UNETR", **kwargs}, "inferer": INFERER | {"roi_size": [32] * 3}}
    bundle = add_model(tmp_path, write_zoo(tmp_path / "zoo", (settings, channels, UNETR(**kwargs))), "new", Wrapping())
    assert bundle.classes == ("background", "spleen")


def test_classes_get_names_of_files_titles_as_they_came_and_what_is_known_of_them(tmp_path) -> None:
    add_model(tmp_path, write_zoo(tmp_path / "zoo", btcv()), "abdomen", Wrapping())
    bundle = Bundle(tmp_path / "models" / "abdomen")
    assert bundle.classes[:4] == ("background", "spleen", "right_kidney", "left_kidney") and len(bundle.classes) == 14
    labels = load_label_set(bundle.label_set, tmp_path)
    assert labels["right_kidney"].title == "Right Kidney"
    assert labels["aorta"].color == load_label_set("thorax17")["aorta"].color
    assert (bundle.folder / "docs" / "README.md").is_file()


@pytest.mark.parametrize(("name", "count"), [("thorax17", 17), ("totalsegmentator", 118)])
def test_classes_of_a_known_label_set_take_it(tmp_path, name, count) -> None:
    known = load_label_set(name).names
    assert len(set(known)) == count
    network = torch.nn.Conv3d(1, len(known), 1)
    settings = COMMON | {"network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": len(known)}
                         | {"kernel_size": 1}, "preprocessing": chain(RANGE), "inferer": INFERER}  # fmt: skip
    channels = {str(number): organ for number, organ in enumerate(known)}
    added = add_model(tmp_path, write_zoo(tmp_path / "zoo", (settings, channels, network)), "new", Wrapping())
    assert added.label_set == name and not (tmp_path / "label_sets").exists()


def _choosing(name: str) -> tuple[dict[str, Any], dict[str, str], torch.nn.Module]:
    """Of two sets of weights, as the zoo's whole-body bundle has them for two spacings."""
    settings, channels, network = spleen()
    path = {"_target_": "CheckpointLoader", "load_path": "$@bundle_root + '/models/' + @modelname"}
    choice = {"modelname": f"$'model.pt' if @highres else '{name}'", "highres": False}
    return settings | choice | {"handlers": [path], "bundle_root": "$os.getcwd()"}, channels, network


def test_the_weights_are_those_that_the_config_loads(tmp_path) -> None:
    source, other = write_zoo(tmp_path / "zoo", _choosing("model_lowres.pt")), spleen()[2]
    torch.save(other.state_dict(), source / "models" / "model_lowres.pt")
    bundle = add_model(tmp_path, source, "new", Wrapping())
    found, key = bundle.bare_network(torch.device("cpu")).state_dict(), "model.0.conv.unit0.conv.weight"
    assert torch.equal(found[key], other.state_dict()[key])


def test_weights_of_the_config_that_are_not_there_are_not_replaced_by_others(tmp_path) -> None:
    with pytest.raises(InputError, match=r"loads must be in models/; got model_lowres; allowed: model\.pt"):
        add_model(tmp_path, write_zoo(tmp_path / "zoo", _choosing("model_lowres.pt")), "new", Wrapping())


def test_a_path_that_cannot_be_read_leaves_no_choice_but_one(tmp_path) -> None:
    settings, channels, network = spleen()
    made = settings | {"loader": {"load_path": "$os.path.join('models', 'model.pt')"}}, channels, network
    source = write_zoo(tmp_path / "zoo", made)
    add_model(tmp_path, source, "new", Wrapping())
    torch.save(network.state_dict(), source / "models" / "other.pt")
    with pytest.raises(InputError, match=r"os\.path\.join"):
        add_model(tmp_path, source, "again", Wrapping())


def test_documents_are_copied_and_what_they_link_to_is_not(tmp_path) -> None:
    source, secret = write_zoo(tmp_path / "zoo", spleen()), tmp_path / "secret.txt"
    secret.write_text("private")
    for name, target in (("notes.txt", secret), ("gone.txt", tmp_path / "nowhere"), ("loop", source / "docs")):
        (source / "docs" / name).symlink_to(target)
    (source / "LICENSE").symlink_to(secret)
    os.mkfifo(source / "docs" / "pipe")
    bundle = add_model(tmp_path, source, "new", Wrapping())
    assert [path.name for path in (bundle.folder / "docs").iterdir()] == ["README.md"]
    assert not (bundle.folder / "LICENSE").exists()


@pytest.mark.parametrize(
    ("middle", "air"),
    [
        ([RANGE | {"clip": True}], 0.0), ([{"_target_": "Compose", "transforms": [RANGE | {"clip": True}]}], 0.0),
        ([{"_target_": "ScaleIntensityd", "keys": "image", "minv": -1.0, "maxv": 1.0}], None),
        ([{"_target_": "NormalizeIntensityd", "keys": "image"}], None),
    ],
)  # fmt: skip
def test_what_the_chain_makes_of_air_is_said_where_it_is_the_same_in_every_scan(tmp_path, middle, air) -> None:
    settings, channels, network = spleen()
    bundle = Bundle(write_zoo(tmp_path, (settings | {"preprocessing": chain(*middle)}, channels, network)))
    assert scaled(bundle, AIR_HU) == air


# ---- bare checkpoints --------------------------------------------------------------------------


NETWORKS = {
    "Swin UNETR": lambda: SwinUNETR(1, 5, feature_size=12),
    "Swin UNETR v2": lambda: SwinUNETR(1, 3, feature_size=12, use_v2=True, window_size=4, depths=(2, 2, 2, 1)),
    "SegResNet": lambda: SegResNet(3, 8, 1, 7, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)),
    "SegResNet, deconvolutions": lambda: SegResNet(3, 8, 4, 3, blocks_down=(1, 2), blocks_up=(1,),
                                                   upsample_mode="deconv"),
    "UNet": lambda: UNet(3, 1, 2, channels=(4, 8, 16, 32), strides=(2, 2, 2), num_res_units=2, norm="batch"),
    "UNet, plain": lambda: UNet(3, 1, 4, channels=(4, 8), strides=(2,)),
    "DynUNet": lambda: DynUNet(3, 1, 2, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 8, 16], deep_supervision=True),
    "DynUNet, anisotropic": lambda: DynUNet(3, 1, 6, [[1, 3, 3], [3, 3, 3], [3, 3, 3]], [1, [1, 2, 2], 2],
                                            [[1, 2, 2], 2], filters=[4, 8, 16], res_block=True, trans_bias=True),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_told_by_its_tensors(name) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    weights = without_prefixes({f"module.{key}": tensor for key, tensor in network.state_dict().items()})
    found = network_def(weights)
    ours = ConfigParser({"network": found}).get_parsed_content("network").eval()
    assert misfit(ours, weights) is None
    ours.load_state_dict(weights)
    window = torch.rand(1, found["in_channels"], 64, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(window), network(window), rtol=0, atol=0)


def test_prefixes_go_before_names_of_networks_that_are_told_otherwise() -> None:
    """As nnU-Net's, whose plans tell the network."""
    tensor = torch.zeros(1)
    assert without_prefixes({"module._orig_mod.encoder.a": tensor, "module._orig_mod.b": tensor}) == {
        "encoder.a": tensor, "b": tensor,
    }  # fmt: skip


def labels_file(folder: Path, *names: str) -> Path:
    (folder / "labels.csv").write_text("id,name\n" + "".join(f"{n},{name}\n" for n, name in enumerate(names)))
    return folder / "labels.csv"


def described(folder: Path, *lines: str) -> Wrapping:
    torch.save(NETWORKS["UNet"]().state_dict(), folder / "best.pth")
    (folder / "labels.csv").write_text("\n".join(["id,name,group,color,title", *lines]))
    return Wrapping(folder / "labels.csv", (5.0,) * 3, (32,) * 3, (-175.0, 250.0))


@pytest.mark.parametrize("name", ["lesion", "heart"])
def test_labels_tell_group_color_and_title(tmp_path, name) -> None:
    wrapping = described(tmp_path, f"1,{name},pathology,#ff0000,My lesion", "0,background,,,")
    bundle = add_model(tmp_path, tmp_path / "best.pth", "bare", wrapping)
    labels = load_label_set("bare", tmp_path)
    assert bundle.label_set == "bare" and labels[name] == Organ(1, name, "pathology", "#ff0000", "My lesion")
    assert labels["background"].color == load_label_set("thorax17")["background"].color


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (("0,background,,,", "1,lesion,,red,"), "#rrggbb"), (("0,lesion,,,", "1,lesion,,,"), "there once"),
        (("0,background,,,", "2,lesion,,,"), "count from 0"), (("0,background,,,", "b,lesion,,,"), "whole numbers"),
    ],
)  # fmt: skip
def test_labels_that_do_not_serve_are_refused(tmp_path, lines, told) -> None:
    with pytest.raises(InputError, match=told):
        add_model(tmp_path, tmp_path / "best.pth", "bare", described(tmp_path, *lines))


def test_a_known_organ_of_another_number_keeps_the_models_own(tmp_path) -> None:
    """Whose label maps have 1 for it, as its predictions do; the known set would read 1 as the aorta."""
    bundle = add_model(tmp_path, tmp_path / "best.pth", "bare", described(tmp_path, "0,background,,,", "1,heart,,,"))
    labels, known = load_label_set(bundle.label_set, tmp_path), load_label_set("thorax17")["heart"]
    assert bundle.label_set == "bare" and labels["heart"].id == 1 != known.id
    assert (labels["heart"].color, labels["heart"].group) == (known.color, known.group)


def test_a_models_own_label_set_hides_no_other(tmp_path) -> None:
    wrapping = described(tmp_path, "0,background,,,", "1,lesion,,,")
    with pytest.raises(InputError, match="no other set has; got 'thorax17'"):
        add_model(tmp_path, tmp_path / "best.pth", "thorax17", wrapping)
    assert len(load_label_set("thorax17", tmp_path).names) == 17


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_bare_checkpoint_becomes_a_bundle(tmp_path, scan, suffix) -> None:
    torch.manual_seed(0)
    network = NETWORKS["UNet"]().eval()
    file = tmp_path / f"best{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}, "epoch": 3}, file)
    else:
        import safetensors.torch

        safetensors.torch.save_file(network.state_dict(), file)
    labels = labels_file(tmp_path, "background", "Left Lung")
    words = ("model", "add", file, "--name", "bare", "--labels", labels, *WRAPPED, "--no-check", "--data", tmp_path)
    assert run(*words) == 0
    bundle = Bundle(tmp_path / "models" / "bare")
    assert bundle.classes == ("background", "left_lung") and tuple(bundle.inferer().roi_size) == (32, 32, 32)
    window = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(bundle.network(torch.device("cpu"))(window), network(window), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["DynUNet", "DynUNet, anisotropic"])
def test_a_bare_checkpoint_with_tensors_of_two_names_becomes_a_bundle(tmp_path, name) -> None:
    network = NETWORKS[name]().eval()
    torch.save(network.state_dict(), tmp_path / "best.pth")
    outputs = network.output_block.conv.conv.out_channels
    labels = labels_file(tmp_path, "background", *(f"organ{number}" for number in range(1, outputs)))
    bundle = add_model(
        tmp_path, tmp_path / "best.pth", "bare", Wrapping(labels, (5.0,) * 3, (32,) * 3, (-175.0, 250.0))
    )
    window = torch.rand(1, 1, 32, 32, 32)
    torch.testing.assert_close(bundle.network(torch.device("cpu"))(window), network(window), rtol=0, atol=0)


def test_torchscript_of_one_logit_is_a_model_of_one_organ(tmp_path, scan) -> None:
    """Its organ is where the logit is above 0, as a sigmoid above one half."""
    torch.manual_seed(0)
    network = UNet(3, 1, 1, channels=(4, 8), strides=(2,)).eval()
    torch.jit.script(network).save(tmp_path / "model.ts")
    labels = labels_file(tmp_path, "lesion")
    words = (
        "model",
        "add",
        tmp_path / "model.ts",
        "--name",
        "script",
        "--labels",
        labels,
        *WRAPPED,
        "--data",
        tmp_path,
    )
    assert run(*words) == 0
    assert Bundle(tmp_path / "models" / "script").classes == ("background", "lesion")
    plan = pipeline.Plan("script", Method("gradient"), ("lesion",))
    explaining = pipeline.Explaining(tmp_path, plan)
    explaining.case(Case("c", scan, None, {}), tmp_path / "out", lambda *_: None)
    assert mass(results.read_importance(tmp_path / "out"), "abs").sum() == pytest.approx(1, abs=1e-6)
    window = torch.rand(1, 1, 32, 32, 32)
    both = explaining.explainer.network(window)
    torch.testing.assert_close(both[:, 1:], network(window))
    torch.testing.assert_close(both[:, :1], -both[:, 1:])


class Overwriting(torch.nn.Module):
    """Maps a file into memory, in a branch that is taken seldom."""

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        if bool(window.sum() > 0):
            window = window + torch.from_file("victim.bin", True, 8).fill_(0.0).sum()
        return window


class Saving(torch.nn.Module):
    def forward(self, window: torch.Tensor) -> torch.Tensor:
        torch.save(window, "victim.bin")
        return window


class Restoring(torch.nn.Module):
    """Has code that is run while it is loaded."""

    @torch.jit.export
    def __getstate__(self) -> tuple[bool, bool]:
        return self.training, True

    @torch.jit.export
    def __setstate__(self, state: tuple[bool, bool]) -> None:
        self.training = state[0]

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        return window


@pytest.mark.parametrize(
    ("network", "told"), [(Overwriting, "from_file"), (Saving, "save"), (Restoring, "__setstate__")]
)  # fmt: skip
def test_torchscript_that_touches_files_is_refused_before_it_is_run(tmp_path, capsys, monkeypatch, network, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim.bin").write_bytes(b"precious" * 4)
    torch.jit.script(torch.nn.Sequential(torch.nn.Conv3d(1, 1, 1), network())).save("model.ts")
    words = ("--name", "new", "--labels", labels_file(tmp_path, "lesion"), *WRAPPED, "--data", tmp_path)
    assert run("model", "add", tmp_path / "model.ts", *words) == 2
    assert f"touch no files; got model.ts with {told}" in capsys.readouterr().err
    assert (tmp_path / "victim.bin").read_bytes() == b"precious" * 4


@pytest.mark.parametrize(
    "code", ['getattr(torch, "from_" "file")', "ops.c10d.send", "(ops).sparse", 'getattr(ops, "x")']
)
def test_other_spellings_are_found(code) -> None:
    assert list(script._reaching_out(ast.parse(code)))
    assert not list(script._reaching_out(ast.parse("ops.prim.RaiseException(torch.add(x, 1))")))


def test_what_is_no_torchscript_is_refused(tmp_path) -> None:
    (tmp_path / "model.ts").write_bytes(b"none")
    with pytest.raises(InputError, match="readable"):
        script.load_script(tmp_path / "model.ts")


# ---- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("$[3.0, 3.0] if not @high else 1", [3.0, 3.0]), ("@list#1", 2), ("@list::0", 1), ("$@list[0]", None),
        ("$-@list#1 * 2 + 1", -3), ("$[1.5] * 3", [1.5] * 3), ("$torch.float32", "$torch.float32"), ("plain", "plain"),
        ("$__import__('os').system('true')", None), ("$open('/etc/passwd').read()", None), ("%other.json::x", None),
        ("$[x for x in (1, 2)]", None), ("$'$print(1)'", None), ("$(lambda: 1)()", None), ("@nowhere", None),
        ("@circle", None), ("$'a' * 99", None), ("$[0] * 9999999999", None),
        ("$9999999999 * [0]", None), ("$9 ** 9", None), ("$torch.load", None),
        ("$1 +", None), ("$@nowhere", None),
    ],
)  # fmt: skip
def test_expressions_are_arithmetic_or_refused(expression, value) -> None:
    settings = {"high": False, "list": [1, 2], "circle": ["@circle"], "part": {"at": expression}}
    if value is None:
        with pytest.raises(InputError):
            config.plain_section(settings, "part")
    else:
        assert config.plain_section(settings, "part") == {"at": value}


@pytest.mark.parametrize(
    "name",
    [
        "os.system", "torch.load", "torch.hub.load", "monai.bundle.run", "run", "builtins.eval", "SaveImaged",
        "nonsense", "torch.nn.functional.relu", "torch.nn.modules.module.torch.load",
        "monai.transforms.io.dictionary.Path", "monai.transforms.SaveImage",
    ],
)  # fmt: skip
def test_callables_that_are_not_on_the_list_are_refused(name, monkeypatch) -> None:
    with pytest.raises(InputError, match=ALLOWED_VARIABLE):
        config.plain_section({"part": [{"_target_": name}]}, "part")
    monkeypatch.setenv(ALLOWED_VARIABLE, f"elsewhere, {name.rpartition('.')[0] or 'none'}")
    if "." in name:
        config.plain_section({"part": [{"_target_": name}]}, "part")


@pytest.mark.parametrize("reader", ["os.system", "open", ["os.system"], {"_target_": "os.system"}, "@elsewhere"])
def test_what_reads_a_scan_is_not_the_configs_choice(reader) -> None:
    """MONAI looks the reader up, wherever it lies, and calls it with the other arguments."""
    settings = {"preprocessing": ["@load"], "load": {"_target_": "LoadImaged", "keys": "image", "reader": reader}}
    found = config.plain_section(settings | {"elsewhere": "os.system"}, "preprocessing")
    assert found == [{"_target_": "LoadImaged", "keys": "image"}]


@pytest.mark.parametrize("text", ["os.system", "/etc/passwd", "../x", "http://127.0.0.1/x", "C:\\x", "~", "a\nb"])
@pytest.mark.parametrize("found", ["plain", "by reference", "by expression"])
def test_a_text_that_could_be_looked_up_opened_or_asked_for_is_refused(text, found) -> None:
    value = {"plain": text, "by reference": "@text", "by expression": f"${text!r} + ''"}[found]
    section = {"_target_": "HoVerNet", "any": [{"some": value}]}
    with pytest.raises(InputError, match="texts of letters"):
        config.plain_section({"network_def": section, "text": text}, "network_def")


@pytest.mark.parametrize(
    ("section", "name"),
    [("inferer", "PatchInferer"), ("preprocessing", "torch.nn.ReLU"), ("network_def", "SlidingWindowInferer")],
)
def test_a_section_holds_classes_of_its_own_kind_alone(section, name) -> None:
    """So that an inferer's `merger_cls`, which MONAI looks up too, is never come to."""
    outer = {
        "_target_": {"inferer": "SlidingWindowInferer", "preprocessing": "Compose", "network_def": "UNet"}[section]
    }
    with pytest.raises(InputError, match="must be a"):
        config.plain_section({section: outer | {"part": [{"_target_": name}]}}, section)


def test_weights_are_never_fetched() -> None:
    described = {"_target_": "HoVerNet", "pretrained_url": "http://127.0.0.1:9/x", "pretrained": True}
    assert config.plain_section({"network_def": described}, "network_def") == {"_target_": "HoVerNet"}


def test_a_few_lines_that_would_fill_the_memory_are_refused() -> None:
    settings = {f"l{n}": [f"@l{n + 1}"] * 10 for n in range(12)} | {"l12": 0}
    with pytest.raises(InputError, match="too many"):
        config.plain_section(settings, "l0")


@pytest.mark.parametrize("key", ["_mode_", "_requires_"])
def test_what_would_run_something_is_refused(key) -> None:
    with pytest.raises(InputError, match=key):
        config.plain_section({"part": {"_target_": "Compose", key: "callable"}}, "part")


def _without_labels(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings, {}, network


def _without_inferer(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return {key: part for key, part in settings.items() if key != "inferer"}, channels, network


def _with_code(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings | {"preprocessing": {"_target_": "os.system", "command": "true"}}, channels, network


def _with_other_weights(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings, channels, NETWORKS["UNet, plain"]()


def _with_a_name_twice(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings, {"0": "background", "1": "background"}, network


def _without_background(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings, {"0": "tumour core", "1": "whole tumour"}, network


def _with_gaps(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings, {"0": "background", "5": "spleen"}, network


def _without_windows(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings | {"inferer": {"_target_": "SimpleInferer"}}, channels, network


def _with_unknown_arguments(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    return settings | {"network_def": settings["network_def"] | {"unheard_of": 1}}, channels, network


def _fetching(settings: dict[str, Any], channels: dict[str, str], network: torch.nn.Module) -> Any:
    fetched_unless_told = {"_target_": "EfficientNetBN", "model_name": "efficientnet-b0", "spatial_dims": 2}
    return settings | {"network_def": fetched_unless_told}, channels, network


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_fetching, "a model must be all in its folder"),
        (_without_labels, "no names"), (_without_inferer, "no inferer"), (_with_code, "os.system"),
        (_with_other_weights, "model.0.conv.unit0.conv.weight is missing"), (_with_a_name_twice, "names of their own"),
        (_without_background, "background first"), (_with_gaps, "from 0 or 1 on"),
        (_with_unknown_arguments, "unheard_of"), (_without_windows, "must be a SlidingWindowInferer"),
    ],
)  # fmt: skip
def test_a_bundle_that_does_not_serve_is_refused_in_one_line(tmp_path, capsys, change, told) -> None:
    source = write_zoo(tmp_path / "zoo", change(*spleen()))
    assert run("model", "add", source, "--name", "new", "--data", tmp_path / "root") == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert told in printed and printed.startswith("agg2exp: ")
    assert not list_models(tmp_path / "root") and not list((tmp_path / "root" / "models").iterdir())
    assert not (tmp_path / "root" / "label_sets").exists()


def _metadata(content: Any) -> Any:
    return lambda source: (source / "configs" / "metadata.json").write_text(json.dumps(content))


def _yaml(lines: str) -> Any:
    """The config as YAML, with more lines."""

    def changed(source: Path) -> None:
        config_file = source / "configs" / "inference.json"
        config_file.with_suffix(".yaml").write_text(yaml.safe_dump(json.loads(config_file.read_text())) + lines)
        config_file.unlink()

    return changed


def _setting(**parts: Any) -> Any:
    def changed(source: Path) -> None:
        path = source / "configs" / "inference.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | parts))

    return changed


SWOLLEN = "\nb0: &b0 [0,0,0,0,0,0,0,0,0,0]\n" + "".join(
    f"b{level}: &b{level} [{','.join([f'*b{level - 1}'] * 10)}]\n" for level in range(1, 6)
)
UNTRACKED = {"_target_": "EnsureTyped", "keys": "image", "track_meta": False}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_metadata([1]), "readable JSON"), (_metadata({"network_data_format": []}), "no names"),
        (_metadata({"network_data_format": {"outputs": None}}), "no names"),
        (_metadata({"network_data_format": {"outputs": {"pred": []}}}), "no names"),
        (_metadata({"network_data_format": {"outputs": {"pred": {"channel_def": ["a", "b"]}}}}), "channel_def must"),
        (_yaml("\ncircle: &a [*a]\n"), "values"), (_yaml(SWOLLEN), "values"), (_yaml("\n? [1, 2]\n: 3\n"), "readable"),
        (_setting(inferer={"_target_": "SliceInferer", "roi_size": [64, 64]}), "3 edges"),
        (_setting(inferer=INFERER | {"overlap": -1}), "overlap by a share of their edges; got -1"),
        (_setting(inferer=INFERER | {"overlap": 1.0}), "overlap by a share"),
        (_setting(preprocessing=chain(RANGE, UNTRACKED)), "place in space"),
        (_setting(image_key="img"), "chain must run"),
        (lambda source: (source / "configs" / "inference.json").write_text("[1]"), "readable JSON"),
    ],
)  # fmt: skip
def test_a_bundles_files_are_refused_in_one_line_whatever_they_hold(tmp_path, capsys, change, told) -> None:
    source = write_zoo(tmp_path / "zoo", spleen())
    change(source)
    assert run("model", "add", source, "--name", "new", "--no-check", "--data", tmp_path / "root") == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
    assert not list_models(tmp_path / "root")


def test_a_date_in_a_config_is_a_text(tmp_path) -> None:
    source = write_zoo(tmp_path / "zoo", spleen())
    _yaml("\ndated: 2023-01-01\n")(source)
    bundle = add_model(tmp_path, source, "new", Wrapping())
    assert json.loads((bundle.folder / "configs" / "inference.json").read_text())["dated"] == "2023-01-01"


@pytest.mark.parametrize("name", ["Swin UNETR", "SegResNet", "UNet", "DynUNet"])
def test_a_checkpoint_without_its_last_layers_is_refused(name) -> None:
    heads = ("out.", "conv_final", "model.2", "output_block")
    weights = {key: part for key, part in NETWORKS[name]().state_dict().items() if not key.startswith(heads)}
    with pytest.raises(InputError, match="all of its network"):
        network_def(weights)


@pytest.mark.parametrize("content", [b"", b"\x80\x02cnone", b"PK\x03\x04none", b"\x80\x02X\x02\x00\x00\x00\xff\xff."])
def test_a_damaged_checkpoint_is_refused(tmp_path, content) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"readable|tensors alone"):
        load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("key", ["state_dict", "net", "ema_weights"])
def test_weights_are_found_beside_what_trainers_keep(tmp_path, key) -> None:
    """Under whatever key, where one alone has tensors; and numpy's numbers are no code."""
    torch.save({"epoch": np.int64(3), "best": np.float64(0.9), key: {"a": torch.ones(2)}}, tmp_path / "w.pt")
    assert load_weights(tmp_path / "w.pt")["a"].tolist() == [1, 1]
    torch.save({"one": {"a": torch.ones(2)}, "other": {"a": torch.zeros(2)}}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="named tensors"):
        load_weights(tmp_path / "w.pt")


def test_torchscript_that_ends_as_weights_do_is_told_by_what_is_in_it(tmp_path) -> None:
    torch.jit.trace(torch.nn.Conv3d(1, 2, 1), torch.zeros(1, 1, 8, 8, 8)).save(tmp_path / "model.pt")
    wrapping = Wrapping(labels_file(tmp_path, "background", "lesion"), (5.0,) * 3, (32,) * 3, (-175.0, 250.0))
    bundle = add_model(tmp_path, tmp_path / "model.pt", "traced", wrapping)
    assert bundle.weights.name == "model.ts" and bundle.classes == ("background", "lesion")


def test_tensors_need_names(tmp_path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="named tensors"):
        load_weights(tmp_path / "w.pt")


def _flat(folder: Path) -> tuple[object, ...]:
    torch.save(torch.nn.Conv2d(1, 2, 3).state_dict(), folder / "w.pt")
    return folder / "w.pt", "--labels", labels_file(folder, "background", "a"), *WRAPPED


def _two_dimensional(folder: Path) -> tuple[object, ...]:
    torch.save(UNet(2, 1, 2, channels=(4, 8), strides=(2,)).state_dict(), folder / "w.pt")
    return folder / "w.pt", "--labels", labels_file(folder, "background", "a"), *WRAPPED


def _lacking(folder: Path) -> tuple[object, ...]:
    torch.save(NETWORKS["UNet"]().state_dict(), folder / "w.pt")
    return (folder / "w.pt",)


def _too_few_names(folder: Path) -> tuple[object, ...]:
    torch.save(NETWORKS["SegResNet"]().state_dict(), folder / "w.pt")
    return folder / "w.pt", "--labels", labels_file(folder, "background", "a"), *WRAPPED


def _many_channels(folder: Path) -> tuple[object, ...]:
    torch.save(NETWORKS["SegResNet, deconvolutions"]().state_dict(), folder / "w.pt")
    return folder / "w.pt", "--labels", labels_file(folder, "background", "a", "b"), *WRAPPED


def _pickled_code(folder: Path) -> tuple[object, ...]:
    torch.save(torch.nn.Conv3d(1, 2, 3), folder / "w.pt")
    return folder / "w.pt", "--labels", labels_file(folder, "background", "a"), *WRAPPED


def _with_a_loss(folder: Path) -> tuple[object, ...]:
    weights = {f"model.{key}": part for key, part in NETWORKS["SegResNet"]().state_dict().items()}
    torch.save({"state_dict": weights | {"loss.weight": torch.ones(7)}}, folder / "w.pt")
    return folder / "w.pt", "--labels", labels_file(folder, "background", "a"), *WRAPPED


def _flat_script(folder: Path) -> tuple[object, ...]:
    torch.jit.script(torch.nn.Conv2d(1, 2, 3)).save(folder / "w.ts")
    return folder / "w.ts", "--labels", labels_file(folder, "background", "a"), *WRAPPED


def _odd_labels(folder: Path) -> tuple[object, ...]:
    (folder / "labels.csv").write_text("number;title\n0;a\n")
    torch.save(NETWORKS["UNet"]().state_dict(), folder / "w.pt")
    return folder / "w.pt", "--labels", folder / "labels.csv", *WRAPPED


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (_flat, "network that is known"), (_two_dimensional, "3D scans"), (_lacking, "no --labels"),
        (_too_few_names, "every output must have a name"), (_many_channels, "one channel"),
        (_pickled_code, "w.pt, which holds torch.nn.modules.conv.Conv3d; allowed: what"),
        (_odd_labels, "columns id, name"),
        (_with_a_loss, "loss.weight is not part of it"), (_flat_script, "(batched) input to conv2d"),
        (lambda folder: (folder / "gone.pt",), "not there"), (lambda folder: (folder,), "or nnU-Net's plans.json"),
        (lambda folder: (folder, "--spacing", "5,5,5"), "go with a bare checkpoint"),
        (lambda folder: (folder, "--spacing", "5,5"), "3 numbers"),
        (lambda folder: (folder, "--intensity", "250,-175"), "lower one first"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_does_not_serve_is_refused_in_one_line(tmp_path, capsys, made, told) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    assert run("model", "add", *made(folder), "--name", "new", "--data", tmp_path / "root") == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert told in printed and printed.startswith("agg2exp: ")
    assert not list_models(tmp_path / "root") and not (tmp_path / "root" / "label_sets").exists()


def test_a_name_that_is_taken_is_refused(tmp_path, capsys) -> None:
    source = write_zoo(tmp_path / "zoo", spleen())
    words = ("model", "add", source, "--name", "new", "--no-check", "--data", tmp_path / "root")
    assert run(*words) == 0 and run(*words) == 2
    assert "a name that is free" in capsys.readouterr().err


def test_a_model_is_named_as_its_source_unless_told(tmp_path, capsys) -> None:
    source = write_zoo(tmp_path / "spleen ct", spleen())
    assert run("model", "add", source, "--no-check", "--data", tmp_path / "root") == 0
    assert list_models(tmp_path / "root") == ["spleen_ct"] and "spleen_ct taken in" in capsys.readouterr().out


def test_organs_that_may_overlap_come_in_with_a_background(tmp_path, scan) -> None:
    """Where no logit is above 0 there is none; where several are, the largest has the voxel."""
    torch.manual_seed(0)
    settings, _, network = spleen()
    sigmoid = {"_target_": "Compose", "transforms": [{"_target_": "Activationsd", "keys": "pred", "sigmoid": True}]}
    source = write_zoo(
        tmp_path / "zoo", (settings | {"postprocessing": sigmoid}, {"0": "tumour core", "1": "tumour"}, network)
    )
    bundle = add_model(tmp_path, source, "overlapping", Wrapping())
    assert bundle.classes == ("background", "tumour_core", "tumour")
    window = torch.rand(2, 1, 32, 32, 32)
    logits = network.eval()(window)
    ours = bundle.network(torch.device("cpu"))(window)
    torch.testing.assert_close(ours[:, 1:], logits)
    assert torch.equal(ours.argmax(1), torch.where(logits.amax(1) > 0, logits.argmax(1) + 1, 0))
