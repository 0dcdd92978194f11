"""What a request takes, before it is begun: from what its model needed last, and never more than there is."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command import run
from tiny import CLASSES, write_bundle, write_cohort

from agg2exp_core import cluster, pipeline, settings
from agg2exp_core.jobs import estimate as room
from agg2exp_core.jobs.estimate import START_SECONDS, Estimate, estimate
from agg2exp_core.jobs.queue import Request
from agg2exp_core.precision import Measured, write_measured
from agg2exp_core.records import InputError, Method, SumTable, Volume
from agg2exp_core.store import results
from agg2exp_core.volumes import write_volume

PAIRS = Method(samples=2)  # four copies
REQUEST = Request("c", "", "tiny", PAIRS)
PLACE = {"cohort": "c", "run": "r", "case_id": "one"}
EXTENT = 32.0**3
"""Of the small scans."""
TOLD = {"case_id": "one", "model": "tiny", "method": "smoothgrad", "parameters": PAIRS.parameters(), "seconds": 36.0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three scans of noise, the third of them eight times as large, and a model of three classes."""
    root = tmp_path / "root"
    write_bundle(root)
    write_cohort(root, ("one", "two", "zoom"), np.diag([4.0, 4, 4, 1]), (8, 8, 8))
    write_volume(tmp_path / "scans" / "zoom.nii.gz", Volume(np.zeros((8, 8, 8), np.int16), np.diag([8.0, 8, 8, 1])))
    return root


@pytest.fixture
def measured(root: Path) -> Path:
    """Two organs of `one` were explained on this machine."""
    needed = {"targets": ["aorta", "heart"], "windows": 5, "peak_bytes": 2 * 10**9}
    results.write_latest(root, "tiny", TOLD | needed | {"files": {"importance.csv": {"size": 10**6}}}, EXTENT)
    return root


def test_nothing_is_known_before_anything_was_measured(root) -> None:
    assert estimate(root, REQUEST) == Estimate(3, 4, 3)
    assert str(estimate(root, REQUEST)) == "3 scans × 4 passes × 3 organs"


def test_what_the_command_line_computed_tells_of_the_next_request(root, monkeypatch) -> None:
    words = ("--model", "tiny", "--cohort", "c", "--case", "one", "--samples", 2, "--device", "cpu")
    assert run("explain", "--data", root, *words) == 0
    told = estimate(root, REQUEST)
    assert told.scans == 2 and told.windows and told.seconds and told.memory and told.disk
    monkeypatch.setattr(results.platform, "node", lambda: "another machine")
    assert estimate(root, REQUEST).seconds is None


def test_a_model_that_was_timed_tells_of_the_first_request(root, monkeypatch) -> None:
    pipeline.time_model(root, "tiny")
    told = estimate(root, REQUEST)
    assert told.windows and told.seconds and told.memory and told.disk is None
    explained = results.read_latest(root, "tiny") | {"seconds": 7200.0}
    results.write_latest(root, "tiny", explained, EXTENT)
    pipeline.check_model(root, "tiny", "cpu")  # which knows less of it than a case did
    assert results.read_latest(root, "tiny")["seconds"] == 7200


def test_what_was_damaged_tells_nothing(measured) -> None:
    path = measured / "jobs" / ".latest" / "tiny.json"
    path.write_text(path.read_text().replace("36.0", "76.0"))
    assert estimate(measured, REQUEST) == Estimate(3, 4, 3)


def test_it_is_scans_by_windows_by_passes_by_organs(measured) -> None:
    each = 36 / (4 * (1 + 2))  # a pass forwards and two backwards for each copy
    one = estimate(measured, replace(REQUEST, case_id="one"))
    assert one.seconds == pytest.approx(START_SECONDS + each * 4 * (1 + 3))
    assert (one.scans, one.memory) == (1, 2 * 10**9) and one.windows == pytest.approx(5)
    assert one.disk == 1.5 * 10**6
    all_three = estimate(measured, REQUEST)
    assert all_three.seconds == pytest.approx(START_SECONDS + (1 + 1 + 8) * each * 4 * (1 + 3))
    assert all_three.windows == pytest.approx(5 * 10 / 3) and all_three.memory == 16 * 10**9
    assert all_three.disk == pytest.approx(10 * one.disk, rel=1e-5)
    few = replace(REQUEST, case_id="one", method=Method("gradient"), targets=("heart",))
    assert estimate(measured, few).seconds == pytest.approx(START_SECONDS + each * 2)
    assert estimate(measured, replace(REQUEST, only=("one", "two"))).scans == 2


