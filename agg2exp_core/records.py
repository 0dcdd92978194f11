"""What passes between the steps: frozen records, and the one error that means "your input was refused"."""

from __future__ import annotations

import copyreg
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np


class InputError(ValueError):
    """The user's input was refused. One line: the rule, what came, what is allowed."""

    def __init__(self, rule: str, got: object, allowed: object = ""):
        line = f"{rule}; got {got}" + (f"; allowed: {allowed}" if allowed != "" else "")
        super().__init__(" ".join(line.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Between processes goes the line."""
        return copyreg.__newobj__, (type(self), *self.args)  # type: ignore[attr-defined]


TRACED = "The following operation failed in the TorchScript"
"""How TorchScript begins a traceback, of which the last line says what happened."""


def reason(error: BaseException) -> str:
    """What a library says of a failure, as a part of one line."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith(TRACED) else 0][:200]


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels (I, J, K) and the 4×4 affine from voxel indices to world millimetres (RAS+, NIfTI)."""

    array: np.ndarray
    affine: np.ndarray

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in millimetres."""
        i, j, k = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(i), float(j), float(k)


PERTURBING = ("ablation", "kernelshap")
"""Methods that take no gradients."""
USUAL_SAMPLES = {"smoothgrad": 20, "integrated_gradients": 24, "quantile_gradient": 100, "kernelshap": 200}
"""Of which kind, `Method` says."""


@dataclass(frozen=True)
class Method:
    """An attribution method and its parameters; equal parameters give equal numbers.

    name: gradient | smoothgrad | integrated_gradients | gradient_x_input | quantile_gradient |
    ablation | kernelshap.
    samples: noisy copies of SmoothGrad, steps of integrated gradients, output voxels of the quantile gradient, or
    coalitions of KernelSHAP.
    estimator: of SmoothGrad. plain: independent copies, as published. antithetic: pairs of opposite noise, at most
    `samples` of them, without the bias of few; a target stops when twice the largest standard error of its masses is
    under `tolerance`.
    sigma: SmoothGrad's noise as a share of the scaled scan's range (max − min).
    baseline: where integrated gradients start: air | ones | mean | uniform | normal | blurred.
    features: what KernelSHAP replaces by its baseline: regions (predicted ones) | cubes | supervoxels.
    value: what ablation and KernelSHAP watch: logits (their sum) | dice (soft, with the mask) | counts (of true less
    new false voxels).
    skip: windows in which less than this share of a target lies are left out; the rest counts as an error.
    precision: of gradients: float32 | bfloat16. Predictions, and so masks, are always float32.
    nodes: at which parts of their path they look: linear | logarithmic | auto, as suits network and baseline.
    mask: the voxels whose logits are summed: prediction | label | tp | fp | fn | file-<name>, drawn in a file.
    """

    name: str = "smoothgrad"
    samples: int = 20
    sigma: float = 0.1
    baseline: str = "air"
    seed: int = 0
    mask: str = "prediction"
    estimator: str = "antithetic"
    tolerance: float = 0.005
    nodes: str = "auto"
    features: str = "regions"
    value: str = "logits"
    skip: float = 0.0
    precision: str = "float32"

    @classmethod
    def of(cls, name: str, parameters: dict[str, Any]) -> Method:
        """The method whose `parameters()` were stored. InputError: one that is not known here, or of another kind."""
        kinds = {field.name: type(field.default) for field in fields(cls) if field.name != "name"}
        if not set(parameters) <= set(kinds):
            raise InputError("a method's parameters must be known", ", ".join(parameters), ", ".join(kinds))
        for key, value in parameters.items():
            # A whole number serves as a fraction, and to Python True is a 1.
            if type(value) is not kinds[key] and (kinds[key], type(value)) != (float, int):
                raise InputError(f"a method's {key} must be of its kind", repr(value), kinds[key].__name__)
        return cls(name, **{"estimator": "plain", **parameters})

    def parameters(self) -> dict[str, Any]:
        """Only what this method's numbers depend on, for run.json and the manifest.

        The usual mask and the published estimator are not among them: runs that knew no other stay what they are.
        """
        used: tuple[str, ...] = {
            "gradient": (),
            "smoothgrad": ("samples", "sigma", "seed"),
            "integrated_gradients": ("samples", "baseline", "nodes"),
            "gradient_x_input": (),
            "ablation": (),
            "kernelshap": ("samples", "seed", "baseline", "features"),
            "quantile_gradient": ("samples", "seed"),
        }[self.name]
        if self.name == "smoothgrad" and self.estimator != "plain":
            used += ("estimator", "tolerance")
        if self.name == "integrated_gradients" and self.baseline in ("uniform", "normal"):
            used += ("seed",)
        if self.name in PERTURBING and self.value != "logits":
            used += ("value",)
        if self.mask != "prediction":
            used += ("mask",)
        if self.skip:
            used += ("skip",)
        if self.precision != "float32" and self.name not in PERTURBING:
            used += ("precision",)
        return {key: value for key, value in asdict(self).items() if key in used}

    def options(self) -> list[str]:
        """What `agg2exp explain` is told to compute just this.

        Estimator and precision are said always: parameters leave out the published ones, which are not the usual ones.
        """
        said = {"method": self.name, "estimator": self.estimator, "precision": self.precision} | self.parameters()
        return [word for name, value in said.items() for word in (f"--{name}", str(value))]


@dataclass(frozen=True, eq=False)
class ChannelSums:
    """A local explanation's sums of each input channel: of T1 and T2, say. They add up to those of the SumTable.

    positive, negative: (channels, targets, regions) float64. mass_se: the same, the standard error of each share of
    Σ|a| over all regions and channels; NaN where nothing is known of it.
    """

    names: tuple[str, ...]
    positive: np.ndarray
    negative: np.ndarray
    mass_se: np.ndarray


@dataclass(frozen=True, eq=False)
class SumTable:
    """Local explanation of one case: sums of attribution for each (target, region).

    positive, negative: (targets, regions) float64, Σ max(a, 0) and Σ max(−a, 0).
    voxels: (regions,) int64. A target absent from the prediction is in `absent` with its reason,
    and its row of sums is NaN in memory, empty on disk.
    mass_se, organ_mass_se: (targets, regions), the standard error of each share of Σ|a|, with the background and
    without; NaN where nothing is known of it.
    by_channel: the same sums channel by channel, where there are several and the attribution can be split.
    """

    targets: tuple[str, ...]
    regions: tuple[str, ...]
    positive: np.ndarray
    negative: np.ndarray
    voxels: np.ndarray
    absent: dict[str, str] = field(default_factory=dict)
    mass_se: np.ndarray = field(default_factory=lambda: np.empty(0))
    organ_mass_se: np.ndarray = field(default_factory=lambda: np.empty(0))
    by_channel: ChannelSums | None = None

    def __post_init__(self) -> None:
        for name in ("mass_se", "organ_mass_se"):
            if not getattr(self, name).size:
                object.__setattr__(self, name, np.full_like(self.positive, np.nan))


@dataclass(frozen=True)
class Condition:
    """One filter on a metadata column: any of `values`, or between `low` and `high` (inclusive)."""

    column: str
    values: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Selection:
    """Which local explanations a chart or table is about. Hashable, so that it keys caches.

    sign: abs | pos | neg. value: mass | mean. background False: rows are renormalised without it.
    dice: (target or "" for the mean over organs, lowest, highest). present: organs the case must have.
    joined: regions that the label set joins, as five lobes to a lung, are one. Targets are not: the attributions of
    two may cancel, which their sums of magnitudes cannot tell.
    channel: of several input channels, whose attribution it is; "" of all. Shares stay those of all channels.
    within, without: names of saved lists; the case must be in one of the first and in none of the second.
    """

    cohort: str
    run: str
    sign: str = "abs"
    value: str = "mass"
    background: bool = True
    where: tuple[Condition, ...] = ()
    dice: tuple[str, float, float] | None = None
    present: tuple[str, ...] = ()
    joined: bool = False
    within: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    channel: str = ""

    def unfiltered(self) -> Selection:
        """The same measure of all cases."""
        return replace(self, where=(), dice=None, present=(), within=(), without=())
