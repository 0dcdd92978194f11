"""What half precision does to a model's explanations on a kind of device: measured once, stored beside the model.

Torch-free: the dashboard says it, the pipeline goes by it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from agg2exp_core.files import locked, read_json, write_json
from agg2exp_core.records import InputError, Method
from agg2exp_core.settings import checked_id

PRECISIONS = ("float32", "bfloat16")
AUTO = "auto"
LARGEST_ERROR, LEAST_SPEEDUP = 0.002, 1.2


@dataclass(frozen=True)
class Measured:
    """bfloat16 against float32. mass_error: the largest difference of a share; speedup: how many times as fast."""

    mass_error: float
    speedup: float

    @property
    def chosen(self) -> str:
        """bfloat16 where it is worth it and changes less than few noisy copies leave open."""
        return PRECISIONS[self.mass_error <= LARGEST_ERROR and self.speedup >= LEAST_SPEEDUP]


def decided(method: Method, measured: Measured | None) -> Method:
    """The method itself, or with the precision that was measured to serve where it leaves that open (AUTO).

    InputError: a precision that is neither.
    """
    if method.precision not in (AUTO, *PRECISIONS):
        raise InputError("precision must be a known one", repr(method.precision), ", ".join([AUTO, *PRECISIONS]))
    if method.precision != AUTO:
        return method
    return replace(method, precision=measured.chosen if measured else PRECISIONS[0])


def read_measured(root: Path, model: str, device: str) -> Measured | None:
    """What was measured of a model on a kind of device (cpu, cuda); None where nothing was, or it cannot be read."""
    try:
        found: Any = read_json(_file(root, model))[device]
        return Measured(float(found["mass_error"]), float(found["speedup"]))
    except (KeyError, TypeError, ValueError):
        return None


def write_measured(root: Path, model: str, device: str, measured: Measured) -> None:
    """Store it, beside what was measured on other kinds of device."""
    path = _file(root, model)
    with locked(path.parent.parent / ".measured"):
        write_json(path, read_json(path) | {device: asdict(measured)})


def _file(root: Path, model: str) -> Path:
    return root / "models" / checked_id("model", model) / "precision.json"
