"""What a request takes before it is begun: windows, time, memory and disk, judged from what its model needed last."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agg2exp_core import volumes
from agg2exp_core.files import read_json
from agg2exp_core.jobs.queue import Request
from agg2exp_core.precision import Measured, decided, read_measured
from agg2exp_core.records import PERTURBING, InputError, Method
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case, list_cases

ORGANS = 18
"""About as many as ablation takes away."""
START_SECONDS = 12.0
"""For a process to load PyTorch and a network."""
REACHING = 8
"""Windows that a voxel lies in, at most, where they overlap by half."""
GPU = Path("/dev/nvidiactl")
LOOKED_AT = 50
"""Scans of a cohort whose headers are read."""


@dataclass(frozen=True)
class Estimate:
    """scans: that are not explained yet. copies: passes of each. What is not known, as nothing was measured, is None.

    windows: of one scan, on average. seconds, disk (bytes): of all scans. memory: bytes at the peak.
    """

    scans: int
    copies: int
    organs: int
    windows: float | None = None
    seconds: float | None = None
    memory: int | None = None
    disk: int | None = None

    def __str__(self) -> str:
        windows = "" if self.windows is None else f" × {self.windows:.0f} windows"
        what = f"{counted(self.scans, 'scan')}{windows} × {counted(self.copies, 'pass', 'passes')}"
        parts = [f"{what} × {counted(self.organs, 'organ')}"]
        parts += [] if self.seconds is None else [f"at most about {duration(self.seconds)}"]
        parts += [] if self.memory is None else [f"{size(self.memory)} of memory"]
        return ", ".join(parts + ([] if self.disk is None else [f"{size(self.disk)} on the disk"]))


def estimate(root: Path, request: Request) -> Estimate:
    """What the request takes, at most: targets may settle before all their passes. InputError where it cannot fit."""
    half = measured(root, request.model, request.device)
    request = replace(request, method=decided(request.method, half))
    cases = [case for case in _cases(root, request) if case.image is not None and case.image.is_file()]
    there = _explained(root, request, cases)
    left = [case for case in cases if case.case_id not in there]
    organs = len(request.targets) or count_classes(root, request.model)
    extents = _extents(left)
    plain = Estimate(len(left), passes(request.method), organs)
    manifest = results.read_latest(root, request.model)
    if manifest is None or "seconds" not in manifest or not extents:
        return plain
    ratios = np.array(extents) / manifest["extent"]
    faster = half.speedup if half else 1.0
    count = max(len(manifest["targets"]), 1)
    share = len(left) * float(ratios.mean())
    sizes = [int(file["size"]) for file in manifest["files"].values() if "size" in file]
    known, peak = manifest.get("windows"), manifest.get("peak_bytes")
    windows = None if known is None else max(float(known) * share / len(left), 1.0)
    work = _work(request.method, organs, windows, faster) / _done(manifest, faster)
    needed = Estimate(
        *(plain.scans, plain.copies, organs),
        windows,
        START_SECONDS + float(manifest["seconds"]) * share * work,
        None if peak is None else round(float(peak) * max(float(ratios.max()), 1.0)),
        round(sum(sizes) * organs / count * share) if sizes else None,
    )
    _check_disk(root, needed)
    return needed


def count_classes(root: Path, model: str) -> int:
    """How many classes the bundle's metadata names."""
    metadata = read_json(root / "models" / model / "configs" / "metadata.json")
    pred = metadata.get("network_data_format", {}).get("outputs", {}).get("pred", {})
    return len(pred.get("channel_def", {}))


def measured(root: Path, model: str, device: str = "auto") -> Measured | None:
    """What half precision does to a model's explanations on the kind of device that a job would get."""
    # PyTorch, which knows for sure, takes seconds to load.
    gpu = device.startswith("cuda") or (device == "auto" and GPU.exists())
    return read_measured(root, model, "cuda" if gpu else "cpu")


