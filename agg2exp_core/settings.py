"""Where data lives and what limits hold, from the environment."""

from __future__ import annotations

import math
import os
import re
import socket
from ipaddress import ip_address
from pathlib import Path

from agg2exp_core.records import InputError

SHIPPED = Path(__file__).resolve().parents[1] / "data"
"""The demo as it comes with the project: label sets, model, precomputed runs."""

ALLOWED_VARIABLE = "AGG2EXP_CALLABLES"
LONGEST_ID = 64
ID = re.compile(rf"(?!\.)[A-Za-z0-9_.-]{{1,{LONGEST_ID}}}")
"""No name begins with a dot: what is hidden is being made or removed, and is cleared away."""


def data_root(given: Path | None = None) -> Path:
    """The data root: what was given, else AGG2EXP_DATA, else the shipped data."""
    return Path(given or os.environ.get("AGG2EXP_DATA") or SHIPPED).resolve()


def is_own_address(address: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return address == "localhost" or ip_address(address).is_loopback
    except ValueError:
        return False


def is_every_address(address: str) -> bool:
    """Whether what listens there is reached at each address that this machine has."""
    try:
        return not address or ip_address(address).is_unspecified
    except ValueError:
        return False


def own_address() -> str | None:
    """The IPv4 address under which this machine speaks with others; None where it is alone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the way there
        except OSError:
            return None
        own = str(way.getsockname()[0])
    return None if is_own_address(own) else own


def memory_bytes() -> int:
    """What the machine has or, in a container, what it gives to this one."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def max_volume_bytes() -> int:
    """Largest decompressed volume that is opened, in bytes (AGG2EXP_MAX_GIB, default 8, or half of what memory holds).

    A scan is held at least twice: as it is stored, and on its model's grid.
    """
    text = os.environ.get("AGG2EXP_MAX_GIB")
    if text is None:
        return min(8 * 2**30, memory_bytes() // 2)
    try:
        gib = float(text)
    except ValueError:
        gib = math.nan
    if not (gib > 0 and math.isfinite(gib)):
        raise InputError("AGG2EXP_MAX_GIB must be a number of GiB", repr(text))
    return int(gib * 2**30)


def check_volume(needed: float, what: str) -> None:
    """InputError: a volume of more bytes than are allowed. what: its shape and kind of numbers."""
    allowed = max_volume_bytes()
    if not needed <= allowed:
        got = f"{what}, {needed / 2**30:.3g} GiB"
        raise InputError("a scan must fit the memory allowed", got, f"{allowed / 2**30:g} GiB (AGG2EXP_MAX_GIB)")


def allowed_callables() -> tuple[str, ...]:
    """Packages, beside MONAI's and PyTorch's, whose callables a bundle's config may name (AGG2EXP_CALLABLES)."""
    return tuple(name for part in os.environ.get(ALLOWED_VARIABLE, "").split(",") if (name := part.strip()))


def list_models(root: Path) -> list[str]:
    """Names of the bundles under `models/`, found without loading any. Hidden ones are being made."""
    return sorted(path.parents[1].name for path in (root / "models").glob("[!.]*/configs/inference.json"))


def checked_device(name: str) -> str:
    """The name itself if it is how a device is called, whether there is one or not, else InputError.

    cpu:<number> is the CPU too, to several workers that are to share it.
    """
    if not re.fullmatch(r"auto|(cpu|cuda)(:[0-9]{1,3})?", name):
        raise InputError("device must be one of auto, cpu, cpu:<number>, cuda, cuda:<number>", repr(name)[:80])
    return name


def checked_id(kind: str, name: str) -> str:
    """The name itself if it may be used as a folder name, else InputError."""
    if not ID.fullmatch(name):
        raise InputError(f"{kind} must be 1 to 64 of A-Z a-z 0-9 _ . - and begin with no dot", repr(name)[:80])
    return name
