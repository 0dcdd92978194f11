"""Work that may not reach other machines: some networks fetch weights from elsewhere when they are built."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from agg2exp_core.records import InputError

_work = threading.local()


@contextmanager
def offline() -> Iterator[None]:
    """While it is entered, whatever this thread does to reach another machine is an InputError."""
    _watched()
    _work.offline = True
    try:
        yield
    finally:
        _work.offline = False


@cache
def _watched() -> None:
    # An audit hook hears of every way out, whichever library takes it; it stays for good, and so is made once.
    sys.addaudithook(_heard)


def _heard(event: str, _: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname") and getattr(_work, "offline", False):
        raise InputError("a model must be all in its folder", "one that fetches something from elsewhere")
