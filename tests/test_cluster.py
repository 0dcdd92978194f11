"""Cases spread over a real cluster of two workers, encrypted: the same files as without one, also when workers die."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from command import run
from distributed import Event, KilledWorker, LocalCluster, Security
from tiny import write_bundle, write_cohort

from agg2exp_core import cluster, pipeline
from agg2exp_core.records import InputError, Method
from agg2exp_core.store import cohorts, results

CASES = ("a", "b", "c", "d")
METHOD = Method(samples=100, estimator="plain")
"""Long enough for a worker to be killed while it is at it."""

RUN = pipeline.run_id("tiny", METHOD)
WORDS = ("explain", "--model", "tiny", "--cohort", "c", "--samples", METHOD.samples, "--estimator", "plain")
NUMBERS = ("importance.csv", "agreement.csv", "prediction.nii.gz", "saliency/heart.nii.gz", "saliency/aorta.nii.gz")


@pytest.fixture(scope="module", autouse=True)
def plain_main() -> Iterator[None]:
    """A process begins with the main module of its parent, which tests of pages leave behind as a script of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", ModuleType("__main__"))
        yield


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, made = tmp_path_factory.mktemp("tls"), Security.temporary()
    for option, name in cluster.CERTIFICATES.items():
        (folder / name).write_text(getattr(made, option))
    return folder


@pytest.fixture(scope="module")
def running(certificates: Path) -> Iterator[LocalCluster]:
    paths = {name.removesuffix(".pem"): str(certificates / name) for name in cluster.CERTIFICATES.values()}
    sides = {
        f"tls_{side}_{kind}": paths[kind] for side in ("scheduler", "worker", "client") for kind in ("cert", "key")
    }
    security = Security(tls_ca_file=paths["ca"], require_encryption=True, **sides)
    with LocalCluster(2, threads_per_worker=1, dashboard_address=":0", security=security, protocol="tls://") as made:
        yield made


