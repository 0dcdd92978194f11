"""A trained-model folder of nnU-Net v2, read into a bundle: plans.json, dataset.json, fold_*/checkpoint_final.pth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from agg2exp_core.files import write_json
from agg2exp_core.model.bundle import Bundle
from agg2exp_core.model.networks import misfit, without_prefixes
from agg2exp_core.model.nnunet import KINDS, SCHEMES
from agg2exp_core.model.unpickling import unpickled
from agg2exp_core.records import InputError

CHECKPOINT = "checkpoint_final.pth"
HERE = "agg2exp_core.model.nnunet"
READERS = ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient")
"""What keeps a scan's axes as they are stored, or turns them to RAS; others read pictures."""

USUAL = {
    "conv_op": "Conv3d", "conv_bias": True,
    "norm_op": "InstanceNorm3d", "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": "LeakyReLU", "nonlin_kwargs": {"inplace": True}, "dropout_op": None, "dropout_op_kwargs": None,
}  # fmt: skip
"""Parts that `nnunet` builds. Others could leave no trace in the weights, and would give other logits unnoticed."""

SIGMOID = {"_target_": "Activationsd", "keys": "pred", "sigmoid": True}
"""What bundles say of classes that are judged each by itself."""

BOUNDS = ("percentile_00_5", "percentile_99_5", "mean", "std")


def is_trained_folder(folder: Path) -> bool:
    return (folder / "plans.json").is_file() and (folder / "dataset.json").is_file()


def copy_trained(source: Path, new: Path, folds: Sequence[str], mirrored: bool) -> list[str]:
    """Write the bundle's configs and weights; the names of its classes, background first.

    folds: those to take the mean of, all by default. mirrored: look at mirror images too, as nnU-Net does unless it is
    told not to. InputError: a part is missing, or of a kind that is not known.
    """
    checkpoints = _checkpoints(source, folds)
    first = _read_checkpoint(checkpoints[0])
    configuration = str((first.get("init_args") or {}).get("configuration"))
    trained = Trained(_read(source / "plans.json"), _read(source / "dataset.json"), configuration)
    axes = first.get("inference_allowed_mirroring_axes") if mirrored else None
    try:
        config, classes = trained.config(len(checkpoints), axes or ()), trained.classes
        told = trained.inputs | trained.regions
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise InputError("plans.json and dataset.json must be as nnU-Net v2 writes them", repr(error)[:120]) from None
    write_json(new / "configs" / "inference.json", config)
    about = f"nnU-Net {trained.name}, folds {', '.join(path.parent.name.removeprefix('fold_') for path in checkpoints)}"
    write_json(new / "configs" / "metadata.json", {"task": f"Segmentation: {about}"} | told)
    _join_folds(Bundle(new), checkpoints)
    return classes


