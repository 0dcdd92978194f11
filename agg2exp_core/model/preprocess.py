"""From a scan's file to the model's grid, by the bundle's own transforms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, ResampleToMatch, SpatialResample

from agg2exp_core import volumes
from agg2exp_core.model.bundle import Bundle
from agg2exp_core.model.nnunet import NormalizeChannelsd
from agg2exp_core.records import InputError, Volume, reason

AIR_HU, TISSUE_HU = -1024.0, 40.0


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan on the model's grid, (channels, I, J, K) float32 as the network sees it."""

    image: MetaTensor

    @property
    def voxels(self) -> torch.Tensor:
        """The image without its metadata, which MONAI would carry through every operation."""
        return self.image.as_tensor()

    @property
    def affine(self) -> np.ndarray:
        return np.asarray(self.image.affine, dtype=np.float64)

    def volume(self, voxels: torch.Tensor | np.ndarray) -> Volume:
        """Voxels (I, J, K) of this grid as a Volume."""
        return Volume(np.asarray(voxels), self.affine)


def check_images(bundle: Bundle, images: Sequence[Path]) -> None:
    """InputError unless there is a file for each of the model's channels."""
    if len(images) != len(bundle.channels):
        named = f" ({', '.join(bundle.channels)})" if len(bundle.channels) > 1 else ""
        got = f"{len(images)}: {', '.join(image.name for image in images)}"
        raise InputError(
            f"a scan must have an image for each channel of {bundle.name}", got[:200], f"{len(bundle.channels)}{named}"
        )


def load_scan(bundle: Bundle, *images: Path) -> Scan:
    """Check the files, one a channel, then run the bundle's chain on them. InputError if they are no sound scan."""
    check_images(bundle, images)
    header, path = volumes.check_channels(images), images[0]
    chain = bundle.preprocessing()
    try:
        # Of several files MONAI's readers make the channels of one image.
        image = chain({"image": str(path) if len(images) == 1 else [*map(str, images)]})["image"]
    except Exception as error:  # chains from elsewhere fail in ways of their own
        raise InputError("the model's chain must run on a scan as image", reason(error.__cause__ or error)) from None
    if not issubclass(type(image), MetaTensor):
        raise InputError("the model's chain must keep the scan's place in space", type(image).__name__)
    read = np.asarray(image.meta.get("original_affine", header.affine), np.float64)
    if not np.allclose(read, header.affine, rtol=1e-4, atol=1e-3):
        # MONAI then takes the qform, or the pixdim alone: the results would lie elsewhere than the scan is shown.
        raise InputError("a scan's sform, qform and pixdim must agree", f"{path.name}, whose own differ")
    if image.ndim != 4 or image.shape[0] != len(images):
        wanted = "one channel" if len(images) == 1 else f"{len(images)} channels"
        raise InputError(f"the model's chain must give {wanted}", f"shape {tuple(image.shape)}")
    return Scan(image.float())


def on_model_grid(labels: Volume, scan: Scan) -> np.ndarray:
    """A label map of the original scan on the model's grid, (I, J, K) int32, nearest neighbour."""
    resample = ResampleToMatch(mode="nearest", padding_mode="zeros")
    return resample(_meta(labels), img_dst=scan.image)[0].numpy().astype(np.int32)


def on_grid_of(labels: Volume, original: Volume) -> Volume:
    """Labels of the model's grid resampled onto another grid, nearest neighbour (labels outside are 0)."""
    resample = SpatialResample(mode="nearest", padding_mode="zeros")
    moved = resample(_meta(labels), dst_affine=torch.as_tensor(original.affine), spatial_size=original.array.shape)
    return Volume(moved[0].numpy().astype(labels.array.dtype), original.affine)


def scaled(bundle: Bundle, hounsfield: float) -> float | None:
    """What the bundle's intensity transforms make of one HU value: the air of integrated gradients.

    None where that depends on the rest of the scan, as with normalisation to its mean, and of several channels, such
    as the sequences of an MRI, which have no HU in common.
    """
    if len(bundle.channels) > 1:
        return None
    chain = bundle.preprocessing().flatten().transforms
    intensity = Compose([one for one in chain if _changes_intensity(one)])
    beside = ((0.0, 100.0, 1000.0), (-4000.0, -50.0, 4000.0))  # air is the least of one scan, not of the other
    scans = [MetaTensor(torch.tensor([hounsfield, *others]).view(1, 2, 2, 1)) for others in beside]
    one, other = (float(intensity({"image": scan})["image"][0, 0, 0, 0]) for scan in scans)
    return one if one == other else None


def _changes_intensity(transform: object) -> bool:
    return isinstance(transform, NormalizeChannelsd) or type(transform).__module__.startswith(
        "monai.transforms.intensity"
    )


def _meta(labels: Volume) -> MetaTensor:
    # float32 holds every label value exactly, and is what MONAI resamples.
    return MetaTensor(torch.as_tensor(labels.array[None].astype(np.float32)), affine=torch.as_tensor(labels.affine))
