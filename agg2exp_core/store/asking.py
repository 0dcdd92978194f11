"""A user's query in a process of its own: one function over one huge text cannot be interrupted, only killed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import duckdb
import pandas as pd

from agg2exp_core.records import InputError
from agg2exp_core.settings import memory_bytes
from agg2exp_core.store import catalog, queries

AT_A_TIME = 2
"""Queries; others wait for their turn."""
IDLE_SECONDS = 600.0
"""After which a process that nobody asks ends."""
GRACE_SECONDS = 5.0
"""More than a query may take, for what DuckDB ends by itself; opening the files counts, too."""


@dataclass(frozen=True)
class Question:
    """fingerprint: of the root's files. rows, seconds: at most, as of `queries.run_user_query`."""

    root: Path
    fingerprint: str
    sql: str
    rows: int
    seconds: float


@dataclass(frozen=True, eq=False)
class _Desk:
    """A process that answers one question after the other."""

    process: subprocess.Popen[bytes]
    pipe: Connection

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


_turn = threading.BoundedSemaphore(AT_A_TIME)
_free: list[_Desk] = []


def ask(question: Question) -> tuple[pd.DataFrame, float]:
    """The answer, and the seconds that it took.

    InputError: as of `queries.run_user_query`, and where its process did not start, had to be killed, or was.
    """
    with _turn:
        desk = _taken()
        try:
            desk.pipe.send(question)
            if not desk.pipe.poll(question.seconds + GRACE_SECONDS):
                raise queries.too_long(question.seconds)
            found: tuple[pd.DataFrame, float] | Exception = desk.pipe.recv()
        except (EOFError, ConnectionError):
            desk.close()
            raise InputError("a query must fit the memory", "one that did not", "fewer rows or a LIMIT") from None
        except BaseException:
            desk.close()
            raise
        _free.append(desk)
    if isinstance(found, Exception):
        raise found
    return found


def _taken() -> _Desk:
    while _free:
        desk = _free.pop()
        if desk.process.poll() is None:
            return desk
        desk.close()
    rule = "a query runs in a process of its own"
    try:
        here, there = Pipe()
        with there:
            command = [sys.executable, "-m", "agg2exp_core.store.asking", str(there.fileno())]
            desk = _Desk(subprocess.Popen(command, pass_fds=[there.fileno()]), here)
    except OSError as error:
        raise InputError(rule, f"one that did not start: {error.strerror}", "another try") from None
    try:
        here.recv()  # it is ready, and loading its libraries takes none of the query's time
    except (EOFError, ConnectionError):
        desk.close()
        raise InputError(rule, "one that ended at its start, as the server's log tells", "another try") from None
    return desk


def _serve(pipe: Connection) -> None:
    """Answer until nobody asks any more, or whoever did is gone."""
    known: tuple[Path, str] | None = None
    con: duckdb.DuckDBPyConnection | None = None
    pipe.send(None)
    while pipe.poll(IDLE_SECONDS):
        question: Question = pipe.recv()
        # Whoever asked kills this process at its time, unless it died meanwhile.
        ending = threading.Timer(question.seconds + 2 * GRACE_SECONDS, os._exit, [1])
        ending.start()
        try:
            if con is None or known != (question.root, question.fingerprint):
                known, con = (question.root, question.fingerprint), catalog.connect(question.root)
            started = time.perf_counter()
            table = queries.run_user_query(con, question.sql, question.rows, question.seconds)
            pipe.send((table, time.perf_counter() - started))
        except Exception as error:
            pipe.send(error)
        finally:
            ending.cancel()


if __name__ == "__main__":
    half = memory_bytes() // 2
    resource.setrlimit(resource.RLIMIT_DATA, (half, half))
    with suppress(EOFError, ConnectionError, KeyboardInterrupt):
        _serve(Connection(int(sys.argv[1])))
