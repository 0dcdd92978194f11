"""MONAI bundles: the network, its pre-processing and its windows, read from the files that came with it.

Format: the MONAI bundle specification (configs/metadata.json, configs/inference.json, models/model.*).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import monai
import safetensors.torch
import torch
from monai.bundle import ConfigParser
from monai.inferers import SlidingWindowInferer
from monai.transforms import Compose
from monai.utils import ensure_tuple

from agg2exp_core.model.config import plain_section
from agg2exp_core.model.networks import misfit
from agg2exp_core.model.offline import offline
from agg2exp_core.model.script import load_script
from agg2exp_core.model.unpickling import unpickled
from agg2exp_core.records import InputError, reason
from agg2exp_core.settings import checked_id, list_models

Made = TypeVar("Made")
WEIGHTS = ("model.safetensors", "model.pt", "model.ts")
KEPT_AS = ("state_dict", "model_state_dict", "model", "network_weights")
"""Under which key trainers keep the weights that a network is used with; others are looked into where one has some."""

SCRIPTED = ".ts"
"""Weights that bring their network along, as TorchScript."""

MOST_CHANNELS = 1000
"""Of the input: metadata that tells of more is wrong, and is not believed."""

NO_LONGER = ("img_size", "use_checkpoint")
"""What older bundles tell Swin UNETR: a size that it takes from the scan by now, and to compute everything twice."""


@dataclass(frozen=True)
class Bundle:
    """A model folder. Parts are built when they are first asked for."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return _read_json(self.folder / "configs" / "metadata.json")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the output channels."""
        try:
            channels = self.metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        except KeyError:
            raise InputError(
                "a bundle names its classes in network_data_format.outputs.pred.channel_def",
                f"{self.name} without it",
            ) from None
        names = tuple(str(channels[key]) for key in sorted(channels, key=int))
        if sorted(map(int, channels)) != list(range(len(names))) or len(set(names)) < len(names):
            raise InputError("channel_def must number its classes from 0 and name each once", sorted(channels))
        # They become names of files.
        return tuple(checked_id("class", name) for name in names)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Names of the input's channels in their order, each one of its own and good as a file's name."""
        try:
            image = self.metadata["network_data_format"]["inputs"]["image"]
            told = image.get("channel_def") or {}
            count = int(image.get("num_channels") or max(len(told), 1))
            names = [str(told[key]) for key in sorted(told, key=int)]
            if not 0 < count <= MOST_CHANNELS:
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            return channel_ids(["image"])  # most bundles have one channel, and need say nothing of it
        return channel_ids(names if len(names) == count else [f"channel {number + 1}" for number in range(count)])

    @cached_property
    def regions(self) -> RegionLabels | None:
        """What the classes are made of, where they are regions of a label map that may hold each other."""
        labels, order = self.metadata.get("regions"), self.metadata.get("regions_class_order")
        if not labels or not order:
            return None
        found = RegionLabels(((0,), *(tuple(map(int, one)) for one in labels)), (0, *map(int, order)))
        if len(found.labels) != len(self.classes):
            raise InputError(
                "a bundle of regions must have a class for each", f"{len(found.labels)}", len(self.classes)
            )
        return found

    @property
    def label_set(self) -> str:
        """The label set that has the classes' groups and colours."""
        return str(self.metadata.get("label_set", self.name))

    @cached_property
    def hash(self) -> str:
        """sha256 over everything the numbers depend on: both configs and the weights."""
        configs = [self.folder / "configs" / name for name in ("inference.json", "metadata.json")]
        digest = hashlib.sha256()
        for path in [*configs, self.weights]:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @property
    def weights(self) -> Path:
        for name in WEIGHTS:
            if (self.folder / "models" / name).is_file():
                return self.folder / "models" / name
        raise InputError("a bundle has weights in models/", f"{self.name} without any", ", ".join(WEIGHTS))

    def network(self, device: torch.device) -> torch.nn.Module:
        """The trained network in evaluation mode, its parameters frozen: attribution differentiates the input."""
        network = self.bare_network(device)
        if self.regions is not None:
            return Nested(network)
        return Opposed(network) if self.lacks_background else network

    def bare_network(self, device: torch.device) -> torch.nn.Module:
        """The network as it came, with as many outputs as it has."""
        if self.weights.suffix == SCRIPTED:
            network = load_script(self.weights)
        else:
            network, weights = self.untrained_network(), load_weights(self.weights)
            if wrong := misfit(network, weights):
                raise InputError("weights must fit the bundle's network_def", wrong)
            network.load_state_dict(weights)
        for parameter in network.parameters():  # one by one: TorchScript has no more than these
            parameter.requires_grad_(False)
        return network.to(device).eval()

    @property
    def lacks_background(self) -> bool:
        """Whether the network gives an output for each organ, and none for what is no organ."""
        outputs = self.metadata.get("network_data_format", {}).get("outputs", {}).get("pred", {})
        return outputs.get("num_channels") == len(self.classes) - 1

    def untrained_network(self) -> torch.nn.Module:
        section = self._section("network_def")
        if isinstance(section, dict) and str(section.get("_target_")).endswith("SwinUNETR"):
            section = {key: value for key, value in section.items() if key not in NO_LONGER}
        return _a(torch.nn.Module, "network_def", _built("network_def", section))

    def preprocessing(self) -> Compose:
        return _a(Compose, "preprocessing", _built("preprocessing", self._section("preprocessing")))

    def inferer(self) -> SlidingWindowInferer:
        made = _a(SlidingWindowInferer, "inferer", _built("inferer", self._section("inferer")))
        edges = ensure_tuple(made.roi_size)
        if len(edges) not in (1, 3) or not all(isinstance(edge, int) for edge in edges):
            raise InputError("windows must have 3 edges of whole voxels", f"roi_size {made.roi_size}")
        if not all(isinstance(share, int | float) and 0 <= share < 1 for share in ensure_tuple(made.overlap)):
            # MONAI says so when it is called; windows that leave gaps would leave voxels without any logits.
            raise InputError("windows must overlap by a share of their edges", made.overlap, "0 or more, below 1")
        return made

    def _section(self, key: str) -> Any:
        return plain_section(_read_json(self.folder / "configs" / "inference.json"), key)