def new_root(folder: Path) -> Path:
    root = folder / "root"
    root.mkdir(parents=True)
    torch.manual_seed(0)
    write_bundle(root)
    write_cohort(root, CASES, np.diag([-4.0, 4, 4, 1]), (20, 18, 17))
    return root


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cases as one process explains them."""
    root = new_root(tmp_path_factory.mktemp("alone"))
    assert run(*WORDS, "--data", root) == 0
    return root


def same_files(root: Path, other: Path) -> bool:
    folders = [results.case_path(one, "c", RUN, case) for case in CASES for one in (root, other)]
    assert all(results.verify(folder) == [] for folder in folders)
    pairs = zip(folders[::2], folders[1::2], strict=True)
    names = [name for name in NUMBERS if (folders[0] / name).exists()]
    return len(names) >= 3 and all(
        (one / name).read_bytes() == (two / name).read_bytes() for one, two in pairs for name in names
    )


def test_a_cluster_writes_what_one_process_writes_and_nothing_twice(
    alone: Path, running: LocalCluster, certificates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = new_root(tmp_path)
    words = (*WORDS, "--data", root, "--scheduler", running.scheduler_address, "--tls", certificates)
    assert running.scheduler_address.startswith("tls://")
    assert run(*words) == 0
    assert f"4 of c explained as run {RUN}" in capsys.readouterr().out
    assert same_files(alone, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")}
    assert run(*words) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("manifest.json")} == before


def test_a_worker_killed_in_mid_case_loses_nothing(
    alone: Path, running: LocalCluster, certificates: Path, tmp_path: Path
) -> None:
    root, killed = new_root(tmp_path), []
    plan = pipeline.Plan("tiny", METHOD)
    with cluster.existing(running.scheduler_address, certificates) as client:
        pids = client.run(os.getpid)

        def report(done: int, total: int, note: str) -> None:
            if "attributing" in note and not killed:
                killed.append(note)
                os.kill(next(iter(pids.values())), signal.SIGKILL)

        cases = [cohorts.find_case(root, "c", case) for case in CASES]
        found = list(cluster.explain_cases(client, cluster.Work(root, plan, "c"), cases, report))
        assert killed and pids != client.run(os.getpid)
    assert {done.case_id: (done.run, done.refused) for done in found} == dict.fromkeys(CASES, (RUN, ""))
    assert same_files(alone, root)
    assert not list((root / "runs" / "c" / RUN / "cases").glob(".*/"))


def test_workers_of_this_machine_take_a_free_port_and_are_encrypted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = new_root(tmp_path)
    broken = next(iter((tmp_path / "scans").glob("b.nii.gz")))
    broken.write_bytes(broken.read_bytes()[:500])
    with cluster.local(1) as one:
        assert one.scheduler.address.startswith("tls://127.0.0.1")
        assert run(*WORDS, "--data", root, "--workers", 2) == 2
    said = capsys.readouterr().err
    assert "agg2exp: b:" in said and "1 of 4 refused, the others are done" in said
    whole = [case for case in CASES if not results.verify(results.case_path(root, "c", RUN, case))]
    assert whole == ["a", "c", "d"]


def test_a_case_that_is_no_longer_wanted_stops_within_a_window(
    running: LocalCluster, certificates: Path, tmp_path: Path
) -> None:
    root, begun = new_root(tmp_path), threading.Event()
    plan, case = pipeline.Plan("tiny", replace(METHOD, samples=10_000)), cohorts.find_case(root, "c", "a")
    with cluster.existing(running.scheduler_address, certificates) as client:
        client.subscribe_topic("stop-it", lambda event: begun.set())
        future = client.submit(cluster._explain, (cluster.Work(root, plan, "c"), case, "stop-it"), pure=False)
        assert begun.wait(60)
        Event("stop-it", client).set()
        done = future.result(timeout=60)
    assert "its cohort was stopped" in done.refused and not done.fault
    assert not list(root.rglob("manifest.json"))


def test_a_scheduler_that_is_lost_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 2)
    root, begun = new_root(tmp_path), threading.Event()
    work = cluster.Work(root, pipeline.Plan("tiny", replace(METHOD, samples=10_000)), "c")
    with LocalCluster(1, threads_per_worker=1, dashboard_address=":0") as made:
        ending = threading.Thread(target=lambda: (begun.wait(60), made.close()))
        ending.start()
        with (
            pytest.raises(InputError, match=r"keep its cases .* the same command again"),
            cluster.existing(made.scheduler_address) as client,
        ):
            cases = [cohorts.find_case(root, "c", "a")]
            list(cluster.explain_cases(client, work, cases, lambda *_: begun.set()))
        ending.join()
    assert "Traceback" not in capfd.readouterr().err


def _warn() -> None:
    for name in ("distributed.nanny", "distributed.worker"):
        logging.getLogger(name).warning("a word of Dask")


def test_dask_warns_no_user_of_what_we_tell(capfd: pytest.CaptureFixture[str]) -> None:
    """As of workers that end, after Ctrl+C."""
    with cluster.local(1) as client:
        client.submit(_warn).result(timeout=60)
        _warn()
    assert "a word of Dask" not in capfd.readouterr().err


def test_a_case_that_kills_its_workers_is_refused_and_a_fault_of_ours_is_told_as_one() -> None:
    """Dask gives such a case up, after as many deaths as it is set to; here the future that it would answer with."""

    class Failed:
        def __init__(self, error: Exception):
            self.error = error

        def result(self) -> None:
            raise self.error

    case = cohorts.Case("a", None, None, {})
    killed = cluster._done(case, Failed(KilledWorker("task", None, 2)))
    assert killed.refused == "its worker died each of the 3 times it was tried" and not killed.fault
    broken = cluster._done(case, Failed(ZeroDivisionError("division by zero")))
    assert broken.refused == "ZeroDivisionError: division by zero" and broken.fault


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workers", 0), "workers must be from 1 to"),
        (("--workers", 2, "--scheduler", "tcp://127.0.0.1:1"), "this machine or to a --scheduler"),
        (("--scheduler", "tcp://127.0.0.1:1"), "a Dask scheduler must answer"),
        (("--scheduler", "nowhere"), "a Dask scheduler must answer"),
        (("--scheduler", "tcp://127.0.0.1:1", "--tls", "."), "goes with an encrypted"),
        (("--scheduler", "tls://127.0.0.1:1", "--tls", "."), "ca.pem, cert.pem, key.pem not there"),
        (("--tls", "."), "--tls"),
        (("--workers", 2, "--model", "other"), "model must exist"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple, said: str
) -> None:
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    root = new_root(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run(*WORDS, "--data", root, *words) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agg2exp:")]
    assert len(told) == 1 and said in told[0]
    assert not (root / "runs").exists()
