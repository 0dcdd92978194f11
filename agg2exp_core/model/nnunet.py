"""nnU-Net v2 as parts of a bundle: its networks, its resampling and its windows (Isensee et al., 2021).

A trained folder becomes a bundle (see `nnunet_folder`) whose config names these, so that all else is as for any other
model. Scans keep their axes; the network turns each window into nnU-Net's order of axes and back.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain, combinations, product
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.transforms import CropForegroundd, MapTransform
from monai.utils import ensure_tuple_rep
from scipy import ndimage

from agg2exp_core.records import InputError

KINDS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}
"""Networks, and what each calls the depth of its encoder."""

SCHEMES = ("CTNormalization", "ZScoreNormalization", "NoNormalization")
LEAST_STD = 1e-8

ANISOTROPIC = 3.0
"""Spacings that differ by more are resampled slice by slice, and between slices by the nearest."""


class Folds(torch.nn.Module):
    """Networks of one architecture, each trained on another fold: the mean of their logits.

    kind: one of KINDS. stages: its `features_per_stage`, `kernel_sizes`, `strides`, depth of encoder and decoder.
    axes: which axis of the scan each of the network's is. mirrored: axes of the network along which it looks at every
    mirror image as well, and takes the mean. channels: of a scan. InputError: the package of nnU-Net's networks is not
    installed.
    """

    def __init__(
        self, kind: str, stages: Mapping[str, Any], classes: int, folds: int, axes: Sequence[int],
        mirrored: Sequence[int] = (), channels: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.folds = torch.nn.ModuleList(_network(kind, stages, classes, channels) for _ in range(folds))
        self.order = (0, 1, *(axis + 2 for axis in axes))
        self.back = tuple(int(place) for place in np.argsort(self.order))
        axes_of_image = [axis + 2 for axis in mirrored]
        self.flips = list(chain(*(combinations(axes_of_image, n) for n in range(len(axes_of_image) + 1))))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        turned = images.permute(self.order)
        logits = [network(turned.flip(flip)).flip(flip) for network in self.folds for flip in self.flips]
        return (sum(logits[1:], start=logits[0]) / len(logits)).permute(self.back)


def _network(kind: str, stages: Mapping[str, Any], classes: int, channels: int) -> torch.nn.Module:
    try:
        from dynamic_network_architectures.architectures import unet
    except ImportError:
        raise InputError(
            "nnU-Net's networks need the package dynamic-network-architectures", "none installed",
            "pip install --no-deps -r requirements-nnunet.txt",
        ) from None  # fmt: skip
    return getattr(unet, kind)(
        input_channels=channels, n_stages=len(stages["features_per_stage"]), num_classes=classes,
        conv_op=torch.nn.Conv3d, conv_bias=True, norm_op=torch.nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        **stages,
    )  # fmt: skip


class CropToNonzerod(CropForegroundd):
    """The box that holds all voxels that are other than 0 in a channel."""

    def __init__(self, keys: str):
        super().__init__(keys, source_key=keys, select_fn=_is_nonzero)


def _is_nonzero(image: torch.Tensor) -> torch.Tensor:
    return image != 0


class NormalizeChannelsd(MapTransform):
    """Each channel by a scheme of its own, in nnU-Net's words and by its formulas.

    schemes: for each channel `scheme`, one of SCHEMES. CTNormalization: clipped to `low` … `high`, less `mean`, over
    `std`. ZScoreNormalization: less its mean, over its standard deviation, of all voxels or, where `inside` is true, of
    those that are not 0 in some channel or are enclosed by such voxels; what is outside stays as it is.
    """

    def __init__(self, keys: Hashable, schemes: Sequence[Mapping[str, Any]]):
        super().__init__(keys)
        self.schemes = schemes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self._normalised(data[key]) for key in self.key_iterator(data)}}

    def _normalised(self, image: MetaTensor) -> MetaTensor:
        voxels = np.array(image, dtype=np.float32)
        if len(voxels) != len(self.schemes):
            raise InputError("every channel must have its normalisation", f"{len(voxels)} channels", len(self.schemes))
        inside = ndimage.binary_fill_holes((voxels != 0).any(axis=0))
        for one, scheme in zip(voxels, self.schemes, strict=True):
            if scheme["scheme"] == "CTNormalization":
                np.clip(one, scheme["low"], scheme["high"], out=one)
                one[:] = (one - scheme["mean"]) / max(scheme["std"], LEAST_STD)
            elif scheme["scheme"] == "ZScoreNormalization":
                where = inside if scheme.get("inside") else np.ones_like(inside)
                of = one[where]
                one[where] = (of - of.mean()) / max(of.std(), LEAST_STD)
        return MetaTensor(torch.from_numpy(voxels), meta=image.meta)


class ResampleCubicd(MapTransform):
    """Resampled to a spacing in mm as nnU-Net does: cubic splines, between far slices the nearest one.

    far: whether slices count as far from each other; None: where spacings differ more than ANISOTROPIC times.
    """

    def __init__(self, keys: Hashable, spacing: Sequence[float], far: bool | None = None):
        super().__init__(keys)
        self.spacing, self.far = tuple(spacing), far

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **{key: self._resampled(data[key]) for key in self.key_iterator(data)}}

    def _resampled(self, image: MetaTensor) -> MetaTensor:
        affine = np.asarray(image.affine, np.float64)
        own = np.linalg.norm(affine[:3, :3], axis=0)
        old = image.shape[1:]
        new = tuple(round(mm / wish * size) for mm, wish, size in zip(own, self.spacing, old, strict=True))
        # Voxels' outer faces stay where they are.
        steps = np.divide(old, new)
        moved = affine @ np.diag([*steps, 1.0])
        moved[:3, 3] += affine[:3, :3] @ (steps - 1) / 2
        voxels = np.stack([self._channel(one, new, own) for one in np.asarray(image)])
        meta = {name: value for name, value in image.meta.items() if name != "affine"}
        return MetaTensor(torch.from_numpy(voxels), affine=torch.from_numpy(moved), meta=meta)

    def _channel(self, voxels: np.ndarray, shape: tuple[int, ...], own: np.ndarray) -> np.ndarray:
        if voxels.shape == shape:
            return voxels
        axis = self._far_axis(own)
        if axis is None:
            return _cubic(voxels, shape)
        slices = np.moveaxis(voxels, axis, 0)
        flat = tuple(np.delete(shape, axis))
        places = np.arange(shape[axis]) + 0.5
        nearest = ndimage.map_coordinates(
            np.arange(len(slices), dtype=float), [places * len(slices) / shape[axis] - 0.5], order=0, mode="nearest"
        )
        resampled = np.stack([_cubic(one, flat) for one in slices])
        return np.moveaxis(resampled[nearest.astype(int)], 0, axis)

    def _far_axis(self, own: np.ndarray) -> int | None:
        """The axis of the thick slices, if there are: of the scan's own spacing, else of the wished one."""
        for spacing in (own, np.array(self.spacing)):
            if self.far or (self.far is None and spacing.max() / spacing.min() > ANISOTROPIC):
                thickest = np.flatnonzero(spacing == spacing.max())
                return int(thickest[0]) if len(thickest) == 1 else None
        return None


