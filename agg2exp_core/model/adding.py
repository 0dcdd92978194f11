"""Models that come from elsewhere: bundles are taken in, bare checkpoints and TorchScript are wrapped into one.

Nothing of them is run before it was read as data (see `config` and `script`), and nothing is left in `models/` unless
all fits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import torch
from monai.bundle import ConfigParser
from monai.utils import fall_back_tuple

from agg2exp_core import volumes
from agg2exp_core.model.bundle import SCRIPTED, WEIGHTS, Bundle, load_weights
from agg2exp_core.model.config import MOST_VALUES, plain_text
from agg2exp_core.model.networks import network_def, without_prefixes
from agg2exp_core.model.nnunet_folder import copy_trained, is_trained_folder
from agg2exp_core.model.preprocess import load_scan
from agg2exp_core.model.script import is_script
from agg2exp_core.organs import (
    BACKGROUND,
    COLOR,
    LabelSet,
    class_id,
    known_label_sets,
    made_label_set,
    write_label_set,
)
from agg2exp_core.records import InputError, Volume, reason
from agg2exp_core.settings import checked_id
from agg2exp_core.tables import read_table

CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", SCRIPTED)
CONFIGS = ("inference.json", "inference.yaml", "inference.yml")
LOOKS = ("group", "color", "title")
"""What labels may tell of a class beside its name; they then make a label set of the model's own."""

TRIED = 64
"""Edge in voxels, at most, of the window that a new network is tried on first."""


@dataclass(frozen=True)
class Wrapping:
    """What a bare checkpoint does not say.

    labels: a CSV with id and name of every class and, if it likes, group, color and title. spacing: mm. window: voxels.
    intensity: the HU that were scaled to 0 and 1. Of nnU-Net's folders alone: folds to take, all by default; mirrored,
    whether mirror images are looked at too.
    """

    labels: Path | None = None
    spacing: tuple[float, ...] = ()
    window: tuple[int, ...] = ()
    intensity: tuple[float, ...] = ()
    folds: tuple[str, ...] = ()
    mirrored: bool = False


