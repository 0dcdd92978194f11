"""What network a bare checkpoint is of, told by the names and shapes of its tensors.

Swin UNETR (both versions), SegResNet, UNet and DynUNet of MONAI. What leaves no trace in the tensors, such as the
strides of a UNet or the groups of a normalisation, is taken as MONAI's usual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from agg2exp_core.records import InputError

Weights = Mapping[str, torch.Tensor]
KNOWN = "Swin UNETR, SegResNet, UNet, DynUNet"
PREFIXES = ("module.", "model.", "network.", "net.", "_orig_mod.", "backbone.")
"""What trainers put before every name."""


def network_def(weights: Weights) -> dict[str, Any]:
    """The `network_def` of a bundle for such weights. InputError: no network that is known, or one of 2D images."""
    for belongs, described in _NETWORKS:
        if belongs in weights:
            if weights[belongs].ndim != 5:
                raise InputError("a network must be of 3D scans", f"{belongs} of shape {_shape(weights[belongs])}")
            try:
                return described(weights)
            except LookupError as error:
                raise InputError("a checkpoint must hold all of its network", f"none of {error}") from None
    some = ", ".join(list(weights)[:3])
    raise InputError("a checkpoint must be of a network that is known, or come as a bundle", f"tensors {some} …", KNOWN)


def without_prefixes(weights: Weights) -> dict[str, torch.Tensor]:
    """The tensors by the names that the network gives them: a prefix that trainers put before all of them goes.

    What has another name, such as a weight of the loss, keeps it, and is told as what is no part of the network.
    """
    known = dict(weights)
    while not any(belongs in known for belongs, _ in _NETWORKS):
        own = [name for name in known for belongs, _ in _NETWORKS if name.endswith(f".{belongs}")] or list(known)
        shared = next((prefix for prefix in PREFIXES if own and all(name.startswith(prefix) for name in own)), None)
        if shared is None:
            break
        known = {name.removeprefix(shared): tensor for name, tensor in known.items()}
    return known


def misfit(network: torch.nn.Module, weights: Weights) -> str | None:
    """The first missing, wrong-shaped or unexpected tensor, in words; None where all fit."""
    expected = network.state_dict()
    for name, tensor in expected.items():
        if name not in weights:
            return f"{name} is missing"
        if tensor.shape != weights[name].shape:
            return f"{name} is {_shape(weights[name])}, not {_shape(tensor)}"
    unexpected = next((name for name in weights if name not in expected), None)
    return None if unexpected is None else f"{unexpected} is not part of it"


def _shape(tensor: torch.Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"


def _count(weights: Weights, pattern: str) -> int:
    """How many different numbers stand where the pattern has its group."""
    return len({match[1] for name in weights if (match := re.match(pattern, name))})


def _swin_unetr(weights: Weights) -> dict[str, Any]:
    features, channels = weights["swinViT.patch_embed.proj.weight"].shape[:2]
    tables = [weights[f"swinViT.layers{stage}.0.blocks.0.attn.relative_position_bias_table"] for stage in range(1, 5)]
    edge = round(tables[0].shape[0] ** (1 / 3))
    return {
        "_target_": "SwinUNETR",
        "in_channels": channels,
        "out_channels": weights["out.conv.conv.weight"].shape[0],
        "feature_size": features,
        "depths": [_count(weights, rf"swinViT\.layers{stage}\.0\.blocks\.(\d+)\.") for stage in range(1, 5)],
        "num_heads": [table.shape[1] for table in tables],
        "window_size": (edge + 1) // 2,
        "use_v2": any(name.startswith("swinViT.layers1c.") for name in weights),
    }


def _seg_res_net(weights: Weights) -> dict[str, Any]:
    filters, channels = weights["convInit.conv.weight"].shape[:2]
    down, up = _count(weights, r"down_layers\.(\d+)\."), _count(weights, r"up_layers\.(\d+)\.")
    return {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        "init_filters": filters,
        "in_channels": channels,
        "out_channels": weights["conv_final.2.conv.weight"].shape[0],
        "blocks_down": [_count(weights, rf"down_layers\.{level}\.(\d+)\.conv1") for level in range(down)],
        "blocks_up": [_count(weights, rf"up_layers\.{level}\.(\d+)\.conv1") for level in range(up)],
        "upsample_mode": "deconv" if "up_samples.0.1.deconv.weight" in weights else "nontrainable",
    }


def _unet(weights: Weights) -> dict[str, Any]:
    """Levels lie in each other: `model.0`, `model.1.submodule.0`, …, the last without a `.0` of its own."""
    units = _count(weights, r"model\.0\.conv\.unit(\d+)\.")
    first = ".conv.unit0.conv.weight" if units else ".conv.weight"
    paths, inner = ["model.0"], "model.1.submodule"
    while f"{inner}.0{first}" in weights:
        paths.append(f"{inner}.0")
        inner += ".1.submodule"
    shapes = [weights[f"{path}{first}"].shape for path in (*paths, inner)]
    last = "model.2.conv.weight" if "model.2.conv.weight" in weights else "model.2.0.conv.weight"
    norm = "BATCH" if any(name.endswith("adn.N.running_mean") for name in weights) else "INSTANCE"
    affine = any(name.endswith("adn.N.weight") for name in weights)
    return {
        "_target_": "UNet",
        "spatial_dims": 3,
        "in_channels": shapes[0][1],
        "out_channels": weights[last].shape[1],
        "channels": [shape[0] for shape in shapes],
        "strides": [2] * (len(shapes) - 1),
        "num_res_units": units,
        "kernel_size": list(shapes[0][2:]),
        "up_kernel_size": list(weights[last].shape[2:]),
        "norm": norm if norm == "BATCH" or not affine else ["INSTANCE", {"affine": True}],
    }


def _dyn_unet(weights: Weights) -> dict[str, Any]:
    levels = range(_count(weights, r"downsamples\.(\d+)\."))
    names = ["input_block", *(f"downsamples.{level}" for level in levels), "bottleneck"]
    shapes = [weights[f"{name}.conv1.conv.weight"].shape for name in names]
    ups = [list(weights[f"upsamples.{level}.transp_conv.conv.weight"].shape[2:]) for level in range(len(names) - 1)]
    heads = _count(weights, r"deep_supervision_heads\.(\d+)\.")
    batch, affine = "input_block.norm1.running_mean" in weights, "input_block.norm1.weight" in weights
    return {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": shapes[0][1],
        "out_channels": weights["output_block.conv.conv.weight"].shape[0],
        "kernel_size": [list(shape[2:]) for shape in shapes],
        "strides": [[1, 1, 1], *reversed(ups)],  # transposed convolutions undo them, with kernels of just that size
        "upsample_kernel_size": list(reversed(ups)),
        "filters": [shape[0] for shape in shapes],
        "norm_name": ["BATCH" if batch else "INSTANCE", {"affine": affine}],
        "deep_supervision": heads > 0,
        "deep_supr_num": max(heads, 1),
        "res_block": any(name.startswith("input_block.conv3") or ".conv3." in name for name in weights),
        "trans_bias": "upsamples.0.transp_conv.conv.bias" in weights,
    }


_NETWORKS: tuple[tuple[str, Callable[[Weights], dict[str, Any]]], ...] = (
    ("swinViT.patch_embed.proj.weight", _swin_unetr),
    ("convInit.conv.weight", _seg_res_net),
    ("input_block.conv1.conv.weight", _dyn_unet),
    ("model.0.conv.unit0.conv.weight", _unet),
    ("model.0.conv.weight", _unet),
)
"""A tensor that only this network has, and how it is described."""