def channel_ids(names: Sequence[str]) -> tuple[str, ...]:
    """`T1 Gd` → `T1_Gd`: names that may name files and are all different, even where case does not count."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name).strip("_.-")[:48] or "channel"
        numbered = (f"{plain}_{number}" for number in itertools.count(2))
        free = next(one for one in itertools.chain([plain], numbered) if one.casefold() not in found)
        found[free.casefold()] = checked_id("channel", free)
    return tuple(found.values())


class Opposed(torch.nn.Module):
    """A network that judges each organ by itself, as one of classes that exclude each other.

    Background has the opposite of the largest logit, so that it holds where no logit is positive; where organs overlap,
    the one of the largest logit has the voxel.
    """

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images)
        return torch.cat([-logits.amax(1, keepdim=True), logits], dim=1)


class Nested(Opposed):
    """A network of regions that may hold each other, as nnU-Net trains them: each voxel is in all of positive logit.

    `predict.predicted_organs` gives it to the last of them, so that a tumour's core is not lost in the whole tumour.
    """

    last_wins = True


@dataclass(frozen=True)
class RegionLabels:
    """Of each class, background first: the labels that make up its region, and the label that it gives to a voxel.

    A voxel has the label of the last class that it is in: nnU-Net's `regions_class_order`.
    """

    labels: tuple[tuple[int, ...], ...]
    given: tuple[int, ...]

    @property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """Of each class those classes whose label its region holds: itself, and what lies in it."""
        return tuple(
            tuple(other for other, label in enumerate(self.given) if label in labels or other == number)
            for number, labels in enumerate(self.labels)
        )

    @property
    def classes_of(self) -> dict[int, int]:
        """Label of a label map → the class that its voxels are given to: the last whose region holds it."""
        return {label: number for number, labels in enumerate(self.labels) for label in labels}


def find_bundle(root: Path, model: str) -> Bundle:
    """The bundle `models/<model>` of a data root; InputError with the known ones if there is none."""
    folder = root / "models" / checked_id("model", model)
    if not (folder / "configs" / "inference.json").is_file():
        raise InputError("model must exist", repr(model), ", ".join(list_models(root)) or "none yet")
    return Bundle(folder)


def save_weights(bundle: Bundle, network: torch.nn.Module, name: str = WEIGHTS[0]) -> None:
    """Write models/<name> in half precision, which halves the file and costs no Dice."""
    halves = {
        name: tensor.half().contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in network.state_dict().items()
    }
    path = bundle.folder / "models" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(halves, path)


def _built(key: str, section: Any) -> Any:
    # A fresh parser each time: ConfigParser would hand out the same, already changed object again.
    try:
        with offline():
            return ConfigParser({key: section}).get_parsed_content(key)
    except Exception as error:  # whatever the callables that a config names make of its arguments
        cause = error.__cause__ or error
        if isinstance(cause, InputError):
            raise cause from None
        got = reason(cause)
        raise InputError(f"{key} must be buildable with MONAI {monai.__version__}", got) from None


def _a(kind: type[Made], key: str, made: Any) -> Made:
    if not isinstance(made, kind):
        raise InputError(f"{key} must be a {kind.__name__}", type(made).__name__)
    return made


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else unpickled(path)
    except InputError:
        raise
    except Exception as error:  # whatever the reader comes to in a damaged file
        raise InputError("weights must be readable", f"{path.name}: {reason(error)}") from None
    found = _tensors_in(state)
    if found is None:
        raise InputError("weights must be a dictionary of named tensors, or hold one as state_dict", path.name)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def _tensors_in(state: Any) -> dict[str, torch.Tensor] | None:
    """The named tensors that a trainer often keeps beside the optimiser's state, whatever it calls them."""
    if not isinstance(state, dict) or _are_tensors(state):
        return state if isinstance(state, dict) else None
    for key in KEPT_AS:
        if _are_tensors(state.get(key)):
            return state[key]
    inner = [value for value in state.values() if _are_tensors(value)]
    return inner[0] if len(inner) == 1 else None


def _are_tensors(value: Any) -> bool:
    """Whether it is a dictionary of named tensors."""
    named = isinstance(value, dict) and all(isinstance(name, str) for name in value)
    return named and bool(value) and all(isinstance(one, torch.Tensor) for one in value.values())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError("a bundle's config must be readable JSON", f"{path.name}: {error}") from None