@dataclass(frozen=True)
class Trained:
    """What the two files tell of one configuration, `3d_fullres` or `3d_lowres`."""

    plans: dict[str, Any]
    dataset: dict[str, Any]
    name: str

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Of the configuration and those that it inherits from."""
        known = self.plans.get("configurations")
        if not isinstance(known, dict) or not isinstance(known.get(self.name), dict):
            got = f"no configuration {self.name}"
            raise InputError("plans.json must be of nnU-Net v2", got, ", ".join(known or ()))
        found, parent = dict(known[self.name]), known[self.name].get("inherits_from")
        for _ in known:  # no more often: one may inherit from itself
            if parent in known:
                found, parent = known[parent] | found, known[parent].get("inherits_from")
        if found.get("previous_stage"):
            raise InputError("a configuration must stand on its own", f"{self.name}, the second stage of a cascade")
        if len(found.get("patch_size", ())) != 3:
            raise InputError("a network must be of 3D scans", f"the configuration {self.name}")
        return found

    @property
    def classes(self) -> list[str]:
        """Names in the order of their labels, without those that training ignored; of regions, without background."""
        if self.regions:
            return list(self._foreground)
        labels = {name: value for name, value in self.dataset.get("labels", {}).items() if name != "ignore"}
        if sorted(labels.values()) != list(range(len(labels))):
            raise InputError("labels of dataset.json must count from 0", sorted(labels.values())[:5])
        return sorted(labels, key=labels.__getitem__)

    @property
    def _foreground(self) -> dict[str, list[int]]:
        """Regions in the order of the outputs, and the labels that make up each, where the dataset has regions."""
        told = {name: value for name, value in self.dataset.get("labels", {}).items() if name != "ignore"}
        if not any(isinstance(value, list) and len(value) > 1 for value in told.values()):
            return {}
        found = {name: value if isinstance(value, list) else [value] for name, value in told.items()}
        return {name: [int(label) for label in value] for name, value in found.items() if set(value) != {0}}

    @property
    def regions(self) -> dict[str, Any]:
        """What the bundle's metadata tells of classes that are regions: nothing where classes exclude each other."""
        labels, order = list(self._foreground.values()), self.dataset.get("regions_class_order")
        if not labels:
            return {}
        given = order if isinstance(order, list) else []
        fits = len(given) == len(labels) == len({*given})
        if not fits or not all(label in inside for label, inside in zip(given, labels, strict=True)):
            rule = "regions_class_order must name a label of each region, in the order of the regions"
            raise InputError(rule, str(order)[:80], ", ".join(f"{name} {of}" for name, of in self._foreground.items()))
        return {"regions": labels, "regions_class_order": given}

    def config(self, folds: int, mirrored: Sequence[int]) -> dict[str, Any]:
        """The bundle's inference.json."""
        kind, stages = _architecture(self.settings)
        network = {"kind": kind, "stages": stages, "classes": len(self.classes), "folds": folds}
        if len(self.channels) > 1:
            network["channels"] = len(self.channels)
        window = {"roi_size": self._along_scan(self.settings["patch_size"]), "overlap": 0.5, "mode": "gaussian"}
        return {
            "network_def": {"_target_": f"{HERE}.Folds", **network, "axes": self.axes, "mirrored": list(mirrored)},
            "preprocessing": {"_target_": "Compose", "transforms": self._transforms()},
            "inferer": {"_target_": f"{HERE}.EvenInferer", **window},
            **({"postprocessing": SIGMOID} if self.regions else {}),
        }

    @property
    def channels(self) -> list[str]:
        """Names of the input's channels in their order."""
        told = self.dataset.get("channel_names") or self.dataset.get("modality") or {}
        if sorted(map(int, told)) != list(range(len(told))) or not told:
            raise InputError("channel_names of dataset.json must count from 0", str(told)[:80])
        return [str(told[number]) for number in sorted(told, key=int)]

    @property
    def inputs(self) -> dict[str, Any]:
        """What the bundle's metadata tells of its input: nothing where it is one channel."""
        if len(self.channels) == 1:
            return {}
        named = {str(number): name for number, name in enumerate(self.channels)}
        return {"network_data_format": {"inputs": {"image": {"num_channels": len(named), "channel_def": named}}}}

    @property
    def axes(self) -> list[int]:
        """Which axis of a scan each of the network's is: nnU-Net reads the last one first, and may turn them again."""
        return [2 - place for place in self.plans.get("transpose_forward", (0, 1, 2))]

    def _along_scan(self, values: Sequence[Any]) -> list[Any]:
        return [values[self.axes.index(axis)] for axis in range(3)]

    def _transforms(self) -> list[dict[str, Any]]:
        reader = self.dataset.get("overwrite_image_reader_writer") or self.plans.get("image_reader_writer", READERS[0])
        if reader not in READERS:
            raise InputError("nnU-Net must read scans by", reader, ", ".join(READERS))
        turned = [{"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None}]
        return [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            *(turned if reader == READERS[2] else []),
            {"_target_": f"{HERE}.CropToNonzerod", "keys": "image"},
            *self._intensity(),
            {"_target_": f"{HERE}.ResampleCubicd", "keys": "image", **self._resampling()},
            {"_target_": "EnsureTyped", "keys": "image"},
        ]

    def _intensity(self) -> list[dict[str, Any]]:
        """How each channel is normalised: by MONAI's own transform where one channel is, and as a whole."""
        schemes = [self._scheme(number) for number in range(len(self.channels))]
        if len(schemes) > 1 or schemes[0].get("inside"):
            return [{"_target_": f"{HERE}.NormalizeChannelsd", "keys": "image", "schemes": schemes}]
        (only,) = schemes
        if only["scheme"] == "CTNormalization":
            low, high, mean, std = (only[name] for name in ("low", "high", "mean", "std"))
            scale = {"a_min": low, "a_max": high, "b_min": (low - mean) / std, "b_max": (high - mean) / std}
            return [{"_target_": "ScaleIntensityRanged", "keys": "image", **scale, "clip": True}]
        return [{"_target_": "NormalizeIntensityd", "keys": "image"}] if only["scheme"] != "NoNormalization" else []

    def _scheme(self, channel: int) -> dict[str, Any]:
        """As `NormalizeChannelsd` is told it. InputError: one that is not known."""
        named = self.settings.get("normalization_schemes", ["none"])
        inside = self.settings.get("use_mask_for_norm") or [False] * len(named)
        if len(named) != len(self.channels):
            got = f"{len(named)} for {', '.join(self.channels)}"
            raise InputError("plans.json must have a normalisation scheme for each channel", got)
        scheme = named[channel]
        if scheme not in SCHEMES:
            raise InputError("the normalisation of nnU-Net must be known", scheme, ", ".join(SCHEMES))
        if scheme == "CTNormalization":
            told = self.plans.get("foreground_intensity_properties_per_channel", {}).get(str(channel), {})
            low, high, mean, std = (float(told[name]) for name in BOUNDS)
            return {"scheme": scheme, "low": low, "high": high, "mean": mean, "std": std}
        return {"scheme": scheme} | ({"inside": True} if scheme == "ZScoreNormalization" and inside[channel] else {})

    def _resampling(self) -> dict[str, Any]:
        way = self.settings.get("resampling_fn_data", "resample_data_or_seg_to_shape")
        how = self.settings.get("resampling_fn_data_kwargs", {})
        if way != "resample_data_or_seg_to_shape" or (how.get("order", 3), how.get("order_z", 0)) != (3, 0):
            raise InputError("nnU-Net must resample by cubic splines", f"{way}, {how}")
        return {"spacing": self._along_scan(self.settings["spacing"]), "far": how.get("force_separate_z")}


def _architecture(settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Kind and stages of the network, which older plans tell in other words."""
    architecture = settings.get("architecture")
    kind = str(architecture["network_class_name"] if architecture else settings.get("UNet_class_name")).split(".")[-1]
    if kind not in KINDS:
        raise InputError("the network of nnU-Net must be known", kind, ", ".join(KINDS))
    if not architecture:
        count, most = len(settings["n_conv_per_stage_encoder"]), settings["unet_max_num_features"]
        features = [min(settings["UNet_base_num_features"] * 2**stage, most) for stage in range(count)]
        return kind, {
            "features_per_stage": features,
            "kernel_sizes": settings["conv_kernel_sizes"],
            "strides": settings["pool_op_kernel_sizes"],
            KINDS[kind]: settings["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": settings["n_conv_per_stage_decoder"],
        }
    told = architecture["arch_kwargs"]
    names = ("features_per_stage", "kernel_sizes", "strides", KINDS[kind], "n_conv_per_stage_decoder")
    for name, value in ({"norm_op": None, "nonlin": None} | told).items():
        plain = value.split(".")[-1] if isinstance(value, str) else value
        if name not in (*names, "n_stages") and plain != USUAL.get(name):
            raise InputError(
                "a network of nnU-Net must be built of its usual parts", f"{name} {value}", USUAL.get(name)
            )
    return kind, {name: told[name] for name in names}


# ---- weights -------------------------------------------------------------------------------------


def _checkpoints(source: Path, folds: Sequence[str]) -> list[Path]:
    there = {path.parent.name.removeprefix("fold_"): path for path in sorted(source.glob(f"fold_*/{CHECKPOINT}"))}
    # Trained on all cases: no part of the ensemble of folds.
    wanted = folds or [name for name in there if name != "all"] or list(there)
    if lacking := [name for name in wanted if name not in there]:
        raise InputError("folds must be there", f"none {', '.join(lacking)}", ", ".join(there) or "none")
    if not wanted:
        raise InputError("an nnU-Net folder needs a trained fold", source.name, f"fold_0/{CHECKPOINT}")
    return [there[name] for name in wanted]


def _read_checkpoint(path: Path) -> dict[str, Any]:
    """Its content, of which nothing is run."""
    content = unpickled(path)
    if not isinstance(content, dict) or not isinstance(content.get("network_weights"), dict):
        raise InputError("a checkpoint of nnU-Net must hold network_weights", f"{path.parent.name}/{path.name}")
    return content


def _join_folds(bundle: Bundle, checkpoints: Sequence[Path]) -> None:
    """All folds' weights as one file. nnU-Net's modules share tensors under several names; each is written once."""
    network = bundle.untrained_network()
    for fold, path in zip(network.folds, checkpoints, strict=True):  # type: ignore[arg-type]
        weights = without_prefixes(_read_checkpoint(path)["network_weights"])
        if wrong := misfit(fold, weights):
            raise InputError("weights must fit the network of plans.json", f"{path.parent.name}: {wrong}")
        fold.load_state_dict(weights)
    torch.save(network.state_dict(), bundle.folder / "models" / "model.pt")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("an nnU-Net folder's files must be readable JSON", f"{path.name}: {error}") from None
    if not isinstance(content, dict):
        raise InputError("an nnU-Net folder's files must hold objects", path.name)
    return content