def passes(method: Method) -> int:
    """Scans whose gradients a method takes, at most."""
    if method.name == "ablation":
        return ORGANS
    if method.name in ("gradient", "gradient_x_input"):
        return 1
    return method.samples * (2 if method.name == "smoothgrad" and method.estimator == "antithetic" else 1)


def duration(seconds: float) -> str:
    """A time as people say it: 8 s, 3 min, 2 h 5 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
    """Bytes as people say them: 3 MB, 2.1 GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(round(count / 1e6), 1)} MB"


def counted(count: int, one: str, many: str = "") -> str:
    """1 scan, 2 scans."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def _cases(root: Path, request: Request) -> list[Case]:
    wanted = frozenset([request.case_id] if request.case_id else request.only)
    return [case for case in list_cases(root, request.cohort) if not wanted or case.case_id in wanted]


def _explained(root: Path, request: Request, cases: list[Case]) -> set[str]:
    """Those of the cases of which a run of this very model and method holds all organs that are asked for.

    Of many cases no manifest is read: they count if all organs are asked for and the run holds any.
    """
    same = {"model": request.model, "method": request.method.name, "parameters": request.method.parameters()}
    for path in (root / "runs" / request.cohort).glob("[!.]*/run.json"):
        if same.items() <= read_json(path).items():
            there = {manifest.parent.name for manifest in path.parent.glob(f"cases/[!.]*/{results.MANIFEST}")}
            found = {case.case_id for case in cases} & there
            if len(found) > LOOKED_AT:
                return set() if request.targets else found
            return {one for one in found if _holds(root, request, path.parent / "cases" / one)}
    return set()


def _holds(root: Path, request: Request, folder: Path) -> bool:
    """With a map of each, which would be computed where it was not kept, unless there is nothing to draw."""
    manifest = results.read_manifest(folder)
    if manifest is None or results.verify(folder, ["importance.csv"]):
        return False
    known = set(manifest.get("targets", ()))
    if not known >= set(request.targets) or len(known) < (len(request.targets) or count_classes(root, request.model)):
        return False
    bare = {name for name in request.targets or known if results.map_name(name) not in manifest["files"]}
    return not bare or bare <= set(results.read_importance(folder).absent)


def _extents(cases: list[Case]) -> list[float]:
    """mm³ of scans, of some if there are many. InputError if there is none among them that can be opened."""
    some, refused = cases[:: -(-len(cases) // LOOKED_AT) or 1], None
    extents = []
    for case in some:
        try:
            extents.append(_extent(case))
        except InputError as error:
            refused = error
    if refused and not extents:
        raise refused
    return extents


def _extent(case: Case) -> float:
    if case.image is None or not case.image.is_file():
        return 0.0
    return volumes.check_header(case.image).extent


def _work(method: Method, organs: float, windows: float | None, faster: float) -> float:
    """Passes forwards and backwards through the network in single precision; one forward serves all organs.

    The quantile gradient goes forwards for each organ, and backwards in those windows alone that its voxels lie in.
    faster: how many times as fast half precision is.
    """
    if method.name in PERTURBING:
        return passes(method)
    work = passes(method) * (1 + organs)
    if method.name == "quantile_gradient":
        work = organs * (1 + passes(method) * min(1.0, REACHING / (windows or 1.0)))
    return work / (faster if method.precision == "bfloat16" else 1.0)


def _done(manifest: dict[str, Any], faster: float) -> float:
    """The work that a case was; where targets settled early, less than what its method allows."""
    method = Method.of(manifest["method"], manifest["parameters"])
    organs: float = max(len(manifest["targets"]), 1)
    if pairs := manifest.get("pairs"):
        most = max(pairs.values())
        method, organs = replace(method, samples=most), sum(pairs.values()) / most
    return _work(method, organs, manifest.get("windows"), faster)


def _check_disk(root: Path, needed: Estimate) -> None:
    free = shutil.disk_usage(root).free
    if needed.disk is not None and needed.disk > free:
        raise InputError("results must fit on the disk", f"about {size(needed.disk)}", f"{size(free)}, which are free")
