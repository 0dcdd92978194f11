"""Files that survive: replaced at once or not at all, and locks that the kernel frees."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

LOCK_POLL_SECONDS = 0.2


def write_text(path: Path, text: str) -> None:
    """Replace the file at once and for good: readers, and power cuts, leave the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        _write_through(temporary, text)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """`write_text` of an object, indented for a person."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_new(path: Path, text: str) -> None:
    """Make a read-only file at once and for good: on the disk before this returns, never a part, never another.

    FileExistsError if there is one of that name, which stays as it is.
    """
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        _write_through(temporary, text)
        temporary.chmod(0o444)
        # A link, unlike a rename, never replaces what is there.
        path.hardlink_to(temporary)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The file's content; empty when it is not there or does not hold an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last of lists in lists in lists
        return {}
    return content if isinstance(content, dict) else {}


def state(path: Path) -> tuple[int, ...]:
    """What changes with the file: one that was replaced is another one, however fast that was. Empty for none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _write_through(path: Path, text: str) -> None:
    """A new file that is on the disk when this returns."""
    with path.open("x", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_file(path: Path) -> None:
    """Make a file that was written survive a power cut; its name does when its folder is synced too."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames inside the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, and those around it, unless they are there; a power cut takes none of what is new."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextlib.contextmanager
def locked(path: Path, may_try: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Wait for the file's lock and hold it. The kernel frees it when the process dies in any way.

    may_try: asked before each attempt; while it says no, the lock is for others.
    """
    make_folder(path.parent)
    with path.open("a") as file:
        # Polled, because a blocking call would hold back the signal that cancels a job.
        while not (may_try() and _acquired(file)):
            time.sleep(LOCK_POLL_SECONDS)
        yield


def try_lock(path: Path) -> TextIO | None:
    """The open file, which holds its lock until it and all that inherit it are closed; None if another has the lock."""
    make_folder(path.parent)
    file = path.open("a")
    for _ in range(10):
        if _acquired(file):
            return file
        time.sleep(0.02)  # it may be `is_locked` that asks at this moment
    file.close()
    return None


def _acquired(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether someone holds the file's lock, in whatever process or container."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
