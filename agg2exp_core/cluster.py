"""A cohort's cases spread over workers of Dask, one case a task: on this machine, or on any that see the data root.

Dask queues, restarts what a lost worker had, and encrypts; each case is written by its worker as `explain` writes it.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from agg2exp_core.pipeline import Explaining, Plan
from agg2exp_core.records import InputError, reason
from agg2exp_core.store import results
from agg2exp_core.store.cohorts import Case

CERTIFICATES = {"tls_ca_file": "ca.pem", "tls_client_cert": "cert.pem", "tls_client_key": "key.pem"}
MOST_WORKERS = 256
TELL_SECONDS = 0.5
"""Between two words of a worker about its case, when it also asks whether to stop."""

ANSWER_SECONDS = 20
GPU = "GPU"
"""The resource of which a task takes one, where workers have any."""


@dataclass(frozen=True)
class Work:
    """What is done with cases. root: as the workers see it too."""

    root: Path
    plan: Plan
    cohort: str


@dataclass(frozen=True)
class Done:
    """What became of a case: the run that it is part of, or why it was refused or failed. fault: of ours."""

    case_id: str
    run: str = ""
    refused: str = ""
    fault: bool = False


# ---- the cluster -----------------------------------------------------------------------------------


@contextmanager
def local(workers: int) -> Iterator[Any]:
    """A client of so many processes of this machine, which share its cores; encrypted, since others may use it too."""
    import dask
    from distributed import Client, LocalCluster

    if not 1 <= workers <= MOST_WORKERS:
        raise InputError(f"workers must be from 1 to {MOST_WORKERS}", workers)
    threads = max((os.cpu_count() or 1) // workers, 1)
    # Nothing is told over unencrypted HTTP, not even to this machine.
    unheard: dict[str, list[str]] = {f"distributed.{side}.http.routes": [] for side in ("scheduler", "worker")}
    # Dask warns of workers that end, which we tell in words of our own where it matters.
    environ = {"OMP_NUM_THREADS": str(threads), "DASK_LOGGING__DISTRIBUTED": "error"}
    settings = {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in environ.items()}
    alike: dict[str, Any] = {"threads_per_worker": 1, "memory_limit": 0, "security": True}
    with dask.config.set(settings | unheard):
        cluster = LocalCluster(workers, dashboard_address=":0", silence_logs=logging.ERROR, **alike)
        with cluster, Client(cluster) as client:
            yield client


@contextmanager
def existing(address: str, certificates: Path | None = None) -> Iterator[Any]:
    """A client of a scheduler that runs already. certificates: folder of ca.pem, cert.pem, key.pem for `tls://`.

    InputError: it does not answer, or has no worker.
    """
    from distributed import Client

    try:
        client = Client(address, security=_security(address, certificates), timeout=ANSWER_SECONDS)
    except (OSError, ValueError, TimeoutError) as error:
        raise InputError("a Dask scheduler must answer at --scheduler", f"{address}: {reason(error)}") from None
    # Of a scheduler that is lost it tells in tracebacks, and we in a line.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    with client:
        if not client.scheduler_info(n_workers=-1)["workers"]:
            raise InputError("a cluster must have workers", f"none at {address}", "dask worker ADDRESS --nthreads 1")
        yield client


def _security(address: str, certificates: Path | None) -> Any:
    from distributed import Security

    if certificates is None:
        return Security()  # as Dask's own configuration has it
    if not address.startswith("tls://"):
        raise InputError("--tls goes with an encrypted --scheduler", address, "tls://HOST:PORT")
    files = {option: certificates / name for option, name in CERTIFICATES.items()}
    if missing := [path.name for path in files.values() if not path.is_file()]:
        raise InputError("--tls names a folder of certificates", f"{', '.join(missing)} not there", "ca, cert, key.pem")
    return Security(require_encryption=True, **{option: str(path) for option, path in files.items()})


# ---- a cohort on it --------------------------------------------------------------------------------


def explain_cases(
    client: Any, work: Work, cases: Sequence[Case], report: Callable[[int, int, str], None]
) -> Iterator[Done]:
    """Each case as it is done, in any order; `report(done, total, note)` counts in thousandths of cases.

    A worker that is lost loses its case to another; of a case that keeps killing its workers Dask says so. Closing
    the generator stops what runs within a window. InputError: the scheduler is lost.
    """
    from distributed import Event, as_completed

    topic, lock = f"agg2exp-{uuid.uuid4().hex}", threading.Lock()
    shares = dict.fromkeys((case.case_id for case in cases), 0.0)

    def told(case_id: str, share: float, note: str) -> None:
        with lock:
            shares[case_id] = max(shares[case_id], share)
            report(round(1000 * sum(shares.values())), 1000 * len(cases), f"{case_id}, {note}")

    client.subscribe_topic(topic, lambda event: told(*event[1]))
    stop = Event(topic, client)
    tasks = [(work, case, topic) for case in cases]
    futures = client.map(_explain, tasks, pure=False, resources=_resources(client))
    cases_of = {future.key: case for future, case in zip(futures, cases, strict=True)}
    try:
        for future in as_completed(futures):
            case = cases_of[future.key]
            done = _done(case, future)
            told(case.case_id, 1.0, "done")
            yield done
    finally:
        with suppress(OSError):  # of a scheduler that is gone
            stop.set()
            client.cancel(futures)
            client.unsubscribe_topic(topic)


def _resources(client: Any) -> dict[str, int] | None:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return {GPU: 1} if any(GPU in worker.get("resources", {}) for worker in workers) else None


def _done(case: Case, future: Any) -> Done:
    from distributed import CancelledError, KilledWorker

    try:
        done: Done = future.result()
    except CancelledError as error:
        rule = "a Dask scheduler must keep its cases until they are done"
        lost = getattr(error, "reason", "they were cancelled")
        raise InputError(rule, lost, "the same command again, which goes on with them") from None
    except KilledWorker as error:
        return Done(
            case.case_id, refused=f"its worker died each of the {error.allowed_failures + 1} times it was tried"
        )
    except Exception as error:
        return Done(case.case_id, refused=f"{type(error).__name__}: {reason(error)}", fault=True)
    return done


# ---- on a worker -----------------------------------------------------------------------------------

_one = threading.Lock()
"""A worker may have several threads; its device is one."""


@lru_cache(maxsize=1)
def _explaining(work: Work, topic: str) -> Explaining:
    """For all cases of one asking, known by its topic: at the next, the model of that name may be another."""
    explaining = Explaining(work.root, work.plan)
    results.recover(work.root / "runs" / work.cohort / explaining.run / "cases")
    return explaining


def _explain(task: tuple[Work, Case, str]) -> Done:
    work, case, topic = task
    with _one:
        try:
            explaining = _explaining(work, topic)
            explaining.cohort_case(work.cohort, case, _Told(topic, case.case_id))
        except InputError as error:  # which would not travel
            return Done(case.case_id, refused=str(error))
    return Done(case.case_id, explaining.run)


class _Told:
    """What a worker says of its case, now and then; it asks in turn whether the cases are still wanted."""

    def __init__(self, topic: str, case_id: str):
        from distributed import Event

        self._topic, self._case_id, self._stop, self._said = topic, case_id, Event(topic), -math.inf

    def __call__(self, done: int, total: int, note: str) -> None:
        from distributed import get_worker

        if (now := time.monotonic()) - self._said < TELL_SECONDS:
            return
        self._said = now
        if self._stop.is_set():
            raise InputError("a case is explained as long as it is wanted", "its cohort was stopped")
        get_worker().log_event(self._topic, (self._case_id, done / max(total, 1), note))