def test_single_voxels_are_differentiated_in_the_windows_that_they_lie_in(measured) -> None:
    """Eight at most: of 5 windows in any of them, of 40 in a fifth; forwards for each organ."""
    each, method = 36 / (4 * (1 + 2)), Method("quantile_gradient", 100)
    for case, extent, reached in (("one", 1, 1.0), ("zoom", 8, 8 / 40)):
        found = estimate(measured, replace(REQUEST, case_id=case, method=method)).seconds
        assert found == pytest.approx(START_SECONDS + extent * each * 3 * (1 + 100 * reached))


def test_half_precision_takes_its_share_of_the_time(measured) -> None:
    write_measured(measured, "tiny", "cpu", Measured(0.001, 2.0))
    single, half = (
        estimate(measured, replace(REQUEST, method=replace(PAIRS, precision=precision))).seconds
        for precision in ("float32", "bfloat16")
    )
    assert single - START_SECONDS == pytest.approx(2 * (half - START_SECONDS))


def test_a_precision_that_is_left_open_is_the_one_that_will_be_taken(measured) -> None:
    """As the command line leaves it: time, and what is there, are told of the run that the cases go to."""
    info = {"model": "tiny", "method": "smoothgrad", "parameters": PAIRS.parameters(), "model_hash": "0"}
    results.write_run(measured, "c", "r", info)
    explained(measured, "one", *CLASSES)
    single, half, open_ = (
        replace(REQUEST, device="cpu", method=replace(PAIRS, precision=one)) for one in ("float32", "bfloat16", "auto")
    )
    assert estimate(measured, open_) == estimate(measured, single) and estimate(measured, open_).scans == 2
    write_measured(measured, "tiny", "cpu", Measured(0.001, 2.0))
    assert estimate(measured, open_) == estimate(measured, half) and estimate(measured, open_).scans == 3


def test_half_precision_is_that_of_the_device_that_a_job_would_get(root, tmp_path, monkeypatch) -> None:
    for device, speedup in (("cpu", 0.2), ("cuda", 1.9)):
        write_measured(root, "tiny", device, Measured(0.001, speedup))
    for there, expected in ((True, [1.9, 0.2, 1.9]), (False, [0.2, 0.2, 1.9])):
        monkeypatch.setattr(room, "GPU", tmp_path if there else tmp_path / "none")
        found = [room.measured(root, "tiny", device) for device in ("auto", "cpu", "cuda:1")]
        assert [one and one.speedup for one in found] == expected


def test_what_settled_early_was_less_work_than_its_method_allows(measured) -> None:
    """Of 20 pairs one organ took 4 and the other 8: 2 · 8 passes forwards and 2 · 12 backwards in 36 s."""
    settled = Method(samples=20)
    told = TOLD | {"parameters": settled.parameters(), "targets": ["aorta", "heart"]}
    results.write_latest(measured, "tiny", told | {"pairs": {"aorta": 4, "heart": 8}}, EXTENT)
    published = replace(REQUEST, case_id="one", method=Method(samples=20, estimator="plain"))
    assert estimate(measured, published).seconds == pytest.approx(START_SECONDS + 36 / 40 * 20 * (1 + 3))


def explained(root: Path, case_id: str, *drawn: str, absent: tuple[str, ...] = ()) -> None:
    """A case with all targets that have a map or are absent, and aorta, whose map was not kept."""
    targets = tuple(name for name in CLASSES if name in (*drawn, *absent, "aorta"))
    sums = np.zeros((2, len(targets), 3))
    place = results.case_path(root, **PLACE | {"case_id": case_id})
    with results.case_folder(place, TOLD | {"targets": list(targets)}) as new:
        (new / "saliency").mkdir()
        for name in drawn:
            (new / results.map_name(name)).write_bytes(b"")
        results.write_importance(
            new, SumTable(targets, CLASSES, *sums, np.ones(3, np.int64), dict.fromkeys(absent, "not predicted"))
        )


