"""Tiny networks and scans that the attribution tests share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer

from agg2exp_core.attribution.attribute import Explainer
from agg2exp_core.model.bundle import Bundle, save_weights
from agg2exp_core.records import Volume
from agg2exp_core.store import cohorts
from agg2exp_core.volumes import write_volume

CLASSES = ("background", "aorta", "heart")


def conv_net(seed: int = 0, classes: int = 3) -> torch.nn.Module:
    """Two convolutions with a smooth nonlinearity, no normalisation: integrated gradients are complete on it."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1), torch.nn.Softplus(), torch.nn.Conv3d(4, classes, 3, padding=1)
    ).requires_grad_(False)


def normed_net(seed: int = 0) -> torch.nn.Module:
    """With instance normalisation, as most segmentation networks have."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv3d(1, 4, 3, padding=1),
        torch.nn.InstanceNorm3d(4, affine=True),
        torch.nn.LeakyReLU(),
        torch.nn.Conv3d(4, 3, 3, padding=1),
    ).requires_grad_(False)


def scan_of(shape: tuple[int, int, int], seed: int = 1) -> torch.Tensor:
    """(1, I, J, K) in 0…1."""
    return torch.rand((1, *shape), generator=torch.Generator().manual_seed(seed))


def inferer_of(
    roi: tuple[int, int, int] = (8, 8, 8), overlap: float = 0.25, mode: str = "gaussian", **others
) -> SlidingWindowInferer:
    return SlidingWindowInferer(roi, overlap=overlap, mode=mode, **others)


def explainer_of(network: torch.nn.Module, inferer: SlidingWindowInferer | None = None) -> Explainer:
    return Explainer(network, inferer or inferer_of(), CLASSES, torch.device("cpu"))


def write_cohort(root: Path, names: tuple[str, ...], affine: np.ndarray, shape: tuple[int, int, int]) -> None:
    """A cohort `c` of scans of noise, which lie beside the root."""
    scans = root.parent / "scans"
    scans.mkdir()
    for seed, name in enumerate(names):
        array = np.random.default_rng(seed).normal(-300, 200, shape).astype(np.int16)
        write_volume(scans / f"{name}.nii.gz", Volume(array, affine))
    cohorts.add_cohort(root, "c", scans)


def _network() -> torch.nn.Module:
    """The same in every test: one that never predicts some class would be another test now and then."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Conv3d(1, 3, 3, padding=1)


def write_bundle(
    root: Path, name: str = "tiny", network: torch.nn.Module | None = None, spacing: float = 4.0
) -> Bundle:
    """A bundle `models/<name>` as the zoo writes them: a 3³ convolution over three classes, windows of 16³."""
    network = network or _network()
    config = {
        "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 3}
        | {"kernel_size": network.kernel_size[0], "padding": network.padding[0]},
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [spacing] * 3, "mode": "bilinear"},
                {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": -1024, "a_max": 1024}
                | {"b_min": 0.0, "b_max": 1.0, "clip": True},
            ],
        },
        "inferer": {"_target_": "SlidingWindowInferer", "roi_size": [16, 16, 16], "overlap": 0.25, "mode": "gaussian"},
    }
    channels = {str(index): name for index, name in enumerate(CLASSES)}
    metadata = {"label_set": "thorax17", "network_data_format": {"outputs": {"pred": {"channel_def": channels}}}}
    bundle = Bundle(root / "models" / name)
    (bundle.folder / "configs").mkdir(parents=True)
    (bundle.folder / "configs" / "inference.json").write_text(json.dumps(config))
    (bundle.folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    save_weights(bundle, network)
    return bundle


def threshold_net() -> torch.nn.Conv3d:
    """Segments by grey value alone: heart above −24 HU, aorta never, so its geometry can be checked on the scan."""
    network = torch.nn.Conv3d(1, 3, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 0.0, 8.0]).view(3, 1, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -100.0, -8.0 * 1000 / 2048]))
    return network
