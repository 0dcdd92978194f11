"""A file's bytes in memory: what was verified is what is read, whatever becomes of the file on its disk."""

from __future__ import annotations

import os
import shutil
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path

from agg2exp_core.settings import memory_bytes

SHARE = 8
"""All files together take at most one part in this many of the memory."""

_sizes: dict[int, int] = {}
"""Descriptor → bytes, of files in memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """path: where bytes can be read, as long as this is kept."""

    path: Path


def held(file: Path) -> Source:
    """The file's bytes, copied to where no other process reaches; the file itself where there is no room for them."""
    size = file.stat().st_size
    if sys.platform != "linux" or sum(_sizes.values()) + size > memory_bytes() // SHARE:
        return Source(file)
    try:
        descriptor = os.memfd_create("agg2exp")
    except OSError:  # too many files are open
        return Source(file)
    source = Source(Path(f"/proc/self/fd/{descriptor}"))
    _sizes[descriptor] = size
    weakref.finalize(source, _release, descriptor)
    shutil.copyfile(file, source.path)
    return source


def _release(descriptor: int) -> None:
    _sizes.pop(descriptor, None)
    os.close(descriptor)