def _cubic(voxels: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """By cubic splines, within the values that are there: those overshoot at edges."""
    values = voxels.astype(np.float64)
    zoomed = ndimage.zoom(values, np.divide(shape, values.shape), order=3, mode="nearest", grid_mode=True)
    return np.clip(zoomed, values.min(), values.max()).astype(np.float32)


class EvenInferer(SlidingWindowInferer):
    """nnU-Net's windows: evenly spread and at most half a window apart. `plan_windows` lays them."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError("MONAI would lay other windows")

    def slices(self, shape: Sequence[int]) -> tuple[tuple[slice, ...], ...]:
        """One (slice, slice, slice) per window over a scan at least as large as one."""
        along = zip(shape, self._window, strict=True)
        return tuple(product(*(_even_slices(size, window) for size, window in along)))

    def weight(self, like: torch.Tensor) -> torch.Tensor:
        """(window): a Gaussian around the middle voxel, as the half-precision numbers that nnU-Net blends with."""
        point = np.zeros(self._window)
        point[tuple(edge // 2 for edge in self._window)] = 1
        blurred = ndimage.gaussian_filter(point, [edge / 8 for edge in self._window], mode="constant")
        weight = torch.from_numpy(10 * blurred / blurred.max()).half()
        weight[weight == 0] = weight[weight > 0].min()
        return weight.to(like)

    @property
    def _window(self) -> tuple[int, ...]:
        return ensure_tuple_rep(self.roi_size, 3)


def _even_slices(size: int, window: int) -> list[slice]:
    count = int(np.ceil((size - window) / (window / 2))) + 1
    starts = [int(np.round(place * (size - window) / max(count - 1, 1))) for place in range(count)]
    return [slice(start, start + window) for start in starts]
