"""How long work takes on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def best_of_three(work: Callable[[], Answer]) -> tuple[Answer, float]:
    """The last answer, and seconds of the quickest of three turns."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        answer = work()
        times.append(time.perf_counter() - started)
    return answer, min(times)