@pytest.mark.parametrize("name", ["manifest.json", "importance.csv"])
def test_no_flipped_bit_in_a_case_keeps_from_an_estimate(measured, name: str) -> None:
    """Else it would keep from computing the case again, too."""
    info = {"model": "tiny", "method": "smoothgrad", "parameters": PAIRS.parameters(), "model_hash": "0"}
    results.write_run(measured, "c", "r", info)
    explained(measured, "one", "heart", "background", absent=("aorta",))
    path = results.case_path(measured, **PLACE) / name
    whole = path.read_bytes()
    for place in range(0, 8 * len(whole), 7):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        # In the manifest's entry of itself, which only a whole verification misses, nothing is told wrong.
        assert estimate(measured, REQUEST).scans in ((3,) if name == "importance.csv" else (2, 3))


def test_what_the_run_has_is_not_counted(measured, monkeypatch) -> None:
    info = {"model": "tiny", "method": "smoothgrad", "parameters": PAIRS.parameters(), "model_hash": "0"}
    results.write_run(measured, "c", "r", info)
    explained(measured, "one", "heart")
    assert [estimate(measured, replace(REQUEST, targets=some)).scans for some in ((), ("heart",), ("aorta",))] == [
        3,
        2,
        3,
    ]
    explained(measured, "one", "heart", "background")
    assert estimate(measured, REQUEST).scans == 3  # to draw the aorta, too
    explained(measured, "one", "heart", "background", "aorta")
    assert estimate(measured, REQUEST).scans == 2
    explained(measured, "one", "heart", "background", absent=("aorta",))
    assert estimate(measured, REQUEST).scans == 2
    assert estimate(measured, replace(REQUEST, method=replace(PAIRS, seed=1))).scans == 3
    explained(measured, "two", "heart")
    monkeypatch.setattr(room, "LOOKED_AT", 1)  # of more the manifests are not read
    assert estimate(measured, REQUEST).scans == 1
    assert estimate(measured, replace(REQUEST, targets=("heart",))).scans == 3


@pytest.mark.parametrize("where", [(), ("--workers", 2)])
def test_what_does_not_fit_the_disk_is_refused(measured, monkeypatch, capsys, where) -> None:
    monkeypatch.setattr(cluster, "local", lambda workers: nullcontext())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(
        InputError, match="results must fit on the disk; got about 15 MB; allowed: 1 MB, which are free"
    ):
        estimate(measured, REQUEST)
    words = ("--model", "tiny", "--cohort", "c", "--samples", 2, "--device", "cpu", *where)
    assert run("explain", "--data", measured, *words) == 2
    assert "results must fit on the disk" in capsys.readouterr().err
    assert not (measured / "runs").exists()


def test_a_scan_that_is_damaged_since_it_was_explained_refuses_no_other(measured) -> None:
    other = replace(REQUEST, case_id="two")
    before = estimate(measured, other)
    (measured.parent / "scans" / "one.nii.gz").write_bytes(b"damaged")
    assert estimate(measured, other) == before and before.seconds


def test_what_does_not_fit_the_memory_is_refused_where_none_fits(root, monkeypatch) -> None:
    monkeypatch.delenv("AGG2EXP_MAX_GIB", raising=False)
    monkeypatch.setattr(settings, "memory_bytes", lambda: 3000)
    with pytest.raises(InputError, match="a scan must fit the memory allowed"):
        estimate(root, REQUEST)
    monkeypatch.setattr(settings, "memory_bytes", lambda: 10**9)
    write_volume(root.parent / "scans" / "zoom.nii.gz", Volume(np.zeros((512, 512, 512), np.uint8), np.eye(4)))
    assert estimate(root, REQUEST).scans == 3


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (42, "42 s"), (200, "3 min"), (7500, "2 h 5 min")])
def test_times_in_words(seconds: float, words: str) -> None:
    assert room.duration(seconds) == words