def add_model(root: Path, source: Path, name: str, wrapping: Wrapping) -> Bundle:
    """Take a model in as `models/<name>`, with a label set of its name where no known one has all its organs.

    source: the folder of a MONAI bundle or of nnU-Net's training, or a file of weights or TorchScript. InputError: the
    name is taken, a part is missing or not allowed, or weights, network and class names do not fit; then nothing is
    written.
    """
    folder = root / "models" / checked_id("model", name)
    if folder.exists():
        raise InputError("a new model needs a name that is free", repr(name))
    if not source.exists():
        raise InputError(
            "a model must be a bundle's folder or a checkpoint's file", f"{source.name}, which is not there"
        )
    if source.is_dir() and (wrapping.spacing or wrapping.window or wrapping.intensity):
        raise InputError(
            "--spacing, --window and --intensity go with a bare checkpoint", "a bundle, which names its own"
        )
    if (wrapping.folds or wrapping.mirrored) and not is_trained_folder(source):
        raise InputError("--folds and --mirror go with a trained folder of nnU-Net", source.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as hidden:
        new = Path(hidden) / name
        (new / "configs").mkdir(parents=True)
        (new / "models").mkdir()
        names = _taken(source, new, wrapping)
        told = {} if wrapping.labels is None else _read_labels(wrapping.labels)
        labels = _named(root, new, list(told) or names, told)
        _try_chain(Bundle(new))
        if labels.name == name:
            write_label_set(root, labels)
        new.rename(folder)
    return Bundle(folder)


def _taken(source: Path, new: Path, wrapping: Wrapping) -> list[str]:
    """Configs and weights of the new bundle; the names of its classes, where they are told."""
    if is_trained_folder(source):
        return copy_trained(source, new, wrapping.folds, wrapping.mirrored)
    return _copied(source, new) if source.is_dir() else _wrapped(source, new, wrapping)


# ---- bundles -------------------------------------------------------------------------------------


def _copied(source: Path, new: Path) -> list[str]:
    """Config, metadata, weights and documents of a bundle; the names of its classes as it tells them."""
    config = next((source / "configs" / name for name in CONFIGS if (source / "configs" / name).is_file()), None)
    if config is None:
        rule = "a folder must hold a bundle's configs/inference.json or .yaml, or nnU-Net's plans.json and dataset.json"
        raise InputError(rule, f"{source.name} without")
    content, metadata = _read_config(config), _read_config(source / "configs" / "metadata.json")
    _write_json(new / "configs" / "inference.json", content)
    _write_json(new / "configs" / "metadata.json", metadata)
    weights = _own_weights(source, content)
    kind = weights.suffix if weights.suffix in (SCRIPTED, ".safetensors") else ".pt"
    kind = SCRIPTED if is_script(weights) else kind
    shutil.copyfile(weights, new / "models" / f"model{kind}")
    for extra in ("docs", "LICENSE"):
        if (source / extra).is_symlink():
            continue
        if (source / extra).is_dir():
            shutil.copytree(source / extra, new / extra, ignore=_links)
        elif (source / extra).is_file():
            shutil.copyfile(source / extra, new / extra)
    return _channel_names(_prediction(metadata).get("channel_def") or {})


def _links(folder: str, names: list[str]) -> set[str]:
    """What is left behind: a link could lead to any file, in a circle or nowhere."""
    paths = [Path(folder) / name for name in names]
    return {path.name for path in paths if path.is_symlink() or not (path.is_file() or path.is_dir())}


def _own_weights(source: Path, content: dict[str, Any]) -> Path:
    """The file that the config loads, of several that fit its network, whatever its format; else the usual one."""
    there = sorted(path for path in (source / "models").glob("*") if path.suffix in CHECKPOINTS)
    for text in _load_paths(content):
        try:
            named = PurePosixPath(plain_text(content | {"bundle_root": "."}, text)).stem
        except InputError:
            if len({path.stem for path in there}) > 1:
                raise
            continue
        fitting = [path for path in there if path.stem == named]
        if not fitting:
            have = ", ".join(path.name for path in there)
            raise InputError("the weights that a bundle's config loads must be in models/", named, have)
        return min(fitting, key=lambda path: path.suffix != ".safetensors")
    return Bundle(source).weights


def _load_paths(value: Any) -> Iterator[str]:
    """What the checkpoint loaders of a config load."""
    if isinstance(value, dict) and isinstance(value.get("load_path"), str):
        yield value["load_path"]
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _load_paths(one)


def _read_config(path: Path) -> dict[str, Any]:
    """A config as JSON has it, whose few lines could in YAML come to any number of values, or to a circle."""
    try:
        content = ConfigParser.load_config_file(path)
        left, count = [content], 0
        while left and count <= MOST_VALUES:
            one, count = left.pop(), count + 1
            left.extend(one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        if left or not isinstance(content, dict):
            raise ValueError(f"not an object of at most {MOST_VALUES} values")
        return json.loads(json.dumps(content, default=str))
    except Exception as error:  # MONAI hands on whatever its JSON and YAML readers raise
        got = f"{path.name}: {' '.join(str(error).split())[:200]}"
        raise InputError("a bundle's configs must be readable JSON or YAML", got) from None


def _prediction(metadata: dict[str, Any]) -> dict[str, Any]:
    """The part of a bundle's metadata that tells of its output, to read from and to write into."""
    return _part(metadata, "outputs", "pred")


def _part(metadata: dict[str, Any], *names: str) -> dict[str, Any]:
    """A part of what the metadata tells of the network's data."""
    found = metadata
    for key in ("network_data_format", *names):
        if not isinstance(found.get(key), dict):
            found[key] = {}
        found = found[key]
    return found


def _channel_names(channels: Any) -> list[str]:
    """Names in the order of their numbers, which bundles begin with 0 or with 1."""
    if not isinstance(channels, dict):
        raise InputError("channel_def must give every number a name", type(channels).__name__)
    try:
        numbers = sorted(channels, key=int)
        first = int(numbers[0]) if numbers else 0
        straight = [int(number) for number in numbers] == list(range(first, first + len(numbers)))
    except ValueError:
        straight = False
    if not straight or first not in (0, 1):
        raise InputError("channel_def must number the classes from 0 or 1 on", sorted(channels)[:5])
    return [str(channels[number]) for number in numbers]


# ---- checkpoints ---------------------------------------------------------------------------------


def _wrapped(source: Path, new: Path, wrapping: Wrapping) -> list[str]:
    """A bundle around a file of weights; no names, which come from the labels' file."""
    if source.suffix.lower() not in CHECKPOINTS:
        raise InputError("a checkpoint must be a file of weights", source.name, ", ".join(CHECKPOINTS))
    needed = {"--labels": wrapping.labels, "--spacing": wrapping.spacing, "--window": wrapping.window}
    needed |= {"--intensity": wrapping.intensity}
    if lacking := [option for option, given in needed.items() if not given]:
        raise InputError(
            "a bare checkpoint needs what it does not say", f"no {', no '.join(lacking)}", ", ".join(needed)
        )
    config: dict[str, Any] = {}
    channels = 1
    if source.suffix == SCRIPTED or is_script(source):
        shutil.copyfile(source, new / "models" / "model.ts")
    else:
        weights = without_prefixes(load_weights(source))
        config["network_def"] = network_def(weights)
        channels = config["network_def"]["in_channels"]
        # Cloned: a DynUNet has some tensors by two names, which safetensors does not store.
        apart = {key: one.clone(memory_format=torch.contiguous_format) for key, one in weights.items()}
        safetensors.torch.save_file(apart, new / "models" / WEIGHTS[0])
    if channels != 1:
        raise InputError(
            "a bare checkpoint must take one channel", f"{channels}", "a MONAI bundle, which says how each is scaled"
        )
    _write_json(new / "configs" / "inference.json", config | _chain(wrapping))
    _write_json(new / "configs" / "metadata.json", {"task": f"Segmentation, wrapped from {source.name}"})
    return []


def _chain(wrapping: Wrapping) -> dict[str, Any]:
    """Pre-processing and inferer, with the usual sliding window."""
    low, high = wrapping.intensity
    scale = {"a_min": low, "a_max": high, "b_min": 0.0, "b_max": 1.0, "clip": True}
    transforms = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": list(wrapping.spacing), "mode": "bilinear"},
        {"_target_": "ScaleIntensityRanged", "keys": "image", **scale},
        {"_target_": "EnsureTyped", "keys": "image"},
    ]
    window = {"roi_size": list(wrapping.window), "sw_batch_size": 1, "overlap": 0.25, "mode": "gaussian"}
    return {
        "preprocessing": {"_target_": "Compose", "transforms": transforms},
        "inferer": {"_target_": "SlidingWindowInferer", **window},
    }


def _read_labels(path: Path) -> dict[str, dict[str, str]]:
    """Names of a CSV with the columns id and name, in the order of the ids from 0 on, and the LOOKS it gives each."""
    rows = read_table(path, ("id", "name")).to_dict("records")
    try:
        rows.sort(key=lambda row: int(row["id"]))
    except ValueError:
        raise InputError("ids of --labels must be whole numbers", path.name) from None
    if [int(row["id"]) for row in rows] != list(range(len(rows))):
        raise InputError("ids of --labels must count from 0, each once", f"{[row['id'] for row in rows[:5]]} …")
    told = {str(row["name"]): {look: str(row[look]) for look in LOOKS if row.get(look)} for row in rows}
    if len(told) < len(rows):
        raise InputError("names of --labels must be there once", f"{len(rows)} rows of {len(told)} names")
    if odd := [looks["color"] for looks in told.values() if not COLOR.fullmatch(looks.get("color", "#000000"))]:
        raise InputError("colors of --labels must be hexadecimal", odd[0][:40], "#rrggbb")
    return told


# ---- names ---------------------------------------------------------------------------------------


def _named(root: Path, new: Path, names: Sequence[str], told: dict[str, dict[str, str]]) -> LabelSet:
    """Name the classes in the metadata, once the network was seen to give as many outputs; their label set."""
    outputs = _outputs(new)
    spelled = {organ.name.lower(): organ.name for labels in known_label_sets(root) for organ in labels.organs}
    plain = [spelled.get(slug, slug) for slug in (checked_id("class", class_id(name)) for name in names)]
    alone = outputs == 1 or (BACKGROUND not in plain and _judges_each_by_itself(new))
    if BACKGROUND not in plain[:1] and (alone or len(plain) in (1, outputs - 1)):
        plain, names = [BACKGROUND, *plain], [BACKGROUND, *names]
    if not plain or plain[0] != BACKGROUND:
        raise InputError("classes must exclude each other, background first", ", ".join(names[:4]) or "no names")
    if len(plain) != outputs + alone:
        raise InputError("every output must have a name", f"{len(plain)} names", f"{outputs} outputs")
    if len(set(plain)) < len(plain):
        twice = next(name for name in plain if plain.count(name) > 1)
        raise InputError("classes must have names of their own", twice)
    titles = dict(zip(plain, names, strict=True))
    labels = _label_set(root, new.name, titles, {slug: told.get(name, {}) for slug, name in titles.items()})
    path = new / "configs" / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    pred = _prediction(metadata)
    pred |= {"num_channels": outputs, "channel_def": {str(number): name for number, name in enumerate(plain)}}
    _write_json(path, metadata | {"label_set": labels.name})
    return labels


def _judges_each_by_itself(new: Path) -> bool:
    """Whether the bundle takes a sigmoid of its logits, so that organs may overlap."""
    config = json.loads((new / "configs" / "inference.json").read_text(encoding="utf-8"))
    return '"sigmoid": true' in json.dumps(config.get("postprocessing"))


def _label_set(root: Path, name: str, titles: dict[str, str], told: dict[str, dict[str, str]]) -> LabelSet:
    """A known label set that numbers all these organs alike, else one of the model's name with what is known of each.

    Alike, for label maps are read by the ids of the label set, and the model's own maps are numbered as its outputs.
    """
    known = known_label_sets(root)
    for labels in known:
        ids = {organ.name: organ.id for organ in labels.organs}
        if [ids.get(name) for name in titles] == [*range(len(titles))] and not any(told.values()):
            return labels
    described = {organ.name: organ for labels in known for organ in labels.organs}
    organs = []
    for organ in made_label_set(name, titles).organs:
        title = titles[organ.name] if titles[organ.name] != organ.name else organ.title
        looks = described.get(organ.name, replace(organ, title=title))
        organs.append(replace(looks, id=organ.id, **told.get(organ.name, {})))
    made = LabelSet(name, tuple(organs))
    if any(labels.name == name and labels != made for labels in known):
        raise InputError("a model with a label set of its own needs a name that no other set has", repr(name))
    return made


def _outputs(new: Path) -> int:
    """How many logits the network gives a voxel, seen on a window of zeros. InputError: it cannot be run, or 2D.

    Of how many channels that window is, is written into the metadata where it did not say so.
    """
    bundle, refused = Bundle(new), list[InputError]()
    section = json.loads((new / "configs" / "inference.json").read_text(encoding="utf-8")).get("network_def")
    told = section.get("in_channels") if isinstance(section, dict) else None
    for count in dict.fromkeys([len(bundle.channels), told if isinstance(told, int) and told > 0 else 1, 1]):
        try:
            found = _outputs_of(bundle, count)
        except InputError as error:
            refused.append(error)
            continue
        if count != len(bundle.channels):
            path = new / "configs" / "metadata.json"
            metadata = json.loads(path.read_text(encoding="utf-8"))
            _part(metadata, "inputs", "image")["num_channels"] = count
            _write_json(path, metadata)
        return found
    raise refused[0]


def _outputs_of(bundle: Bundle, channels: int) -> int:
    window = tuple(fall_back_tuple(bundle.inferer().roi_size, (TRIED,) * 3))
    small = tuple(min(edge, TRIED) for edge in window)
    network = bundle.bare_network(torch.device("cpu"))
    try:
        return _outputs_on(network, (channels, *small))
    except InputError:
        if small == window:
            raise
        return _outputs_on(network, (channels, *window))  # some run on windows of their size alone


def _outputs_on(network: torch.nn.Module, size: tuple[int, ...]) -> int:
    try:
        with torch.inference_mode():
            logits = network(torch.zeros(1, *size))
    except Exception as error:  # networks from elsewhere fail in ways of their own
        raise InputError("a network must run on a window", reason(error)) from None
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape[2:]) != size[1:]:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise InputError("a network must give logits for every voxel of a window", got)
    return logits.shape[1]


def _try_chain(bundle: Bundle) -> None:
    """InputError: what comes before the network does not run on a scan of 16 cm of noise."""
    with TemporaryDirectory() as folder:
        paths = [Path(folder) / f"scan_{number}.nii.gz" for number in range(len(bundle.channels))]
        for seed, path in enumerate(paths):
            noise = np.random.default_rng(seed).normal(0, 300, (40, 40, 40)).astype(np.int16)
            volumes.write_volume(path, Volume(noise, np.diag([4.0, 4.0, 4.0, 1.0])))
        load_scan(bundle, *paths)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
