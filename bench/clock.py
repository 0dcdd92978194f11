"""How long work takes on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def timed(work: Callable[[], Answer]) -> tuple[Answer, float]:
    """The answer, and the seconds it took."""
    started = time.perf_counter()
    answer = work()
    return answer, time.perf_counter() - started


def best_of_three(work: Callable[[], Answer]) -> tuple[Answer, float]:
    """The last answer, and seconds of the quickest of three turns."""
    turns = [timed(work) for _ in range(3)]
    return turns[-1][0], min(seconds for _, seconds in turns)
